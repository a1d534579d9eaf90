"""Keeps a process of tests below the memory mappings that Linux gives it."""

from pathlib import Path

import jax

MAPPINGS = Path("/proc/self/maps")
MOST_MAPPINGS = Path("/proc/sys/vm/max_map_count")


def forget_programs_if_many() -> bool:
    """Drops all compiled programs of this process where they hold half of its memory mappings.

    Linux gives a process 65530 mappings. On CPU a program holds some hundred of them. XLA crashes
    where it gets no more, mostly while it compiles or serialises a program. What is needed again is
    compiled anew, or loaded from the compilation cache.

    Returns:
      Whether they were dropped; False where the system has no such limit.
    """
    try:
        most = int(MOST_MAPPINGS.read_text())
        with open(MAPPINGS, "rb") as mappings:
            is_many = 2 * sum(1 for _ in mappings) > most
    except OSError:
        return False
    if is_many:
        jax.clear_caches()
    return is_many
