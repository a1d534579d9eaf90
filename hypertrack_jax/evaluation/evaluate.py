"""Host side: reconstructs events, scores them and draws the result."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.evaluation.graph_quality import graph_row
from hypertrack_jax.evaluation.metrics import edge_scores, graph_scores, track_scores
from hypertrack_jax.evaluation.plots import plot_edge_scores, plot_event, plot_roc
from hypertrack_jax.evaluation.report import EVENT_ID, Row
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.topology import edge_labels, truth_edges
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.reconstruction.devices import SpreadReconstructor
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics

EVENTS_PER_DEVICE = 4
"""Events that are read at once for each device; those of about the same size run together."""


class Evaluated(NamedTuple):
    """One event, what was found in it, and how good that is."""

    event: Event
    tracks: Tracks
    row: Row
    """Sizes, scores and milliseconds per stage."""
    label: Bool[np.ndarray, " edge"]
    """Truth of each candidate edge; all False without truth."""


class Batched(NamedTuple):
    """A way to reconstruct several events at once, such as a `SpreadReconstructor`."""

    reconstruct: Callable[[Sequence[np.ndarray]], Sequence[Tracks]]
    """From hit positions in mm of some events to their tracks."""
    batch_size: int
    """How many events it is given at once."""


def as_evaluated(model: Reconstructor) -> Callable[[np.ndarray], Tracks] | Batched:
    """How the evaluation calls a model: on all devices of this process where there are several.

    Events of a new size are preceded by a warm-up, so that hardly a time holds a compilation.
    """
    if jax.local_device_count() == 1:
        return partial(_reconstruct_warm, model, set())
    spread = SpreadReconstructor.of(model)
    call = partial(spread, with_edges=True)
    return Batched(call, EVENTS_PER_DEVICE * spread.mesh.size)


def _reconstruct_warm(model: Reconstructor, warm: set, position: np.ndarray) -> Tracks:
    first = model.capacities(len(position))
    if first not in warm:
        warm.add(first)
        model.warm_up([len(position)])
    return model(position, with_edges=True)


def evaluate_events(
    reconstruct: Callable[[np.ndarray], Tracks] | Batched, events: Iterable[Event], tune: Tune
) -> Iterator[Evaluated]:
    """Reconstructs and scores events, one by one or in batches.

    Args:
      reconstruct: from hit positions in mm to tracks with their edges, see `as_evaluated`. Or the
        same for several events.
      events: the events; without truth their scores are None.
      tune: topology that edges are judged by, which need not be the model's; threshold, and
        smallest track.

    Yields:
      Events in their order.
    """
    if isinstance(reconstruct, Batched):
        yield from _evaluate_batches(reconstruct, iter(events), tune)
        return
    for event in events:
        yield score_event(event, reconstruct(event.position), tune)


def evaluate_graphs(
    vd: VoxelDynamics, events: Iterable[Event], node2node: str, min_count: float | int | None = None
) -> Iterator[Row]:
    """Makes and scores the candidate graphs of events one by one, without any network.

    Each graph is made twice and the second time is taken, so that none holds a compilation.

    Args:
      vd: the estimator.
      events: the events; without truth their scores are None.
      node2node: topology of the true edges to judge by, which need not be the estimator's.
      min_count: as in `predict_edges`.

    Yields:
      Sizes, scores and milliseconds of each event.
    """
    for event in events:
        predict_edges(vd, event.position, min_count)
        started = time.perf_counter()
        edges = predict_edges(vd, event.position, min_count)
        yield graph_row(event, edges, node2node, time.perf_counter() - started)


def score_event(event: Event, tracks: Tracks, tune: Tune) -> Evaluated:
    """Compares reconstructed tracks with the truth: the graph (VD), the edges (GNN), the tracks.

    The graph is judged by the topology that C counts, the edges by that of their labels.
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


def write_figures(directory: Path, evaluated: Sequence[Evaluated], tune: Tune) -> list[Path]:
    """Draws the first event, and edge scores and ROC of all of them; returns the files."""
    first = evaluated[0]
    label = np.concatenate([one.label for one in evaluated])
    probability = np.concatenate([one.tracks.probability for one in evaluated])
    event_file, scores_file, roc_file = (
        directory / name for name in ("event.png", "edge_scores.png", "roc.png")
    )
    plot_event(event_file, first.event, first.tracks.hit_label, min_hits=tune.cluster.min_hits)
    plot_edge_scores(scores_file, label, probability, tune.cluster.edge_threshold)
    plot_roc(roc_file, {tune.name: (label, probability)})
    return [event_file, scores_file, roc_file]


def _evaluate_batches(batched: Batched, events: Iterator[Event], tune: Tune) -> Iterator[Evaluated]:
    while batch := list(islice(events, batched.batch_size)):
        found = batched.reconstruct([event.position for event in batch])
        for event, tracks in zip(batch, found, strict=True):
            yield score_event(event, tracks, tune)


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
