"""Anchors on the cells of a pyramid: torchvision's, with strides that are known instead of guessed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from framework.errors import ConfigError


class GridAnchors(AnchorGenerator):
    """Lay boxes of given sizes and aspect ratios on every cell of every map; always float32, whatever the maps are.

    torchvision takes the image's side over the map's, rounded down, for a stride, which drifts from cell to cell where
    the map reaches beyond the image or the stride is a fraction. Everything else is torchvision's, and so are all
    anchors where the image is a whole number of cells. Cell (row, column) has its anchors centred on
    (column, row) times the stride.

    Args:
        strides: Pixels per cell of each map, fine to coarse.
        sizes: For each map, the square roots of the areas of its anchors, in pixels.
        aspect_ratios: Height over width of the anchors of every map.
        rounded: Whether corners lie on whole pixels around the centre, as torchvision's do.
    """

    def __init__(
        self,
        strides: Sequence[float],
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float],
        rounded: bool = True,
    ) -> None:
        self.rounded = rounded  # the parent makes the anchors of a cell when it is built
        super().__init__(tuple(map(tuple, sizes)), (tuple(aspect_ratios),) * len(strides))
        self.strides = tuple(strides)

    def generate_anchors(
        self,
        scales: Sequence[float],
        aspect_ratios: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """Return the anchors of one cell, (sizes * ratios, 4), around 0."""
        ratios = torch.as_tensor(aspect_ratios, dtype=dtype, device=device).sqrt()
        sizes = torch.as_tensor(scales, dtype=dtype, device=device)
        widths, heights = (1 / ratios[:, None] * sizes).flatten(), (ratios[:, None] * sizes).flatten()
        anchors = torch.stack([-widths, -heights, widths, heights], dim=1) / 2
        return anchors.round() if self.rounded else anchors

    def per_level(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors of each map, (h * w * sizes * ratios, 4), x1, y1, x2, y2 in pixels, row by row."""
        self.set_cell_anchors(torch.float32, maps[0].device)
        grids = [list(x.shape[-2:]) for x in maps]
        anchors: list[Tensor] = self.grid_anchors(grids, [[stride, stride] for stride in self.strides])
        return anchors

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return for each image the anchors of all maps, fine to coarse: what torchvision's modules ask for."""
        anchors = torch.cat(self.per_level(feature_maps))
        return [anchors] * len(image_list.image_sizes)


def check_anchors(maps: int, sizes: Sequence[float], aspect_ratios: Sequence[float]) -> None:
    """Refuse anchors that cannot be.

    Args:
        maps: How many maps there are.
        sizes: Square root of the area of the anchors of each map, in pixels.
        aspect_ratios: Height over width.

    Raises:
        ConfigError: There is not one size for each map, or a size or ratio is not above 0.
    """
    if len(sizes) != maps:
        raise ConfigError(f"anchor_sizes: {len(sizes)} sizes for {maps} maps, one is needed for each")
    if min(sizes) < 1 or not aspect_ratios or min(aspect_ratios) <= 0:
        raise ConfigError(
            f"anchor_sizes must be at least 1 and aspect_ratios above 0, got {list(sizes)} and {list(aspect_ratios)}"
        )
