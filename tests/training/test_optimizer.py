"""Learning-rate schedules by hand, weight decay and clipping."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypertrack_jax.training.optimizer import (
    decayed_mask,
    learning_rate_schedule,
    make_optimizer,
)
from hypertrack_jax.training.step import init_state
from hypertrack_jax.tunes.tune import NetworkTune, OptimizerTune, Tune

pytestmark = pytest.mark.usefixtures("optax_promotion")

COSINE = OptimizerTune(learning_rate=2e-3, period=1000, floor=0.1)
CONSTANT = OptimizerTune(learning_rate=2e-3, scheduler_type="constant")


@pytest.mark.parametrize(
    ("step", "fraction_of_peak"),
    [
        (0, 1.0),
        (250, 0.1 + 0.9 * 0.5 * (1 + np.sqrt(0.5))),
        (500, 0.55),
        (999, 0.1),
        (1000, 1.0),
        (1500, 0.55),
        (7000, 1.0),
    ],
)
def test_warm_cos_falls_to_the_floor_and_restarts(step, fraction_of_peak):
    assert learning_rate_schedule(COSINE)(step) == pytest.approx(2e-3 * fraction_of_peak, rel=1e-4)


def test_constant_is_constant():
    rates = [float(learning_rate_schedule(CONSTANT)(step)) for step in (0, 1, 99_999)]
    assert rates == pytest.approx([2e-3] * 3)


@pytest.mark.parametrize(("step", "fraction"), [(0, 0.02), (24, 0.5), (49, 1.0), (50, 1.0)])
def test_warm_up_rises_linearly(step, fraction):
    schedule = learning_rate_schedule(replace(CONSTANT, warmup_steps=50))
    assert schedule(step) == pytest.approx(2e-3 * fraction, rel=1e-6)


def test_warm_up_multiplies_the_cosine():
    schedule = learning_rate_schedule(replace(COSINE, warmup_steps=500))
    assert schedule(249) == pytest.approx(float(learning_rate_schedule(COSINE)(249)) / 2, rel=1e-6)


def test_the_schedule_takes_a_traced_step():
    schedule = learning_rate_schedule(COSINE)
    assert jax.jit(schedule)(jnp.int32(500)) == pytest.approx(float(schedule(500)), rel=1e-6)


def updated(tune, params, gradient, num_steps=1):
    optimizer = make_optimizer(tune)
    state = optimizer.init(params)
    for _ in range(num_steps):
        changes, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, changes)
    return params


def test_decay_shrinks_weight_matrices_alone():
    params = {
        "kernel": jnp.ones((2, 2)),
        "bias": jnp.ones(2),
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    }
    zero = jax.tree.map(jnp.zeros_like, params)
    tune = replace(CONSTANT, weight_decay=0.1)
    after = updated(tune, params, zero)
    np.testing.assert_allclose(after["kernel"], 1 - 2e-3 * 0.1, rtol=1e-6)
    for leaf in jax.tree.leaves((after["bias"], after["norm"])):
        np.testing.assert_array_equal(leaf, 1)


def test_every_matrix_of_the_network_is_decayed_and_nothing_else():
    tune = Tune("small", network=NetworkTune(num_layers=2, latent_dim=4, edge_mlp_dims=(3,)))
    params = jax.eval_shape(lambda: init_state(tune, jax.random.key(0))).params
    decayed = decayed_mask(params)
    assert jax.tree.map(lambda leaf: leaf.ndim == 2, params) == decayed
    assert any(jax.tree.leaves(decayed))


def test_a_long_gradient_is_shortened_to_the_clip_norm():
    # With an epsilon far above the gradient, a step is the learning rate times gradient / epsilon.
    tune = replace(CONSTANT, weight_decay=0.0, epsilon=1e3, clip_norm=0.5, learning_rate=1.0)
    params = {"kernel": jnp.zeros((1, 1)), "bias": jnp.zeros(1)}
    long = {"kernel": jnp.full((1, 1), 30.0), "bias": jnp.full(1, -40.0)}
    after = updated(tune, params, long)
    np.testing.assert_allclose(after["kernel"], -0.3 / 1e3, rtol=1e-3)
    np.testing.assert_allclose(after["bias"], 0.4 / 1e3, rtol=1e-3)
    short = jax.tree.map(lambda leaf: leaf / 1000, long)
    after = updated(tune, params, short)
    np.testing.assert_allclose(after["kernel"], -0.03 / 1e3, rtol=1e-3)


def test_steps_follow_the_schedule():
    # Adam's step is the learning rate for a gradient that stays the same.
    tune = replace(COSINE, weight_decay=0.0, epsilon=1e-12, period=4)
    gradient = {"kernel": jnp.full((1, 1), 0.1)}
    after = updated(tune, {"kernel": jnp.zeros((1, 1))}, gradient, num_steps=6)
    rates = [float(learning_rate_schedule(tune)(step)) for step in range(6)]
    np.testing.assert_allclose(after["kernel"], -sum(rates), rtol=1e-4)
