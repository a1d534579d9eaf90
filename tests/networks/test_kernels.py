"""Every kernel against its plain form, and both against float64; sums in half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.networks import kernels
from hypertrack_jax.networks.kernels import (
    ROW_BLOCK,
    fast_moments,
    fast_pair_product,
    fast_silu,
    fast_tall_matmul,
    masked_moments,
    pair_product,
    plain_moments,
    plain_pair_product,
    plain_silu,
    plain_tall_matmul,
    rows_at,
    silu,
    tall_matmul,
    under_rows,
)

NUM_ROWS, NUM_FEATURES = 60, 5
CHOSEN = {
    silu: (fast_silu, plain_silu),
    tall_matmul: (fast_tall_matmul, plain_tall_matmul),
    masked_moments: (fast_moments, plain_moments),
    pair_product: (fast_pair_product, plain_pair_product),
}


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 2, shape), jnp.float32)


def rising_ends(num_edges, num_hits):
    rng = np.random.default_rng(1)
    senders = rng.integers(0, num_hits, num_edges)
    receivers = np.sort(rng.integers(0, num_hits, num_edges))
    return jnp.asarray(senders, jnp.int32), jnp.asarray(receivers, jnp.int32)


ARGUMENTS = {
    silu: ((random(NUM_ROWS, NUM_FEATURES),), ()),
    tall_matmul: ((random(3 * ROW_BLOCK, 5), random(5, 3, seed=2)), ()),
    masked_moments: ((random(NUM_ROWS, NUM_FEATURES) + 30,), (jnp.arange(NUM_ROWS) % 3 > 0,)),
    pair_product: ((random(20, NUM_FEATURES),), rising_ends(NUM_ROWS, 20)),
}


def values_and_gradient(form, arrays, rest):
    """All values of a form, and the gradient of a function of them."""

    def value(*arrays):
        values = jax.tree.leaves(form(*arrays, *rest))
        return sum(jnp.sin(value).sum() for value in values), values

    of_arrays = tuple(range(len(arrays)))
    (_, values), gradient = jax.value_and_grad(value, of_arrays, has_aux=True)(*arrays)
    return values, gradient


@pytest.mark.parametrize("chosen", CHOSEN)
def test_a_cpu_takes_the_fast_form_and_others_the_plain_one(chosen, monkeypatch):
    arguments = sum(ARGUMENTS[chosen], ())
    fast, plain = CHOSEN[chosen]

    def traced(form):
        return str(jax.make_jaxpr(lambda *arguments: form(*arguments))(*arguments))

    assert "custom_vjp" in traced(fast)
    assert traced(chosen) == traced(fast) != traced(plain)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert traced(chosen) == traced(plain)


@pytest.mark.parametrize("chosen", CHOSEN)
def test_the_fast_form_has_the_values_and_gradients_of_the_plain_one(chosen):
    with jax.enable_x64(True):
        arrays, rest = ARGUMENTS[chosen]
        arrays = [jnp.asarray(array, jnp.float64) for array in arrays]
        found, expected = (values_and_gradient(form, arrays, rest) for form in CHOSEN[chosen])
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
            assert np.any(b != 0)


def test_a_tall_product_of_a_number_of_rows_that_is_no_multiple_of_a_block():
    arrays = random(100, 5), random(5, 3, seed=2)
    found, expected = (values_and_gradient(form, arrays, ()) for form in CHOSEN[tall_matmul])
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", CHOSEN[silu])
def test_silu_and_its_gradient(form):
    x = jnp.linspace(-90, 90, 181)[:, None]
    exact = np.asarray(x, np.float64)
    sigmoid = 1 / (1 + np.exp(-exact))
    gradient = jax.grad(lambda x: (x * form(x)).sum())(x)
    np.testing.assert_allclose(form(x), exact * sigmoid, rtol=1e-5, atol=1e-30)
    # d/dx x silu(x) = silu(x) + x silu'(x), with silu' = s + x s (1 - s).
    slope = sigmoid * (1 + exact * (1 - sigmoid))
    expected = exact * sigmoid + exact * slope
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("form", CHOSEN[masked_moments])
@pytest.mark.parametrize("num_real", [41, 1, 0])
@pytest.mark.parametrize("padding", [-7e3, 1e20, np.inf, np.nan])
def test_moments_are_those_of_the_real_rows_whatever_padding_holds(form, num_real, padding):
    # Far from 0 with little spread, as positions in mm are.
    x = np.random.default_rng(0).normal(900, 2, (NUM_ROWS, NUM_FEATURES)).astype(np.float32)
    mask = np.random.default_rng(1).permutation(NUM_ROWS) < num_real
    x[~mask] = padding
    (mean, var, count), (gradient,) = values_and_gradient(
        form, [jnp.asarray(x)], [jnp.asarray(mask)]
    )
    real = x[mask].astype(np.float64) if num_real else np.zeros((1, NUM_FEATURES))
    assert count == max(num_real, 1)
    np.testing.assert_allclose(mean, real.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(var, real.var(axis=0), rtol=1e-4)
    assert np.all(gradient[~mask] == 0)
    assert np.all(np.isfinite(gradient)) and np.all(gradient[mask] != 0)


NUM_ONES = 1000
"""In bfloat16 a sum of so many ones ends at 256."""


@pytest.mark.parametrize("form", CHOSEN[masked_moments])
def test_moments_of_half_precision_rows_are_accumulated_in_float32(form):
    x = jnp.ones((NUM_ONES, 1), jnp.bfloat16)
    mean, var, count = form(x, jnp.ones(NUM_ONES, bool))
    assert mean.dtype == var.dtype == jnp.float32
    assert (mean[0], var[0], count) == (1, 0, NUM_ONES)


def ones(*shape):
    return jnp.ones(shape, jnp.bfloat16)


HUB = jnp.zeros(NUM_ONES, jnp.int32)
"""The hit that all edges begin or end at."""
SUMS = {
    "gather, receivers": lambda x: rows_at(x, HUB),
    "gather, senders": lambda x: rows_at(x, HUB, sorted_ids=False),
    "channel": lambda x: under_rows(x[0].astype(jnp.float32), ones(NUM_ONES, 1)),
    "fast pair product": lambda x: fast_pair_product(x, jnp.ones_like(HUB), HUB),
    "plain pair product": lambda x: plain_pair_product(x, HUB, jnp.ones_like(HUB)),
    "fast product": lambda x: fast_tall_matmul(ones(NUM_ONES, 2), x),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_gradient_of_half_precision_rows_is_summed_in_float32(name):
    gradient = jax.grad(lambda x: SUMS[name](x).astype(jnp.float32).sum())(ones(2, 1))
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient[0, 0]) == pytest.approx(NUM_ONES, rel=2**-8)
    assert kernels.wide_dtype(gradient.dtype) == jnp.float32
