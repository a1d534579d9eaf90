"""Host side: means with their spread, and tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

DASH = "-"
"""What a table shows where there is no value."""


class Summary(NamedTuple):
    """Some values in three numbers."""

    mean: float | None
    """Mean of the values; None without any."""
    std: float | None
    """Standard deviation of the sample, with n - 1; None below two values."""
    n: int
    """Number of values."""


def summary_of(values: Iterable[float | int | np.number | None]) -> Summary:
    """Mean, standard deviation and number of the values that are not None."""
    known = np.array([value for value in values if value is not None], np.float64)
    return Summary(
        mean=float(known.mean()) if len(known) else None,
        std=float(known.std(ddof=1)) if len(known) > 1 else None,
        n=len(known),
    )


def mean_and_spread(values: Iterable[float | int | np.number | None], digits: int) -> str:
    """`0.600 ± 0.141`: mean and standard deviation of `summary_of`.

    A single value has no spread, `0.600`; no values are a dash.
    """
    mean, std, _ = summary_of(values)
    if mean is None:
        return DASH
    return f"{mean:.{digits}f}" if std is None else f"{mean:.{digits}f} ± {std:.{digits}f}"


def markdown_table(
    heading: Sequence[str], lines: Iterable[Sequence[str]], num_words: int = 1
) -> str:
    """A Markdown table whose columns are aligned, so that it also reads as plain text.

    Args:
      heading: the heading of each column.
      lines: the cells of each line, as text; an empty one becomes a dash.
      num_words: how many of the first columns hold words and are aligned left; the others hold
        numbers and are aligned right.

    Returns:
      The table, without a newline at the end.
    """
    rows = [heading, *([cell or DASH for cell in line] for line in lines)]
    # A rule needs room for a dash beside its colon.
    widths = [max(2, *map(len, column)) for column in zip(*rows, strict=True)]
    rules = [
        ":" + "-" * (width + 1) if place < num_words else "-" * (width + 1) + ":"
        for place, width in enumerate(widths)
    ]

    def line_of(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if place < num_words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    return "\n".join([line_of(rows[0]), f"|{'|'.join(rules)}|", *map(line_of, rows[1:])])
