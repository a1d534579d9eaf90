"""Device side: the losses of the edge predictor (algorithm section 6), over padded graphs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from hypertrack_jax.graph.segment import segment_sum
from hypertrack_jax.tunes.tune import LossTune

MIN_PROBABILITY = 1e-3
"""Edges less probable than this do not enter the contrastive loss."""


def edge_loss(
    tune: LossTune,
    logit: Float[Array, " edge"],
    label: Bool[Array, " edge"],
    mask: Bool[Array, " edge"],
    share: Float[Array, " edge"] | None = None,
) -> Float[Array, ""]:
    """The balanced loss of single edges that `tune.edge_loss` names.

    `focal` has the exponent `tune.edge_focal_gamma`, `BCE` the exponent 0; `BCE+hinge` is a mean of
    `BCE` and `hinge_edge_loss` in which the latter has the share `tune.edge_hinge`.
    """
    if tune.edge_loss == "focal":
        return focal_edge_loss(logit, label, mask, tune.edge_focal_gamma, share)
    cross_entropy = focal_edge_loss(logit, label, mask, 0.0, share)
    if tune.edge_loss == "BCE":
        return cross_entropy
    hinge = hinge_edge_loss(logit, label, mask, share)
    return (1 - tune.edge_hinge) * cross_entropy + tune.edge_hinge * hinge


def focal_edge_loss(
    logit: Float[Array, " edge"],
    label: Bool[Array, " edge"],
    mask: Bool[Array, " edge"],
    gamma: float,
    share: Float[Array, " edge"] | None = None,
) -> Float[Array, ""]:
    """Focal binary cross entropy, balanced so that both classes weigh the same in all.

    Source: Lin et al., arXiv:1708.02002, eq. 4; positives are weighted by n_negative / n_positive
    and the mean is weighted likewise. An event of one class only is not balanced; one without edges
    gives 0. *Deviation*: with gamma 0 the PyTorch program divides by the number of edges and not
    by the sum of their weights, so that the loss is larger by 2 n_negative / n_edges.

    `share` weighs the true edges among themselves, see `particle_shares`.
    """
    logit = _real_logits(logit, mask)
    return _balanced_mean(focal_cross_entropy(logit, label, gamma), label, mask, share)


def hinge_edge_loss(
    logit: Float[Array, " edge"],
    label: Bool[Array, " edge"],
    mask: Bool[Array, " edge"],
    share: Float[Array, " edge"] | None = None,
) -> Float[Array, ""]:
    """max(0, 1 - y logit), y = 1 for true edges and -1 for false ones, balanced likewise."""
    logit = _real_logits(logit, mask)
    towards = jnp.where(label, logit, -logit)
    return _balanced_mean(jax.nn.relu(1 - towards), label, mask, share)


def particle_shares(
    label: Bool[Array, " edge"],
    mask: Bool[Array, " edge"],
    senders: Int[Array, " edge"],
    hit_particle: Int[Array, " hit"],
) -> Float[Array, " edge"]:
    """Weights that give every particle the same sum over its true edges; their mean is 1.

    A particle of n hits has up to n^2 true edges. Without these weights a particle of 13 hits would
    weigh ten times one of 4. The values at other edges have no meaning.
    """
    num_segments, is_true = len(hit_particle), mask & label
    particle = jnp.where(is_true, hit_particle[senders], num_segments)
    one = is_true.astype(jnp.float32)
    num_edges = segment_sum(one, particle, num_segments, sorted_ids=False)
    num_particles = (num_edges > 0).sum().astype(jnp.float32)
    mean = one.sum() / jnp.maximum(num_particles, 1)
    return mean / jnp.maximum(num_edges, 1)[jnp.minimum(particle, num_segments - 1)]


def focal_cross_entropy(
    logit: Float[Array, "*entry"], label: Bool[Array, "*entry"], gamma: float
) -> Float[Array, "*entry"]:
    """-(1 - p)^gamma log p of every entry, p the probability of its true class."""
    # log p of the true class, and 1 - p of it, both exact for large logits.
    towards = jnp.where(label, logit, -logit)
    # A power of 1 - p has no finite gradient at 0 where gamma < 1; its logarithm has.
    focus = jnp.exp(gamma * jax.nn.log_sigmoid(-towards))
    return -jax.nn.log_sigmoid(towards) * focus


def at_least_float32(logit: Float[Array, "*entry"]) -> Float[Array, "*entry"]:
    """Half-precision logits as float32, in which losses are summed; others as they are."""
    return logit.astype(jnp.float32) if logit.dtype.itemsize < 4 else logit


def contrastive_edge_loss(
    logit: Float[Array, " edge"],
    senders: Int[Array, " edge"],
    receivers: Int[Array, " edge"],
    mask: Bool[Array, " edge"],
    hit_particle: Int[Array, " hit"],
    hit_weight: Float[Array, " hit"],
    key: PRNGKeyArray,
    temperature: float,
    max_particles: int,
) -> Float[Array, ""]:
    """Each edge inside a particle against all edges that leave the particle.

    l_k = mean over edges e inside k of -log(exp(s_e / tau) / (exp(s_e / tau) + sum over edges with
    exactly one end in k of exp(s / tau))), s = tanh(logit); the loss is the mean of l_k weighted by
    the particles' hit weights, over the mean number of hits per particle. All sums over edges are
    segment sums, so nothing loops over particles.

    Args:
      logit: edge logits.
      senders: hit at the start of each edge.
      receivers: hit at the end of each edge.
      mask: True for real edges.
      hit_particle: particle index of each hit, below the number of hits; -1 for noise and padding.
      hit_weight: TrackML hit weights.
      key: draws the particles where there are more than `max_particles`.
      temperature: tau.
      max_particles: number of particles that enter.

    Returns:
      The loss; 0 for an event without particles.
    """
    logit = _real_logits(logit, mask)
    num_segments = hit_particle.shape[0]
    is_signal = hit_particle >= 0
    particle = jnp.where(is_signal, hit_particle, num_segments)
    num_hits = segment_sum(is_signal.astype(logit.dtype), particle, num_segments, sorted_ids=False)
    chosen = _random_subset(num_hits > 0, max_particles, key)

    score = jnp.tanh(logit) / temperature
    is_used = mask & (senders != receivers) & (jax.nn.sigmoid(logit) > MIN_PROBABILITY)
    of_sender, of_receiver = particle[senders], particle[receivers]
    is_inside = is_used & (of_sender == of_receiver) & is_signal[senders]
    is_leaving = is_used & (of_sender != of_receiver)
    strength = jnp.where(is_leaving, jnp.exp(score), 0)
    leaving = segment_sum(strength, of_receiver, num_segments, sorted_ids=False) + segment_sum(
        strength, of_sender, num_segments, sorted_ids=False
    )
    # -log(e^s / (e^s + n)) = log(1 + n e^-s); |s| <= 1 / tau, so nothing overflows.
    edge_loss = jnp.where(is_inside, jnp.log1p(leaving[of_sender] * jnp.exp(-score)), 0)
    total = segment_sum(edge_loss, of_sender, num_segments, sorted_ids=False)
    num_inside = segment_sum(
        is_inside.astype(logit.dtype), of_sender, num_segments, sorted_ids=False
    )
    particle_loss = total / jnp.maximum(num_inside, 1)

    weight = segment_sum(hit_weight.astype(logit.dtype), particle, num_segments, sorted_ids=False)
    weight = jnp.where(chosen, weight, 0)
    weighted_mean = (weight * particle_loss).sum() / jnp.maximum(weight.sum(), 1e-12)
    num_chosen = jnp.maximum(chosen.sum(dtype=logit.dtype), 1)
    mean_hits = jnp.where(chosen, num_hits, 0).sum() / num_chosen
    return weighted_mean / jnp.maximum(mean_hits, 1)


def _real_logits(logit: Float[Array, " edge"], mask: Bool[Array, " edge"]) -> Float[Array, " edge"]:
    """The logits in at least float32; 0 for padding, whose logits have no meaning."""
    return jnp.where(mask, at_least_float32(logit), 0)


def _balanced_mean(
    loss: Float[Array, " edge"],
    label: Bool[Array, " edge"],
    mask: Bool[Array, " edge"],
    share: Float[Array, " edge"] | None,
) -> Float[Array, ""]:
    """Mean over the edges in which all true ones weigh as much as all false ones."""
    positive, negative = mask & label, mask & ~label
    num_positive, num_negative = positive.sum(), negative.sum()
    both = (num_positive > 0) & (num_negative > 0)
    balance = jnp.where(both, num_negative / jnp.maximum(num_positive, 1), 1)
    weight = jnp.where(mask, jnp.where(positive, balance, 1), 0).astype(loss.dtype)
    if share is not None:
        weight = jnp.where(positive, share.astype(loss.dtype) * weight, weight)
    return (weight * loss).sum() / jnp.maximum(weight.sum(), 1)


def _random_subset(
    candidates: Bool[Array, " particle"], size: int, key: PRNGKeyArray
) -> Bool[Array, " particle"]:
    """At most `size` of the candidates, each subset equally likely."""
    if size >= candidates.shape[0]:
        return candidates
    lottery = jnp.where(candidates, jax.random.uniform(key, candidates.shape), -1.0)
    threshold = jax.lax.top_k(lottery, size)[0][-1]
    return candidates & (lottery >= threshold)
