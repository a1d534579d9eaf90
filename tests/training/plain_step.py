"""The training step on one device, without anything spread: what the loop's step has to do."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.model.parameters import GNN_PHASE
from hypertrack_jax.training import step
from hypertrack_jax.training.step import StepMetrics, TrainState
from hypertrack_jax.tunes.tune import Tune


def make_train_step(
    tune: Tune, dtype: DTypeLike = jnp.float32, phase: int = GNN_PHASE
) -> Callable[[TrainState, EventGraph, PRNGKeyArray], tuple[TrainState, StepMetrics]]:
    """The update `(state, graphs, key) -> (state, metrics)`, made of two compiled programs.

    `graphs` has a leading axis over the events of the batch, all padded to one bucket. Events are
    taken one after another and their gradients averaged, so each is normalised by its own
    statistics and memory does not grow with the batch. `state` is donated. The randomness of an
    update depends on `key` and `state.step` alone. A gradient that is not finite changes nothing
    but the counters.

    The gradient is compiled once per bucket. The optimiser, hundreds of small operations that do
    not depend on the bucket, is compiled apart from it and only once.
    """
    batch_gradient = jax.jit(step.make_batch_gradient(tune, dtype, phase))
    update = jax.jit(step.make_update(tune, dtype, phase), donate_argnums=0)

    def train_step(state: TrainState, graphs: EventGraph, key: PRNGKeyArray):
        gradient, batch_stats, losses = batch_gradient(
            state.params, state.batch_stats, graphs, key, state.step, state.loss_scale
        )
        state, metrics = update(state, gradient, batch_stats, losses.auc)
        return state, StepMetrics(losses, *metrics)

    return train_step
