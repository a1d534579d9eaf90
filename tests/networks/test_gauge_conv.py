"""The gauge layer against a loop over its edges, and its symmetries, in float64."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import linear, normed_linear, random_weights
from toy_graph import SMALL_NETWORK, toy_graph

from hypertrack_jax import device
from hypertrack_jax.networks.edge_inputs import EdgeInputs
from hypertrack_jax.networks.edge_predictor import EdgePredictor
from hypertrack_jax.networks.gauge_conv import GaugeEdgeConv

NUM_HITS, NUM_SCALARS, WIDTH = 9, 2, 4
ISOLATED = 5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in inference, and the last one incomplete."""
    monkeypatch.setattr(device, "CPU", device.CPU._replace(edges=8))


class Layer(NamedTuple):
    """A layer with random weights, and what it is applied to."""

    variables: dict
    h: jax.Array
    position: jax.Array
    edges: EdgeInputs
    apply: Callable
    """From latents, positions, and whether to normalise by batch statistics, to the next ones."""


def make_layer(aggregation="mean", residual=True) -> Layer:
    """Edges hold self-loops and padding; hit 5 receives none, and the last hit is padding."""
    rng = np.random.default_rng(0)
    receivers, senders = np.nonzero(rng.random((NUM_HITS - 1, NUM_HITS - 1)) < 0.5)
    real = receivers != ISOLATED
    receivers = np.concatenate([receivers[real], np.full(3, NUM_HITS - 1)])
    senders = np.concatenate([senders[real], [0, 1, 2]])
    num_edges = len(receivers)
    assert num_edges % 8
    mask = np.arange(num_edges) < num_edges - 3
    scalars = rng.normal(size=(num_edges, NUM_SCALARS))
    edges = EdgeInputs(*(jnp.asarray(array) for array in (senders, receivers, mask, scalars)))
    degree = jnp.asarray(np.bincount(receivers[mask], minlength=NUM_HITS), jnp.float64)
    hit_mask = jnp.arange(NUM_HITS) < NUM_HITS - 1
    h, position = (jnp.asarray(rng.normal(size=(NUM_HITS, width))) for width in (WIDTH, 3))
    layer = GaugeEdgeConv(WIDTH, NUM_SCALARS, WIDTH, residual, aggregation)
    variables = random_weights(
        lambda: layer.init(jax.random.key(0), h, position, hit_mask, edges, degree, True)
    )

    def apply(h, position, train):
        given = (h, position, hit_mask, edges, degree, train)
        return layer.apply(variables, *given, mutable=["batch_stats"])[0]

    return Layer(variables, h, position, edges, jax.jit(apply, static_argnums=2))


def looped(layer: Layer, train, residual):
    """The formulas of `GaugeEdgeConv` edge by edge, for real hits."""
    params, stats = (jax.device_get(layer.variables[name]) for name in ("params", "batch_stats"))
    edges = EdgeInputs(*(np.asarray(array)[np.asarray(layer.edges.mask)] for array in layer.edges))
    h, position = np.asarray(layer.h)[:-1], np.asarray(layer.position)[:-1]

    def apply(name, x, params, stats):
        return normed_linear(params[name], x, None if train else stats[name])

    apart = position[edges.senders] - position[edges.receivers]
    squared = (apart**2).sum(axis=1, keepdims=True)
    rows = np.concatenate([h[edges.receivers], h[edges.senders], squared, edges.scalars], axis=1)
    for name in ("edge_first", "edge_second"):
        rows = apply(name, rows, params, stats)
    weight = apply("layers_0", rows, params["shift"], stats["shift"])
    shift = apart * np.tanh(linear(params["shift"], weight))
    message, moved = np.zeros((len(h), WIDTH)), position.copy()
    for i in range(len(h)):
        if i != ISOLATED:
            message[i] = rows[edges.receivers == i].mean(axis=0)
            moved[i] += shift[edges.receivers == i].mean(axis=0)
    y = np.concatenate([h, message], axis=1)
    for name in ("layers_0", "layers_1"):
        y = apply(name, y, params["latent"], stats["latent"])
    return y + h if residual else y, moved


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_a_layer_equals_a_loop_over_edges(residual, train):
    layer = make_layer(residual=residual)
    found = layer.apply(layer.h, layer.position, train)
    for ours, expected in zip(found, looped(layer, train, residual), strict=True):
        np.testing.assert_allclose(ours[:-1], expected, rtol=1e-9, atol=1e-9)


def motion(turns_over):
    """A random rotation, or one that is also a reflection, and a translation."""
    rng = np.random.default_rng(7)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn[0] *= np.sign(np.linalg.det(turn)) * (-1 if turns_over else 1)
    assert np.isclose(np.linalg.det(turn), -1 if turns_over else 1)
    return jnp.asarray(turn), jnp.asarray(rng.normal(0, 3, 3))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("aggregation", "turns_over"), [("mean", False), ("max", True), ("softmax", True)]
)
def test_motions_change_no_latent_and_move_the_new_positions(aggregation, turns_over, train):
    layer = make_layer(aggregation)
    turn, way = motion(turns_over)

    def moved(position):
        return position @ turn.T + way[None, :]

    before = layer.apply(layer.h, layer.position, train)
    after = layer.apply(layer.h, moved(layer.position), train)
    np.testing.assert_allclose(after[0], before[0], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(after[1], moved(before[1]), rtol=1e-10, atol=1e-11)
    # It sees the positions, and moves all hits but the one without messages and the padding.
    stretched, _ = layer.apply(layer.h, 1.1 * layer.position, train)
    assert np.any(np.abs(stretched - before[0]) > 1e-4)
    is_moved = np.abs(before[1] - layer.position).max(axis=1) > 1e-4
    np.testing.assert_array_equal(np.flatnonzero(~is_moved), [ISOLATED, NUM_HITS - 1])


@pytest.mark.parametrize("train", [True, False])
def test_motions_of_an_event_change_no_logit(train):
    network = EdgePredictor(replace(SMALL_NETWORK, convolution="gauge"))
    graph = jax.tree.map(jnp.asarray, toy_graph())
    turn, way = motion(turns_over=True)

    def at(position):
        return graph._replace(nodes=graph.nodes._replace(position=position))

    variables = random_weights(
        lambda: network.init(jax.random.key(0), graph, False, jnp.float64), seed=3
    )

    @jax.jit
    def predictions(graph):
        return network.apply(variables, graph, train, jnp.float64, mutable=["batch_stats"])[0]

    position = graph.nodes.position.astype(jnp.float64)
    before = predictions(at(position))
    after = predictions(at(position @ turn.T + 100 * way[None, :]))
    stretched = predictions(at(1.1 * position))
    real = np.asarray(graph.nodes.mask)
    np.testing.assert_allclose(after.logit, before.logit, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(after.embedding[real], before.embedding[real], rtol=1e-7, atol=1e-8)
    assert np.std(before.logit) > 1e-3
    assert np.any(np.abs(stretched.logit - before.logit) > 1e-4)
