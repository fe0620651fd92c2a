"""Detection data: images with any number of boxes, each with a class."""

import hashlib
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from framework.boxes import Size
from framework.clock import keyed_randomness
from framework.data.annotations import Annotations
from framework.data.box_transforms import (
    BoxEvalTransform,
    BoxTrainTransform,
    GivenView,
    RandomView,
    Viewer,
    counted_objects,
)
from framework.data.datamodule import ImageFiles, SplitName, VisionData
from framework.data.fit import Fit
from framework.data.images import images_to_predict
from framework.data.loader import KeyedLoader, KeyedSamples, Samples, Transform
from framework.data.mosaic import MixUp, Mosaic
from framework.data.sampling import Sampling
from framework.data.transforms import Photometric
from framework.errors import ConfigError, DataError

IDLE = {"crop_size": None, "scale": (1.0, 1.0), "hflip": 0.0, "vflip": 0.0, "min_visibility": 0.0}  # change nothing
TRIED, PICTURES = 16, 256  # training images tried before training at most, and pictures of all of them together


class DetectionData(VisionData):
    """Base of detection data.

    Images come to the network by `resize`, by `letterbox`, or as stored, in training and evaluation alike. A training
    picture is then a random part of the image at a random scale, flipped at random; where the image does not fill it,
    the image lies in the upper left corner. Objects are clipped to the picture, and dropped where too little of them is
    left, or less than a pixel a side. `train_transforms` take the place of all that, photometric changes excepted: they
    get each image as evaluation shows it; with `letterbox`, what comes out is padded to the canvas.

    Args:
        longest: Longer side at most, in pixels; `resize` then gives way. Null: as `resize` makes it.
        letterbox: Canvas, one number or height and width, in which every image becomes as large as fits, enlarged if
            need be; the rest takes the mean colour. Instead of `resize`. Null: none.
        crop_size: Height and width of training pictures; null: the canvas of `letterbox` if there is one, else whole
            images, padded to the largest of their batch.
        scale: Smallest and largest scale of training pictures, drawn log-uniformly; 1 is the size in evaluation.
        hflip: Probability of a left-right flip.
        vflip: Probability of a top-down flip; for images without an up, such as microscopy and aerial ones.
        min_visibility: Share of its box that an object in a training picture shows at least.
        mosaic: Probability that a training picture is made of four images; needs pictures of one size.
        mixup: Probability that a training picture is blended with another image; needs pictures of one size.
        sampling: How often an epoch visits the images of each class; null: every image `repeats` times.
        bad_boxes: What becomes of boxes of no area, or outside of their image: training is refused, or they are dropped
            with a warning.
        photometric: Brightness, contrast and saturation changes in training; null: none.

    Raises:
        ConfigError: Options contradict each other, or are out of range.
    """

    tasks: ClassVar[tuple[str, ...]] = ("Detection",)

    def __init__(
        self,
        longest: PositiveInt | None = None,
        letterbox: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
        crop_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None,
        scale: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.25),
        hflip: ClosedUnitInterval = 0.5,
        vflip: ClosedUnitInterval = 0.0,
        min_visibility: ClosedUnitInterval = 0.3,
        mosaic: ClosedUnitInterval = 0.0,
        mixup: ClosedUnitInterval = 0.0,
        sampling: Sampling | None = None,
        bad_boxes: Literal["refuse", "drop"] = "refuse",
        photometric: Photometric | None = Photometric(),  # noqa: B008 - read only
        **options: Any,
    ) -> None:
        super().__init__(photometric=photometric, **options)
        self.fit = Fit(self.resize, longest, _pair(letterbox))
        self.crop_size = _pair(crop_size) or self.fit.letterbox
        self.scale, self.hflip, self.vflip = (scale[0], scale[1]), hflip, vflip
        self.min_visibility, self.mosaic, self.mixup = min_visibility, mosaic, mixup
        self.sampling: Sampling | None = sampling
        self.bad_boxes: Literal["refuse", "drop"] = bad_boxes
        self._check_options()

    def _check_options(self) -> None:
        """Refuse options that contradict each other."""
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"data.scale: two positive numbers, rising, got {list(self.scale)}")
        for name, share in (("mosaic", self.mosaic), ("mixup", self.mixup)):
            if share and self.train_transforms is not None:
                raise ConfigError(f"data.{name}: data.train_transforms take its place: leave one of them out")
            if share and (self.crop_size is None or min(self.crop_size) < 2):
                raise ConfigError(f"data.{name}: training pictures need one size: set data.crop_size or data.letterbox")
        if self.train_transforms is not None:
            self._require_idle()

    def _require_idle(self) -> None:
        """Refuse options that the user's own transforms would silently replace."""
        changed = []
        for name, idle in IDLE.items():
            value, default = getattr(self, name), _default(type(self), name)
            usual = (idle, self.fit.letterbox, _pair(default)) if name == "crop_size" else (idle, default)
            if value not in usual:
                changed.append(name)
        if changed:
            named = ", ".join(f"data.{name}" for name in changed)
            raise ConfigError(
                f"{named}: data.train_transforms take the place of all that is drawn in training: leave "
                f"{'it' if len(changed) == 1 else 'these'} out, or the transforms"
            )

    @abstractmethod
    def split(self, name: SplitName) -> Samples | None:
        """Return a split, or None if the data set lacks it.

        Its samples have, besides what all have, `boxes` (tv_tensors.BoundingBoxes, float32 (N, 4), XYXY in pixels of
        the image as stored), `labels` (long (N,)), `ignored` (bool (N,), neither trained on nor counted) and `area`
        (float32 (N,), square pixels). `class_indices`, where the samples have it, lists the distinct classes of each
        image's objects, without a file being read; `sampling` goes by it.
        """

    def state_classes(self, classes: Sequence[str]) -> None:
        """Set the class names, without a background.

        Raises:
            DataError: There is none, one stands twice, or one cannot be written down.
        """
        if not classes:
            raise DataError("detection needs at least 1 class, got none")
        twice = (
            sorted({name for name in classes if classes.count(name) > 1}) if len(set(classes)) < len(classes) else []
        )
        if twice:
            raise DataError(f"the classes must differ, but {', '.join(twice[:5])} stand twice")
        strange = [name for name in classes if not name.strip() or name != name.encode("utf-8", "replace").decode()]
        if strange:
            raise DataError(f"a class is named {strange[0]!r}, which is empty or no UTF-8: rename it")
        self.classes = tuple(classes)

    @property
    def at_least(self) -> int | None:
        """Shorter side, in pixels, below which an image would have to be enlarged; None: images are needed whole."""
        return self.fit.at_least(1.0 if self.train_transforms is not None else self.scale[1])

    def unlabelled(self, folder: Path) -> Samples:
        """Return the images of a folder as samples without objects."""
        return ImageFiles(images_to_predict(folder), self.channels, self.at_least)

    # What is checked before training.

    def rules(self) -> str:
        """Return everything besides the files that the data check's verdict depends on: what is annotated, too."""
        digest = hashlib.blake2b(digest_size=16)
        for name, samples in self.splits().items():
            digest.update(name.encode())
            digest.update(repr(getattr(samples, "notes", None)).encode(errors="surrogateescape"))
            annotations = getattr(samples, "annotations", None)
            if isinstance(annotations, Annotations):
                _add_annotations(digest, annotations)
        return f"{super().rules()} {self.bad_boxes} {digest.hexdigest()}"

    def check_files(self) -> list[str]:
        """Look at every file of every split once; returns warnings.

        Raises:
            DataError: Files are wrong; there are fewer training samples than a batch; there is no object at all to
                train on, or to validate with; or training pictures show none.
        """
        for name in ("train", "val"):
            classes = getattr(self.splits()[name], "class_indices", None)
            if classes is not None and not any(len(indices) for indices in classes):
                lacking = "nothing can be learned" if name == "train" else "average precision means nothing"
                wrong = ", wrong boxes left out as data.bad_boxes says" if self.bad_boxes == "drop" else ""
                raise DataError(
                    f"{name}: no image has an object to learn from or to measure, of {len(classes)} images{wrong}, so "
                    f"{lacking}: are the annotations those of these images, and of the classes listed?"
                )
        untried = self.check and not self._checked
        warnings = super().check_files()
        if untried:
            self._try_pictures()
        return warnings

    def _try_pictures(self) -> None:
        """Refuse training pictures from which all objects are dropped, as a few tell."""
        samples, transform = self.splits()["train"], self.train_transform()
        classes = getattr(samples, "class_indices", None)
        shown = [index for index in range(len(samples)) if classes is None or len(classes[index])]
        chosen = shown if len(shown) <= TRIED else [shown[each * len(shown) // TRIED] for each in range(TRIED)]
        tried, pictures = 0, PICTURES // max(1, len(chosen))
        for index in chosen:
            sample = samples.read(index)
            if not len(counted_objects(sample)[1]):
                continue
            tried += 1
            for epoch in range(pictures):
                with keyed_randomness(self.seed, "sample", epoch, index):
                    if len(transform(sample)["labels"]):
                        return
        if tried:
            raise DataError(self._nothing_shown(tried, pictures))

    def _nothing_shown(self, tried: int, pictures: int) -> str:
        """Say that no object was left in any training picture of some images, and what to change."""
        images = f"{tried} images with objects were" if tried > 1 else "1 image with objects was"
        said = f"train: {images} tried, and of {pictures} training pictures of each none shows an object"
        if self.train_transforms is not None:
            return f"{said}: data.train_transforms drop them all, or leave less than a pixel a side of them"
        options = {name: getattr(self, name) for name in ("min_visibility", "crop_size", "scale")}
        options |= {"letterbox": self.fit.letterbox, "resize": self.resize}
        values = ", ".join(f"data.{name} {_shown(value)}" for name, value in options.items() if value is not None)
        return (
            f"{said}: an object is dropped where less than data.min_visibility of it is in the picture, or less than a "
            f"pixel a side: show more of each image, show it larger, or lower data.min_visibility ({values})"
        )

    # Loaders.

    def train_transform(self) -> Transform:
        """Return what is done to each training sample in a worker."""
        if self.train_transforms is not None:
            return BoxTrainTransform(GivenView(self.fit, self.train_transforms), self.fit.letterbox, self.photometric)
        view = RandomView(self.fit, self.scale, self.hflip, self.vflip, self.min_visibility, self.crop_size)
        picture: Viewer = view
        samples = self.splits()["train"]
        if self.mosaic and self.crop_size is not None:
            picture = Mosaic(self.mosaic, picture, view, samples, self.crop_size)
        if self.mixup:
            picture = MixUp(self.mixup, picture, view, samples)
        return BoxTrainTransform(picture, self.crop_size, self.photometric)

    def _eval_loader(self, samples: Samples) -> KeyedLoader:
        return self._loader(KeyedSamples(samples, BoxEvalTransform(self.fit), self.seed), shuffle=False)


def _pair(size: int | tuple[int, int] | None) -> Size | None:
    """Return height and width; one number stands for both."""
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _shown(value: float | tuple[float, ...]) -> str:
    """Write a setting as a config would."""
    return str(list(value)) if isinstance(value, tuple) else f"{value:g}"


def _default(kind: type, name: str) -> Any:
    """Return the default of an argument of a class, of the first in its ancestry that has it."""
    signatures = (inspect.signature(each.__dict__["__init__"]) for each in kind.__mro__ if "__init__" in each.__dict__)
    return next(signature.parameters[name].default for signature in signatures if name in signature.parameters)


def _add_annotations(digest: hashlib.blake2b, annotations: Annotations) -> None:
    """Add all that is annotated to a digest."""
    for values in (annotations.sizes, annotations.first, annotations.boxes, annotations.labels, annotations.ignored):
        digest.update(values.tobytes())
    digest.update(repr(annotations.paths).encode(errors="surrogateescape"))
