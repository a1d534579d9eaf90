"""Host side: the files of a directory or zip, plain or gzipped, read where they are."""

import gzip
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hypertrack_jax.errors import UserError

Files = Mapping[str, Callable[[], bytes]]
"""Functions that read the files of a directory or zip, by the names of the files in it."""


@contextmanager
def opened(source: Path) -> Iterator[Files]:
    """The files of a directory or zip, at any depth.

    Raises:
      FileNotFoundError: there is no such directory or file.
      UserError: the file is not a zip, or a file is damaged when it is read.
    """
    if source.is_dir():
        paths = [Path(folder, name) for folder, _, names in os.walk(source) for name in names]
        yield {str(path.relative_to(source)): _reader(path, path.read_bytes) for path in paths}
        return
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such directory or zip of TrackML files.")
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise UserError(
            f"{source}: not a directory, and not a complete zip ({error}); fetch it again."
        ) from error
    with archive:
        yield {
            info.filename: _reader(source / info.filename, lambda info=info: archive.read(info))
            for info in archive.infolist()
        }


def _reader(path: Path, read: Callable[[], bytes]) -> Callable[[], bytes]:
    """A function that reads a file, and unpacks it if it is gzipped."""

    def read_whole() -> bytes:
        try:
            data = read()
            return gzip.decompress(data) if path.name.lower().endswith(".gz") else data
        # All that reading and unpacking raise for damaged bytes; RuntimeError for encrypted ones.
        except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path}: cannot be read to its end ({error}); fetch the file again."
            ) from error

    return read_whole


def read_file(path: Path) -> bytes:
    """The content of a file, unpacked if it is gzipped.

    Raises:
      UserError: the file is missing, cannot be read or is damaged.
    """
    return _reader(path, path.read_bytes)()


def base_name(name: str) -> str:
    """The last part of a name; zips made on Windows may have backslashes in it."""
    return re.split(r"[/\\]", name)[-1]
