"""The filter: symmetries of what it sees, and continuations against loops over triplets."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_pairs import EVENT, NUM_HITS, coordinates_of, toy_pairs

from hypertrack_jax.graph.pair_graph import HitPairs, pair_graph
from hypertrack_jax.networks import edge_filter
from hypertrack_jax.networks.continuations import (
    chords_of,
    continuations,
)
from hypertrack_jax.networks.edge_filter import (
    apply_layers,
    init_filter,
    init_layers,
    no_bend,
    pair_inputs,
    triplet_scores,
)


@pytest.fixture(scope="module")
def pairs():
    return toy_pairs()


def test_a_pair_looks_the_same_from_both_hits_and_in_every_mirror(pairs):
    degree = jnp.asarray(np.random.default_rng(1).integers(1, 200, NUM_HITS), jnp.int32)
    seen = pair_inputs(coordinates_of(EVENT.position), degree, *pairs[:3])
    assert seen.shape == (len(pairs.one), edge_filter.NUM_PAIR)
    swapped = pair_inputs(
        coordinates_of(EVENT.position), degree, pairs.other, pairs.one, pairs.count
    )
    np.testing.assert_array_equal(seen, swapped)
    for signs in ([1, 1, -1], [1, -1, 1], [-1, 1, 1]):
        mirrored = coordinates_of(EVENT.position * np.array(signs, np.float32))
        of_mirrored = np.asarray(pair_inputs(mirrored, degree, *pairs[:3]))
        is_apart = np.abs(seen[:, 1]) > 1e-4
        np.testing.assert_allclose(of_mirrored[is_apart], seen[is_apart], rtol=1e-4, atol=1e-4)


def test_equal_distances_are_ordered_too():
    first = coordinates_of([[30, 40, 5], [30, 40, 5], [40, 30, -5], [0, 50, 5]])
    second = coordinates_of([[40, 30, 5], [30, 40, -5], [30, 40, 5], [50, 0, 5]])
    one_way = edge_filter.is_outer(first, second)
    np.testing.assert_array_equal(one_way, ~edge_filter.is_outer(second, first))


def test_scores_of_pairs_do_not_depend_on_the_order_of_their_hits(pairs):
    weights = init_filter(jax.random.key(0), 8)
    coordinates = coordinates_of(np.pad(EVENT.position, ((0, 1), (0, 0))))
    degree = jnp.asarray(np.random.default_rng(1).integers(1, 200, NUM_HITS + 1), jnp.int32)
    score = jax.jit(partial(triplet_scores, num_neighbors=64))
    bend = jnp.asarray(np.random.default_rng(2).normal(size=(len(pairs.one), 2)), jnp.float32)
    one_way = score(weights.triplets[0], coordinates, degree, pair_graph(pairs, NUM_HITS + 1), bend)
    order = np.argsort(pairs.other, kind="stable")
    swapped = HitPairs(
        pairs.other[order], pairs.one[order], pairs.count[order], pairs.logit[order], pairs.number
    )
    graph = pair_graph(swapped, NUM_HITS + 1)
    other = score(weights.triplets[0], coordinates, degree, graph, bend[order, ::-1])
    np.testing.assert_allclose(other.logit, one_way.logit[order], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(other.bend, one_way.bend[order, ::-1], rtol=1e-4, atol=1e-4)
    assert np.std(one_way.logit) > 0.01
    assert np.std(one_way.bend) > 0.01


def test_what_is_known_of_one_turn_predicts_the_next():
    """Hits of a helix that begins far from the beam line, of curvature 2 per metre."""
    turn = np.linspace(0, 0.6, 9)
    position = np.stack([100 + 500 * np.sin(turn), 500 - 500 * np.cos(turn), 200 * turn], axis=1)
    position = np.pad(position.astype(np.float32), ((0, 1), (0, 0)))
    one = jnp.arange(1, 9, dtype=jnp.int32)
    pairs = HitPairs(one, one - 1, jnp.ones_like(one), jnp.zeros(8), jnp.int32(8))
    graph, weights = pair_graph(pairs, 10), init_filter(jax.random.key(0), 8)
    coordinates = coordinates_of(position)

    def scores(bend):
        return triplet_scores(weights.triplets[0], coordinates, graph.degree, graph, bend, 2)

    bend = scores(no_bend(8)).bend
    # To the inner hit it turns left; the ends of the chain have nothing behind them.
    expected = np.array([[0.0, -1.0], *[[1.0, -1.0]] * 6, [1.0, 0.0]])
    np.testing.assert_allclose(bend, expected, atol=2e-2)
    np.testing.assert_allclose(scores(bend).bend, bend, atol=1e-6)

    def mismatch(bend):
        bends = bend[graph.pair, (graph.receivers == pairs.other[graph.pair]).astype(jnp.int32)]
        chords = chords_of(coordinates, graph.senders, graph.receivers, jnp.zeros(16), bends)
        return np.asarray(continuations(chords, graph.start, graph.degree, 2).mismatch[1])

    inside = (graph.receivers > 0) & (graph.receivers < 8) & (graph.senders > 0)
    inside &= graph.senders < 8
    assert mismatch(bend)[inside].max() < 0.05
    assert mismatch(no_bend(8))[inside].min() > 0.5


def test_an_mlp_is_its_formula():
    layers = init_layers(jax.random.key(0), (5, 4, 1))
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    hidden = x @ np.asarray(layers[0]["kernel"])
    wanted = (hidden / (1 + np.exp(-hidden))) @ np.asarray(layers[1]["kernel"])
    np.testing.assert_allclose(apply_layers(layers, jnp.asarray(x)), wanted[:, 0], rtol=1e-4)
