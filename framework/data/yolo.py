"""Detection data in YOLO's format: `data.yaml`, folders of images, and a label file for each image."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import OpenUnitInterval

from framework.data.annotations import SIDES, AnnotatedImage, Annotations
from framework.data.box_files import BoxFiles, hold_out_images, image_ids
from framework.data.check import report
from framework.data.datamodule import SplitName
from framework.data.detection import DetectionData
from framework.data.yolo_files import find_images_of, find_place, label_path, read_description, read_labels
from framework.errors import ConfigError, DataError

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
NOT_LABELS = ("classes", "obj", "readme")  # text files that tools write into folders of labels


class YOLODetection(DetectionData):
    """Object detection in YOLO's format: `data.yaml` with `images/train`, and `labels/train` beside it.

    `data.yaml` has `path`, `train`, `val`, `test` (a folder, a list of images, or several of these) and `names`. The
    label file of an image lies in `labels/` in place of `images/`, or beside the image. It has a line
    `class cx cy w h` for each object, in shares of the image's width and height; of an outline, the box around it is
    taken. An image without a label file has no objects. The test split may be missing; where there is no `val`, a fixed
    share of the images is held out, by their names alone. A path that begins with `../`, as Roboflow writes, is looked
    for without that in the folder of `data.yaml` first.

    Args:
        root: The folder of `data.yaml`, or this file itself, by any name.
        channels: 1 for grey images, 3 for colour, 4 for colour with alpha.
        val_fraction: Share of the images that is held out where there is no `val`, in (0, 1).

    Raises:
        ConfigError: There is no `data.yaml`.
        DataError: It is no YAML or lacks something; images are not where it says; or lines of label files are wrong.
    """

    def __init__(
        self, root: str, channels: Literal[1, 3, 4] = 3, val_fraction: OpenUnitInterval = 0.2, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root, self.channels, self.val_fraction = Path(root), channels, val_fraction
        self.description = read_description(_description_path(self.root))
        self.state_classes(self.description.classes)
        self.notes: dict[SplitName, list[str]] = {}
        self.annotations = {split: self._annotations(split) for split in SPLITS if split in self.description.splits}
        if "val" not in self.annotations:
            whole = self.annotations["train"]
            held_out = hold_out_images(whole, val_fraction)
            self.annotations["train"], self.annotations["val"] = whole.take(~held_out), whole.take(held_out)

    def _annotations(self, split: SplitName) -> Annotations:
        """Return what is in the images of a split."""
        images, problems, notes = [], [], []
        for part in self.description.splits[split]:
            place, passed_over = find_place(self.description, split, part)
            found = find_images_of(place, self.description.base)
            images += found
            problems += _labels_of_nothing(found, place) if place.is_dir() else []
            if passed_over is not None:
                notes.append(f"{self.description.path}: {part} is taken to mean {place}, not {passed_over}")
        twice = [path for path, count in Counter(map(os.path.normpath, images)).items() if count > 1]
        problems += [f"{self.description.path}: '{split}' has {path} more than once" for path in twice]
        self._outlines = 0
        pairs = zip(images, image_ids(images, self.description.base), strict=True)
        annotations = Annotations.of((self._image(*pair, problems) for pair in pairs), form=SIDES, relative=True)
        if problems:
            raise DataError(report(problems, "bad label"))
        if not any(annotations.sources):
            where = label_path(images[0])
            raise DataError(f"none of the {len(images)} images of the {split} split has a label file, such as {where}")
        if self._outlines:
            notes.append(f"of {self._outlines} objects given by an outline, the box around it is taken")
        self.notes[split] = notes
        return annotations

    def _image(self, path: Path, name: str, problems: list[str]) -> AnnotatedImage:
        """Return one image with its objects."""
        source = label_path(path)
        if not source.is_file():
            source = path.with_suffix(".txt")
        if not source.is_file():
            return AnnotatedImage(path, name, None, ())
        found = read_labels(source, self.num_classes, self.description.keypoints)
        self._outlines += found.outlines
        problems += found.problems
        return AnnotatedImage(path, name, source, found.objects)

    def split(self, name: SplitName) -> BoxFiles | None:
        """Return a split; None for `test` if `data.yaml` has none."""
        if name not in self.annotations:
            return None
        annotations, notes = self.annotations[name], self.notes.get(name, [])
        return BoxFiles(annotations, self.classes, self.channels, self.at_least, self.bad_boxes, notes)


def _description_path(root: Path) -> Path:
    """Return the file that describes the data: `root`, or `data.yaml` in there, or the only YAML file.

    Raises:
        ConfigError: There is none, or several.
    """
    if root.is_file():
        return root
    if not root.is_dir():
        raise ConfigError(f"data.root: {root} does not exist")
    if (root / "data.yaml").is_file():
        return root / "data.yaml"
    others = sorted(path for path in root.iterdir() if path.suffix in (".yaml", ".yml"))
    if len(others) != 1:
        found = f"several YAML files ({', '.join(path.name for path in others)})" if others else "no data.yaml"
        raise ConfigError(
            f"data.root: {root} has {found}: give the file itself, with train, val and names, such as "
            "`{path: ., train: images/train, val: images/val, names: {0: cat, 1: dog}}`"
        )
    return others[0]


def _labels_of_nothing(images: list[Path], folder: Path) -> list[str]:
    """Return the label files of a folder of images that belong to none of them."""
    labels = {label_path(path) for path in images}
    top = label_path(folder / "x").parent
    found = sorted(top.rglob("*.txt")) if top != folder and top.is_dir() else []
    return [
        f"{path}: there is no image of this name in {folder}: add it, or remove the file"
        for path in found
        if path not in labels and path.stem.lower() not in NOT_LABELS
    ]
