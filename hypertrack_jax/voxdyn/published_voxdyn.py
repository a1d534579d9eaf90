"""Host side: graph constructors of the published program, read from their pickles without a risk.

A pickle is a program: it names Python objects and calls them. This reader knows only what these
files need, NumPy arrays, dtypes and scipy's csr_matrix, and even for those it calls its own
stand-ins. All else is refused before anything runs.

The file is `voxdyn_node2node_NAME_ncell_V.pkl` (https://github.com/mieskolainen/hypertrack), a
dict of `ncell`, `centroids`, `C`, `node2node` and more, where C tells which cells are connected and
not how often.
"""

import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from scipy import sparse

from hypertrack_jax.errors import UserError, warn_user
from hypertrack_jax.memory import require_memory
from hypertrack_jax.tunes.tune import VoxdynTune, choices
from hypertrack_jax.voxdyn.connectivity import MAX_CELLS, MAX_ENTRIES, Rows
from hypertrack_jax.voxdyn.model import VoxelDynamics
from hypertrack_jax.voxdyn.voronoi_index import build_index

_MEMORY_PER_BYTE = 4
"""Memory that an import takes for each byte of the file, at most: C as it is read, counts, and C
once more where its entries have to be sorted."""
_NUMBERS = re.compile(r"[<>|=]?[biuf][1248]")
# All that the reader, NumPy and scipy raise for damaged bytes.
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    EOFError,
    RecursionError,
    pickle.UnpicklingError,
    struct.error,
)
_OPCODES = (
    *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE),
    *(pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2),
    *(pickle.LONG1, pickle.BINFLOAT, pickle.EMPTY_TUPLE, pickle.TUPLE),
    *(pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_DICT, pickle.SETITEM),
    *(pickle.SETITEMS, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
    *(pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.SHORT_BINBYTES, pickle.BINBYTES),
    *(pickle.BINBYTES8, pickle.MEMOIZE, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET),
    *(pickle.LONG_BINGET, pickle.GLOBAL, pickle.STACK_GLOBAL),
    *(pickle.REDUCE, pickle.NEWOBJ),
)
"""What a pickle of such a dict consists of, besides those that `_Reader` does itself."""


def read_published_voxdyn(path: Path) -> VoxelDynamics:
    """Reads a graph constructor of the published program; connected cells have a count of 1.

    The extent of the training hits is not in the file. That of the centroids takes its place. The
    number of events is not there either, and is 0.

    Args:
      path: the pickle.

    Returns:
      The estimator, whose C is in host memory.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it names an object that such a file does not need; it is damaged or something
        else; or it is too large for the memory.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected voxdyn_node2node_NAME_ncell_V.pkl of the published "
            "program."
        )
    require_memory(
        _MEMORY_PER_BYTE * path.stat().st_size, f"{path}: reading it", "a file with fewer cells"
    )
    try:
        with open(path, "rb") as file:
            content = _Reader(str(path), file).load()
        node2node, centroids, matrix = content["node2node"], content["centroids"], content["C"]
        centroids = np.array(_checked(centroids, _Array).values, np.float32, order="C")
        _require_sound(node2node, centroids)
        rows = _rows(str(path), _checked(matrix, _Csr).state, len(centroids))
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path}: is too large for the memory; use a larger machine.") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split()).rstrip(".")[:80] or type(error).__name__
        raise UserError(
            f"{path}: damaged or not a graph constructor of the published program ({reason}); get "
            "it anew."
        ) from error
    num_diagonal = int(
        sparse.csr_matrix((rows.counts, rows.columns, rows.row_offsets)).diagonal().sum()
    )
    return VoxelDynamics(
        node2node=node2node,
        space=np.stack([centroids.min(axis=0), centroids.max(axis=0)]),
        num_events=0,
        objective=np.zeros(0, np.float64),
        histogram=np.array([0, (len(rows.columns) + num_diagonal) // 2]),
        min_count=1,
        rows=rows,
        index=build_index(centroids),
    )


class _Dtype:
    """Stands in for numpy.dtype, of numbers and truth values alone."""

    def __init__(self, name: Any, is_aligned: Any = False, is_copied: Any = True):
        if not (isinstance(name, str) and _NUMBERS.fullmatch(name)):
            raise ValueError("an array of other things than numbers")
        self.dtype = np.dtype(name)

    def set_state(self, state: Any) -> None:
        """Takes the order of bytes; the rest of the state describes records."""
        self.dtype = self.dtype.newbyteorder(_checked(state[1], str))


class _Array:
    """Stands in for numpy.ndarray."""

    values = np.zeros(0)

    def set_state(self, state: Any) -> None:
        """Takes shape, type, order of axes and the bytes."""
        _, shape, dtype, is_fortran, data = state
        self.values = _array(data, dtype, shape, "F" if is_fortran else "C").values


class _Csr:
    """Stands in for scipy.sparse.csr_matrix."""

    state: dict[str, Any]

    def set_state(self, state: Any) -> None:
        """Takes the fields."""
        self.state = _checked(state, dict)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


def _array(data: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    """An array over bytes, which are not copied."""
    kind = _checked(dtype, _Dtype).dtype
    array = _Array()
    array.values = np.ndarray(shape, kind, _checked(data, bytes), order=order)
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, ()).values.item()


_NUMPY = {"ndarray": _Array, "dtype": _Dtype}
_MULTIARRAY = {"_reconstruct": _reconstruct, "scalar": _scalar}
_NUMERIC = {"_frombuffer": _array}
_CSR = {"csr_matrix": _Csr}
# Modules were renamed: NumPy 2 has _core for core, and scipy 1.8 began private names with a _.
_KNOWN = {
    "numpy": _NUMPY,
    "numpy.core.multiarray": _MULTIARRAY,
    "numpy._core.multiarray": _MULTIARRAY,
    "numpy.core.numeric": _NUMERIC,
    "numpy._core.numeric": _NUMERIC,
    "scipy.sparse.csr": _CSR,
    "scipy.sparse._csr": _CSR,
}


class _Bounded:
    """A file of which nobody reads more than is there, so that no length in it takes memory."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._left = os.fstat(file.fileno()).st_size
        self.readinto = None

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        if not 0 <= size <= self._left:
            raise EOFError("it ends early")
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        """The rest of a line."""
        line = self._file.readline(2**10)
        self._left -= len(line)
        return line


