"""Density clusterers against scikit-learn on dense matrices, by definition and by hand."""

import sys

import numpy as np
import pytest
from scipy.sparse import csgraph

from hypertrack_jax.clustering.density import dbscan, hdbscan

cluster = pytest.importorskip("sklearn.cluster")


def edges_of(*pairs):
    """Probabilities, senders and receivers of (sender, receiver, p)."""
    senders, receivers, probability = zip(*pairs, strict=True)
    return (
        np.array(probability, np.float32),
        np.array(senders, np.int32),
        np.array(receivers, np.int32),
    )


def clique(hits, p):
    return [(i, j, p) for i in hits for j in hits if i < j]


def random_edges(seed, num_groups, group_size, num_between, certain=1.0):
    """Groups of hits with edges in one or both directions, others between, self-loops, repeats.

    The hits of a group are joined strongly in two halves, with p = 1 where p is above `certain`,
    and more weakly between the halves. Five hits more have weak edges at most.
    """
    rng = np.random.default_rng(seed)
    num_hits = num_groups * group_size + 5
    hits = rng.permutation(num_hits)
    pairs = []
    for group in hits[: num_groups * group_size].reshape(num_groups, group_size):
        for i, j in zip(*np.nonzero(rng.random((group_size, group_size)) < 0.8), strict=True):
            same_half = (i < group_size // 2) == (j < group_size // 2)
            p = rng.beta(3, 1) if same_half else 0.56 + 0.3 * rng.random()
            pairs.append((group[i], group[j], 1.0 if p > certain else p))
    ends = rng.integers(0, num_hits, (num_between, 2))
    pairs += [(i, j, 0.56 + 0.1 * rng.random()) for i, j in ends]
    return *edges_of(*pairs, (0, 0, 1.0), pairs[0]), num_hits


def dense_distances(probability, senders, receivers, num_hits, edge_threshold=0.55):
    """1 - p of the more probable direction of each kept edge; 1 without one."""
    distance = np.ones((num_hits, num_hits))
    for p, i, j in zip(probability.astype(np.float64), senders, receivers, strict=True):
        if p > edge_threshold:
            distance[i, j] = distance[j, i] = min(distance[i, j], max(1 - p, 1e-8))
    np.fill_diagonal(distance, 0)
    return distance


def numbered(label, min_hits=4):
    """Clusters of at least `min_hits` in the order of their first hits."""
    result, number = np.full(len(label), -1), 0
    for hit in range(len(label)):
        members = label == label[hit]
        if label[hit] >= 0 and result[hit] == -1 and members.sum() >= min_hits:
            result[members] = number
            number += 1
    return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("eps", "min_samples"), [(0.2, 3), (0.1, 4), (0.3, 2), (0.05, 1)])
def test_dbscan_equals_scikit_learn_on_a_dense_matrix(seed, eps, min_samples):
    edges = random_edges(seed, num_groups=5, group_size=8, num_between=30)
    dense = dense_distances(*edges)
    fit = cluster.DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
    expected = numbered(fit.fit_predict(dense))
    assert expected.min() == -1
    label = dbscan(*edges, eps=eps, min_samples=min_samples)
    np.testing.assert_array_equal(label, expected)
    assert label.dtype == np.int32


def test_dbscan_published_settings_are_the_defaults():
    edges = random_edges(0, num_groups=5, group_size=8, num_between=30)
    label = dbscan(*edges)
    np.testing.assert_array_equal(label, dbscan(*edges, 0.2, 3, 4, 0.55))
    assert label.max() > 1


def test_dbscan_by_hand():
    # A chain 9 - 4 - 5 - 6 - 7 at distance 1 / 8: its ends have two hits around, themselves
    # included, the others three. Hit 8 is at 1 / 4 from 7, hits 0 to 2 are a clique too small.
    strong = [(9, 4, 0.875), (4, 5, 0.875), (6, 5, 0.875), (6, 7, 0.875)]
    edges = edges_of(*strong, (7, 8, 0.75), *clique([0, 1, 2], 1.0))
    assert dbscan(*edges, 10).tolist() == [-1] * 4 + [0] * 4 + [-1, 0]
    # At 1 / 4 exactly 8 is near enough: 7 becomes a core and 8 its border.
    assert dbscan(*edges, 10, eps=0.25).tolist() == [-1] * 4 + [0] * 6
    assert dbscan(*edges, 10, min_samples=4).tolist() == [-1] * 10
    assert dbscan(*edges, 10, min_hits=3).tolist() == [0] * 3 + [-1] + [1] * 4 + [-1, 1]


