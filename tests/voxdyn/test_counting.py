"""The streaming count: the same whatever the order, the cuts and the interruptions."""

import itertools
import os

import numpy as np
import pytest

from hypertrack_jax.voxdyn import counting
from hypertrack_jax.voxdyn.connectivity import merge_pairs, pack_pairs
from hypertrack_jax.voxdyn.counting import PairCounter

SETTINGS = {"ncell": 10, "node2node": "hyper"}


def event_pairs(event_id):
    rng = np.random.default_rng(event_id)
    keys, counts = np.unique(rng.integers(0, 100, 60), return_counts=True)
    return pack_pairs(keys, counts)


EVENTS = {event_id: event_pairs(event_id) for event_id in range(20)}
WHOLE = merge_pairs(list(EVENTS.values()))


def chunks(size):
    ids = list(EVENTS)
    return [ids[first : first + size] for first in range(0, len(ids), size)]


def merged(counter):
    return np.concatenate(list(counter.merged()))


@pytest.mark.parametrize("spill", [1, 150, 10**6])
def test_sum_is_that_of_all_events_in_any_order(tmp_path, monkeypatch, spill):
    monkeypatch.setattr(counting, "SPILL_PAIRS", spill)
    for name, order in (("up", sorted(EVENTS)), ("down", sorted(EVENTS, reverse=True))):
        counter = PairCounter(tmp_path / name, SETTINGS)
        for event_id in order:
            counter.add(event_id, EVENTS[event_id])
        np.testing.assert_array_equal(merged(counter), WHOLE)
        assert set(counter.counted) == set(EVENTS)


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(counting, "SPILL_PAIRS", 150)
    counter = PairCounter(tmp_path, SETTINGS)
    for event_id, pairs in EVENTS.items():
        counter.add(event_id, pairs)
        assert sum(map(len, counter._pending)) < 150


def test_runs_are_few_and_hold_little_more_than_the_sum(tmp_path, monkeypatch):
    """With a file for each event, 20 events leave one run of 16 events and one of 4."""
    monkeypatch.setattr(counting, "SPILL_PAIRS", 1)
    counter = PairCounter(tmp_path, SETTINGS)
    for event_id, pairs in EVENTS.items():
        counter.add(event_id, pairs)
        runs = list(tmp_path.glob("run*.bin"))
        assert len(runs) <= 6
        assert sum(run.stat().st_size for run in runs) <= 8 * 5 * len(WHOLE)
    np.testing.assert_array_equal(merged(PairCounter(tmp_path, SETTINGS)), WHOLE)


