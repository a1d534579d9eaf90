"""The pairs of edges against a dictionary of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.graph import edge_pairs as module
from hypertrack_jax.graph.edge_pairs import edge_pairs, graph_of_pairs
from hypertrack_jax.graph.event_graph import Bucket, EventGraph, hit_graph

NUM_HITS = 40
PAIRS = jax.jit(edge_pairs)


def symmetric_edges() -> list[tuple[int, int, int]]:
    """(sender, receiver, count), self-loops among them, in no order."""
    rng = np.random.default_rng(1)
    ends = np.unique(np.sort(rng.integers(0, NUM_HITS, (300, 2)), axis=1), axis=0)
    assert (ends[:, 0] == ends[:, 1]).any()
    edges = {(a, b, a + b) for a, b in ends} | {(b, a, a + b) for a, b in ends}
    return [tuple(edge) for edge in rng.permutation(sorted(edges)).tolist()]


def graph_of(edges, num_padding=0) -> EventGraph:
    senders, receivers, counts = np.array(sorted(edges, key=lambda edge: edge[1])).T
    position = np.ones((NUM_HITS, 3), np.float32)
    bucket = Bucket(NUM_HITS + 1 + num_padding, len(edges) + 2 * num_padding)
    return hit_graph(position, senders, receivers, counts, bucket=bucket)


def assert_pairs_are_right(graph, pairs):
    num_edges = int(graph.n_edge[0])
    ends = zip(graph.senders[:num_edges].tolist(), graph.receivers.tolist(), strict=False)
    place = {pair: edge for edge, pair in enumerate(ends)}
    first = sorted(e for (s, r), e in place.items() if r <= s)
    np.testing.assert_array_equal(np.asarray(pairs.edge)[np.asarray(pairs.mask)], first)
    for (s, r), e in place.items():
        assert pairs.edge[pairs.pair[e]] == place[max(s, r), min(s, r)]


@pytest.mark.parametrize("num_padding", [0, 70])
def test_pairs_are_those_of_a_dictionary(num_padding):
    graph = graph_of(symmetric_edges(), num_padding)
    assert_pairs_are_right(graph, PAIRS(graph))


def test_pairs_are_found_when_all_have_one_slot(monkeypatch):
    monkeypatch.setattr(module, "_hash", lambda low, high, number, num_bits: jnp.zeros_like(low))
    graph = graph_of(symmetric_edges(), 70)
    assert_pairs_are_right(graph, jax.jit(lambda graph: edge_pairs(graph))(graph))


def test_the_graph_of_pairs_has_its_padding_behind_sorted_receivers():
    graph = graph_of(symmetric_edges(), 70)
    half = graph_of_pairs(graph, PAIRS(graph))
    num_pairs, num_padding = half.n_edge
    assert num_pairs > NUM_HITS and num_padding > 0
    np.testing.assert_array_equal(half.edges.mask, np.arange(len(half.senders)) < num_pairs)
    assert np.all(np.diff(half.receivers) >= 0)
    assert np.all(half.senders[num_pairs:] == len(graph.nodes.mask) - 1)


def test_self_loops_alone_are_pairs_and_no_edges_are_none():
    loops = graph_of([(hit, hit, 1) for hit in range(NUM_HITS)])
    assert_pairs_are_right(loops, PAIRS(loops))
    nothing = np.zeros(0, np.int32)
    graph = hit_graph(np.ones((3, 3), np.float32), nothing, nothing, nothing)
    assert not PAIRS(graph).mask.any()
