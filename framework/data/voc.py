"""Pascal VOC's layout on disk."""

from pathlib import Path
from typing import Any

from framework.data.datamodule import SplitName
from framework.data.images import MaskTable
from framework.data.masks import MaskFiles, Pair, SegmentationData
from framework.errors import ConfigError, DataError

VOC_CLASSES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


class VOCSegmentation(SegmentationData):
    """Pascal VOC segmentation: `JPEGImages/`, `SegmentationClass/` and `ImageSets/Segmentation/{train,val,test}.txt`.

    Masks are palette PNGs; 255, the border of objects, is ignored. VOC 2012 publishes no masks for its test split, so
    `test` is used only if every image it lists has one.

    Args:
        root: The folder that holds these, usually `VOCdevkit/VOC2012`.
        train: Name of the list used for training, such as `train` or `trainaug`.
    """

    channels = 3

    def __init__(self, root: str, train: str = "train", **options: Any) -> None:
        super().__init__(**options)
        self.root, self.train_list = Path(root), train
        if not (self.root / "SegmentationClass").is_dir():
            inside = sorted(self.root.glob("**/SegmentationClass")) if self.root.is_dir() else []
            hint = f": did you mean {inside[0].parent}?" if inside else ": is it the VOC2012 folder?"
            raise ConfigError(f"data.root: {self.root} has no folder SegmentationClass{hint}")
        self.state_classes(list(VOC_CLASSES))

    def split(self, name: SplitName) -> MaskFiles | None:
        """Return a split; None for `test` if its list or its masks are missing."""
        names = self.root / "ImageSets" / "Segmentation" / f"{self.train_list if name == 'train' else name}.txt"
        if not names.is_file():
            if name == "test":
                return None
            raise DataError(f"{names} is missing: it lists the {name} split, one name a line")
        ids = names.read_text().split()
        pairs = [
            Pair(self.root / "JPEGImages" / f"{id}.jpg", self.root / "SegmentationClass" / f"{id}.png", id)
            for id in ids
        ]
        if name == "test" and not all(pair.mask.is_file() for pair in pairs):
            return None
        for pair in pairs:
            for path in (pair.image, pair.mask):
                if not path.is_file():
                    raise DataError(f"{path} is missing, but {names} lists {pair.id}")
        return MaskFiles(pairs, self.channels, MaskTable(self.num_classes, self.ignore_index), self.resize)
