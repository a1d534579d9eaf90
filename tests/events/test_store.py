"""Event files, event ranges and the order of training."""

import gc
import resource
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from handmade import assert_same_event, random_event, with_cells

from hypertrack_jax.errors import UserError
from hypertrack_jax.events import store
from hypertrack_jax.events.event import no_particles


@pytest.fixture
def event():
    return random_event(1, [9, 4, 0, 1], num_noise=3)


def test_an_event_survives_its_file(tmp_path, event):
    path = store.save_event(tmp_path / "deep" / "data", event)
    assert path == store.event_path(tmp_path / "deep" / "data", 1000)
    assert path.name == "event000001000.npz"
    assert_same_event(store.load_event(path.parent, 1000), event)
    without_truth = event._replace(
        hit_particle=np.full_like(event.hit_particle, -1),
        particles=no_particles(),
        has_truth=False,
    )
    store.save_event(path.parent, without_truth)
    assert_same_event(store.load_event(path.parent, 1000), without_truth)


def test_cells_survive_too_and_events_without_them_are_files_of_the_former_kind(tmp_path, event):
    with np.load(store.save_event(tmp_path, event)) as former:
        assert not [name for name in former if "cells" in name]
    store.save_event(tmp_path, with_cells(event))
    assert_same_event(store.load_event(tmp_path, 1000), with_cells(event))
    # One array too few is no event without cells.
    with np.load(store.event_path(tmp_path, 1000)) as file:
        arrays = {name: file[name] for name in file if name != "cells/slant"}
    np.savez(store.event_path(tmp_path, 1000), **arrays)
    with pytest.raises(UserError, match="lacks cells/slant"):
        store.load_event(tmp_path, 1000)


def test_threads_read_beside_each_other(tmp_path, event):
    store.save_event(tmp_path, event)
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()

    def let_others_in(phase, info):
        sum(range(30))

    # Threads take turns within garbage collections, which begin with every object.
    sys.setswitchinterval(1e-6)
    gc.callbacks.append(let_others_in)
    gc.set_threshold(1)
    try:
        with ThreadPoolExecutor(4) as pool:
            read = list(pool.map(store.load_event, [tmp_path] * 300, [event.event_id] * 300))
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(let_others_in)
        sys.setswitchinterval(interval)
    for one in read:
        assert_same_event(one, event)


def test_equal_events_give_equal_files(tmp_path, event):
    first = store.save_event(tmp_path / "a", event).read_bytes()
    assert store.save_event(tmp_path / "b", event).read_bytes() == first


def test_paths_may_be_text_and_arrays_of_other_numbers(tmp_path, event):
    changed = event._replace(
        position=event.position.astype(">f4"),
        hit_particle=event.hit_particle.astype(">i8"),
        hit_weight=event.hit_weight.astype(">f8"),
    )
    store.save_event(str(tmp_path), changed)
    assert_same_event(store.load_event(str(tmp_path), 1000), event)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hit_weight": np.ma.masked_array(np.zeros(17), np.arange(17) > 3)},
            "hit_weight is a Mas",
        ),
        ({"hit_id": list(range(17))}, "hit_id is a list, where a NumPy array is expected"),
        ({"event_id": -1}, r"event_id is -1; expected a whole number from 0 to 2\^63 - 1"),
        ({"event_id": 2**63}, "event_id is 9223372036854775808; expected"),
        ({"hit_id": np.linspace(0, 1, 17)}, "hit_id is of type float64, where int64 is expected"),
        ({"hit_particle": np.full(17, 0.5)}, "hit_particle is of type float64"),
        ({"module": np.ones((17, 2), np.int64)}, r"module has the shape \(17, 2\)"),
    ],
)
def test_what_is_no_event_is_not_written(tmp_path, event, changes, message):
    # Without the type checks of the tests, as a user's program runs.
    save = getattr(store.save_event, "__wrapped__", store.save_event)
    with pytest.raises(UserError, match=message):
        save(tmp_path, event._replace(**changes))
    assert list(tmp_path.iterdir()) == []


