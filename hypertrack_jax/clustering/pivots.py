"""Device side: seeds, and walks from them to pivots (algorithm section 5, step 2), many at once.

The published search goes through the components one after another and draws two seeds in each. Here
every hit holds a rank, and each active hit whose rank is the highest around it is a seed: one per
track where tracks are cliques of the graph, several far apart in a large component (this is a
step of Luby's independent set, SIAM J. Comput. 15 (1986) 1036). Of walks that share a hit, the one
with the largest score is kept, as of the two published draws.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from hypertrack_jax.clustering.neighbors import Neighbors, at_hits, largest_around
from hypertrack_jax.graph.segment import put_rows, segment_max
from hypertrack_jax.tunes.tune import ClusterTune

MIN_DOUBT = 1e-3
"""Added to 1 - p in the score of a walk, so that one certain edge does not outweigh all others."""


class Walks(NamedTuple):
    """One walk per seed."""

    pivot: Int32[Array, "seed pivot"]
    """Hits of the walk, the seed first; the number of hits where the walk is shorter."""
    length: Int32[Array, " seed"]
    """Number of hits; 0 where there is no seed."""
    score: Float[Array, " seed"]
    """Sum of log(p / (1 - p + 1e-3)) over its edges."""


def seed_ranks(
    strategy: str, position: Float[Array, "hit 3"], key: PRNGKeyArray
) -> Int32[Array, " hit"]:
    """A rank for every hit; of two neighbours the higher one is the seed, of equal ones both.

    Args:
      strategy: `random`, or `largest` / `smallest`, `_3d` or `_transverse`: by distance from the
        origin or from the beam line.
      position: hit positions in mm.
      key: for `random`, and for the order of hits at one distance.

    Returns:
      The ranks, from 0. At random there are 2^31 of them, so that hardly two of an event are the
      same, and a hit's does not depend on how many others there are; by distance all are different.
    """
    num_hits = len(position)
    lottery = (jax.random.bits(key, (num_hits,), jnp.uint32) >> 1).astype(jnp.int32)
    if strategy == "random":
        return lottery
    direction, dimension = strategy.split("_")
    columns = position if dimension == "3d" else position[:, :2]
    distance = jnp.square(columns).sum(axis=1)
    by_distance = jnp.lexsort((lottery, distance if direction == "largest" else -distance))
    return jnp.argsort(by_distance).astype(jnp.int32)


def choose_seeds(
    rank: Int32[Array, "draw hit"],
    active: Bool[Array, " hit"],
    neighbors: Neighbors,
    num_seeds: int,
    hops: int,
) -> Int32[Array, "draw seed"]:
    """Active hits that no active hit within `hops` steps outranks, in the order of the hits.

    Returns:
      Their indices in each draw, at most `num_seeds`; the number of hits fills the rest. Seeds that
      find no place come in a later round.
    """
    is_active = active[:, None]
    own = jnp.where(is_active, rank.T, -1)
    highest = own
    for _ in range(hops):
        higher = jnp.maximum(highest, largest_around(highest, neighbors.hit))
        highest = jnp.where(is_active, higher, -1)
    is_seed = is_active & (highest == own)
    number = jnp.cumsum(is_seed.T, axis=1, dtype=jnp.int32)
    wanted = jnp.arange(1, num_seeds + 1, dtype=jnp.int32)
    return jax.vmap(lambda of_draw: jnp.searchsorted(of_draw, wanted))(number).astype(jnp.int32)


def walk(
    seed: Int32[Array, " seed"],
    active: Bool[Array, " hit"],
    neighbors: Neighbors,
    tune: ClusterTune,
    key: PRNGKeyArray,
) -> Walks:
    """Walks over active hits from every seed to `tune.num_pivots` hits.

    With `random_paths` = 1 a step goes along the strongest edge to a hit not yet visited; else the
    best of so many Monte-Carlo walks is kept, whose steps are drawn in proportion to p. A walk
    stops where no edge is above `tune.pivot_threshold`.
    """
    if tune.random_paths == 1:
        return _one_walk(seed, active, neighbors, tune, None)
    keys = jax.random.split(key, tune.random_paths)
    paths = [_one_walk(seed, active, neighbors, tune, one) for one in keys]
    # A longer walk beats a shorter one, whatever their scores.
    value = jnp.stack([path.score + 1e3 * path.length.astype(path.score.dtype) for path in paths])
    best = jnp.argmax(value, axis=0)
    place = jnp.arange(len(seed))
    return jax.tree.map(lambda *each: jnp.stack(each)[best, place], *paths)


def best_walks(walks: Walks, neighbors: Neighbors) -> Bool[Array, " seed"]:
    """True for complete walks with the largest score of all that visit their hits or neighbours."""
    num_hits, num_pivots = len(neighbors.hit), walks.pivot.shape[1]
    is_complete = walks.length == num_pivots
    # Ranks instead of scores, because no two ranks are equal.
    rank = ranks_of(walks.score)
    visited = jnp.where(is_complete[:, None], walks.pivot, num_hits).reshape(-1)
    best = segment_max(jnp.repeat(rank, num_pivots), visited, num_hits, sorted_ids=False)
    around = jnp.maximum(best, largest_around(best, neighbors.hit))
    return is_complete & (at_hits(around, walks.pivot, -1) <= rank[:, None]).all(axis=1)


def ranks_of(value: Float[Array, " row"]) -> Int32[Array, " row"]:
    """The place of each value in rising order; of equal ones the first comes first."""
    place = jnp.arange(len(value), dtype=jnp.int32)
    return put_rows(place, place, jnp.argsort(value))


def _one_walk(
    seed: Int32[Array, " seed"],
    active: Bool[Array, " hit"],
    neighbors: Neighbors,
    tune: ClusterTune,
    key: PRNGKeyArray | None,
) -> Walks:
    num_hits = len(active)
    pivots, score = [seed], jnp.zeros(len(seed), neighbors.probability.dtype)
    for step in range(tune.num_pivots - 1):
        step_key = None if key is None else jax.random.fold_in(key, step)
        following, p = _next_hits(pivots, active, neighbors, tune.pivot_threshold, step_key)
        pivots.append(following)
        score += jnp.where(following < num_hits, jnp.log(p / (1 - p + MIN_DOUBT)), 0)
    pivot = jnp.stack(pivots, axis=1)
    return Walks(pivot, (pivot < num_hits).sum(axis=1, dtype=jnp.int32), score)


def _next_hits(
    pivots: list[Int32[Array, " seed"]],
    active: Bool[Array, " hit"],
    neighbors: Neighbors,
    threshold: float,
    key: PRNGKeyArray | None,
) -> tuple[Int32[Array, " seed"], Float[Array, " seed"]]:
    """The next hit of each walk and the probability of the step; no hit where it ends."""
    num_hits = len(active)
    candidate = at_hits(neighbors.hit, pivots[-1], num_hits)
    p = at_hits(neighbors.probability, pivots[-1], 0)
    is_open = at_hits(active, candidate, False) & (p > threshold)
    for visited in pivots:
        is_open &= candidate != visited[:, None]
    # The largest of log p + Gumbel noise is a draw in proportion to p.
    strength = p if key is None else jnp.log(p) + jax.random.gumbel(key, p.shape, p.dtype)
    strongest = jnp.argmax(jnp.where(is_open, strength, -jnp.inf), axis=1)
    place = jnp.arange(len(candidate))
    can_go = is_open.any(axis=1)
    following = jnp.where(can_go, candidate[place, strongest], num_hits)
    return following, jnp.where(can_go, p[place, strongest], 0.5)
