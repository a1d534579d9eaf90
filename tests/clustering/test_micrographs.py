"""Micrographs by brute force, thresholds by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pivots import NUM_HITS, random_graph, rows_of

from hypertrack_jax.clustering.micrographs import component_micrographs, spanned_micrographs
from hypertrack_jax.clustering.thresholds import fisher_threshold

compiled_spans = jax.jit(spanned_micrographs, static_argnums=(3, 4, 5))
compiled_components = jax.jit(component_micrographs, static_argnums=3)
compiled_threshold = jax.jit(fisher_threshold)
PIVOTS = np.array([[0, 1, 2], [10, 11, 12], [NUM_HITS] * 3, [5, 6, 7]], np.int32)


def active_hits():
    active = np.random.default_rng(0).random(NUM_HITS) < 0.8
    active[PIVOTS[PIVOTS < NUM_HITS]] = True
    return active


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("num_slots", [6, NUM_HITS, 200])
def test_all_active_hits_within_some_steps_of_a_pivot(hops, num_slots):
    dense, edges = random_graph(2, share=0.08)
    active = active_hits()
    found = compiled_spans(
        jnp.asarray(PIVOTS), jnp.asarray(active), rows_of(edges), num_slots, hops
    )
    assert found.hit.shape == (4, num_slots)
    joined = (dense > 0.3) & active
    for row, pivots in enumerate(PIVOTS):
        near = np.zeros(NUM_HITS, bool)
        near[pivots[pivots < NUM_HITS]] = True
        for _ in range(hops):
            near |= joined[near].any(axis=0)
        expected = np.flatnonzero(near)
        if len(expected) > num_slots:
            assert found.size[row] > num_slots
            continue
        assert found.size[row] == len(expected)
        np.testing.assert_array_equal(found.hit[row, : len(expected)], expected)
        np.testing.assert_array_equal(found.hit[row, len(expected) :], NUM_HITS)


@pytest.mark.parametrize("largest", [3, 9, 20])
def test_the_nearest_hits_where_the_number_is_limited(largest):
    dense, edges = random_graph(2, share=0.08)
    active = active_hits()
    found = compiled_spans(jnp.asarray(PIVOTS), jnp.asarray(active), rows_of(edges), 32, 5, largest)
    joined = (dense > 0.3) & active
    for row, pivots in enumerate(PIVOTS):
        reached = [np.isin(np.arange(NUM_HITS), pivots)]
        for _ in range(5):
            reached.append(reached[-1] | joined[reached[-1]].any(axis=0))
        whole = [near for near in reached if near.sum() <= largest]
        expected = min(largest, int(reached[-1].sum()))
        hits = np.asarray(found.hit[row, :expected])
        assert found.size[row] == expected
        assert np.all(np.asarray(found.hit[row, expected:]) == NUM_HITS)
        assert len(np.unique(hits)) == expected
        # All that are nearer than the furthest, and of these as many as have room.
        assert np.isin(np.flatnonzero(whole[-1]), hits).all()
        assert reached[min(len(whole), 5)][hits].all()


def test_a_whole_component():
    component = np.array([0, 1, 0, 0, 1, 5, 0, 5], np.int32)
    active = np.array([1, 1, 1, 0, 1, 1, 1, 1], bool)
    pivot = np.array([[6, 0], [4, 1], [8, 8], [5, 7]], np.int32)
    found = compiled_components(*(jnp.asarray(a) for a in (pivot, active, component)), 3)
    np.testing.assert_array_equal(found.hit, [[0, 2, 6], [1, 4, 8], [8, 8, 8], [5, 7, 8]])
    np.testing.assert_array_equal(found.size, [3, 2, 0, 2])
    few = compiled_components(*(jnp.asarray(a) for a in (pivot, active, component)), 2)
    np.testing.assert_array_equal(few.hit[0], [0, 2])
    assert few.size[0] == 3


def otsu(values):
    """By brute force: the cut with the largest variance between the classes."""
    values = np.sort(values)[::-1].astype(np.float64)[:30]
    best, threshold = -1.0, 0.0
    for cut in range(1, len(values)):
        upper, lower = values[:cut], values[cut:]
        between = len(upper) * len(lower) * (upper.mean() - lower.mean()) ** 2
        if between > best:
            best, threshold = between, (values[cut - 1] + values[cut]) / 2
    return threshold


def test_fishers_threshold():
    rng = np.random.default_rng(0)
    probability = rng.random((20, 50)).astype(np.float32)
    number = rng.integers(2, 51, 20)
    mask = np.arange(50) < number[:, None]
    found = compiled_threshold(jnp.asarray(probability), jnp.asarray(mask))
    expected = [otsu(row[:n]) for row, n in zip(probability, number, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("values", [[0.9], [0.7, 0.7, 0.7], []])
def test_what_cannot_be_parted_is_taken_whole(values):
    probability = np.zeros((1, 4), np.float32)
    probability[0, : len(values)] = values
    mask = np.arange(4)[None] < len(values)
    assert compiled_threshold(jnp.asarray(probability), jnp.asarray(mask))[0] == 0
