"""Files of weights: what is read is what was written, and what is damaged is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.model.counts import count_pairs, require_same_counts
from hypertrack_jax.model.weights import (
    Weights,
    load_weights,
    save_weights,
    shipped_names,
    shipped_path,
)
from hypertrack_jax.networks.edge_filter import init_filter
from hypertrack_jax.tunes.tune import FilterTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.compact import compact_voxdyn
from hypertrack_jax.voxdyn.fit import fit_voxdyn

WEIGHTS = Weights(
    Tune("mine", voxdyn=VoxdynTune(ncell=77, min_count=0.25)),
    {
        "edge": {"layers_0": {"kernel": jnp.arange(6.0).reshape(2, 3)}},
        "cluster": {"a": jnp.ones(())},
    },
    {"fusion": {"mean": jnp.array([1.5, -2.0])}},
    1234,
)


def test_weights_are_read_as_written(tmp_path):
    found = load_weights(save_weights(tmp_path / "new" / "w.npz", WEIGHTS))
    assert found.tune == WEIGHTS.tune
    assert found.num_pairs == 1234
    assert jax.tree.structure(found[1:3]) == jax.tree.structure(WEIGHTS[1:3])
    jax.tree.map(np.testing.assert_array_equal, found[1:3], WEIGHTS[1:3])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found.params))


def test_a_graph_constructor_travels_with_the_weights(tmp_path):
    voxdyn = compact_voxdyn(fit_voxdyn([helix_event(1)], 64, "hyper", num_iterations=1))
    path = save_weights(tmp_path / "w.npz", WEIGHTS._replace(voxdyn=voxdyn))
    found = load_weights(path)
    assert jax.tree.structure(found[1:3]) == jax.tree.structure(WEIGHTS[1:3])
    assert found.voxdyn is not None
    jax.tree.map(np.testing.assert_array_equal, found.voxdyn._asdict(), voxdyn._asdict())
    with np.load(path) as file:
        arrays = {name: array for name, array in file.items() if name != "voxdyn/codes"}
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"damaged or not a file of weights \(lacks voxdyn/codes"):
        load_weights(path)


def test_a_filter_travels_with_the_weights(tmp_path):
    edge_filter = init_filter(jax.random.key(2), 8)
    tune = replace(WEIGHTS.tune, edge_filter=FilterTune("triplets", width=8))
    whole = WEIGHTS._replace(tune=tune, edge_filter=edge_filter)
    found = load_weights(save_weights(tmp_path / "w.npz", whole))
    assert jax.tree.structure(found[1:3]) == jax.tree.structure(WEIGHTS[1:3])
    assert jax.tree.structure(found.edge_filter) == jax.tree.structure(edge_filter)
    jax.tree.map(np.testing.assert_array_equal, found.edge_filter, edge_filter)
    wider = whole._replace(tune=replace(tune, edge_filter=FilterTune("triplets", width=9)))
    with pytest.raises(UserError, match="has not the width 9 and the cells"):
        load_weights(save_weights(tmp_path / "w.npz", wider))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_file_cut_short_is_refused(tmp_path, share):
    path = save_weights(tmp_path / "w.npz", WEIGHTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"damaged or not a file of weights .*; get it anew"):
        load_weights(path)


def test_another_version_and_no_file_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of weights"):
        load_weights(tmp_path / "none.npz")
    path = save_weights(tmp_path / "w.npz", WEIGHTS)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "format_version": 9})
    with pytest.raises(ValueError, match="format version 9, but this program reads version 1"):
        load_weights(path)


def test_weights_refuse_an_estimator_with_other_counts(tmp_path):
    events = [helix_event(1, num_particles=20)]
    voxdyn = fit_voxdyn(events, 64, "hyper", num_iterations=3)
    fitting = count_pairs(voxdyn)
    require_same_counts(fitting, fitting, tmp_path)
    upper = np.triu(np.ones((3, 3)))
    assert count_pairs(voxdyn._replace(histogram=np.array([0, 2, 0, 1]))) == 5 < upper.sum()
    for factor in (0.9, 1.1):
        with pytest.raises(ValueError, match="fit it with the events and copies of the training"):
            require_same_counts(int(factor * fitting), fitting, tmp_path)


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_weights_can_be_read(name):
    weights = load_weights(shipped_path(name))
    assert shipped_path(name).stat().st_size < 6e6
    assert set(weights.params) == {"edge", "cluster"}
    assert replace(weights.tune, name="x").name == "x"
    assert weights.num_pairs > 0
