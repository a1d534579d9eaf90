"""Host side: reconstructs events and scores them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.evaluation.compiled_time import compiled_seconds, watched_compilation
from hypertrack_jax.evaluation.edge_metrics import edge_scores, graph_scores
from hypertrack_jax.evaluation.graph_quality import graph_row
from hypertrack_jax.evaluation.metrics import track_scores
from hypertrack_jax.evaluation.report import EVENT_ID, Row
from hypertrack_jax.events.event import Event, hits_of
from hypertrack_jax.events.topology import edge_labels, truth_edges
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.reconstruction.devices import SpreadReconstructor
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics

EVENTS_PER_DEVICE = 4
"""Events that are read at once for each device. Events of about the same size run together."""


HitsOrEvent = np.ndarray | Event
"""Hit positions in mm, or an event with cells."""


class Evaluated(NamedTuple):
    """One event, its tracks and their scores."""

    event: Event
    tracks: Tracks
    row: Row
    """Sizes, scores and milliseconds per stage."""
    label: Bool[np.ndarray, " edge"]
    """Truth of each candidate edge; all False without truth."""


class Batched(NamedTuple):
    """A way to reconstruct several events at once, such as a `SpreadReconstructor`."""

    reconstruct: Callable[[Sequence[HitsOrEvent]], Sequence[Tracks]]
    """From the hits of some events to their tracks."""
    batch_size: int
    """How many events it is given at once."""


def as_evaluated(model: Reconstructor) -> Callable[[HitsOrEvent], Tracks] | Batched:
    """A way to call a model in an evaluation, on all devices of this process.

    On one device, the programs for a new size of events are compiled before its first event. If a
    program is compiled during an event nevertheless, its tracks have no `seconds`.
    """
    if jax.local_device_count() == 1:
        return partial(_reconstruct_warm, model, set())
    spread = SpreadReconstructor.of(model)
    return Batched(partial(_reconstruct_spread, spread), EVENTS_PER_DEVICE * spread.mesh.size)


def evaluate_events(
    reconstruct: Callable[[HitsOrEvent], Tracks] | Batched,
    events: Iterable[Event],
    tune: Tune,
    problems: list[str] | None = None,
) -> Iterator[Evaluated]:
    """Reconstructs and scores events, one by one or in batches.

    Args:
      reconstruct: from hit positions in mm, or an event with cells, to tracks with their edges,
        see `as_evaluated`. Or the same for several events.
      events: the events; without truth their scores are None.
      tune: gives the topology of the true edges, which need not be the model's, the edge threshold
        and the smallest track.
      problems: list that gets a sentence for each event that cannot be reconstructed. If it is
        None, the first such event ends the evaluation.

    Yields:
      Events in their order.

    Raises:
      UserError: an event cannot be reconstructed, and there is no list of problems.
      ImportError: the tune asks for scikit-learn, which is missing.
    """
    if isinstance(reconstruct, Batched):
        size, call = reconstruct.batch_size, reconstruct.reconstruct
    else:
        size, call = 1, partial(_one_by_one, reconstruct)
    events = iter(events)
    while batch := list(islice(events, size)):
        yield from _evaluated(call, batch, tune, problems)


def evaluate_graphs(
    vd: VoxelDynamics,
    events: Iterable[Event],
    node2node: str,
    min_count: float | int | None = None,
    problems: list[str] | None = None,
) -> Iterator[Row]:
    """Makes and scores the candidate graphs of events one by one, without any network.

    If a program is compiled for a graph, the graph is made again: no time includes a compilation.

    Args:
      vd: the estimator.
      events: the events; without truth their scores are None.
      node2node: topology of the true edges, which need not be the estimator's.
      min_count: as in `predict_edges`.
      problems: as in `evaluate_events`.

    Yields:
      Sizes, scores and milliseconds of each event.

    Raises:
      UserError: a graph cannot be made, and there is no list of problems.
    """
    for event in events:
        try:
            edges, seconds = compiled_seconds(partial(predict_edges, vd, event.position, min_count))
        except UserError as error:
            _note(problems, event, error)
        else:
            yield graph_row(event, edges, node2node, seconds)


def score_event(event: Event, tracks: Tracks, tune: Tune) -> Evaluated:
    """Compares reconstructed tracks with the truth: the graph (VD), the edges (GNN), the tracks.

    The graph is judged by the topology that C counts, the edges by that of their labels.

    Args:
      event: the event; without truth its scores are None.
      tracks: its tracks, with their edges.
      tune: gives the topologies, the edge threshold and the smallest track.

    Raises:
      UserError: an edge probability is NaN.
    """
    size = {EVENT_ID: event.event_id, "hits": len(event.position), "edges": len(tracks.senders)}
    milliseconds = {f"{name} ms": 1e3 * value for name, value in tracks.seconds.items()}
    if event.has_truth:
        node2node = tune.voxdyn.node2node
        ends = tracks.senders, tracks.receivers
        label = edge_labels(event, *ends, tune.voxdyn.label_topology)
        counted = edge_labels(event, *ends, node2node)
        num_truth_edges = len(truth_edges(event, node2node)[0])
        scores = _score_columns(
            graph_scores(len(event.position), num_truth_edges, counted),
            edge_scores(label, tracks.probability, tune.cluster.edge_threshold),
            track_scores(event, tracks.hit_label, tune.cluster.min_hits),
        )
    else:
        label = np.zeros(len(tracks.senders), bool)
        scores = _score_columns(None, None, None)
    return Evaluated(event, tracks, {**size, **scores, **milliseconds}, label)


def _evaluated(
    call: Callable[[Sequence[HitsOrEvent]], Sequence[Tracks]],
    batch: Sequence[Event],
    tune: Tune,
    problems: list[str] | None,
) -> list[Evaluated]:
    """Reconstructs and scores a batch. After a failure it takes the events one by one."""
    try:
        found = call([hits_of(event) for event in batch])
        return [score_event(*pair, tune) for pair in zip(batch, found, strict=True)]
    except MissingPackageError:
        # Every other event would fail in the same way.
        raise
    except UserError as error:
        if len(batch) == 1:
            _note(problems, batch[0], error)
            return []
    return [one for event in batch for one in _evaluated(call, [event], tune, problems)]


def _note(problems: list[str] | None, event: Event, error: UserError) -> None:
    if problems is None:
        raise error
    problems.append(f"event {event.event_id}: {error}")


def _one_by_one(
    reconstruct: Callable[[HitsOrEvent], Tracks], events: Sequence[HitsOrEvent]
) -> list[Tracks]:
    return [reconstruct(hits) for hits in events]


def _reconstruct_warm(model: Reconstructor, warm: set, hits: HitsOrEvent) -> Tracks:
    num_hits = len(hits.position if isinstance(hits, Event) else hits)
    first = model.capacities(num_hits)
    if first not in warm:
        warm.add(first)
        model.warm_up([num_hits])
    with watched_compilation() as compiled:
        tracks = model(hits, with_edges=True)
    return _untimed(tracks) if compiled else tracks


def _reconstruct_spread(spread: SpreadReconstructor, events: Sequence[HitsOrEvent]) -> list[Tracks]:
    with watched_compilation() as compiled:
        tracks = spread(events, with_edges=True)
    return [_untimed(one) for one in tracks] if compiled else tracks


def _untimed(tracks: Tracks) -> Tracks:
    return tracks._replace(seconds={})


def _score_columns(graph, edge, track) -> dict[str, float | None]:
    columns = {
        "VD TPR": (graph, "tpr"),
        "VD FPR": (graph, "fpr"),
        "VD purity": (graph, "purity"),
        "GNN TPR": (edge, "tpr"),
        "GNN FPR": (edge, "fpr"),
        "GNN AUC": (edge, "auc"),
        "DMS": (track, "dms"),
        "efficiency": (track, "efficiency"),
        "purity": (track, "purity"),
        "TrackML": (track, "trackml"),
        "hit efficiency": (track, "hit_efficiency"),
        "hit purity": (track, "hit_purity"),
    }
    return {name: getattr(scores, field, None) for name, (scores, field) in columns.items()}
