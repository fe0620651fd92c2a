"""A comparison of networks as a table: on the terminal, in Markdown, CSV or HTML."""

import csv
import html
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from framework.architectures import read_sources
from framework.compare import Row
from framework.errors import ConfigError, suggest
from framework.scatter import is_drawn, scatter

Value = float | int | str | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Args:
        key: What `--sort` calls it, and the heading in CSV.
        heading: For people, with the unit.
        value: What it is of a row: a number, a text, or None where it is not known.
        text: How people read it.
        right: Whether it is set flush right.
        wide: Whether it is left out on a terminal, which is narrow.
    """

    key: str
    heading: str
    value: Callable[[Row], Value]
    text: Callable[[Row], str]
    right: bool = True
    wide: bool = False


def figures(number: float) -> str:
    """Write a number with four figures: 0.5687, 25.56, 1,783."""
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    text = f"{number:#.4g}"
    return text.removesuffix(".") if "e" not in text else f"{number:.3g}"


def columns(measured: bool) -> list[Column]:
    """Return the columns of a table, with those of speed if it was measured."""
    found = [
        _plain("name", "architecture", lambda row: row.name),
        _plain("plugin", "plugin", lambda row: row.plugin, wide=True),
        _number("size", "size, px", lambda row: row.cost.size if row.cost else None, str),
        _number("parameters", "parameters, M", lambda row: row.cost.parameters / 1e6 if row.cost else None),
        _number(
            "published_parameters",
            "published",
            lambda row: row.published.parameters if row.published else None,
            _written,
        ),
        _number("multiply_adds", "multiply-adds, G", lambda row: row.cost.multiply_adds / 1e9 if row.cost else None),
        Column("published_multiply_adds", "published", _published_multiply_adds, _published_text),
        _number(
            "activations", "activations, MiB", lambda row: row.cost.activations / 2**20 if row.cost else None, _tenth
        ),
        Column("receptive_field", "receptive field, px", _field, lambda row: str(row.receptive_field or "-")),
        _number("top1", "top-1, %", lambda row: row.published.top1 if row.published else None, _written),
        _plain("trained_on", "trained on", lambda row: row.published.trained_on if row.published else None),
        _plain("source", "source", _source, wide=True),
    ]
    if measured:
        found += [
            _number("throughput", "images/s", lambda row: row.speed.throughput if row.speed else None, _tenth),
            _number("latency", "latency, ms", lambda row: row.speed.latency if row.speed else None, _tenth),
        ]
    return found


def sorting_column(key: str, measured: bool) -> Column:
    """Return the column of a key.

    Raises:
        ConfigError: There is none.
    """
    known = {column.key: column for column in columns(measured)}
    if key not in known:
        hint = "add --measure" if key in ("throughput", "latency") else suggest(key, known)
        raise ConfigError(f"--sort: there is no column {key}; {hint}".rstrip("; "))
    return known[key]


def order(rows: Sequence[Row], column: Column | None) -> list[Row]:
    """Sort rows by a column, ascending, what is not known last; leave them as they are without one."""
    if column is None:
        return list(rows)
    value = column.value
    return sorted(rows, key=lambda row: (value(row) is None, value(row) if value(row) is not None else 0))


def notes(rows: Sequence[Row], measured_on: str | None) -> list[str]:
    """Return what there is to say below a table."""
    lines = [
        "Counted: multiply-adds of one image by torch's flop counter, halved; activations are what training keeps of "
        "it for the backward pass, in fp32; the receptive field is that of one cell of the coarsest map."
    ]
    published = [row.published for row in rows if row.published]
    if any(row.alone for row in rows):
        lines.append("*: the backbone alone, without a classifier: its plugin does not say what was published.")
    for row in rows:
        if row.cost is None:
            lines.append(f"{row.name} does not take images of that size.")
        if row.published and row.published.doubt:
            lines.append(f"{row.name}: {row.published.doubt}")
    if any(row.published and row.cost and row.cost.size != row.published.size for row in rows):
        lines.append("@: published for images of another size, in pixels; top-1 is for that size too.")
    if measured_on is not None:
        lines.append(f"Measured on {measured_on}.")
    keys = {key for row in published for key in (row.source, row.top1_source) if key}
    return lines + [f"{key}: {text}" for key, text in read_sources().items() if key in keys]


def print_table(rows: Sequence[Row], measured_on: str | None) -> None:
    """Print a table, and its notes below it."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    shown = [column for column in columns(any(row.speed for row in rows)) if not column.wide]
    for column in shown:
        heading = column.heading.replace(", ", "\n").replace("receptive ", "receptive\n")
        table.add_column(heading, justify="right" if column.right else "left", no_wrap=column.key == "name")
    for row in rows:
        table.add_row(*(column.text(row) for column in shown))
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)
    for line in notes(rows, measured_on):
        console.print(line, markup=False, soft_wrap=True)


