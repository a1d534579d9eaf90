"""What every script shares: how it starts, how it fails, and the flags that all have."""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import absl.logging
from absl import app, flags
from hardware import choose_device

from hypertrack_jax.events.store import event_ids, parse_int_list, require_events
from hypertrack_jax.memory import keep_freed_memory

WORKDIR = flags.DEFINE_string("workdir", ".", "Directory of data/, models/, runs/ and figs/.")
DEVICE = flags.DEFINE_enum(
    "device", "auto", ["auto", "cpu", "gpu", "tpu"], "Where to compute; auto takes the fastest."
)


def run(main: Callable[[], None], before_devices: Callable[[], None] | None = None) -> None:
    """Runs `main` under absl; a user's mistake becomes one sentence and exit status 2.

    `before_devices` is what has to be done before jax looks for devices.

    The library raises `ValueError`, `ImportError` and `OSError` with a full sentence for what the
    user can mend; everything else is a defect and keeps its traceback. Ctrl-C exits with 130.
    """

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: unexpected argument {argv[1]!r}; flags start with --.")
        if not flags.FLAGS["verbosity"].present:
            # Orbax and jax tell much that is of no use to those who only run a script.
            absl.logging.set_verbosity(absl.logging.WARNING)
        logging.getLogger("hypertrack_jax").setLevel(logging.INFO)
        keep_freed_memory()
        try:
            if before_devices is not None:
                before_devices()
            choose_device(DEVICE.value)
            main()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except (ValueError, ImportError, OSError) as error:
            if "HYPERTRACK_TRACEBACK" in os.environ:
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded)


def workdir(*parts: str) -> Path:
    """Absolute path below `--workdir`."""
    return Path(WORKDIR.value).expanduser().absolute().joinpath(*parts)


def event_range(start: flags.FlagHolder, end: flags.FlagHolder) -> list[int]:
    """Events of the list flags `start` and `end`, all of which are in `workdir("data")`."""
    ids = event_ids(parse_int_list(start.name, start.value), parse_int_list(end.name, end.value))
    require_events(workdir("data"), ids)
    return ids


def floats(flag: flags.FlagHolder) -> list[float]:
    """The numbers of a list flag."""
    try:
        return [float(value) for value in flag.value]
    except ValueError as error:
        raise ValueError(
            f"--{flag.name}={','.join(flag.value)}: expected numbers, like --{flag.name}=0.01,1."
        ) from error


def changed(part: Any, *holders: flags.FlagHolder) -> Any:
    """A dataclass with the fields replaced whose flags were given."""
    return replace(part, **{flag.name: flag.value for flag in holders if flag.value is not None})


def noise_ratio(flag: flags.FlagHolder) -> float | None:
    """A noise ratio flag: a number, or `none` for no noise."""
    if flag.value == "none":
        return None
    try:
        return float(flag.value)
    except ValueError as error:
        raise ValueError(
            f"--{flag.name}={flag.value}: expected -1 (as in the event), a number below 1, or none."
        ) from error
