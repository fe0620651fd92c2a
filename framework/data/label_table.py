"""The rows of a table as image files with labels."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from framework.data.datamodule import SplitName
from framework.data.image_folder import SPLITS
from framework.data.table import Cell, Row, Table
from framework.errors import DataError, suggest

FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


class Entry(NamedTuple):
    """One image of a table.

    Args:
        path: Its file.
        labels: Its labels as written.
        split: Its split; None: not stated.
        place: Its file and line in the table.
    """

    path: Path
    labels: tuple[str, ...]
    split: SplitName | None
    place: str


class RowError(Exception):
    """A row is wrong."""


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """Where a table says what.

    Args:
        path: Column of the image files.
        label: Column of the labels.
        split: Column of the splits; None: `split`, if there is such a column.
        separator: What stands between the labels of a cell; None: a cell is one label.
        flags: Columns of 0 and 1, one for each class, in place of `label`.
    """

    path: str
    label: str
    split: str | None
    separator: str | None
    flags: list[str] | None

    @property
    def several(self) -> bool:
        """Whether an image has any number of labels."""
        return self.separator is not None or self.flags is not None

    def read(self, table: Table, root: Path, split: SplitName | None) -> tuple[list[Entry], list[str]]:
        """Return the entries of one table, and what is wrong with the others.

        Args:
            table: The table.
            root: Folder that its paths start from.
            split: The split of all of its rows; None: as its column of splits says, if it has one.

        Raises:
            ConfigError: A column is not there.
        """
        split_column = None if split else self.split or ("split" if "split" in table.columns else None)
        named = {"path_column": self.path, "label_column": None if self.flags else self.label}
        named |= {"split_column": split_column}
        columns = [(argument, name) for argument, name in named.items() if name is not None]
        columns += [("label_columns", name) for name in self.flags or []]
        for argument, name in columns:
            table.require(argument, name)
        entries, problems = [], []
        for row in table.rows([name for _, name in columns]):
            stated = row.cells[split_column] if split_column else split
            try:
                entries.append(Entry(root / self._file(row), self._labels(row), split_name(stated), row.place))
            except RowError as error:
                problems.append(f"{row.place}: {error}")
        return entries, problems

    def _file(self, row: Row) -> str:
        path = row.cells[self.path]
        if not path or isinstance(path, list):
            raise RowError(f"no file in column '{self.path}'")
        return path

    def _labels(self, row: Row) -> tuple[str, ...]:
        if self.flags is not None:
            return tuple(name for name in self.flags if _flag(row, name))
        cell = row.cells[self.label]
        if self.separator is not None:
            parts = cell if isinstance(cell, list) else [part.strip() for part in cell.split(self.separator)]
            return tuple(dict.fromkeys(part for part in parts if part))
        if isinstance(cell, list):
            raise RowError(
                f"a list in column '{self.label}': set data.label_separator, to any sign, for several labels"
            )
        if not cell:
            raise RowError(f"no label in column '{self.label}'")
        return (cell,)


def split_name(stated: Cell | None) -> SplitName | None:
    """Return the split that a cell states; None if there is no such cell.

    Raises:
        RowError: It is none.
    """
    if stated is not None and stated not in SPLITS:
        raise RowError(f"split '{stated}' is none of {', '.join(SPLITS)}")
    return stated


def _flag(row: Row, name: str) -> bool:
    flag = FLAGS.get(str(row.cells[name]).lower())
    if flag is None:
        raise RowError(f"column '{name}' holds '{row.cells[name]}', neither 0 nor 1")
    return flag


def class_lookup(classes: Sequence[str]) -> Callable[[str], int]:
    """Return what turns a label into its class index, or raises a RowError.

    A label that is the name of no class may be an index, unless there are classes that have numbers for names.
    """
    by_name = {name: index for index, name in enumerate(classes)}
    by_index = not any(name.isdecimal() for name in classes)

    def to_index(label: str) -> int:
        if label in by_name:
            return by_name[label]
        if not by_index or not label.removeprefix("-").isdecimal():
            raise RowError(f"label '{label}' is no class; {suggest(label, classes)}".rstrip("; "))
        if not 0 <= int(label) < len(classes):
            raise RowError(f"label {label} is out of range: {len(classes)} classes are 0 to {len(classes) - 1}")
        return int(label)

    return to_index


def listed_classes(table: Path) -> list[str] | None:
    """Return the lines of `classes.txt` beside a table; None if there is no such file.

    Raises:
        DataError: It cannot be read.
    """
    path = table.with_name("classes.txt")
    if not path.is_file():
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from None
    return [name for name in names if name and not name.startswith("# ")]


def found_classes(entries: Iterable[Entry]) -> list[str]:
    """Return the labels that there are: whole numbers by size, else by alphabet.

    Raises:
        DataError: They are whole numbers, and some are negative.
    """
    labels = {label for entry in entries for label in entry.labels}
    if labels and all(label.removeprefix("-").isdecimal() for label in labels):
        negative = sorted(label for label in labels if label.startswith("-"))
        if negative:
            raise DataError(
                f"the labels are numbers, and some are negative ({', '.join(negative[:3])}): a class is at least 0; "
                "leave such rows out, or list all classes in classes.txt"
            )
    numbers = all(label.isdecimal() for label in labels)
    return sorted(labels, key=lambda label: (int(label) if numbers else 0, label))
