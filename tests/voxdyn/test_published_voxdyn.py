"""Pickled graph constructors: read as they are meant, and never run."""

import os
import pickle
import subprocess

import numpy as np
import pytest
from dense import to_dense
from published_files import content_of, random_content, write
from scipy import sparse

from hypertrack_jax.errors import UserError
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.voxdyn.published_voxdyn import read_published_voxdyn
from hypertrack_jax.voxdyn.storage import load_voxdyn, save_voxdyn


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_counts_are_1_where_cells_are_connected(tmp_path, protocol):
    content = random_content()
    voxdyn = read_published_voxdyn(write(tmp_path / "v.pkl", content, protocol))
    assert (voxdyn.node2node, voxdyn.num_cells, voxdyn.min_count) == ("hyper", 40, 1)
    np.testing.assert_array_equal(to_dense(voxdyn.rows), content["C"].toarray().astype(int))
    np.testing.assert_array_equal(voxdyn.centroids, content["centroids"])
    np.testing.assert_array_equal(voxdyn.space[1], content["centroids"].max(axis=0))
    assert voxdyn.histogram.tolist() == [0, np.triu(content["C"].toarray()).sum()]
    assert voxdyn.rows.counts.dtype == np.uint16
    assert voxdyn.rows.columns.dtype == voxdyn.rows.row_offsets.dtype == np.int32


def test_names_of_older_releases_are_known(tmp_path):
    content = random_content()
    # Protocol 3 has no frames, whose lengths would have to change, too.
    data = pickle.dumps(content, 3)
    older = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    older = older.replace(b"scipy.sparse._csr", b"scipy.sparse.csr")
    assert older != data
    path = tmp_path / "v.pkl"
    path.write_bytes(older)
    np.testing.assert_array_equal(
        to_dense(read_published_voxdyn(path).rows), content["C"].toarray().astype(int)
    )


def test_the_graph_is_that_of_a_dense_computation(tmp_path):
    content = random_content(num_cells=70, fill=0.1)
    path = tmp_path / "voxdyn.npz"
    save_voxdyn(path, read_published_voxdyn(write(tmp_path / "v.pkl", content)))
    position = np.random.default_rng(1).normal(0, 300, (150, 3)).astype(np.float32)
    edges = predict_edges(load_voxdyn(path), position)
    distance = np.linalg.norm(position[:, None] - content["centroids"].astype(float), axis=2)
    cell = distance.argmin(axis=1)
    expected = np.argwhere(content["C"].toarray()[cell[:, None], cell[None, :]])
    order = np.lexsort([edges.senders, edges.receivers])
    found = np.stack([edges.receivers, edges.senders], axis=1)[order]
    np.testing.assert_array_equal(found, expected)
    assert len(expected) > 500


def test_entries_out_of_order_twice_or_false_are_put_right(tmp_path):
    content = random_content()
    matrix = content["C"]
    expected = matrix.toarray().astype(int)
    row = int(np.flatnonzero(np.diff(matrix.indptr) > 2)[0])
    start, end = matrix.indptr[row : row + 2]
    matrix.indices[start:end] = matrix.indices[start:end][::-1].copy()
    # The last row's entries once more, and one that is there but False.
    last = matrix.indices[matrix.indptr[-2] :]
    missing = np.setdiff1d(np.arange(40), last)[:1]
    matrix.indices = np.concatenate([matrix.indices, last, missing]).astype(np.int32)
    matrix.data = np.concatenate([matrix.data, np.ones(len(last), bool), [False]])
    matrix.indptr[-1] = len(matrix.data)
    voxdyn = read_published_voxdyn(write(tmp_path / "v.pkl", content))
    np.testing.assert_array_equal(to_dense(voxdyn.rows), expected)
    assert (voxdyn.rows.counts == 1).all()
    for u in range(40):
        columns = voxdyn.rows.columns[slice(*voxdyn.rows.row_offsets[u : u + 2])]
        assert (np.diff(columns) > 0).all()


def test_one_direction_becomes_both_with_a_warning(tmp_path):
    dense = np.zeros((6, 6), bool)
    dense[1, 4] = dense[2, 2] = True
    path = write(tmp_path / "v.pkl", content_of(dense, np.random.default_rng(0).random((6, 3))))
    with pytest.warns(UserWarning, match="C is not symmetric"):
        voxdyn = read_published_voxdyn(path)
    np.testing.assert_array_equal(to_dense(voxdyn.rows), (dense | dense.T).astype(int))
    assert voxdyn.histogram.tolist() == [0, 2]


class Runs:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, function, *arguments):
        self.of = function, arguments

    def __reduce__(self):
        return self.of


