"""Host side: the report on events that a model has reconstructed: tables, submissions, figures."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.evaluation.efficiency import (
    BinnedRatio,
    binned_efficiency,
    binned_fakes,
    efficiency_table,
    joint_ratios,
    plot_ratios,
)
from hypertrack_jax.evaluation.evaluate import Batched, Evaluated, evaluate_events
from hypertrack_jax.evaluation.event_page import page_name, write_event_page
from hypertrack_jax.evaluation.graph_quality import topology_note
from hypertrack_jax.evaluation.metrics import match_tracks, particle_matched
from hypertrack_jax.evaluation.phoenix import write_phoenix
from hypertrack_jax.evaluation.plots import plot_edge_scores, plot_event, plot_roc
from hypertrack_jax.evaluation.reconstruct_files import track_row
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
NUM_LOSSES = 3
"""Events with the most lost particles, which get a page each."""

Peer = Callable[[Event], tuple[np.ndarray, float]]
"""Another program: from an event to the track of each hit, and the seconds that it took."""


class Wanted(NamedTuple):
    """What the report should hold."""

    node2node: str | None = None
    """Topology of the true edges to judge by; None: that of the model."""
    submissions: Path | None = None
    """Directory for the tracks as TrackML submissions, `event000001000-submission.csv`."""
    has_figures: bool = False
    """Keep what `draw_figures` needs."""
    peers: Mapping[str, Peer] | None = None
    """Other programs by name, to compare with on the events with truth."""
    name: str | None = None
    """Name of the model; None: that of its tune."""


class Program(NamedTuple):
    """The results of one program on the events with truth."""

    name: str
    rows: list[Row]
    """Sizes, scores and milliseconds of each event."""
    efficiency: dict[str, BinnedRatio]
    """`binned_efficiency`, summed over the events; empty without any."""
    fakes: dict[str, BinnedRatio]
    """`binned_fakes`, in the same way."""


class Loss(NamedTuple):
    """An event and the particles that were not found in it."""

    num_lost: int
    num_particles: int
    event: Event
    tracks: Tracks
    """Without edges."""


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
    programs: list[Program]
    """The model and its peers."""
    drawn: list[Evaluated]
    """The first `MAX_DRAWN` events with truth, if figures are wanted."""
    losses: list[Loss]
    """The `NUM_LOSSES` events with the most lost particles, if figures are wanted."""
    notes: list[str]
    """How to read the numbers."""


def report_events(
    reconstruct: Callable[[np.ndarray | Event], Tracks] | Batched,
    events: Iterable[Event],
    tune: Tune,
    wanted: Wanted,
) -> InferenceReport:
    """Reconstructs and scores events, and writes the submissions that are wanted.

    An event that cannot be reconstructed is left out, and the report names it.

    Args:
      reconstruct: from hit positions in mm, or events with cells, to tracks, one by one or in
        batches, as `evaluate_events` takes it.
      events: the events; without truth their scores are None.
      tune: that of the model.
      wanted: what to judge by, and what to write.

    Returns:
      The report.

    Raises:
      UserError: an unknown topology.
      ImportError: the tune or a peer needs a package that is missing.
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
    rows, problems, drawn, losses = [], [], [], []
    ours = Program(wanted.name or tune.name, [], {}, {})
    peers = {name: Program(name, [], {}, {}) for name in wanted.peers or {}}
    for evaluated in evaluate_events(reconstruct, events, judged_by, problems):
        event, tracks = evaluated.event, evaluated.tracks
        rows.append(evaluated.row)
        if wanted.submissions:
            path = submission_path(wanted.submissions, event.event_id)
            write_submission(path, event, tracks.hit_label)
        if not event.has_truth:
            continue
        _add(ours, evaluated.row, event, tracks.hit_label, tune.cluster.min_hits)
        for name, peer in (wanted.peers or {}).items():
            _run_peer(peers[name], peer, event, tune.cluster.min_hits, problems)
        if wanted.has_figures:
            losses.append(_loss(event, tracks, tune.cluster.min_hits))
            losses = sorted(losses, key=lambda loss: -loss.num_lost)[:NUM_LOSSES]
            if len(drawn) < MAX_DRAWN:
                drawn.append(evaluated)
    num_untimed = sum(row["hits"] != 0 and "total ms" not in row for row in rows)
    if num_untimed:
        notes.append(UNTIMED_NOTE.format(num_untimed, len(rows)))
    notes = [note for note in notes if note]
    programs = [ours, *peers.values()]
    tables = [event_table(rows), summary_table(rows)]
    if ours.rows:
        tables.append(efficiency_table(ours.efficiency))
    for peer in peers.values():
        tables += [f"{peer.name}, the same events:", summary_table(peer.rows)]
        tables.append(efficiency_table(peer.efficiency) if peer.rows else "")
    text = "\n\n".join(filter(None, [*tables, *notes]))
    return InferenceReport(rows, text, problems, judged_by, programs, drawn, losses, notes)


