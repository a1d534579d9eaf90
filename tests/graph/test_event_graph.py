"""Buckets, padding, order, masks and labels of an event's graph."""

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import pytest
from toy import helix_event
from toy_graph import candidate_edges

from hypertrack_jax.events.event import NOISE
from hypertrack_jax.graph.event_graph import (
    Bucket,
    bucket_for,
    event_graph,
    hit_graph,
    padded_graph,
)
from hypertrack_jax.graph.segment import segment_sum

EVENT = helix_event(0, 8)
EDGES = candidate_edges(EVENT, 0, 100)
NUM_HITS, NUM_EDGES = len(EVENT.position), len(EDGES[0])


@pytest.fixture(scope="module")
def graph():
    return event_graph(EVENT, *EDGES, node2node="hyper")


def test_buckets_have_room_and_climb_by_a_third_or_a_half():
    sizes = np.unique(np.geomspace(1, 3e8, 2000).astype(int))
    capacities = [bucket_for(1, int(size)).num_edges for size in sizes]
    assert all(capacity >= size for capacity, size in zip(capacities, sizes, strict=True))
    assert capacities == sorted(capacities)
    ladder = np.unique(capacities)
    ratios = ladder[1:] / ladder[:-1]
    assert set(ratios) == {1.5, 4 / 3}


def test_a_bucket_is_the_smallest_that_fits():
    ladder = [bucket_for(1, 0).num_edges]
    for _ in range(8):
        capacity = ladder[-1]
        assert bucket_for(1, capacity) == bucket_for(1, capacity - 1)
        ladder.append(bucket_for(1, capacity + 1).num_edges)
    assert np.all(np.diff(ladder) > 0)


