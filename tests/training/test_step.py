"""One update: what it averages, what it skips, how phases change, and that updates learn."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from one_device import devices_for, make_train_step
from toy import helix_event

from hypertrack_jax.events.sectors import whole
from hypertrack_jax.model.parameters import CLUSTER, EDGE, FULL_PHASE, GNN_PHASE
from hypertrack_jax.networks.edge_predictor import EdgePredictor
from hypertrack_jax.training import step
from hypertrack_jax.training.batches import graph_batch
from hypertrack_jax.training.event_loss import EventKeys, edge_losses, loss_method
from hypertrack_jax.training.optimizer import make_optimizer
from hypertrack_jax.training.step import (
    AUC_MEMORY,
    FIRST_LOSS_SCALE,
    PHASE_INTERVAL,
    Gradient,
    Model,
    batch_gradient,
    begin_phase,
    due_phase,
    init_state,
    no_gradient,
    phase_optimizer,
    update_method,
    updated_state,
)
from hypertrack_jax.tunes.tune import LossTune, Tune

pytestmark = pytest.mark.usefixtures("optax_promotion")

KEY = jax.random.key(7)
AUC = jnp.float32(0.75)


INIT = jax.jit(init_state, static_argnums=0)
GRADIENT = jax.jit(batch_gradient, static_argnums=0)
UPDATE = jax.jit(updated_state, static_argnums=0)
WEIGHTS = np.array([0.25, 0.75], np.float32)


class Setting(NamedTuple):
    """What the tests share."""

    tune: Tune
    graphs: Any
    """A batch of two different events."""
    train_step: Any

    def fresh_state(self):
        """Untrained; made anew, because a training step donates its state."""
        return devices_for(2).replicate(INIT(self.tune, jax.random.key(0)))

    def method(self, dtype=jnp.float32, phase=GNN_PHASE):
        return update_method(self.tune, dtype, phase)


@pytest.fixture(scope="module")
def setting(small_tune, voxdyn):
    events = [helix_event(0, num_particles=4, event_id=number) for number in (1, 2)]
    graphs = graph_batch([*map(whole, events)], voxdyn, small_tune).graphs
    return Setting(small_tune, graphs, make_train_step(small_tune, 2))


def update(method, state, gradient, batch_stats, auc):
    """An update by some gradient, statistics and area."""
    losses = no_gradient(model_of(state)).losses._replace(auc=auc)
    return UPDATE(method, state, Gradient(gradient, batch_stats, losses))


def model_of(state):
    return Model(state.params, state.batch_stats, state.loss_scale)


def kernel_of(state):
    return state.params[EDGE]["edge_mlp"]["kernel"]


def assert_close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


def test_the_gradient_of_a_batch_is_the_weighted_sum_over_its_events(setting):
    network, state = EdgePredictor(setting.tune.network), setting.fresh_state()
    keys = [EventKeys(*jax.random.split(jax.random.fold_in(KEY, place), 4)) for place in (4, 1)]

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def event_gradient(params, graph, key):
        variables = {"params": params, "batch_stats": state.batch_stats}
        prediction, updates = network.apply(variables, graph, True, mutable=["batch_stats"])
        losses = edge_losses(setting.tune.loss, graph, prediction.logit, key)
        return losses.loss, (updates["batch_stats"], losses)

    parts = []
    for i in range(2):
        graph = jax.tree.map(lambda array: array[i], setting.graphs)  # noqa: B023
        (_, rest), gradient = event_gradient(state.params[EDGE], graph, keys[i].contrastive)
        parts.append((gradient, *rest))
    expected = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, *parts)
    method, places = loss_method(setting.tune, jnp.float32, GNN_PHASE), np.array([4, 1])
    found = GRADIENT(method, model_of(state), setting.graphs, places, WEIGHTS, KEY)
    found = (found.params[EDGE], found.batch_stats, found.losses)
    assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, parts[0][0], parts[1][0]))) > 1e-2


def test_the_loss_is_the_weighted_sum_of_its_parts(setting):
    graph = jax.tree.map(lambda array: jnp.asarray(array[0]), setting.graphs)
    logit = jnp.linspace(-2, 2, len(graph.senders))
    tune = LossTune(edge_bce=0.5, edge_contrastive=3.0)
    losses = edge_losses(tune, graph, logit, jax.random.clone(KEY))
    assert losses.loss == pytest.approx(
        0.5 * float(losses.edge_bce) + 3 * float(losses.edge_contrastive), rel=1e-6
    )
    default = edge_losses(LossTune(), graph, logit, jax.random.clone(KEY))
    assert (default.edge_bce, default.edge_contrastive) == losses[1:3]


def test_an_update_is_the_optimisers(setting):
    state = setting.fresh_state()
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.01), state.params)
    moved_stats = jax.tree.map(lambda leaf: leaf + 1, state.batch_stats)
    after, metrics = update(setting.method(), state, gradient, moved_stats, AUC)
    optimizer = make_optimizer(setting.tune.optimizer)
    changes, opt_state = jax.jit(optimizer.update)(gradient, state.opt_state, state.params)
    expected = optax.apply_updates(state.params, changes)
    assert_close(after.params[EDGE], expected[EDGE], rtol=1e-5, atol=1e-7)
    assert_close(after.opt_state, opt_state, rtol=1e-5)
    assert_close(after.batch_stats, moved_stats)
    assert metrics.gradient_norm == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-6)
    assert (after.step, after.num_skipped, metrics.num_skipped) == (1, 0, 0)
    assert after.auc_mean == metrics.auc_mean == pytest.approx(0.75)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_counters(setting, bad):
    state = setting.fresh_state()
    gradient = jax.tree.map(jnp.ones_like, state.params)
    layer = gradient[EDGE]["fusion"]["layers_0"]
    layer["bias"] = layer["bias"].at[2].set(bad)
    bad_stats = jax.tree.map(lambda leaf: leaf * bad, state.batch_stats)
    bad_auc = jnp.float32(jnp.nan)
    after, _ = update(setting.method(), state, gradient, bad_stats, bad_auc)
    after, metrics = update(setting.method(), after, gradient, bad_stats, bad_auc)
    assert not np.isfinite(metrics.gradient_norm)
    assert (after.step, after.num_skipped, metrics.num_skipped) == (2, 2, 2)
    unchanged = state._replace(step=after.step, num_skipped=after.num_skipped)
    jax.tree.map(np.testing.assert_array_equal, after, unchanged)
    finite = jax.tree.map(jnp.ones_like, state.params)
    after, metrics = update(setting.method(), after, finite, state.batch_stats, AUC)
    assert (after.step, after.num_skipped, metrics.num_skipped) == (3, 0, 0)
    assert np.any(kernel_of(after) != kernel_of(state))


def test_randomness_comes_from_key_and_step_alone(setting):
    def contrastive(seed, number):
        state = at_step(setting, number)
        _, metrics = setting.train_step(state, setting.graphs, jax.random.key(seed))
        return float(metrics.losses.edge_contrastive)

    # Two of four particles enter the loss of each event, so another draw is another loss.
    assert contrastive(0, 0) == contrastive(0, 0)
    assert contrastive(0, 0) != contrastive(1, 0)
    assert contrastive(0, 0) != contrastive(0, 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_training_separates_the_edges_of_an_event(setting, dtype):
    train_step = make_train_step(setting.tune, 2, dtype)
    state = setting.fresh_state()
    areas, losses = [], []
    for _ in range(150):
        state, metrics = train_step(state, setting.graphs, KEY)
        areas.append(float(metrics.losses.auc))
        losses.append(float(metrics.losses.loss))
    assert int(state.step) == 150
    assert areas[0] < 0.7
    assert min(areas[-10:]) > 0.9
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state.params))
    assert metrics.loss_scale == state.loss_scale
    assert metrics.auc_mean == state.auc_mean > 0.7


def test_a_fresh_state_depends_on_the_key_alone(setting):
    first, again = setting.fresh_state(), setting.fresh_state()
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = INIT(setting.tune, jax.random.key(1))
    assert np.any(kernel_of(first) != kernel_of(other))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(first.params))


def test_phase_1_leaves_the_clusterer_bit_for_bit(setting):
    assert setting.tune.optimizer.weight_decay > 0
    state = setting.fresh_state()
    before = jax.tree.map(np.array, state.params)
    for _ in range(2):
        state, _ = setting.train_step(state, setting.graphs, KEY)
    jax.tree.map(np.testing.assert_array_equal, state.params[CLUSTER], before[CLUSTER])
    assert np.any(kernel_of(state) != before[EDGE]["edge_mlp"]["kernel"])


def test_phase_2_updates_both_parts(setting):
    state = setting.fresh_state()
    gradient = jax.tree.map(jnp.ones_like, state.params)
    method = setting.method(phase=FULL_PHASE)
    after, _ = update(method, state, gradient, state.batch_stats, AUC)
    changed = jax.tree.map(lambda a, b: np.all(a != b), after.params, state.params)
    assert all(jax.tree.leaves(changed))


def test_a_new_phase_keeps_the_weights_and_begins_the_rest_anew(setting):
    fresh = setting.fresh_state()
    state, _ = setting.train_step(setting.fresh_state(), setting.graphs, KEY)
    state = state._replace(loss_scale=jnp.float32(4), num_finite=jnp.int32(3))
    begun = begin_phase(setting.tune, state, FULL_PHASE)
    jax.tree.map(np.testing.assert_array_equal, begun.params, state.params)
    jax.tree.map(np.testing.assert_array_equal, begun.batch_stats, state.batch_stats)
    jax.tree.map(np.testing.assert_array_equal, begun.opt_state, fresh.opt_state)
    assert (begun.step, begun.phase_start, begun.phase) == (1, 1, 2)
    assert (begun.auc_mean, begun.loss_scale, begun.num_finite) == (0, FIRST_LOSS_SCALE, 0)


def test_phase_2_has_a_learning_rate_of_its_own():
    tune = Tune("t").optimizer
    tune = replace(tune, learning_rate=0.5, phase2_rate=0.25)
    assert phase_optimizer(tune, GNN_PHASE).learning_rate == 0.5
    assert phase_optimizer(tune, FULL_PHASE).learning_rate == 0.125


def at_step(setting, step, phase_start=0, auc_mean=1.0):
    state = INIT(setting.tune, jax.random.key(0))._replace(
        step=jnp.int32(step), phase_start=jnp.int32(phase_start), auc_mean=jnp.float32(auc_mean)
    )
    return devices_for(2).replicate(state)


def test_phase_2_is_due_above_the_threshold_at_certain_steps_alone(setting):
    threshold = setting.tune.optimizer.auc_threshold
    first = -(-AUC_MEMORY // PHASE_INTERVAL) * PHASE_INTERVAL

    def due(*state):
        return due_phase(setting.tune, at_step(setting, *state))

    assert due(first) == FULL_PHASE
    assert due(first + PHASE_INTERVAL) == FULL_PHASE
    assert due(first + 1) == GNN_PHASE
    # The mean has not forgotten the first updates of its phase.
    assert due(first - PHASE_INTERVAL) == GNN_PHASE
    assert due(first, 1) == GNN_PHASE
    assert due(first, 0, threshold - 1e-4) == GNN_PHASE
    assert due(first, 0, threshold + 1e-4) == FULL_PHASE
    in_phase_2 = at_step(setting, 7)._replace(phase=jnp.int32(2), auc_mean=jnp.float32(0))
    assert due_phase(setting.tune, in_phase_2) == FULL_PHASE


@pytest.mark.parametrize("cluster", ["none", "cut", "dbscan", "hdbscan"])
def test_phase_2_is_never_due_without_the_transformer(setting, cluster):
    tune = replace(setting.tune, cluster=replace(setting.tune.cluster, cluster=cluster))
    state = at_step(setting, 10 * AUC_MEMORY * PHASE_INTERVAL)
    assert due_phase(setting.tune, state) == FULL_PHASE
    assert due_phase(tune, state) == due_phase(tune, state, FULL_PHASE) == GNN_PHASE


def test_a_phase_that_is_asked_for_is_due(setting):
    state = at_step(setting, 3)
    assert due_phase(setting.tune, state, FULL_PHASE) == FULL_PHASE
    assert due_phase(setting.tune, at_step(setting, AUC_MEMORY), GNN_PHASE) == GNN_PHASE


def test_the_mean_auc_is_of_this_phase_and_forgets():
    state = step.TrainState(*[jnp.float32(0)] * len(step.TrainState._fields))
    state = state._replace(step=jnp.int32(40), phase_start=jnp.int32(40))
    areas = np.random.default_rng(0).uniform(size=3 * AUC_MEMORY)
    means = []
    for area in areas:
        mean = step._running_mean(state, jnp.float32(area))
        state = state._replace(auc_mean=mean, step=state.step + 1)
        means.append(float(state.auc_mean))
    assert means[0] == pytest.approx(areas[0])
    assert means[AUC_MEMORY - 1] == pytest.approx(areas[:AUC_MEMORY].mean(), rel=1e-5)
    expected = areas[:AUC_MEMORY].mean()
    for area in areas[AUC_MEMORY:]:
        expected += (area - expected) / AUC_MEMORY
    assert means[-1] == pytest.approx(expected, rel=1e-5)
    assert step._running_mean(state, jnp.float32(jnp.nan)) == state.auc_mean


def test_an_overflow_in_float16_halves_the_loss_scale_and_skips(setting, monkeypatch):
    monkeypatch.setattr(step, "SCALE_PATIENCE", 3)
    # A learning rate of its own, and so a program of its own.
    optimizer = replace(setting.tune.optimizer, learning_rate=3e-3)
    method = update_method(replace(setting.tune, optimizer=optimizer), jnp.float16, GNN_PHASE)
    before = state = setting.fresh_state()
    finite = jax.tree.map(jnp.ones_like, state.params)
    infinite = jax.tree.map(lambda leaf: leaf * jnp.inf, finite)
    scales = []
    for gradient in (infinite, infinite, finite, finite, infinite, finite, finite, finite, finite):
        state, metrics = update(method, state, gradient, state.batch_stats, AUC)
        scales.append(float(state.loss_scale) / FIRST_LOSS_SCALE)
        assert metrics.loss_scale == state.loss_scale
        if int(state.step) == 2:
            jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
    # Three finite updates in a row double it, counted anew after each change.
    assert scales == [0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.125, 0.25, 0.25]


def test_the_loss_scale_does_not_fall_below_one_and_is_for_float16_alone(setting):
    def scale_after(dtype, scale):
        state = setting.fresh_state()._replace(loss_scale=jnp.float32(scale))
        infinite = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), state.params)
        after, _ = update(setting.method(dtype), state, infinite, state.batch_stats, AUC)
        return after.loss_scale

    assert scale_after(jnp.float16, 1) == 1
    assert scale_after(jnp.float32, 8) == 8


def test_the_loss_scale_does_not_scale_the_gradient(setting):
    model = model_of(setting.fresh_state())
    places = np.arange(2)

    def gradient_of(dtype, scale):
        method, scaled = loss_method(setting.tune, dtype, GNN_PHASE), jnp.float32(scale)
        model_at = model._replace(loss_scale=scaled)
        return GRADIENT(method, model_at, setting.graphs, places, WEIGHTS, KEY)

    exact = gradient_of(jnp.float32, FIRST_LOSS_SCALE).params
    for scale in (FIRST_LOSS_SCALE, FIRST_LOSS_SCALE / 8):
        found = gradient_of(jnp.float16, scale)
        difference = jax.tree.map(jnp.subtract, found.params, exact)
        assert optax.tree.norm(difference) < 0.1 * optax.tree.norm(exact)
        losses = found.losses
        assert losses.loss == pytest.approx(float(losses.edge_bce) * 0.2 + losses.edge_contrastive)
    # Large enough that it overflows, so the scale is there.
    assert not np.isfinite(optax.tree.norm(gradient_of(jnp.float16, 2.0**40).params))


MANY_EDGES = """
import jax
import jax.numpy as jnp
from toy import helix_event
from toy_graph import candidate_edges

from hypertrack_jax.graph.event_graph import Bucket, event_graph
from hypertrack_jax.model.parameters import GNN_PHASE
from hypertrack_jax.training.event_loss import loss_method
from hypertrack_jax.training.step import Model, event_gradient, init_state
from hypertrack_jax.tunes.tune import NetworkTune, Tune

tune = Tune("wide", network=NetworkTune("cylindrical", "helix", num_layers=1))
event = helix_event(0, num_particles=8)
edges = candidate_edges(event, 0, 60)
graph = event_graph(event, *edges, node2node="hyper", bucket=Bucket(4128, 66048))
state = jax.jit(init_state, static_argnums=0)(tune, jax.random.key(0))
model = Model(state.params, state.batch_stats, state.loss_scale)
method = loss_method(tune, jnp.float32, GNN_PHASE)
key = jax.random.key(0)
found = jax.block_until_ready(jax.jit(event_gradient, static_argnums=0)(method, model, graph, key))
assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
"""


def test_a_gradient_over_many_edges_does_not_crash():
    """In a process that compiles as users do: it is the compiler's libraries that crashed."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", MANY_EDGES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
