"""Tables of rows on disk: CSV, TSV and Parquet."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from framework.errors import ConfigError, DataError, suggest

Cell = str | list[str]  # a list where Parquet stores one
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET = (".parquet", ".pq")


class Row(NamedTuple):
    """One row.

    Args:
        place: Its file and line, or file and row.
        cells: Its cells by column, stripped; empty ones are "".
    """

    place: str
    cells: dict[str, Cell]


class Table(NamedTuple):
    """A table whose rows are read when they are iterated over.

    Args:
        path: The file.
        columns: The names of its columns.
        delimiter: What stands between the cells of a text file.
    """

    path: Path
    columns: list[str]
    delimiter: str

    def require(self, argument: str, column: str) -> None:
        """Refuse a table that lacks a column.

        Args:
            argument: The argument that names it.
            column: Its name.

        Raises:
            ConfigError: It is not there.
        """
        if column in self.columns:
            return
        hint = suggest(column, self.columns)
        if len(self.columns) == 1 and self.path.suffix.lower() not in PARQUET:
            hint = f"its only column is '{self.columns[0]}': set data.delimiter if these are several"
        raise ConfigError(f"data.{argument}: {self.path} has no column '{column}'" + (f"; {hint}" if hint else ""))

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yield every row, with these columns.

        Raises:
            DataError: The file cannot be read to its end.
        """
        if self.path.suffix.lower() in PARQUET:
            yield from _parquet_rows(self.path, columns)
        else:
            yield from _text_rows(self.path, self.delimiter, columns)


def open_table(path: Path, delimiter: str | None = None) -> Table:
    """Read the header of a table.

    Args:
        path: A CSV, TSV or Parquet file.
        delimiter: What stands between the cells of a text file; None: a tab in .tsv files, else a comma.

    Raises:
        DataError: The file is missing, unreadable or without a header; or a column has no name of its own.
        ConfigError: It is a Parquet file, and pyarrow is not installed; or the delimiter is no single sign.
    """
    if delimiter is not None and len(delimiter) != 1:
        raise ConfigError(f"data.delimiter: one sign, such as ';', got '{delimiter}'")
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    if suffix not in (*DELIMITERS, *PARQUET, ".txt"):
        raise DataError(f"{path}: a table ends in .csv, .tsv or .parquet, not {suffix or 'without a suffix'}")
    delimiter = delimiter or DELIMITERS.get(suffix, ",")
    columns = _parquet_columns(path) if suffix in PARQUET else next(_lines(path, delimiter), (0, []))[1]
    columns = [column.strip() for column in columns]
    if not columns:
        raise DataError(f"{path} is empty: its first line names the columns")
    twice = {column for column in columns if columns.count(column) > 1}
    if twice:
        raise DataError(f"{path}: several columns are called '{min(twice)}'")
    return Table(path, columns, delimiter)


# Text.


def _lines(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of every row that is not empty, with the number of the line on which the row ends."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}): save it as such") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table ({error})") from None


def _text_rows(path: Path, delimiter: str, columns: Sequence[str]) -> Iterator[Row]:
    lines = _lines(path, delimiter)
    header = [cell.strip() for cell in next(lines)[1]]
    positions = {column: header.index(column) for column in columns}
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{path}:{number}: {len(cells)} cells under {len(header)} columns")
        yield Row(f"{path}:{number}", {column: cells[position].strip() for column, position in positions.items()})


# Parquet.


def _parquet_columns(path: Path) -> list[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigError(
            f'{path}: Parquet needs pyarrow ({error}): pip install "vision-plugin-framework[parquet]"'
        ) from error
    try:
        return list(parquet.read_schema(path).names)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file that can be read ({str(error).splitlines()[0]})") from None


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path, columns=list(columns))
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({str(error).splitlines()[0]})") from None
    each = zip(*(table.column(column).to_pylist() for column in columns), strict=True)
    for number, values in enumerate(each, 1):
        yield Row(f"{path} row {number}", dict(zip(columns, map(_cell, values), strict=True)))


def _cell(value: object) -> Cell:
    """Write a value as a text file would have it: nothing as "", yes and no as 1 and 0, whole numbers as such."""
    if isinstance(value, list):
        return [str(_cell(item)) for item in value]
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return "" if value is None else str(value).strip()
