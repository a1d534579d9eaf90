"""Device side: the search for clusters (algorithm section 5), round by round, many at once.

A round draws seeds all over the event, walks from each, gathers micrographs, asks the membership of
all of them in one batch and takes what passes. The rounds go on until no hit is left that a walk
can start from. The published program searches one component after another, one cluster at a time.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from hypertrack_jax.clustering.micrographs import (
    Micrographs,
    component_micrographs,
    spanned_micrographs,
)
from hypertrack_jax.clustering.neighbors import Neighbors, at_hits
from hypertrack_jax.clustering.pivots import best_walks, choose_seeds, ranks_of, seed_ranks, walk
from hypertrack_jax.graph.segment import put_rows, segment_max, segment_sum
from hypertrack_jax.tunes.tune import ClusterTune

FULL_EVENT = 100_000
"""Hits of an event at pile-up 200, about."""


class SearchSizes(NamedTuple):
    """Capacities of the search; static, so each set of them is a compilation."""

    num_slots: int = 32
    """Hits of a micrograph."""
    num_rounds: int = 100
    """Rounds at most."""
    num_seeds: int = 64
    """Walks of a draw, and micrographs of a round; more wait for the next round."""
    num_micrographs: int = 0
    """Micrographs that are handed out, for training; further ones are left out."""


class SearchHits(NamedTuple):
    """What the search knows of the hits of an event."""

    position: Float[Array, "hit 3"]
    """x, y, z in mm."""
    component: Int32[Array, " hit"]
    """Connected component by the kept edges, a label below the number of hits."""
    is_open: Bool[Array, " hit"]
    """True for hits that may enter a cluster: not padding, and in a component of enough hits."""


class Members(NamedTuple):
    """What a membership function says of micrographs."""

    probability: Float[Array, "seed slot"]
    """Probability of each hit to belong to the track of the pivots."""
    is_chosen: Bool[Array, "seed slot"]
    """True where it passes the threshold; False in empty slots."""


class FoundClusters(NamedTuple):
    """What the search found, and whether its capacities were enough."""

    label: Int32[Array, " hit"]
    """Cluster of each hit, in the order in which they were found; -1 for none."""
    membership: Float[Array, " hit"]
    """Membership probability of each hit in its cluster; 0 for none."""
    num_clusters: Int32[Array, ""]
    micrographs: Micrographs
    """The first `num_micrographs` that were asked for, with empty ones behind."""
    num_micrographs: Int32[Array, ""]
    """How many were asked for in all."""
    needed_slots: Int32[Array, ""]
    """Size of the largest micrograph; hits were left out where it is above the capacity."""
    is_unfinished: Bool[Array, ""]
    """True where the rounds ended before the search did."""


Membership = Callable[[Micrographs], Members]


class _State(NamedTuple):
    round: Int32[Array, ""]
    active: Bool[Array, " hit"]
    failures: Int32[Array, " hit"]
    found: FoundClusters


def search_clusters(
    hits: SearchHits,
    neighbors: Neighbors,
    membership: Membership,
    tune: ClusterTune,
    sizes: SearchSizes,
    key: PRNGKeyArray,
) -> FoundClusters:
    """Finds clusters until no walk can start any more.

    Args:
      hits: the hits.
      neighbors: their kept edges, in rows; rows too short for them end the search before it begins.
      membership: from micrographs to members; asked once per round.
      tune: how seeds, walks and micrographs are made, and what passes.
      sizes: capacities.
      key: decides random seeds and Monte-Carlo walks: same key, same clusters.

    Returns:
      The clusters. If `needed_slots` exceeds its capacity, which ends the search, or the search is
      unfinished, the caller runs again with larger sizes.
    """

    def next_round(state: _State) -> _State:
        round_key = jax.random.fold_in(key, state.round)
        return _one_round(state, hits, neighbors, membership, tune, sizes, round_key)

    is_short = (neighbors.degree > neighbors.hit.shape[1]).any()

    def is_lost(found: FoundClusters) -> Bool[Array, ""]:
        return is_short | (found.needed_slots > sizes.num_slots)

    def goes_on(state: _State) -> Bool[Array, ""]:
        return state.active.any() & (state.round < sizes.num_rounds) & ~is_lost(state.found)

    num_hits = len(hits.is_open)
    start = _State(
        round=jnp.int32(0),
        active=_with_neighbors(hits.is_open, neighbors),
        failures=jnp.zeros(num_hits, jnp.int32),
        found=_nothing_found(num_hits, neighbors, tune, sizes),
    )
    end = lax.while_loop(goes_on, next_round, start)
    return end.found._replace(is_unfinished=end.active.any() & ~is_lost(end.found))


def open_hits(
    component: Int32[Array, " hit"], hit_mask: Bool[Array, " hit"], min_hits: int
) -> Bool[Array, " hit"]:
    """True for real hits in components of at least `min_hits`; the others are noise."""
    size = segment_sum(hit_mask.astype(jnp.int32), component, len(component), sorted_ids=False)
    return hit_mask & (size[component] >= min_hits)


def with_left_over(found: FoundClusters, neighbors: Neighbors) -> FoundClusters:
    """Gives each hit without a cluster to that of its surest neighbour in one, if it has any.

    One step and no more: a hit that joins brings no other. *Deviation*: the published program
    leaves these hits alone.

    Args:
      found: the clusters.
      neighbors: the kept edges.

    Returns:
      The clusters; the membership of a hit that joined is the probability of its edge.
    """
    label = at_hits(found.label, neighbors.hit, -1)
    probability = jnp.where(label >= 0, neighbors.probability, 0)
    surest = jnp.argmax(probability, axis=1)[:, None]
    # Where no neighbour is in a cluster, all of these are -1 and 0.
    label, probability = (
        jnp.take_along_axis(rows, surest, axis=1)[:, 0] for rows in (label, probability)
    )
    is_left = found.label < 0
    label = jnp.where(is_left, label, found.label)
    membership = jnp.where(is_left, probability.astype(found.membership.dtype), found.membership)
    return found._replace(label=label, membership=membership)


def only_tracks(
    found: FoundClusters, min_hits: int, min_score: Float[Array, ""] | float | None
) -> FoundClusters:
    """Drops clusters that have too few hits or too small a score, see `score`.

    Args:
      found: the clusters.
      min_hits: smallest cluster that counts as a track.
      min_score: smallest score of a track, see `score_needed`; None: any.

    Returns:
      The others, under the labels that they had.
    """
    # There are no more clusters than hits.
    num_hits, is_found = len(found.label), found.label >= 0
    size = segment_sum(is_found.astype(jnp.int32), found.label, num_hits, sorted_ids=False)
    is_track = size >= min_hits
    if min_score is not None:
        worth = segment_sum(score(found.membership), found.label, num_hits, sorted_ids=False)
        is_track &= worth >= min_score
    is_kept = is_found & is_track[found.label]
    return found._replace(
        label=jnp.where(is_kept, found.label, -1),
        membership=jnp.where(is_kept, found.membership, 0),
        num_clusters=is_track.sum(dtype=jnp.int32),
    )


def score_needed(min_score: float, num_hits: Int32[Array, ""]) -> Float[Array, ""]:
    """The smallest score of a track in an event of so many hits.

    Chance makes more false tracks where hits are many, so `min_score` holds from `FULL_EVENT` hits
    on, and below them a part of it in proportion.
    """
    return min_score * jnp.minimum(num_hits / FULL_EVENT, 1.0)


def score(probability: Float[Array, "*hit"]) -> Float[Array, "*hit"]:
    """What each hit adds to the score of its cluster: 2 p - 1.

    Their sum is the expected number of right hits minus that of wrong ones.
    """
    return 2 * probability - 1


def settle(
    micrographs: Micrographs, members: Members, is_candidate: Bool[Array, " seed"], num_hits: int
) -> Bool[Array, "seed slot"]:
    """Gives each hit that several clusters of a round claim to one of them.

    It goes to the claimant with the largest score over its chosen hits, see `score`: of two finds
    of one track that is the more complete one, of a track and a pair of merged ones the surer.

    Returns:
      True for the chosen hits that a cluster keeps.
    """
    is_claimed = members.is_chosen & is_candidate[:, None]
    worth = jnp.where(is_claimed, score(members.probability), 0).sum(axis=1)
    # Ranks and not sums: no two are the same.
    rank = ranks_of(worth)[:, None]
    hit = jnp.where(is_claimed, micrographs.hit, num_hits)
    ranks = jnp.broadcast_to(rank, hit.shape)
    best = segment_max(ranks.reshape(-1), hit.reshape(-1), num_hits, sorted_ids=False)
    return is_claimed & (at_hits(best, hit, -1) == rank)


def walk_from(
    seed: Int32[Array, " draws_seed"],
    active: Bool[Array, " hit"],
    neighbors: Neighbors,
    tune: ClusterTune,
    num_seeds: int,
    key: PRNGKeyArray,
) -> tuple[Bool[Array, " seed"], Int32[Array, "seed pivot"], Bool[Array, " hit"]]:
    """Pivots of at most `num_seeds` of the best walks, and the hits of walks that came to an end.

    Returns:
      Which of the rows have pivots, the rows, and whether each hit is in a walk that is too short.
    """
    walks = walk(seed, active, neighbors, tune, key)
    is_best = best_walks(walks, neighbors)
    value, chosen = lax.top_k(jnp.where(is_best, walks.score, -jnp.inf), num_seeds)
    is_short = (walks.length > 0) & (walks.length < tune.num_pivots)
    return value > -jnp.inf, walks.pivot[chosen], _is_in(walks.pivot, is_short, len(active))


def _one_round(
    state: _State,
    hits: SearchHits,
    neighbors: Neighbors,
    membership: Membership,
    tune: ClusterTune,
    sizes: SearchSizes,
    key: PRNGKeyArray,
) -> _State:
    num_hits = len(state.active)
    seed_key, walk_key = jax.random.split(key)
    seed = _draw_seeds(hits, state.active, neighbors, tune, sizes.num_seeds, seed_key)
    is_asked, walked, fails = walk_from(
        seed, state.active, neighbors, tune, sizes.num_seeds, walk_key
    )
    micrographs = _micrographs(walked, is_asked, state.active, hits, neighbors, tune, sizes)
    members = membership(micrographs)
    num_chosen = members.is_chosen.sum(axis=1)
    is_candidate = is_asked & (num_chosen >= tune.min_hits)
    is_kept = settle(micrographs, members, is_candidate, num_hits)
    # What lost a hit is asked again without it. The best of all loses none: each round goes on.
    is_taken = is_candidate & (is_kept.sum(axis=1) == num_chosen)
    is_kept &= is_taken[:, None]

    fails |= _is_in(walked, is_asked & ~is_candidate, num_hits)
    failures = state.failures + fails.astype(jnp.int32)
    found = _add(state.found, micrographs, members, is_asked, is_taken, is_kept)
    active = state.active & (failures < tune.max_failures) & (found.label < 0)
    return _State(state.round + 1, _with_neighbors(active, neighbors), failures, found)


def _draw_seeds(
    hits: SearchHits,
    active: Bool[Array, " hit"],
    neighbors: Neighbors,
    tune: ClusterTune,
    num_seeds: int,
    key: PRNGKeyArray,
) -> Int32[Array, " seed"]:
    """Seeds of as many draws as the tune asks for, one behind the other."""
    rank = [
        seed_ranks(tune.seed_strategy, hits.position, one)
        for one in jax.random.split(key, tune.num_draws)
    ]
    seed = choose_seeds(jnp.stack(rank), active, neighbors, num_seeds, tune.seed_hops)
    return seed.reshape(-1)


def _micrographs(
    pivot: Int32[Array, "seed pivot"],
    is_asked: Bool[Array, " seed"],
    active: Bool[Array, " hit"],
    hits: SearchHits,
    neighbors: Neighbors,
    tune: ClusterTune,
    sizes: SearchSizes,
) -> Micrographs:
    pivot = jnp.where(is_asked[:, None], pivot, len(active))
    if tune.micrograph == "full":
        return component_micrographs(pivot, active, hits.component, sizes.num_slots)
    return spanned_micrographs(
        pivot,
        active,
        neighbors,
        sizes.num_slots,
        tune.micrograph_hops,
        tune.largest_micrograph,
    )


def _with_neighbors(active: Bool[Array, " hit"], neighbors: Neighbors) -> Bool[Array, " hit"]:
    """The active hits that a walk can leave; the others would only fail as often as they may."""
    return active & at_hits(active, neighbors.hit, False).any(axis=1)


def _is_in(
    hit: Int32[Array, "row pivot"], mask: Bool[Array, " row"], num_hits: int
) -> Bool[Array, " hit"]:
    """True for the hits that stand in one of the masked rows."""
    counted = jnp.where(mask[:, None], hit, num_hits).reshape(-1)
    number = jnp.ones(len(counted), jnp.int32)
    return segment_sum(number, counted, num_hits, sorted_ids=False) > 0


def _nothing_found(
    num_hits: int, neighbors: Neighbors, tune: ClusterTune, sizes: SearchSizes
) -> FoundClusters:
    def no_hits(width: int) -> Int32[Array, "seed width"]:
        return jnp.full((sizes.num_micrographs, width), num_hits, jnp.int32)

    return FoundClusters(
        label=jnp.full(num_hits, -1, jnp.int32),
        membership=jnp.zeros(num_hits, neighbors.probability.dtype),
        num_clusters=jnp.int32(0),
        micrographs=Micrographs(
            no_hits(sizes.num_slots),
            no_hits(tune.num_pivots),
            jnp.zeros(sizes.num_micrographs, jnp.int32),
        ),
        num_micrographs=jnp.int32(0),
        needed_slots=jnp.int32(0),
        is_unfinished=jnp.array(False),
    )


def _add(
    found: FoundClusters,
    micrographs: Micrographs,
    members: Members,
    is_asked: Bool[Array, " seed"],
    is_taken: Bool[Array, " seed"],
    is_kept: Bool[Array, "seed slot"],
) -> FoundClusters:
    """What was found, with a round's clusters and micrographs added."""
    num_hits = len(found.label)
    number = found.num_clusters + jnp.cumsum(is_taken, dtype=jnp.int32) - 1
    numbers = jnp.broadcast_to(number[:, None], is_kept.shape).reshape(-1)
    place = jnp.where(is_kept, micrographs.hit, num_hits).reshape(-1)
    probability = members.probability.astype(found.membership.dtype).reshape(-1)
    row = found.num_micrographs + jnp.cumsum(is_asked, dtype=jnp.int32) - 1
    row = jnp.where(is_asked, row, len(found.micrographs.size))
    return found._replace(
        label=put_rows(found.label, numbers, place),
        membership=put_rows(found.membership, probability, place),
        num_clusters=found.num_clusters + is_taken.sum(dtype=jnp.int32),
        micrographs=jax.tree.map(
            lambda rows, new: put_rows(rows, new, row), found.micrographs, micrographs
        ),
        num_micrographs=found.num_micrographs + is_asked.sum(dtype=jnp.int32),
        needed_slots=jnp.maximum(
            found.needed_slots,
            # A micrograph that does not fit counts some of its hits twice.
            jnp.minimum(jnp.where(is_asked, micrographs.size, 0).max(initial=0), num_hits),
        ),
    )
