"""Device side: which two directed edges of a symmetric graph join the same two hits.

The network computes once what both directions share. An edge j -> i with i <= j is the first of its
pair. Pairs keep the order of their first edges, so receivers stay sorted.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.graph.segment import put_rows


class EdgePairs(NamedTuple):
    """The pairs of hits that a symmetric graph joins; a self-loop is a pair of its own."""

    edge: Int32[Array, " pair"]
    """Index of the first edge; arbitrary where there is no pair."""
    mask: Bool[Array, " pair"]
    """True for real pairs."""
    pair: Int32[Array, " edge"]
    """The pair of each edge; arbitrary for padding."""


def edge_pairs(graph: EventGraph) -> EdgePairs:
    """The pairs of a symmetric graph with sorted receivers.

    The senders of a receiver may have any order. A graph is symmetric if each edge occurs once, and
    so does its reverse, with the same `count`. The pairs of any other graph have no meaning.
    """
    senders, receivers, mask = graph.senders, graph.receivers, graph.edges.mask
    # The most pairs of a symmetric graph: its self-loops, and half of its other edges.
    capacity = (len(mask) + len(graph.nodes.mask)) // 2
    is_first, is_second = mask & (receivers <= senders), mask & (receivers > senders)
    rank = jnp.cumsum(is_first, dtype=jnp.int32) - 1
    edge = put_rows(
        jnp.full(capacity, len(mask) - 1, jnp.int32),
        jnp.arange(len(mask), dtype=jnp.int32),
        jnp.where(is_first, rank, capacity),
    )
    num_pairs = is_first.sum(dtype=jnp.int32)
    pair_mask = jnp.arange(capacity, dtype=jnp.int32) < num_pairs
    low, high = receivers[edge], senders[edge]
    has_second = pair_mask & (low != high)
    pair = jnp.where(is_second, _look_up(low, high, has_second, senders, receivers), rank)
    return EdgePairs(edge, pair_mask, pair)


def graph_of_pairs(graph: EventGraph, pairs: EdgePairs) -> EventGraph:
    """The graph with only the first edge of each pair, padded to the capacity for pairs."""
    edges = jax.tree.map(lambda array: array[pairs.edge], graph.edges)
    padding_hit = len(graph.nodes.mask) - 1
    num_pairs = pairs.mask.sum(dtype=jnp.int32)
    return graph._replace(
        n_edge=jnp.stack([num_pairs, len(pairs.mask) - num_pairs]),
        edges=edges._replace(mask=pairs.mask),
        senders=jnp.where(pairs.mask, graph.senders[pairs.edge], padding_hit),
        receivers=jnp.where(pairs.mask, graph.receivers[pairs.edge], padding_hit),
    )


def _look_up(
    low: Int[Array, " pair"],
    high: Int[Array, " pair"],
    is_sought: Bool[Array, " pair"],
    senders: Int[Array, " edge"],
    receivers: Int[Array, " edge"],
) -> Int32[Array, " edge"]:
    """For each edge, the pair with (low, high) = (sender, receiver), or -1.

    A hash table needs no sort, which would take as long as a layer of the GNN. Where several pairs
    share a slot, one of them is written and found. The others get other slots in the next round.
    So each round finds at least one pair; 4 rounds suffice for 3e6 edges.
    """
    pairs = jnp.arange(len(low), dtype=jnp.int32)
    num_bits = (2 * len(low)).bit_length()

    def next_round(state):
        number, found, is_left = state
        slot = _hash(low, high, number, num_bits)
        table = jnp.zeros(2**num_bits, jnp.int32)
        table = put_rows(table, pairs, jnp.where(is_left, slot, len(table)))
        pair = table[_hash(senders, receivers, number, num_bits)]
        is_found = (low[pair] == senders) & (high[pair] == receivers)
        return number + 1, jnp.where(is_found, pair, found), is_left & (table[slot] != pairs)

    def is_unfinished(state):
        return state[2].any()

    nothing = jnp.full(len(senders), -1, jnp.int32)
    return jax.lax.while_loop(is_unfinished, next_round, (jnp.int32(0), nothing, is_sought))[1]


def _hash(
    low: Int[Array, " entry"], high: Int[Array, " entry"], number: Int[Array, ""], num_bits: int
) -> Int32[Array, " entry"]:
    """A hash of `num_bits` bits of each pair of hits, a different one in each round."""
    key = low.astype(jnp.uint32) * np.uint32(0x9E3779B1) + high.astype(jnp.uint32)
    key = (key + number.astype(jnp.uint32) * np.uint32(0x7FEB352D)) * np.uint32(0x85EBCA6B)
    key = (key ^ (key >> np.uint32(15))) * np.uint32(0x846CA68B)
    return (key >> np.uint32(32 - num_bits)).astype(jnp.int32)
