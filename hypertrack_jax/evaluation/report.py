"""Host side: the scores of many events as tables and as JSON.

A row is what is known of one event: a mapping from a column's name to a number, the event's id
under `EVENT`. Any names will do; the columns come in the order in which the rows first name
them. A value that does not apply, such as a score of an event without truth, is None or left out:
it is `-` in a table, null in JSON, and not in the mean.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from hypertrack_jax.files import replace_file

EVENT = "event"
"""The column of the event's id: the first of every table, and never averaged."""

Value: TypeAlias = int | float | np.integer | np.floating | None
Row: TypeAlias = Mapping[str, Value]


class Summary(NamedTuple):
    """One column over all events."""

    mean: float | None
    """Mean of the values there are; None without any."""
    std: float | None
    """Their standard deviation (of the sample, with n - 1); None below two values."""
    n: int
    """Number of values there are."""


def summarise(rows: Sequence[Row]) -> dict[str, Summary]:
    """Mean, standard deviation and number of values of each column but `EVENT`."""
    return {name: _summary(_column(rows, name)) for name in _names(rows) if name != EVENT}


def event_table(rows: Sequence[Row], width: int = 120) -> str:
    """One line per event, as Markdown that is aligned for reading as it stands.

    Args:
      rows: one per event.
      width: columns that do not fit into this many characters go on in a further table below, which
        repeats the event's id.

    Returns:
      The table or tables, without a newline at the end; an empty string without rows.
    """
    columns = [_text_column(name, _column(rows, name)) for name in _names(rows)]
    if not columns:
        return ""
    identifier, tables = columns[0], [[columns[0]]]
    for column in columns[1:]:
        if _line_width([*tables[-1], column]) > width and len(tables[-1]) > 1:
            tables.append([identifier])
        tables[-1].append(column)
    return "\n\n".join(_markdown(table) for table in tables)


def summary_table(rows: Sequence[Row]) -> str:
    """One line per column of the rows: mean, standard deviation, number of values; Markdown."""
    summaries = summarise(rows)
    # A column's mean and standard deviation share its format; different columns need not.
    numbers = [_texts([summary.mean, summary.std]) for summary in summaries.values()]
    return _markdown(
        [
            ["quantity", *summaries],
            ["mean", *(mean for mean, _ in numbers)],
            ["std", *(std for _, std in numbers)],
            ["n", *(str(summary.n) for summary in summaries.values())],
        ]
    )


def write_report(path: Path, rows: Sequence[Row], settings: Mapping[str, object]) -> None:
    """Writes `{"settings": ..., "summary": {column: {mean, std, n}}, "events": rows}` as JSON.

    The file takes its place only when it is complete.

    Args:
      path: the file to write; its directory is made.
      rows: one per event.
      settings: what a reader needs to get these numbers again; anything that JSON can hold.

    Raises:
      ValueError: a value is NaN or infinite, which JSON does not have.
      OSError: the file cannot be written.
    """
    names = _names(rows)
    for row in rows:
        for name, value in row.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"{path}: event {row.get(EVENT)} has the value {value} for {name!r}; "
                    "a report holds finite numbers, and None where there is none."
                )
    report = {
        "settings": dict(settings),
        "summary": {name: summary._asdict() for name, summary in summarise(rows).items()},
        "events": [{name: _plain(row.get(name)) for name in names} for row in rows],
    }
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    with replace_file(path) as file:
        file.write(text.encode())


def _names(rows: Sequence[Row]) -> list[str]:
    """Names of all columns: `EVENT` first, the others in the order of their first appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [EVENT, *(name for name in names if name != EVENT)] if rows else []


def _column(rows: Sequence[Row], name: str) -> list[Value]:
    return [row.get(name) for row in rows]


def _summary(values: Sequence[Value]) -> Summary:
    known = np.array([value for value in values if value is not None], np.float64)
    return Summary(
        mean=float(known.mean()) if len(known) else None,
        std=float(known.std(ddof=1)) if len(known) > 1 else None,
        n=len(known),
    )


def _plain(value: Value) -> int | float | None:
    """The value as a Python number: JSON knows no NumPy."""
    return value.item() if isinstance(value, np.generic) else value


def _text_column(name: str, values: Sequence[Value]) -> list[str]:
    return [name, *_texts(values)]


def _texts(values: Sequence[Value]) -> list[str]:
    """The values as text, all floats with as many digits as the largest needs to show four."""
    floats = [abs(v) for v in values if isinstance(v, float | np.floating) and v != 0]
    largest = math.floor(math.log10(max(floats))) if floats else 0
    form = ".2e" if largest < -2 else f".{min(max(3 - largest, 0), 4)}f"

    def text(value: Value) -> str:
        if value is None:
            return "-"
        return f"{value:{form}}" if isinstance(value, float | np.floating) else str(value)

    return [text(value) for value in values]


def _line_width(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + 3 for column in columns) + 1


def _markdown(columns: Sequence[Sequence[str]]) -> str:
    """A table of text columns, the first cell of each its heading; numbers to the right."""
    widths = [max(map(len, column)) for column in columns]
    aligned = [
        [cell.rjust(width) for cell in column]
        for column, width in zip(columns, widths, strict=True)
    ]
    aligned[0] = [cell.ljust(widths[0]) for cell in columns[0]]
    rules = [":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]
    heading, *lines = ("| " + " | ".join(cells) + " |" for cells in zip(*aligned, strict=True))
    return "\n".join([heading, "|" + "|".join(rules) + "|", *lines])
