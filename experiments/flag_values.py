"""The allowed values of flags, the same in every script; checked before all else."""

import math
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from hypertrack_jax.errors import UserError

LEAST, BELOW_1 = math.nextafter(0, 1), math.nextafter(1, 0)
FRACTION = (LEAST, 1, "a number above 0 and at most 1")
PROBABILITY = (0, 1, "a number from 0 to 1")
COUNT = (LEAST, 2**16 - 1, "a number above 0 and at most 65535")
EVENT = (0, 10**9 - 1, "a number from 0 to 999999999")
RANGES = {
    **dict.fromkeys(("rfactor", "rfactors", "rfactor_start", "rfactor_end"), FRACTION),
    "real_share": FRACTION,
    **dict.fromkeys(("edge_threshold", "auc_threshold"), PROBABILITY),
    **dict.fromkeys(("event", "real_event", "event_start", "event_end"), EVENT),
    **dict.fromkeys(("eval_start", "eval_end", "validation_start", "validation_end"), EVENT),
    **dict.fromkeys(("test_start", "test_end"), EVENT),
    **dict.fromkeys(("num_events", "num_held_out"), (1, 10**6, "a number from 1 to a million")),
    **dict.fromkeys(("min_count", "trade_min_count"), COUNT),
    "learning_rate": (LEAST, 100, "a number above 0 and at most 100"),
    "save_period": (0, 10**6, "minutes, from 0 to a million"),
    "pileup": (LEAST, 10**4, "a number above 0 and at most 10000; TrackML has 200"),
    "num_processes": (1, 1024, "a number from 1 to 1024"),
    "noise_ratio": (-1, BELOW_1, "-1 (as in the event), from 0 to below 1, or none"),
}
"""Lowest and highest number of a flag, or of each in a list, and the words for an error."""
OTHER_NUMBERS = (-(2**63), 2**63 - 1, "a finite number, of at most 63 bits")
TAGS = ("save_tag", "read_tag", "transfer_tag", "tags")
MAY_BE_EMPTY = ("peers", "compilation_cache")
MAX_EVENTS = 10**6  # In the ranges of one flag; more is taken for a mistake.


def check_flags(given: flags.FlagValues = flags.FLAGS) -> None:
    """Checks the flags that were given, and replaces a leading `~` by the home directory.

    Raises:
      UserError: naming the flag, its value and what is allowed.
    """
    for name in given:
        flag = given[name]
        if flag.present and flag.value is not None:
            values = flag.value if isinstance(flag.value, list) else [flag.value]
            if name not in MAY_BE_EMPTY and ("" in values or not values):
                raise UserError(f"--{name}={','.join(values)}: a value is missing.")
            _check_numbers(name, values)
            if name in TAGS:
                _check_tags(name, values)
            if isinstance(flag.value, str) and flag.value.startswith("~"):
                flag.value = _from_home(name, flag.value)


def whole_numbers(flag: flags.FlagHolder) -> list[int]:
    """The whole numbers of a list flag."""
    try:
        return [int(value) for value in flag.value]
    except ValueError as error:
        raise UserError(
            f"--{flag.name}={','.join(flag.value)}: expected whole numbers, like "
            f"--{flag.name}=1000,7700."
        ) from error


def _check_numbers(name: str, values: list) -> None:
    lowest, highest, allowed = RANGES.get(name, OTHER_NUMBERS)
    for number, value in _numbers(name, values):
        if not lowest <= number <= highest:
            raise UserError(f"--{name}={value}: expected {allowed}.")


def _numbers(name: str, values: list) -> Iterator[tuple[float, object]]:
    """Each number with its value as given. Text is read as a number only for flags in `RANGES`."""
    for value in values:
        if isinstance(value, (int, float)):
            yield value, value
        elif name in RANGES and value != "none":
            try:
                yield (int(value) if value.lstrip("-").isdecimal() else float(value)), value
            except ValueError as error:
                allowed = RANGES[name][-1]
                raise UserError(f"--{name}={value}: expected {allowed}.") from error


def _check_tags(name: str, values: list[str]) -> None:
    for value in values:
        if value.startswith(".") or any(mark in value for mark in "/\\\n"):
            raise UserError(
                f"--{name}={value!r}: expected a name like pu2, without slashes and not beginning "
                "with a dot; --workdir says where models/ is."
            )


def _from_home(name: str, value: str) -> str:
    try:
        return str(Path(value).expanduser())
    except RuntimeError as error:
        raise UserError(f"--{name}={value}: there is no such home directory.") from error
