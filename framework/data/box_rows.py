"""The rows of a table as annotated objects: a box and a class each, or an image without objects."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from framework.data.annotations import CORNERS
from framework.data.datamodule import SplitName
from framework.data.label_table import RowError, split_name
from framework.data.table import Row, Table


class BoxRow(NamedTuple):
    """One row.

    Args:
        path: The image file.
        split: Its split; None: not stated.
        source: The table.
        place: Line or row of it.
        name: The class; empty: the image has no objects.
        box: x1, y1, x2, y2 in pixels.
    """

    path: Path
    split: SplitName | None
    source: Path
    place: str
    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class BoxColumns:
    """Where a table says what.

    Args:
        path: Column of the image files.
        label: Column of the classes.
        box: Columns of the four numbers of a box.
        form: What these are: `x1, y1, x2, y2` or `x, y, width, height`.
        split: Column of the splits; None: `split`, if there is such a column.
    """

    path: str
    label: str
    box: tuple[str, str, str, str]
    form: str
    split: str | None

    def read(self, table: Table, root: Path, split: SplitName | None) -> tuple[list[BoxRow], list[str]]:
        """Return the rows of one table, and what is wrong with the others.

        Args:
            table: The table.
            root: Folder that its paths start from.
            split: The split of all of its rows; None: as its column of splits says, if it has one.

        Raises:
            ConfigError: A column is not there.
        """
        split_column = None if split else self.split or ("split" if "split" in table.columns else None)
        columns = [("path_column", self.path), ("label_column", self.label)]
        columns += [("box_columns", name) for name in self.box]
        columns += [("split_column", split_column)] if split_column else []
        for argument, name in columns:
            table.require(argument, name)
        rows, problems = [], []
        for row in table.rows([name for _, name in columns]):
            try:
                stated = split_name(row.cells[split_column] if split_column else split)
                rows.append(self._row(row, table.path, root, stated))
            except RowError as error:
                problems.append(f"{row.place}: {error}")
        return rows, problems

    def _row(self, row: Row, table: Path, root: Path, split: SplitName | None) -> BoxRow:
        path, name = str(row.cells[self.path]), str(row.cells[self.label])
        cells = [str(row.cells[column]) for column in self.box]
        place = row.place.removeprefix(str(table)).replace(":", "line ").strip()
        if not path:
            raise RowError(f"no file in column '{self.path}'")
        if not any(cells):
            if name:
                raise RowError(f"class '{name}' without a box: give one, or leave the class empty too for no objects")
            return BoxRow(_file(root, path), split, table, place, "", (0.0, 0.0, 0.0, 0.0))
        if not name:
            raise RowError(f"a box without a class in column '{self.label}'")
        a, b, c, d = (_number(column, cell) for column, cell in zip(self.box, cells, strict=True))
        box = (a, b, c, d) if self.form == CORNERS else (a, b, a + c, b + d)
        return BoxRow(_file(root, path), split, table, place, name, box)


def _file(root: Path, written: str) -> Path:
    """Return the file that a cell names, in one spelling: backslashes where there is none of this name are slashes."""
    if "\\" in written and not (root / written).is_file():
        written = written.replace("\\", "/")
    return Path(os.path.normpath(root / written))


def _number(column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise RowError(f"column '{column}' holds '{cell}', no number") from None
