"""The loss of an event in phase 2: what it adds up, and what learns from it."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import helix_event
from toy_graph import toy_graph

from hypertrack_jax.clustering.micrographs import Micrographs
from hypertrack_jax.graph.event_graph import Bucket, event_graph
from hypertrack_jax.model.parameters import CLUSTER, EDGE, FULL_PHASE, GNN_PHASE
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.training import event_loss
from hypertrack_jax.training.event_loss import loss_method
from hypertrack_jax.training.step import Gradient, Model, batch_gradient, init_state

COMPILED = jax.jit(batch_gradient, static_argnums=0)
SMALLEST, LARGER = Bucket(256, 4096), Bucket(384, 5888)


class Gradients(NamedTuple):
    """What both phases say of the same batch."""

    first: Gradient
    full: Gradient
    full_padded: Gradient
    """Of the same events in a larger bucket."""


@pytest.fixture(scope="session")
def small_tune(small_tune):
    """With two layers, both of which the losses have to reach."""
    return replace(small_tune, network=replace(small_tune.network, num_layers=2))


@pytest.fixture(scope="module")
def gradients(small_tune, voxdyn):
    """Gradients, statistics and losses of two events by an untrained network."""
    state = jax.jit(init_state, static_argnums=0)(small_tune, jax.random.key(0))
    model = Model(state.params, state.batch_stats, state.loss_scale)
    events = [helix_event(0, num_particles=4, event_id=number) for number in (1, 2)]

    def of(phase, bucket):
        method = loss_method(small_tune, jnp.float32, phase)
        edges = [predict_edges(voxdyn, event.position) for event in events]
        return mean_gradient(method, model, events, edges, bucket)

    return Gradients(of(GNN_PHASE, SMALLEST), of(FULL_PHASE, SMALLEST), of(FULL_PHASE, LARGER))


def mean_gradient(method, model, events, edges, bucket):
    """The gradient of two events in a bucket, given their candidate edges."""
    graphs = [
        event_graph(event, *of_event, node2node="hyper", bucket=bucket)
        for event, of_event in zip(events, edges, strict=True)
    ]
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *graphs)
    half = np.full(2, 0.5, np.float32)
    return COMPILED(method, model, stacked, np.arange(2), half, jax.random.key(7))


def one_hit():
    return event_of(np.array([[30.0, 0.0, 5.0]]), [0])


def two_hits_of_one_particle():
    return event_of(np.array([[30.0, 0.0, 5.0], [60.0, 1.0, 10.0]]), [0, 0])


def two_hits_alike():
    return event_of(np.full((2, 3), 30.0), [0, 0])


def many_hits_in_one_place():
    return event_of(np.full((30, 3), 30.0), np.arange(30) // 5)


def event_of(position, hit_particle):
    """An event of these hits; of the particles of another event it has as many as it needs."""
    number = int(np.max(hit_particle)) + 1
    whole = helix_event(0, num_particles=number)
    share = np.full(len(position), 1 / len(position), np.float32)
    return whole._replace(
        position=position.astype(np.float32),
        hit_particle=np.asarray(hit_particle, whole.hit_particle.dtype),
        hit_weight=share,
    )


def all_edges(num_hits):
    """Every hit joined to every hit, itself included, so that receivers rise."""
    receivers, senders = np.divmod(np.arange(num_hits**2, dtype=np.int32), num_hits)
    return senders, receivers, np.ones(num_hits**2, np.int32)


@pytest.mark.parametrize("phase", [GNN_PHASE, FULL_PHASE])
@pytest.mark.parametrize(
    "make", [one_hit, two_hits_of_one_particle, two_hits_alike, many_hits_in_one_place]
)
def test_events_without_any_variance_have_finite_losses_and_gradients(
    make, phase, small_tune, gradients
):
    state = jax.jit(init_state, static_argnums=0)(small_tune, jax.random.key(0))
    model = Model(state.params, state.batch_stats, state.loss_scale)
    event = make()
    method, edges = loss_method(small_tune, jnp.float32, phase), all_edges(len(event.position))
    found = mean_gradient(method, model, [event] * 2, [edges] * 2, SMALLEST)
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(leaf))
    assert found.losses.loss > 0


def test_the_loss_of_phase_2_is_the_weighted_sum_of_its_parts(gradients, small_tune):
    first, full = gradients.first.losses, gradients.full.losses
    weights = small_tune.loss
    expected = (
        weights.edge_bce * full.edge_bce
        + weights.edge_contrastive * full.edge_contrastive
        + weights.cluster_bce * full.cluster_bce
        + weights.cluster_contrastive * full.cluster_contrastive
    )
    assert float(full.loss) == pytest.approx(float(expected), rel=1e-6)
    assert full.loss > first.loss
    for name in ("edge_bce", "edge_contrastive", "auc"):
        assert float(getattr(full, name)) == pytest.approx(float(getattr(first, name)), rel=1e-5)


def test_clusters_are_sought_in_phase_2_alone(gradients):
    first, full = gradients.first.losses, gradients.full.losses
    assert (first.cluster_bce, first.cluster_contrastive, first.num_micrographs) == (0, 0, 0)
    assert full.num_micrographs >= 2
    assert full.cluster_bce > 0.1
    assert full.is_cut == 0


def test_the_clusterer_learns_in_phase_2_alone(gradients):
    assert norm(gradients.first.params[CLUSTER]) == 0
    of_clusterer = gradients.full.params[CLUSTER]
    assert norm(of_clusterer) > 1e-4
    # All of it but the threshold, which is fixed in this tune, and biases before a softmax.
    learns = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(of_clusterer)
        if np.any(leaf != 0)
    }
    assert all(any(name.startswith(f"transformer/{part}") for name in learns) for part in PARTS)


PARTS = ("encoder_0", "encoder_1", "of_pivots", "of_hits_0", "membership_0", "membership_2")


def test_the_losses_of_the_clusters_reach_the_edge_predictor(gradients):
    difference = jax.tree.map(
        jnp.subtract, gradients.full.params[EDGE], gradients.first.params[EDGE]
    )
    # Through the embeddings: layers and their fusion, but not the MLP that scores edges.
    for part in ("layers_0", "layers_1", "fusion"):
        assert norm(difference[part]) > 1e-4
    assert norm(difference["edge_mlp"]) < 1e-5


def test_padding_changes_neither_losses_nor_gradients(gradients):
    for first, second in zip(gradients.full, gradients.full_padded, strict=True):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-5), first, second)


def norm(tree) -> float:
    return float(optax.tree.norm(tree))


@pytest.mark.parametrize("total", [0, 3, 40, 55])
def test_random_micrographs_stand_for_all(monkeypatch, total):
    monkeypatch.setattr(event_loss, "MAX_MICROGRAPHS", 10)
    rows = jnp.where(jnp.arange(40) < total, jnp.arange(40), 99).astype(jnp.int32)
    found = Micrographs(rows[:, None], rows[:, None], rows)
    seen = np.zeros(40)
    for seed in range(200):
        drawn = event_loss._drawn(found, jnp.int32(total), jax.random.key(seed))
        number, row = int(drawn.number), np.asarray(drawn.micrographs.size)
        assert number == min(total, 10)
        assert drawn.share == pytest.approx(number / max(min(total, 40), 1))
        assert len(np.unique(row[:number])) == number
        assert (row[number:] == 99).all()
        seen[row[:number]] += 1
    assert seen.sum() == 200 * min(total, 10)
    if total > 10:
        # Each is as likely as any other: within five standard deviations.
        mean = 200 * 10 / min(total, 40)
        assert np.abs(seen[:total] - mean).max() < 5 * np.sqrt(mean)


def in_sector(graph, is_core):
    return graph._replace(nodes=graph.nodes._replace(is_core=np.asarray(is_core)))


def test_edges_into_the_halo_have_no_loss(small_tune):
    graph = toy_graph(0, num_particles=4)
    is_core = graph.nodes.mask & (graph.nodes.position[:, 0] > 0)
    within = is_core[graph.senders] & is_core[graph.receivers] & graph.edges.mask
    assert 20 < within.sum() < graph.edges.mask.sum() - 20
    sector = jax.device_put(in_sector(graph, is_core))
    rng = np.random.default_rng(0)
    logit = rng.normal(size=len(within)).astype(np.float32)
    losses_of = jax.jit(event_loss.edge_losses, static_argnums=0)

    def losses(is_changed):
        changed = jnp.asarray(np.where(is_changed, -logit, logit))
        return losses_of(small_tune.loss, sector, changed, jax.random.key(0))

    before = losses(np.zeros_like(within))
    for name in ("edge_bce", "edge_contrastive", "auc"):
        assert getattr(losses(~within), name) == getattr(before, name)
        assert getattr(losses(within), name) != getattr(before, name)


def test_tracks_that_begin_in_the_halo_have_no_loss(small_tune, voxdyn):
    event = helix_event(0, num_particles=4, event_id=1)
    edges = predict_edges(voxdyn, event.position)
    graph = event_graph(event, *edges, node2node="hyper", bucket=SMALLEST)
    state = jax.jit(init_state, static_argnums=0)(small_tune, jax.random.key(0))
    method = loss_method(small_tune, jnp.float32, FULL_PHASE)

    def losses(is_core):
        sector = jax.device_put(in_sector(graph, is_core))
        found = compiled(method, state.params, state.batch_stats, sector, jax.random.key(7))
        return found[1][1]

    compiled = jax.jit(event_loss.event_loss, static_argnums=0)
    of_core, of_halo = losses(graph.nodes.mask), losses(np.zeros_like(graph.nodes.mask))
    assert of_core.num_micrographs == of_halo.num_micrographs > 0
    assert of_core.cluster_bce > 0
    assert of_halo.cluster_bce == 0
