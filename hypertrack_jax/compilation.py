"""Host side: keeps compiled programs on disk, so that the next process need not compile them."""

import contextlib
import logging
import os
import threading
import zlib
from pathlib import Path

import jax
from jax._src import compilation_cache

from hypertrack_jax.files import replace_file

_LOG = logging.getLogger(__name__)
SHORTEST = 0.2
"""Seconds; a program that compiles faster is not kept."""
LARGEST_STORE = 2**30
"""Bytes that a directory may hold; beyond that, the programs read longest ago are removed."""
COMPILED = "/jax/core/compile/backend_compile_duration"
"""Event of jax for a program that it compiles, or loads from the compilation cache."""
_CHECKSUM_BYTES = 4
_MAPPINGS = Path("/proc/self/maps")
_MOST_MAPPINGS = Path("/proc/sys/vm/max_map_count")
_has_new_programs = threading.Event()
"""Set by each program that is compiled since `forget_programs_if_many` last looked."""


class ProgramFiles:
    """Compiled programs in a directory, one file each; several processes may share it.

    jax's own store writes files in place, so a reader can meet an incomplete one. If the writer is
    killed or the disk is full, the incomplete file stays, and each later process warns and compiles
    again. Here a file is written whole or not at all, and a damaged one is removed.
    """

    def __init__(self, directory: Path):
        self._path = directory
        directory.mkdir(parents=True, exist_ok=True)
        _forget_oldest(directory)

    def get(self, key: str) -> bytes | None:
        """The program, or None where there is none that is whole."""
        path = self._path / key
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        program = content[_CHECKSUM_BYTES:]
        if content[:_CHECKSUM_BYTES] == _checksum(program):
            return program
        path.unlink(missing_ok=True)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program."""
        with replace_file(self._path / key) as file:
            file.write(_checksum(value) + value)


def use_compilation_cache(directory: str | Path) -> None:
    """Has jax keep what it compiles in a directory, where the next process finds it.

    This holds for all that jax compiles from here on in this process. A program that cannot be read
    or written costs a warning and its compilation, never the run. jax's key of a program includes
    jaxlib's version and the features of the processor, so machines may share a directory.
    """
    # jax offers no public way to replace its store.
    compilation_cache.get_file_cache = lambda path: (ProgramFiles(Path(path)), path)
    jax.config.update("jax_compilation_cache_dir", str(Path(directory).absolute()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)
    # An earlier compilation has already fixed the directory, or that there is none.
    compilation_cache.reset_cache()


def default_cache() -> Path | None:
    """The user's own directory for compiled programs; None for a user without a home."""
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return user / "hypertrack_jax" / "programs" if user.is_absolute() else None


def forget_programs_if_many(share: float = 0.75) -> bool:
    """Drops all compiled programs of this process if most of its memory mappings are in use.

    Linux gives a process 65530 mappings by default. On CPU a program holds hundreds of them, that
    of a training step thousands. XLA crashes where it gets no more, mostly while it compiles or
    serialises a program. So whatever runs programs of many sizes calls this before each of them. It
    checks only if something was compiled since the last call. What is needed again is compiled
    anew, or loaded from the compilation cache.

    Args:
      share: of the mappings that the system allows. What is left has to hold the largest program,
        and a run whose programs need more than this would drop and load them again and again.

    Returns:
      Whether they were dropped; False where the system has no such limit.
    """
    if not _has_new_programs.is_set():
        return False
    _has_new_programs.clear()
    try:
        most = int(_MOST_MAPPINGS.read_text())
        with open(_MAPPINGS, "rb") as mappings:
            number = sum(1 for _ in mappings)
    except OSError:
        return False
    if number <= share * most:
        return False
    _LOG.warning(
        "%d of the %d memory mappings of this process are in use: all compiled programs are "
        "dropped, and loaded again where they are needed; `sysctl -w vm.max_map_count=262144` "
        "makes room for them",
        number,
        most,
    )
    jax.clear_caches()
    return True


def _note_program(event: str, duration_secs: float, **_: str | int) -> None:
    if event == COMPILED:
        _has_new_programs.set()


jax.monitoring.register_event_duration_secs_listener(_note_program)


def _checksum(program: bytes) -> bytes:
    return zlib.crc32(program).to_bytes(_CHECKSUM_BYTES, "big")


def _forget_oldest(directory: Path) -> None:
    """Removes the programs that were read longest ago, until the others fit in `LARGEST_STORE`."""
    files = []
    for path in directory.iterdir():
        # Another process may remove a file meanwhile; what it is writing has a hidden name.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and not path.name.startswith("."):
                files.append((path.stat(), path))
    total = sum(status.st_size for status, _ in files)
    for status, path in sorted(files, key=lambda file: file[0].st_atime):
        if total <= LARGEST_STORE:
            return
        path.unlink(missing_ok=True)
        total -= status.st_size
