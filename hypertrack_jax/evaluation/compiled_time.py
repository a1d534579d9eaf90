"""Host side: wall times without compilation."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax

from hypertrack_jax.compilation import COMPILED

Result = TypeVar("Result")


@contextlib.contextmanager
def watched_compilation() -> Iterator[list[float]]:
    """Yields a list that gets the seconds of each compilation in the block."""
    compiled: list[float] = []

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def compiled_seconds(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of some work and its wall time in s; done again if it compiled a program."""
    with watched_compilation() as compiled:
        found = _timed(work)
    return _timed(work) if compiled else found


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
