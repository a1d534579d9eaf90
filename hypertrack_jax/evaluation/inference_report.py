"""Host side: the report on events that a model has reconstructed: tables, submissions, figures."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.evaluation.efficiency import (
    BinnedEfficiency,
    binned_efficiency,
    efficiency_table,
    joint_efficiency,
    plot_efficiency,
)
from hypertrack_jax.evaluation.evaluate import Batched, Evaluated, evaluate_events
from hypertrack_jax.evaluation.event_page import write_event_page
from hypertrack_jax.evaluation.graph_quality import topology_note
from hypertrack_jax.evaluation.plots import plot_edge_scores, plot_event, plot_roc
from hypertrack_jax.evaluation.report import Row, event_table, summary_table
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.submissions import submission_path
from hypertrack_jax.events.trackml import write_submission
from hypertrack_jax.tunes.tune import Tune

BATCH_NOTE = (
    "Several devices shared the events, at most {} at once: the milliseconds of each are its share."
)
UNTIMED_NOTE = "{} of {} events have no milliseconds: a program was compiled or loaded meanwhile."
MAX_DRAWN = 10
"""Events whose edges enter the figures. More would take more memory."""


class Wanted(NamedTuple):
    """What the report should hold."""

    node2node: str | None = None
    """Topology of the true edges to judge by; None: that of the model."""
    submissions: Path | None = None
    """Directory for the tracks as TrackML submissions, `event000001000-submission.csv`."""
    has_figures: bool = False
    """Keep what `draw_figures` needs."""


class InferenceReport(NamedTuple):
    """Tables on reconstructed events, and what figures need."""

    rows: list[Row]
    """Sizes, scores and milliseconds of each event. An event during which a program was compiled
    has no milliseconds."""
    text: str
    """Tables of the rows, of their summary and of the efficiency in bins, and notes."""
    problems: list[str]
    """A sentence for each event that could not be reconstructed."""
    judged_by: Tune
    """The tune of the model, with the topology that was asked for."""
    efficiency: dict[str, BinnedEfficiency]
    """All events with truth; empty without any."""
    drawn: list[Evaluated]
    """The first `MAX_DRAWN` events with truth, if figures are wanted."""


def report_events(
    reconstruct: Callable[[np.ndarray | Event], Tracks] | Batched,
    events: Iterable[Event],
    tune: Tune,
    wanted: Wanted,
) -> InferenceReport:
    """Reconstructs and scores events, and writes the submissions that are wanted.

    An event that cannot be reconstructed is left out, and the report names it.

    Args:
      reconstruct: from hit positions in mm to tracks, one by one or in batches, as
        `evaluate_events` takes it.
      events: the events; without truth their scores are None.
      tune: that of the model.
      wanted: what to judge by, and what to write.

    Returns:
      The report.

    Raises:
      UserError: an unknown topology.
      ImportError: the tune asks for scikit-learn, which is missing.
      OSError: a submission cannot be written.
    """
    fitted = tune.voxdyn.node2node
    notes = [topology_note(fitted, wanted.node2node or fitted)]
    if isinstance(reconstruct, Batched):
        notes.append(BATCH_NOTE.format(reconstruct.batch_size))
    judged_by = tune
    if wanted.node2node:
        truth = replace(tune.voxdyn, node2node=wanted.node2node, labels="node2node")
        judged_by = replace(tune, voxdyn=truth)
    rows, problems, drawn, efficiency = [], [], [], {}
    for evaluated in evaluate_events(reconstruct, events, judged_by, problems):
        event, hit_label = evaluated.event, evaluated.tracks.hit_label
        rows.append(evaluated.row)
        if wanted.submissions:
            path = submission_path(wanted.submissions, event.event_id)
            write_submission(path, event, hit_label)
        if not event.has_truth:
            continue
        new = binned_efficiency(event, hit_label, tune.cluster.min_hits)
        efficiency = joint_efficiency(efficiency, new) if efficiency else new
        if wanted.has_figures and len(drawn) < MAX_DRAWN:
            drawn.append(evaluated)
    num_untimed = sum(row["hits"] != 0 and "total ms" not in row for row in rows)
    if num_untimed:
        notes.append(UNTIMED_NOTE.format(num_untimed, len(rows)))
    tables = [event_table(rows), summary_table(rows)]
    if efficiency:
        tables.append(efficiency_table(efficiency))
    text = "\n\n".join(filter(None, [*tables, *notes]))
    return InferenceReport(rows, text, problems, judged_by, efficiency, drawn)


def draw_figures(directory: Path, report: InferenceReport) -> tuple[list[Path], list[str]]:
    """Draws the first event, edge scores and ROC of the first events, and the efficiency of all.

    The first event is drawn as a figure and as a page to turn.

    Args:
      directory: where the figures go.
      report: a report with `has_figures`.

    Returns:
      The files, and a sentence for each figure that these events do not allow: a ROC curve needs
      true and false edges, for example. Without truth there is nothing to draw.

    Raises:
      ImportError: matplotlib, mplhep or plotly is missing.
      OSError: a file cannot be written.
    """
    if not report.drawn:
        return [], ["no figures: none of the events has truth."]
    first, tune = report.drawn[0], report.judged_by
    label = np.concatenate([one.label for one in report.drawn])
    probability = np.concatenate([one.tracks.probability for one in report.drawn])
    cluster = tune.cluster
    figures: dict[str, Callable[[Path], object]] = {
        "event.png": lambda path: plot_event(
            path, first.event, first.tracks.hit_label, min_hits=cluster.min_hits
        ),
        "event.html": lambda path: write_event_page(
            path, first.event, first.tracks.hit_label, first.tracks.membership, cluster.min_hits
        ),
        "edge_scores.png": lambda path: plot_edge_scores(
            path, label, probability, cluster.edge_threshold
        ),
        "roc.png": lambda path: plot_roc(path, {tune.name: (label, probability)}),
        "efficiency.png": lambda path: plot_efficiency(path, report.efficiency),
    }
    files, problems = [], []
    for name, draw in figures.items():
        try:
            draw(directory / name)
            files.append(directory / name)
        except MissingPackageError:
            raise
        except UserError as error:
            problems.append(f"no {name}: {error}")
    return files, problems
