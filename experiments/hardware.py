"""The threads and processes of a script."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.thread import _threads_queues
from multiprocessing import connection


def await_threads() -> None:
    """Waits for other threads, such as Orbax's clean-up, which would fail once Python ends.

    Not for those of a pool: they wait for work as long as it lives, and Python ends them itself.
    """
    others = set(threading.enumerate()) - {threading.main_thread(), *_threads_queues}
    for thread in others:
        if not thread.daemon:
            # The threads of Orbax raise their own error here, which has been told.
            threading.Thread.join(thread)


@contextlib.contextmanager
def map_in_processes(
    function: Callable, items: Sequence, num_processes: int | None = None
) -> Iterator[Iterator]:
    """Results of `function` in order, from one process per core unless `num_processes` says else.

    On an error, items that have not begun are dropped.
    """
    # Spawned, not forked: a fork would copy threads of the libraries.
    with ProcessPoolExecutor(
        min(num_processes or os.cpu_count() or 1, len(items)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
    ) as pool:
        try:
            yield pool.map(function, items)
        finally:
            pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Has a spawned process end with its parent, even one that was killed.

    Else it would wait for work for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _begin() -> None:
    # Ctrl-C is for the parent alone; the others finish the item at hand, whole.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
