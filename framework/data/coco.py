"""Detection data in COCO's JSON, in the layouts that COCO itself, Roboflow and others write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jsonargparse.typing import OpenUnitInterval

from framework.data.annotations import Annotations
from framework.data.box_files import BoxFiles, hold_out_images, image_ids
from framework.data.check import report
from framework.data.coco_file import OTHER, Category, COCOFile, read_coco
from framework.data.datamodule import SplitName
from framework.data.detection import DetectionData
from framework.errors import ConfigError, DataError, suggest

NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "train2017", "train2014", "default"),
    "val": ("val", "valid", "validation", "val2017", "val2014"),
    "test": ("test", "test2017", "test2014"),
}
FILES = (
    "annotations/instances_{}.json",
    "annotations/{}.json",
    "coco/instances_{}.json",
    "instances_{}.json",
    "{}.json",
    "{}/_annotations.coco.json",
)
FOLDERS = ("{}", "images/{}", "images", "JPEGImages", ".")
OTHER_KINDS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")  # COCO's other files
LOOKED_FOR = 50  # images of a file that tell which folder it means


class COCODetection(DetectionData):
    """Object detection in COCO's JSON: a file a split, and a folder of images for each or for all.

    Found are `annotations/instances_train2017.json` with `train2017/`, `annotations/instances_train.json`, `train.json`
    or `coco/instances_train.json` with `train/`, `images/train/`, `images/` or `JPEGImages/`, and Roboflow's
    `train/_annotations.coco.json`; likewise `val` or `valid`, and `test`, which may be missing. Any other layout is
    stated. Where nothing is for validation, a fixed share of the images is held out for it, by their names alone.

    Classes are matched by name, so that their ids may have gaps and differ between the files. Crowds are neither
    trained on nor counted, and an object's area is that of its outline, as the file states it; outlines are not read.

    Args:
        root: The folder that holds all of it.
        train_annotations: The file of the training split, from `root`; null: found.
        val_annotations: The file of the validation split, from `root`; null: found.
        test_annotations: The file of the test split, from `root`; null: found, if there is one.
        train_images: The folder from which the training file's names start, from `root`; null: found.
        val_images: The same of the validation file.
        test_images: The same of the test file.
        classes: The classes to detect, in the order of their indices: objects of others are left out; null: all of the
            training file, in the order of their ids.
        channels: 1 for grey images, 3 for colour, 4 for colour with alpha.
        val_fraction: Share of the images that is held out where there is no validation file, in (0, 1).

    Raises:
        ConfigError: A file, a folder or a class is not there, or several files may be meant.
        DataError: A file is no JSON, lacks something, or contradicts itself or another.
    """

    def __init__(
        self,
        root: str,
        train_annotations: str | None = None,
        val_annotations: str | None = None,
        test_annotations: str | None = None,
        train_images: str | None = None,
        val_images: str | None = None,
        test_images: str | None = None,
        classes: list[str] | None = None,
        channels: Literal[1, 3, 4] = 3,
        val_fraction: OpenUnitInterval = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.channels, self.val_fraction = Path(root), channels, val_fraction
        if not self.root.is_dir():
            raise ConfigError(f"data.root: {self.root} is no folder")
        stated = {"train": train_annotations, "val": val_annotations, "test": test_annotations}
        paths = {split: self._file(split, stated[split]) for split in NAMES}
        if paths["train"] is None:
            raise ConfigError(self._no_file())
        files = {split: read_coco(path) for split, path in paths.items() if path is not None}
        self.state_classes(self._chosen_classes(files, classes))
        self._left_out: dict[SplitName, int] = {}
        folders = {"train": train_images, "val": val_images, "test": test_images}
        self.annotations = {split: self._annotations(split, file, folders[split]) for split, file in files.items()}
        if "val" not in files:
            self._require_alone(paths["train"], {file.path for file in files.values()})
            self._hold_out()

    # Which files and folders.

    def _file(self, split: SplitName, stated: str | None) -> Path | None:
        """Return the JSON of a split; None if there is none."""
        if stated is not None:
            if not (self.root / stated).is_file():
                raise ConfigError(f"data.{split}_annotations: {self.root / stated} does not exist{self._others()}")
            return self.root / stated
        found = [self.root / form.format(name) for form in FILES for name in NAMES[split]]
        found = [path for path in found if path.is_file()]
        if len(found) > 1:
            raise ConfigError(
                f"data.{split}_annotations: set it, as {', '.join(map(str, found))} may all be the {split} split"
            )
        return found[0] if found else None

    def _others(self) -> str:
        found = [str(path.relative_to(self.root)) for path in sorted(self.root.rglob("*.json"))[:5]]
        return f"; there are {', '.join(found)}" if found else "; there is no JSON in there"

    def _no_file(self) -> str:
        forms = ", ".join(form.format("train") for form in FILES)
        return f"data.root: {self.root} has none of {forms}{self._others()}: set data.train_annotations"

    def _require_alone(self, train: Path, known: set[Path]) -> None:
        """Refuse to hold out a share of the training images where another file may be meant for validation."""
        siblings = {*train.parent.glob("*.json"), *self.root.glob(f"*/{train.name}")}
        others = [path for path in sorted(siblings - known) if not path.name.startswith(OTHER_KINDS)]
        if others:
            raise ConfigError(
                f"data.val_annotations: is {others[0]} the validation split? Set it; or, to hold out a share of the "
                "training images, move it away"
            )

    def _folder(self, split: SplitName, file: COCOFile, stated: str | None) -> Path:
        """Return the folder from which the names of a file start: the one that has most of them."""
        if stated is not None:
            if not (self.root / stated).is_dir():
                raise ConfigError(f"data.{split}_images: {self.root / stated} is no folder")
            return self.root / stated
        word = file.path.stem.removeprefix("instances_")
        words = dict.fromkeys([word, *NAMES[split]])
        folders = [file.path.parent, *(self.root / form.format(word) for word in words for form in FOLDERS)]
        folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        names = file.names[:: max(1, len(file.names) // LOOKED_FOR)]
        hits = [sum((folder / name).is_file() for name in names) for folder in folders]
        if names and not max(hits):
            raise DataError(
                f"{file.path} lists {names[0]} and others, but they are not in {', '.join(map(str, folders[:4]))}: set "
                f"data.{split}_images to the folder from which these names start"
            )
        return folders[int(np.argmax(hits))]

    # Which classes.

    def _chosen_classes(self, files: dict[SplitName, COCOFile], classes: list[str] | None) -> list[str]:
        """Return the names of the classes, in the order of their indices."""
        known = [category.name for category in files["train"].categories]
        if classes is not None:
            problems = [f"'{name}'; {suggest(name, known)}".rstrip("; ") for name in classes if name not in known]
            if problems:
                raise ConfigError(f"data.classes: {files['train'].path} has no class {', '.join(problems)}")
            return classes
        dummy = _dummy(list(files.values()))
        chosen = [name for name in known if name != dummy]
        unknown = [
            f"{file.path}: class '{category.name}', of which there are objects, is none of the training split's"
            f"; {suggest(category.name, chosen)}".rstrip("; ")
            for file in files.values()
            for kind, category in enumerate(file.categories)
            if category.name not in chosen and (file.kinds == kind).any()
        ]
        if unknown:
            raise DataError(report(unknown, "unknown class name"))
        return chosen

    # What is in the splits.

    def _annotations(self, split: SplitName, file: COCOFile, images: str | None) -> Annotations:
        """Return what a file says, with the classes that were chosen."""
        folder = self._folder(split, file, images)
        paths = [folder / name for name in file.names]
        index = {name: label for label, name in enumerate(self.classes)}
        labels = [index.get(category.name, OTHER) for category in file.categories]
        annotations = file.annotations(paths, image_ids(paths, folder), labels)
        self._left_out[split] = len(file.kinds) - len(annotations.labels)
        return annotations

    def _hold_out(self) -> None:
        """Move a share of the training images to validation."""
        whole = self.annotations["train"]
        held_out = hold_out_images(whole, self.val_fraction)
        self.annotations["train"], self.annotations["val"] = whole.take(~held_out), whole.take(held_out)

    def split(self, name: SplitName) -> BoxFiles | None:
        """Return a split; None for `test` if there is no file of it."""
        if name not in self.annotations:
            return None
        left_out = self._left_out.get(name, 0)
        notes = [f"{left_out} objects of classes that are not in data.classes are left out"] if left_out else []
        return BoxFiles(self.annotations[name], self.classes, self.channels, self.at_least, self.bad_boxes, notes)


def _dummy(files: Sequence[COCOFile]) -> str | None:
    """Return the name of the class 0 that Roboflow adds: the group of all others, of which there is no object."""
    for file in files:
        first, *others = file.categories or [Category(1, "", "")]
        grouped = bool(others) and all(category.supercategory == first.name for category in others)
        if first.id != 0 or not grouped or (file.kinds == 0).any() or first != files[0].categories[0]:
            return None
    return files[0].categories[0].name
