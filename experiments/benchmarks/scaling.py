"""Host side: how time and memory grow with the number of hits."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.timing import Timing
from hypertrack_jax.evaluation.plots import TRACK_COLOURS, saved_figure

LEAST_MEMORY = 0.05
"""GB; smaller values depend on what the allocator kept, not on the work."""


def power_law(hits: ArrayLike, values: ArrayLike, least: float = 0.0) -> tuple[float, float] | None:
    """Factor a and exponent b of the least-squares fit of a hits^b, a straight line in logarithms.

    Args:
      hits: numbers of hits.
      values: what grows with them.
      least: values that are no larger are left out.

    Returns:
      a and b; None where fewer than two numbers of hits have a value.
    """
    x, y = np.asarray(hits, float), np.asarray(values, float)
    x, y = x[y > least], y[y > least]
    if len(np.unique(x)) < 2:
        return None
    exponent, logarithm = np.polyfit(np.log(x), np.log(y), 1)
    return float(np.exp(logarithm)), float(exponent)


def exponents(timings: Sequence[Timing]) -> list[str]:
    """A line per program: the exponents of its time and memory."""
    lines = []
    for who, rows in by_program(timings).items():
        hits = [row.hits for row in rows]
        parts = []
        for what, (value_of, least) in QUANTITIES.items():
            fit = power_law(hits, [value_of(row) for row in rows], least)
            if fit is not None:
                parts.append(f"{what} grows as hits^{fit[1]:.2f}")
        lines.append(f"{who}: {', '.join(parts) or 'too few sizes to tell how it grows'}")
    return lines


def plot_scaling(path: Path, timings: Sequence[Timing]) -> Path:
    """Draws time and memory against hits on log axes, each program with its fitted power law.

    Args:
      path: the file to write.
      timings: the same work at several sizes, by several programs.

    Returns:
      The file.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      OSError: the file cannot be written.
    """
    programs = list(zip(TRACK_COLOURS, by_program(timings).items(), strict=False))
    all_hits = [timing.hits for timing in timings]
    with saved_figure(path, width=15.0, height=6.5) as figure:
        for axes, what in zip(figure.subplots(1, 2), QUANTITIES, strict=True):
            value_of, least = QUANTITIES[what]
            for colour, (who, rows) in programs:
                hits, values = [row.hits for row in rows], [value_of(row) for row in rows]
                fit = power_law(hits, values, least)
                label = who if fit is None else f"{who}: hits$^{{{fit[1]:.2f}}}$"
                axes.plot(hits, values, "o", color=colour, label=label)
                if fit is not None:
                    ends = np.array([min(hits), max(hits)])
                    axes.plot(ends, fit[0] * ends ** fit[1], color=colour, lw=1.5)
            axes.set(xscale="log", yscale="log", xlabel="Hits", ylabel=what[0].upper() + what[1:])
            axes.set_xlim(0.7 * min(all_hits), 1.5 * max(all_hits))
            axes.legend(fontsize="x-small")
    return path


def by_program(timings: Sequence[Timing]) -> dict[str, list[Timing]]:
    """The timings by the name of the program, which follows the slash in `suite`."""
    programs: dict[str, list[Timing]] = {}
    for timing in timings:
        programs.setdefault(timing.suite.split(" / ")[-1], []).append(timing)
    return programs


def _memory(timing: Timing) -> float:
    """GB that the work takes, without the memory held before it."""
    return timing.peak_memory - (timing.idle_memory or 0.0)


QUANTITIES: dict[str, tuple[Callable[[Timing], float], float]] = {
    "time [s]": (lambda timing: timing.median, 0.0),
    "memory [GB]": (_memory, LEAST_MEMORY),
}
"""Quantities to draw against hits. Each has the largest value that its fit leaves out."""
