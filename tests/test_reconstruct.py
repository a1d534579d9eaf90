"""The product: hits in, tracks out, and how tracks are scored against the truth."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import helix_event
from toy_graph import SMALL_NETWORK

from hypertrack_jax.evaluation.evaluate import evaluate_events
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.events.topology import edge_labels
from hypertrack_jax.reconstruct import Reconstructor, load_reconstructor
from hypertrack_jax.training import weights as training_weights
from hypertrack_jax.training.checkpoint import Checkpoints
from hypertrack_jax.training.step import init_state
from hypertrack_jax.training.weights import Weights, count_pairs, save_weights
from hypertrack_jax.tunes.tune import ClusterTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.model import predict_edges
from hypertrack_jax.voxdyn.storage import save_voxdyn, voxdyn_path

EVENT = helix_event(0, num_particles=6)
TUNE = Tune(
    "small",
    voxdyn=VoxdynTune(ncell=64),
    # Tokens of 11, which one head alone can take.
    network=replace(
        SMALL_NETWORK,
        node_features="cylindrical",
        edge_features="helix",
        num_heads=1,
        num_attention_blocks=1,
    ),
    cluster=ClusterTune(cluster="cut"),
)
SCORES = ("VD TPR", "GNN AUC", "DMS", "efficiency", "purity", "TrackML")


@pytest.fixture(scope="module")
def state():
    return jax.jit(init_state, static_argnums=0)(TUNE, jax.random.key(0))


@pytest.fixture(scope="module")
def voxdyn():
    events = [helix_event(1, num_particles=20, event_id=number) for number in range(3)]
    return fit_voxdyn(lambda: events, TUNE.voxdyn.ncell, "hyper", num_iterations=2)


@pytest.fixture(scope="module")
def model(state, voxdyn):
    return Reconstructor(TUNE, voxdyn, state.params, state.batch_stats)


def with_threshold(model, threshold, min_hits=4):
    cluster = ClusterTune(cluster="cut", edge_threshold=threshold, min_hits=min_hits)
    return model._replace(tune=replace(model.tune, cluster=cluster))


def test_every_hit_has_a_label_and_every_edge_a_probability(model):
    tracks = model(EVENT.position)
    assert tracks.hit_label.shape == (len(EVENT.position),)
    assert tracks.hit_label.dtype == np.int32
    assert tracks.probability.dtype == np.float32
    assert np.all((tracks.probability > 0) & (tracks.probability < 1))
    edges = predict_edges(model.voxdyn, EVENT.position)
    np.testing.assert_array_equal(tracks.senders, edges.senders)
    np.testing.assert_array_equal(tracks.receivers, edges.receivers)
    assert tracks.membership.shape == tracks.hit_label.shape
    assert set(tracks.seconds) == {"VD", "GNN", "CC", "cluster"}
    assert all(seconds > 0 for seconds in tracks.seconds.values())


def test_the_same_hits_give_the_same_tracks(model):
    first, again = model(EVENT.position), model(EVENT.position)
    np.testing.assert_array_equal(first.hit_label, again.hit_label)
    np.testing.assert_array_equal(first.probability, again.probability)


def test_tracks_are_the_components_of_the_edges_above_the_threshold(model):
    probability = model(EVENT.position).probability
    tracks = with_threshold(model, float(np.quantile(probability, 0.6)), 3)(EVENT.position)
    kept = tracks.probability > np.quantile(probability, 0.6)
    label = np.arange(len(EVENT.position))
    for _ in label:
        np.minimum.at(label, tracks.receivers[kept], label[tracks.senders[kept]])
        np.minimum.at(label, tracks.senders[kept], label[tracks.receivers[kept]])
    names, component, size = np.unique(label, return_inverse=True, return_counts=True)
    number = np.cumsum(size >= 3) - 1
    expected = np.where(size >= 3, number, NOISE)[component]
    assert 1 <= expected.max() + 1 < len(names)
    np.testing.assert_array_equal(tracks.hit_label, expected)


def test_no_edge_above_the_threshold_is_no_track(model):
    assert np.all(with_threshold(model, 1.0)(EVENT.position).hit_label == NOISE)


def test_an_event_without_hits_has_no_tracks(model):
    tracks = model(np.zeros((0, 3), np.float32))
    assert tracks.hit_label.shape == tracks.senders.shape == tracks.probability.shape == (0,)


def test_a_single_hit_is_no_track(model):
    assert model(EVENT.position[:1]).hit_label.tolist() == [NOISE]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_position_that_is_not_finite_is_refused(model, bad):
    position = EVENT.position.copy()
    position[5, 1] = bad
    with pytest.raises(ValueError, match="a hit position is not finite; remove such hits"):
        model(position)


def test_a_loaded_model_is_the_saved_one(model, state, voxdyn, tmp_path):
    with Checkpoints(tmp_path / "tag", is_writer=True) as checkpoints:
        checkpoints.save(7, state, TUNE, auc=0.5)
    path = voxdyn_path(tmp_path, "hyper", TUNE.voxdyn.ncell)
    with pytest.raises(FileNotFoundError, match="voxdyn_hyper_64"):
        load_reconstructor(tmp_path, "tag")
    save_voxdyn(path, voxdyn)
    loaded = load_reconstructor(tmp_path, "tag")
    assert loaded.tune == TUNE
    expected, found = model(EVENT.position), loaded(EVENT.position)
    np.testing.assert_array_equal(found.hit_label, expected.hit_label)
    np.testing.assert_array_equal(found.probability, expected.probability)
    assert load_reconstructor(tmp_path, "tag", 7).tune == TUNE
    with pytest.raises(FileNotFoundError, match="no step 8 here"):
        load_reconstructor(tmp_path, "tag", 8)
    with pytest.raises(FileNotFoundError, match=r"other: no checkpoint here"):
        load_reconstructor(tmp_path, "other")
    assert not (tmp_path / "other").exists()


def test_a_transformer_that_was_not_trained_is_not_used(state, voxdyn, tmp_path, caplog):
    tune = replace(TUNE, cluster=ClusterTune())
    save_voxdyn(voxdyn_path(tmp_path, "hyper", TUNE.voxdyn.ncell), voxdyn)
    for phase, expected in ((1, "cut"), (2, "transformer")):
        tag = f"phase{phase}"
        with Checkpoints(tmp_path / tag, is_writer=True) as checkpoints:
            checkpoints.save(1, state._replace(phase=jnp.int32(phase)), tune, auc=0.5)
        assert load_reconstructor(tmp_path, tag).tune.cluster.cluster == expected
        assert ("has not been trained" in caplog.text) == (phase == 1)
        caplog.clear()


def test_a_model_that_comes_with_the_package_is_found_by_name(model, tmp_path, monkeypatch):
    """Unless the user has one of that name; with the Voxel-Dynamics that it was trained with."""
    weights = Weights(TUNE, model.params, model.batch_stats, count_pairs(model.voxdyn))
    monkeypatch.setattr(training_weights, "SHIPPED", tmp_path / "shipped")
    save_weights(tmp_path / "shipped" / "good.npz", weights)
    save_weights(tmp_path / "shipped" / "other.npz", weights._replace(num_pairs=7))
    save_voxdyn(voxdyn_path(tmp_path, "hyper", TUNE.voxdyn.ncell), model.voxdyn)
    found = load_reconstructor(tmp_path, "good")(EVENT.position)
    np.testing.assert_array_equal(found.probability, model(EVENT.position).probability)
    with pytest.raises(ValueError, match="the weights were trained with one that counted 7"):
        load_reconstructor(tmp_path, "other")
    (tmp_path / "good").mkdir()
    with pytest.raises(FileNotFoundError, match="good: no checkpoint here"):
        load_reconstructor(tmp_path, "good")


def test_evaluation_scores_events_in_their_order(model):
    events = [helix_event(0, num_particles=6, event_id=number) for number in (4, 2)]
    evaluated = list(evaluate_events(model, events, TUNE))
    assert [one.event.event_id for one in evaluated] == [4, 2]
    for one in evaluated:
        assert one.row["hits"] == len(one.event.position)
        assert one.row["edges"] == len(one.tracks.senders)
        ends = one.tracks.senders, one.tracks.receivers
        np.testing.assert_array_equal(one.label, edge_labels(one.event, *ends, "hyper"))
        graph_and_edges = [name for name in one.row if name.startswith(("VD T", "VD F", "GNN T"))]
        values = np.array([one.row[name] for name in (*graph_and_edges, "GNN AUC", "DMS")], float)
        assert np.all((values >= 0) & (values <= 1))
        assert one.row["GNN ms"] == pytest.approx(1e3 * one.tracks.seconds["GNN"])


def test_evaluation_knows_perfect_tracks(model):
    def truth(position):
        return model(position)._replace(hit_label=EVENT.hit_particle)

    (one,) = evaluate_events(truth, [EVENT], TUNE)
    for name in ("DMS", "efficiency", "purity", "TrackML", "hit efficiency", "hit purity"):
        assert one.row[name] == pytest.approx(1)


def test_an_event_without_truth_has_no_scores(model):
    unknown = EVENT._replace(
        has_truth=False,
        hit_particle=np.full_like(EVENT.hit_particle, NOISE),
        hit_weight=np.zeros_like(EVENT.hit_weight),
    )
    (one,) = evaluate_events(model, [unknown], TUNE)
    assert [one.row[name] for name in SCORES] == [None] * len(SCORES)
    assert one.row["edges"] == len(one.tracks.senders)
    assert not one.label.any()
    np.testing.assert_array_equal(one.tracks.hit_label, model(EVENT.position).hit_label)


def test_the_compilation_is_not_timed(model):
    calls = []

    def reconstruct(position):
        calls.append(position)
        tracks = model(position)
        return tracks._replace(seconds={"GNN": 100.0 / len(calls)})

    (one,) = evaluate_events(reconstruct, [EVENT], TUNE)
    assert one.row["GNN ms"] == 1e3 * 100.0 / 2
