"""Device side: one update of the weights from a batch of padded events."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hypertrack_jax.graph.event_graph import EventGraph, hit_graph
from hypertrack_jax.networks.edge_predictor import EdgePredictor
from hypertrack_jax.training.edge_auc import masked_auc
from hypertrack_jax.training.losses import contrastive_edge_loss, focal_edge_loss
from hypertrack_jax.training.optimizer import make_optimizer
from hypertrack_jax.tunes.tune import LossTune, Tune


class TrainState(NamedTuple):
    """All that an update changes; a checkpoint holds it whole."""

    step: Int[Array, ""]
    """Number of updates tried."""
    params: Any
    """Weights, always float32."""
    batch_stats: Any
    """Running statistics of the BatchNorms."""
    opt_state: optax.OptState
    num_skipped: Int[Array, ""]
    """Updates in a row, up to now, that were skipped for a gradient that is not finite."""


class EdgeLosses(NamedTuple):
    """The losses of one event, or their means over a batch."""

    loss: Float[Array, ""]
    """The weighted sum, which is minimised."""
    edge_bce: Float[Array, ""]
    edge_contrastive: Float[Array, ""]
    auc: Float[Array, ""]
    """Area under the ROC curve of the edges."""


class StepMetrics(NamedTuple):
    """What a training step reports: `EdgeLosses`, and how the update went."""

    loss: Float[Array, ""]
    edge_bce: Float[Array, ""]
    edge_contrastive: Float[Array, ""]
    auc: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    num_skipped: Float[Array, ""]
    """Updates in a row, up to now, that were skipped."""


def init_state(tune: Tune, key: PRNGKeyArray) -> TrainState:
    """Fresh weights, and an optimiser that has seen nothing."""
    no_edges = np.zeros(0, np.int32)
    graph = hit_graph(np.zeros((1, 3), np.float32), no_edges, no_edges, no_edges)
    graph = jax.tree.map(jnp.asarray, graph)
    variables = EdgePredictor(tune.network).init(key, graph, train=False)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=make_optimizer(tune.optimizer).init(params),
        num_skipped=jnp.zeros((), jnp.int32),
    )


def make_train_step(
    tune: Tune, dtype: DTypeLike = jnp.float32
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
    batch_gradient = jax.jit(make_batch_gradient(tune, dtype))
    update = jax.jit(make_update(tune), donate_argnums=0)

    def train_step(state: TrainState, graphs: EventGraph, key: PRNGKeyArray):
        gradient, batch_stats, losses = batch_gradient(
            state.params, state.batch_stats, graphs, key, state.step
        )
        state, norm, num_skipped = update(state, gradient, batch_stats)
        return state, StepMetrics(*losses, gradient_norm=norm, num_skipped=num_skipped)

    return train_step


def make_batch_gradient(tune: Tune, dtype: DTypeLike) -> Callable[..., tuple[Any, Any, EdgeLosses]]:
    """`(params, batch_stats, graphs, key, step) -> (mean gradient, batch_stats, mean losses)`."""
    network = EdgePredictor(tune.network)

    def event_loss(params, batch_stats, graph: EventGraph, key: PRNGKeyArray):
        variables = {"params": params, "batch_stats": batch_stats}
        prediction, updates = network.apply(
            variables, graph, train=True, dtype=dtype, mutable=["batch_stats"]
        )
        losses = edge_losses(tune.loss, graph, prediction.logit, key)
        return losses.loss, (updates["batch_stats"], losses)

    def batch_gradient(params, batch_stats, graphs: EventGraph, key, step):
        batch_size = graphs.senders.shape[0]
        keys = jax.random.split(jax.random.fold_in(key, step), batch_size)

        def one_event(carry, inputs):
            batch_stats, total = carry
            (_, (batch_stats, losses)), gradient = jax.value_and_grad(event_loss, has_aux=True)(
                params, batch_stats, *inputs
            )
            return (batch_stats, jax.tree.map(jnp.add, total, gradient)), losses

        zeros = jax.tree.map(jnp.zeros_like, params)
        (batch_stats, total), losses = jax.lax.scan(one_event, (batch_stats, zeros), (graphs, keys))
        gradient = jax.tree.map(lambda total: total / batch_size, total)
        return gradient, batch_stats, jax.tree.map(jnp.mean, losses)

    return batch_gradient


def make_update(tune: Tune) -> Callable[..., tuple[TrainState, Array, Array]]:
    """`(state, gradient, batch_stats) -> (state, norm of the gradient, skipped in a row)`."""
    optimizer = make_optimizer(tune.optimizer)

    def update(state: TrainState, gradient: Any, batch_stats: Any):
        norm = optax.tree.norm(gradient)
        is_finite = jnp.isfinite(norm)
        changes, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        updated = (optax.apply_updates(state.params, changes), batch_stats, opt_state)
        kept = (state.params, state.batch_stats, state.opt_state)
        params, batch_stats, opt_state = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old), updated, kept
        )
        num_skipped = jnp.where(is_finite, 0, state.num_skipped + 1)
        state = TrainState(state.step + 1, params, batch_stats, opt_state, num_skipped)
        # A copy of another type: the counter in the state is donated to the next update.
        return state, norm, num_skipped.astype(jnp.float32)

    return update


def edge_losses(
    tune: LossTune, graph: EventGraph, logit: Float[Array, " edge"], key: PRNGKeyArray
) -> EdgeLosses:
    """The edge losses of one event and their weighted sum."""
    edges, nodes = graph.edges, graph.nodes
    focal = focal_edge_loss(logit, edges.label, edges.mask, tune.edge_focal_gamma)
    contrastive = contrastive_edge_loss(
        logit,
        graph.senders,
        graph.receivers,
        edges.mask,
        nodes.particle,
        nodes.weight,
        key,
        tune.contrastive_temperature,
        tune.contrastive_max_particles,
    )
    loss = tune.edge_bce * focal + tune.edge_contrastive * contrastive
    auc = masked_auc(jax.lax.stop_gradient(logit).astype(jnp.float32), edges.label, edges.mask)
    return EdgeLosses(loss, focal, contrastive, auc)
