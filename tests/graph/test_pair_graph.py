"""Pairs and the two edges of each, against sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.graph.pair_graph import (
    HitPairs,
    no_pairs,
    pair_graph,
    pairs_appended,
    pairs_kept,
    rows_kept,
)

NUM_HITS = 40


def random_pairs(seed, number, capacity):
    """Some different pairs, the hit with the list ascending, and rubbish behind them."""
    rng = np.random.default_rng(seed)
    every = np.array([(i, j) for i in range(NUM_HITS - 1) for j in range(i)])
    ends = every[np.sort(rng.choice(len(every), number, replace=False))]
    swapped = rng.random(number) < 0.5
    ends[swapped] = ends[swapped, ::-1]
    ends = ends[np.argsort(ends[:, 0], kind="stable")]
    columns = [*ends.T, rng.integers(1, 99, number)]
    filled = [np.append(c, rng.integers(0, NUM_HITS, capacity - number)) for c in columns]
    logit = rng.normal(size=capacity).astype(np.float32)
    integers = (jnp.asarray(column, jnp.int32) for column in filled)
    return HitPairs(*integers, jnp.asarray(logit), jnp.int32(number))


@pytest.mark.parametrize("number", [0, 1, 150, 200])
def test_each_pair_has_an_edge_each_way_sorted_by_receiver(number):
    pairs = random_pairs(0, number, 200)
    graph = jax.jit(pair_graph, static_argnums=1)(pairs, NUM_HITS)
    one, other = (np.asarray(hit)[:number] for hit in (pairs.one, pairs.other))
    senders, receivers, pair = (
        np.asarray(part)[: 2 * number] for part in (graph.senders, graph.receivers, graph.pair)
    )
    wanted = [(r, s, k) for k, (r, s) in enumerate(zip(one, other, strict=True))]
    wanted += [(r, s, k) for k, (s, r) in enumerate(zip(one, other, strict=True))]
    assert sorted(zip(receivers, senders, pair, strict=True)) == sorted(wanted)
    assert (np.diff(receivers) >= 0).all()
    assert (np.asarray(graph.senders)[2 * number :] == NUM_HITS - 1).all()
    for end, edge in zip((one, other), np.asarray(graph.edge_to)[:, :number], strict=True):
        np.testing.assert_array_equal(receivers[edge], end)
        np.testing.assert_array_equal(pair[edge], np.arange(number))
    degree = np.bincount(receivers, minlength=NUM_HITS)
    np.testing.assert_array_equal(graph.degree, degree)
    np.testing.assert_array_equal(graph.start, np.cumsum(degree) - degree)


def test_what_is_kept_keeps_its_order_and_says_what_it_would_need():
    pairs = random_pairs(1, 100, 120)
    is_kept = jnp.asarray(np.random.default_rng(0).random(120) < 0.5)
    wanted = np.flatnonzero(np.asarray(is_kept)[:100])
    for capacity in (len(wanted), len(wanted) - 7):
        kept = pairs_kept(pairs, is_kept, capacity)
        assert kept.number == len(wanted)
        for found, column in zip(kept[:4], pairs[:4], strict=True):
            np.testing.assert_array_equal(found, np.asarray(column)[wanted[:capacity]])


@pytest.mark.parametrize("capacity", [2, 8])
def test_what_belongs_to_pairs_is_kept_in_their_places(capacity):
    one = jnp.arange(6, dtype=jnp.int32)
    # The last two places hold no pair.
    pairs = HitPairs(one, one, one, jnp.zeros(6), jnp.int32(4))
    is_kept = jnp.array([True, False, True, True, True, True])
    rows = jnp.stack([one + 10, one + 20], axis=1).astype(jnp.float32)
    kept = pairs_kept(pairs, is_kept, capacity)
    found = rows_kept(rows, pairs, is_kept, capacity)
    number = min(int(kept.number), capacity)
    np.testing.assert_array_equal(found[:number], rows[kept.one[:number]])
    assert not found[number:].any()


def test_blocks_are_put_one_behind_another():
    first, second = random_pairs(2, 30, 30), random_pairs(3, 20, 20)
    pairs = pairs_appended(no_pairs(64), first, jnp.ones(30, bool))
    pairs = pairs_appended(pairs, second, jnp.arange(20) % 2 == 0)
    assert pairs.number == 40
    joined = np.concatenate([first.other, np.asarray(second.other)[::2]])
    np.testing.assert_array_equal(np.asarray(pairs.other)[:40], joined)
