"""The loss of the experimental flow: what it is of, and that training lowers it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_device import make_train_step
from toy import helix_event

from hypertrack_jax.events.event import NOISE
from hypertrack_jax.events.sectors import whole
from hypertrack_jax.model.parameters import FLOW
from hypertrack_jax.networks.flow import NUM_CONDITIONS, flow_log_density, init_flow
from hypertrack_jax.training.batches import graph_batch
from hypertrack_jax.training.flow_loss import (
    MOMENTUM_SCALE,
    VERTEX_SCALE,
    flow_loss,
    hit_conditions,
)
from hypertrack_jax.training.step import init_state
from hypertrack_jax.tunes.tune import NetworkTune

SEED = 0


def test_conditions_are_the_parameters_of_a_hits_particle():
    event = helix_event(0, num_particles=3)
    particle, num_hits = event.hit_particle, len(event.position)
    noise = int(np.flatnonzero(particle == NOISE)[0])
    found = hit_conditions(event, num_hits + 4)
    assert found.shape == (num_hits + 4, NUM_CONDITIONS)
    for hit in np.flatnonzero(particle != NOISE)[::7]:
        of = particle[hit]
        vertex, momentum = event.particles.vertex[of], event.particles.momentum[of]
        np.testing.assert_allclose(VERTEX_SCALE * np.sinh(found[hit, :3]), vertex, rtol=1e-4)
        np.testing.assert_allclose(MOMENTUM_SCALE * np.sinh(found[hit, 3:6]), momentum, rtol=1e-4)
        assert found[hit, 6] == event.particles.charge[of]
    np.testing.assert_array_equal(found[[noise, num_hits, -1]], 0)
    assert np.abs(found).max() < 10


def test_the_loss_is_the_mean_over_the_hits_of_particles():
    rng = np.random.default_rng(0)
    tune = NetworkTune(embedding_dim=4, flow_blocks=2, flow_width=8)
    params = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        init_flow(tune, NUM_CONDITIONS, jax.random.key(SEED)),
    )
    z, condition = (jnp.asarray(rng.normal(size=(6, n)), jnp.float32) for n in (4, NUM_CONDITIONS))
    particle = jnp.asarray([0, NOISE, 2, 2, 0, NOISE])
    real = np.flatnonzero(particle >= 0)
    expected = -flow_log_density(params, z[real], condition[real]).mean()
    garbage = z.at[jnp.asarray([1, 5])].set(jnp.nan)
    gradient_of = jax.jit(jax.value_and_grad(flow_loss, argnums=(0, 1)))
    loss, gradient = gradient_of(params, garbage, condition, particle)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert np.all(gradient[1][real] != 0)
    without_particles, _ = gradient_of(params, z, condition, jnp.full(6, NOISE))
    assert without_particles == 0


@pytest.mark.usefixtures("optax_promotion")
def test_training_lowers_the_loss_of_the_flow_where_it_has_a_weight(small_tune, voxdyn):
    network = replace(small_tune.network, num_layers=1, flow_blocks=1, flow_width=16)
    plain = replace(small_tune, network=network)
    weighed = replace(plain, loss=replace(plain.loss, flow=0.1))
    make_state = jax.jit(init_state, static_argnums=0)
    without, state = (make_state(tune, jax.random.key(SEED)) for tune in (plain, weighed))
    before = jax.tree.map(np.array, state.params)
    assert before.keys() - without.params.keys() == {FLOW}
    for name, weights in without.params.items():
        jax.tree.map(np.testing.assert_array_equal, weights, before[name])

    event = helix_event(0, num_particles=4)
    train_step = make_train_step(weighed, 1)
    with pytest.raises(ValueError, match=r"weight 0\.1, .* set their globals"):
        train_step(state, graph_batch([whole(event)], voxdyn, plain).graphs, jax.random.key(SEED))
    graphs = graph_batch([whole(event)], voxdyn, weighed).graphs
    conditions = hit_conditions(event, graphs.nodes.mask.shape[1])
    np.testing.assert_array_equal(graphs.globals, conditions[None])
    flow, losses = [], None
    for _ in range(40):
        state, metrics = train_step(state, graphs, jax.random.key(SEED))
        losses = metrics.losses
        flow.append(float(losses.flow))
    assert flow[-1] < flow[0] - 1
    assert losses is not None
    parts = 0.2 * losses.edge_bce + losses.edge_contrastive + 0.1 * losses.flow
    assert float(losses.loss) == pytest.approx(float(parts), rel=1e-5)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params[FLOW], before[FLOW])
    assert all(jax.tree.leaves(moved))