def write_table(rows: Sequence[Row], measured_on: str | None, file: Path) -> None:
    """Write a table to a .md, .csv or .html file."""
    if file.suffix == ".csv":
        text = csv_table(rows)
    elif file.suffix == ".md":
        text = markdown_table(rows, measured_on)
    else:
        text = html_page(rows, measured_on)
    file.write_text(text, encoding="utf-8")


def markdown_table(rows: Sequence[Row], measured_on: str | None) -> str:
    """Write a table in Markdown, with its notes."""
    shown = columns(any(row.speed for row in rows))
    lines = [[column.heading for column in shown], ["--:" if column.right else "---" for column in shown]]
    lines += [[column.text(row) for column in shown] for row in rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{table}\n\n" + "\n".join(f"- {line}" for line in notes(rows, measured_on)) + "\n"


def csv_table(rows: Sequence[Row]) -> str:
    """Write a table as CSV: full precision, empty where a figure is not known."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    shown = columns(any(row.speed for row in rows))
    writer.writerow(column.key for column in shown)
    writer.writerows(["" if (value := column.value(row)) is None else value for column in shown] for row in rows)
    return stream.getvalue()


def html_page(rows: Sequence[Row], measured_on: str | None) -> str:
    """Write a page that needs no other file: a picture, the table, which a click on a heading sorts, and its notes."""
    picture = scatter(rows).svg() if any(is_drawn(row) for row in rows) else ""
    shown = columns(any(row.speed for row in rows))
    head = "".join(f"<th>{html.escape(column.heading)}</th>" for column in shown)
    body = "\n".join("<tr>" + "".join(_cell(column, row) for column in shown) + "</tr>" for row in rows)
    below = "".join(f"<li>{html.escape(line)}</li>" for line in notes(rows, measured_on))
    return PAGE.format(picture=picture, head=head, body=body, notes=below)


def _cell(column: Column, row: Row) -> str:
    value = column.value(row)
    kind = ' class="n"' if column.right else ""
    key = "" if value is None else html.escape(str(value))
    return f'<td{kind} data-v="{key}">{html.escape(column.text(row))}</td>'


def _plain(key: str, heading: str, value: Callable[[Row], str | None], wide: bool = False) -> Column:
    return Column(key, heading, value, lambda row: (value(row) or "-") + _mark(key, row), right=False, wide=wide)


def _mark(key: str, row: Row) -> str:
    return "*" if key == "name" and row.alone else ""


def _number(
    key: str, heading: str, value: Callable[[Row], float | None], text: Callable[[float], str] = figures
) -> Column:
    def write(row: Row) -> str:
        number = value(row)
        return "-" if number is None else text(number)

    return Column(key, heading, value, write)


def _tenth(number: float) -> str:
    return f"{number:.2f}" if number < 10 else f"{number:,.1f}" if number < 1000 else f"{number:,.0f}"


def _written(number: float) -> str:
    """Write a published number as it was published, in four figures at most."""
    return f"{number:.4g}" if number < 1000 else f"{number:,.0f}"


def _published_multiply_adds(row: Row) -> float | None:
    return row.published.multiply_adds if row.published else None


def _published_text(row: Row) -> str:
    number = _published_multiply_adds(row)
    if row.published is None or number is None:
        return "-"
    elsewhere = row.cost is None or row.cost.size != row.published.size
    return _written(number) + (f" @{row.published.size}" if elsewhere else "")


def _field(row: Row) -> float | None:
    return float("inf") if row.receptive_field == "all" else row.receptive_field


def _source(row: Row) -> str | None:
    if row.published is None:
        return None
    return ", ".join(key for key in (row.published.source, row.published.top1_source) if key)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Architectures compared</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem; color: #222 }}
svg {{ max-width: 60rem; height: auto }}
table {{ border-collapse: collapse; font-size: 13px }}
th {{ cursor: pointer; text-align: left; border-bottom: 2px solid #888; padding: .3rem .6rem }}
td {{ border-bottom: 1px solid #ddd; padding: .2rem .6rem }}
td.n {{ text-align: right; font-variant-numeric: tabular-nums }}
</style>
<h1>Architectures compared</h1>
{picture}
<p>A click on a heading sorts the table.</p>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
<ul>{notes}</ul>
<script>
document.querySelectorAll("th").forEach((head, index) => {{
  let down = false
  head.onclick = () => {{
    const body = document.querySelector("tbody"), key = row => row.cells[index].dataset.v
    const number = text => text === "inf" ? Infinity : Number(text)
    const compare = (a, b) => isNaN(number(a)) || isNaN(number(b)) ? a.localeCompare(b) : number(a) - number(b)
    const rows = [...body.rows].filter(row => key(row) !== ""), rest = [...body.rows].filter(row => key(row) === "")
    rows.sort((a, b) => (down ? -1 : 1) * compare(key(a), key(b)))
    body.append(...rows, ...rest)
    down = !down
  }}
}})
</script>
</html>
"""