def test_an_invalid_event_is_not_written(tmp_path, event):
    with pytest.raises(ValueError, match=r"event000001000\.npz: .*occurs more than once"):
        store.save_event(tmp_path, event._replace(hit_id=np.zeros_like(event.hit_id)))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, event):
    path = store.save_event(tmp_path, event)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(
            OSError, match=r"event000001000\.npz: cannot be written \(File too large"
        ):
            store.save_event(tmp_path, random_event(2, [5000]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_is_no_directory_is_named(tmp_path, event):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(OSError, match=r"data.event000001000\.npz: cannot be written .*make room"):
        store.save_event(tmp_path / "data", event)


def _flip_a_coordinate(data: bytes) -> bytes:
    at = data.index(b"position.npy") + 200
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-30], lambda data: data[:500], lambda data: b"", _flip_a_coordinate],
    ids=["no end", "half", "empty", "flipped bit"],
)
def test_a_damaged_file_is_said_to_be(tmp_path, event, damage):
    path = store.save_event(tmp_path, event)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"event000001000\.npz: damaged or not an event file"):
        store.load_event(tmp_path, 1000)


def test_another_kind_of_numpy_file_is_said_to_be(tmp_path):
    path = store.event_path(tmp_path, 1000)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="not an event file"):
        store.load_event(tmp_path, 1000)
    np.savez(path, weights=np.zeros(3))
    with pytest.raises(ValueError, match="not an event file"):
        store.load_event(tmp_path, 1000)


def test_nothing_is_unpickled(tmp_path, event):
    path = store.save_event(tmp_path, event)
    with np.load(path) as file:
        arrays = dict(file) | {"hit_weight": event.hit_weight.astype(object)}
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="not an event file"):
        store.load_event(tmp_path, 1000)


def test_another_format_version_is_refused(tmp_path, event, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", store.FORMAT._replace(version=7))
    store.save_event(tmp_path, event)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format version 7, but this program reads version 1"):
        store.load_event(tmp_path, 1000)


def test_missing_events_are_counted_and_the_first_named(tmp_path, event):
    store.save_event(tmp_path, event)
    store.require_events(tmp_path, [1000])
    message = r"event000001001\.npz: .*\(2 of 3 .*simulate\.py or process_data\.py, or narrow"
    with pytest.raises(FileNotFoundError, match=message):
        store.require_events(tmp_path, [1000, 1001, 1002])
    with pytest.raises(FileNotFoundError, match=r"event000001001\.npz"):
        store.load_event(tmp_path, 1001)


def test_ranges_include_their_ends_and_keep_their_order():
    assert store.event_ids([7700, 5], [7702, 5]) == [7700, 7701, 7702, 5]


@pytest.mark.parametrize(
    ("starts", "ends", "message"),
    [
        ([], [], "has 0 values and --event_end 0"),
        ([1, 2], [3], "--event_start has 2 values and --event_end 1"),
        ([5], [4], "--event_start=5 with --event_end=4"),
        ([-1], [4], "--event_start=-1 with"),
        ([1, 4], [4, 6], "overlap"),
    ],
)
def test_ranges_that_are_none_are_refused(starts, ends, message):
    with pytest.raises(ValueError, match=message):
        store.event_ids(starts, ends)


def test_every_epoch_visits_every_event_once():
    ids = list(range(100, 110))
    walk = [i for step in range(20) for i in store.step_event_ids(ids, 3, step, 4)]
    epochs = [walk[10 * k : 10 * (k + 1)] for k in range(8)]
    assert all(sorted(epoch) == ids for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


@pytest.mark.parametrize("batch_size", [1, 3, 10, 25])
def test_the_walk_does_not_depend_on_the_batch_size(batch_size):
    ids = list(range(10))
    walk = [i for step in range(75) for i in store.step_event_ids(ids, 0, step, 1)]
    batches = [store.step_event_ids(ids, 0, step, batch_size) for step in range(75 // batch_size)]
    assert [i for batch in batches for i in batch] == walk[: len(batches) * batch_size]
    assert store.step_event_ids(ids, 0, 2, batch_size) == batches[2]


def test_another_seed_gives_another_order():
    ids = list(range(50))
    assert store.step_event_ids(ids, 0, 0, 50) != store.step_event_ids(ids, 1, 0, 50)
