"""Host side: refuses work that memory cannot hold, and keeps memory that work has freed."""

import ctypes
import resource
from collections.abc import Callable
from pathlib import Path

from hypertrack_jax.errors import UserError

# Where Linux reports the memory of the machine, and that of a container.
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
STATM = Path("/proc/self/statm")

LEAST_ADDRESS_SPACE = 1_500_000_000
"""Bytes of addresses that a process needs to compile. With less, the threads of XLA abort it."""

# M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3), and what they are set to.
ONE_ARENA = (-8, 1)
LARGEST_KEPT_BLOCK = (-3, 2**30)
LARGEST_KEPT_REST = (-1, 2**31 - 1)


def available_memory() -> int | None:
    """Bytes that this process can still take without swapping; None if unknown."""
    limits = []
    if MEMINFO.is_file():
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            limits.append(int(limit) - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and STATM.is_file():
        pages = int(STATM.read_text().split()[0])
        limits.append(max(0, limit - pages * resource.getpagesize()))
    return min(limits) if limits else None


def require_address_space() -> None:
    """Raises a `UserError` if the limit of addresses, `ulimit -v`, is below what XLA needs."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise UserError(
            f"the address space of this process is limited to {limit / 1e9:.1f} GB, and compiling "
            f"needs {LEAST_ADDRESS_SPACE / 1e9:.1f} GB or more; raise the limit (ulimit -v)."
        )


def require_memory(
    needed: int, what: str, remedy: str, free: Callable[[], int | None] | None = None
) -> None:
    """Raises a `UserError` if fewer than `needed` bytes are free.

    Linux promises more memory than it has, and kills a process that uses it; so this checks first.

    Args:
      needed: bytes.
      what: the work, for the message.
      remedy: what the user can choose instead of more memory.
      free: gives the free bytes, or None if unknown; by default `available_memory`.
    """
    available = (free or available_memory)()
    if available is not None and needed > available:
        raise UserError(
            f"{what} needs about {needed / 1e9:.1f} GB of memory, but {available / 1e9:.1f} GB are "
            f"free; choose {remedy}, or a machine with more memory."
        )


def keep_freed_memory() -> bool:
    """Has this process keep up to 2 GB of what it frees, for the next allocation; on Linux.

    XLA on CPU allocates the arrays inside a program anew in every run. The C library takes large
    arrays from the system and gives them back, so each run pays for every page of 4 kB: a sixth to
    a quarter of the time of a training step. The setting holds for the whole process, so programs
    choose it, not this library. Call it before the first array is made.

    Returns:
      Whether the C library can do it (GNU's can).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # In further arenas, as threads have them, blocks of more than 64 MB find no place.
    return all(
        [mallopt(*setting) for setting in (ONE_ARENA, LARGEST_KEPT_BLOCK, LARGEST_KEPT_REST)]
    )


def give_back_freed_memory() -> None:
    """Gives back to the system what this process has freed and kept, where the C library can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        pass
