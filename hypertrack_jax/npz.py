"""Host side: the one way to read and write `.npz`; nothing in a file is ever evaluated."""

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hypertrack_jax.errors import UserError
from hypertrack_jax.files import replace_file
from hypertrack_jax.memory import require_memory

_VERSION = "format_version"
_LARGE = 2**26
"""Bytes; before more than this is read, the free memory is checked."""
_MAX_DEFLATION = 1032
"""Most bytes that one deflated byte can stand for."""
_CHUNK = 2**20
# The header that NumPy writes for arrays of numbers, truth values and text. Any other, such as that
# of pickled objects, is refused.
_HEADER = re.compile(
    rb"\{'descr': '([<>|][biufU][0-9]{1,9})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,18},? ?)*)\), \} *\n"
)
# All that zipfile, zlib and NumPy raise for damaged bytes.
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


class ArrayType(NamedTuple):
    """What a member of an `.npz` file has to be."""

    dtype: type
    """A NumPy scalar type. Numbers of another width are converted; whole numbers must not change,
    floats are rounded."""
    shape: tuple[int | str, ...] | None = None
    """Length of each axis; axes of one name are of one length. None takes any shape."""


class NpzFormat(NamedTuple):
    """What an `.npz` file has to hold."""

    kind: str
    """What such a file is, for messages: "an event file"."""
    remedy: str
    """What to do with a damaged one, for messages: "make it anew"."""
    arrays: Mapping[str, ArrayType]
    """The members by name."""
    others: ArrayType | None = None
    """What all other members have to be; None leaves them unread."""
    version: int | None = None
    """The version that is read and written; None for a kind of file without versions."""
    optional: Mapping[str, ArrayType] = {}
    """Further members, of which a file has all or none."""


