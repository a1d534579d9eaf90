"""What makes an event valid."""

import numpy as np
import pytest
from handmade import random_event

from hypertrack_jax.events.event import no_particles, validate_event


def test_valid_events_pass():
    event = random_event(0, [3, 1, 0], num_noise=2)
    assert validate_event(event, "here") is event
    without_truth = event._replace(
        hit_particle=np.full(6, -1, np.int32), particles=no_particles(), has_truth=False
    )
    assert validate_event(without_truth, "here") is without_truth


def _with(name, index, value):
    def change(event):
        array = getattr(event, name).copy()
        array[index] = value
        return event._replace(**{name: array})

    return change


def _without_hits(event):
    fields = ("position", "hit_id", "hit_particle", "hit_weight", "module")
    return event._replace(**{name: getattr(event, name)[:0] for name in fields})


def _repeat_hit_id(event):
    return _with("hit_id", 2, event.hit_id[4])(event)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_hits, "no hits"),
        (_repeat_hit_id, "hit_id .* occurs more than once"),
        (_with("position", (2, 1), np.nan), "not finite"),
        (_with("position", (2, 1), -np.inf), "not finite"),
        (_with("hit_particle", 2, 2), "outside the 2 of the event"),
        (_with("hit_particle", 2, -2), "outside the 2 of the event"),
        *(
            (
                lambda e, name=name: e._replace(**{name: getattr(e, name)[1:]}),
                f"{name} has 5 entries",
            )
            for name in ("hit_id", "hit_particle", "hit_weight", "module")
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_file(change, message):
    with pytest.raises(ValueError, match=f"^some.npz: .*{message}"):
        validate_event(change(random_event(0, [3, 1], num_noise=2)), "some.npz")
