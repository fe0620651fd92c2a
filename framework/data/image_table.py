"""A table of image files with their labels: CSV, TSV or Parquet."""

from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import OpenUnitInterval

from framework.data.check import report
from framework.data.classification import ClassificationData, LabelledFiles
from framework.data.datamodule import SplitName
from framework.data.image_folder import hold_out
from framework.data.label_table import Entry, LabelColumns, RowError, class_lookup, found_classes, listed_classes
from framework.data.table import open_table
from framework.errors import ConfigError, DataError


class TableFiles(LabelledFiles):
    """Image files that a table lists.

    Args:
        places: File and line of each.
        root: Folder that their names start from.
    """

    absence = "no row has it"

    def __init__(self, *arguments: Any, places: list[str], root: Path) -> None:
        super().__init__(*arguments)
        self.places, self.root = places, root

    def name(self, index: int) -> str:
        """Return what to call one file: its path as seen from the root, if it lies in there."""
        path = self.paths[index]
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def problem(self, index: int) -> str | None:
        """Say what is wrong with one file, and which row names it."""
        found = super().problem(index)
        return found and f"{self.places[index]}: {found}"


class ImageTable(ClassificationData):
    """A table of image files and labels: CSV, TSV or, with pyarrow, Parquet. Its first line names the columns.

    A row's split is stated by its column `split` (`train`, `val` or `test`), or by separate files. Where neither says
    what is for validation, a fixed share of every class is held out, as `ImageFolder` does.

    A label is the name of a class or, if there is a list of classes, its index in it. An image has one label, or any
    number of them: several in a cell (`label_separator`; in Parquet, a list), or a column of 0 and 1 for each class
    (`label_columns`).

    Args:
        table: The rows of all splits, or of those that no other file has.
        root: Folder that the paths in the tables start from; null: the folder of `table`.
        val_table: The rows of the validation split.
        test_table: The rows of the test split.
        path_column: Column of the image files.
        label_column: Column of the labels.
        split_column: Column of the splits; null: `split`, if there is such a column.
        label_separator: What stands between the labels of a cell, such as "|"; null: a cell is one label.
        label_columns: Columns of 0 and 1, one for each class, which they name.
        classes: Names of the classes in the order of their indices; null: the lines of `classes.txt` beside the table,
            else the labels that there are, numbers by size and names by alphabet.
        delimiter: What stands between the cells of a text file; null: a tab in .tsv files, else a comma.
        channels: 1 for grey images, 3 for colour, 4 for colour with alpha.
        val_fraction: Share of each class that is held out where nothing states a validation split, in (0, 1).

    Raises:
        ConfigError: Arguments contradict each other, or name columns that are not there.
        DataError: Rows are wrong: the first few are in the message, with file and line.
    """

    def __init__(
        self,
        table: str,
        root: str | None = None,
        val_table: str | None = None,
        test_table: str | None = None,
        path_column: str = "path",
        label_column: str = "label",
        split_column: str | None = None,
        label_separator: str | None = None,
        label_columns: list[str] | None = None,
        classes: list[str] | None = None,
        delimiter: str | None = None,
        channels: Literal[1, 3, 4] = 3,
        val_fraction: OpenUnitInterval = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if label_columns and (label_separator is not None or classes is not None):
            raise ConfigError("data.label_columns name the classes: leave out label_separator and classes")
        columns = LabelColumns(path_column, label_column, split_column, label_separator, label_columns)
        self.channels, self.val_fraction, self.multi_label = channels, val_fraction, columns.several
        self.root = Path(root) if root is not None else Path(table).parent
        tables: dict[SplitName | None, str | None] = {None: table, "val": val_table, "test": test_table}
        self.entries = self._read({split: Path(file) for split, file in tables.items() if file}, columns, delimiter)
        self.state_classes(label_columns or classes or listed_classes(Path(table)) or found_classes(self.entries))
        self.indices = self._class_indices()
        self.split_names: list[SplitName] = [entry.split or "train" for entry in self.entries]
        if not val_table and "val" not in self.split_names:
            self._hold_out()

    def _read(self, files: dict[SplitName | None, Path], columns: LabelColumns, delimiter: str | None) -> list[Entry]:
        """Read all tables."""
        entries: list[Entry] = []
        problems: list[str] = []
        for split, file in files.items():
            right, wrong = columns.read(open_table(file, delimiter), self.root, split)
            entries, problems = entries + right, problems + wrong
        first: dict[tuple[Path, SplitName | None], str] = {}
        for entry in entries:
            place = first.setdefault((entry.path, entry.split), entry.place)
            if place != entry.place:
                problems.append(f"{entry.place}: {entry.path} stands at {place} already: remove one of the rows")
        if problems:
            raise DataError(report(problems, "bad row"))
        return entries

    def _class_indices(self) -> list[tuple[int, ...]]:
        """Return the class indices of every entry."""
        to_index = class_lookup(self.classes)
        indices, problems = [], []
        for entry in self.entries:
            try:
                indices.append(tuple(map(to_index, entry.labels)))
            except RowError as error:
                problems.append(f"{entry.place}: {error}")
        if problems:
            raise DataError(report(problems, "bad row"))
        return indices

    def _hold_out(self) -> None:
        """Move a share of the training images to validation: of every class, or, if they have several, of them all."""
        groups: dict[tuple[int, ...], list[Path]] = {}
        for entry, indices, split in zip(self.entries, self.indices, self.split_names, strict=True):
            if split == "train":
                groups.setdefault(() if self.multi_label else indices, []).append(entry.path)
        held_out = {path for paths in groups.values() for path in hold_out(paths, self.val_fraction)}
        for row, entry in enumerate(self.entries):
            if self.split_names[row] == "train" and entry.path in held_out:
                self.split_names[row] = "val"

    def split(self, name: SplitName) -> TableFiles | None:
        """Return a split; None for `test` if no row is in it."""
        rows = [row for row, split in enumerate(self.split_names) if split == name]
        if not rows:
            return None
        paths, places = [self.entries[row].path for row in rows], [self.entries[row].place for row in rows]
        labels = [self.indices[row] if self.multi_label else self.indices[row][0] for row in rows]
        arguments = (paths, labels, self.classes, self.channels, self.at_least)
        return TableFiles(*arguments, places=places, root=self.root)
