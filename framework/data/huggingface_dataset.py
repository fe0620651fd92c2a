"""Data sets of Hugging Face's `datasets`: from a folder, offline, or from the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import OpenUnitInterval
from torchvision import tv_tensors

from framework.data.classification import ClassificationData, ClassIndices, absent_classes, target
from framework.data.datamodule import SplitName
from framework.data.hub import (
    class_names,
    column_values,
    has_labels,
    image_column_of,
    is_bare,
    label_column_of,
    load_splits,
    require_split,
)
from framework.data.image_folder import hold_out
from framework.data.images import read_image
from framework.data.loader import Sample, reading_problem
from framework.errors import DataError

VALIDATION = ("validation", "val", "valid", "dev")  # what data sets call it


class HuggingFaceDataset(ClassificationData):
    """A data set of Hugging Face's `datasets`: a folder on this machine, or a name on the hub.

    A folder is what `save_to_disk` wrote, or what `load_dataset` takes, such as Parquet files. Nothing touches the
    network then. A column of lists of classes makes the data multi-label.

    Args:
        name: Folder, or name on the hub.
        config: Which configuration of the data set, if it has several.
        revision: Branch, tag or commit on the hub; null: the newest.
        image_column: Column of the images; null: the only one that holds images.
        label_column: Column of the labels; null: the only one of classes, else `label`.
        train_split: Name of the training split.
        val_split: Name of the validation split; null: `validation`, `val`, `valid` or `dev`, else a fixed share of
            every class of the training split.
        test_split: Name of the test split; null: `test`, if there is one that has labels.
        channels: 1 for grey images, 3 for colour, 4 for colour with alpha.
        val_fraction: Share of each class that is held out where there is no validation split, in (0, 1).

    Raises:
        ConfigError: `datasets` is not installed, or the data set, a split or a column is not there.
        DataError: Images have no label.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        revision: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = None,
        channels: Literal[1, 3, 4] = 3,
        val_fraction: OpenUnitInterval = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.dataset_name, self.channels, self.val_fraction = name, channels, val_fraction
        found = load_splits(name, config, revision)
        chosen = {
            "train": require_split("train_split", train_split, found),
            "val": val_split and require_split("val_split", val_split, found),
            "test": test_split and require_split("test_split", test_split, found),
        }
        chosen["val"] = chosen["val"] or next((split for split in VALIDATION if split in found), None)
        features = found[train_split].features
        self.image_column = image_column_of(features, image_column)
        self.label_column = label_column_of(features, label_column)
        if chosen["test"] is None and "test" in found and has_labels(found["test"], self.label_column):
            chosen["test"] = "test"
        self.sources = {split: found[stored] for split, stored in chosen.items() if stored is not None}
        self._label(features[self.label_column])

    def _label(self, feature: Any) -> None:
        """Read the classes, and the labels of every split."""
        names, self.multi_label = class_names(feature)
        values = {split: column_values(source, self.label_column) for split, source in self.sources.items()}
        for split, labels in values.items():
            bare = [row for row, label in enumerate(labels) if is_bare(label)]
            if bare:
                raise DataError(
                    f"{self.dataset_name}, {split}: {len(bare)} of {len(labels)} images have no label, as row {bare[0]}"
                )
        if names is None:
            kinds = sorted({label for labels in values.values() for label in labels})
            names = [str(kind) for kind in kinds]
            lookup = {kind: index for index, kind in enumerate(kinds)}
            values = {split: [lookup[label] for label in labels] for split, labels in values.items()}
        self.state_classes(names)
        self.values: Mapping[str, ClassIndices] = values

    def split(self, name: SplitName) -> "HuggingFaceSamples | None":
        """Return a split; None for `test` if there is none."""
        stored = "train" if name == "val" and name not in self.sources else name
        if stored not in self.sources:
            return None
        labels = self.values[stored]
        rows = list(range(len(labels)))
        if stored == "train" and "val" not in self.sources:
            held_out = self._held_out(labels)
            rows = [row for row in rows if (row in held_out) == (name == "val")]
        chosen: Any = [labels[row] for row in rows]
        return HuggingFaceSamples(self.sources[stored], self.image_column, rows, chosen, self, stored)

    def _held_out(self, labels: ClassIndices) -> set[int]:
        """Choose the rows of the training split that are for validation: of every class, or, if multi-label, of all."""
        groups: dict[str, list[Path]] = {}
        for row, label in enumerate(labels):
            group = "all" if self.multi_label else self.classes[label] if isinstance(label, int) else ""
            groups.setdefault(group, []).append(Path(group, str(row)))
        return {int(path.name) for rows in groups.values() for path in hold_out(rows, self.val_fraction)}

    def rules(self) -> str:
        """Return everything besides image files that the data check's verdict depends on: sizes and times of files."""
        files = [Path(file["filename"]) for source in self.sources.values() for file in source.cache_files]
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return f"{super().rules()} {self.image_column} {self.label_column} {stats}"


class HuggingFaceSamples:
    """Rows of a stored split.

    Args:
        source: The split, a `datasets.Dataset`.
        column: Its column of images.
        rows: Which of its rows.
        labels: The class index of each; of multi-label data, its class indices.
        data: What the images are brought to, and their classes.
        split: The name of the split, for ids.
    """

    def __init__(
        self, source: Any, column: str, rows: list[int], labels: ClassIndices, data: ClassificationData, split: str
    ) -> None:
        from datasets import Image

        self.images = source.select_columns([column]).cast_column(column, Image(decode=False))
        self.column, self.rows, self.labels, self.split = column, rows, labels, split
        self.classes, self.channels, self.at_least = data.classes, data.channels, data.at_least

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Sample:
        """Return `image`, `label`, `id` and `original_size` of one row.

        Raises:
            DataError: Its image cannot be read.
        """
        label, name = self.labels[index], f"{self.split}-{self.rows[index]}"
        stored = self.images[self.rows[index]][self.column]
        if stored is None:
            raise DataError(f"{name} has no image")
        path = Path(name if stored["bytes"] is not None else stored["path"])
        values, size = read_image(path, self.channels, self.at_least, stored["bytes"])
        return {
            "image": tv_tensors.Image(torch.from_numpy(values).permute(2, 0, 1)),
            "label": target(label, len(self.classes)),
            "id": f"{self.classes[label]}/{name}" if isinstance(label, int) else name,
            "original_size": size,
        }

    def problem(self, index: int) -> str | None:
        """Say what is wrong with one image."""
        return reading_problem(self, index)

    def remarks(self) -> tuple[list[str], list[str]]:
        """Say which classes have no image: wrong in the training split, odd in others."""
        return [f"no image of class {name}" for name in absent_classes(self.labels, self.classes)], []

    def sources(self, index: int) -> list[str]:
        """Return no files: images stand in files of many."""
        return []