def test_dbscan_takes_three_hits_for_a_core():
    pair = edges_of((0, 1, 1.0))
    assert dbscan(*pair, 2, min_hits=2).tolist() == [-1, -1]
    assert dbscan(*pair, 2, min_hits=2, min_samples=2).tolist() == [0, 0]


def components(reach, members, limit):
    """Connected components of the members by what is shorter than `limit`."""
    _, label = csgraph.connected_components(reach[np.ix_(members, members)] < limit)
    return [members[label == k] for k in range(label.max() + 1)]


def best_clusters(reach, members, birth, size):
    """The largest total stability of clusters below a cluster, itself included, and which they are.

    Campello, Moulavi and Sander: the stability of a cluster is the sum over its hits of the
    densities 1 / distance at which they leave it, each less that at which the cluster began.
    """
    own, alive = 0.0, members
    levels = np.unique(reach[np.ix_(members, members)])
    for level in levels[(levels > 0) & (levels < birth)][::-1]:
        parts = [part for part in components(reach, alive, level) if len(part) >= size]
        if len(parts) == 1:
            own += (len(alive) - len(parts[0])) * (1 / level - 1 / birth)
            alive = parts[0]
            continue
        own += len(alive) * (1 / level - 1 / birth)
        below = [best_clusters(reach, part, level, size) for part in parts]
        total = sum(stability for stability, _ in below)
        if total > own:
            return total, [found for _, part in below for found in part]
        return own, [members]
    raise AssertionError("no hit is left only where none was before")


def hdbscan_by_definition(distance, min_samples, size):
    own = np.sort(distance, axis=1)[:, min_samples - 1]
    reach = np.maximum(distance, np.maximum(own[:, None], own[None, :]))
    # Of links that are equally long by the hits' own distances, the shorter one parts later.
    reach = np.where(reach < 1, reach * (1 + 1e-10 * distance), 1)
    np.fill_diagonal(reach, 0)
    label, number = np.full(len(distance), -1), 0
    for part in components(reach, np.arange(len(distance)), 1.0):
        if len(part) < size:
            continue
        for found in best_clusters(reach, part, 1.0, size)[1]:
            label[found] = number
            number += 1
    return label


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("min_samples", "size", "certain"),
    [(2, 4, 1.0), (1, 3, 1.0), (3, 4, 1.0), (4, 5, 1.0), (2, 4, 0.9), (3, 4, 0.9)],
)
def test_hdbscan_equals_its_definition(seed, min_samples, size, certain):
    edges = random_edges(seed, num_groups=4, group_size=10, num_between=6, certain=certain)
    dense = dense_distances(*edges)
    expected = numbered(hdbscan_by_definition(dense, min_samples, size))
    assert expected.min() == -1
    # More clusters than components: some are parts of one.
    assert expected.max() + 1 > sum(
        len(part) >= size for part in components(dense, np.arange(len(dense)), 1.0)
    )
    label = hdbscan(*edges, min_samples=min_samples, min_cluster_size=size)
    np.testing.assert_array_equal(label, expected)
    assert label.dtype == np.int32


@pytest.mark.parametrize("seed", range(4))
def test_hdbscan_equals_scikit_learn_on_a_dense_matrix(seed):
    edges = random_edges(seed, num_groups=4, group_size=10, num_between=seed)
    dense = dense_distances(*edges)
    parts = components(dense, np.arange(len(dense)), 1.0)
    # At least two components, or it finds none; and no hit in small ones, which it puts anywhere.
    parts = [part for part in parts if len(part) >= 4]
    assert len(parts) > 1
    hits = np.concatenate(parts)
    fit = cluster.HDBSCAN(min_cluster_size=4, min_samples=2, metric="precomputed", copy=True)
    expected = np.full(len(dense), -1)
    expected[hits] = fit.fit_predict(dense[np.ix_(hits, hits)])
    np.testing.assert_array_equal(hdbscan(*edges), numbered(expected))


def test_hdbscan_published_settings_are_the_defaults():
    edges = random_edges(0, num_groups=4, group_size=10, num_between=6)
    np.testing.assert_array_equal(hdbscan(*edges), hdbscan(*edges, 2, 4, 4, 0.55))