def test_runs_merge_like_carries_in_base_four(tmp_path, monkeypatch):
    """Events without common pairs, a file for each: a run for each unit of the number's digits."""
    monkeypatch.setattr(counting, "SPILL_PAIRS", 1)
    counter = PairCounter(tmp_path, SETTINGS)
    for number in range(1, 70):
        counter.add(number, pack_pairs(10 * number + np.arange(10), np.ones(10, np.int64)))
        digits = [number // 64, number // 16 % 4, number // 4 % 4, number % 4]
        expected = np.repeat([640, 160, 40, 10], digits)
        runs = sorted(tmp_path.glob("run*.bin"), key=lambda path: -path.stat().st_size)
        assert [path.stat().st_size // 8 for path in runs] == expected.tolist()


def test_a_count_goes_on_where_it_was_flushed(tmp_path):
    for event_ids in chunks(7):
        counter = PairCounter(tmp_path, SETTINGS)
        for event_id in event_ids:
            assert event_id not in counter.counted
            counter.add(event_id, EVENTS[event_id])
        counter.flush()
    np.testing.assert_array_equal(merged(PairCounter(tmp_path, SETTINGS)), WHOLE)


def test_what_was_not_flushed_is_counted_again(tmp_path):
    """As after a kill: runs and manifest agree, whatever the moment."""
    counter = PairCounter(tmp_path, SETTINGS)
    for event_id in range(8):
        counter.add(event_id, EVENTS[event_id])
    counter.flush()
    counter.add(8, EVENTS[8])
    # Killed between the run and the manifest: the run is there, but nobody names it.
    EVENTS[8].tofile(tmp_path / "run00002.bin")
    again = PairCounter(tmp_path, SETTINGS)
    assert set(again.counted) == set(range(8))
    for event_id in range(8, 20):
        again.add(event_id, EVENTS[event_id])
    again.flush()
    np.testing.assert_array_equal(merged(PairCounter(tmp_path, SETTINGS)), WHOLE)


class Killed(BaseException):
    """Nothing in the program catches it, as nothing catches a kill."""


def kill_at(moment, monkeypatch):
    """The process ends before (even) or after (odd moments) it puts some file in its place."""
    moments, replace = itertools.count(), os.replace

    def replace_or_die(source, target):
        if next(moments) == moment:
            raise Killed
        replace(source, target)
        if next(moments) == moment:
            raise Killed

    monkeypatch.setattr(os, "replace", replace_or_die)


@pytest.mark.parametrize("moment", range(40))
def test_a_killed_count_is_right_for_the_events_that_it_names(tmp_path, monkeypatch, moment):
    """Eight events in as many files, which are merged twice."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(counting, "SPILL_PAIRS", 1)
        kill_at(moment, patch)
        counter = PairCounter(tmp_path, SETTINGS)
        for event_id in range(8):
            counter.add(event_id, EVENTS[event_id])
    again = PairCounter(tmp_path, SETTINGS)
    counted = sorted(again.counted)
    # Two files, a run and the manifest, for each event, and again for each four that are merged.
    assert counted == list(range(len(counted))) and len(counted) >= moment // 5
    np.testing.assert_array_equal(
        np.concatenate([np.zeros(0, np.int64), *again.merged()]),
        merge_pairs([EVENTS[event_id] for event_id in counted]),
    )
    for event_id in EVENTS.keys() - again.counted:
        again.add(event_id, EVENTS[event_id])
    again.flush()
    np.testing.assert_array_equal(merged(PairCounter(tmp_path, SETTINGS)), WHOLE)


def test_the_manifest_is_replaced_and_not_written_over(tmp_path):
    """Half a manifest would name nothing: whoever holds the former one still reads all of it."""
    counter = PairCounter(tmp_path, SETTINGS)
    counter.add(3, EVENTS[3])
    counter.flush()
    manifest, former = tmp_path / "manifest.json", tmp_path / "former.json"
    former.hardlink_to(manifest)
    content = former.read_bytes()
    counter.add(4, EVENTS[4])
    counter.flush()
    assert former.read_bytes() == content != manifest.read_bytes()


def test_counting_goes_on_after_a_look(tmp_path):
    counter = PairCounter(tmp_path, SETTINGS)
    for event_id, pairs in EVENTS.items():
        counter.add(event_id, pairs)
        if event_id == 5:
            np.testing.assert_array_equal(
                merged(counter), merge_pairs([EVENTS[k] for k in range(6)])
            )
    np.testing.assert_array_equal(merged(counter), WHOLE)


def test_nothing_counted(tmp_path):
    counter = PairCounter(tmp_path, SETTINGS)
    counter.flush()
    assert list(counter.merged()) == []
    assert not list(tmp_path.iterdir())


def test_an_event_without_pairs_is_counted_too(tmp_path):
    counter = PairCounter(tmp_path, SETTINGS)
    counter.add(3, np.zeros(0, np.int64))
    counter.flush()
    assert set(PairCounter(tmp_path, SETTINGS).counted) == {3}


def test_an_event_counts_once(tmp_path):
    counter = PairCounter(tmp_path, SETTINGS)
    counter.add(3, EVENTS[3])
    with pytest.raises(ValueError, match="event 3 has been counted already"):
        counter.add(3, EVENTS[3])


def test_other_settings(tmp_path):
    counter = PairCounter(tmp_path, SETTINGS)
    counter.add(3, EVENTS[3])
    counter.flush()
    with pytest.raises(ValueError, match="unfinished count with ncell=10, but ncell=11 is asked"):
        PairCounter(tmp_path, SETTINGS | {"ncell": 11})
    with pytest.raises(ValueError, match="with num_copies=None, but num_copies=2 is asked"):
        PairCounter(tmp_path, SETTINGS | {"num_copies": 2})
    with pytest.raises(ValueError, match="with node2node=hyper, but node2node=None is asked"):
        PairCounter(tmp_path, {"ncell": 10})


def test_settings_are_compared_as_json_gives_them_back(tmp_path):
    settings = SETTINGS | {"seeds": (1, 2)}
    counter = PairCounter(tmp_path, settings)
    counter.add(3, EVENTS[3])
    counter.flush()
    assert set(PairCounter(tmp_path, settings).counted) == {3}


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b'{"settings": {}}', b"\xff", b"[" * 100_000),
        b'{"settings": {}, "runs": [["run00001.bin", 1e999, 0]], "events": []}',
        b'{"settings": {}, "runs": [["run00001.bin", 1]], "events": []}',
        b'{"settings": {}, "runs": [["../run00001.bin", 1, 0]], "events": []}',
        b'{"settings": {}, "runs": [["/etc/passwd", 1, 0]], "events": []}',
    ],
    ids=range(10),
)
def test_damaged_manifest(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json: damaged .* remove .* and count anew"):
        PairCounter(tmp_path, SETTINGS)


@pytest.mark.parametrize("damage", ["cut", "cut oddly", "lengthen", "remove", "flip"])
def test_damaged_run(tmp_path, damage):
    counter = PairCounter(tmp_path, SETTINGS)
    counter.add(3, EVENTS[3])
    counter.flush()
    run = tmp_path / "run00001.bin"
    if damage == "cut":
        run.write_bytes(run.read_bytes()[:-40])
    elif damage == "cut oddly":
        run.write_bytes(run.read_bytes()[:-3])
    elif damage == "flip":
        whole = run.read_bytes()
        run.write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    elif damage == "lengthen":
        run.write_bytes(2 * run.read_bytes())
    else:
        run.unlink()
    with pytest.raises(ValueError, match=r"run00001\.bin: missing or damaged"):
        list(PairCounter(tmp_path, SETTINGS).merged())
