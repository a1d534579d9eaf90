"""Files for Phoenix: the structure that its guide describes, and the hits and tracks in it."""

import json

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.phoenix import write_phoenix
from hypertrack_jax.events.event import NOISE

EVENT = helix_event(0, num_particles=8)
PARTICLE = EVENT.hit_particle


@pytest.fixture
def label():
    """The true tracks: one lost, and a fake of noise with a hit of another."""
    label = PARTICLE.astype(np.int64)
    label[PARTICLE == 1] = NOISE
    label[[np.argmax(PARTICLE == 2), *np.flatnonzero(PARTICLE == NOISE)[:3]]] = 50
    return label


def is_place(value):
    return len(value) == 3 and all(isinstance(one, float) for one in value)


def read(path, event=EVENT):
    """The event of a file, after a check of what Phoenix wants."""
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert list(content) == [f"Event {event.event_id}"]
    found = content[f"Event {event.event_id}"]
    assert found["event number"] == event.event_id and found["run number"] == 0
    for collection in found["Hits"].values():
        assert all(map(is_place, collection))
    for collection in found["Tracks"].values():
        for track in collection:
            assert all(map(is_place, track["pos"]))
            assert int(track["color"], 16) < 2**24 and track["color"].startswith("0x")
            assert isinstance(track.get("pT", 0.0), float)
    return found


def hits_at(places):
    return sorted(
        int(np.abs(EVENT.position - np.array(place)).max(axis=1).argmin()) for place in places
    )


def test_tracks_are_sorted_by_what_they_are(label, tmp_path):
    found = read(write_phoenix(tmp_path / "event.json", EVENT, label))
    tracks = found["Tracks"]
    names = [EVENT.particles.particle_id[number].item() for number in (0, 2, 3, 4, 5, 6, 7)]
    assert [int(track["particle"]) for track in tracks["Matched tracks"]] == names
    for track in tracks["Matched tracks"]:
        assert hits_at(track["pos"]) == np.flatnonzero(label == track["track"]).tolist()
        # Out to a few per cent, as the circle goes through three smeared hits.
        assert track["pT"] == pytest.approx(track["true pT"], rel=0.1)
        distance = np.linalg.norm(track["pos"], axis=1)
        assert (np.diff(distance) >= -1e-3).all()
    (fake,), (lost,) = tracks["Fake tracks"], tracks["Lost particles"]
    assert fake["track"] == 50 and hits_at(fake["pos"]) == np.flatnonzero(label == 50).tolist()
    assert lost["particle"] == str(EVENT.particles.particle_id[1])
    assert hits_at(lost["pos"]) == np.flatnonzero(PARTICLE == 1).tolist()
    assert len(found["Hits"]["Hits in tracks"]) == (label >= 0).sum()
    assert hits_at(found["Hits"]["Hits in no track"]) == np.flatnonzero(label < 0).tolist()


def test_without_truth_there_is_one_collection(label, tmp_path):
    found = read(write_phoenix(tmp_path / "x.json", EVENT._replace(has_truth=False), label))
    (tracks,) = found["Tracks"].values()
    assert [track["track"] for track in tracks] == sorted({*label.tolist()} - {NOISE})
    assert not any("particle" in track for track in tracks)


def test_no_tracks_and_straight_ones(tmp_path):
    none = read(write_phoenix(tmp_path / "x.json", EVENT, np.full(len(PARTICLE), NOISE)))
    assert none["Tracks"]["Matched tracks"] == [] and len(none["Tracks"]["Lost particles"]) == 8
    two = np.where(np.arange(len(PARTICLE)) < 2, 0, NOISE)
    # A track without curvature has no momentum, and JSON knows no infinity.
    (fake,) = read(write_phoenix(tmp_path / "x.json", EVENT, two))["Tracks"]["Fake tracks"]
    assert "pT" not in fake


def test_wrong_labels_are_refused(label, tmp_path):
    with pytest.raises(UserError, match="expected an integer for each hit"):
        write_phoenix(tmp_path / "x.json", EVENT, label[1:])
