"""Neighbour rows, seeds and walks, by hand and by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.clustering.neighbors import kept_neighbors
from hypertrack_jax.clustering.pivots import (
    Walks,
    best_walks,
    choose_seeds,
    seed_ranks,
    walk,
)
from hypertrack_jax.tunes.tune import ClusterTune

NUM_HITS = 40
compiled_neighbors = jax.jit(kept_neighbors, static_argnums=(4, 5))
compiled_seeds = jax.jit(choose_seeds, static_argnums=(3, 4))
compiled_walk = jax.jit(walk, static_argnums=3)
compiled_ranks = jax.jit(seed_ranks, static_argnums=0)


def random_graph(seed, num_hits=NUM_HITS, share=0.15):
    """A symmetric matrix of probabilities, and its edges sorted by receiver."""
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random((num_hits,) * 2) < share, rng.random((num_hits,) * 2), 0)
    dense = np.triu(dense).astype(np.float32)
    dense = np.maximum(dense, dense.T)
    receivers, senders = (side.astype(np.int32) for side in np.nonzero(dense))
    return dense, (dense[receivers, senders], senders, receivers, np.ones(len(senders), bool))


def rows_of(edges, num_hits=NUM_HITS, capacity=16, threshold=0.3):
    """The neighbours by some edges; padding behind them, so that few programs are compiled."""
    missing = -len(edges[0]) % 512
    probability, senders, receivers, mask = (
        np.pad(array, (0, missing), constant_values=value)
        for array, value in zip(edges, (1, num_hits - 1, num_hits - 1, False), strict=True)
    )
    return compiled_neighbors(probability, senders, receivers, mask, num_hits, capacity, threshold)


def chain(*probabilities):
    """Hits 0 - 1 - 2 - ... with these probabilities between them."""
    n = len(probabilities) + 1
    dense = np.zeros((n, n), np.float32)
    dense[np.arange(n - 1), np.arange(1, n)] = probabilities
    dense = dense + dense.T
    receivers, senders = (side.astype(np.int32) for side in np.nonzero(dense))
    mask = np.ones(len(senders), bool)
    return rows_of((dense[receivers, senders], senders, receivers, mask), n, 4, 0.0)


@pytest.mark.parametrize("capacity", [3, 16])
def test_rows_hold_the_kept_edges(capacity):
    dense, (probability, senders, receivers, mask) = random_graph(0)
    mask = np.random.default_rng(1).random(len(mask)) < 0.9
    rows = rows_of((probability, senders, receivers, mask), capacity=capacity)
    is_kept = mask & (probability > 0.3) & (senders != receivers)
    assert is_kept.any() and (dense.diagonal() > 0.3).any()
    for hit in range(NUM_HITS):
        expected = senders[is_kept & (receivers == hit)]
        assert rows.degree[hit] == len(expected)
        row = np.asarray(rows.hit[hit])
        num_held = min(capacity, len(expected))
        np.testing.assert_array_equal(row[:num_held], expected[:num_held])
        np.testing.assert_array_equal(row[num_held:], NUM_HITS)
        np.testing.assert_array_equal(
            rows.probability[hit, :num_held], dense[hit, expected[:num_held]]
        )
        np.testing.assert_array_equal(rows.probability[hit, num_held:], 0)
    assert rows.degree.max() > 3


def test_ranks_follow_the_strategy():
    rng = np.random.default_rng(0)
    position = jnp.asarray(rng.normal(0, 100, (50, 3)), jnp.float32)
    distance = {
        "3d": np.linalg.norm(position, axis=1),
        "transverse": np.linalg.norm(position[:, :2], axis=1),
    }
    for name, value in distance.items():
        rising = np.argsort(np.argsort(value))
        largest = compiled_ranks(f"largest_{name}", position, jax.random.key(0))
        smallest = compiled_ranks(f"smallest_{name}", position, jax.random.key(0))
        np.testing.assert_array_equal(largest, rising)
        np.testing.assert_array_equal(smallest, 49 - rising)
    first, again, other = (compiled_ranks("random", position, jax.random.key(k)) for k in (0, 0, 1))
    assert len(np.unique(first)) == 50 and np.all(first >= 0)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    padded = compiled_ranks("random", jnp.zeros((80, 3)), jax.random.key(0))
    np.testing.assert_array_equal(padded[:50], first)


def test_random_ranks_do_not_go_with_the_order_of_the_hits():
    """The highest of 8 neighbours is any of them equally often."""
    ranks = compiled_ranks("random", jnp.zeros((8000, 3)), jax.random.key(0)).reshape(1000, 8)
    wins = np.bincount(np.argmax(ranks, axis=1), minlength=8)
    # Of a binomial distribution: 125 with a standard deviation of 10.5.
    assert np.all(np.abs(wins - 125) < 42)


def test_hits_at_one_distance_are_ordered_by_the_key():
    ranks = [compiled_ranks("largest_3d", jnp.ones((50, 3)), jax.random.key(k)) for k in (0, 1)]
    assert np.any(ranks[0] != ranks[1])
    np.testing.assert_array_equal(np.sort(ranks[0]), np.arange(50))


@pytest.mark.parametrize("hops", [1, 2])
def test_seeds_outrank_all_active_hits_within_reach(hops):
    for seed in range(5):
        dense, edges = random_graph(seed, share=0.06)
        rng = np.random.default_rng(seed)
        ranks = np.stack([rng.permutation(NUM_HITS) for _ in range(2)]).astype(np.int32)
        active = rng.random(NUM_HITS) < 0.7
        joined = (dense > 0.3) & active[:, None] & active
        reach = np.linalg.matrix_power(joined + np.eye(NUM_HITS, dtype=int), hops) > 0
        arguments = jnp.asarray(ranks), jnp.asarray(active), rows_of(edges)
        found, few = (compiled_seeds(*arguments, number, hops) for number in (64, 3))
        for rank, seeds, first in zip(ranks, found, few, strict=True):
            expected = [
                hit
                for hit in range(NUM_HITS)
                if active[hit] and rank[reach[hit]].max() == rank[hit]
            ]
            assert len(expected) > 3
            np.testing.assert_array_equal(seeds[: len(expected)], expected)
            assert (seeds[len(expected) :] == NUM_HITS).all()
            np.testing.assert_array_equal(first, expected[:3])


def test_seeds_among_few_active_hits():
    num_hits = 512
    rng = np.random.default_rng(0)
    active = rng.random(num_hits) < 0.2
    ranks = np.stack([rng.permutation(num_hits) for _ in range(3)]).astype(np.int32)
    dense, edges = random_graph(0, num_hits, share=2 / num_hits)
    neighbors = rows_of(edges, num_hits)
    found = compiled_seeds(jnp.asarray(ranks), jnp.asarray(active), neighbors, 400, 2)
    joined = (dense > 0.3)[np.ix_(active, active)]
    reach = np.linalg.matrix_power((joined + np.eye(len(joined))), 2) > 0
    for rank, seeds in zip(ranks, found, strict=True):
        own = rank[active]
        is_seed = np.where(reach, own, -1).max(axis=1) == own
        assert 0 < is_seed.sum() < 400
        np.testing.assert_array_equal(seeds[seeds < num_hits], np.flatnonzero(active)[is_seed])


def test_a_greedy_walk_follows_the_strongest_edges():
    """From 1 the edge to 2 is stronger; from 2 back to 1 is not allowed, so on to 3."""
    neighbors = chain(0.6, 0.9, 0.7)
    walks = compiled_walk(
        jnp.array([1, 0, 4], jnp.int32),
        jnp.ones(4, bool),
        neighbors,
        ClusterTune(),
        jax.random.key(0),
    )
    np.testing.assert_array_equal(walks.pivot, [[1, 2, 3], [0, 1, 2], [4, 4, 4]])
    np.testing.assert_array_equal(walks.length, [3, 3, 0])
    odds = lambda p: np.log(p / (1 - p + 1e-3))  # noqa: E731
    np.testing.assert_allclose(
        walks.score, [odds(0.9) + odds(0.7), odds(0.6) + odds(0.9), 0], rtol=1e-5
    )


def test_a_walk_stops_at_weak_edges_and_at_clustered_hits():
    neighbors, seed = chain(0.9, 0.4, 0.9), jnp.array([0], jnp.int32)
    walks = compiled_walk(seed, jnp.ones(4, bool), neighbors, ClusterTune(), jax.random.key(0))
    assert (walks.length[0], walks.pivot[0].tolist()) == (2, [0, 1, 4])
    inactive = jnp.array([True, False, True, True])
    assert compiled_walk(seed, inactive, neighbors, ClusterTune(), jax.random.key(0)).length[0] == 1


def test_monte_carlo_steps_are_drawn_in_proportion_to_p():
    """A star: from hit 0 to 1, 2, 3 with p = 0.45, 0.6, 0.9; one path, two pivots, many keys."""
    p = np.array([0.45, 0.6, 0.9], np.float32)
    receivers = np.array([0, 0, 0, 1, 2, 3], np.int32)
    senders = np.array([1, 2, 3, 0, 0, 0], np.int32)
    edges = (np.concatenate([p, p]), senders, receivers, np.ones(6, bool))
    neighbors, tune = rows_of(edges, 4, 4), ClusterTune(num_pivots=2, random_paths=2)
    one = tune.__class__(num_pivots=2, random_paths=2)
    seeds = jnp.zeros(3000, jnp.int32)
    # All seeds of a call draw on their own; of two paths the better is kept.
    second = np.asarray(
        compiled_walk(seeds, jnp.ones(4, bool), neighbors, one, jax.random.key(3)).pivot[:, 1]
    )
    share = p / p.sum()
    best_of_two = np.cumsum(share) ** 2 - np.concatenate([[0], np.cumsum(share)[:-1]]) ** 2
    found = np.bincount(second, minlength=4)[1:] / len(second)
    np.testing.assert_allclose(found, best_of_two, atol=0.03)


def test_of_walks_that_come_near_each_other_the_best_is_kept():
    """On a chain of 8: 0-1-2 and 2-3-4 share a hit, 5-6-7 is a neighbour of 4."""
    neighbors = chain(*[0.9] * 7)
    pivot = jnp.array([[0, 1, 2], [2, 3, 4], [5, 6, 7], [5, 6, 8]], jnp.int32)
    length = jnp.array([3, 3, 3, 2], jnp.int32)

    def kept(*score):
        return best_walks(Walks(pivot, length, jnp.array(score)), neighbors).tolist()

    assert kept(3.0, 2.0, 1.0, 9.0) == [True, False, False, False]
    assert kept(2.0, 3.0, 1.0, 9.0) == [False, True, False, False]
    assert kept(2.0, 1.0, 3.0, 9.0) == [True, False, True, False]
