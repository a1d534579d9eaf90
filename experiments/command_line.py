"""What every script shares: how it starts, how it fails, and the flags that all have."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import app, flags
from flag_values import MAX_EVENTS, check_flags, whole_numbers
from hardware import await_threads
from quiet import choose_logs

from hypertrack_jax.command.start import DEVICES, choose_device, keep_programs
from hypertrack_jax.errors import UserError
from hypertrack_jax.events.store import event_ids, require_events
from hypertrack_jax.memory import keep_freed_memory

WORKDIR = flags.DEFINE_string("workdir", ".", "Directory of data/, models/, runs/ and figs/.")
DEVICE = flags.DEFINE_enum("device", "auto", DEVICES, "Where to compute; auto takes the fastest.")
CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Directory where compiled programs are kept for the next run; default: one in the user's cache "
    "directory; empty: they are not kept.",
)


def run(main: Callable[[], None], before_devices: Callable[[], None] | None = None) -> None:
    """Runs `main` under absl; a user's mistake becomes one sentence and exit status 2.

    `before_devices` is what has to be done before jax looks for devices.

    The library raises `UserError` and `OSError` for what the user can mend; everything else is a
    defect and keeps its traceback. With HYPERTRACK_TRACEBACK in the environment all errors keep
    theirs. Ctrl-C exits with 130.
    """

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: unexpected argument {argv[1]!r}; flags start with --.")
        choose_logs()
        keep_freed_memory()
        try:
            check_flags()
            if before_devices is not None:
                before_devices()
            choose_device(DEVICE.value)
            keep_programs(CACHE.value)
            # Here and not above: jax has to wait for `before_devices`.
            from hypertrack_jax.device import memory_told

            with memory_told("this run", "fewer or smaller events, fewer cells"):
                main()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except (UserError, OSError) as error:
            if "HYPERTRACK_TRACEBACK" in os.environ:
                raise
            print(f"error: {error}", file=sys.stderr)
            await_threads()
            sys.exit(2)

    app.run(guarded)


def workdir(*parts: str) -> Path:
    """Absolute path below `--workdir`."""
    return Path(WORKDIR.value).absolute().joinpath(*parts)


def event_range(start: flags.FlagHolder, end: flags.FlagHolder) -> list[int]:
    """Events of the list flags `start` and `end`, all of which are in `workdir("data")`."""
    starts, ends = whole_numbers(start), whole_numbers(end)
    number = sum(ends) - sum(starts) + len(starts)
    if number > MAX_EVENTS:
        raise UserError(
            f"--{start.name}={','.join(start.value)} to --{end.name}={','.join(end.value)} are "
            f"{number} events, more than {MAX_EVENTS}; narrow the ranges."
        )
    ids = event_ids(starts, ends)
    require_events(workdir("data"), ids)
    return ids


def floats(flag: flags.FlagHolder) -> list[float]:
    """The numbers of a list flag."""
    return [float(value) for value in flag.value]


def changed(part: Any, *holders: flags.FlagHolder) -> Any:
    """A dataclass with the fields replaced whose flags were given."""
    return replace(part, **{flag.name: flag.value for flag in holders if flag.value is not None})


def noise_ratio(flag: flags.FlagHolder) -> float | None:
    """A noise ratio flag: a number, or `none` for no noise."""
    return None if flag.value == "none" else float(flag.value)
