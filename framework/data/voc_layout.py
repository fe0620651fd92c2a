"""Where the images and XML files of Pascal VOC data are: VOC's own layout, or images with XML files beside them."""

import os
from pathlib import Path
from typing import NamedTuple

from framework.data.check import report
from framework.data.datamodule import SplitName
from framework.data.images import IMAGE_SUFFIXES, list_images
from framework.errors import ConfigError, DataError

SPLITS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
FLAGS = ("-1", "0", "1")  # what VOC's lists of one class write after a name


class ImageWithXML(NamedTuple):
    """An image file, the file that annotates it, and what to call them."""

    image: Path
    xml: Path
    name: str


class VOCFolder:
    """The files of each split.

    Args:
        root: The folder of all.
        train: The list used for training; None: `train` or `trainval`.
        val: The list used for validation; None: `val`.

    Attributes:
        splits: The files of each split; without `val`, where a share of `train` is to be held out for it.
        bare: Images of folders without lists that no XML file annotates.
        unlisted: XML files that none of the lists names.

    Raises:
        ConfigError: There is no XML where it should be, or a list is missing.
        DataError: A list cannot be read, names an image twice, or images that no XML file annotates.
    """

    def __init__(self, root: Path, train: str | None, val: str | None) -> None:
        self.root, self.lists = root, root / "ImageSets" / "Main"
        self.bare: dict[SplitName, list[Path]] = {}
        self.unlisted: list[Path] = []
        self._pictures: dict[Path, dict[str, Path]] = {}  # of each folder that was looked into
        xml = _first_folder(root, "Annotations", "annotations")
        if xml is None:
            self.splits = self._beside()
            return
        self.xml, self.images = xml, _first_folder(root, "JPEGImages", "images", "Images") or xml
        if self.lists.is_dir():
            self.splits = self._listed(train, val)
            named = {file.xml for files in self.splits.values() for file in files}
            self.unlisted = [path for path in _xml_files(xml) if path not in named]
        else:
            self.splits = {"train": self._whole("train", xml)}

    # Without lists.

    def _beside(self) -> dict[SplitName, list[ImageWithXML]]:
        """Return the XML files that lie beside their images, in a folder for each split or in one."""
        names = {split: _first_folder(self.root, *names) for split, names in SPLITS.items()}
        folders = {split: folder for split, folder in names.items() if folder is not None and any(folder.glob("*.xml"))}
        if "train" not in folders:
            folders = {"train": self.root}
        if not any(folders["train"].glob("*.xml")):
            inside = sorted(self.root.glob("*/**/Annotations"))
            hint = f"did you mean {inside[0].parent}?" if inside else "nor XML files, nor a folder train of such"
            raise ConfigError(f"data.root: {self.root} has no folder Annotations: {hint}")
        found: dict[SplitName, list[ImageWithXML]] = {}
        for split, folder in folders.items():
            self.images = folder
            found[split] = self._whole(split, folder)
        return found

    def _whole(self, split: SplitName, folder: Path) -> list[ImageWithXML]:
        """Return all images of a folder that have an XML file."""
        files = _xml_files(folder)
        if not files:
            inside = next(folder.rglob("*.xml"), None)
            hint = (
                f"; there is {inside}: list such names in {self.lists}/train.txt and val.txt, "
                f"{inside.relative_to(folder).with_suffix('').as_posix()} for this one"
                if inside is not None
                else ""
            )
            raise ConfigError(f"data.root: {folder} has no XML file of its own{hint}")
        stems = {path.stem for path in files}
        self.bare[split] = [path for stem, path in self._images_in(self.images).items() if stem not in stems]
        return [ImageWithXML(self._image(path.stem), path, path.stem) for path in files]

    def _image(self, name: str) -> Path:
        """Return the image of this name, which has no suffix and may have folders; `.jpg` if there is none."""
        path = self.images / f"{name}.jpg"
        return self._images_in(path.parent).get(path.stem, path)

    def _images_in(self, folder: Path) -> dict[str, Path]:
        """Return the images of a folder by their stems; it is looked into once."""
        if folder not in self._pictures:
            found = list_images(folder) if folder.is_dir() else []
            self._pictures[folder] = {path.stem: path for path in reversed(found)}
        return self._pictures[folder]

    # With lists.

    def _listed(self, train: str | None, val: str | None) -> dict[SplitName, list[ImageWithXML]]:
        """Return the files that the lists name."""
        names: dict[SplitName, str] = {"train": train or "train", "val": val or "val", "test": "test"}
        lists = {split: self.lists / f"{name}.txt" for split, name in names.items()}
        found = {split: path for split, path in lists.items() if path.is_file()}
        if train is None and "train" not in found and (self.lists / "trainval.txt").is_file():
            found = {**found, "train": self.lists / "trainval.txt"}
            found.pop("val", None)
        else:
            missing = [split for split in lists if split != "test" and split not in found]
            if missing:
                raise ConfigError(self._missing(missing[0], lists[missing[0]], stated=bool(train or val)))
        files = {split: self._files(path, complete=split != "test") for split, path in found.items()}
        if not any(file.xml.is_file() for file in files.get("test", [])):
            files.pop("test", None)  # VOC publishes no annotations of some test splits
        return files

    def _missing(self, split: SplitName, path: Path, stated: bool) -> str:
        """Say which list is missing."""
        others = ", ".join(sorted(path.name for path in self.lists.glob("*.txt"))[:8]) or "none"
        return (
            f"data.{split if stated else 'root'}: {path} is missing, which lists the {split} split; there is {others}. "
            "Set data.train and data.val to the lists to use; of a list trainval.txt alone a share is held out"
        )

    def _files(self, path: Path, complete: bool) -> list[ImageWithXML]:
        """Return the files that one list names; `complete`: every one has to be annotated."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error})") from None
        problems: list[str] = []
        found: list[ImageWithXML] = []
        seen: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            name = self._name(line.strip())
            file = ImageWithXML(self._image(name), self.xml / f"{name}.xml", name)
            found.append(file)
            if seen.setdefault(name, number) != number:
                problems.append(f"{path}:{number}: {name} is in line {seen[name]} already: remove one of them")
            elif complete and not file.xml.is_file():
                problems.append(f"{path}:{number}: there is no {file.xml}; of an image without objects it has none")
        if problems:
            raise DataError(report(problems, "wrong line"))
        return found

    def _name(self, line: str) -> str:
        """Return the name that a line of a list means.

        That is all of it if there are such files; else without the flag of a list of one class, with slashes for
        backslashes, and without the suffix of an image, where there are such files.
        """
        words = line.rsplit(maxsplit=1)
        plain = words[0] if len(words) == 2 and words[1] in FLAGS else line
        written = [line, plain, line.replace("\\", "/"), plain.replace("\\", "/")]
        bare = [name[: -len(suffix)] for name in written if (suffix := Path(name).suffix).lower() in IMAGE_SUFFIXES]
        found = (name for name in [*written, *bare] if self._is_there(name))
        return os.path.normpath(next(found, plain))

    def _is_there(self, name: str) -> bool:
        return (self.xml / f"{name}.xml").is_file() or self._image(name).is_file()


def _first_folder(root: Path, *names: str) -> Path | None:
    """Return the first of these folders that there is."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def _xml_files(folder: Path) -> list[Path]:
    """Return the XML files in a folder, sorted by name, without hidden ones."""
    return [path for path in sorted(folder.glob("*.xml")) if not path.name.startswith(".")]