def test_hdbscan_by_hand():
    # Two cliques of four at distance 1 / 8. Joined at 3 / 8, the whole has a stability of
    # 8 (8 / 3 - 1) = 13.3 and the two 8 (8 - 8 / 3) = 42.7 together; at 5 / 32 43.2 and 12.8.
    cliques = clique([1, 3, 5, 7], 0.875) + clique([2, 4, 6, 8], 0.875)
    apart = hdbscan(*edges_of(*cliques, (1, 2, 0.625)), 10)
    assert apart.tolist() == [-1, 0, 1, 0, 1, 0, 1, 0, 1, -1]
    together = hdbscan(*edges_of(*cliques, (1, 2, 0.84375)), 10)
    assert together.tolist() == [-1] + [0] * 8 + [-1]


def test_hdbscan_finds_a_component_that_is_alone():
    edges = edges_of(*clique([0, 2, 3, 5], 1.0))
    assert hdbscan(*edges, 7).tolist() == [0, -1, 0, 0, -1, 0, -1]
    assert hdbscan(*edges, 7, min_hits=5).tolist() == [-1] * 7
    assert hdbscan(*edges, 7, min_cluster_size=5).tolist() == [-1] * 7


def test_hdbscan_leaves_small_components_alone():
    triangles = [pair for first in (0, 3, 6) for pair in clique(range(first, first + 3), 0.9)]
    assert hdbscan(*edges_of(*triangles), 9).tolist() == [-1] * 9
    edges = edges_of(*triangles, *clique(range(9, 13), 0.8))
    assert hdbscan(*edges, 13).tolist() == [-1] * 9 + [0] * 4


@pytest.mark.parametrize("seed", range(3))
def test_hdbscan_parts_hits_at_one_distance_in_the_order_of_their_indices(seed):
    probability, senders, receivers, num_hits = random_edges(seed, 8, 10, num_between=20)
    edges = (np.round(probability, 1) - np.float32(0.01), senders, receivers, num_hits)
    hits = np.arange(num_hits)
    low = np.minimum(hits[:, None], hits[None, :])
    later = low * num_hits + np.maximum(hits[:, None], hits[None, :])
    dense = dense_distances(*edges)
    dense = np.where(dense < 1, dense * (1 + 1e-12 * later), 1)
    np.testing.assert_array_equal(hdbscan(*edges), numbered(hdbscan_by_definition(dense, 2, 4)))


@pytest.mark.parametrize("cluster_hits", [dbscan, hdbscan])
def test_the_ends_of_a_star_are_in_its_cluster(cluster_hits):
    edges = edges_of(*((i, 5, 0.9) for i in range(5)))
    assert cluster_hits(*edges, 6).tolist() == [0] * 6


@pytest.mark.parametrize("cluster_hits", [dbscan, hdbscan])
def test_the_threshold_cuts_edges(cluster_hits):
    edges = edges_of(*clique(range(4), 0.875), *clique(range(4, 8), 0.9375))
    assert cluster_hits(*edges, 8, edge_threshold=0.8).tolist() == [0] * 4 + [1] * 4
    assert cluster_hits(*edges, 8, edge_threshold=0.875).tolist() == [-1] * 4 + [0] * 4


@pytest.mark.parametrize("cluster_hits", [dbscan, hdbscan])
def test_of_both_directions_the_more_probable_counts_and_self_loops_do_not(cluster_hits):
    pairs = clique(range(4), 0.9)
    label = cluster_hits(*edges_of(*pairs, *((j, i, 0.6) for i, j, _ in pairs)), 5)
    assert label.tolist() == [0] * 4 + [-1]
    loops = [(i, i, 1.0) for i in range(5)] * 4
    assert cluster_hits(*edges_of(*loops), 5).tolist() == [-1] * 5


@pytest.mark.parametrize("cluster_hits", [dbscan, hdbscan])
def test_without_edges_or_hits_there_are_no_clusters(cluster_hits):
    nothing = np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0, np.int32)
    assert cluster_hits(*nothing, 3).tolist() == [-1] * 3
    assert cluster_hits(*nothing, 0).shape == (0,)


@pytest.mark.parametrize("cluster_hits", [dbscan, hdbscan])
def test_memory_follows_the_edges(cluster_hits):
    # A matrix over so many hits would take 80 gigabytes.
    groups = np.arange(500).reshape(100, 5)
    edges = edges_of(*(pair for group in groups for pair in clique(group.tolist(), 0.9)))
    label = cluster_hits(*edges, 100_000)
    np.testing.assert_array_equal(label[:500].reshape(100, 5), groups // 5)
    assert (label[500:] == -1).all()


@pytest.mark.parametrize("cluster_hits", [dbscan, hdbscan])
def test_a_missing_scikit_learn_is_one_sentence(cluster_hits, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"need scikit-learn.*hypertrack-jax\[baselines\]"):
        cluster_hits(*edges_of(*clique(range(4), 0.9)), 4)
