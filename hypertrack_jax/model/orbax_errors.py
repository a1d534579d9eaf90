"""Host side: the failures of orbax, each told once and in a few words."""

import logging
import os
import re
import sys
import warnings
from functools import cache
from typing import Any


def reason_of(error: Exception) -> str:
    """What the system says of an error of orbax, whose own message may have many lines."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else " ".join(str(error).split())


@cache
def tell_once() -> None:
    """Silences what is printed of a failure of orbax beside the error that it raises.

    It holds until Python ends, since some of it is printed later than the error is raised. Threads
    of orbax log the error with their stacks. For every array that was still to be read or written,
    Python says that an event loop is closed, or that a coroutine was never awaited.
    """
    before = sys.unraisablehook

    def is_told(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        # A task of an array, of which asyncio may tell as late as at the end of Python.
        if message.startswith("Task exception was never retrieved"):
            return "_wrap_awaitable" not in message
        is_repeated = record.exc_info or message.startswith("Failed to get metadata")
        return not is_repeated or "orbax" not in record.pathname

    def hook(told: Any) -> None:
        if str(told.exc_value) != "Event loop is closed":
            before(told)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(is_told)
    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
