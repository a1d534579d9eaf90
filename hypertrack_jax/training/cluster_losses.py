"""Device side: the losses of the clusterer (algorithm section 6), over padded micrographs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hypertrack_jax.training.losses import at_least_float32, focal_cross_entropy
from hypertrack_jax.tunes.tune import LossTune

SMOOTHING = 1.0
"""Added to both sides of the Dice and Jaccard indices, as published; without it a cluster with no
right hit would have no gradient."""


class ScoredMicrographs(NamedTuple):
    """Micrographs of one event, what the clusterer said of their hits, and the truth."""

    logit: Float[Array, "cluster slot"]
    """Membership logit of each hit."""
    is_chosen: Bool[Array, "cluster slot"]
    """True where the membership passed the threshold."""
    mask: Bool[Array, "cluster slot"]
    """True for slots with a hit."""
    particle: Int[Array, "cluster slot"]
    """Particle index of each hit; -1 for noise."""
    pivot_particle: Int[Array, "cluster pivot"]
    """Particle index of each pivot; -1 for noise and where there is no pivot."""
    cluster_mask: Bool[Array, " cluster"]
    """True for real clusters; the others count for nothing, whatever is in their slots."""


class ClusterLosses(NamedTuple):
    """The losses of the clusters of one event, or their means over a batch."""

    cluster_bce: Float[Array, ""]
    cluster_contrastive: Float[Array, ""]


def cluster_losses(
    tune: LossTune,
    micrographs: ScoredMicrographs,
    num_hits: int | Int[Array, ""] | Float[Array, ""],
) -> ClusterLosses:
    """`membership_loss` and `set_loss` as the tune asks for them, not yet weighted.

    `num_hits` is the number of hits of the event, padding left out.
    """
    label = cluster_targets(tune.cluster_target, micrographs)
    return ClusterLosses(
        membership_loss(micrographs, label, tune.cluster_focal_gamma),
        set_loss(tune.cluster_contrastive_type, micrographs, label, num_hits),
    )


def cluster_targets(mode: str, micrographs: ScoredMicrographs) -> Bool[Array, "cluster slot"]:
    """Which hits belong to the particle that the cluster is meant to be.

    Args:
      mode: `pivotmajor`, the particle with the most pivots; or `major`, the one with the most hits
        among the chosen. Of several with equally many it is the one whose hit comes first.
      micrographs: the micrographs.

    Returns:
      The label of each slot; False where there is no hit. Noise is no particle, however often it
      occurs: a cluster with noise alone among its pivots, or its chosen hits, has no right hits.
      *Deviation*: in the PyTorch program noise is one more particle, with the name -1.
    """
    if mode == "pivotmajor":
        voters = micrographs.pivot_particle
    else:
        is_voter = micrographs.is_chosen & micrographs.mask
        voters = jnp.where(is_voter, micrographs.particle, -1)
    target = _most_frequent(voters)[:, None]
    return micrographs.mask & (micrographs.particle == target) & (target >= 0)


def membership_loss(
    micrographs: ScoredMicrographs, label: Bool[Array, "cluster slot"], gamma: float
) -> Float[Array, ""]:
    """Focal binary cross entropy of the membership: mean per cluster, then over the clusters.

    Source: Lin et al., arXiv:1708.02002, eq. 4, not balanced. Without clusters it is 0.
    """
    logit, mask = _real_logits(micrographs), micrographs.mask
    loss = jnp.where(mask, focal_cross_entropy(logit, label, gamma), 0).sum(axis=1)
    num_hits = jnp.maximum(mask.sum(axis=1), 1).astype(loss.dtype)
    return _mean_of_clusters(loss / num_hits, micrographs.cluster_mask)


def set_loss(
    kind: str,
    micrographs: ScoredMicrographs,
    label: Bool[Array, "cluster slot"],
    num_hits: int | Int[Array, ""] | Float[Array, ""],
) -> Float[Array, ""]:
    """How far the clusters are, as sets, from the particles that they are meant to be.

    Args:
      kind: `intersect`, 1 - the sum over all clusters of (the sum of p over chosen hits that are
        right - the sum over chosen hits that are wrong) / `num_hits`; or 1 - the soft `dice` or
        `jaccard` index over all slots, with the label as the other set, mean over the clusters.
      micrographs: the micrographs.
      label: which hits are right, as `cluster_targets` finds.
      num_hits: hits of the event, padding left out.

    Returns:
      The loss. The best value is 0; `intersect` reaches it when all hits are found. Without
      clusters `intersect` is 1, since nothing is found, and the others are 0.
    """
    p = jnp.where(micrographs.mask, jax.nn.sigmoid(_real_logits(micrographs)), 0)
    if kind == "intersect":
        is_taken = micrographs.is_chosen & micrographs.cluster_mask[:, None]
        gain = jnp.where(is_taken, jnp.where(label, p, -p), 0)
        return 1 - gain.sum() / jnp.maximum(jnp.asarray(num_hits, p.dtype), 1)
    shared = jnp.where(label, p, 0).sum(axis=1)
    total = p.sum(axis=1) + label.sum(axis=1, dtype=p.dtype)
    if kind == "dice":
        index = (2 * shared + SMOOTHING) / (total + SMOOTHING)
    else:
        index = (shared + SMOOTHING) / (total - shared + SMOOTHING)
    return _mean_of_clusters(1 - index, micrographs.cluster_mask)


def _most_frequent(particle: Int[Array, "cluster voter"]) -> Int[Array, " cluster"]:
    """The particle that occurs most often, the first such; -1 where there is noise alone."""
    is_same = particle[:, :, None] == particle[:, None, :]
    votes = jnp.where(particle >= 0, is_same.sum(axis=2), 0)
    # The first of several largest.
    winner = jnp.argmax(votes, axis=1)
    return particle[jnp.arange(len(particle)), winner]


def _real_logits(micrographs: ScoredMicrographs) -> Float[Array, "cluster slot"]:
    """The logits; 0 in empty slots, whose logits have no meaning and must not reach a gradient."""
    logit = at_least_float32(micrographs.logit)
    return jnp.where(micrographs.mask & micrographs.cluster_mask[:, None], logit, 0)


def _mean_of_clusters(
    loss: Float[Array, " cluster"], cluster_mask: Bool[Array, " cluster"]
) -> Float[Array, ""]:
    num_clusters = jnp.maximum(cluster_mask.sum(), 1).astype(loss.dtype)
    return jnp.where(cluster_mask, loss, 0).sum() / num_clusters
