"""The ladder of capacities, and the rule by which they are enlarged."""

from typing import NamedTuple

import numpy as np
import pytest

from hypertrack_jax.capacities import capacity_for, enlarged, until_enough


class Room(NamedTuple):
    """Two capacities."""

    a: int
    b: int


def test_capacities_are_a_ladder():
    steps = sorted({capacity_for(size) for size in range(1, 5000)})
    assert steps == [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]
    assert all(size <= capacity_for(size) < max(257, 1.5 * size) for size in range(1, 5000))
    assert all(capacity_for(step) == step for step in steps)


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        (Room(4, 8), Room(4, 8)),
        (Room(5, 8), Room(6, 8)),
        (Room(4, 100), Room(4, 128)),
        # The need of b was told by a stage that lacked a.
        (Room(7, 100), Room(8, 8)),
    ],
)
def test_the_first_exceeded_capacity_is_enlarged(needed, expected):
    assert enlarged(Room(4, 8), needed) == expected


def test_a_stage_is_run_until_its_capacities_suffice(caplog):
    caplog.set_level("INFO")
    tried = []

    def stage(room):
        tried.append(room)
        return sum(room), Room(np.int32(5), np.int32(20 if room.a >= 5 else 1000))

    assert until_enough(stage, Room(4, 8)) == 6 + 24
    assert tried == [Room(4, 8), Room(6, 8), Room(6, 24)]
    assert "Room(a=4, b=8) do not suffice; running again in Room(a=6, b=8)" in caplog.text
