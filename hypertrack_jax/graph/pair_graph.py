"""Device side: pairs of hits, each once, and the two directed edges that each of them makes."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from hypertrack_jax.graph.segment import put_rows, rank_in_segment, segment_sum


class HitPairs(NamedTuple):
    """Pairs of different hits, each once; entries behind the last pair are arbitrary."""

    one: Int32[Array, " pair"]
    """One hit of each pair, in ascending order."""
    other: Int32[Array, " pair"]
    count: Int32[Array, " pair"]
    """Entry of the C-matrix for the cells of both hits."""
    logit: Float[Array, " pair"]
    """Score of the pair."""
    number: Int32[Array, ""]
    """How many pairs there are; more than there is room for, if some were dropped."""


class PairGraph(NamedTuple):
    """The symmetric graph of some pairs, its edges sorted by receiver."""

    pairs: HitPairs
    senders: Int32[Array, " edge"]
    """Behind the last edge, both ends are the last place for hits."""
    receivers: Int32[Array, " edge"]
    pair: Int32[Array, " edge"]
    """The pair of each edge; arbitrary behind the last edge."""
    edge_to: Int32[Array, "2 pair"]
    """The edges of each pair: into `one` and into `other`."""
    start: Int32[Array, " hit"]
    """First edge into each hit."""
    degree: Int32[Array, " hit"]
    """Number of edges into each hit."""


def no_pairs(capacity: int) -> HitPairs:
    """No pairs, with room for `capacity`."""
    none = jnp.zeros(capacity, jnp.int32)
    return HitPairs(none, none, none, jnp.zeros(capacity), jnp.int32(0))


def pairs_appended(pairs: HitPairs, new: HitPairs, is_kept: Bool[Array, " new_pair"]) -> HitPairs:
    """The pairs, and behind them those of `new` that are kept, as far as there is room."""
    place = pairs.number + jnp.cumsum(is_kept, dtype=jnp.int32) - 1
    place = jnp.where(is_kept, place, len(pairs.one))
    number = pairs.number + is_kept.sum(dtype=jnp.int32)
    joined = [
        put_rows(array, added, place) for array, added in zip(pairs[:4], new[:4], strict=True)
    ]
    return HitPairs(*joined, number=number)


def pairs_kept(pairs: HitPairs, is_kept: Bool[Array, " pair"], capacity: int) -> HitPairs:
    """The pairs that are kept, in their order, in room for `capacity`."""
    is_pair = jnp.arange(len(pairs.one), dtype=jnp.int32) < pairs.number
    return pairs_appended(no_pairs(capacity), pairs, is_kept & is_pair)


def rows_kept(
    rows: Float[Array, "pair column"],
    pairs: HitPairs,
    is_kept: Bool[Array, " pair"],
    capacity: int,
) -> Float[Array, "kept column"]:
    """The rows of the pairs that `pairs_kept` keeps, in the same places; 0 behind them."""
    is_pair = jnp.arange(len(rows), dtype=jnp.int32) < pairs.number
    place = jnp.cumsum(is_kept & is_pair, dtype=jnp.int32) - 1
    place = jnp.where(is_kept & is_pair, place, capacity)
    return put_rows(jnp.zeros((capacity, rows.shape[1])), rows, place)


def pair_graph(pairs: HitPairs, num_hits: int) -> PairGraph:
    """Both directions of each pair.

    Args:
      pairs: the pairs.
      num_hits: number of places for hits; the last one is padding and in no pair.
    """
    capacity = len(pairs.one)
    pair = jnp.arange(capacity, dtype=jnp.int32)
    is_pair = pair < pairs.number
    one, other = (jnp.where(is_pair, hit, num_hits) for hit in (pairs.one, pairs.other))
    count_one = segment_sum(is_pair.astype(jnp.int32), one, num_hits)
    rank_other, count_other = rank_in_segment(other, num_hits)
    degree = count_one + count_other
    start = jnp.cumsum(degree) - degree
    first_pair = jnp.cumsum(count_one) - count_one
    near_one, near_other = (jnp.minimum(hit, num_hits - 1) for hit in (one, other))
    to_one = (start - first_pair)[near_one] + pair
    to_other = (start + count_one)[near_other] + rank_other
    edge_to = jnp.where(is_pair, jnp.stack([to_one, to_other]), 2 * capacity)

    def edges(empty, at_one, at_other):
        both = jnp.full(2 * capacity, empty, jnp.int32)
        return put_rows(put_rows(both, at_one, edge_to[0]), at_other, edge_to[1])

    last = num_hits - 1
    return PairGraph(
        pairs,
        senders=edges(last, pairs.other, pairs.one),
        receivers=edges(last, pairs.one, pairs.other),
        pair=edges(capacity - 1, pair, pair),
        edge_to=jnp.minimum(edge_to, 2 * capacity - 1),
        start=start,
        degree=degree,
    )
