"""The hardware that a script uses: the device that jax computes on, and processes on all cores."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor


def choose_device(name: str) -> None:
    """Has jax compute on `cpu`, `gpu` or `tpu`, or with `auto` on what it likes best.

    Raises:
      ValueError: jax finds no such device.
    """
    if name == "auto":
        return
    # Here and not above: scripts that only handle files, and their many processes, do without jax.
    import jax

    jax.config.update("jax_platforms", {"gpu": "cuda"}.get(name, name))
    try:
        jax.devices()
    except RuntimeError as error:
        raise ValueError(
            f"--device={name}: jax finds no such device here; install the extra for it (cuda or "
            "tpu), or use --device=cpu."
        ) from error


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
