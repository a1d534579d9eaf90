"""Host side: the C library's allocator, told to keep the memory that a compiled program frees."""

import ctypes

# From malloc.h of the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Has large blocks that were freed used again, and not given back to the system.

    A compiled program takes its temporary memory anew at every call, 0.2 GB for a training step at
    pile-up 2. The GNU C library maps and unmaps such blocks, so that the system has to clear them
    page by page, which on CPU is more than half of the step. From this call on they stay with the
    process, whose memory therefore does not fall again. It has to come before JAX starts its
    threads, which else have places of their own to take memory from.

    Returns:
      False where there is no such allocator, as on macOS; nothing has changed then.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # One heap for all threads, from which all blocks are taken, and which never shrinks.
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    return all(mallopt(parameter, value) for parameter, value in settings)
