"""`root/{train,val,test}/CLASS/` or `root/CLASS/`: the plainest layout of classified images on disk."""

from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import OpenUnitInterval

from framework.clock import key
from framework.data.classification import ClassificationData, LabelledFiles
from framework.data.datamodule import SplitName
from framework.data.images import IMAGE_SUFFIXES
from framework.errors import ConfigError, DataError

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class ImageFolder(ClassificationData):
    """A folder of images for each class, in `root/train`, `root/val` and `root/test`.

    The test split may be missing. Where there is no `val`, or no split at all but the class folders alone, a fixed
    share of every class is held out for it: which images depends on their names alone, not on the run's seed.

    Args:
        root: Folder with `train/CLASS/`, `val/CLASS/` and `test/CLASS/`, or with `CLASS/` alone.
        channels: 1 for grey images, 3 for colour, 4 for colour with alpha.
        val_fraction: Share of each class that is held out for validation where there is no `val`, in (0, 1).
    """

    def __init__(
        self, root: str, channels: Literal[1, 3, 4] = 3, val_fraction: OpenUnitInterval = 0.2, **options: Any
    ) -> None:
        super().__init__(**options)
        self.root, self.channels, self.val_fraction = Path(root), channels, val_fraction
        if not self.root.is_dir():
            raise ConfigError(f"data.root: {self.root} is no folder")
        self.folders = split_folders(self.root)
        names = {folder.name for split in self.folders.values() for folder in _subfolders(split)}
        if len(names) < 2:
            raise DataError(
                f"{self.root} needs a folder for each of at least 2 classes, in {self.root}/train, val and test or "
                f"directly in it; found {', '.join(sorted(names)) or 'none'}"
            )
        self.class_folders = sorted(names)
        self.state_classes(self.name_classes(self.class_folders))

    def name_classes(self, folders: list[str]) -> list[str]:
        """Return the names of the classes, given those of their folders."""
        return folders

    def split(self, name: SplitName) -> LabelledFiles | None:
        """Return a split; None for `test` if there is none.

        Raises:
            DataError: No class folder of the split holds an image.
        """
        divided = "val" not in self.folders and name != "test"
        folder = self.folders.get("train" if divided else name)
        if folder is None:
            return None
        paths: list[Path] = []
        labels: list[int] = []
        for label, class_folder in enumerate(self.class_folders):
            found = _images(folder / class_folder)
            if divided:
                held_out = hold_out(found, self.val_fraction)
                found = [path for path in found if (path in held_out) == (name == "val")]
            paths += found
            labels += [label] * len(found)
        if not paths:
            raise DataError(f"{folder}: none of its class folders has a file that ends in {', '.join(IMAGE_SUFFIXES)}")
        return LabelledFiles(paths, labels, self.classes, self.channels, self.at_least)


def split_folders(root: Path) -> dict[SplitName, Path]:
    """Find the folders that hold class folders: one a split, or the root itself as `train`.

    Raises:
        DataError: There is no `val` beside `train`, but a folder that may be meant as such.
    """
    folders = {name: root / name for name in SPLITS if _subfolders(root / name)}  # else it is a class named `train`
    if "train" not in folders:
        return folders or {"train": root}
    others = [folder.name for folder in _subfolders(root) if folder.name not in SPLITS]
    if "val" not in folders and others:
        raise DataError(
            f"{root} has train and {', '.join(others[:5])}, but no val: name the validation split val, or move what is "
            "none out of it to have a share of train held out"
        )
    return folders


def hold_out(paths: list[Path], fraction: float) -> set[Path]:
    """Choose which files of one class are for validation: the same ones always, at least one if there are two.

    The files are ranked by a hash of their names, so that adding some moves hardly any of the others.
    """
    count = min(len(paths) - 1, max(1, round(fraction * len(paths))))
    ranked = sorted(paths, key=lambda path: key("validation", path.parent.name, path.name))
    return set(ranked[: max(0, count)])


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name, without hidden ones; none if it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """Return the image files in a folder, sorted by name, without hidden ones; none if it is no folder."""
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if not path.name.startswith("."))
