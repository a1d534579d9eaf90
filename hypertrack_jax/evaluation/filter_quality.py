"""Host side: what the filter takes out of candidate graphs, and what it costs.

An edge is true if it joins different hits of one particle. A particle with enough hits can be found
if true edges connect more than half of its hits, and enough for a track. The bound is the share of
such particles: a clusterer that joins hits by true edges alone finds no more.
"""

from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from hypertrack_jax.evaluation.graph_quality import particle_connectivity
from hypertrack_jax.evaluation.report import EVENT_ID, Row
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.networks.edge_filter import FilterWeights
from hypertrack_jax.reconstruction.candidates import CandidateEdges, predict_edges
from hypertrack_jax.voxdyn.model import VoxelDynamics

DISPLACED = 30.0
"""mm; particles that begin farther from the beam line have a column of their own."""
STAGES = ("pairs", "first", "second")


def filter_rows(
    voxdyn: VoxelDynamics,
    weights: FilterWeights,
    events: Iterable[Event],
    min_count: float | int | None = None,
    min_hits: int = 4,
) -> Iterator[Row]:
    """The graphs of events before the filter, after its pairs, and after each round of triplets.

    Args:
      voxdyn: the estimator.
      weights: the filter of its graphs.
      events: events with truth.
      min_count: as in `predict_edges`.
      min_hits: fewest hits of a particle, and of a track.

    Yields:
      For each event the edges before the filter, the shares of all and of the true edges that are
      left after each stage, and purity and bounds before and after. A ratio over nothing is None.
    """
    for event in events:
        raw = predict_edges(voxdyn, event.position, min_count)
        is_edge = raw.senders != raw.receivers
        raw = CandidateEdges(*(part[is_edge] for part in raw[:3]))
        is_true = _is_true(event, raw)
        num_true = int(is_true.sum())
        bound, displaced_bound = _bounds(event, raw, min_hits)
        kept, left = raw, {}
        for number, stage in enumerate(STAGES):
            passing = jnp.arange(len(STAGES)) > number
            given = weights._replace(thresholds=jnp.where(passing, -jnp.inf, weights.thresholds))
            kept = predict_edges(voxdyn, event.position, min_count, given, event.cells)
            is_true = _is_true(event, kept)
            left[f"{stage} kept"] = _ratio(len(kept.senders), len(raw.senders))
            left[f"{stage} TPR"] = _ratio(int(is_true.sum()), num_true)
        after, displaced_after = _bounds(event, kept, min_hits)
        yield {
            EVENT_ID: event.event_id,
            "hits": len(event.position),
            "edges": len(raw.senders),
            **left,
            "purity before": _ratio(num_true, len(raw.senders)),
            "purity": _ratio(int(is_true.sum()), len(kept.senders)),
            "bound before": bound,
            "bound": after,
            "displaced before": displaced_bound,
            "displaced": displaced_after,
        }


def _is_true(event: Event, edges: CandidateEdges) -> Bool[np.ndarray, " edge"]:
    particle = event.hit_particle[edges.senders]
    return (particle == event.hit_particle[edges.receivers]) & (particle != NOISE)


def _bounds(
    event: Event, edges: CandidateEdges, min_hits: int
) -> tuple[float | None, float | None]:
    """The bound of all particles, and that of those from beyond `DISPLACED`."""
    found = particle_connectivity(event, edges.senders, edges.receivers, min_hits)
    num_hits = np.bincount(event.hit_particle[event.hit_particle != NOISE])[found.particle]
    piece = np.round(found.share * num_hits)
    can_match = (2 * piece > num_hits) & (piece >= min_hits)
    vertex = event.particles.vertex[found.particle]
    is_displaced = np.hypot(vertex[:, 0], vertex[:, 1]) > DISPLACED
    of_displaced = _ratio(int(can_match[is_displaced].sum()), int(is_displaced.sum()))
    return _ratio(int(can_match.sum()), len(can_match)), of_displaced


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
