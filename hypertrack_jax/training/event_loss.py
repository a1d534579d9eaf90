"""Device side: the loss of one event, in phase 1 and in phase 2 (algorithm sections 6 and 7)."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hypertrack_jax.clustering.micrographs import Micrographs
from hypertrack_jax.clustering.neighbors import at_hits
from hypertrack_jax.clustering.search import SearchSizes
from hypertrack_jax.clustering.transformer import (
    THRESHOLD,
    hit_tokens,
    kept_edges,
    logits_of,
    members_of,
    transformer_clusters,
)
from hypertrack_jax.errors import UserError
from hypertrack_jax.graph.event_graph import EventGraph, core_edges
from hypertrack_jax.graph.segment import segment_sum
from hypertrack_jax.model.parameters import CLUSTER, EDGE, FLOW, FULL_PHASE
from hypertrack_jax.networks.edge_predictor import EdgePrediction, EdgePredictor
from hypertrack_jax.training.cluster_losses import (
    ClusterLosses,
    ScoredMicrographs,
    cluster_losses,
)
from hypertrack_jax.training.edge_auc import masked_auc
from hypertrack_jax.training.flow_loss import flow_loss
from hypertrack_jax.training.losses import contrastive_edge_loss, edge_loss, particle_shares
from hypertrack_jax.tunes.tune import ClusterTune, LossTune, NetworkTune, Tune

MAX_ROUNDS = 4
"""Rounds of the search in training; the micrographs of the first are enough to learn from."""
MAX_MICROGRAPHS = 384
"""Micrographs of an event that are learnt from; where there are more, random ones stand for all."""
TRAINING_NEIGHBORS, SPARSE_NEIGHBORS, TRAINING_SLOTS = 64, 16, 64
"""Capacities of the search in training; `Losses.is_cut` tells where they are too small. Micrographs
that reach two steps or more have sparse graphs."""


class Losses(NamedTuple):
    """The losses of one event, or their means over a batch."""

    loss: Float[Array, ""]
    """The weighted sum, which is minimised."""
    edge_bce: Float[Array, ""]
    edge_contrastive: Float[Array, ""]
    cluster_bce: Float[Array, ""]
    """0 in phase 1, as are all that follow but the AUC."""
    cluster_contrastive: Float[Array, ""]
    auc: Float[Array, ""]
    """Area under the ROC curve of the edges."""
    num_clusters: Float[Array, ""]
    """Clusters found."""
    num_micrographs: Float[Array, ""]
    """Micrographs that the clusterer was asked for."""
    is_cut: Float[Array, ""]
    """1 where a hit had too many neighbours, or a micrograph too many hits, for the capacities."""
    flow: Float[Array, ""]
    """Mean negative log-density of the embeddings of particle hits; 0 where it has no weight."""


class LossMethod(NamedTuple):
    """All that the loss of an event is compiled for; equal methods share their programs."""

    network: NetworkTune
    loss: LossTune
    cluster: ClusterTune
    dtype: DTypeLike
    """Type of the arrays over hits and edges."""
    phase: int


class EventKeys(NamedTuple):
    """The random keys of an event, one for each purpose."""

    contrastive: PRNGKeyArray
    """Draws the particles of the contrastive loss."""
    threshold: PRNGKeyArray
    """Draws the edge threshold of phase 2."""
    search: PRNGKeyArray
    """Decides the search for clusters."""
    micrographs: PRNGKeyArray
    """Draws the micrographs that are learnt from."""


def loss_method(tune: Tune, dtype: DTypeLike, phase: int) -> LossMethod:
    """The method of a training; phase 1 does not depend on the clusterer."""
    cluster = tune.cluster if phase == FULL_PHASE else ClusterTune()
    return LossMethod(tune.network, tune.loss, cluster, jnp.dtype(dtype), phase)


def event_loss(
    method: LossMethod,
    params: dict[str, Any],
    batch_stats: Any,
    graph: EventGraph,
    key: PRNGKeyArray,
) -> tuple[Float[Array, ""], tuple[Any, Losses]]:
    """The loss, the moved running statistics and all losses of an event.

    Phase 2 searches the clusters with the weights as they are, and learns the membership of their
    micrographs. Gradients reach the edge predictor through the embeddings.

    Args:
      method: networks, losses, type and phase.
      params: weights of the edge predictor, of the clusterer and of the flow, if there is one.
      batch_stats: running statistics of the edge predictor.
      graph: the event; if the flow's loss has a weight, its `globals` are its `hit_conditions`.
      key: decides all that is random.

    Raises:
      UserError: the flow's loss has a weight, but the graph has no `globals`.
    """
    keys = EventKeys(*jax.random.split(key, len(EventKeys._fields)))
    variables = {"params": params[EDGE], "batch_stats": batch_stats}
    prediction, updates = EdgePredictor(method.network).apply(
        variables, graph, train=True, dtype=method.dtype, mutable=["batch_stats"]
    )
    losses = edge_losses(method.loss, graph, prediction.logit, keys.contrastive)
    if method.loss.flow > 0:
        losses = _with_flow(method.loss, params[FLOW], graph, prediction, losses)
    if method.phase == FULL_PHASE:
        losses = _with_clusters(method, params[CLUSTER], graph, prediction, losses, keys)
    return losses.loss, (updates["batch_stats"], losses)


def edge_losses(
    tune: LossTune, graph: EventGraph, logit: Float[Array, " edge"], key: PRNGKeyArray
) -> Losses:
    """The edge losses of one event and their weighted sum."""
    label, mask, nodes = graph.edges.label, core_edges(graph), graph.nodes
    share, weight = None, nodes.weight
    if tune.particle_weight == "equal":
        share = particle_shares(label, mask, graph.senders, nodes.particle)
        weight = _equal_weights(nodes.particle)
    single = edge_loss(tune, logit, label, mask, share)
    contrastive = contrastive_edge_loss(
        logit,
        graph.senders,
        graph.receivers,
        mask,
        nodes.particle,
        weight,
        key,
        tune.contrastive_temperature,
        tune.contrastive_max_particles,
    )
    loss = tune.edge_bce * single + tune.edge_contrastive * contrastive
    auc = masked_auc(jax.lax.stop_gradient(logit).astype(jnp.float32), label, mask)
    zero = jnp.zeros((), loss.dtype)
    return Losses(loss, single, contrastive, zero, zero, auc, zero, zero, zero, zero)


def _equal_weights(particle: Int[Array, " hit"]) -> Float[Array, " hit"]:
    """Hit weights whose sum is 1 for every particle."""
    num_hits = len(particle)
    of = jnp.where(particle >= 0, particle, num_hits)
    one = jnp.ones(num_hits)
    size = segment_sum(one, of, num_hits, sorted_ids=False)
    return one / jnp.maximum(size, 1)[jnp.minimum(of, num_hits - 1)]


def _with_flow(
    tune: LossTune,
    params: dict[str, Any],
    graph: EventGraph,
    prediction: EdgePrediction,
    losses: Losses,
) -> Losses:
    """The losses with that of the flow added."""
    if graph.globals is None:
        raise UserError(
            f"the loss of the flow has the weight {tune.flow}, but the graphs know nothing of "
            "particles; set their globals to hit_conditions(event, num_nodes), or the weight to 0."
        )
    conditions = cast(jax.Array, graph.globals)
    loss = flow_loss(params, prediction.embedding, conditions, graph.nodes.particle)
    total = losses.loss + tune.flow * loss.astype(losses.loss.dtype)
    return losses._replace(loss=total, flow=loss)


def training_sizes(num_nodes: int) -> SearchSizes:
    """Capacities of the search in training, by the node capacity of the graph."""
    return SearchSizes(
        num_slots=TRAINING_SLOTS,
        num_rounds=MAX_ROUNDS,
        num_seeds=max(16, num_nodes // 16),
        num_micrographs=max(32, num_nodes // 4),
    )


def _with_clusters(
    method: LossMethod,
    params: dict[str, Any],
    graph: EventGraph,
    prediction: EdgePrediction,
    losses: Losses,
    keys: EventKeys,
) -> Losses:
    """The losses with those of the clusters added."""
    sizes = training_sizes(len(graph.nodes.mask))
    fixed = jax.lax.stop_gradient
    probability = jax.nn.sigmoid(fixed(prediction.logit).astype(jnp.float32))
    threshold = _training_threshold(method.cluster, keys.threshold)
    num_neighbors = TRAINING_NEIGHBORS if method.cluster.micrograph_hops == 1 else SPARSE_NEIGHBORS
    kept = kept_edges(graph, probability, threshold, num_neighbors)
    found = fixed(
        transformer_clusters(
            method.network,
            method.cluster,
            fixed(params),
            graph.nodes,
            fixed(prediction.embedding),
            kept,
            sizes,
            keys.search,
            method.dtype,
        )
    )
    tokens = hit_tokens(method.network, prediction.embedding, graph.nodes.position)
    drawn = _drawn(found.micrographs, found.num_micrographs, keys.micrographs)
    logit = logits_of(method.network, params, tokens, drawn.micrographs, method.dtype).astype(
        jnp.float32
    )
    hit, pivot, _ = drawn.micrographs
    mask, particle = hit < len(tokens), graph.nodes.particle
    if method.cluster.membership_threshold == "soft":
        # The losses change sign at a logit of 0, so they move the threshold.
        logit = logit - params[THRESHOLD]
        members = members_of("fixed", logit, mask, params[THRESHOLD])
    else:
        members = members_of(method.cluster.membership_threshold, logit, mask, params[THRESHOLD])
    is_counted = jnp.arange(len(hit)) < drawn.number
    if graph.nodes.is_core is not None:
        # The first pivot is the seed.
        is_counted &= at_hits(graph.nodes.is_core, pivot[:, 0], False)
    scored = ScoredMicrographs(
        logit=logit,
        is_chosen=members.is_chosen,
        mask=mask,
        particle=at_hits(particle, hit, -1),
        pivot_particle=at_hits(particle, pivot, -1),
        cluster_mask=is_counted,
    )
    is_core = graph.nodes.mask if graph.nodes.is_core is None else graph.nodes.is_core
    num_hits = is_core.sum().astype(jnp.float32) * drawn.share
    of_clusters = cluster_losses(method.loss, scored, num_hits)
    is_short = kept.neighbors.degree.max() > num_neighbors
    is_cut = is_short | (found.needed_slots > sizes.num_slots)
    return losses._replace(
        loss=losses.loss + _weighted(method.loss, of_clusters),
        cluster_bce=of_clusters.cluster_bce,
        cluster_contrastive=of_clusters.cluster_contrastive,
        num_clusters=found.num_clusters.astype(jnp.float32),
        num_micrographs=found.num_micrographs.astype(jnp.float32),
        is_cut=is_cut.astype(jnp.float32),
    )


class _Drawn(NamedTuple):
    """The micrographs of an event that are learnt from."""

    micrographs: Micrographs
    number: Int[Array, ""]
    """How many they are; behind them are empty ones."""
    share: Float[Array, ""]
    """Their share of all."""


def _drawn(found: Micrographs, number: Int[Array, ""], key: PRNGKeyArray) -> _Drawn:
    """Draws at most `MAX_MICROGRAPHS` of the micrographs at random."""
    capacity = len(found.size)
    total = jnp.minimum(number, capacity)
    place = jnp.arange(capacity, dtype=jnp.int32)
    lottery = jax.random.permutation(key, place)
    order = jnp.argsort(jnp.where(place < total, lottery, capacity))[:MAX_MICROGRAPHS]
    number = jnp.minimum(total, len(order))
    share = number.astype(jnp.float32) / jnp.maximum(total, 1).astype(jnp.float32)
    return _Drawn(jax.tree.map(lambda rows: rows[order], found), number, share)


def _training_threshold(tune: ClusterTune, key: PRNGKeyArray) -> Float[Array, ""]:
    """The edge threshold of an event in training."""
    highest = tune.edge_threshold
    lowest = highest if tune.training_threshold is None else tune.training_threshold
    return jax.random.uniform(key, minval=lowest, maxval=highest)


def _weighted(tune: LossTune, losses: ClusterLosses) -> Float[Array, ""]:
    return (
        tune.cluster_bce * losses.cluster_bce
        + tune.cluster_contrastive * losses.cluster_contrastive
    )
