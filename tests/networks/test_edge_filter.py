"""The filter: symmetries of what it sees, and continuations against loops over triplets."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax import device
from hypertrack_jax.graph.pair_graph import HitPairs, pair_graph
from hypertrack_jax.networks import edge_filter
from hypertrack_jax.networks.edge_filter import (
    BEND,
    DIP,
    FAR,
    LOGIT,
    Z0,
    apply_layers,
    chords_of,
    continuations,
    end_of,
    init_filter,
    init_layers,
    no_bend,
    pair_inputs,
    triplet_scores,
)
from hypertrack_jax.networks.features import helix_coordinates

EVENT = helix_event(4, num_particles=8)
NUM_HITS = len(EVENT.position)


def coordinates_of(position):
    return helix_coordinates(jnp.asarray(position, jnp.float32))


@pytest.fixture(scope="module")
def pairs():
    """All pairs of a particle and as many others."""
    rng = np.random.default_rng(0)
    particle = EVENT.hit_particle
    joined = (particle[:, None] == particle) & (particle >= 0) | (
        rng.random((NUM_HITS, NUM_HITS)) < 0.1
    )
    one, other = np.nonzero(np.tril(joined, -1))
    logit = rng.normal(size=len(one)).astype(np.float32)
    count = rng.integers(1, 50, len(one))
    ends = (jnp.asarray(column, jnp.int32) for column in (one, other, count))
    return HitPairs(*ends, jnp.asarray(logit), jnp.int32(len(one)))


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


@pytest.mark.parametrize(("block", "width"), [(7, 2), (512, 512)])
def test_continuations_are_those_of_a_loop_over_triplets(pairs, block, width, monkeypatch):
    monkeypatch.setattr(device, "CPU", device.CPU._replace(filter_hits=block))
    monkeypatch.setattr(edge_filter, "LEAST_WIDTH", width)
    graph = pair_graph(pairs, NUM_HITS + 1)
    coordinates = coordinates_of(np.pad(EVENT.position, ((0, 1), (0, 0))))
    logit = pairs.logit[graph.pair]
    bend = jnp.asarray(np.random.default_rng(2).normal(size=len(logit)), jnp.float32)
    chords = chords_of(coordinates, graph.senders, graph.receivers, logit, bend)
    found = jax.jit(continuations, static_argnums=3)(
        chords, graph.start, graph.degree, int(graph.degree.max()) + 3
    )
    c = {name: np.asarray(part, np.float64) for name, part in chords._asdict().items()}
    receivers, num_edges = np.asarray(graph.receivers), 2 * int(pairs.number)
    vector = np.stack([c["x"], c["y"], c["z"]], axis=1)
    alone = 0
    for a in range(num_edges):
        beside = [b for b in np.flatnonzero(receivers == receivers[a]) if vector[a] @ vector[b] < 0]
        assert found.number[a] == len(beside)
        for kind in (0, 1):
            turn = (c["y"][a] * c["x"] - c["x"][a] * c["y"]) / (c["length"][a] * c["length"])
            turn = np.abs(turn - c["bend"][a] * (c["length"][a] + c["length"]) / 1000)
            bend = (np.abs(c["kappa"][a] + c["kappa"]), turn)[kind]
            distance = DIP[kind] * np.abs(c["dip"][a] + c["dip"]) + BEND[kind] * bend
            distance += Z0[kind] * np.abs(c["z0"][a] - c["z0"])
            mismatch = distance - LOGIT[kind] * c["logit"]
            if not beside:
                alone += 1
                assert found.mismatch[kind][a] == FAR
                assert found.soft_count[kind][a] == 0
                continue
            best = min(beside, key=lambda b: mismatch[b])
            assert found.mismatch[kind][a] == pytest.approx(mismatch[best], abs=1e-3)
            assert mismatch[found.edge[kind][a]] == pytest.approx(mismatch[best], abs=1e-3)
            soft = sum(np.exp(-distance[b]) / (1 + np.exp(-c["logit"][b])) for b in beside)
            assert found.soft_count[kind][a] == pytest.approx(soft, rel=1e-3, abs=1e-5)
    assert 0 < alone < num_edges


def test_the_circle_through_three_hits_of_a_helix_is_its_own():
    """Hits of one particle: the best continuation fits, and the inputs of its end are small."""
    particle = int(np.argmax(EVENT.particles.num_hits))
    hits = np.flatnonzero(EVENT.hit_particle == particle)
    hits = hits[np.argsort(np.hypot(*EVENT.position[hits, :2].T))]
    position = np.pad(EVENT.position[hits], ((0, 1), (0, 0)))
    one = jnp.arange(1, len(hits), dtype=jnp.int32)
    logit = jnp.zeros(len(one))
    pairs = HitPairs(one, one - 1, jnp.ones_like(one), logit, jnp.int32(len(one)))
    graph = pair_graph(pairs, len(position))
    nothing = jnp.zeros(2 * len(one))
    chords = chords_of(coordinates_of(position), graph.senders, graph.receivers, nothing, nothing)
    found = continuations(chords, graph.start, graph.degree, 2)
    every = jnp.arange(2 * len(one), dtype=jnp.int32)
    inputs = np.asarray(end_of(chords, found, every).inputs)
    goes_on = np.asarray(found.number) == 1
    assert goes_on.sum() == 2 * (len(one) - 1)
    # Differences in dip, and between the circle and both curvatures.
    assert np.median(inputs[goes_on, 1:4], axis=0).max() < 0.5
    assert (inputs[~goes_on, :8] == 3).all()


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
