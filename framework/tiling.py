"""How objects are found with a network: in the whole image or tile by tile, and in its mirror image too."""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from framework.boxes import Detections, Size, best_detections, scale_boxes
from framework.errors import ConfigError
from framework.inference import window_starts
from framework.preprocessing import resize_image, to_unit

Finder = Callable[[Tensor, list[Size]], list[Detections]]
"""Images (B, C, H, W) and the size that each fills of it, to what is found in each, in their pixels."""

EDGE = 0.01  # of a tile's side: a box that comes this near to an inner edge of its tile is taken for cut there
CONTAINED = 0.7  # of its area: a cut box that lies by this much in a whole one is a part of that object
SWALLOWED = 0.9  # of its area: the same where the other one is cut too, and may show another part
TRUSTED = 0.5  # of its score: what another box must have at least for that


class Tile(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.height, self.width

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """Its x1, y1, x2, y2."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def crop(self, image: Tensor) -> Tensor:
        """Return this part of an image (C, H, W)."""
        return image[:, self.top : self.top + self.height, self.left : self.left + self.width]


class View(NamedTuple):
    """What was found in an image or in one of its tiles, in pixels of the image.

    Args:
        found: What was found.
        cut: Which of it an inner edge of the tile may have cut, bool (N,).
    """

    found: Detections
    cut: Tensor


class DetectionInference:
    """Tiles and test-time augmentation for boxes.

    Tiles overlap and cover the image, as in sliced inference (SAHI, Akyon et al. 2022, arXiv 2202.06934). An inner
    edge of a tile cuts objects, so that a box which touches one may be a part of an object:

    1. A cut box is dropped if another tile sees all of it and cuts it at fewer sides: that tile shows more of the
       object. So every object up to the size of the overlap is left to the tiles that see it whole.
    2. A cut box is dropped if 70 % of its area lie in a box of its class that is not cut, or 90 % in a larger one that
       is, and whose score is at least half of its own. So an object larger than the overlap is left to the whole
       image, and its parts are kept only if that does not show it. Boxes that are not cut may lie in one another.
    3. Of two boxes of a class that overlap by more than `nms_iou`, the better one is kept.

    Without `whole` an object larger than the overlap may come back as its parts.

    A view and its mirror image are averaged as in weighted boxes fusion (Solovyev et al. 2019, arXiv 1910.13302): two
    boxes of a class that are each other's best match, by more than `nms_iou`, become one with the mean score, and with
    the mean box weighted by the scores; a box that only one view has keeps half of its score.

    Args:
        tile: Height and width of the tiles in pixels of the image as the network sees it, one number for squares;
            null: no tiles.
        overlap: Fraction of a tile that the next one shares, at least; objects up to this size are seen whole.
        whole: Look at the whole image too, for objects larger than the overlap.
        flip: Average with what is found in the mirror image.
        nms_iou: Boxes of a class from several views that overlap by more than this are one object; null: the head's.
        max_detections: How many are kept of an image.
        batch_size: Tiles at a time.
        scale: Enlarge the tiles by this factor, for objects smaller than those of training.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Detection",)

    def __init__(
        self,
        tile: int | tuple[int, int] | None = None,
        overlap: float = 0.2,
        whole: bool = True,
        flip: bool = False,
        nms_iou: float | None = None,
        max_detections: int = 100,
        batch_size: int = 8,
        scale: float = 1.0,
    ) -> None:
        self.tile = (tile, tile) if isinstance(tile, int) else tile
        if self.tile is not None and min(self.tile) < 1:
            raise ConfigError(f"inference.tile must be at least 1 pixel, got {self.tile}")
        if not 0 <= overlap < 1:
            raise ConfigError(f"inference.overlap must be in [0, 1), got {overlap}")
        if nms_iou is not None and not 0 < nms_iou <= 1:
            raise ConfigError(f"inference.nms_iou must be in (0, 1], got {nms_iou}")
        if scale <= 0:
            raise ConfigError(f"inference.scale must be above 0, got {scale}")
        for name, number in (("max_detections", max_detections), ("batch_size", batch_size)):
            if number < 1:
                raise ConfigError(f"inference.{name} must be at least 1, got {number}")
        self.overlap, self.whole, self.flip, self.given_iou = overlap, whole, flip, nms_iou
        self.nms_iou: float = 0.5 if nms_iou is None else nms_iou
        self.max_detections, self.batch_size, self.scale = max_detections, batch_size, scale

    def suit(self, nms_iou: float) -> None:
        """Join boxes by a head's own `nms_iou`, unless another was given: what it keeps apart stays apart."""
        self.nms_iou = nms_iou if self.given_iou is None else self.given_iou

    def __call__(self, network: Finder, images: Tensor, sizes: Sequence[Size]) -> list[Detections]:
        """Find the objects of every image.

        Args:
            network: The network.
            images: (B, C, H, W), uint8 or float in [0, 1].
            sizes: Size that each image fills of its canvas, from the upper left corner.
        """
        if self.tile is None and not self.flip:
            return network(images, list(sizes))
        tilings = [self._tiles(size) for size in sizes]
        views: list[list[View]] = [[] for _ in sizes]
        rows = [row for row, tiles in enumerate(tilings) if self.whole or not tiles]
        for row, found in zip(rows, self._look(network, images[rows], [sizes[row] for row in rows]), strict=True):
            views[row].append(View(found, torch.zeros_like(found.labels, dtype=torch.bool)))
        for row, tile, found in self._look_into(network, images, tilings):
            views[row].append(uncertain_parts(found, tile, tilings[row], sizes[row]))
        return [self._merge(seen, size) for seen, size in zip(views, sizes, strict=True)]

    def _tiles(self, size: Size) -> list[Tile]:
        """Return the tiles that cover an image of that size; none if it is shown whole and as it is anyhow."""
        if self.tile is None:
            return []
        extent = (min(self.tile[0], size[0]), min(self.tile[1], size[1]))
        if extent == tuple(size) and self.scale == 1:
            return []
        rows, columns = (window_starts(*sides, self.overlap) for sides in zip(size, extent, strict=True))
        return [Tile(top, left, *extent) for top in rows for left in columns]

    def _look_into(
        self, network: Finder, images: Tensor, tilings: Sequence[Sequence[Tile]]
    ) -> Iterator[tuple[int, Tile, Detections]]:
        """Find what is in each tile, in pixels of its image; tiles of one size go through together."""
        places = [(row, tile) for row, tiles in enumerate(tilings) for tile in tiles]
        for size in dict.fromkeys(tile.size for _, tile in places):
            alike = [(row, tile) for row, tile in places if tile.size == size]
            for start in range(0, len(alike), self.batch_size):
                group = alike[start : start + self.batch_size]
                found = self._look_closer(network, torch.stack([tile.crop(images[row]) for row, tile in group]))
                for (row, tile), one in zip(group, found, strict=True):
                    corner = one.boxes.new_tensor([tile.left, tile.top, tile.left, tile.top])
                    yield row, tile, one._replace(boxes=one.boxes + corner)

    def _look_closer(self, network: Finder, crops: Tensor) -> list[Detections]:
        """Find what is in crops (B, C, H, W), enlarged if they are to be."""
        size = (int(crops.shape[-2]), int(crops.shape[-1]))
        shown = (max(1, round(size[0] * self.scale)), max(1, round(size[1] * self.scale)))
        if shown != size:
            crops = resize_image(to_unit(crops), shown)
        found = self._look(network, crops, [shown] * len(crops))
        return [one._replace(boxes=scale_boxes(one.boxes, shown, size)) for one in found]

    def _look(self, network: Finder, images: Tensor, sizes: list[Size]) -> list[Detections]:
        """Find what is in images, and in their mirror images if asked for."""
        if not len(images):
            return []
        found = network(images, sizes)
        if not self.flip:
            return found
        mirrored = images.clone()
        for image, (height, width) in zip(mirrored, sizes, strict=True):
            image[:, :height, :width] = image[:, :height, :width].flip(-1)
        others = network(mirrored, sizes)
        return [
            average_views(one, mirror_boxes(other, size[1]), self.nms_iou)
            for one, other, size in zip(found, others, sizes, strict=True)
        ]

    def _merge(self, views: Sequence[View], size: Size) -> Detections:
        """Join what the views of one image show."""
        if len(views) == 1 and not self.flip:
            return views[0].found
        boxes, scores, labels = (torch.cat(values) for values in zip(*(view.found for view in views), strict=True))
        kept = ~parts_of_others(Detections(boxes, scores, labels), torch.cat([view.cut for view in views]))
        return best_detections(boxes[kept], scores[kept], labels[kept], size, self.nms_iou, self.max_detections)


def uncertain_parts(found: Detections, tile: Tile, tiles: Sequence[Tile], size: Size) -> View:
    """Mark the boxes that an inner edge of their tile cuts, and leave out those that another tile shows better.

    Args:
        found: What is in the tile, in pixels of the image.
        tile: The tile.
        tiles: All tiles of the image, this one too.
        size: Of the image.
    """
    cuts = cut_sides(found.boxes, tile, size).sum(1)
    keep = torch.ones_like(cuts, dtype=torch.bool)
    for other in tiles:
        if other is not tile:
            corners = found.boxes.new_tensor(other.corners)
            inside = (found.boxes[:, :2] >= corners[:2]).all(1) & (found.boxes[:, 2:] <= corners[2:]).all(1)
            keep &= ~(inside & (cut_sides(found.boxes, other, size).sum(1) < cuts))
    return View(Detections(*(values[keep] for values in found)), cuts[keep] > 0)


def cut_sides(boxes: Tensor, tile: Tile, size: Size) -> Tensor:
    """Tell which sides of boxes (N, 4) touch an inner edge of a tile of an image of `size`; bool (N, 4)."""
    corners = boxes.new_tensor(tile.corners)
    inner = corners != boxes.new_tensor([0, 0, size[1], size[0]])
    margin = (boxes.new_tensor([tile.width, tile.height, tile.width, tile.height]) * EDGE).clamp_min(1)
    return inner & ((boxes - corners).abs() <= margin)


def parts_of_others(found: Detections, cut: Tensor) -> Tensor:
    """Tell which of the cut boxes are parts of an object that another box shows; bool (N,)."""
    part = torch.zeros_like(cut)
    rows = cut.nonzero()[:, 0]
    if not len(rows):
        return part
    boxes = found.boxes.float()
    areas = box_area(boxes)
    lower, upper = torch.max(boxes[rows, None, :2], boxes[:, :2]), torch.min(boxes[rows, None, 2:], boxes[:, 2:])
    share = (upper - lower).clamp_min(0).prod(2) / areas[rows, None].clamp_min(torch.finfo(areas.dtype).tiny)
    shows = (~cut & (share >= CONTAINED)) | ((areas > areas[rows, None]) & (share >= SWALLOWED))
    alike = found.labels == found.labels[rows, None]
    trusted = found.scores >= TRUSTED * found.scores[rows, None]
    part[rows] = (shows & alike & trusted).any(1)
    return part


def mirror_boxes(found: Detections, width: int) -> Detections:
    """Return what was found in the mirror image, in pixels of the image of that width."""
    left, top, right, bottom = found.boxes.unbind(1)
    return found._replace(boxes=torch.stack([width - right, top, width - left, bottom], dim=1))


def average_views(one: Detections, other: Detections, iou_threshold: float) -> Detections:
    """Average two views of the same; symmetric in them.

    Boxes of a class that are each other's best match become one; what only one view has keeps half of its score.
    """
    if not len(one.boxes) or not len(other.boxes):
        seen = one if len(one.boxes) else other
        return seen._replace(scores=seen.scores / 2)
    overlap = box_iou(one.boxes.float(), other.boxes.float()) * (one.labels[:, None] == other.labels)
    iou, match = overlap.max(1)
    paired = (iou > iou_threshold) & (overlap.argmax(0)[match] == torch.arange(len(match), device=match.device))
    partner, alone = match[paired], torch.ones_like(other.labels, dtype=torch.bool)
    alone[partner] = False
    ours, theirs = one.scores[paired, None], other.scores[partner, None]
    total = (ours + theirs).clamp_min(torch.finfo(ours.dtype).tiny)
    mean = (one.boxes[paired] * ours + other.boxes[partner] * theirs) / total
    return Detections(
        torch.cat([mean, one.boxes[~paired], other.boxes[alone]]),
        torch.cat([total[:, 0] / 2, one.scores[~paired] / 2, other.scores[alone] / 2]),
        torch.cat([one.labels[paired], one.labels[~paired], other.labels[alone]]),
    )