HOSTILE = {
    "system": lambda path: Runs(os.system, f"touch {path}"),
    "popen": lambda path: Runs(subprocess.Popen, ["touch", str(path)]),
    "eval": lambda path: Runs(eval, f"open({str(path)!r}, 'w')"),
    "getattr": lambda path: Runs(getattr, np.ndarray, "tofile"),
    "load": lambda path: Runs(np.load, str(path)),
    "csc_matrix": lambda path: sparse.csc_matrix(np.eye(3)),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("is_inside", [True, False])
def test_hostile_pickles_are_refused_before_anything_runs(tmp_path, name, protocol, is_inside):
    mark = tmp_path / "was here"
    content = (
        {**random_content(), "nhits": HOSTILE[name](mark)} if is_inside else HOSTILE[name](mark)
    )
    with pytest.raises(UserError, match=r"nothing of the file was run|damaged or not"):
        read_published_voxdyn(write(tmp_path / "v.pkl", content, protocol))
    assert not mark.exists()


def global_of(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


@pytest.mark.parametrize(
    "program",
    [
        # A known name with a path behind it; an instance by INST and OBJ; a persistent id; a copy
        # registry number; a state of a class itself; a call of what is no function.
        global_of("numpy", "ndarray.tofile"),
        global_of("numpy.core.multiarray", "scalar.__globals__"),
        b"(S'true'\nios\nsystem\n",
        pickle.MARK + global_of("numpy", "ndarray") + pickle.OBJ,
        pickle.PERSID + b"x\n",
        pickle.EXT1 + b"\x01",
        global_of("numpy", "dtype") + b"}(\x8c\x05dtypeK\x01ub",
        global_of("numpy", "ndarray") + b")R",
        global_of("scipy.sparse._csr", "csr_matrix") + b")R",
        # Lengths and places that the file does not have.
        pickle.BINBYTES8 + b"\xff" * 7 + b"\x00",
        pickle.BYTEARRAY8 + b"\xff\xff\xff\xff\x05" + bytes(3),
        pickle.FRAME + b"\xff\xff\xff\xff\x05" + bytes(3),
        b"N" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f",
        # An array of Python objects, by their addresses.
        global_of("numpy.core.numeric", "_frombuffer")
        + b"(C\x08AAAAAAAA"
        + global_of("numpy", "dtype")
        + b"(\x8c\x02O8\x89\x88tRK\x01\x85\x8c\x01CtR",
    ],
)
def test_hostile_programs_are_refused(tmp_path, program):
    path = tmp_path / "v.pkl"
    path.write_bytes(pickle.PROTO + b"\x05" + program + pickle.STOP)
    with pytest.raises(UserError, match=r"nothing of the file was run|damaged or not"):
        read_published_voxdyn(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"node2node": "star"}, "unknown node2node"),
        ({"centroids": np.zeros((40, 2), np.float32)}, r"centroids of shape \(40, 2\)"),
        ({"centroids": np.full((40, 3), np.nan, np.float32)}, "not finite"),
        ({"centroids": np.zeros((41, 3), np.float32)}, "rows of C do not fit"),
        ({"C": np.eye(40)}, "in the place of something else"),
        ({"centroids": None}, "NoneType in the place"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, change, reason):
    path = write(tmp_path / "v.pkl", random_content() | change)
    with pytest.raises(UserError, match=rf"damaged or not a graph constructor .*{reason}"):
        read_published_voxdyn(path)


def test_a_matrix_that_points_outside_is_refused(tmp_path):
    content = random_content()
    content["C"].indices[3] = 40
    with pytest.raises(UserError, match="rows of C do not fit"):
        read_published_voxdyn(write(tmp_path / "v.pkl", content))


def test_missing_and_cut_files_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected voxdyn_node2node_NAME"):
        read_published_voxdyn(tmp_path / "none.pkl")
    path = write(tmp_path / "v.pkl", random_content())
    whole = path.read_bytes()
    for share in (0, 0.3, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="damaged or not a graph constructor"):
            read_published_voxdyn(path)


def test_changed_bytes_never_end_in_a_traceback(tmp_path):
    path, rng = tmp_path / "v.pkl", np.random.default_rng(0)
    whole = np.frombuffer(pickle.dumps(random_content(num_cells=8), 4), np.uint8)
    refused = 0
    for _ in range(200):
        changed = whole.copy()
        place = rng.integers(len(whole), size=rng.integers(1, 8))
        changed[place] = rng.integers(256, size=len(place))
        path.write_bytes(changed.tobytes())
        try:
            with np.errstate(all="ignore"):
                read_published_voxdyn(path)
        except UserError:
            refused += 1
        except UserWarning:
            pass
    assert refused > 100
