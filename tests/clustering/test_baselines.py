"""Clusters from cut edges against scipy and by hand."""

import numpy as np
import pytest
from scipy.sparse import coo_array, csgraph

from hypertrack_jax.clustering.baselines import cut, no_clusters


def cut_by_scipy(probability, senders, receivers, num_nodes, edge_threshold, min_hits):
    """The same clusters, numbered by their first hits."""
    keep = probability > edge_threshold
    graph = coo_array(
        (np.ones(keep.sum()), (senders[keep], receivers[keep])), shape=(num_nodes, num_nodes)
    )
    _, component = csgraph.connected_components(graph, directed=False)
    label = np.full(num_nodes, -1)
    number = 0
    for node in range(num_nodes):
        members = component == component[node]
        if label[node] == -1 and members.sum() >= min_hits:
            label[members] = number
            number += 1
    return label


def random_edges(seed, num_nodes, num_edges):
    rng = np.random.default_rng(seed)
    senders, receivers = rng.integers(0, num_nodes, (2, num_edges), np.int32)
    return rng.random(num_edges, np.float32), senders, receivers


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("edge_threshold", "min_hits"), [(0.55, 4), (0.8, 2), (0.4, 5)])
def test_equals_scipy_on_random_graphs(seed, edge_threshold, min_hits):
    probability, senders, receivers = random_edges(seed, 200, 150)
    label = cut(probability, senders, receivers, np.ones(150, bool), 200, edge_threshold, min_hits)
    expected = cut_by_scipy(probability, senders, receivers, 200, edge_threshold, min_hits)
    assert expected.max() > 0
    assert expected.min() == -1
    np.testing.assert_array_equal(label, expected)


def test_by_hand_with_the_published_threshold_and_size():
    # A chain of four hits from 5 down to 2, a chain of three hits 6, 7, 8, and self-loops; the edge
    # that would join hit 0 is at the threshold exactly.
    senders = np.array([5, 4, 3, 6, 7, 0, 1, 9], np.int32)
    receivers = np.array([4, 3, 2, 7, 8, 2, 1, 9], np.int32)
    probability = np.array([0.9, 0.6, 0.56, 0.9, 0.9, 0.5, 1.0, 1.0], np.float32)
    label = cut(probability, senders, receivers, np.ones(8, bool), 10)
    assert label.tolist() == [-1, -1, 0, 0, 0, 0, -1, -1, -1, -1]
    label = cut(probability, senders, receivers, np.ones(8, bool), 10, edge_threshold=0.5)
    assert label.tolist() == [-1, -1, 0, 0, 0, 0, -1, -1, -1, -1]
    label = cut(probability, senders, receivers, np.ones(8, bool), 10, min_hits=3)
    assert label.tolist() == [-1, -1, 0, 0, 0, 0, 1, 1, 1, -1]


def test_padding_is_in_no_cluster_and_changes_none():
    probability, senders, receivers = random_edges(9, 100, 150)
    label = cut(probability, senders, receivers, np.ones(150, bool), 100)
    padded = cut(
        np.append(probability, np.ones(60, np.float32)),
        np.append(senders, np.full(60, 110, np.int32)),
        np.append(receivers, np.arange(60, 120, dtype=np.int32)),
        np.arange(210) < 150,
        120,
    )
    np.testing.assert_array_equal(padded[:100], label)
    assert (padded[100:] == -1).all()


def test_a_scan_over_the_threshold_compiles_once():
    probability, senders, receivers = random_edges(1, 90, 95)
    cut.clear_cache()
    for threshold, min_hits in ((0.5, 3), (0.6, 4), (0.7, 5)):
        cut(probability, senders, receivers, np.ones(95, bool), 90, threshold, min_hits)
    assert cut._cache_size() == 1


def test_none_finds_no_clusters():
    assert no_clusters(3).tolist() == [-1, -1, -1]
    assert no_clusters(0).dtype == cut(*random_edges(0, 9, 9), np.ones(9, bool), 9).dtype
