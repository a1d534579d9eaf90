"""Device side: one update of the weights from a batch of padded events."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.model.parameters import CLUSTER, FULL_PHASE, GNN_PHASE, init_parameters
from hypertrack_jax.training.event_loss import Losses, make_event_loss
from hypertrack_jax.training.optimizer import make_optimizer
from hypertrack_jax.tunes.tune import OptimizerTune, Tune

AUC_MEMORY = 100
"""Updates that the running mean of the AUC looks back on."""
PHASE_INTERVAL = 50
"""Steps between two looks at that mean, each of which waits for the device."""
FIRST_LOSS_SCALE = 2.0**13
"""Scale of the loss in float16, in which gradients below 6e-8 would be lost."""
SCALE_PATIENCE = 500
"""Finite updates in a row after which the scale is doubled; one that is not finite halves it."""


class TrainState(NamedTuple):
    """All that an update changes; a checkpoint holds it whole."""

    step: Int[Array, ""]
    """Number of updates tried."""
    params: dict[str, Any]
    """Weights of the edge predictor (`edge`), of the clusterer (`cluster`) and, where its loss has
    a weight, of the experimental flow (`flow`), always float32."""
    batch_stats: Any
    """Running statistics of the BatchNorms."""
    opt_state: optax.OptState
    num_skipped: Int[Array, ""]
    """Updates in a row, up to now, that were skipped for a gradient that is not finite."""
    phase: Int[Array, ""]
    """1: the edge predictor alone; 2: both."""
    phase_start: Int[Array, ""]
    """Step at which the phase, and with it optimiser and schedule, began."""
    auc_mean: Float[Array, ""]
    """Running mean of the edge AUC in this phase."""
    loss_scale: Float[Array, ""]
    """What float16 losses are multiplied by; of no effect in other types."""
    num_finite: Int[Array, ""]
    """Finite updates since the scale last changed."""


class StepMetrics(NamedTuple):
    """What a training step reports."""

    losses: Losses
    """Means over the batch."""
    auc_mean: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    num_skipped: Float[Array, ""]
    """Updates in a row, up to now, that were skipped."""
    loss_scale: Float[Array, ""]


def init_state(tune: Tune, key: PRNGKeyArray) -> TrainState:
    """Fresh weights, and an optimiser that has seen nothing."""
    params, batch_stats = init_parameters(tune, key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=make_optimizer(tune.optimizer).init(params),
        num_skipped=jnp.zeros((), jnp.int32),
        phase=jnp.full((), GNN_PHASE, jnp.int32),
        phase_start=jnp.zeros((), jnp.int32),
        auc_mean=jnp.zeros(()),
        loss_scale=jnp.float32(FIRST_LOSS_SCALE),
        num_finite=jnp.zeros((), jnp.int32),
    )


def begin_phase(tune: Tune, state: TrainState, phase: int) -> TrainState:
    """The same weights with a fresh optimiser and schedule, in the phase given."""
    return state._replace(
        opt_state=make_optimizer(phase_optimizer(tune.optimizer, phase)).init(state.params),
        num_skipped=jnp.zeros((), jnp.int32),
        phase=jnp.full((), phase, jnp.int32),
        phase_start=state.step + 0,
        auc_mean=jnp.zeros(()),
        loss_scale=jnp.float32(FIRST_LOSS_SCALE),
        num_finite=jnp.zeros((), jnp.int32),
    )


def due_phase(tune: Tune, state: TrainState, asked: int | None = None) -> int:
    """The phase that the next update belongs to.

    It follows from the state alone, so that a resumed run changes at the step at which one that was
    never stopped does. The device is waited for.

    Args:
      tune: without `transformer` as its clusterer there is phase 1 alone.
      state: the state before the update.
      asked: a phase to be in whatever the AUC; None for phase 2 once the mean AUC is above
        `auc_threshold`, looked at where the step is a multiple of `PHASE_INTERVAL`.
    """
    if tune.cluster.cluster != "transformer":
        return GNN_PHASE
    if asked is not None:
        return asked
    step, phase_start = int(state.step), int(state.phase_start)
    is_looked_at = step % PHASE_INTERVAL == 0 and step - phase_start >= AUC_MEMORY
    if is_looked_at and float(state.auc_mean) > tune.optimizer.auc_threshold:
        return FULL_PHASE
    return int(state.phase)


def phase_optimizer(tune: OptimizerTune, phase: int) -> OptimizerTune:
    """The optimiser's part of the Tune as a phase uses it."""
    if phase == GNN_PHASE:
        return tune
    return replace(tune, learning_rate=tune.learning_rate * tune.phase2_rate)


