"""Files of the estimator: whole, checked, and small."""

import zipfile

import numpy as np
import pytest
from dense import to_dense
from toy import helix_event

from hypertrack_jax import memory
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.voxdyn import storage
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.model import VoxelDynamics, count_threshold


@pytest.fixture(scope="module")
def vd():
    events = [helix_event(seed=7, num_particles=25, event_id=event_id) for event_id in (1, 2, 3)]
    return fit_voxdyn(events, 64, "hyper", num_iterations=2)


def assert_same(first, second):
    for name in VoxelDynamics._fields:
        one, other = getattr(first, name), getattr(second, name)
        parts = [(one, other)] if not isinstance(one, tuple) else zip(one, other, strict=True)
        for a, b in parts:
            np.testing.assert_array_equal(a, b)


def rewrite(path, **changes):
    with np.load(path) as file:
        fields = dict(file)
    np.savez(path, **(fields | changes))


def test_load_gives_back_what_was_saved(vd, tmp_path):
    path = storage.voxdyn_path(tmp_path / "models", "hyper", 64)
    assert path.name == "voxdyn_hyper_64.npz"
    storage.save_voxdyn(path, vd)
    assert_same(storage.load_voxdyn(path, node2node="hyper", ncell=64), vd)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("min_count", [3, 0.2])
def test_small_counts_can_be_left_out_on_loading(vd, tmp_path, min_count):
    path = storage.save_voxdyn(tmp_path / "x.npz", vd)
    pruned = storage.load_voxdyn(path, min_count=min_count)
    threshold = count_threshold(vd.histogram, min_count)
    assert 1 < pruned.min_count == threshold
    dense = to_dense(vd.rows)
    np.testing.assert_array_equal(to_dense(pruned.rows), np.where(dense >= threshold, dense, 0))
    position = helix_event(seed=8, num_particles=40).position
    expected = predict_edges(vd, position, min_count)
    for same in (predict_edges(pruned, position), predict_edges(pruned, position, min_count)):
        for one, other in zip(same, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=f"holds only counts from {threshold} on"):
        storage.save_voxdyn(path, pruned)
    assert_same(storage.load_voxdyn(path), vd)


def test_missing_file(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"x\.npz: no such file; .*--node2node=eom --ncell=8"
    ):
        storage.load_voxdyn(tmp_path / "x.npz", "eom", 8)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"node2node": "eom"}, "fitted with node2node=hyper, but node2node=eom is asked for"),
        ({"ncell": 128}, "fitted with ncell=64, but ncell=128 is asked for"),
    ],
)
def test_file_of_something_else(vd, tmp_path, asked, message):
    path = storage.save_voxdyn(tmp_path / "x.npz", vd)
    with pytest.raises(ValueError, match=f"x.npz: was {message}"):
        storage.load_voxdyn(path, **asked)


def test_other_format_version(vd, tmp_path):
    path = storage.save_voxdyn(tmp_path / "x.npz", vd)
    rewrite(path, format_version=1)
    with pytest.raises(ValueError, match=r"x\.npz: format version 1, but this program reads"):
        storage.load_voxdyn(path)


def test_damaged_files(vd, tmp_path):
    path = storage.save_voxdyn(tmp_path / "x.npz", vd)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        middle = archive.getinfo("columns.npy").header_offset + 300
    for damaged in (
        content[: len(content) // 2],
        b"",
        b"no archive",
        content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"x\.npz: damaged or not a Voxel-Dynamics file"):
            storage.load_voxdyn(path)


def test_file_that_lacks_an_array(vd, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, format_version=2, centroids=vd.centroids)
    with pytest.raises(ValueError, match=r"x\.npz: damaged .*\(lacks histogram, node2node"):
        storage.load_voxdyn(path)


def replaced(array, place, value):
    array = array.copy()
    array[place] = value
    return array


DAMAGED_ROWS = {
    "a column too large": {"columns": lambda columns: replaced(columns, 5, 64)},
    "a negative column": {"columns": lambda columns: replaced(columns, 5, -1)},
    "a column too few": {"columns": lambda columns: columns[:-1]},
    "a count too few": {"counts": lambda counts: counts[:-1]},
    "offsets that fall": {"row_offsets": lambda offsets: replaced(offsets, 3, offsets[5] + 1)},
    "offsets from one on": {"row_offsets": lambda offsets: replaced(offsets, 0, 1)},
    "an offset too many": {"row_offsets": lambda offsets: np.append(offsets, offsets[-1])},
    "an offset too few": {"row_offsets": lambda offsets: np.append(offsets[:-2], offsets[-1])},
}


@pytest.mark.parametrize("min_count", [1, 3])
@pytest.mark.parametrize("damage", DAMAGED_ROWS)
def test_rows_that_do_not_fit_together(vd, tmp_path, damage, min_count):
    """Whole files, sound archives: only their meaning is wrong."""
    path = storage.save_voxdyn(tmp_path / "x.npz", vd)
    ((name, change),) = DAMAGED_ROWS[damage].items()
    rewrite(path, **{name: change(np.asarray(getattr(vd.rows, name)))})
    with pytest.raises(ValueError, match=r"x\.npz: the rows of C do not fit together"):
        storage.load_voxdyn(path, min_count=min_count)


def test_pickled_objects_are_never_loaded(vd, tmp_path):
    path = storage.save_voxdyn(tmp_path / "x.npz", vd)
    rewrite(path, node2node=np.array("hyper", dtype=object))
    with pytest.raises(ValueError, match=r"x\.npz: damaged or not .*node2node is not an array"):
        storage.load_voxdyn(path)


def test_a_file_that_cannot_be_written_whole_leaves_the_former_one(vd, tmp_path, monkeypatch):
    path = storage.save_voxdyn(tmp_path / "x.npz", vd)
    former = path.read_bytes()

    def write_a_part(file, **_):
        file.write(b"a part")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", write_a_part)
    with pytest.raises(OSError, match=r"x\.npz: cannot be written \(no space left\)"):
        storage.save_voxdyn(path, vd)
    assert path.read_bytes() == former
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npz"]


def test_file_larger_than_memory(vd, tmp_path, monkeypatch):
    path = storage.save_voxdyn(tmp_path / "x.npz", vd)
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"x\.npz: C with \d+ entries needs about"):
        storage.load_voxdyn(path)
