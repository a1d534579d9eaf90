"""Host side: figures of the candidate graph's quality; needs the extra `plots`.

Every function takes the file to write and points of single events, of any settings, in any order.
Its figure shows the mean over the events of each setting. It raises an `ImportError` if matplotlib
or mplhep is missing, and an `OSError` if the file cannot be written.
"""

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float64

from hypertrack_jax.evaluation.plots import TRACK_COLOURS, saved_figure
from hypertrack_jax.evaluation.tables import summary_of
from studies.points import CentroidPoint, GraphPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    # The tests check annotations at run time, where matplotlib may be missing.
    Axes = Figure = Any

LINE_COLOURS = tuple(TRACK_COLOURS[k] for k in (0, 2, 6, 5, 1, 3, 4))
"""The track colours, those that differ most first."""
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

Point = TypeVar("Point")


class MeanLine(NamedTuple):
    """Mean and spread over events along one line of a figure."""

    x: Float64[np.ndarray, " place"]
    """Places where there is a value, ascending."""
    mean: Float64[np.ndarray, " place"]
    """Mean over the events."""
    std: Float64[np.ndarray, " place"]
    """Standard deviation over the events, see `Summary`; NaN, which draws no bar, for one event."""


def plot_pileup(path: Path, points: Sequence[GraphPoint]) -> None:
    """Draws TPR, FPR and purity against pile-up. TPR and FPR should be flat, purity falls."""
    rates = {label: _score(name) for name, label in _SCORES.items()}
    pileups = sorted({point.pileup for point in points})
    with _figure_of_lines(
        path, 16.0, points, lambda point: point, lambda point: point.pileup, rates
    ) as panels:
        for axes in panels:
            axes.set_xlabel("Pile-up (collisions per event)")
            _only_ticks(axes, pileups)
        panels[0].set_ylim(*_rate_limits(points, _score("tpr")))
        panels[1].set_yscale("log")
        panels[2].set_yscale("log")
        panels[2].set_ylim(top=1.3)


def plot_centroid_hits(path: Path, points: Sequence[CentroidPoint]) -> None:
    """Draws how the Voronoi division saturates with the number of hits in its fit."""
    quantities: dict[str, Callable[[CentroidPoint], float | None]] = {
        "Squared distance to centroid [mm$^2$]": lambda point: point.distance2,
        _SCORES["tpr"]: lambda point: point.graph.quality.tpr,
    }
    with _figure_of_lines(
        path,
        14.0,
        points,
        lambda point: point.graph,
        lambda point: point.num_centroid_hits,
        quantities,
    ) as panels:
        for axes in panels:
            axes.set_xlabel("Hits the centroids are fitted to")
        panels[0].set_yscale("log")
        panels[1].set_ylim(*_rate_limits(points, quantities[_SCORES["tpr"]]))


def plot_training_events(path: Path, points: Sequence[GraphPoint]) -> None:
    """Draws TPR against the events counted in C, one panel per topology."""
    colours = _assign(LINE_COLOURS, sorted({point.num_cells for point in points}))
    styles = _assign(LINE_STYLES, sorted({point.quality.min_count for point in points}))
    topologies = _grouped(points, _topology)
    with saved_figure(path, width=max(8.0, 5.5 * len(topologies)), height=6.5) as figure:
        panels = figure.subplots(1, max(len(topologies), 1), sharey=True, squeeze=False)[0]
        for axes, (topology, of_topology) in zip(panels, topologies.items(), strict=False):
            lines = _grouped(of_topology, lambda point: (point.num_cells, point.quality.min_count))
            for (num_cells, min_count), group in lines.items():
                axes.errorbar(
                    *_mean_line(group, lambda point: point.num_events, _score("tpr")),
                    color=colours[num_cells],
                    ls=styles[min_count],
                    marker="o",
                    ms=5,
                    capsize=3,
                )
            axes.set_title(topology, size=18)
            axes.set(xlabel="Events counted in $C$")
            _log_x(axes, [point.num_events for point in points])
            _only_ticks(axes, sorted({point.num_events for point in points}))
        panels[0].set(ylabel=_SCORES["tpr"], ylim=_rate_limits(points, _score("tpr")))
        _key(
            figure,
            [(f"$V$ = {num_cells}", colour, "-") for num_cells, colour in colours.items()],
            [(f"min_count {min_count}", "black", style) for min_count, style in styles.items()],
        )


