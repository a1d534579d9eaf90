"""The edge losses against hand-made numbers and loops over particles."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_graph import permute_hits, toy_graph

from hypertrack_jax.events.event import NOISE
from hypertrack_jax.graph.event_graph import Bucket
from hypertrack_jax.training.losses import (
    MIN_PROBABILITY,
    contrastive_edge_loss,
    edge_loss,
    focal_edge_loss,
    hinge_edge_loss,
    particle_shares,
)
from hypertrack_jax.tunes.tune import LossTune

TEMPERATURE = 0.3
LN2 = np.log(2)


def focal(logit, label, mask=None, gamma=1.0):
    logit, label = jnp.asarray(logit, jnp.float32), jnp.asarray(label, bool)
    mask = jnp.ones(label.shape, bool) if mask is None else jnp.asarray(mask)
    return focal_edge_loss(logit, label, mask, gamma)


@pytest.mark.parametrize(("gamma", "expected"), [(0.0, LN2), (1.0, LN2 / 2), (2.0, LN2 / 4)])
def test_undecided_edges_cost_half_to_the_gamma_times_log_2(gamma, expected):
    assert focal(np.zeros(5), np.arange(5) < 2, gamma=gamma) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_balanced_focal_loss_of_a_hand_made_event(gamma):
    # Two true edges with p = 0.8 and 0.4, three false ones with p = 0.1, 0.5 and 0.7.
    probability = np.array([0.8, 0.4, 0.1, 0.5, 0.7])
    label = np.array([True, True, False, False, False])
    right = np.array([0.8, 0.4, 0.9, 0.5, 0.3])
    weight = np.array([1.5, 1.5, 1.0, 1.0, 1.0])
    expected = (weight * (1 - right) ** gamma * -np.log(right)).sum() / 6.0
    logit = np.log(probability / (1 - probability))
    assert focal(logit, label, gamma=gamma) == pytest.approx(expected, rel=1e-5)


def test_focal_loss_of_one_class_is_not_balanced():
    assert focal([0.0, 0.0], [True, True]) == pytest.approx(LN2 / 2)
    assert focal([0.0, 0.0], [False, False]) == pytest.approx(LN2 / 2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_and_gradient_survive_large_logits(gamma):
    label = np.array([True, True, False, False])
    logit = jnp.asarray([300.0, -300.0, 300.0, -300.0])
    value, gradient = jax.value_and_grad(lambda logit: focal(logit, label, gamma=gamma))(logit)
    # Two edges wrong by 300, with a (1 - p)^gamma of 1, out of four.
    assert value == pytest.approx(150, rel=1e-6)
    np.testing.assert_allclose(gradient, [0, -0.25, 0.25, 0], atol=1e-6)


def test_hinge_loss_of_a_hand_made_event():
    # Two true edges, beyond the margin and within it; three false ones, the second at the margin.
    logit = jnp.asarray([2.5, 0.25, -0.5, -1.0, 3.0])
    label = jnp.asarray([True, True, False, False, False])
    loss, gradient = jax.value_and_grad(hinge_edge_loss)(logit, label, jnp.ones(5, bool))
    assert loss == pytest.approx((1.5 * 0.75 + 0.5 + 4.0) / 6, rel=1e-6)
    np.testing.assert_allclose(gradient, np.array([0, -1.5, 1, 0, 1]) / 6, rtol=1e-6)


def test_edge_losses_by_name():
    logit = jnp.asarray([1.5, -0.5, -2.0, 0.0, 1.0])
    label, mask = jnp.asarray([True, True, False, False, False]), jnp.ones(5, bool)
    weight = np.array([1.5, 1.5, 1.0, 1.0, 1.0]) / 6
    towards = np.array([1.5, -0.5, 2.0, 0.0, -1.0])
    right = 1 / (1 + np.exp(-towards))
    bce = (weight * -np.log(right)).sum()
    hinge = (weight * np.maximum(0, 1 - towards)).sum()
    expected = {
        LossTune(edge_loss="focal", edge_focal_gamma=2.0): (
            weight * (1 - right) ** 2 * -np.log(right)
        ).sum(),
        LossTune(edge_loss="BCE", edge_focal_gamma=2.0): bce,
        LossTune(edge_loss="BCE+hinge"): 0.95 * bce + 0.05 * hinge,
        LossTune(edge_loss="BCE+hinge", edge_hinge=0.4): 0.6 * bce + 0.4 * hinge,
    }
    for tune, value in expected.items():
        assert edge_loss(tune, logit, label, mask) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("name", ["focal", "BCE", "BCE+hinge"])
def test_edge_losses_and_gradients_survive_large_logits(name):
    label = jnp.asarray([True, True, False, False])
    logit = jnp.asarray([1e4, -1e4, 1e4, -1e4])
    loss, gradient = jax.value_and_grad(edge_loss, argnums=1)(
        LossTune(edge_loss=name), logit, label, jnp.ones(4, bool)
    )
    # Two edges wrong by 1e4, out of four; the hinge's margin of 1 does not show.
    assert loss == pytest.approx(5e3, rel=1e-4)
    np.testing.assert_allclose(gradient, [0, -0.25, 0.25, 0], atol=1e-6)


def event_of_edges(seed=0, num_false=60, bucket=None):
    """A graph with several particles and noise, and logits of all sizes."""
    graph = toy_graph(seed, num_particles=5, num_false=num_false, bucket=bucket)
    logit = np.random.default_rng(seed).normal(0, 4, len(graph.senders)).astype(np.float32)
    assert (logit < np.log(MIN_PROBABILITY)).any()
    assert (graph.nodes.particle == NOISE).any()
    return jax.tree.map(jnp.asarray, graph), jnp.asarray(logit)


def contrastive(graph, logit, max_particles=300, seed=0):
    return contrastive_edge_loss(
        logit,
        graph.senders,
        graph.receivers,
        graph.edges.mask,
        graph.nodes.particle,
        graph.nodes.weight,
        jax.random.key(seed),
        TEMPERATURE,
        max_particles,
    )


def looped_contrastive(graph, logit, particles=None):
    """algorithm.md, section 6, particle by particle in float64."""
    particle, weight = np.asarray(graph.nodes.particle), np.asarray(graph.nodes.weight, np.float64)
    logit = np.asarray(logit, np.float64)
    senders, receivers = np.asarray(graph.senders), np.asarray(graph.receivers)
    strength = np.exp(np.tanh(logit) / TEMPERATURE)
    used = np.asarray(graph.edges.mask) & (senders != receivers)
    used &= 1 / (1 + np.exp(-logit)) > MIN_PROBABILITY
    if particles is None:
        particles = np.unique(particle[particle != NOISE])
    losses, weights, sizes = [], [], []
    for k in particles:
        num_ends = (particle[senders] == k).astype(int) + (particle[receivers] == k)
        inside, leaving = strength[used & (num_ends == 2)], strength[used & (num_ends == 1)]
        loss = np.mean(-np.log(inside / (inside + leaving.sum()))) if len(inside) else 0.0
        losses.append(loss)
        weights.append(weight[particle == k].sum())
        sizes.append((particle == k).sum())
    return np.average(losses, weights=weights) / np.mean(sizes)


@pytest.mark.parametrize("seed", [0, 1])
def test_contrastive_loss_equals_a_loop_over_particles(seed):
    graph, logit = event_of_edges(seed)
    expected = looped_contrastive(graph, logit)
    assert expected > 0.1
    assert contrastive(graph, logit) == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_weighs_particles_by_their_hits():
    graph, logit = event_of_edges()
    heavy = graph.nodes.weight * jnp.where(graph.nodes.particle == 2, 10.0, 1.0)
    graph = graph._replace(nodes=graph.nodes._replace(weight=heavy))
    assert contrastive(graph, logit) == pytest.approx(looped_contrastive(graph, logit), rel=1e-5)


def test_contrastive_loss_of_a_hand_made_event():
    # Particle 0 has hits 0 and 1, joined both ways; an edge leads from it to noise, hit 2.
    senders, receivers = jnp.asarray([1, 0, 2, 0]), jnp.asarray([0, 1, 0, 2])
    loss = contrastive_edge_loss(
        jnp.zeros(4),
        senders,
        receivers,
        jnp.ones(4, bool),
        jnp.asarray([0, 0, NOISE]),
        jnp.asarray([0.5, 0.5, 0.0]),
        jax.random.key(0),
        TEMPERATURE,
        300,
    )
    # All strengths are 1; one out of three, per edge; two hits per particle.
    assert loss == pytest.approx(np.log(3) / 2, rel=1e-6)


def test_a_particle_without_edges_inside_counts_with_loss_0():
    graph, logit = event_of_edges()
    particle = graph.nodes.particle
    is_inside_0 = (particle[graph.senders] == 0) & (particle[graph.receivers] == 0)
    logit = jnp.where(is_inside_0, -30.0, logit)
    assert contrastive(graph, logit) == pytest.approx(looped_contrastive(graph, logit), rel=1e-5)


@pytest.mark.parametrize("max_particles", [1, 2, 4])
def test_a_random_subset_of_the_size_asked_for(max_particles):
    graph, logit = event_of_edges()
    losses = {
        subset: looped_contrastive(graph, logit, subset)
        for subset in combinations(range(5), max_particles)
    }
    drawn = set()
    for seed in range(60):
        found = float(contrastive(graph, logit, max_particles, seed))
        subset = min(losses, key=lambda subset: abs(losses[subset] - found))
        assert found == pytest.approx(losses[subset], rel=1e-5)
        drawn.add(subset)
    assert set().union(*drawn) == set(range(5))
    assert len(drawn) > 3


@pytest.mark.parametrize(("max_particles", "name"), [(300, "focal"), (3, "BCE+hinge")])
def test_padding_changes_neither_losses_nor_gradients(max_particles, name):
    graph, logit = event_of_edges()
    num_nodes, num_edges = len(graph.nodes.mask), len(logit)
    padded, _ = event_of_edges(bucket=Bucket(num_nodes + 50, num_edges + 70))
    padded_logit = jnp.concatenate([logit, jnp.linspace(-40, 40, 70)])
    padded_label = padded.edges.label | ~padded.edges.mask

    def losses(graph, label, logit):
        of_edges = edge_loss(LossTune(edge_loss=name), logit, label, graph.edges.mask)
        return of_edges + contrastive(graph, logit, max_particles)

    value, gradient = jax.value_and_grad(losses, argnums=2)(graph, graph.edges.label, logit)
    padded_value, padded_gradient = jax.value_and_grad(losses, argnums=2)(
        padded, padded_label, padded_logit
    )
    assert padded_value == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(padded_gradient[:num_edges], gradient, rtol=1e-4, atol=1e-8)
    assert np.all(padded_gradient[num_edges:] == 0)
    assert np.abs(gradient).max() > 1e-4


def test_the_order_of_hits_edges_and_particles_does_not_matter():
    graph, logit = event_of_edges()
    order = np.random.default_rng(1).permutation(len(graph.nodes.mask))
    permuted, edge_order = permute_hits(jax.device_get(graph), order)
    renamed = np.where(permuted.nodes.particle == NOISE, NOISE, 4 - permuted.nodes.particle)
    permuted = permuted._replace(nodes=permuted.nodes._replace(particle=renamed))
    permuted, permuted_logit = jax.tree.map(jnp.asarray, permuted), logit[edge_order]
    assert contrastive(permuted, permuted_logit) == pytest.approx(
        float(contrastive(graph, logit)), rel=1e-5
    )
    assert focal(permuted_logit, permuted.edges.label) == pytest.approx(
        float(focal(logit, graph.edges.label)), rel=1e-5
    )


def test_without_real_edges_losses_and_gradients_are_zero():
    graph, logit = event_of_edges()
    edges = graph.edges._replace(mask=jnp.zeros_like(graph.edges.mask))
    graph = graph._replace(edges=edges)
    for loss in (
        lambda logit: focal_edge_loss(logit, edges.label, edges.mask, 1.0),
        lambda logit: hinge_edge_loss(logit, edges.label, edges.mask),
        lambda logit: contrastive(graph, logit),
    ):
        value, gradient = jax.value_and_grad(loss)(logit)
        assert value == 0
        assert np.all(gradient == 0)


def test_an_event_of_noise_alone_has_no_contrastive_loss():
    graph, logit = event_of_edges()
    noise = jnp.full_like(graph.nodes.particle, NOISE)
    graph = graph._replace(nodes=graph.nodes._replace(particle=noise))
    value, gradient = jax.value_and_grad(lambda logit: contrastive(graph, logit))(logit)
    assert value == 0
    assert np.all(gradient == 0)


def test_half_precision_logits_are_summed_in_float32():
    graph, logit = event_of_edges()
    half = logit.astype(jnp.bfloat16)
    full = half.astype(jnp.float32)
    assert contrastive(graph, half) == contrastive(graph, full)
    label, mask = graph.edges.label, graph.edges.mask
    assert focal_edge_loss(half, label, mask, 1.0) == focal_edge_loss(full, label, mask, 1.0)
    assert hinge_edge_loss(half, label, mask) == hinge_edge_loss(full, label, mask)


def test_shares_give_every_particle_the_same_sum():
    """By hand: particle 0 has two true edges, particle 1 one; 3 edges, so 1.5 for each particle."""
    label = jnp.array([True, True, True, False, True])
    mask = jnp.array([True, True, True, True, False])
    senders = jnp.array([0, 0, 1, 2, 2])
    share = particle_shares(label, mask, senders, jnp.array([0, 1, -1]))
    np.testing.assert_allclose(share[:3], [0.75, 0.75, 1.5])
    assert np.all(np.isfinite(share))


def test_shares_weigh_the_true_edges_alone():
    """Of two true edges with losses a and b at shares 0.5 and 1.5, and two false ones."""
    logit = jnp.array([0.3, -1.0, 0.7, -0.2])
    label, mask = jnp.array([True, True, False, False]), jnp.ones(4, bool)
    share = jnp.array([0.5, 1.5, 9.0, 9.0])
    a, b, c, d = -np.asarray(jax.nn.log_sigmoid(jnp.where(label, logit, -logit)), np.float64)
    found = focal_edge_loss(logit, label, mask, 0.0, share)
    assert float(found) == pytest.approx((0.5 * a + 1.5 * b + c + d) / 4, rel=1e-6)
    # The tune passes them on.
    for kind in ("focal", "BCE", "BCE+hinge"):
        tune = LossTune(edge_loss=kind)
        weighed, plain = (edge_loss(tune, logit, label, mask, s) for s in (share, None))
        assert abs(float(weighed) - float(plain)) > 0.01
