"""Both sides: capacities, the sizes that programs are compiled for, and how they are enlarged.

A compiled program has arrays of fixed sizes. All sizes climb one ladder, so that few programs serve
many events. A stage that was given too little says what it would have needed, and is run again.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import jax

_LOG = logging.getLogger(__name__)

Capacities = TypeVar("Capacities")
"""A NamedTuple of integers, in the order in which they are enlarged."""
Result = TypeVar("Result")


def capacity_for(size: int, least: int = 256) -> int:
    """The lowest step of the ladder with room for `size`: 2^k or 1.5 * 2^k, and at least `least`.

    Args:
      size: how much has to fit.
      least: the step to begin with, a power of two of at least 2.
    """
    power = power_above(size, least)
    return power * 3 // 4 if size <= power * 3 // 4 and power > least else power


def power_above(size: int, least: int) -> int:
    """The smallest power of two that is at least `size` and at least `least`, a power of two."""
    return max(least, 1 << (max(size, 1) - 1).bit_length())


def enlarged(capacities: Capacities, needed: Any) -> Capacities:
    """The capacities, the first exceeded one enlarged; the same where all suffice.

    Later ones saw a truncated event, so their needs are not trusted.

    Args:
      capacities: those that the stage ran in.
      needed: the sizes that it would have needed, in the same order.
    """
    fields: Any = capacities
    for name, capacity, number in zip(fields._fields, fields, needed, strict=True):
        if number > capacity:
            return fields._replace(**{name: capacity_for(int(number), least=2)})
    return capacities


def until_enough(
    stage: Callable[[Capacities], tuple[Result, Any]], capacities: Capacities
) -> Result:
    """Runs a stage, in larger capacities each time, until they suffice.

    Args:
      stage: from capacities to a result, and to the size that each would have needed.
      capacities: those to begin with.

    Returns:
      The result of the last run, which is complete.
    """
    while True:
        result, needed = stage(capacities)
        enough = enlarged(capacities, jax.device_get(needed))
        if enough == capacities:
            return result
        _LOG.info("%s do not suffice; running again in %s", capacities, enough)
        capacities = enough
        # Frees its memory for the next run.
        del result
