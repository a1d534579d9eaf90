"""Host side: how good the tracks, the edge scores and the candidate graph of one event are.

Every score is a plain number or None. None stands for a ratio over nothing, such as the efficiency
of an event without reconstructable particles. It says nothing about the method, so
`report.summarise` leaves it out of the mean and of n.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import ArrayLike

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import NOISE, Event

NO_CLUSTER = -1
"""The label of a hit that is in no cluster."""


class Matching(NamedTuple):
    """Which cluster found which particle.

    The clusters are numbered in the order of their labels. A cluster without a match has
    `particle` `NOISE` and shares nothing.
    """

    hit_cluster: Int64[np.ndarray, " hit"]
    """Cluster of each hit, or `NO_CLUSTER`."""
    particle: Int64[np.ndarray, " cluster"]
    """Matched particle of each cluster, or `NOISE`."""
    num_shared: Int64[np.ndarray, " cluster"]
    """Number of hits that the cluster and its particle share."""
    weight_shared: Float64[np.ndarray, " cluster"]
    """Weight of these hits."""
    cluster_size: Int64[np.ndarray, " cluster"]
    """Number of hits of each cluster."""
    particle_size: Int64[np.ndarray, " particle"]
    """Number of hits of each particle."""


class SharedHits(NamedTuple):
    """Every cluster and particle that share hits; the arrays `pair` are in the order of clusters.

    The clusters are numbered in the order of their labels.
    """

    hit_cluster: Int64[np.ndarray, " hit"]
    """Cluster of each hit, or `NO_CLUSTER`."""
    cluster: Int64[np.ndarray, " pair"]
    particle: Int64[np.ndarray, " pair"]
    num_shared: Int64[np.ndarray, " pair"]
    """Number of hits that both have."""
    weight_shared: Float64[np.ndarray, " pair"]
    """Weight of these hits."""
    cluster_size: Int64[np.ndarray, " cluster"]
    """Number of hits of each cluster."""
    particle_size: Int64[np.ndarray, " particle"]
    """Number of hits of each particle."""


class TrackScores(NamedTuple):
    """Scores of the tracks of one event."""

    num_particles: int
    """Reconstructable particles: those with at least `min_hits` hits."""
    num_clusters: int
    """Clusters found, of any size."""
    num_matched: int
    """Matches; each joins one cluster to one particle."""
    efficiency: float | None
    """Matched particles over reconstructable particles."""
    purity: float | None
    """Matched clusters over all clusters found."""
    dms: float | None
    """Double-majority score: weight of the matches' shared hits over that of the hits of all
    reconstructable particles."""
    trackml: float | None
    """Score of the TrackML challenge."""
    hit_efficiency: float | None
    """Mean over matches of the fraction of the particle's hits that are in the cluster."""
    hit_purity: float | None
    """Mean over matches of the fraction of the cluster's hits that are the particle's."""


class EdgeScores(NamedTuple):
    """How well a score separates true from false edges."""

    tpr: float | None
    """True edges above the threshold over all true edges."""
    fpr: float | None
    """False edges above the threshold over all false edges."""
    auc: float | None
    """Area under the ROC curve, whatever the threshold."""


class RocCurve(NamedTuple):
    """Points of a ROC curve, from (0, 0) to (1, 1)."""

    fpr: Float64[np.ndarray, " point"]
    """False positive rate, never falling."""
    tpr: Float64[np.ndarray, " point"]
    """True positive rate, never falling."""


class GraphScores(NamedTuple):
    """The candidate graph against the true adjacency of the event."""

    tpr: float | None
    """True edges among the candidates over all true edges."""
    fpr: float | None
    """False candidates over all ordered pairs of hits that are no true edge."""
    purity: float | None
    """True candidates over all candidates."""
    mean_degree: float | None
    """Candidates per hit."""