def read_npz(
    path: Path, expected: NpzFormat, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` file; nothing in it is ever evaluated or unpickled.

    Names, types, shapes and checksums are checked, and sizes before memory is allocated.

    Args:
      path: the file.
      expected: what it has to hold.
      names: the members to read; None for all that `expected` describes.

    Returns:
      The arrays by name, of the declared types.

    Raises:
      UserError: the file is damaged, of another kind or version, or too large for the memory.
      OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = _members(archive)
                if expected.version is not None:
                    _require_version(path, archive, members, expected)
                arrays = expected.arrays
                if names is not None:
                    arrays = {name: arrays[name] for name in names}
                else:
                    arrays = _all_arrays(members, expected)
                return _read_arrays(path, archive, members, arrays)
        except UserError:
            raise
        except MemoryError as error:
            raise UserError(
                f"{path}: is too large for the memory; use a larger machine."
            ) from error
        except _DAMAGE as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise UserError(
                f"{path}: damaged or not {expected.kind} ({reason}); {expected.remedy}."
            ) from error


def write_npz(
    path: Path, expected: NpzFormat, arrays: Mapping[str, Any], compress: bool = False
) -> Path:
    """Writes arrays that `read_npz` takes back, whole or not at all.

    Args:
      path: the file; directories that are missing are made.
      expected: what the file has to hold; arrays are converted to the declared types.
      arrays: the arrays by name.
      compress: deflate them.

    Returns:
      `path`.

    Raises:
      UserError: an array is not what `expected` says.
      OSError: no space, no permission, or no such place.
    """
    lengths: dict[str, int] = {}
    members: dict[str, Any] = {}
    if expected.version is not None:
        members[_VERSION] = np.int32(expected.version)
    named = {**expected.arrays, **expected.optional}
    for name, value in arrays.items():
        declared, array = named.get(name, expected.others), np.asarray(value)
        if declared is None:
            raise UserError(f"{path}: {expected.kind} has no array {name!r}; leave it out.")
        try:
            _require_type(name, array.dtype, declared)
            _require_shape(name, array.shape, declared, lengths)
            members[name] = _converted(name, array, declared)
        except ValueError as error:
            raise UserError(f"{path}: cannot be written ({error}); correct the array.") from error
    with replace_file(path) as file:
        (np.savez_compressed if compress else np.savez)(file, **members)
    return path


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays of a file by name."""
    infos = archive.infolist()
    for info in infos:
        # A damaged name: without its array others would be taken for the whole.
        if not info.filename.endswith(".npy"):
            raise ValueError(f"the member {info.filename!r} is no array")
    members = {info.filename[: -len(".npy")]: info for info in infos}
    if len(members) < len(infos):
        raise ValueError("a name occurs twice")
    return members


def _all_arrays(
    members: Mapping[str, zipfile.ZipInfo], expected: NpzFormat
) -> Mapping[str, ArrayType]:
    """What the members of this file have to be."""
    arrays = dict(expected.arrays)
    if not members.keys().isdisjoint(expected.optional):
        arrays |= expected.optional
    if expected.others is not None:
        unnamed = sorted(members.keys() - arrays.keys() - {_VERSION})
        arrays |= dict.fromkeys(unnamed, expected.others)
    return arrays


def _require_version(
    path: Path,
    archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    expected: NpzFormat,
) -> None:
    declared = {_VERSION: ArrayType(np.int64, ())}
    version = int(_read_arrays(path, archive, members, declared)[_VERSION])
    if version != expected.version:
        raise UserError(
            f"{path}: format version {version}, but this program reads version "
            f"{expected.version}; {expected.remedy}."
        )


def _read_arrays(
    path: Path,
    archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
    arrays: Mapping[str, ArrayType],
) -> dict[str, np.ndarray]:
    missing = sorted(arrays.keys() - members.keys())
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    infos = {name: members[name] for name in arrays}
    for name, info in infos.items():
        _require_readable(name, info, archive.start_dir)
    total = sum(info.file_size for info in infos.values())
    if total > _LARGE:
        require_memory(total, f"{path}: reading {total} bytes", "a smaller file")
    lengths: dict[str, int] = {}
    return {
        name: _read_array(archive, name, infos[name], declared, lengths)
        for name, declared in arrays.items()
    }


def _require_readable(name: str, info: zipfile.ZipInfo, end: int) -> None:
    """Refuses a member that NumPy would not write, or that claims more bytes than it can hold."""
    if info.compress_size > end:
        raise ValueError(f"{name} claims to take {info.compress_size} bytes of the file")
    is_stored = info.compress_type == zipfile.ZIP_STORED
    if not (is_stored or info.compress_type == zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in an unknown way")
    if info.file_size > info.compress_size * (1 if is_stored else _MAX_DEFLATION):
        raise ValueError(f"{name} claims to hold {info.file_size} bytes")


def _read_array(
    archive: zipfile.ZipFile,
    name: str,
    info: zipfile.ZipInfo,
    declared: ArrayType,
    lengths: dict[str, int],
) -> np.ndarray:
    with archive.open(info) as member:
        dtype, shape, order, header_size = _read_header(name, member)
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes != info.file_size - header_size:
            raise ValueError(f"{name} has another size than its header says")
        _require_type(name, dtype, declared)
        _require_shape(name, shape, declared, lengths)
        content = np.empty(num_bytes, np.uint8)
        for start in range(0, num_bytes, _CHUNK):
            # The checksum is compared when the last byte is read.
            chunk = member.read(min(_CHUNK, num_bytes - start))
            if len(chunk) < min(_CHUNK, num_bytes - start):
                raise EOFError(f"{name} ends early")
            content[start : start + _CHUNK] = np.frombuffer(chunk, np.uint8)
        if not num_bytes:
            member.read(1)
    return _converted(name, content.view(dtype).reshape(shape, order=order), declared)


def _read_header(name: str, member) -> tuple[np.dtype, tuple[int, ...], Any, int]:
    """Type, shape and order of the array that follows, and the bytes up to it."""
    start = member.read(10)
    if start[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError(f"{name} is not an array")
    header = member.read(int.from_bytes(start[8:], "little"))
    found = _HEADER.fullmatch(header)
    if not found:
        raise ValueError(f"{name} is not an array of numbers or text")
    shape = tuple(int(length) for length in found[3].decode().split(",") if length.strip())
    order = "F" if found[2] == b"True" else "C"
    return np.dtype(found[1].decode()), shape, order, len(start) + len(header)


def _require_type(name: str, found: np.dtype, declared: ArrayType) -> None:
    wanted = np.dtype(declared.dtype)
    is_text = "U" in (found.kind, wanted.kind)
    fits = found.kind == wanted.kind if is_text else np.can_cast(found, wanted, "same_kind")
    if not fits or found.itemsize == 0:
        raise ValueError(f"{name} is of type {found}, where {declared.dtype.__name__} is expected")


def _require_shape(
    name: str, shape: tuple[int, ...], declared: ArrayType, lengths: dict[str, int]
) -> None:
    if declared.shape is None:
        return
    fits = len(shape) == len(declared.shape) and all(
        length == (lengths.setdefault(axis, length) if isinstance(axis, str) else axis)
        for length, axis in zip(shape, declared.shape, strict=True)
    )
    if not fits:
        known = [
            lengths.get(axis, axis) if isinstance(axis, str) else axis for axis in declared.shape
        ]
        raise ValueError(f"{name} has the shape {shape}, where {tuple(known)} is expected")


def _converted(name: str, array: np.ndarray, declared: ArrayType) -> np.ndarray:
    """The array in the declared type and in this machine's order of bytes."""
    if array.dtype.kind == "U":
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    converted = array.astype(declared.dtype, copy=False)
    is_changed = converted.dtype.kind in "iu" and converted is not array
    if is_changed and not (converted == array).all():
        raise ValueError(f"{name} has numbers that {declared.dtype.__name__} cannot hold")
    return converted
