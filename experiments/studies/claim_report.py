"""Host side: the measured claims about Voxel-Dynamics as JSON, tables and figures."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from hypertrack_jax.evaluation.graph_quality import topology_note
from hypertrack_jax.evaluation.report import summarise
from hypertrack_jax.evaluation.tables import DASH, markdown_table
from hypertrack_jax.files import replace_file
from studies.graph_plots import (
    plot_centroid_hits,
    plot_pileup,
    plot_trade,
    plot_training_events,
)
from studies.points import CentroidPoint, GraphPoint

Points: TypeAlias = Sequence[GraphPoint] | Sequence[CentroidPoint]
CLAIMS = {
    "pileup": "TPR and FPR do not depend on pile-up, purity does",
    "centroids": "the Voronoi division saturates with few training hits",
    "events": "C needs many training events",
    "trade": "a larger min_count saves edges and costs true ones",
}
"""The claims, by the names that `--claims` and the files use."""


def write_claim(
    directory: Path, claim: str, points: Points, settings: Mapping[str, object]
) -> Path:
    """Writes the points as JSON, whole or not at all.

    Args:
      directory: where `{claim}.json` goes.
      claim: one of `CLAIMS`.
      points: what was measured.
      settings: what a reader needs to repeat the measurement; anything that JSON can hold.

    Returns:
      The file.

    Raises:
      OSError: the file cannot be written.
    """
    path = directory / f"{claim}.json"
    content = {
        "claim": CLAIMS[claim],
        "settings": dict(settings),
        "notes": notes(points),
        "points": [_flat(point) for point in points],
    }
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with replace_file(path) as file:
        file.write(text.encode())
    return path


def draw_claim(directory: Path, claim: str, points: Points) -> Path:
    """Draws the points of a claim as `{claim}.png` in a directory, and returns the file.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      OSError: the file cannot be written.
    """
    path = directory / f"{claim}.png"
    _FIGURES[claim](path, points)
    return path


def claim_table(points: Points) -> str:
    """Means over the events in Markdown, a line for each setting."""
    groups: dict[tuple, list[dict]] = {}
    for row in map(_flat, points):
        setting = {name: row.pop(name) for name in [*row] if name not in _MEASURED}
        del setting["event_id"]
        groups.setdefault(tuple(setting.items()), []).append(row)
    heading, lines = [], []
    for setting, rows in groups.items():
        summary = summarise(rows)
        shown = [name for name in _HEADINGS if name in summary]
        cells = {
            **{name.removeprefix("num_"): value for name, value in setting},
            **{_HEADINGS[name]: summary[name].mean for name in shown},
            "TPR std": summary["tpr"].std,
            "n": len(rows),
        }
        heading = [*cells]
        lines.append([*map(_text, cells.values())])
    return markdown_table(heading, lines) if lines else ""


def notes(points: Points) -> list[str]:
    """A sentence for each pair of topologies that differ, see `topology_note`."""
    graphs = [point.graph if isinstance(point, CentroidPoint) else point for point in points]
    pairs = dict.fromkeys((graph.node2node, graph.judged) for graph in graphs)
    return [note for pair in pairs if (note := topology_note(*pair))]


_FIGURES: dict[str, Callable] = {
    "pileup": plot_pileup,
    "centroids": plot_centroid_hits,
    "events": plot_training_events,
    "trade": plot_trade,
}
_HEADINGS = {
    "distance2": "mm^2",
    "mean_degree": "degree",
    "tpr": "TPR",
    "fpr": "FPR",
    "purity": "purity",
    "connected_share": "connected",
    "fully_connected": "whole",
}
"""Measured quantities in the table, and their headings."""
_MEASURED = {*_HEADINGS, "num_edges"}


def _flat(point: GraphPoint | CentroidPoint) -> dict:
    """All numbers of a point by name."""
    if isinstance(point, CentroidPoint):
        graph = _flat(point.graph)
        return {**graph, "centroid_hits": point.num_centroid_hits, "distance2": point.distance2}
    setting = {name: value for name, value in point._asdict().items() if name != "quality"}
    return {**setting, **point.quality._asdict()}


def _text(value: object) -> str:
    if value is None:
        return DASH
    return f"{value:.4g}" if isinstance(value, float) else str(value)
