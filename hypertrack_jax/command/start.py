"""Host side: how a program starts and ends: logs, device, compiled programs, what went wrong."""

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hypertrack_jax.errors import UserError
from hypertrack_jax.memory import require_address_space

DEVICES = ["auto", "cpu", "gpu", "tpu"]
MAX_SHOWN = 10
"""Most problems that are listed; the others are only counted."""


def quiet_xla() -> None:
    """Keeps XLA from logging two lines of error for each program that it loads from disk.

    No error occurred (openxla/xla issue 44565). Real errors are still raised, and a crash is logged
    at any level. Call this before jax is imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def collect_garbage_rarely() -> None:
    """Has Python look for garbage after 10,000 new objects instead of 700.

    Compilation makes many objects that live on. To look for garbage among them took a tenth of the
    processor time until the first tracks (5.3 s, now 4.7 s, with programs from disk).
    """
    gc.set_threshold(10_000)


def choose_device(name: str) -> None:
    """Has jax compute on `cpu`, `gpu` or `tpu`; `auto` leaves the choice to jax.

    Raises:
      UserError: jax finds no such device, or `ulimit -v` leaves too few addresses to compile.
    """
    if "jax" in sys.modules:
        require_address_space()
    if name == "auto":
        return
    # Imported late: programs that only handle files, and their many processes, do without jax.
    import jax

    jax.config.update("jax_platforms", {"gpu": "cuda"}.get(name, name))
    try:
        jax.devices()
    # AssertionError: the extra is installed, but finds no GPU.
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device={name}: jax finds no such device here; install the extra for it (cuda or "
            "tpu), or use --device=cpu."
        ) from error


def keep_programs(directory: str | None) -> None:
    """Has jax, if it is imported, keep compiled programs on disk.

    Args:
      directory: where they are kept. None: in JAX_COMPILATION_CACHE_DIR, or else in the user's
        cache directory; if that cannot be made, nowhere. An empty string: nowhere.

    Raises:
      OSError: `directory` cannot be made.
    """
    if "jax" not in sys.modules:
        return  # Programs that only handle files compile nothing.
    import jax

    from hypertrack_jax.compilation import default_cache, use_compilation_cache

    place = directory
    if place is None:
        place = os.environ.get("JAX_COMPILATION_CACHE_DIR") or default_cache()
    if not place:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
    except OSError:
        if directory is not None:
            raise
        return
    use_compilation_cache(place)


def end_with(problems: Sequence[str]) -> None:
    """Lists what went wrong, if anything did, and ends the program with status 1."""
    if problems:
        rest = [f"and {len(problems) - MAX_SHOWN} more"] if problems[MAX_SHOWN:] else []
        told = (f"\nerror: {len(problems)} events were left out:", *problems[:MAX_SHOWN], *rest)
        print(*told, sep="\n", file=sys.stderr)
        sys.exit(1)
