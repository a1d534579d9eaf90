"""Host side: clusterers and edge thresholds compared on the same scored edges."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.evaluation.compiled_time import compiled_seconds
from hypertrack_jax.evaluation.metrics import track_scores
from hypertrack_jax.evaluation.tables import markdown_table, mean_and_spread
from hypertrack_jax.events.event import Event
from hypertrack_jax.reconstruction.reconstructor import Progress, Reconstructor

SCORES = ("dms", "efficiency", "purity", "trackml", "hit_efficiency", "hit_purity")
"""Fields of `TrackScores` that are compared."""


class ClusterScore(NamedTuple):
    """How well one method did on one event."""

    event_id: int
    method: str
    edge_threshold: float
    scores: dict[str, float | None]
    """By the names in `SCORES`; None where there is nothing to divide by."""
    seconds: float
    """Wall time of the clustering with the components, without compilation."""


def compare_clusterers(
    model: Reconstructor,
    events: Iterable[Event],
    methods: Sequence[str],
    thresholds: Sequence[float],
) -> Iterator[ClusterScore]:
    """Clusters every event by every method at every edge threshold; the edges are scored once.

    Args:
      model: the trained model.
      events: events with truth.
      methods: choices of `ClusterTune.cluster`.
      thresholds: edge thresholds.

    Raises:
      ImportError: a method needs scikit-learn, which is missing.
    """
    for event in events:
        scored = model.run_to("GNN", model.begin(event))
        for method in methods:
            for threshold in thresholds:
                cluster = replace(model.tune.cluster, cluster=method, edge_threshold=threshold)
                chosen = model.with_cluster(cluster)
                tracks, seconds = compiled_seconds(partial(_clustered, chosen, scored))
                found = track_scores(event, tracks.hit_label, cluster.min_hits)
                values = {name: getattr(found, name) for name in SCORES}
                yield ClusterScore(event.event_id, method, threshold, values, seconds)


def comparison_table(results: Sequence[ClusterScore]) -> str:
    """Mean and standard deviation over events, a row per method and threshold, in Markdown."""
    keys = list(dict.fromkeys((one.method, one.edge_threshold) for one in results))
    names = {"dms": "DMS", "trackml": "TrackML"}
    titles = [names.get(name, name.replace("_", " ")) for name in SCORES]
    lines = []
    for method, threshold in keys:
        rows = [one for one in results if (one.method, one.edge_threshold) == (method, threshold)]
        cells = [mean_and_spread([one.scores[name] for one in rows], 3) for name in SCORES]
        milliseconds = mean_and_spread([1e3 * one.seconds for one in rows], 1)
        lines.append([method, f"{threshold:g}", *cells, milliseconds])
    return markdown_table(["clusterer", "edge threshold", *titles, "ms"], lines)


def _clustered(model: Reconstructor, scored: Progress) -> Tracks:
    return model.tracks(model.run_to("cluster", scored))
