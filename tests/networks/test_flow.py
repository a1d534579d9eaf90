"""The flow as a density: triangular, normalised, invertible, and dependent on its condition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.networks import flow
from hypertrack_jax.networks.flow import flow_log_density, flow_noise, init_flow
from hypertrack_jax.tunes.tune import NetworkTune
from hypertrack_jax.tunes.tune_5 import TUNE

NUM_CONDITIONS = 3
log_density = jax.jit(flow_log_density)
fresh_flow = jax.jit(init_flow, static_argnums=(0, 1))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def random_flow(num_features, num_blocks, spread=0.4):
    """Parameters none of which is 0."""
    tune = NetworkTune(embedding_dim=num_features, flow_blocks=num_blocks, flow_width=11)
    params = fresh_flow(tune, NUM_CONDITIONS, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, spread, leaf.shape), params)


def rows(num_rows, width, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1.5, (num_rows, width)))


def jacobians(params, z, condition):
    """The derivative of the noise by z, of every row."""

    def of_row(z, condition):
        return jax.jacfwd(lambda z: flow_noise(params, z[None], condition[None])[0][0])(z)

    return jax.jit(jax.vmap(of_row))(z, condition)


def test_a_block_sees_the_channels_before_each_alone():
    params, z, condition = random_flow(5, 1), rows(4, 5), rows(4, NUM_CONDITIONS, 1)
    # A block turns the channels round; undone, the matrix is lower triangular.
    matrix = np.asarray(jacobians(params, z, condition))[:, ::-1]
    upper = np.triu(np.ones((5, 5), bool), 1)
    np.testing.assert_array_equal(matrix[:, upper], 0)
    assert np.all(np.abs(matrix[:, ~upper]) > 1e-8)


def test_after_two_blocks_every_channel_depends_on_every_other():
    params = random_flow(5, 2)
    assert np.all(np.abs(jacobians(params, rows(4, 5), rows(4, NUM_CONDITIONS, 1))) > 1e-9)


@pytest.mark.parametrize("num_blocks", [1, 4])
def test_the_determinant_is_that_of_the_jacobian(num_blocks):
    params, z, condition = random_flow(6, num_blocks), rows(7, 6), rows(7, NUM_CONDITIONS, 1)
    _, found = flow_noise(params, z, condition)
    expected = np.linalg.slogdet(jacobians(params, z, condition))[1]
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_features", [1, 2])
def test_the_density_integrates_to_one(num_features):
    params, condition = random_flow(num_features, 2), jnp.asarray([[0.3, -1.2, 0.8]])
    # Fine and wide enough that the rest is below a millionth.
    step = 0.1
    axis = np.arange(-30, 30, step)
    grid = np.stack(np.meshgrid(*[axis] * num_features, indexing="ij"), axis=-1)
    z = jnp.asarray(grid.reshape(-1, num_features))

    @jax.jit
    def total(z):
        density = jnp.exp(flow_log_density(params, z, jnp.tile(condition, (len(z), 1))))
        return density.sum() * step**num_features

    assert float(total(z)) == pytest.approx(1, abs=1e-5)


def inverse(params, noise, condition):
    """The z that noise gives, channel by channel: each needs those before it alone."""
    z = noise
    for i in reversed(range(len(params))):
        noise, z = z[:, ::-1], jnp.zeros_like(z)
        for _ in range(z.shape[1]):
            shift, log_scale = flow._shift_and_log_scale(params[f"block_{i}"], z, condition)
            z = noise * jnp.exp(log_scale) + shift
    return z


@pytest.mark.parametrize("num_features", [1, 6])
def test_noise_and_back_again(num_features):
    params = random_flow(num_features, 3)
    z, condition = rows(9, num_features), rows(9, NUM_CONDITIONS, 1)
    noise, _ = flow_noise(params, z, condition)
    assert np.all(np.abs(noise - z).max(axis=1) > 1e-2)
    back = jax.jit(inverse)(params, noise, condition)
    np.testing.assert_allclose(back, z, rtol=1e-9, atol=1e-9)


def test_a_fresh_flow_is_a_standard_normal():
    params = fresh_flow(NetworkTune(embedding_dim=4), NUM_CONDITIONS, jax.random.key(0))
    z = rows(5, 4)
    found = log_density(params, z, rows(5, NUM_CONDITIONS, 1))
    expected = -0.5 * np.square(z).sum(axis=1) - 2 * np.log(2 * np.pi)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_row_depends_on_its_own_condition_alone():
    params, z, condition = random_flow(5, 2), rows(4, 5), rows(4, NUM_CONDITIONS, 1)
    before = log_density(params, z, condition)
    after = log_density(params, z, condition.at[1].add(0.5))
    np.testing.assert_array_equal(np.asarray(before) == after, [True, False, True, True])


def test_far_outliers_have_finite_densities_and_gradients():
    params = jax.tree.map(lambda leaf: 100 * leaf.astype(jnp.float32), random_flow(5, 4))
    z, condition = (1e3 * rows(4, width).astype(jnp.float32) for width in (5, NUM_CONDITIONS))
    value, gradient = jax.jit(
        jax.value_and_grad(lambda params: flow_log_density(params, z, condition).sum())
    )(params)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_a_flow_that_is_trained_learns_a_density():
    """Of a normal distribution whose mean and spread the condition tells; its entropy is known."""
    tune = NetworkTune(embedding_dim=2, flow_blocks=2, flow_width=16)
    params = fresh_flow(tune, 1, jax.random.key(0))
    rng = np.random.default_rng(0)
    condition = rng.uniform(-1, 1, (2000, 1))
    z = condition * [2.0, -1.0] + np.exp(condition) * rng.normal(size=(2000, 2))
    z, condition = jnp.asarray(z), jnp.asarray(condition)

    @partial(jax.jit, donate_argnums=0)
    def step(params):
        loss, gradient = jax.value_and_grad(lambda p: -flow_log_density(p, z, condition).mean())(
            params
        )
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), loss

    for _ in range(300):
        params, loss = step(params)
    entropy = np.log(2 * np.pi * np.e) + 2 * float(condition.mean())
    assert float(loss) == pytest.approx(entropy, abs=0.08)


def test_published_sizes():
    params = jax.eval_shape(lambda: init_flow(TUNE.network, 7, jax.random.key(0)))
    assert sorted(params) == ["block_0", "block_1", "block_2", "block_3"]
    shapes = {name: layer["kernel"].shape for name, layer in params["block_3"].items()}
    assert shapes == {
        "input": (61, 196),
        "condition": (7, 196),
        "hidden": (196, 196),
        "output": (196, 122),
    }
