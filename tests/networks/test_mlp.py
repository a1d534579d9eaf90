"""The Linear, SiLU, BatchNorm recipe against float64 formulas on the real rows alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.networks.mlp import MLP, Affine, BatchNorm, NormedLinear, fold

NUM_ROWS, NUM_REAL, NUM_FEATURES = 60, 41, 5
MOMENTUM, EPSILON = 0.1, 1e-5


@pytest.fixture
def rows():
    """Rows far from 0 with little spread, as positions in mm have; padding rows hold garbage."""
    rng = np.random.default_rng(0)
    x = rng.normal(900, 2, (NUM_ROWS, NUM_FEATURES))
    mask = np.zeros(NUM_ROWS, bool)
    mask[rng.permutation(NUM_ROWS)[:NUM_REAL]] = True
    x[~mask] = -7e3
    return jnp.asarray(x, jnp.float32), jnp.asarray(mask)


@pytest.fixture
def norm_variables():
    rng = np.random.default_rng(1)
    scale, bias, mean = (rng.normal(size=NUM_FEATURES).astype(np.float32) for _ in range(3))
    var = rng.uniform(0.5, 2, NUM_FEATURES).astype(np.float32)
    return {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }


def normalised(x, variables, mean, var):
    params = variables["params"]
    return (x - mean) / np.sqrt(var + EPSILON) * params["scale"] + params["bias"]


def real_rows(rows):
    x, mask = rows
    return np.asarray(x, np.float64)[np.asarray(mask)]


def test_training_normalises_by_the_biased_moments_of_the_real_rows(rows, norm_variables):
    x, mask = rows
    affine, _ = BatchNorm(NUM_FEATURES).apply(
        norm_variables, x, mask, method="batch", mutable=["batch_stats"]
    )
    real = real_rows(rows)
    expected = normalised(real, norm_variables, real.mean(axis=0), real.var(axis=0))
    np.testing.assert_allclose(np.asarray(affine(x))[np.asarray(mask)], expected, atol=3e-3)
    # The same without the rounding of applying it to values of 900.
    scale = norm_variables["params"]["scale"] / np.sqrt(real.var(axis=0) + EPSILON)
    np.testing.assert_allclose(affine.scale, scale, rtol=1e-5)


def test_running_statistics_move_by_the_momentum_to_the_unbiased_variance(rows, norm_variables):
    x, mask = rows
    variables = norm_variables
    real = real_rows(rows)
    mean, var = (variables["batch_stats"][name].astype(np.float64) for name in ("mean", "var"))
    for _ in range(2):
        _, updates = BatchNorm(NUM_FEATURES).apply(
            variables, x, mask, method="batch", mutable=["batch_stats"]
        )
        variables = variables | updates
        mean = (1 - MOMENTUM) * mean + MOMENTUM * real.mean(axis=0)
        var = (1 - MOMENTUM) * var + MOMENTUM * real.var(axis=0, ddof=1)
    np.testing.assert_allclose(variables["batch_stats"]["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(variables["batch_stats"]["var"], var, rtol=1e-5)


def test_running_statistics_stay_where_nobody_may_move_them(rows, norm_variables):
    affine = BatchNorm(NUM_FEATURES).apply(norm_variables, *rows, method="batch")
    assert np.all(np.isfinite(affine.scale))


def test_fresh_running_statistics_do_not_come_from_the_first_event(rows):
    fresh = BatchNorm(NUM_FEATURES).init(jax.random.key(0), *rows, method="batch")["batch_stats"]
    np.testing.assert_array_equal(fresh["mean"], np.zeros(NUM_FEATURES))
    np.testing.assert_array_equal(fresh["var"], np.ones(NUM_FEATURES))


def test_inference_normalises_by_running_statistics(rows, norm_variables):
    affine = BatchNorm(NUM_FEATURES).apply(norm_variables, method="running")
    stats = norm_variables["batch_stats"]
    expected = normalised(real_rows(rows), norm_variables, stats["mean"], stats["var"])
    found = np.asarray(affine(rows[0]))[np.asarray(rows[1])]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_no_gradient_flows_into_running_statistics(rows, norm_variables):
    def moved(x):
        _, updates = BatchNorm(NUM_FEATURES).apply(
            norm_variables, x, rows[1], method="batch", mutable=["batch_stats"]
        )
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(updates))

    assert np.all(jax.grad(moved)(rows[0]) == 0)


@pytest.mark.parametrize("num_real", [0, 1])
def test_too_few_rows_for_a_variance_give_finite_numbers(norm_variables, num_real):
    x = jnp.full((4, NUM_FEATURES), 3.0)
    mask = jnp.arange(4) < num_real
    affine, updates = BatchNorm(NUM_FEATURES).apply(
        norm_variables, x, mask, method="batch", mutable=["batch_stats"]
    )
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((affine, updates)))


def test_a_folded_norm_acts_like_the_norm_before_the_linear():
    rng = np.random.default_rng(2)
    before = Affine(*(jnp.asarray(rng.normal(size=3), jnp.float32) for _ in range(2)))
    kernel, bias, x = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in [(3, 4), 4, (6, 3)])
    folded_kernel, folded_bias = fold(before, kernel, bias)
    np.testing.assert_allclose(
        x @ folded_kernel + folded_bias[None, :],
        before(x) @ kernel + bias[None, :],
        rtol=1e-4,
        atol=1e-5,
    )


def reference_mlp(x, params, dims, plain_last):
    """Linear, SiLU, BatchNorm by batch statistics, layer after layer in float64."""
    num_normed = len(dims) - 1 - plain_last
    for layer in (params[f"layers_{i}"] for i in range(num_normed)):
        x = x @ np.float64(layer["kernel"]) + np.float64(layer["bias"])
        x = x / (1 + np.exp(-x))
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + EPSILON)
        x = x * np.float64(layer["norm"]["scale"]) + np.float64(layer["norm"]["bias"])
    return x @ np.float64(params["kernel"]) + np.float64(params["bias"]) if plain_last else x


@pytest.mark.parametrize("plain_last", [False, True])
def test_mlp_is_the_recipe_layer_by_layer(plain_last):
    dims = (3, 8, 6, 2)
    rng = np.random.default_rng(3)
    x, mask = jnp.asarray(rng.normal(size=(30, 3)), jnp.float32), jnp.arange(30) < 22
    mlp = MLP(dims, plain_last=plain_last)
    variables = mlp.init(jax.random.key(0), x, mask, train=True)
    params = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), variables["params"]
    )
    found, _ = mlp.apply({**variables, "params": params}, x, mask, True, mutable=["batch_stats"])
    expected = reference_mlp(np.asarray(x, np.float64)[mask], params, dims, plain_last)
    np.testing.assert_allclose(found[mask], expected, rtol=1e-3, atol=1e-4)


def test_fresh_kernels_are_xavier_normal_and_biases_zero():
    x, mask = jnp.zeros((2, 300)), jnp.ones(2, bool)
    params = NormedLinear(300, 100).init(jax.random.key(0), x, mask, train=False)["params"]
    assert np.std(params["kernel"]) == pytest.approx(np.sqrt(2 / 400), rel=0.02)
    assert np.all(params["bias"] == 0)
