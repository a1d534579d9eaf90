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
from hypertrack_jax.tunes.tune import NetworkTune, OptimizerTune, Tune, choices

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


@pytest.mark.parametrize(
    ("step", "fraction_of_peak"),
    [(0, 1.0), (500, 0.55), (750, 0.1 + 0.45 * (1 - np.sqrt(0.5))), (1000, 0.1), (99_999, 0.1)],
)
def test_cos_falls_to_the_floor_and_stays_there(step, fraction_of_peak):
    schedule = learning_rate_schedule(replace(COSINE, scheduler_type="cos"))
    assert schedule(step) == pytest.approx(2e-3 * fraction_of_peak, rel=1e-5)


@pytest.mark.parametrize("step", [0, 1, 1000, 100_000, 1_000_000])
def test_exp_loses_a_hundred_thousandth_at_each_step(step):
    schedule = learning_rate_schedule(replace(CONSTANT, scheduler_type="exp"))
    assert schedule(step) == pytest.approx(2e-3 * (1 - 1e-5) ** step, rel=1e-5)
    faster = learning_rate_schedule(replace(CONSTANT, scheduler_type="exp", exp_decay=3e-5))
    assert faster(step) == pytest.approx(2e-3 * (1 - 3e-5) ** step, rel=1e-5)


@pytest.mark.parametrize(
    ("step", "num_falls"), [(0, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2), (45_500, 45)]
)
def test_step_falls_by_a_tenth_every_thousand_steps(step, num_falls):
    schedule = learning_rate_schedule(replace(CONSTANT, scheduler_type="step"))
    assert schedule(step) == pytest.approx(2e-3 * 0.9**num_falls, rel=1e-5)


def test_step_has_its_period_and_factor_from_the_tune():
    tune = replace(CONSTANT, scheduler_type="step", step_period=7, step_factor=0.5)
    rates = [float(learning_rate_schedule(tune)(step)) for step in (6, 7, 14)]
    assert rates == pytest.approx([2e-3, 1e-3, 5e-4], rel=1e-6)


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


@pytest.mark.parametrize("name", choices(OptimizerTune, "scheduler_type"))
def test_the_schedule_takes_a_traced_step(name):
    schedule = learning_rate_schedule(replace(COSINE, scheduler_type=name))
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


def looped(tune, params, gradients):
    """PyTorch's documented updates in float64, one number at a time, with the gradients clipped."""
    params = dict(params)
    first, second = dict.fromkeys(params, 0.0), dict.fromkeys(params, 0.0)
    for step, gradient in enumerate(gradients, start=1):
        norm = np.sqrt(sum(value**2 for value in gradient.values()))
        for name, value in gradient.items():
            slope = value * min(1, tune.clip_norm / norm)
            decay = tune.weight_decay * params[name] if name == "kernel" else 0.0
            if tune.optimizer == "AdamW":
                params[name] -= tune.learning_rate * decay
            else:
                slope += decay
            if tune.optimizer == "SGD":
                first[name] = tune.momentum * first[name] + slope
                params[name] -= tune.learning_rate * first[name]
                continue
            first[name] = 0.9 * first[name] + 0.1 * slope
            second[name] = 0.999 * second[name] + 0.001 * slope**2
            spread = np.sqrt(second[name] / (1 - 0.999**step)) + tune.epsilon
            params[name] -= tune.learning_rate * first[name] / (1 - 0.9**step) / spread
    return params


@pytest.mark.parametrize(
    ("name", "momentum"), [("AdamW", 0.9), ("Adam", 0.9), ("SGD", 0.9), ("SGD", 0.4)]
)
def test_optimisers_follow_a_loop_in_float64(name, momentum):
    tune = OptimizerTune(
        optimizer=name,
        learning_rate=0.05,
        scheduler_type="constant",
        weight_decay=0.3,
        epsilon=1e-2,
        momentum=momentum,
    )
    start = {"kernel": 2.0, "bias": -1.0}
    rng = np.random.default_rng(0)
    # Some are longer than the clip norm, others shorter.
    gradients = [dict(zip(start, rng.normal(0, 1, 2), strict=True)) for _ in range(12)]
    norms = [np.hypot(*gradient.values()) for gradient in gradients]
    assert min(norms) < tune.clip_norm < max(norms)
    optimizer, params = make_optimizer(tune), jax.tree.map(jnp.float32, start)
    state = optimizer.init(params)
    for gradient in gradients:
        changes, state = optimizer.update(jax.tree.map(jnp.float32, gradient), state, params)
        params = optax.apply_updates(params, changes)
    assert jax.tree.map(float, params) == pytest.approx(looped(tune, start, gradients), rel=1e-5)
    without_decay = looped(replace(tune, weight_decay=0.0), start, gradients)
    assert params["kernel"] != pytest.approx(without_decay["kernel"], rel=1e-2)