@pytest.mark.parametrize("num_edges", [0, 5000, 1_000_000])
def test_nodes_leave_room_for_one_padding_node(num_edges):
    edge_capacity = bucket_for(0, num_edges).num_edges
    sizes = np.unique(np.geomspace(1, 4 * edge_capacity, 500).astype(int)).tolist()
    capacities = [bucket_for(size, num_edges).num_nodes for size in sizes]
    assert all(capacity > size for capacity, size in zip(capacities, sizes, strict=True))
    assert capacities == sorted(capacities)
    # A sixteenth of the edges takes in most events; with more hits none is wasted without end.
    for size, capacity in zip(sizes, capacities, strict=True):
        assert capacity <= max(edge_capacity // 16, 2 * (size + 1))
    for capacity in set(capacities):
        assert bucket_for(capacity - 1, num_edges).num_nodes == capacity
        assert bucket_for(capacity, num_edges).num_nodes > capacity


def test_the_real_part_is_the_event(graph):
    np.testing.assert_array_equal(graph.nodes.position[:NUM_HITS], EVENT.position)
    np.testing.assert_array_equal(graph.nodes.particle[:NUM_HITS], EVENT.hit_particle)
    np.testing.assert_allclose(graph.nodes.weight[:NUM_HITS], EVENT.hit_weight, rtol=1e-6)
    for found, given in zip(
        (graph.senders, graph.receivers, graph.edges.count), EDGES, strict=True
    ):
        np.testing.assert_array_equal(found[:NUM_EDGES], given)


def test_padding_holds_nothing(graph):
    assert np.all(graph.nodes.position[NUM_HITS:] == 0)
    assert np.all(graph.nodes.particle[NUM_HITS:] == NOISE)
    assert np.all(graph.nodes.weight[NUM_HITS:] == 0)
    assert not graph.edges.label[NUM_EDGES:].any()
    assert np.all(graph.edges.count[NUM_EDGES:] == 0)


def test_masks_are_those_of_jraph(graph):
    assert NUM_HITS < len(graph.nodes.mask)
    assert NUM_EDGES < len(graph.edges.mask)
    np.testing.assert_array_equal(graph.nodes.mask, jraph.get_node_padding_mask(graph))
    np.testing.assert_array_equal(graph.edges.mask, jraph.get_edge_padding_mask(graph))
    np.testing.assert_array_equal(jraph.get_graph_padding_mask(graph), [True, False])
    assert graph.edges.mask.sum() == NUM_EDGES
    assert graph.nodes.mask.sum() == NUM_HITS


def test_jraph_unpads_to_the_event(graph):
    event = jraph.unpad_with_graphs(graph)
    assert event.n_node.tolist() == [NUM_HITS]
    assert event.n_edge.tolist() == [NUM_EDGES]
    np.testing.assert_array_equal(event.nodes.position, EVENT.position)
    np.testing.assert_array_equal(event.senders, EDGES[0])
    assert event.nodes.mask.all()
    assert event.edges.mask.all()


def test_on_the_device_the_same_graph_is_made():
    """Whatever stands behind the hits and the edges."""
    bucket = Bucket(NUM_HITS + 9, NUM_EDGES + 30)
    expected = hit_graph(EVENT.position, *EDGES[:3], bucket=bucket)
    position = np.pad(EVENT.position, ((0, 9), (0, 0)), constant_values=7)
    edges = [np.pad(part, (0, 30), constant_values=3).astype(np.int32) for part in EDGES[:3]]
    found = jax.jit(padded_graph)(position, NUM_HITS, *edges, NUM_EDGES)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert jax.tree.map(lambda a: a.dtype, found) == jax.tree.map(lambda a: a.dtype, expected)


@pytest.mark.parametrize("bucket", [None, Bucket(NUM_HITS + 1, NUM_EDGES + 10)])
def test_receivers_stay_sorted_and_no_padding_edge_touches_a_hit(bucket):
    graph = hit_graph(EVENT.position, *EDGES[:3], bucket=bucket)
    assert np.all(np.diff(graph.receivers) >= 0)
    padding = ~graph.edges.mask
    assert padding.any()
    assert not graph.nodes.mask[graph.senders[padding]].any()
    assert not graph.nodes.mask[graph.receivers[padding]].any()


@pytest.mark.parametrize("node2node", ["hyper", "eom"])
def test_labels_follow_the_topology(node2node):
    graph = event_graph(EVENT, *EDGES, node2node=node2node)
    particle = EVENT.hit_particle
    is_same = (particle[EDGES[0]] == particle[EDGES[1]]) & (particle[EDGES[0]] != NOISE)
    label = graph.edges.label[:NUM_EDGES]
    if node2node == "hyper":
        np.testing.assert_array_equal(label, is_same)
    else:
        # A tree over n hits: n self-loops, and n - 1 edges in both directions.
        assert label.sum() == (3 * EVENT.particles.num_hits - 2).sum()
        assert not label[~is_same].any()


def test_a_graph_of_hits_alone_has_no_truth():
    graph = hit_graph(EVENT.position, *EDGES)
    assert not graph.edges.label.any()
    assert np.all(graph.nodes.particle == NOISE)
    assert np.all(graph.nodes.weight == 0)


def test_an_event_without_hits_is_all_padding():
    none = np.zeros(0, np.int32)
    graph = hit_graph(np.zeros((0, 3), np.float32), none, none, none)
    assert not graph.nodes.mask.any()
    assert not graph.edges.mask.any()


@pytest.mark.parametrize(
    "bucket", [Bucket(NUM_HITS, NUM_EDGES), Bucket(NUM_HITS + 1, NUM_EDGES - 1)]
)
def test_a_bucket_too_small_is_refused(bucket):
    with pytest.raises(ValueError, match=f"{NUM_HITS} hits and {NUM_EDGES} edges are more than"):
        hit_graph(EVENT.position, *EDGES, bucket=bucket)


def test_programs_are_compiled_once_per_bucket():
    num_traces = 0

    @jax.jit
    def degree(graph):
        nonlocal num_traces
        num_traces += 1
        ones = graph.edges.mask.astype(jnp.float32)
        return segment_sum(ones, graph.receivers, graph.nodes.mask.shape[0])

    shapes = set()
    for seed in range(12):
        event = helix_event(seed, 20 + 3 * seed)
        edges = candidate_edges(event, seed, 20 + 500 * seed)
        graph = event_graph(event, *edges, node2node="hyper")
        shapes.add((len(graph.nodes.mask), len(graph.edges.mask)))
        assert degree(graph)[: len(event.position)].sum() == len(edges[0])
    assert 1 < len(shapes) < 8
    assert num_traces == len(shapes)
