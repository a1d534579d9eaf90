"""Host side: files written whole or not at all, and work that one process does at a time."""

import contextlib
import functools
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hypertrack_jax.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks: nothing is removed there.
    fcntl = None


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that replaces `path` if the block ends without an error, else is removed.

    Missing directories are made. A writer that is killed leaves a hidden file beside `path`. The
    next process of the same machine that writes to this directory removes it.

    Raises:
      OSError: no space, no permission, or no such place.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent.absolute())
        file, aside = _open_aside(path)
        try:
            # The second handle holds the lock until the file is in its place.
            with os.fdopen(os.dup(file.fileno()), "rb"):
                # A network file system may report a full disk only on closing.
                with file:
                    yield file
                os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); make room, or choose a "
            "directory that you may write to."
        ) from error


def require_writable(directory: Path) -> None:
    """Makes a directory if it is missing, and raises `OSError` if no file can be made in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(
            f"{directory}: cannot be written ({error.strerror or error}); choose a directory that "
            "you may write to."
        ) from error


@contextlib.contextmanager
def locked(path: Path, work: str) -> Iterator[None]:
    """Lets one process at a time do a piece of work, by locking a file.

    The lock ends with the process, even if that is killed. A file system without locks locks
    nothing.

    Args:
      path: the file. It is removed afterwards, and so are directories that were made for it and
        are empty.
      work: names the work in the message.

    Raises:
      UserError: another process is doing this work.
      OSError: the file cannot be made.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "ab")
        except FileNotFoundError:
            # The process before has just removed the directory.
            continue
        except OSError as error:
            raise OSError(
                f"{path}: cannot be written ({error.strerror}); choose a directory that you may "
                "write to."
            ) from error
        with file:
            if _lock(file) is False:
                raise UserError(
                    f"{path}: another process is at {work}; wait for its end, or stop it."
                )
            # The process before may have removed it before it was locked.
            if os.fstat(file.fileno()).st_nlink:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                    for directory in made:
                        with contextlib.suppress(OSError):
                            directory.rmdir()
                return


def _lock(file: BinaryIO) -> bool | None:
    """Locks an open file until it is closed or the process ends.

    Returns:
      False where another has it; None where the file system has no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _open_aside(path: Path) -> tuple[BinaryIO, Path]:
    """A new file beside `path`, whose lock says that its writer is alive, and its path."""
    while True:
        # The process id is there for people to read; the random part keeps threads apart.
        writer = f"{_host()}.{os.getpid()}.{secrets.token_hex(4)}"
        aside = path.with_name(f".{path.name}.{writer}")
        file = open(aside, "xb")
        # Another process may have removed it as abandoned before it was locked.
        if _lock(file) and os.fstat(file.fileno()).st_nlink == 0:
            file.close()
            continue
        return file, aside


@functools.cache
def _remove_abandoned(directory: Path) -> None:
    """Removes the files that killed writers of this machine left there; once in a process."""
    # Locks may not reach other machines, so each machine removes only its own files.
    name = re.compile(rf"\..+\.{re.escape(_host())}\.\d+\.[0-9a-f]{{8}}")
    with contextlib.suppress(OSError):
        for entry in os.listdir(directory):
            if name.fullmatch(entry):
                with contextlib.suppress(OSError), open(directory / entry, "rb") as file:
                    if _lock(file):
                        os.unlink(directory / entry)


def _host() -> str:
    return re.sub(r"[^\w-]", "-", socket.gethostname())
