"""The losses of the clusterer against hand-made numbers and loops over clusters."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.events.event import NOISE
from hypertrack_jax.training.cluster_losses import (
    ScoredMicrographs,
    cluster_losses,
    cluster_targets,
    membership_loss,
    set_loss,
)
from hypertrack_jax.tunes.tune import LossTune

KINDS = ("intersect", "dice", "jaccard")
TARGETS = ("pivotmajor", "major")
NUM_HITS = 40


def micrographs_of(probability, particle, pivot_particle=None, is_chosen=None, mask=None):
    """Micrographs from rows of numbers; by default all slots are real and p > 0.5 is chosen."""
    probability = np.asarray(probability, np.float64)
    mask = np.ones(probability.shape, bool) if mask is None else np.asarray(mask)
    is_chosen = probability > 0.5 if is_chosen is None else np.asarray(is_chosen)
    pivot_particle = [[NOISE]] * len(mask) if pivot_particle is None else pivot_particle
    return ScoredMicrographs(
        jnp.asarray(np.log(probability / (1 - probability)), jnp.float32),
        jnp.asarray(is_chosen & mask),
        jnp.asarray(mask),
        jnp.asarray(particle, jnp.int32),
        jnp.asarray(pivot_particle, jnp.int32),
        jnp.ones(len(mask), bool),
    )


def random_micrographs(seed):
    """Micrographs of 3 to 9 hits, with particles 0 to 3, noise, and logits of all sizes."""
    rng = np.random.default_rng(seed)
    mask = np.arange(9) < np.array([9, 3, 4, 7, 5, 9, 6])[:, None]
    logit = rng.normal(0, 3, mask.shape).astype(np.float32)
    particle = np.where(mask, rng.integers(NOISE, 4, mask.shape), NOISE).astype(np.int32)
    pivot_particle = rng.integers(NOISE, 4, (len(mask), 3)).astype(np.int32)
    arrays = (logit, mask & (logit > 0), mask, particle, pivot_particle, np.ones(7, bool))
    return ScoredMicrographs(*map(jnp.asarray, arrays))


def padded(micrographs, num_slots, num_clusters):
    """More slots and clusters, with the worst in them that may be there."""

    def rows(array, value):
        return jnp.pad(array, ((0, num_clusters), (0, num_slots)), constant_values=value)

    return ScoredMicrographs(
        logit=rows(micrographs.logit, jnp.nan),
        is_chosen=rows(micrographs.is_chosen, True),
        mask=jnp.pad(rows(micrographs.mask, False)[:-1], ((0, 1), (0, 0)), constant_values=True),
        particle=rows(micrographs.particle, 1),
        pivot_particle=jnp.pad(
            micrographs.pivot_particle, ((0, num_clusters), (0, 0)), constant_values=1
        ),
        cluster_mask=jnp.pad(micrographs.cluster_mask, (0, num_clusters)),
    )


def labels(mode, particle, pivot_particle, is_chosen=None, mask=None):
    probability = np.full(np.shape(particle), 0.75)
    micrographs = micrographs_of(probability, particle, pivot_particle, is_chosen, mask)
    return cluster_targets(mode, micrographs).astype(int).tolist()


def test_the_target_is_the_particle_of_most_pivots():
    particle = [[5, 7, 7, 7, NOISE, 5], [5, 7, 7, 7, NOISE, 5]]
    expected = [[1, 0, 0, 0, 0, 1], [0, 1, 1, 1, 0, 0]]
    assert labels("pivotmajor", particle, [[7, 5, 5], [7, 5, 7]]) == expected


def test_the_target_is_the_particle_of_most_chosen_hits():
    particle, pivots = [[5, 7, 7, 7, NOISE, 5]], [[7, 7, 7]]
    chosen = np.array([[True, True, False, False, True, True]])
    assert labels("major", particle, pivots, chosen) == [[1, 0, 0, 0, 0, 1]]
    assert labels("major", particle, [[5, 5, 5]]) == [[0, 1, 1, 1, 0, 0]]


def test_of_particles_with_equally_many_votes_the_first_is_the_target():
    particle = [[2, 9, 4, 4, 9, 2]]
    assert labels("pivotmajor", particle, [[9, 4, 2]]) == [[0, 1, 0, 0, 1, 0]]
    assert labels("pivotmajor", particle, [[4, 2, 9]]) == [[0, 0, 1, 1, 0, 0]]
    chosen = np.array([[False, True, True, True, True, False]])
    assert labels("major", particle, [[4, 4, 4]], chosen) == [[0, 1, 0, 0, 1, 0]]


def test_noise_is_never_the_target():
    particle = [[NOISE, NOISE, NOISE, 3, 8]]
    assert labels("pivotmajor", particle, [[NOISE, NOISE, 8]]) == [[0, 0, 0, 0, 1]]
    assert labels("major", particle, [[8, 8, 8]]) == [[0, 0, 0, 1, 0]]


def test_without_a_particle_among_the_voters_no_hit_is_right():
    particle, chosen = [[NOISE, 3, 3, 3]], np.array([[True, False, False, False]])
    assert labels("pivotmajor", particle, [[NOISE] * 3]) == [[0, 0, 0, 0]]
    assert labels("major", particle, [[3, 3, 3]], chosen) == [[0, 0, 0, 0]]
    assert labels("major", particle, [[3, 3, 3]], ~np.ones((1, 4), bool)) == [[0, 0, 0, 0]]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_membership_loss_of_two_hand_made_clusters(gamma):
    # Three hits with p = 0.8 and 0.4 (right) and 0.3 (wrong); two with 0.9 (right) and 0.6 (wrong).
    micrographs = micrographs_of(
        [[0.8, 0.4, 0.3], [0.9, 0.6, 0.1]],
        [[0, 0, 1], [2, 3, 2]],
        mask=[[True, True, True], [True, True, False]],
    )
    label = jnp.asarray([[True, True, False], [True, False, False]])
    of_true_class = np.array([0.8, 0.4, 0.7]), np.array([0.9, 0.4])
    means = [np.mean((1 - p) ** gamma * -np.log(p)) for p in of_true_class]
    expected = sum(means) / 2
    assert membership_loss(micrographs, label, gamma) == pytest.approx(expected, rel=1e-5)


def test_set_losses_of_two_hand_made_clusters():
    micrographs = micrographs_of([[0.75, 0.25, 0.625], [0.875, 0.75, 0.125]], [[0] * 3, [0] * 3])
    label = jnp.asarray([[True, True, False], [True, True, False]])
    # Taken: 0.75 right, 0.625 wrong; 0.875 and 0.75 right. Sums of p are 1.625 and 1.75, of p over
    # right hits 1 and 1.625, and two hits are right in each.
    expected = {
        "intersect": 1 - (0.75 - 0.625 + 0.875 + 0.75) / 10,
        "dice": 1 - (3 / 4.625 + 4.25 / 4.75) / 2,
        "jaccard": 1 - (2 / 3.625 + 2.625 / 3.125) / 2,
    }
    for kind, value in expected.items():
        assert set_loss(kind, micrographs, label, 10) == pytest.approx(value, rel=1e-6)


def test_intersect_moves_the_chosen_hits_alone():
    micrographs = micrographs_of([[0.75, 0.625, 0.25, 0.25]], [[0, 1, 0, 1]])
    label = jnp.asarray([[True, False, True, False]])
    gradient = jax.grad(
        lambda logit: set_loss("intersect", micrographs._replace(logit=logit), label, 8)
    )(micrographs.logit)
    slope = np.array([[-0.75 * 0.25, 0.625 * 0.375, 0, 0]]) / 8
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)


def looped_losses(tune, micrographs, num_hits):
    """algorithm.md, section 6, cluster by cluster and hit by hit in float64."""
    logit, chosen, mask, particle, pivots, _ = (np.asarray(part) for part in micrographs)
    bce, gain, indices = [], 0.0, []
    for row in range(len(logit)):
        hits = np.flatnonzero(mask[row])
        voters = pivots[row] if tune.cluster_target == "pivotmajor" else particle[row, chosen[row]]
        votes = Counter(voter for voter in voters.tolist() if voter != NOISE)
        # Counter keeps the order of first occurrence among equals.
        target = votes.most_common(1)[0][0] if votes else None
        right = np.array([particle[row, hit] == target for hit in hits])
        p = 1 / (1 + np.exp(-logit[row, hits].astype(np.float64)))
        of_class = np.where(right, p, 1 - p)
        bce.append(np.mean((1 - of_class) ** tune.cluster_focal_gamma * -np.log(of_class)))
        taken = chosen[row, hits]
        gain += p[right & taken].sum() - p[~right & taken].sum()
        shared, union = (p * right).sum(), (p + right - p * right).sum()
        dice = (2 * shared + 1) / (p.sum() + right.sum() + 1)
        indices.append({"dice": dice, "jaccard": (shared + 1) / (union + 1)})
    kind = tune.cluster_contrastive_type
    overlap = gain / num_hits if kind == "intersect" else np.mean([row[kind] for row in indices])
    return np.array([np.mean(bce), 1 - overlap])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_a_loop_over_clusters(kind, target, seed):
    tune = LossTune(
        cluster_contrastive_type=kind, cluster_target=target, cluster_focal_gamma=1.5 + seed
    )
    micrographs = random_micrographs(seed)
    found = cluster_losses(tune, micrographs, NUM_HITS)
    expected = looped_losses(tune, micrographs, NUM_HITS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    traced = jax.jit(cluster_losses, static_argnums=0)(tune, micrographs, jnp.int32(NUM_HITS))
    np.testing.assert_allclose(traced, expected, rtol=1e-5)


def value_and_gradient(tune, micrographs):
    def total(logit):
        losses = cluster_losses(tune, micrographs._replace(logit=logit), NUM_HITS)
        return losses.cluster_bce + 3 * losses.cluster_contrastive

    return jax.value_and_grad(total)(micrographs.logit)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_neither_losses_nor_gradients(kind, target):
    tune = LossTune(cluster_contrastive_type=kind, cluster_target=target)
    micrographs = random_micrographs(3)
    value, gradient = value_and_gradient(tune, micrographs)
    padded_value, padded_gradient = value_and_gradient(tune, padded(micrographs, 4, 3))
    assert padded_value == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(padded_gradient[:7, :9], gradient, rtol=1e-4, atol=1e-8)
    assert np.all(padded_gradient[7:] == 0)
    assert np.all(padded_gradient[:, 9:] == 0)
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_clusters_and_names_of_particles_do_not_matter(kind, target):
    tune = LossTune(cluster_contrastive_type=kind, cluster_target=target)
    micrographs = random_micrographs(4)
    renamed = jax.tree.map(lambda part: part[::-1], micrographs)
    for name in ("particle", "pivot_particle"):
        old = getattr(renamed, name)
        renamed = renamed._replace(**{name: jnp.where(old == NOISE, NOISE, 30 - old)})
    expected = cluster_losses(tune, micrographs, NUM_HITS)
    np.testing.assert_allclose(cluster_losses(tune, renamed, NUM_HITS), expected, rtol=1e-5)


def test_the_order_of_hits_does_not_matter():
    micrographs, order = random_micrographs(5), np.random.default_rng(0).permutation(9)
    label = cluster_targets("pivotmajor", micrographs)
    by_slot = ("logit", "is_chosen", "mask", "particle")
    permuted = micrographs._replace(
        **{name: getattr(micrographs, name)[:, order] for name in by_slot}
    )
    again = cluster_targets("pivotmajor", permuted)
    np.testing.assert_array_equal(again, label[:, order])
    for kind in KINDS:
        expected = float(set_loss(kind, micrographs, label, NUM_HITS))
        assert set_loss(kind, permuted, again, NUM_HITS) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_membership_loss_and_gradient_survive_large_logits(gamma):
    micrographs = micrographs_of(np.full((1, 4), 0.5), np.zeros((1, 4)))
    label = jnp.asarray([[True, True, False, False]])
    value, gradient = jax.value_and_grad(
        lambda logit: membership_loss(micrographs._replace(logit=logit), label, gamma)
    )(jnp.asarray([[300.0, -300.0, 300.0, -300.0]]))
    # Two hits of four wrong by 300, with a (1 - p)^gamma of 1.
    assert value == pytest.approx(150, rel=1e-6)
    np.testing.assert_allclose(gradient, [[0, -0.25, 0.25, 0]], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_set_losses_and_gradients_survive_large_logits(kind):
    logit = jnp.asarray([[1e4, -1e4, 1e4, -1e4], [-1e4, -1e4, -1e4, -1e4]])
    micrographs = micrographs_of(np.full((2, 4), 0.5), np.zeros((2, 4)), is_chosen=logit > 0)
    label = jnp.asarray([[True, True, False, False], [False, False, False, False]])
    value, gradient = jax.value_and_grad(
        lambda logit: set_loss(kind, micrographs._replace(logit=logit), label, 8)
    )(logit)
    # One hit found, one missed and one wrong; in the second cluster nothing to find, nothing found.
    expected = {"intersect": 1.0, "dice": (1 - 3 / 5) / 2, "jaccard": (1 - 2 / 4) / 2}
    assert value == pytest.approx(expected[kind], rel=1e-6)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_without_clusters_are_constants(kind):
    micrographs = random_micrographs(0)._replace(cluster_mask=jnp.zeros(7, bool))
    tune = LossTune(cluster_contrastive_type=kind)
    losses = cluster_losses(tune, micrographs, 0)
    assert losses == (0, 1 if kind == "intersect" else 0)
    _, gradient = value_and_gradient(tune, micrographs)
    assert np.all(gradient == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cluster_without_hits_costs_nothing_and_has_no_gradient(kind):
    micrographs = random_micrographs(0)
    micrographs = micrographs._replace(mask=micrographs.mask & False)
    tune = LossTune(cluster_contrastive_type=kind)
    losses = cluster_losses(tune, micrographs, NUM_HITS)
    assert losses == (0, 1 if kind == "intersect" else 0)
    _, gradient = value_and_gradient(tune, micrographs)
    assert np.all(gradient == 0)


def test_half_precision_logits_are_summed_in_float32():
    micrographs = random_micrographs(1)
    half = micrographs._replace(logit=micrographs.logit.astype(jnp.bfloat16))
    full = half._replace(logit=half.logit.astype(jnp.float32))
    for kind in KINDS:
        tune = LossTune(cluster_contrastive_type=kind)
        losses = cluster_losses(tune, half, NUM_HITS)
        assert losses == cluster_losses(tune, full, NUM_HITS)
        assert losses.cluster_bce.dtype == losses.cluster_contrastive.dtype == jnp.float32