def plot_trade(path: Path, points: Sequence[GraphPoint]) -> None:
    """Draws TPR and connected share against mean degree, as `min_count` changes."""
    colours = _assign(LINE_COLOURS, sorted({point.num_cells for point in points}))
    styles = _assign(LINE_STYLES, sorted({point.pileup for point in points}))
    topologies = _grouped(points, _topology)
    with saved_figure(path, width=max(8.0, 5.5 * len(topologies)), height=10.5) as figure:
        panels = figure.subplots(
            2, max(len(topologies), 1), sharex="col", sharey="row", squeeze=False
        )
        for column, (topology, of_topology) in zip(panels.T, topologies.items(), strict=False):
            for (num_cells, pileup), group in _grouped(
                of_topology, lambda point: (point.num_cells, point.pileup)
            ).items():
                for axes, name in zip(column, _HELD_TOGETHER, strict=True):
                    axes.plot(
                        *_path(group, _score("mean_degree"), _score(name)),
                        color=colours[num_cells],
                        ls=styles[pileup],
                        marker="o",
                        ms=4,
                    )
            column[0].set_title(topology, size=18)
            column[1].set(xlabel="Mean degree (edges per hit)")
            _log_x(column[1], [point.quality.mean_degree for point in of_topology])
        for axes, (name, label) in zip(panels[:, 0], _HELD_TOGETHER.items(), strict=True):
            axes.set(ylabel=label, ylim=_rate_limits(points, _score(name)))
        _key(
            figure,
            [(f"$V$ = {num_cells}", colour, "-") for num_cells, colour in colours.items()],
            [(f"Pile-up {pileup:g}", "black", style) for pileup, style in styles.items()],
            title=_min_count_note(points),
        )


_SCORES = {
    "tpr": "True positive rate",
    "fpr": "False positive rate",
    "purity": "Purity (true / all edges)",
}
"""Fields of `GraphQuality` and what the axes call them."""
_HELD_TOGETHER = {"tpr": _SCORES["tpr"], "connected_share": "Connected share of a particle"}
"""Quantities that should stay high with fewer edges."""


