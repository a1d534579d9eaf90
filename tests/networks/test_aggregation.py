"""Every aggregation against the messages of one hit at a time, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from formulas import attention_block, linear, softmax

from hypertrack_jax.networks.aggregation import (
    EPSILON,
    OF_ALL_AT_ONCE,
    aggregate,
    five_aggregates,
    no_messages,
    with_messages,
)
from hypertrack_jax.networks.edge_inputs import EdgeInputs
from hypertrack_jax.networks.mlp import Affine
from hypertrack_jax.tunes.tune import NetworkTune, choices

NUM_HITS, NUM_REAL, WIDTH = 8, 30, 3
ISOLATED = 4
BLOCKWISE = ("mean", "sum", "max")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def edges():
    """Edges sorted by receiver; hit 4 receives none, and the last hit padding alone.

    Of three other hits, too, an edge is masked.
    """
    rng = np.random.default_rng(0)
    receivers = np.sort(rng.choice([i for i in range(NUM_HITS - 1) if i != ISOLATED], NUM_REAL))
    receivers = np.concatenate([receivers, np.full(6, NUM_HITS - 1)])
    return EdgeInputs(
        jnp.asarray(rng.integers(0, NUM_HITS, len(receivers))),
        jnp.asarray(receivers),
        jnp.asarray(~np.isin(np.arange(len(receivers)), [3, 11, 20, *range(NUM_REAL, 36)])),
        jnp.zeros((len(receivers), 0)),
    )


@pytest.fixture
def messages(edges):
    return jnp.asarray(np.random.default_rng(1).normal(size=(len(edges.mask), WIDTH)))


@pytest.fixture
def norm():
    """One channel is turned over: its largest message was its smallest before the norm."""
    return Affine(jnp.asarray([0.7, -1.3, 2.0]), jnp.asarray([0.2, 0.4, -0.9]))


def degree_of(edges):
    return jnp.zeros(NUM_HITS).at[edges.receivers].add(edges.mask.astype(float))


def by_hit(messages, edges, of_hit, shape):
    """What `of_hit` makes of the real messages to each hit; zeros where there are none."""
    messages, edges = jax.device_get((messages, edges))
    result = np.zeros((NUM_HITS, *shape))
    for i in range(NUM_HITS):
        own = messages[edges.mask & (edges.receivers == i)]
        if len(own):
            result[i] = of_hit(own)
    assert np.all(result[[ISOLATED, NUM_HITS - 1]] == 0)
    return result


def five(own):
    deviation = np.sqrt(own.var(axis=0) + EPSILON)
    return np.stack([own.sum(0), own.mean(0), deviation, own.max(0), own.min(0)])


def in_pieces(kind, messages, norm, edges, size):
    """A blockwise aggregation with so many edges at a time."""
    total = no_messages(kind, NUM_HITS, WIDTH, jnp.float64)
    for start in range(0, len(messages), size):
        piece = slice(start, start + size)
        part = EdgeInputs(*(array[piece] for array in edges))
        total = with_messages(kind, total, messages[piece], norm, part)
    return aggregate(kind, total, norm, degree_of(edges), jnp.float64)


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("kind", BLOCKWISE)
def test_blockwise_aggregations_are_those_of_the_normed_messages(kind, size, messages, norm, edges):
    of_hit = {"mean": np.mean, "sum": np.sum, "max": np.max}[kind]
    expected = by_hit(norm(messages), edges, lambda own: of_hit(own, axis=0), (WIDTH,))
    found = in_pieces(kind, messages, norm, edges, size)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_every_aggregation_of_the_tune_is_there():
    assert choices(NetworkTune, "aggregation") == (*BLOCKWISE, *OF_ALL_AT_ONCE)


def made(kind, messages, edges):
    """An aggregation with random parameters, as a function of these and the messages."""
    module = OF_ALL_AT_ONCE[kind](WIDTH)
    degree = degree_of(edges)
    params = module.init(jax.random.key(0), messages, edges, degree).get("params", {})
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape), params)

    def apply(params, messages, edges):
        return module.apply({"params": params}, messages, edges, degree_of(edges))

    return params, jax.jit(apply)


def test_softmax_weighs_every_channel_by_itself(messages, edges):
    params, apply = made("softmax", messages, edges)
    expected = by_hit(messages, edges, lambda own: (softmax(own.T).T * own).sum(axis=0), (WIDTH,))
    np.testing.assert_allclose(apply(params, messages, edges), expected, rtol=1e-12, atol=1e-12)
    # Of messages far apart it is the largest, without overflow.
    far = apply(params, 1e4 * messages, edges)
    largest = by_hit(1e4 * messages, edges, lambda own: own.max(axis=0), (WIDTH,))
    np.testing.assert_allclose(far, largest, rtol=1e-9)


def test_the_five_aggregates_of_every_hit(messages, edges):
    found = np.stack(five_aggregates(messages, edges, degree_of(edges)), axis=1)
    expected = by_hit(messages, edges, five, (5, WIDTH))
    has_messages = np.asarray(degree_of(edges)) > 0
    np.testing.assert_allclose(found[has_messages], expected[has_messages], rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(found[~has_messages][:, [0, 1, 3, 4]], 0)


def test_multi_aggregation_lets_the_five_attend_to_each_other(messages, edges):
    params, apply = made("multi-aggregation", messages, edges)
    weights = jax.device_get(params)

    def of_hit(own):
        x = np.stack([linear(weights[f"projections_{k}"], row) for k, row in enumerate(five(own))])
        query, key, value = (linear(weights[name], x) for name in ("query", "key", "value"))
        seen = softmax(query @ key.T / np.sqrt(WIDTH)) @ value
        return linear(weights["output"], seen).mean(axis=0)

    expected = by_hit(messages, edges, of_hit, (WIDTH,))
    np.testing.assert_allclose(apply(params, messages, edges), expected, rtol=1e-9, atol=1e-10)


def test_set_transformer_pools_messages_that_saw_each_other(messages, edges):
    params, apply = made("set-transformer", messages, edges)
    weights = jax.device_get(params)

    def of_hit(own):
        induced = attention_block(weights["inward"], weights["inducing"], own, num_heads=1)
        own = attention_block(weights["outward"], own, induced, num_heads=1)
        return attention_block(weights["pooling"], weights["seed"], own, num_heads=1)[0]

    expected = by_hit(messages, edges, of_hit, (WIDTH,))
    np.testing.assert_allclose(apply(params, messages, edges), expected, rtol=1e-9, atol=1e-10)


def value_and_gradients(apply, params, messages, edges):
    def value(params, messages):
        hit = jnp.arange(1.0, 1 + NUM_HITS)[:, None]
        return (jnp.sin(apply(params, messages, edges)) * hit).sum()

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(params, messages)


@pytest.mark.parametrize("kind", [*BLOCKWISE, *OF_ALL_AT_ONCE])
def test_padding_changes_no_value_and_no_gradient(kind, messages, norm, edges):
    if kind in OF_ALL_AT_ONCE:
        params, apply = made(kind, messages, edges)
    else:
        params = {}

        def apply(_, messages, edges):
            return in_pieces(kind, messages, norm, edges, size=7)

    garbage = jnp.where(edges.mask[:, None], messages, 1e3)
    real = np.flatnonzero(edges.mask)
    assert len(real) == NUM_REAL - 3
    bare = EdgeInputs(*(array[real] for array in edges))
    expected, (of_params, of_messages) = value_and_gradients(apply, params, messages[real], bare)
    found, (padded_of_params, padded_of_messages) = value_and_gradients(
        apply, params, garbage, edges
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
        of_params,
        padded_of_params,
    )
    np.testing.assert_allclose(padded_of_messages[real], of_messages, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(padded_of_messages[~np.asarray(edges.mask)], 0)
    assert np.all(np.isfinite(of_messages))
    assert np.abs(of_messages).max() > 1e-2


@pytest.mark.parametrize("kind", [*BLOCKWISE, *OF_ALL_AT_ONCE])
def test_equal_messages_and_none_at_all_have_finite_gradients(kind, messages, norm, edges):
    if kind in OF_ALL_AT_ONCE:
        params, apply = made(kind, messages, edges)
    else:
        params = {}

        def apply(_, messages, edges):
            return in_pieces(kind, messages, norm, edges, size=7)

    # Where all are equal, a standard deviation is 0 and every message is the largest.
    nothing = edges._replace(mask=jnp.zeros_like(edges.mask))
    for given in (edges, nothing):
        leaves = value_and_gradients(apply, params, jnp.ones_like(messages), given)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(leaves))


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_half_precision_messages_are_summed_in_float32(kind):
    # In bfloat16 a sum of ones ends at 256.
    num_edges = 1000
    edges = EdgeInputs(
        jnp.zeros(num_edges, jnp.int32),
        jnp.zeros(num_edges, jnp.int32),
        jnp.ones(num_edges, bool),
        jnp.zeros((num_edges, 0)),
    )
    identity = Affine(jnp.ones(1, jnp.float32), jnp.zeros(1, jnp.float32))
    total = no_messages(kind, 1, 1, jnp.bfloat16)
    total = with_messages(kind, total, jnp.ones((num_edges, 1), jnp.bfloat16), identity, edges)
    degree = jnp.full(1, num_edges, jnp.float32)
    found = aggregate(kind, total, identity, degree, jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    assert float(found[0, 0]) == {"mean": 1, "sum": 1000}[kind]