def make_batch_gradient(
    tune: Tune, dtype: DTypeLike, phase: int = GNN_PHASE
) -> Callable[..., tuple[Any, Any, Losses]]:
    """`(params, batch_stats, graphs, key, step, scale) -> (gradient, batch_stats, losses)`.

    Gradient and losses are means over the batch. In float16 the loss is multiplied by `scale`
    before the gradient is taken, and the gradient divided by it.
    """
    event_loss = make_event_loss(tune, dtype, phase)

    def scaled_loss(params, batch_stats, graph, key, scale):
        loss, rest = event_loss(params, batch_stats, graph, key)
        return loss * scale.astype(loss.dtype), rest

    def batch_gradient(params, batch_stats, graphs: EventGraph, key, step, scale):
        batch_size = graphs.senders.shape[0]
        keys = jax.random.split(jax.random.fold_in(key, step), batch_size)
        scale = scale if _is_scaled(dtype) else jnp.ones_like(scale)

        def one_event(carry, inputs):
            batch_stats, total = carry
            (_, (batch_stats, losses)), gradient = jax.value_and_grad(scaled_loss, has_aux=True)(
                params, batch_stats, *inputs, scale
            )
            return (batch_stats, jax.tree.map(jnp.add, total, gradient)), losses

        zeros = jax.tree.map(jnp.zeros_like, params)
        (batch_stats, total), losses = jax.lax.scan(one_event, (batch_stats, zeros), (graphs, keys))
        divisor = batch_size * scale
        gradient = jax.tree.map(lambda total: total / divisor.astype(total.dtype), total)
        return gradient, batch_stats, jax.tree.map(jnp.mean, losses)

    return batch_gradient


def make_update(
    tune: Tune, dtype: DTypeLike = jnp.float32, phase: int = GNN_PHASE
) -> Callable[..., tuple[TrainState, tuple[Array, ...]]]:
    """`(state, gradient, batch_stats, auc) -> (state, metrics)`.

    The metrics are those of `StepMetrics` from the running mean of the AUC on.
    """
    optimizer = make_optimizer(phase_optimizer(tune.optimizer, phase))

    def update(state: TrainState, gradient: Any, batch_stats: Any, auc: Float[Array, ""]):
        norm = optax.tree.norm(gradient)
        is_finite = jnp.isfinite(norm)
        changes, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        if phase == GNN_PHASE:
            changes = _of_edges_alone(changes)
        updated = (optax.apply_updates(state.params, changes), batch_stats, opt_state)
        kept = (state.params, state.batch_stats, state.opt_state)
        params, batch_stats, opt_state = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old), updated, kept
        )
        num_skipped = jnp.where(is_finite, 0, state.num_skipped + 1)
        auc_mean = _running_mean(state, auc)
        state = state._replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            num_skipped=num_skipped,
            auc_mean=auc_mean,
            **_next_scale(state, is_finite, dtype),
        )
        # Copies, or another type: what is in the state is donated to the next update.
        return state, (
            auc_mean + 0,
            norm,
            num_skipped.astype(jnp.float32),
            state.loss_scale + 0,
        )

    return update


def _of_edges_alone(changes: Any) -> dict[str, Any]:
    """None for the clusterer, which weight decay would move even without a gradient."""
    return changes | {CLUSTER: jax.tree.map(jnp.zeros_like, changes[CLUSTER])}


def _running_mean(state: TrainState, auc: Float[Array, ""]) -> Float[Array, ""]:
    """The mean of the first `AUC_MEMORY` areas of the phase, then one that forgets."""
    number = jnp.minimum(state.step - state.phase_start + 1, AUC_MEMORY).astype(jnp.float32)
    moved = state.auc_mean + (auc.astype(jnp.float32) - state.auc_mean) / number
    return jnp.where(jnp.isfinite(moved), moved, state.auc_mean)


def _next_scale(state: TrainState, is_finite: Array, dtype: DTypeLike) -> dict[str, Array]:
    """Half the loss scale after a gradient that is not finite, twice after many that are."""
    if not _is_scaled(dtype):
        return {}
    num_finite = jnp.where(is_finite, state.num_finite + 1, 0)
    is_due = num_finite >= SCALE_PATIENCE
    scale = jnp.where(is_finite, state.loss_scale, jnp.maximum(state.loss_scale / 2, 1))
    return {
        "loss_scale": jnp.where(is_due, scale * 2, scale),
        "num_finite": jnp.where(is_due, 0, num_finite),
    }


def _is_scaled(dtype: DTypeLike) -> bool:
    return jnp.dtype(dtype) == jnp.dtype(jnp.float16)
