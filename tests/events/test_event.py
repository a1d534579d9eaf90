"""What makes an event valid."""

import numpy as np
import pytest
from handmade import random_event, with_cells

from hypertrack_jax.events.event import (
    NOISE,
    choose_hits,
    no_particles,
    validate_event,
    with_hits,
)


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
        (_with("hit_weight", 3, np.nan), "the weight nan, which is not finite"),
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


def _with_cell(name, index, value):
    def change(event):
        return event._replace(cells=_with(name, index, value)(event.cells))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_cell("extent", (1, 0), 0), "the cluster of hit .* an extent that does not fit"),
        (_with_cell("extent", (4, 1), 1), "the cluster of hit .* an extent that does not fit"),
        (_with_cell("num_cells", 0, -1), "does not fit its number of cells"),
        (_with_cell("charge", 0, np.nan), "not finite"),
        (_with_cell("slant", 0, np.inf), "not finite"),
        (_with_cell("frame", (3, 1, 1), np.nan), "not finite"),
        (
            lambda event: event._replace(
                cells=event.cells._replace(charge=np.ma.array(event.cells.charge))
            ),
            "charge is a MaskedArray",
        ),
        (
            lambda event: event._replace(cells=event.cells._replace(slant=np.zeros(5, np.float32))),
            "slant has 5 entries for 6 hits",
        ),
    ],
)
def test_clusters_that_no_cells_have_are_refused(change, message):
    event = with_cells(random_event(0, [3, 1], num_noise=2))
    assert validate_event(event, "here") is event
    with pytest.raises(ValueError, match=f"^some.npz: .*{message}"):
        validate_event(change(event), "some.npz")


def test_cells_go_with_their_hits():
    event = with_cells(random_event(1, [5, 4, 3], num_noise=3))
    # The charge names the hit, wherever it is.
    event.cells.charge[:] = event.hit_id
    kept = with_hits(event, event.hit_particle != NOISE)
    assert len(kept.position) == 12
    np.testing.assert_array_equal(kept.cells.charge, kept.hit_id)
    order = np.random.default_rng(0).permutation(15)
    turned = validate_event(choose_hits(event, order), "turned")
    np.testing.assert_array_equal(turned.cells.charge, turned.hit_id)
    np.testing.assert_array_equal(turned.cells.frame, event.cells.frame[order])
    assert with_hits(event._replace(cells=None), np.arange(15) > 3).cells is None
