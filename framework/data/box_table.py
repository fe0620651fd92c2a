"""A table of boxes in image files: CSV, TSV or Parquet."""

import os
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import OpenUnitInterval

from framework.data.annotations import CORNERS, SIDES, AnnotatedImage, Annotations, Object
from framework.data.box_classes import BoxClasses, whole_names
from framework.data.box_files import BoxFiles, hold_out_images
from framework.data.box_rows import BoxColumns, BoxRow
from framework.data.check import report
from framework.data.datamodule import SplitName
from framework.data.detection import DetectionData
from framework.data.label_table import Entry, found_classes, listed_classes
from framework.data.table import open_table
from framework.errors import ConfigError, DataError

FORMS = {"corners": CORNERS, "sides": SIDES}
COLUMNS = {"corners": ("x1", "y1", "x2", "y2"), "sides": ("x", "y", "width", "height")}


class BoxTable(DetectionData):
    """A table of boxes: CSV, TSV or, with pyarrow, Parquet. Its first line names the columns.

    Each row is an object: an image file, a class and a box in pixels. A row whose class and box are empty states an
    image without objects. An image's split is stated by the column `split` (`train`, `val` or `test`), or by separate
    files. Where neither says what is for validation, a fixed share of the images is held out, by their names alone.

    Args:
        table: The rows of all splits, or of those that no other file has.
        root: Folder that the paths in the tables start from; null: the folder of `table`.
        val_table: The rows of the validation split.
        test_table: The rows of the test split.
        path_column: Column of the image files.
        label_column: Column of the classes: names, or indices in a list of classes.
        box: `corners`: the left, upper, right and lower edge; `sides`: the left and upper edge, width and height.
        box_columns: Columns of these; null: `x1, y1, x2, y2`, or `x, y, width, height`.
        split_column: Column of the splits; null: `split`, if there is such a column.
        classes: Names of the classes in the order of their indices; null: the lines of `classes.txt` beside the table,
            else the classes that there are, numbers by size and names by alphabet.
        delimiter: What stands between the cells of a text file; null: a tab in .tsv files, else a comma.
        channels: 1 for grey images, 3 for colour, 4 for colour with alpha.
        val_fraction: Share of the images that is held out where nothing states a validation split, in (0, 1).

    Raises:
        ConfigError: Arguments name columns that are not there.
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
        box: Literal["corners", "sides"] = "corners",
        box_columns: tuple[str, str, str, str] | None = None,
        split_column: str | None = None,
        classes: list[str] | None = None,
        delimiter: str | None = None,
        channels: Literal[1, 3, 4] = 3,
        val_fraction: OpenUnitInterval = 0.2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.channels, self.val_fraction, self.form = channels, val_fraction, FORMS[box]
        self.root = Path(os.path.normpath(root if root is not None else Path(table).parent))
        if not self.root.is_dir():
            raise ConfigError(f"data.root: {self.root} is no folder")
        columns = BoxColumns(path_column, label_column, box_columns or COLUMNS[box], self.form, split_column)
        tables: dict[SplitName | None, str | None] = {None: table, "val": val_table, "test": test_table}
        rows = self._read({split: Path(file) for split, file in tables.items() if file}, columns, delimiter)
        names = tuple(whole_names({row.name for row in rows} - {""}))
        found = found_classes([Entry(Path(table), names, None, "")])
        self.state_classes(classes or listed_classes(Path(table)) or found)
        self.annotations = self._annotations(rows)
        if "val" not in self.annotations and "train" in self.annotations:
            whole = self.annotations["train"]
            held_out = hold_out_images(whole, val_fraction)
            self.annotations["train"], self.annotations["val"] = whole.take(~held_out), whole.take(held_out)

    def _read(self, files: dict[SplitName | None, Path], columns: BoxColumns, delimiter: str | None) -> list[BoxRow]:
        """Read all tables."""
        rows: list[BoxRow] = []
        problems: list[str] = []
        for split, file in files.items():
            right, wrong = columns.read(open_table(file, delimiter), self.root, split)
            if not right and not wrong:
                problems.append(f"{file} has no row under the names of its columns")
            rows, problems = rows + right, problems + wrong
        first: dict[Path, BoxRow] = {}
        for row in rows:
            other = first.setdefault(row.path, row)
            where = f"{row.source} {row.place}: {row.path}"
            if row.split != other.split:
                problems.append(f"{where} is in another split at {other.source} {other.place}")
            elif row is not other and not (row.name and other.name):
                problems.append(f"{where} has objects and none: another row is {other.source} {other.place}")
        if problems:
            raise DataError(report(problems, "bad row"))
        return rows

    def _annotations(self, rows: list[BoxRow]) -> dict[SplitName, Annotations]:
        """Return what the rows say, image by image."""
        known = BoxClasses(self.classes, numbers=True)
        images: dict[SplitName, dict[Path, list[BoxRow]]] = {}
        for row in rows:
            images.setdefault(row.split or "train", {}).setdefault(row.path, []).append(row)
        made = {
            split: Annotations.of((self._image(path, each, known) for path, each in found.items()), self.form)
            for split, found in images.items()
        }
        if known.problems():
            raise DataError(report(known.problems(), "unknown class name"))
        return made

    def _image(self, path: Path, rows: list[BoxRow], known: BoxClasses) -> AnnotatedImage:
        objects = [
            Object(row.box, known.index(row.name, f"{row.source} {row.place}"), row.place) for row in rows if row.name
        ]
        name = str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
        return AnnotatedImage(path, name, rows[0].source, objects)

    def split(self, name: SplitName) -> BoxFiles | None:
        """Return a split; None for `test` if no row is in it."""
        if name not in self.annotations:
            return None
        return BoxFiles(self.annotations[name], self.classes, self.channels, self.at_least, self.bad_boxes)