def draw_figures(directory: Path, report: InferenceReport) -> tuple[list[Path], list[str]]:
    """Draws the first event, edge scores and ROC of the first events, and the ratios of all.

    The first event is drawn as a figure and as a page; the events of the largest losses have pages,
    too. Beside each page is a file of the same name for Phoenix, see `write_phoenix`.

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
    programs = [program for program in report.programs if program.rows]
    efficiency = {program.name: program.efficiency for program in programs}
    fakes = {program.name: program.fakes for program in programs}
    draw_page = partial(_draw_page, cluster.min_hits)
    figures: dict[str, Callable[[Path], object]] = {
        "event.png": lambda path: plot_event(
            path, first.event, first.tracks.hit_label, min_hits=cluster.min_hits
        ),
        "event.html": partial(draw_page, first.event, first.tracks),
        "edge_scores.png": lambda path: plot_edge_scores(
            path, label, probability, cluster.edge_threshold
        ),
        "roc.png": lambda path: plot_roc(path, {programs[0].name: (label, probability)}),
        "efficiency.png": lambda path: plot_ratios(path, efficiency, "efficiency"),
        "fake_rate.png": lambda path: plot_ratios(path, fakes, "fake rate"),
    }
    for loss in report.losses:
        figures[page_name(loss.event.event_id)] = partial(draw_page, loss.event, loss.tracks)
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


def _add(program: Program, row: Row, event: Event, hit_label: np.ndarray, min_hits: int) -> None:
    """Adds the tracks of an event to those of a program."""
    program.rows.append(row)
    for binned, joint in ((binned_efficiency, program.efficiency), (binned_fakes, program.fakes)):
        new = binned(event, hit_label, min_hits)
        joint.update(joint_ratios(joint, new) if joint else new)


def _run_peer(
    program: Program, peer: Peer, event: Event, min_hits: int, problems: list[str]
) -> None:
    try:
        hit_label, seconds = peer(event)
    except MissingPackageError:
        # Every other event would fail in the same way.
        raise
    except UserError as error:
        problems.append(f"{program.name}: {error}")
        return
    row = {**track_row(event, hit_label, min_hits), "total ms": 1e3 * seconds}
    _add(program, row, event, hit_label, min_hits)


def _loss(event: Event, tracks: Tracks, min_hits: int) -> Loss:
    matching = match_tracks(event, tracks.hit_label, min_hits)
    is_wanted = matching.particle_size >= min_hits
    num_lost = int((is_wanted & ~particle_matched(matching)).sum())
    none = tracks.senders[:0].copy(), tracks.receivers[:0].copy(), tracks.probability[:0].copy()
    without = Tracks(tracks.hit_label, tracks.membership, *none, tracks.seconds)
    return Loss(num_lost, int(is_wanted.sum()), event, without)


def _draw_page(min_hits: int, event: Event, tracks: Tracks, path: Path) -> None:
    write_event_page(path, event, tracks.hit_label, tracks.membership, min_hits)
    write_phoenix(path.with_suffix(".json"), event, tracks.hit_label, min_hits)
