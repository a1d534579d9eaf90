"""Host side: what is told and written about the events that a model has reconstructed."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.evaluation.efficiency import (
    binned_efficiency,
    efficiency_table,
    joint_efficiency,
    plot_efficiency,
)
from hypertrack_jax.evaluation.evaluate import Batched, evaluate_events, write_figures
from hypertrack_jax.evaluation.graph_quality import topology_note
from hypertrack_jax.evaluation.report import Row, event_table, summary_table
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.trackml import write_submission
from hypertrack_jax.tunes.tune import Tune

BATCH_NOTE = (
    "Several devices shared the events, at most {} at once: the milliseconds of each are its share."
)
MAX_SHOWN = 10
"""Events whose edges enter the figures, which bounds memory."""


class Wanted(NamedTuple):
    """What is asked for; the defaults are the least."""

    node2node: str | None = None
    """Topology of the true edges to judge by; None: that of the model."""
    submissions: Path | None = None
    """Directory for the tracks as TrackML submissions, `event000001000-submission.csv`."""
    figures: Path | None = None
    """Directory for the figures."""


class InferenceReport(NamedTuple):
    """What is known afterwards; neither events nor tracks."""

    rows: list[Row]
    """Sizes, scores and milliseconds of each event."""
    text: str
    """The rows and their summary as tables, the efficiency by what the particles are, and notes:
    where model and truth differ in topology, and where events were reconstructed in batches."""
    figures: list[Path]
    """Those drawn: none where no event has truth."""


def report_events(
    reconstruct: Callable[[np.ndarray], Tracks] | Batched,
    events: Iterable[Event],
    tune: Tune,
    wanted: Wanted,
) -> InferenceReport:
    """Reconstructs and scores events, and writes what is wanted.

    Args:
      reconstruct: from hit positions in mm to tracks, one by one or in batches, as
        `evaluate_events` takes it.
      events: the events; without truth their scores are None.
      tune: that of the model.
      wanted: what to judge by, and what to write.

    Returns:
      The report.

    Raises:
      ValueError: an unknown topology.
      ImportError: matplotlib or mplhep is missing and figures are wanted.
      OSError: a file cannot be written.
    """
    fitted = tune.voxdyn.node2node
    notes = [topology_note(fitted, wanted.node2node or fitted)]
    if isinstance(reconstruct, Batched):
        notes.append(BATCH_NOTE.format(reconstruct.batch_size))
    judged_by = tune
    if wanted.node2node:
        truth = replace(tune.voxdyn, node2node=wanted.node2node, labels="node2node")
        judged_by = replace(tune, voxdyn=truth)
    rows, shown, found = [], [], None
    for evaluated in evaluate_events(reconstruct, events, judged_by):
        rows.append(evaluated.row)
        if wanted.submissions:
            name = f"event{evaluated.event.event_id:09d}-submission.csv"
            write_submission(wanted.submissions / name, evaluated.event, evaluated.tracks.hit_label)
        if not evaluated.event.has_truth:
            continue
        new = binned_efficiency(evaluated.event, evaluated.tracks.hit_label, tune.cluster.min_hits)
        found = joint_efficiency(found, new) if found else new
        if wanted.figures and len(shown) < MAX_SHOWN:
            shown.append(evaluated)
    tables, files = [event_table(rows), summary_table(rows)], []
    if found:
        tables.append(efficiency_table(found))
    if found and wanted.figures:
        files = write_figures(wanted.figures, shown, judged_by)
        files.append(wanted.figures / "efficiency.png")
        plot_efficiency(files[-1], found)
    return InferenceReport(rows, "\n\n".join([*tables, *notes]), files)