@contextlib.contextmanager
def _figure_of_lines(
    path: Path,
    width: float,
    points: Sequence[Point],
    graph: Callable[[Point], GraphPoint],
    x: Callable[[Point], float],
    quantities: Mapping[str, Callable[[Point], float | None]],
) -> Iterator[Sequence[Axes]]:
    """A panel for each quantity, with a line for each topology, number of cells and `min_count`.

    Args:
      path: the file, written after the caller has finished the panels.
      width: of the figure, in inches.
      points: what to draw.
      graph: the graph of a point.
      x: place of a point along the axis that all panels share.
      quantities: what to draw of a point, by the label of its axis.

    Yields:
      The panels.
    """
    lines = _grouped(
        points,
        lambda point: (
            _topology(graph(point)),
            graph(point).num_cells,
            graph(point).quality.min_count,
        ),
    )
    styles = _assign(LINE_STYLES, dict.fromkeys(topology for topology, _, _ in lines))
    colours = _assign(LINE_COLOURS, sorted({num_cells for _, num_cells, _ in lines}))
    markers = _assign(MARKERS, sorted({min_count for _, _, min_count in lines}))
    with saved_figure(path, width=width, height=5.5 + 0.4 * ((len(lines) + 2) // 3)) as figure:
        panels = figure.subplots(1, len(quantities))
        for axes, (label, y) in zip(panels, quantities.items(), strict=True):
            for (topology, num_cells, min_count), group in lines.items():
                axes.errorbar(
                    *_mean_line(group, x, y),
                    color=colours[num_cells],
                    ls=styles[topology],
                    marker=markers[min_count],
                    ms=5,
                    capsize=3,
                    label=f"{topology}, $V$ = {num_cells}, min_count {min_count}",
                )
            axes.set_ylabel(label)
            _log_x(axes, [*map(x, points)])
        yield panels
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)


def _score(name: str) -> Callable[[GraphPoint], float | None]:
    return lambda point: getattr(point.quality, name)


def _topology(point: GraphPoint) -> str:
    """The topology, and the one that it is judged by if they differ."""
    if point.node2node == point.judged:
        return point.node2node
    return f"{point.node2node}, judged by {point.judged}"


def _assign(choices: Sequence[str], values: Iterable[Any]) -> dict[Any, str]:
    """A colour, line style or marker for each of some different values."""
    return {value: choices[k % len(choices)] for k, value in enumerate(values)}


def _grouped(points: Iterable[Point], key: Callable[[Point], Hashable]) -> dict[Any, list[Point]]:
    """The points of each key, keys in the order of their first appearance."""
    groups: dict[Any, list[Point]] = {}
    for point in points:
        groups.setdefault(key(point), []).append(point)
    return groups


def _mean_line(
    points: Sequence[Point],
    x: Callable[[Point], float],
    y: Callable[[Point], float | None],
) -> MeanLine:
    """Mean and spread of y at each x; events without a y do not count."""
    values = [(x(point), value) for point in points if (value := y(point)) is not None]
    groups = sorted(_grouped(values, lambda pair: pair[0]).items())
    summaries = [summary_of(value for _, value in group) for _, group in groups]
    return MeanLine(
        np.array([place for place, _ in groups], np.float64),
        np.array([summary.mean for summary in summaries], np.float64),
        np.array([summary.std for summary in summaries], np.float64),
    )


def _path(
    points: Sequence[GraphPoint],
    x: Callable[[GraphPoint], float | None],
    y: Callable[[GraphPoint], float | None],
) -> tuple[Float64[np.ndarray, " place"], Float64[np.ndarray, " place"]]:
    """Means over the events of x and of y at each `min_count`, in its order."""
    known = [point for point in points if x(point) is not None and y(point) is not None]
    along_x, along_y = (_mean_line(known, lambda point: point.quality.min_count, z) for z in (x, y))
    return along_x.mean, along_y.mean


def _rate_limits(
    points: Sequence[Point], y: Callable[[Point], float | None]
) -> tuple[float, float]:
    """Limits of an axis of rates: up to 1, and down to a round number below the lowest."""
    lowest = min((value for value in map(y, points) if value is not None), default=0.0)
    return max(np.floor(10 * lowest - 0.5) / 10, 0.0), 1.02


def _log_x(axes: Axes, places: Sequence[float | int | None]) -> None:
    """A logarithmic axis with some room beside the first and the last place."""
    from matplotlib.ticker import NullFormatter

    drawn = [place for place in places if place]
    axes.set_xscale("log")
    if drawn:
        axes.set_xlim(min(drawn) / 1.5, max(drawn) * 1.5)
        # Over a decade or more, labels between powers of ten would overlap.
        if max(drawn) >= 10 * min(drawn):
            axes.xaxis.set_minor_formatter(NullFormatter())


def _only_ticks(axes: Axes, places: Sequence[float | int]) -> None:
    """Ticks along x at the few places there are."""
    from matplotlib.ticker import NullLocator

    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())


def _key(
    figure: Figure,
    colours: Sequence[tuple[str, str, str]],
    styles: Sequence[tuple[str, str, str]],
    title: str | None = None,
) -> None:
    """Below the panels: a row for the colours and, where there are several, one for line styles."""
    from matplotlib.lines import Line2D

    rows = [colours, styles] if len(styles) > 1 else [colours]
    # A legend fills its columns one by one, so blanks keep the rows apart.
    columns = itertools.zip_longest(*rows, fillvalue=("", "black", ""))
    entries = [entry for column in columns for entry in column]
    figure.legend(
        [Line2D([], [], color=colour, ls=style, lw=2) for _, colour, style in entries],
        [name for name, _, _ in entries],
        loc="outside lower center",
        ncols=max(len(entries) // len(rows), 1),
        title=title,
    )


def _min_count_note(points: Sequence[GraphPoint]) -> str:
    min_counts = sorted({point.quality.min_count for point in points})
    return f"From right to left: min_count {', '.join(map(str, min_counts))}"
