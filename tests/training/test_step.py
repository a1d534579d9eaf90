"""One update: what it averages, what it skips, and that updates learn."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import helix_event

from hypertrack_jax.networks.edge_predictor import EdgePredictor
from hypertrack_jax.training import step
from hypertrack_jax.training.batches import graph_batch
from hypertrack_jax.training.optimizer import make_optimizer
from hypertrack_jax.training.step import (
    edge_losses,
    init_state,
    make_train_step,
    make_update,
)
from hypertrack_jax.tunes.tune import LossTune, Tune

pytestmark = pytest.mark.usefixtures("optax_promotion")

KEY = jax.random.key(7)


class Setting(NamedTuple):
    """Compiled programs that the tests share."""

    tune: Tune
    graphs: Any
    """A batch of two different events."""
    train_step: Any
    batch_gradient: Any
    update: Any

    def fresh_state(self):
        """Untrained; made anew, because a training step donates its state."""
        return jax.jit(init_state, static_argnums=0)(self.tune, jax.random.key(0))


@pytest.fixture(scope="module")
def setting(small_tune, voxdyn):
    events = [helix_event(0, num_particles=4, event_id=number) for number in (1, 2)]
    graphs = jax.tree.map(jnp.asarray, graph_batch(events, voxdyn, small_tune.voxdyn).graphs)
    return Setting(
        small_tune,
        graphs,
        make_train_step(small_tune),
        jax.jit(step.make_batch_gradient(small_tune, jnp.float32)),
        jax.jit(make_update(small_tune)),
    )


def assert_close(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


def test_a_batch_has_the_mean_gradient_and_losses_of_its_events(setting):
    network, state = EdgePredictor(setting.tune.network), setting.fresh_state()
    keys = jax.random.split(jax.random.fold_in(KEY, 5), 2)

    @partial(jax.value_and_grad, has_aux=True)
    def event_gradient(params, batch_stats, graph, key):
        variables = {"params": params, "batch_stats": batch_stats}
        prediction, updates = network.apply(variables, graph, True, mutable=["batch_stats"])
        losses = edge_losses(setting.tune.loss, graph, prediction.logit, key)
        return losses.loss, (losses, updates["batch_stats"])

    batch_stats, parts = state.batch_stats, []
    event_gradient = jax.jit(event_gradient)
    for i in range(2):
        graph = jax.tree.map(lambda array: array[i], setting.graphs)  # noqa: B023
        (_, (losses, batch_stats)), gradient = event_gradient(
            state.params, batch_stats, graph, keys[i]
        )
        parts.append((gradient, losses))
    expected = jax.tree.map(lambda first, second: (first + second) / 2, *parts)
    gradient, found_stats, losses = setting.batch_gradient(
        state.params, state.batch_stats, setting.graphs, KEY, jnp.int32(5)
    )
    assert_close((gradient, losses), expected, rtol=1e-3, atol=1e-5)
    assert_close(found_stats, batch_stats, rtol=1e-4, atol=1e-6)
    assert float(optax.tree.norm(jax.tree.map(jnp.subtract, parts[0][0], parts[1][0]))) > 1e-2


def test_the_loss_is_the_weighted_sum_of_its_parts(setting):
    graph = jax.tree.map(lambda array: array[0], setting.graphs)
    logit = jnp.linspace(-2, 2, len(graph.senders))
    tune = LossTune(edge_bce=0.5, edge_contrastive=3.0)
    losses = edge_losses(tune, graph, logit, KEY)
    assert losses.loss == pytest.approx(
        0.5 * float(losses.edge_bce) + 3 * float(losses.edge_contrastive), rel=1e-6
    )
    default = edge_losses(LossTune(), graph, logit, KEY)
    assert (default.edge_bce, default.edge_contrastive) == losses[1:3]


def test_an_update_is_the_optimisers(setting):
    state = setting.fresh_state()
    gradient = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.01), state.params)
    moved_stats = jax.tree.map(lambda leaf: leaf + 1, state.batch_stats)
    after, norm, num_skipped = setting.update(state, gradient, moved_stats)
    optimizer = make_optimizer(setting.tune.optimizer)
    changes, opt_state = jax.jit(optimizer.update)(gradient, state.opt_state, state.params)
    assert_close(after.params, optax.apply_updates(state.params, changes), rtol=1e-5, atol=1e-7)
    assert_close(after.opt_state, opt_state, rtol=1e-5)
    assert_close(after.batch_stats, moved_stats)
    assert norm == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-6)
    assert (after.step, after.num_skipped, num_skipped) == (1, 0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_counters(setting, bad):
    state = setting.fresh_state()
    gradient = jax.tree.map(jnp.ones_like, state.params)
    gradient["fusion"]["layers_0"]["bias"] = gradient["fusion"]["layers_0"]["bias"].at[2].set(bad)
    bad_stats = jax.tree.map(lambda leaf: leaf * bad, state.batch_stats)
    after, _, _ = setting.update(state, gradient, bad_stats)
    after, norm, num_skipped = setting.update(after, gradient, bad_stats)
    assert not np.isfinite(norm)
    assert (after.step, after.num_skipped, num_skipped) == (2, 2, 2)
    unchanged = state._replace(step=after.step, num_skipped=after.num_skipped)
    jax.tree.map(np.testing.assert_array_equal, after, unchanged)
    finite = jax.tree.map(jnp.ones_like, state.params)
    after, _, num_skipped = setting.update(after, finite, state.batch_stats)
    assert (after.step, after.num_skipped, num_skipped) == (3, 0, 0)
    assert np.any(after.params["edge_mlp"]["kernel"] != state.params["edge_mlp"]["kernel"])


def test_randomness_comes_from_key_and_step_alone(setting):
    def contrastive(seed, number):
        state = setting.fresh_state()._replace(step=jnp.int32(number))
        _, metrics = setting.train_step(state, setting.graphs, jax.random.key(seed))
        return float(metrics.edge_contrastive)

    # Two of four particles enter the loss of each event, so another draw is another loss.
    assert contrastive(0, 0) == contrastive(0, 0)
    assert contrastive(0, 0) != contrastive(1, 0)
    assert contrastive(0, 0) != contrastive(0, 1)


def test_training_separates_the_edges_of_an_event(setting):
    state = setting.fresh_state()
    areas, losses = [], []
    for _ in range(150):
        state, metrics = setting.train_step(state, setting.graphs, KEY)
        areas.append(float(metrics.auc))
        losses.append(float(metrics.loss))
    assert int(state.step) == 150
    assert max(areas[:3]) < 0.8
    assert min(areas[-10:]) > 0.9
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])


def test_a_fresh_state_depends_on_the_key_alone(setting):
    first, again = setting.fresh_state(), setting.fresh_state()
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = jax.jit(init_state, static_argnums=0)(setting.tune, jax.random.key(1))
    assert np.any(first.params["edge_mlp"]["kernel"] != other.params["edge_mlp"]["kernel"])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(first.params))
