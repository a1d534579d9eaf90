"""A loaded model is the saved one, from a checkpoint, a file or by its name."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_model import TUNE

from hypertrack_jax.evaluation.compiled_time import watched_compilation
from hypertrack_jax.model import weights as weights_file
from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.weights import Weights, save_weights
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.tune import ClusterTune
from hypertrack_jax.voxdyn.compact import compact_voxdyn, unpacked_voxdyn
from hypertrack_jax.voxdyn.storage import load_voxdyn, save_voxdyn, voxdyn_path


def assert_same(found, expected):
    """Fails unless both models have the same tune, and hand the same arrays to the stages."""
    assert found.tune == expected.tune
    found, expected = (
        one.shared()._replace(key=jax.random.key_data(one.shared().key))
        for one in (found, expected)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_loaded_model_is_the_saved_one(model, state, voxdyn, tmp_path):
    with Checkpoints(tmp_path / "tag", is_writer=True) as checkpoints:
        checkpoints.save(7, state, TUNE, auc=0.5)
    path = voxdyn_path(tmp_path, "hyper", TUNE.voxdyn.ncell)
    with pytest.raises(FileNotFoundError, match="voxdyn_hyper_64"):
        Reconstructor.load("tag", tmp_path)
    save_voxdyn(path, voxdyn)
    loaded = Reconstructor.load("tag", tmp_path)
    assert_same(loaded, model)
    assert Reconstructor.load(tmp_path / "tag", step=7).tune == TUNE
    with pytest.raises(FileNotFoundError, match="no step 8 here"):
        Reconstructor.load("tag", tmp_path, 8)
    with pytest.raises(
        FileNotFoundError,
        match=r"other: no such model; .* package: cells, positions, pu2\.",
    ):
        Reconstructor.load("other", tmp_path)
    assert not (tmp_path / "other").exists()


def test_to_load_a_model_compiles_nothing(voxdyn, tmp_path):
    fitted = save_voxdyn(tmp_path / "fitted.npz", voxdyn)
    jax.clear_caches()
    with watched_compilation() as compiled:
        Reconstructor.load("cells")
        load_voxdyn(fitted)
    assert not compiled


def test_a_checkpoint_is_not_loaded_with_another_graph_constructor(state, voxdyn, tmp_path, caplog):
    save_voxdyn(voxdyn_path(tmp_path, "hyper", TUNE.voxdyn.ncell), voxdyn)
    for tag, num_pairs in (("same", count_pairs(voxdyn)), ("other", 7), ("former", None)):
        with Checkpoints(tmp_path / tag, is_writer=True) as checkpoints:
            checkpoints.save(1, state, TUNE, auc=0.5, num_pairs=num_pairs)
    Reconstructor.load("same", tmp_path)
    with pytest.raises(ValueError, match=r"voxdyn_hyper_64\.npz: .* with one that counted 7; fit"):
        Reconstructor.load("other", tmp_path)
    assert not caplog.text
    Reconstructor.load("former", tmp_path)
    assert "make sure that it was trained with the one at hand" in caplog.text


def test_a_transformer_that_was_not_trained_is_not_used(state, voxdyn, tmp_path, caplog):
    tune = replace(TUNE, cluster=ClusterTune())
    save_voxdyn(voxdyn_path(tmp_path, "hyper", TUNE.voxdyn.ncell), voxdyn)
    for phase, expected in ((1, "cut"), (2, "transformer")):
        tag = f"phase{phase}"
        with Checkpoints(tmp_path / tag, is_writer=True) as checkpoints:
            checkpoints.save(1, state._replace(phase=jnp.int32(phase)), tune, auc=0.5)
        assert Reconstructor.load(tag, tmp_path).tune.cluster.cluster == expected
        assert ("has not been trained" in caplog.text) == (phase == 1)
        caplog.clear()


def test_a_model_that_comes_with_the_package_is_found_by_name(model, tmp_path, monkeypatch):
    """Unless the user has one of that name; with the Voxel-Dynamics that it was trained with."""
    weights = Weights(TUNE, model.params, model.batch_stats, count_pairs(model.voxdyn))
    monkeypatch.setattr(weights_file, "SHIPPED", tmp_path / "shipped")
    save_weights(tmp_path / "shipped" / "good.npz", weights)
    save_weights(tmp_path / "shipped" / "other.npz", weights._replace(num_pairs=7))
    save_voxdyn(voxdyn_path(tmp_path, "hyper", TUNE.voxdyn.ncell), model.voxdyn)
    assert_same(Reconstructor.load("good", tmp_path), model)
    copied = shutil.copy(tmp_path / "shipped" / "good.npz", tmp_path / "mine.npz")
    assert_same(Reconstructor.load(copied), model)
    with pytest.raises(ValueError, match="the weights were trained with one that counted 7"):
        Reconstructor.load("other", tmp_path)
    (tmp_path / "good").mkdir()
    with pytest.raises(FileNotFoundError, match="good: no checkpoint here"):
        Reconstructor.load("good", tmp_path)


def test_a_model_with_its_graph_constructor_is_one_file(model, tmp_path):
    """Or it takes one of the user's, which must have counted the same."""
    num_pairs = count_pairs(model.voxdyn)
    compact = compact_voxdyn(model.voxdyn, TUNE.voxdyn.min_count)
    weights = Weights(TUNE, model.params, model.batch_stats, num_pairs, compact)
    alone = save_weights(tmp_path / "alone" / "model.npz", weights)
    # It rounds the counts.
    packed = replace(model, voxdyn=unpacked_voxdyn(compact, "model"))
    assert_same(Reconstructor.load(alone), packed)
    own = save_voxdyn(tmp_path / "own.npz", model.voxdyn._replace(num_events=77))
    assert Reconstructor.load(alone, voxdyn=own).voxdyn.num_events == 77
    save_weights(alone, weights._replace(num_pairs=7))
    for voxdyn, named in ((None, alone), (own, own)):
        with pytest.raises(ValueError, match=f"{named}: .* with one that counted 7"):
            Reconstructor.load(alone, voxdyn=voxdyn)
