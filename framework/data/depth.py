"""Depth data: images with a map of distances in metres each."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt
from torchvision.transforms import InterpolationMode, v2

from framework.data.datamodule import SplitName, VisionData
from framework.data.depth_transforms import DepthEvalTransform, DepthScaleCrop, DepthTrainTransform
from framework.data.loader import KeyedLoader, KeyedSamples, Samples, Transform
from framework.data.transforms import DepthMap, Photometric, fill_masks
from framework.errors import ConfigError


class DepthData(VisionData):
    """Base of depth data.

    Depth is z-depth in metres, along the optical axis; 0 where there is no reading. It is moved with the image, and
    never interpolated: between what is near and what is far there is nothing.

    What a training picture says about the camera: a crop alone moves the principal point and leaves the focal length. A
    crop that is shown s times larger looks as if taken with a focal length s times as long, of which the depths are
    right as they are. `divide_depth` takes it for what a camera of unchanged focal length sees from s times nearer, and
    divides the depths by s: right for a network that is to see through one camera, as one that is measured on the
    camera it was trained on. A rotation about the optical axis and a left-right flip leave z-depth as it is.

    Args:
        depth_range: Smallest and largest depth in metres, both included. Readings outside count as none, in training
            and evaluation, and predictions lie within. The default is that of NYU; of KITTI it is [0.001, 80].
        crop_size: Height and width of training crops, in pixels after `resize`. Null: whole images; those smaller than
            others of their batch are padded at the bottom and right, with black and without depth.
        crop_scale: Smallest and largest scale of training crops.
        divide_depth: Divide the depths of a training crop by its scale.
        hflip: Probability of a left-right flip.
        rotation: Largest rotation of training images to either side, in degrees; DINOv2 and BTS use 2.5. What it
            leaves empty is black, and has no depth.
        rotated: Share of training images that are rotated.
        photometric: Brightness, contrast and saturation changes in training; null: none.

    Raises:
        ConfigError: Options contradict each other, or are out of range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Depth",)

    classes: tuple[str, ...] = ()
    depth_range: tuple[float, float]

    def __init__(
        self,
        depth_range: tuple[float, float] = (0.001, 10.0),
        crop_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
        crop_scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0),
        divide_depth: bool = False,
        hflip: ClosedUnitInterval = 0.5,
        rotation: NonNegativeFloat = 0.0,
        rotated: ClosedUnitInterval = 1.0,
        photometric: Photometric | None = Photometric(),  # noqa: B008 - read only
        **options: Any,
    ) -> None:
        super().__init__(photometric=photometric, **options)
        self.depth_range = require_depth_range(depth_range)
        self.crop_size, self.crop_scale, self.divide_depth = crop_size, (crop_scale[0], crop_scale[1]), divide_depth
        self.hflip, self.rotation, self.rotated = hflip, rotation, rotated
        self._check_options()
        if self.train_transforms is not None:
            fill_masks(self.train_transforms, 0, DepthMap)

    def _check_options(self) -> None:
        """Refuse options that contradict each other, or would silently do nothing."""
        if not self.crop_scale[0] <= self.crop_scale[1]:
            raise ConfigError(f"data.crop_scale: two positive numbers, rising, got {list(self.crop_scale)}")
        given = {"crop_size": self.crop_size is not None, "crop_scale": self.crop_scale != (1.0, 1.0)}
        given |= {"divide_depth": self.divide_depth, "rotation": self.rotation > 0}
        if self.train_transforms is not None and any(given.values()):
            named = ", ".join(f"data.{name}" for name, is_given in given.items() if is_given)
            raise ConfigError(
                f"{named}: data.train_transforms take the place of all that is drawn in training: leave one of them out"
            )
        if given["crop_scale"] and not given["crop_size"]:
            raise ConfigError("data.crop_scale: whole images are not scaled: set data.crop_size, or leave it out")
        if given["divide_depth"] and not given["crop_scale"]:
            raise ConfigError("data.divide_depth: no crop is scaled, so there is nothing to divide by: set crop_scale")

    @abstractmethod
    def split(self, name: SplitName) -> Samples | None:
        """Return a split, or None if the data set lacks it.

        Its samples have, besides what all have, `depth` (a DepthMap, float32 (H, W) in metres, of the image as stored;
        0 without a reading), and perhaps `intrinsics` (float32 (3, 3), in pixels of the image as stored).
        """

    def default_transforms(self) -> list[v2.Transform]:
        """Return a rotation, a crop and a flip, those that are asked for."""
        transforms: list[v2.Transform] = []
        if self.rotation and self.rotated:
            rotation = v2.RandomRotation(self.rotation, interpolation=InterpolationMode.BILINEAR)
            transforms += [v2.RandomApply([rotation], self.rotated)]
        if self.crop_size is not None:
            transforms += [DepthScaleCrop(self.crop_size, self.crop_scale, self.divide_depth)]
        transforms += [v2.RandomHorizontalFlip(self.hflip)] if self.hflip else []
        return transforms

    def rules(self) -> str:
        """Return everything besides the files that the data check's verdict depends on."""
        return f"{super().rules()} {self.depth_range}"

    def train_transform(self) -> Transform:
        """Return what is done to each training sample in a worker."""
        transforms = self.train_transforms if self.train_transforms is not None else self.default_transforms()
        return DepthTrainTransform(self.resize, transforms, self.photometric, self.depth_range)

    def _eval_loader(self, samples: Samples) -> KeyedLoader:
        transform = DepthEvalTransform(self.resize, self.depth_range)
        return self._loader(KeyedSamples(samples, transform, self.seed), shuffle=False)


def require_depth_range(depth_range: tuple[float, float]) -> tuple[float, float]:
    """Return a range of depths as floats.

    Raises:
        ConfigError: It is not 0 < smallest < largest, or not finite.
    """
    least, most = float(depth_range[0]), float(depth_range[1])
    if not (math.isfinite(least) and math.isfinite(most)):
        raise ConfigError(f"data.depth_range: two finite numbers of metres, got {[least, most]}")
    if least >= most:
        swapped = f": did you mean {[most, least]}?" if least > most > 0 else ""
        raise ConfigError(f"data.depth_range: the smallest depth is below the largest, got {[least, most]}{swapped}")
    if least <= 0:
        raise ConfigError(
            f"data.depth_range: depths are positive, and 0 stands for no reading, got {[least, most]}: begin at 0.001"
        )
    return least, most