def track_scores(event: Event, hit_label: ArrayLike, min_hits: int = 4) -> TrackScores:
    """Scores the clusters of an event.

    Efficiency, purity and DMS rest on the double majority of `match_tracks`. A cluster below
    `min_hits` cannot match but was found, so it lowers the purity. To count such a cluster as
    noise, label its hits `NO_CLUSTER`.

    `trackml` is `score_event` of the trackml-library (https://github.com/LAL/trackml-library; A.
    Amrouche et al., arXiv:1904.06778, section 3). It uses the same double majority, but for
    clusters and particles of any size, and divides by the weight of the whole event. There, every
    hit is in some track; here, hits without a cluster are in none and score nothing.

    Args:
      event: the event, with truth.
      hit_label: cluster of each hit, integers, [hit]; equal labels make a cluster, negative ones
        none.
      min_hits: fewest hits of a particle that should be found, and of a cluster that can match.

    Returns:
      The scores; a ratio over nothing is None.

    Raises:
      UserError: the event has no truth, or the labels are not one integer per hit.
    """
    matching = match_tracks(event, hit_label, min_hits)
    reconstructable = matching.particle_size >= min_hits
    matched = matching.particle != NOISE
    num_shared = matching.num_shared[matched]
    size_found = matching.cluster_size[matched]
    size_true = matching.particle_size[matching.particle[matched]]

    num_particles = int(reconstructable.sum())
    num_clusters = len(matching.particle)
    num_matched = int(matched.sum())
    weight_of_particle = np.bincount(
        event.hit_particle[event.hit_particle != NOISE],
        event.hit_weight[event.hit_particle != NOISE],
        minlength=len(reconstructable),
    )
    weight_of_any_size = match_tracks(event, hit_label, min_hits=1).weight_shared.sum()
    return TrackScores(
        num_particles=num_particles,
        num_clusters=num_clusters,
        num_matched=num_matched,
        efficiency=_ratio(num_matched, num_particles),
        purity=_ratio(num_matched, num_clusters),
        dms=_ratio(matching.weight_shared.sum(), weight_of_particle[reconstructable].sum()),
        trackml=_ratio(weight_of_any_size, event.hit_weight.sum()),
        hit_efficiency=_ratio((num_shared / size_true).sum(), num_matched),
        hit_purity=_ratio((num_shared / size_found).sum(), num_matched),
    )


def match_tracks(event: Event, hit_label: ArrayLike, min_hits: int = 4) -> Matching:
    """Matches clusters to particles by double majority.

    A cluster and a particle, each of at least `min_hits` hits, match when they share more than half
    of the cluster's hits and more than half of the particle's hits. Exactly half is not
    enough, so a cluster matches at most one particle and a particle at most one cluster.

    Args:
      event: the event, with truth.
      hit_label: as in `track_scores`.
      min_hits: fewest hits of a cluster or particle that can match.

    Returns:
      The matching.

    Raises:
      UserError: the event has no truth, or the labels are not one integer per hit.
    """
    shared = shared_hits(event, hit_label)
    cluster, particle = shared.cluster, shared.particle
    num_shared, weight_shared = shared.num_shared, shared.weight_shared
    cluster_size, particle_size = shared.cluster_size, shared.particle_size
    is_match = (
        (2 * num_shared > cluster_size[cluster])
        & (2 * num_shared > particle_size[particle])
        & (cluster_size[cluster] >= min_hits)
        & (particle_size[particle] >= min_hits)
    )
    matched = cluster[is_match]
    matching = Matching(
        hit_cluster=shared.hit_cluster,
        particle=np.full(len(cluster_size), NOISE, np.int64),
        num_shared=np.zeros(len(cluster_size), np.int64),
        weight_shared=np.zeros(len(cluster_size), np.float64),
        cluster_size=cluster_size,
        particle_size=particle_size,
    )
    matching.particle[matched] = particle[is_match]
    matching.num_shared[matched] = num_shared[is_match]
    matching.weight_shared[matched] = weight_shared[is_match]
    return matching


