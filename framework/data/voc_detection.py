"""Detection data in Pascal VOC's XML: a file for each image, in VOC's own layout or beside the images."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import OpenUnitInterval

from framework.data.annotations import AnnotatedImage, Annotations, Object
from framework.data.box_classes import BoxClasses
from framework.data.box_files import BoxFiles, hold_out_images
from framework.data.check import report
from framework.data.datamodule import SplitName
from framework.data.detection import DetectionData
from framework.data.label_table import listed_classes
from framework.data.voc_layout import ImageWithXML, VOCFolder
from framework.data.voc_xml import VOCFile, VOCObject, read_voc
from framework.errors import ConfigError, DataError


class VOCDetection(DetectionData):
    """Object detection in Pascal VOC's XML: `JPEGImages/`, `Annotations/` and `ImageSets/Main/{train,val,test}.txt`.

    `images/` and `annotations/` do as well, and so do folders of images with their XML files beside them: `train/`,
    `val/` or `valid/`, and `test/`, or `root` itself. The test split may be missing. Where nothing divides training
    from validation, or a list `trainval.txt` alone is there, a fixed share of the images is held out, by their names
    alone. An image without objects has an XML file without objects.

    Args:
        root: The folder that holds these, such as `VOCdevkit/VOC2007`.
        classes: Names of the classes in the order of their indices; null: the lines of `classes.txt` in `root`, else
            the names that the training annotations have, by alphabet.
        train: The list used for training, in `ImageSets/Main`; null: `train`, or what is left of `trainval`.
        val: The list used for validation; null: `val`, or a share of `trainval`.
        difficult: Whether objects marked as difficult count like any other; false: neither trained on nor counted.
        one_based: Whether the first pixel is 1 and a box includes its last pixel, as Pascal VOC has it, or the first
            pixel is 0, as some tools write; null: 1, unless a box begins below that.
        channels: 1 for grey images, 3 for colour, 4 for colour with alpha.
        val_fraction: Share of the images that is held out where nothing is for validation, in (0, 1).

    Raises:
        ConfigError: The folder has another layout, or lacks a list.
        DataError: Files are no XML or hold what would be harmful, lack something, or name a class that there is not.
    """

    def __init__(
        self,
        root: str,
        classes: list[str] | None = None,
        train: str | None = None,
        val: str | None = None,
        difficult: bool = False,
        one_based: bool | None = None,
        channels: Literal[1, 3, 4] = 3,
        val_fraction: OpenUnitInterval = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root, self.channels, self.val_fraction, self.difficult = Path(root), channels, val_fraction, difficult
        if not self.root.is_dir():
            raise ConfigError(f"data.root: {self.root} is no folder")
        folder = VOCFolder(self.root, train, val)
        annotated = {split: _read_all([file.xml for file in found]) for split, found in folder.splits.items()}
        self._require_right([each for found in annotated.values() for each in found])
        names = {each.name for file in annotated["train"] for each in file.objects}
        listed = classes or listed_classes(self.root / "classes.txt")
        self.state_classes(listed or sorted(names))
        self.notes = [*_bare(folder), *_unlisted(folder), *([] if listed else _alike(self.classes))]
        self.one_based = self._counted_from_one(one_based, annotated)
        self.annotations = self._annotations(folder.splits, annotated)
        if "val" not in self.annotations:
            self._hold_out()

    def _require_right(self, files: list[VOCFile]) -> None:
        problems = [problem for file in files for problem in file.problems]
        if problems:
            raise DataError(report(problems, "mistake"))

    def _counted_from_one(self, stated: bool | None, annotated: dict[SplitName, list[VOCFile]]) -> bool:
        """Return whether the first pixel is 1: unless a box begins below that."""
        if stated is not None:
            return stated
        for file in (file for files in annotated.values() for file in files):
            for number, each in enumerate(file.objects, 1):
                begin = min(each.box[:2])
                if isfinite(begin) and begin < 1:
                    self.notes.append(
                        f"boxes are taken to count pixels from 0, as {file.path} object {number} begins at {begin:g}, "
                        "and not from 1 as Pascal VOC has it: data.one_based says which"
                    )
                    return False
        return True

    def _annotations(
        self, files: dict[SplitName, list[ImageWithXML]], annotated: dict[SplitName, list[VOCFile]]
    ) -> dict[SplitName, Annotations]:
        """Return what all files say, with classes by index."""
        known = BoxClasses(self.classes)
        made = {}
        for split, found in files.items():
            pairs = zip(found, annotated[split], strict=True)
            made[split] = Annotations.of(self._image(file, said, known) for file, said in pairs)
        if known.problems():
            raise DataError(report(known.problems(), "unknown class name"))
        return made

    def _image(self, file: ImageWithXML, said: VOCFile, known: BoxClasses) -> AnnotatedImage:
        objects = [
            Object(
                self._corners(each),
                known.index(each.name, f"{file.xml} object {number}"),
                f"object {number}",
                ignored=each.difficult and not self.difficult,
            )
            for number, each in enumerate(said.objects, 1)
        ]
        path = file.image
        if (
            Path(said.image).stem == path.stem and (path.parent / said.image).is_file()
        ):  # of a.jpg and a.png, the one meant
            path = path.parent / said.image
        return AnnotatedImage(path, file.name, file.xml, objects, said.size)

    def _corners(self, each: VOCObject) -> tuple[float, float, float, float]:
        """Return a box from edge to edge: counted from 1, it begins one pixel earlier; one that is reversed stays so.

        So a box that ends at the pixel where it begins is one pixel wide, as it includes its last.
        """
        x1, y1, x2, y2 = each.box
        if not self.one_based:
            return each.box
        return x1 - (x2 >= x1), y1 - (y2 >= y1), x2, y2

    def _hold_out(self) -> None:
        """Move a share of the training images to validation."""
        whole = self.annotations["train"]
        held_out = hold_out_images(whole, self.val_fraction)
        self.annotations["train"], self.annotations["val"] = whole.take(~held_out), whole.take(held_out)

    def split(self, name: SplitName) -> BoxFiles | None:
        """Return a split; None for `test` if there is none."""
        if name not in self.annotations:
            return None
        annotations, notes = self.annotations[name], self.notes if name == "train" else []
        return BoxFiles(annotations, self.classes, self.channels, self.at_least, self.bad_boxes, notes)


def _read_all(paths: list[Path]) -> list[VOCFile]:
    """Read all files, and list at once what is wrong with those that cannot be read.

    Raises:
        DataError: Some cannot.
    """
    files, problems = [], []
    for path in paths:
        try:
            files.append(read_voc(path))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError(report(problems, "bad file"))
    return files


def _bare(folder: VOCFolder) -> list[str]:
    """Say how many images no XML file annotates."""
    bare = [path for paths in folder.bare.values() for path in paths]
    if not bare:
        return []
    return [
        f"images without an XML file are left out: {len(bare)}, such as {bare[0]}; one without objects is kept as a "
        "negative if it has an XML file without objects"
    ]


def _unlisted(folder: VOCFolder) -> list[str]:
    """Say how many XML files none of the lists names."""
    if not folder.unlisted:
        return []
    count = f"{len(folder.unlisted)} annotations are" if len(folder.unlisted) > 1 else "1 annotation is"
    return [f"{count} in none of the lists that are used, such as {folder.unlisted[0]}"]


def _alike(classes: Sequence[str]) -> list[str]:
    """Name classes whose names differ in capital letters alone."""
    first: dict[str, str] = {}
    return [
        f"the classes '{first[name.lower()]}' and '{name}' differ in capital letters alone: if they are one, write "
        "both alike"
        for name in classes
        if first.setdefault(name.lower(), name) != name
    ]
