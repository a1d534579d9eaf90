"""One message-passing layer against a loop over its edges, in float64."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import normed_linear, softmax

from hypertrack_jax import device
from hypertrack_jax.networks import edge_conv
from hypertrack_jax.networks.edge_conv import SuperEdgeConv
from hypertrack_jax.networks.edge_inputs import EdgeInputs

NUM_HITS, NUM_SCALARS, WIDTH = 9, 2, 4
ISOLATED = 5


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Layer(NamedTuple):
    """A layer with random weights, and what it is applied to."""

    variables: dict
    x: jax.Array
    edges: EdgeInputs
    apply: Callable[..., jax.Array]
    """From hits, whether to normalise by batch statistics, and perhaps other parameters, to the
    next latent."""


def make_layer(in_features, aggregation="mean") -> Layer:
    """Edges hold self-loops, and hit 5 receives none."""
    rng = np.random.default_rng(0)
    receivers, senders = np.nonzero(rng.random((NUM_HITS, NUM_HITS)) < 0.5)
    real = receivers != ISOLATED
    receivers, senders = (side[real].astype(np.int32) for side in (receivers, senders))
    assert (receivers == senders).any()
    edges = EdgeInputs(
        jnp.asarray(senders),
        jnp.asarray(receivers),
        jnp.ones(len(senders), bool),
        jnp.asarray(rng.normal(size=(len(senders), NUM_SCALARS))),
    )
    degree = jnp.asarray(np.bincount(receivers, minlength=NUM_HITS), jnp.float64)
    x = jnp.asarray(rng.normal(size=(NUM_HITS, in_features)))
    layer = SuperEdgeConv(in_features, NUM_SCALARS, WIDTH, in_features == WIDTH, aggregation)
    mask = jnp.ones(NUM_HITS, bool)
    variables = layer.init(jax.random.key(0), x, mask, edges, degree, True)
    variables = jax.tree.map(lambda leaf: leaf + rng.uniform(0.1, 0.5, leaf.shape), dict(variables))
    # A norm that turns a channel over, so that its largest message was its smallest.
    scale = variables["params"]["edge_second"]["norm"]["scale"]
    variables["params"]["edge_second"]["norm"]["scale"] = scale.at[0].multiply(-1)

    def apply(x, train, params=variables["params"]):
        given = (variables | {"params": params}, x, mask, edges, degree, train)
        return layer.apply(*given, mutable=["batch_stats"])[0]

    return Layer(variables, x, edges, apply)


AGGREGATES = {
    "mean": lambda message: message.mean(axis=0),
    "sum": lambda message: message.sum(axis=0),
    "max": lambda message: message.max(axis=0),
    "softmax": lambda message: (softmax(message.T).T * message).sum(axis=0),
}
"""What all messages to a hit become; the other aggregations are in `test_aggregation`."""


def looped(layer: Layer, train, aggregation="mean"):
    """algorithm.md, section 3, term by term."""
    params, stats = (jax.device_get(layer.variables[name]) for name in ("params", "batch_stats"))

    def apply(name, x, params, stats):
        return normed_linear(params[name], x, None if train else stats[name])

    edges, x = jax.device_get(layer.edges), np.asarray(layer.x)
    rows = []
    for j, i, own in zip(edges.senders, edges.receivers, edges.scalars, strict=True):
        apart = x[j] - x[i]
        rows.append([*x[i], *apart, *(x[j] * x[i]), np.sqrt(apart @ apart), x[j] @ x[i], *own])
    messages = np.array(rows)
    for name in ("edge_first", "edge_second"):
        messages = apply(name, messages, params, stats)
    gathered = np.zeros((NUM_HITS, WIDTH))
    for i in range(NUM_HITS):
        if i != ISOLATED:
            gathered[i] = AGGREGATES[aggregation](messages[edges.receivers == i])
    y = np.concatenate([x, gathered], axis=1)
    for name in ("layers_0", "layers_1"):
        y = apply(name, y, params["latent"], stats["latent"])
    return y + x if x.shape[1] == WIDTH else y


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks in inference, of which some share a receiver, and the last one incomplete."""
    monkeypatch.setattr(device, "CPU", device.CPU._replace(edges=8))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("in_features", [3, WIDTH, edge_conv.WIDE])
def test_a_layer_equals_a_loop_over_edges(in_features, train, small_blocks):
    layer = make_layer(in_features)
    assert len(layer.edges.mask) % 8 != 0
    found = layer.apply(layer.x, train)
    np.testing.assert_allclose(found, looped(layer, train), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("aggregation", ["sum", "max", "softmax"])
def test_a_layer_with_another_aggregation_equals_a_loop(aggregation, train, small_blocks):
    layer = make_layer(WIDTH, aggregation)
    expected = looped(layer, train, aggregation)
    assert not np.allclose(expected, looped(layer, train))
    np.testing.assert_allclose(layer.apply(layer.x, train), expected, rtol=1e-9, atol=1e-9)


def test_distances_from_products_have_the_gradient_of_those_from_differences(monkeypatch):
    layer = make_layer(edge_conv.WIDE)

    def gradient():
        channel = jnp.arange(WIDTH, dtype=jnp.float64)[None, :]
        return jax.grad(lambda x: (layer.apply(x, False) * channel).sum())(layer.x)

    from_products = gradient()
    monkeypatch.setattr(edge_conv, "WIDE", 1000)
    from_differences = gradient()
    assert np.any(from_products != from_differences)
    np.testing.assert_allclose(from_products, from_differences, rtol=1e-8, atol=1e-10)


def test_hand_written_gradients_are_those_of_plain_differentiation(monkeypatch):
    layer = make_layer(edge_conv.WIDE)
    channel = jnp.arange(1.0, 1 + WIDTH)[None, :]

    def gradient():
        def value(params, x):
            return (jnp.sin(layer.apply(x, True, params)) * channel).sum()

        return jax.jit(jax.grad(value, argnums=(0, 1)))(layer.variables["params"], layer.x)

    by_hand = gradient()
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    plain = gradient()
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (by_hand, plain)), strict=True))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10), by_hand, plain
    )
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(plain))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("in_features", [3, edge_conv.WIDE])
def test_coinciding_latents_have_finite_distances_and_gradients(in_features, train):
    layer = make_layer(in_features)
    # Two hits alike, and all of them at 0.
    for x in (layer.x.at[1].set(layer.x[0]), jnp.zeros_like(layer.x)):
        value, gradient = jax.value_and_grad(lambda x: layer.apply(x, train).sum())(x)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))