def shared_hits(event: Event, hit_label: ArrayLike) -> SharedHits:
    """Counts the hits that each cluster shares with each particle.

    Args:
      event: the event, with truth.
      hit_label: as in `track_scores`.

    Raises:
      UserError: the event has no truth, or the labels are not one integer per hit.
    """
    given = _checked_labels(event, hit_label)
    hit_cluster = np.full(len(given), NO_CLUSTER, np.int64)
    in_cluster = given >= 0
    _, hit_cluster[in_cluster] = np.unique(given[in_cluster], return_inverse=True)
    in_particle = event.hit_particle != NOISE
    num_particles = len(event.particles.particle_id)
    both = in_cluster & in_particle
    # The (cluster, particle) table is nearly empty, so only pairs that share a hit are listed.
    pair, pair_of_hit, num_shared = np.unique(
        hit_cluster[both] * num_particles + event.hit_particle[both],
        return_inverse=True,
        return_counts=True,
    )
    cluster, particle = np.divmod(pair, num_particles)
    return SharedHits(
        hit_cluster=hit_cluster,
        cluster=cluster,
        particle=particle,
        num_shared=num_shared,
        weight_shared=np.bincount(pair_of_hit, event.hit_weight[both], minlength=len(pair)),
        cluster_size=np.bincount(hit_cluster[in_cluster]),
        particle_size=np.bincount(event.hit_particle[in_particle], minlength=num_particles),
    )


def particle_matched(matching: Matching) -> Bool[np.ndarray, " particle"]:
    """Whether each particle was found: True where a cluster matches it.

    Particles below the `min_hits` of the matching are never found; leave them out of the
    denominator of an efficiency.
    """
    is_matched = np.zeros(len(matching.particle_size), bool)
    is_matched[matching.particle[matching.particle != NOISE]] = True
    return is_matched


def edge_scores(
    label: Bool[np.ndarray, " edge"],
    score: Float[np.ndarray, " edge"],
    threshold: float,
    mask: Bool[np.ndarray, " edge"] | None = None,
) -> EdgeScores:
    """Scores an edge classifier.

    Args:
      label: True for a true edge.
      score: higher for an edge that is more likely true.
      threshold: an edge is called true when its score is above it.
      mask: True for the edges to count; all when None.

    Returns:
      The scores; a rate over no edge is None.

    Raises:
      UserError: a score is NaN.
    """
    if mask is not None:
        label, score = label[mask], score[mask]
    called_true = score > threshold
    return EdgeScores(
        tpr=_ratio(np.count_nonzero(called_true & label), np.count_nonzero(label)),
        fpr=_ratio(np.count_nonzero(called_true & ~label), np.count_nonzero(~label)),
        auc=auc(label, score),
    )


def auc(label: Bool[np.ndarray, " edge"], score: Float[np.ndarray, " edge"]) -> float | None:
    """Area under the ROC curve, exact.

    The probability that a true edge scores above a false one, a tie counting one half: the
    Mann-Whitney U statistic over the number of pairs (Hanley and McNeil, Radiology 143 (1982) 29).

    Args:
      label: True for a true edge.
      score: higher for an edge that is more likely true.

    Returns:
      The area, or None when all edges are true or all false.

    Raises:
      UserError: a score is NaN.
    """
    num_true, num_false = _cumulative_counts(label, score)
    # Twice the area of the trapezia is a whole number, so only the division rounds.
    twice_area = np.sum(np.diff(num_false) * (num_true[1:] + num_true[:-1]))
    return _ratio(twice_area, 2 * num_true[-1] * num_false[-1])