class _Reader(pickle._Unpickler):  # type: ignore[name-defined]
    """Python's own unpickler, of whose opcodes and names only those are left that are needed.

    It is the one written in Python: the other one allots memory by numbers in the file.
    """

    stack: list[Any]
    append: Any
    read: Any

    def __init__(self, where: str, file: BinaryIO):
        super().__init__(_Bounded(file))
        self._where = where

    def find_class(self, module: Any, name: Any) -> Any:
        """The stand-in for a name, and no other object whatever."""
        known = _KNOWN.get(module, {}) if isinstance(module, str) else {}
        if name in known:
            return known[name]
        told = "".join(letter if letter.isprintable() else "?" for letter in f"{module}.{name}")
        raise UserError(
            f"{self._where}: names {told[:60]}, which no graph constructor needs; nothing of the "
            "file was run: get it from its authors."
        )

    def _build(self) -> None:
        state, place = self.stack.pop(), self.stack[-1]
        if not isinstance(place, (_Dtype, _Array, _Csr)):
            raise ValueError("changes an object other than an array")
        place.set_state(state)

    def _bytes(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))

    dispatch: ClassVar[dict[int, Any]] = {
        **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPCODES},
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _bytes,
    }


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__.strip('_')} in the place of something else")
    return value


def _require_sound(node2node: Any, centroids: np.ndarray) -> None:
    if node2node not in choices(VoxdynTune, "node2node"):
        raise ValueError("an unknown node2node")
    if centroids.ndim != 2 or centroids.shape[1] != 3 or not 1 <= len(centroids) <= MAX_CELLS:
        raise ValueError(f"centroids of shape {centroids.shape}")
    if not np.isfinite(centroids).all():
        raise ValueError("centroids that are not finite")


def _rows(where: str, state: dict[str, Any], num_cells: int) -> Rows:
    """C > 0 as counts of 1, both halves."""
    offsets, columns, values = (
        _checked(state[name], _Array).values for name in ("indptr", "indices", "data")
    )
    # Walked without further checks: rows that do not fit together would lead astray.
    is_sound = (
        offsets.shape == (num_cells + 1,)
        and columns.shape == values.shape == (int(offsets[-1]),)
        and len(columns) <= MAX_ENTRIES
        and offsets.dtype.kind == columns.dtype.kind == "i"
        and offsets[0] == 0
        and bool((np.diff(offsets) >= 0).all())
        and (len(columns) == 0 or (columns.min() >= 0 and columns.max() < num_cells))
    )
    if not is_sound:
        raise ValueError("the rows of C do not fit together")
    counts = (values > 0).astype(np.uint16)
    indices = (counts, columns.astype(np.int32, copy=False), offsets.astype(np.int32, copy=False))
    matrix: Any = sparse.csr_matrix(indices, (num_cells, num_cells))
    if not (matrix.has_canonical_format and counts.all()):
        matrix = matrix.copy()
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        np.minimum(matrix.data, 1, out=matrix.data)
    if not _is_symmetric(matrix):
        warn_user(f"{where}: C is not symmetric; cells connected in one direction are in both.")
        matrix = matrix.maximum(matrix.T.tocsr())
        matrix.sort_indices()
    return Rows(matrix.indptr, matrix.indices, matrix.data)


def _is_symmetric(matrix: Any) -> bool:
    """Whether C and its transpose take a vector of random numbers to the same one.

    R. Freivalds' test. It needs no transposed copy. Sums wrap; odd numbers have no divisor of zero
    among them, so that a single entry too many is always seen, and several with a probability of
    99.99 %.
    """
    odd = (2 * np.random.default_rng(0).integers(2**15, size=matrix.shape[1]) + 1).astype(np.uint16)
    return bool(np.array_equal(matrix @ odd, matrix.T @ odd))
