"""Host side: the scores of many events as tables and as JSON.

A row describes one event: it maps names of columns to numbers, and `EVENT_ID` to the event's id.
Columns keep the order in which the rows first name them. A value that does not apply, such as a
score of an event without truth, is None or left out. It is `-` in a table, null in JSON, and not in
the mean.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from hypertrack_jax.evaluation.tables import DASH, Summary, markdown_table, summary_of
from hypertrack_jax.files import replace_file

EVENT_ID = "event"
"""The column of the event's id. It comes first in every table and is never averaged."""

Value: TypeAlias = int | float | np.integer | np.floating | None
Row: TypeAlias = Mapping[str, Value]


def summarise(rows: Sequence[Row]) -> dict[str, Summary]:
    """Mean, standard deviation and number of values of each column but `EVENT_ID`."""
    return {name: summary_of(_column(rows, name)) for name in _names(rows) if name != EVENT_ID}


def event_table(rows: Sequence[Row], width: int = 120) -> str:
    """One line per event, in Markdown.

    Args:
      rows: one per event.
      width: characters of a line. Columns that do not fit go into a further table below, which
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
    return "\n\n".join(map(_table_of, tables))


def summary_table(rows: Sequence[Row]) -> str:
    """One line per column of the rows: mean, standard deviation, number of values; Markdown."""
    summaries = summarise(rows)
    # A column's mean and standard deviation share its format; different columns need not.
    numbers = [_texts([summary.mean, summary.std]) for summary in summaries.values()]
    lines = [
        [name, *texts, str(summary.n)]
        for (name, summary), texts in zip(summaries.items(), numbers, strict=True)
    ]
    return markdown_table(["quantity", "mean", "std", "n"], lines)


def write_report(path: Path, rows: Sequence[Row], settings: Mapping[str, object]) -> None:
    """Writes `{"settings": ..., "summary": {column: {mean, std, n}}, "events": rows}` as JSON.

    The file takes its place only when it is complete.

    Args:
      path: the file to write; its directory is made.
      rows: one per event.
      settings: what a reader needs to repeat the measurement; anything that JSON can hold.

    Raises:
      ValueError: a value is NaN or infinite, which JSON does not have.
      OSError: the file cannot be written.
    """
    names = _names(rows)
    for row in rows:
        for name, value in row.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(
                    f"{path}: event {row.get(EVENT_ID)} has the value {value} for {name!r}; "
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
    """Names of all columns: `EVENT_ID` first, the others in the order of their first appearance."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [EVENT_ID, *(name for name in names if name != EVENT_ID)] if rows else []


def _column(rows: Sequence[Row], name: str) -> list[Value]:
    return [row.get(name) for row in rows]


def _plain(value: Value) -> int | float | None:
    """The value as a Python number: JSON knows no NumPy."""
    return value.item() if isinstance(value, np.generic) else value


def _text_column(name: str, values: Sequence[Value]) -> list[str]:
    return [name, *_texts(values)]


def _texts(values: Sequence[Value]) -> list[str]:
    """The values as text, all floats with the decimals that show four digits of the largest."""
    floats = [abs(v) for v in values if isinstance(v, float | np.floating) and v != 0]
    largest = math.floor(math.log10(max(floats))) if floats else 0
    form = ".2e" if largest < -2 else f".{min(max(3 - largest, 0), 4)}f"

    def text(value: Value) -> str:
        if value is None:
            return DASH
        return f"{value:{form}}" if isinstance(value, float | np.floating) else str(value)

    return [text(value) for value in values]


def _table_of(columns: Sequence[Sequence[str]]) -> str:
    heading, *lines = zip(*columns, strict=True)
    return markdown_table(heading, lines)


def _line_width(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + 3 for column in columns) + 1
