"""Device side: one update of the weights from a batch of padded events."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.model.parameters import CLUSTER, FULL_PHASE, GNN_PHASE, init_parameters
from hypertrack_jax.training.event_loss import Losses, LossMethod, event_loss
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
    """Factor of float16 losses; it has no effect in other types."""
    num_finite: Int[Array, ""]
    """Finite updates since the scale last changed."""


class StepMetrics(NamedTuple):
    """The report of a training step."""

    losses: Losses
    """Means over the batch."""
    auc_mean: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    num_skipped: Float[Array, ""]
    """Updates in a row, up to now, that were skipped."""
    loss_scale: Float[Array, ""]


def init_state(tune: Tune, key: PRNGKeyArray) -> TrainState:
    """Fresh weights and a fresh optimiser."""
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

    It follows from the state alone, so a resumed run changes phase at the same step as a run that
    was never stopped. This waits for the device.

    Args:
      tune: without `transformer` as its clusterer there is phase 1 alone.
      state: the state before the update.
      asked: a phase, which then holds whatever the AUC. None begins phase 2 once the mean AUC is
        above `auc_threshold`; it is compared every `PHASE_INTERVAL` steps.
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


class Model(NamedTuple):
    """The point at which the gradient is taken."""

    params: dict[str, Any]
    batch_stats: Any
    loss_scale: Float[Array, ""]


class Gradient(NamedTuple):
    """Gradient, statistics and losses of an event, or the weighted sum over events."""

    params: Any
    """Gradient of the loss by the weights."""
    batch_stats: Any
    """Running statistics, moved by the event from where they were before the update."""
    losses: Losses


class UpdateMethod(NamedTuple):
    """All that an update is compiled for; equal methods share their programs."""

    optimizer: OptimizerTune
    dtype: DTypeLike
    phase: int


def no_gradient(model: Model) -> Gradient:
    """The sum over no events."""
    losses = Losses(*[jnp.zeros(())] * len(Losses._fields))
    return jax.tree.map(jnp.zeros_like, Gradient(model.params, model.batch_stats, losses))


def event_gradient(
    method: LossMethod, model: Model, graph: EventGraph, key: PRNGKeyArray
) -> Gradient:
    """Gradient, statistics and losses of one event. BatchNorm uses the statistics of this event.

    In float16 the loss is multiplied by the loss scale before the gradient is taken, and the
    gradient is divided by it.
    """
    is_scaled = _is_scaled(method.dtype)
    scale = model.loss_scale if is_scaled else jnp.ones_like(model.loss_scale)

    def scaled_loss(params):
        loss, rest = event_loss(method, params, model.batch_stats, graph, key)
        return loss * scale.astype(loss.dtype), rest

    gradient, (batch_stats, losses) = jax.grad(scaled_loss, has_aux=True)(model.params)
    gradient = jax.tree.map(lambda leaf: leaf / scale.astype(leaf.dtype), gradient)
    return Gradient(gradient, batch_stats, losses)


def batch_gradient(
    method: LossMethod,
    model: Model,
    graphs: EventGraph,
    places: Int[Array | np.ndarray, " event"],
    weights: Float[Array | np.ndarray, " event"],
    key: PRNGKeyArray,
) -> Gradient:
    """The weighted sum over events, in float32, one event after another.

    Memory therefore does not grow with the number of events. With weights that add up to 1, the
    running statistics move by the mean over the batch.

    Args:
      method: what the loss is compiled for.
      model: what the gradient is taken at.
      graphs: padded to one bucket, with a leading axis over the events.
      places: place of each event in the batch, which decides its randomness.
      weights: weight of each event.
      key: of this update.
    """

    def add_event(total: Gradient, event):
        graph, place, weight = event
        found = event_gradient(method, model, graph, jax.random.fold_in(key, place))
        weighted = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) * weight, found)
        return jax.tree.map(jnp.add, total, weighted), None

    return jax.lax.scan(add_event, no_gradient(model), (graphs, places, weights))[0]


def update_method(tune: Tune, dtype: DTypeLike, phase: int) -> UpdateMethod:
    """The method of a training, with the optimiser of the phase."""
    return UpdateMethod(phase_optimizer(tune.optimizer, phase), jnp.dtype(dtype), phase)


def updated_state(
    method: UpdateMethod, state: TrainState, gradient: Gradient
) -> tuple[TrainState, StepMetrics]:
    """The state after an update. A gradient that is not finite only changes the counters."""
    norm = optax.tree.norm(gradient.params)
    is_finite = jnp.isfinite(norm)
    optimizer = make_optimizer(method.optimizer)
    changes, opt_state = optimizer.update(gradient.params, state.opt_state, state.params)
    if method.phase == GNN_PHASE:
        changes = _of_edges_alone(changes)
    after = (optax.apply_updates(state.params, changes), gradient.batch_stats, opt_state)
    before = (state.params, state.batch_stats, state.opt_state)
    params, batch_stats, opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_finite, new, old), after, before
    )
    num_skipped = jnp.where(is_finite, 0, state.num_skipped + 1)
    auc_mean = _running_mean(state, gradient.losses.auc)
    state = state._replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        num_skipped=num_skipped,
        auc_mean=auc_mean,
        **_next_scale(state, is_finite, method.dtype),
    )
    return state, StepMetrics(
        gradient.losses,
        # The arrays of a state are donated to the next update, so metrics get copies.
        auc_mean + 0,
        norm,
        num_skipped.astype(jnp.float32),
        state.loss_scale + 0,
    )


def _of_edges_alone(changes: Any) -> dict[str, Any]:
    """The changes, 0 for the clusterer: weight decay would move it even without a gradient."""
    return changes | {CLUSTER: jax.tree.map(jnp.zeros_like, changes[CLUSTER])}


def _running_mean(state: TrainState, auc: Float[Array, ""]) -> Float[Array, ""]:
    """The mean AUC of a phase: plain over the first `AUC_MEMORY` steps, then an exponential one."""
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