def roc_curve(
    label: Bool[np.ndarray, " edge"], score: Float[np.ndarray, " edge"], num_points: int = 1000
) -> RocCurve:
    """ROC curve, thinned to at most `num_points` of its own points.

    The points are evenly spaced in fpr + tpr. So the steep part of a good classifier's curve keeps
    as many points as the flat part.

    Args:
      label: True for a true edge.
      score: higher for an edge that is more likely true.
      num_points: largest number of points, at least 2.

    Returns:
      The curve, its end points included.

    Raises:
      UserError: a score is NaN, or all edges are true or all false.
    """
    num_true, num_false = _cumulative_counts(label, score)
    if num_true[-1] == 0 or num_false[-1] == 0:
        raise UserError(
            f"a ROC curve needs true and false edges, but there are {num_true[-1]} true and "
            f"{num_false[-1]} false ones; take an event or a graph that has both."
        )
    tpr, fpr = num_true / num_true[-1], num_false / num_false[-1]
    kept = np.unique(np.searchsorted(tpr + fpr, np.linspace(0.0, 2.0, num_points)))
    return RocCurve(fpr=fpr[kept], tpr=tpr[kept])


def graph_scores(
    num_hits: int, num_truth_edges: int, label: Bool[np.ndarray, " edge"]
) -> GraphScores:
    """Scores a candidate graph from the labels of its edges; needs no adjacency matrix.

    Args:
      num_hits: number of hits of the event.
      num_truth_edges: number of directed true edges of the event, self-loops included where
        `label` has them.
      label: True for a candidate edge that is a true edge; directed edges, each once.

    Returns:
      The scores; a ratio over nothing is None.
    """
    num_true = np.count_nonzero(label)
    num_false = len(label) - num_true
    return GraphScores(
        tpr=_ratio(num_true, num_truth_edges),
        fpr=_ratio(num_false, num_hits**2 - num_truth_edges),
        purity=_ratio(num_true, len(label)),
        mean_degree=_ratio(len(label), num_hits),
    )


def _ratio(
    numerator: int | float | np.number, denominator: int | float | np.number
) -> float | None:
    """The quotient, or None over nothing."""
    return float(numerator / denominator) if denominator else None


def _checked_labels(event: Event, hit_label: ArrayLike) -> Int64[np.ndarray, " hit"]:
    """The labels as an array, where there is truth to compare them with."""
    if not event.has_truth:
        raise UserError(f"event {event.event_id} has no truth; leave out its scores and figures.")
    num_hits = len(event.hit_particle)
    if isinstance(hit_label, np.ma.MaskedArray):
        raise UserError(
            f"the labels of event {event.event_id} are a masked array, whose mask would be lost; "
            "give hits without a cluster the label -1."
        )
    label = np.asarray(hit_label)
    if label.ndim != 1 or label.dtype.kind not in "iu":
        raise UserError(
            f"the labels of event {event.event_id} have shape {label.shape} and type "
            f"{label.dtype}; expected an integer for each hit, shape ({num_hits},)."
        )
    if len(label) != num_hits:
        raise UserError(
            f"event {event.event_id} has {num_hits} hits but {len(label)} labels; give one label "
            "per hit, without padding."
        )
    return label.astype(np.int64)


def _cumulative_counts(
    label: Bool[np.ndarray, " edge"], score: Float[np.ndarray, " edge"]
) -> tuple[Int64[np.ndarray, " point"], Int64[np.ndarray, " point"]]:
    """Numbers of true and of false edges at or above each distinct score.

    Returns:
      Two arrays that begin with 0, for a threshold above all scores, and end with the totals.
    """
    num_nan = np.count_nonzero(np.isnan(score))
    if num_nan:
        raise UserError(
            f"{num_nan} of {len(score)} edge scores are NaN; the network that gave them has "
            "diverged: go back to an earlier checkpoint or train with a lower learning rate."
        )
    order = np.argsort(score)[::-1]
    falling = score[order]
    # One point for each run of equal scores, which have no order among themselves.
    ends_run = np.append(falling[:-1] != falling[1:], True) if len(falling) else np.zeros(0, bool)
    num_true = np.cumsum(label[order], dtype=np.int64)[ends_run]
    num_edges = np.arange(1, len(score) + 1)[ends_run]
    return np.append(0, num_true), np.append(0, num_edges - num_true)
