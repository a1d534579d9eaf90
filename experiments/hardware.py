"""The hardware that a script uses: the device of jax, its compiled programs, threads, processes."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from hypertrack_jax.errors import UserError


def choose_device(name: str) -> None:
    """Has jax compute on `cpu`, `gpu` or `tpu`, or with `auto` on what it likes best.

    Raises:
      UserError: jax finds no such device.
    """
    if name == "auto":
        return
    # Here and not above: scripts that only handle files, and their many processes, do without jax.
    import jax

    jax.config.update("jax_platforms", {"gpu": "cuda"}.get(name, name))
    try:
        jax.devices()
    # The latter where the extra is installed, but finds no GPU.
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device={name}: jax finds no such device here; install the extra for it (cuda or "
            "tpu), or use --device=cpu."
        ) from error


def keep_programs(directory: str | None) -> None:
    """Has jax keep compiled programs in `directory`; None: in the user's own, "": nowhere.

    Raises:
      OSError: the directory cannot be made. Where the user's own cannot, nothing is kept.
    """
    if "jax" not in sys.modules:
        return  # Scripts that only handle files compile nothing.
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


def await_threads() -> None:
    """Waits for threads, such as one in which Orbax tidies: it would fail once Python ends."""
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()


@contextlib.contextmanager
def map_in_processes(
    function: Callable, items: Sequence, num_processes: int | None = None
) -> Iterator[Iterator]:
    """Results of `function` in order, from one process per core unless `num_processes` says else.

    On an error, what has not begun is not begun.
    """
    # Spawned, not forked: a fork would copy threads of the libraries. Ctrl-C is for this process
    # alone; the others finish the item at hand, whole.
    with ProcessPoolExecutor(
        min(num_processes or os.cpu_count() or 1, len(items)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:
        try:
            yield pool.map(function, items)
        finally:
            pool.shutdown(cancel_futures=True)
