"""Files of filters: back unchanged, and refused where they do not belong."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from hypertrack_jax.errors import UserError
from hypertrack_jax.model.filters import filter_of, filter_path, load_filter, save_filter
from hypertrack_jax.model.parameters import by_name
from hypertrack_jax.networks.edge_filter import init_filter
from hypertrack_jax.tunes import dense
from hypertrack_jax.tunes.tune import FilterTune, VoxdynTune

TUNE = FilterTune("triplets", width=8)
GRAPHS = replace(dense.TUNE, voxdyn=VoxdynTune(node2node="eom", ncell=64))


@pytest.fixture
def path(tmp_path):
    weights = init_filter(jax.random.key(1), 8)
    return save_filter(filter_path(tmp_path, GRAPHS), weights, 1000, 3)


def test_a_filter_comes_back(path):
    assert path.name == "filter_eom_64.npz"
    of_shapes = replace(GRAPHS, edge_filter=FilterTune("triplets", cells="shape"))
    assert filter_path(path.parent, of_shapes) == path.with_name("filter_eom_64_shape.npz")
    found = load_filter(path, TUNE, 1005, 3)
    wanted = init_filter(jax.random.key(1), 8)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("tune", "num_pairs", "min_count", "message"),
    [
        (TUNE, 2000, 3, "counted 2000 pairs, but the weights were trained with one that"),
        (TUNE, 1000, 4, "trained on graphs of min_count 3, but the model asks for 4"),
        (
            FilterTune("triplets", width=16),
            1000,
            3,
            "has not the width 16 and the cells 'none' of the tune",
        ),
    ],
)
def test_a_filter_of_other_graphs_or_width_is_refused(path, tune, num_pairs, min_count, message):
    with pytest.raises(UserError, match=message):
        load_filter(path, tune, num_pairs, min_count)


def test_a_filter_of_an_older_file_is_of_the_detector_of_trackml(path):
    weights = init_filter(jax.random.key(0), TUNE.width, length_scale=400.0)
    arrays = {name: np.asarray(leaf) for name, leaf in by_name(weights).items()}
    assert filter_of(arrays, TUNE, "memory").length_scale == 400
    del arrays["length_scale"]
    assert filter_of(arrays, TUNE, "memory").length_scale == 1000


def test_no_filter_and_a_damaged_one_are_told(path):
    with pytest.raises(FileNotFoundError, match=r"train one with experiments/train_filter\.py"):
        load_filter(path.with_name("other.npz"), TUNE, 1000, 3)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="train it anew with"):
        load_filter(path, TUNE, 1000, 3)
