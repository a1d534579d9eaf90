"""Training the filter: it learns, goes on where it stopped, and keeps what was asked."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.sectors import whole
from hypertrack_jax.events.store import save_event
from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.filters import load_filter
from hypertrack_jax.training import filter_training
from hypertrack_jax.training.batches import EventSource
from hypertrack_jax.training.filter_training import (
    FilterRun,
    filter_loss,
    most_neighbors,
    sector_pairs,
    stages_at,
    train_filter,
    true_weights,
    with_thresholds,
)
from hypertrack_jax.tunes.tune import FilterTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn

TUNE = Tune(
    "small",
    VoxdynTune(ncell=64),
    edge_filter=FilterTune("triplets", width=8, efficiency=0.9),
)

pytestmark = pytest.mark.usefixtures("optax_promotion")


@pytest.fixture(scope="module")
def voxdyn():
    events = [helix_event(1, num_particles=20, event_id=number) for number in range(3)]
    return fit_voxdyn(events, 64, "hyper", num_iterations=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    for number in range(4):
        save_event(directory, helix_event(5, num_particles=10, event_id=number))
    return directory


@pytest.fixture
def run(data, tmp_path):
    # Sectors of a size have programs of a size.
    return FilterRun(
        EventSource(data, [0, 1, 2], 1.0, 1.0, -1, 0),
        EventSource(data, [3], 1.0, 1.0, -1, 0),
        4,
        tmp_path / "f.npz",
        tmp_path / "log",
    )


def test_a_stopped_training_goes_on_to_the_same_filter(run, voxdyn, tmp_path, monkeypatch):
    monkeypatch.setattr(filter_training, "SAVE_STEPS", 2)
    through = train_filter(run, TUNE, voxdyn, iter)

    def stops(steps):
        yield from steps[:3]
        raise KeyboardInterrupt

    other = replace(run, path=tmp_path / "g.npz", log_directory=tmp_path / "log_g")
    with pytest.raises(KeyboardInterrupt):
        train_filter(other, TUNE, voxdyn, stops)
    assert not other.path.exists()
    resumed = train_filter(other, TUNE, voxdyn, iter)
    saved = load_filter(other.path, TUNE.edge_filter, count_pairs(voxdyn), 1)
    for one, two, three in zip(*map(jax.tree.leaves, (through, resumed, saved)), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)
    lines = [(run.log_directory / "metrics.jsonl").read_text() for run in (run, other)]
    assert lines[0] == lines[1]
    assert lines[0].count("loss_second") == 4
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["f.npz", "g.npz"]


def test_every_particle_weighs_as_much_as_any_other(voxdyn):
    event = helix_event(5, num_particles=10)
    sector = sector_pairs(*whole(event), voxdyn, TUNE)
    pairs = sector.pairs
    weight = np.asarray(true_weights(pairs, sector), np.float64)
    particle = event.hit_particle
    joined = {}
    ends = np.stack([pairs.one, pairs.other], axis=1)[: int(pairs.number)]
    for place, (one, other) in enumerate(ends.tolist()):
        if particle[one] == particle[other] >= 0:
            joined.setdefault(int(particle[one]), []).append(place)
    total = sum(min(len(places) / 3, 1) for places in joined.values())
    for places in joined.values():
        np.testing.assert_allclose(weight[places], 1 / max(len(places), 3) / total, rtol=1e-4)
    assert weight.sum() == pytest.approx(1, rel=1e-4)


def test_the_loss_falls_and_the_thresholds_keep_what_was_asked(run, voxdyn):
    weights = train_filter(replace(run, num_steps=15), TUNE, voxdyn, iter)
    sector = sector_pairs(*whole(helix_event(5, num_particles=10, event_id=3)), voxdyn, TUNE)
    fresh = filter_training.init_filter(jax.random.key(0), 8)
    before, after = (
        float(filter_loss(one, sector, most_neighbors(sector))[0]) for one in (fresh, weights)
    )
    assert after < 0.9 * before
    chosen = with_thresholds(weights, [sector], 0.9)
    np.testing.assert_allclose(chosen.thresholds, weights.thresholds, atol=1e-5)
    thresholds = list(chosen.thresholds[:2])
    # The same program: a threshold is the logit of a pair, to the last bit.
    stages = stages_at(most_neighbors(sector), chosen, sector, thresholds)
    number = filter_training._particle_pairs(stages[0], sector)
    weights_of = [np.asarray(filter_training._weights(pairs, sector, number)) for pairs in stages]
    total = weights_of[0].sum()
    for weight, pairs, threshold, share in zip(
        weights_of, stages, chosen.thresholds, (0.965, 0.93, 0.9), strict=True
    ):
        kept = weight[np.asarray(pairs.logit) >= threshold].sum() / total
        # One pair weighs at most a third.
        assert share - 1e-3 <= kept <= share + 0.34 / total


def test_false_pairs_weigh_by_their_number_for_each_hit(voxdyn):
    """At logits of 0 a pair costs log 2: all true ones together, and each false one its weight."""
    sector = sector_pairs(*whole(helix_event(5, num_particles=10, event_id=3)), voxdyn, TUNE)
    flat = jax.tree.map(jax.numpy.zeros_like, filter_training.init_filter(jax.random.key(0), 8))
    flat = flat._replace(length_scale=jax.numpy.float32(1000))
    _, told = filter_loss(flat, sector, most_neighbors(sector))
    num_true = int((np.asarray(true_weights(sector.pairs, sector)) > 0).sum())
    num_false = int(sector.pairs.number) - num_true
    num_hits = int((np.asarray(sector.degree) > 0).sum())
    for loss, number in zip(told.losses, (64, 8, 2), strict=True):
        expected = np.log(2) * (1 + num_false / (number * num_hits))
        assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_events_without_true_pairs_choose_no_thresholds(voxdyn):
    event = helix_event(5, num_particles=10)
    event = event._replace(hit_particle=np.full_like(event.hit_particle, -1))
    sector = sector_pairs(*whole(event), voxdyn, TUNE)
    with pytest.raises(UserError, match="no true pairs"):
        with_thresholds(filter_training.init_filter(jax.random.key(0), 8), [sector], 0.9)


def test_the_state_of_another_width_is_refused(run, voxdyn, monkeypatch):
    monkeypatch.setattr(filter_training, "SAVE_STEPS", 1)

    def stops(steps):
        yield from steps[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_filter(run, TUNE, voxdyn, stops)
    wider = replace(TUNE, edge_filter=replace(TUNE.edge_filter, width=9))
    with pytest.raises(UserError, match="another width; remove it to train anew"):
        train_filter(run, wider, voxdyn, iter)
