"""Host side: how good the tracks of one event are.

Every score is a plain number or None. None stands for a ratio over nothing, such as the efficiency
of an event without reconstructable particles. It says nothing about the method, so
`report.summarise` leaves it out of the mean and of n.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
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
        efficiency=ratio(num_matched, num_particles),
        purity=ratio(num_matched, num_clusters),
        dms=ratio(matching.weight_shared.sum(), weight_of_particle[reconstructable].sum()),
        trackml=ratio(weight_of_any_size, event.hit_weight.sum()),
        hit_efficiency=ratio((num_shared / size_true).sum(), num_matched),
        hit_purity=ratio((num_shared / size_found).sum(), num_matched),
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


def ratio(numerator: int | float | np.number, denominator: int | float | np.number) -> float | None:
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
