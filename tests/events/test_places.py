"""Events of every format are found and read where they lie."""

import zipfile

import numpy as np
import pytest
from test_acts_csv import write as write_acts
from toy import helix_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.events import places
from hypertrack_jax.events.acts_csv import read_acts_event
from hypertrack_jax.events.places import find_events, read_place, reader_of
from hypertrack_jax.events.store import save_event
from hypertrack_jax.events.trackml import write_event_csv


def test_csv_files_of_acts_are_told_from_those_of_trackml(tmp_path):
    acts, trackml = tmp_path / "acts", tmp_path / "trackml"
    acts.mkdir()
    write_acts(acts)
    write_event_csv(trackml, helix_event(1, 3, event_id=8))
    with zipfile.ZipFile(tmp_path / "acts.zip", "w") as archive:
        for path in acts.iterdir():
            archive.write(path, f"csv/{path.name}")
    expected = read_acts_event(acts, 7)
    for path in (
        acts,
        tmp_path / "acts.zip",
        acts / "event000000007",
        acts / "event000000007-hits.csv",
    ):
        (place,) = find_events([path])
        assert (place.form, place.event_id) == ("acts", 7)
        np.testing.assert_array_equal(read_place(place).position, expected.position)
    save_event(trackml, helix_event(2, 3, event_id=5))
    found = find_events([acts, trackml])
    assert [(one.event_id, one.form) for one in found] == [
        (5, "stored"),
        (7, "acts"),
        (8, "trackml"),
    ]
    read = reader_of(found)
    assert [read(one).event_id for one in found] == [5, 7, 8]


def test_tables_of_colliderml_are_read_once(tmp_path, monkeypatch):
    colliderml = pytest.importorskip("test_colliderml", reason="needs the extra colliderml")
    events = colliderml.EVENTS
    colliderml.write(tmp_path, colliderml.hit_rows(events), "tracker_hits")
    colliderml.write(tmp_path, colliderml.particle_rows(events), "particles")
    found = find_events([tmp_path])
    assert [one.event_id for one in found] == [event.event_id for event in events]
    alone = [read_place(one) for one in found]
    calls = []
    stream = places.read_colliderml_events
    monkeypatch.setattr(
        places, "read_colliderml_events", lambda *of: calls.append(of) or stream(*of)
    )
    for order in (found, found[2:], found[::-1]):
        read = reader_of(order)
        for place in order:
            expected = alone[found.index(place)]
            event = read(place)
            assert event.event_id == place.event_id
            np.testing.assert_array_equal(event.position, expected.position)
        # Only in another order than that of the tables events are looked for one by one.
        assert len(calls) == 1 or order == found[::-1]
        calls.clear()


def test_a_directory_of_anything_else_is_told(tmp_path):
    (tmp_path / "event000000001-hits.csv").write_text("")
    assert find_events([tmp_path])[0].form == "trackml"
    (tmp_path / "none").mkdir()
    with pytest.raises(
        UserError, match=r"none: no event in it; expected .*ACTS, \*.parquet of Coll"
    ):
        find_events([tmp_path / "none"])
