"""A detector of other radii and other numbers of modules: the road knows no geometry."""

from dataclasses import replace

import jax
import numpy as np
import pytest
import toy

from hypertrack_jax.events.store import save_event
from hypertrack_jax.events.topology import truth_edges
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.training.batches import EventSource
from hypertrack_jax.training.loop import train
from hypertrack_jax.training.run import TrainingRun
from hypertrack_jax.voxdyn.fit import fit_voxdyn

pytestmark = pytest.mark.usefixtures("optax_promotion")
SCALE = 0.4


@pytest.fixture
def small_detector(monkeypatch):
    """All radii and lengths are 0.4 of TrackML's, and volumes have other numbers."""
    barrels = [
        (30 + volume, layer + 1, SCALE * radius, SCALE * length)
        for volume, layer, radius, length in toy.BARRELS
    ]
    discs = [
        (30 + volume, layer + 1, *(SCALE * length for length in lengths))
        for volume, layer, *lengths in toy.DISCS
    ]
    monkeypatch.setattr(toy, "BARRELS", tuple(barrels))
    monkeypatch.setattr(toy, "DISCS", tuple(discs))
    monkeypatch.setattr(toy, "VERTEX_SIGMA_Z", SCALE * toy.VERTEX_SIGMA_Z)


def test_a_model_of_another_detector_is_fitted_trained_and_run(
    small_detector, small_tune, tmp_path
):
    network = replace(small_tune.network, length_scale=1000.0 * SCALE)
    small_tune = replace(small_tune, network=network)
    events = [toy.helix_event(1, num_particles=20, event_id=number) for number in range(5)]
    assert np.abs(events[0].position).max() < 1200
    voxdyn = fit_voxdyn(events, small_tune.voxdyn.ncell, "hyper", num_iterations=3)
    held_out = toy.helix_event(2, num_particles=20)
    senders, receivers = truth_edges(held_out, "hyper")
    edges = predict_edges(voxdyn, held_out.position)
    found = set(zip(edges.senders.tolist(), edges.receivers.tolist(), strict=True))
    true = set(zip(senders.tolist(), receivers.tolist(), strict=True))
    assert len(found & true) > 0.8 * len(true)

    trained = []
    for name, factor in (("mine", 1), ("renumbered", 0)):
        for number in range(1, 5):
            event = toy.helix_event(0, num_particles=8, event_id=number)
            save_event(tmp_path / name, event._replace(module=factor * event.module))
        source = EventSource(tmp_path / name, range(1, 5), 0.5, 1.0, -1, seed=3)
        models = tmp_path / "models" / name
        run = TrainingRun(source, models, tmp_path / "runs" / name, 3, batch_size=2)
        trained.append(train(run, small_tune, voxdyn))
    leaves = jax.tree.leaves(trained[0].params)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    # Volumes, layers and modules are no input of anything.
    jax.tree.map(np.testing.assert_array_equal, trained[0].params, trained[1].params)

    model = Reconstructor(small_tune, voxdyn, trained[0].params, trained[0].batch_stats)
    tracks = model(held_out.position)
    assert tracks.hit_label.shape == (len(held_out.position),)
