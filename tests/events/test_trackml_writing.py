"""TrackML events and submissions as they are written."""

import numpy as np
import pytest
from handmade import assert_same_event, random_event
from trackml_files import FILES

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.trackml import (
    list_event_ids,
    read_event,
    write_event_csv,
    write_submission,
)
from hypertrack_jax.files import replace_file


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("sizes", [[12, 1, 0, 40, 3], [0, 0], []])
def test_the_reader_takes_back_what_the_writer_wrote(tmp_path, sizes, compress):
    event = random_event(4, sizes, num_noise=20)
    extremes = np.float32([1e-38, -3.4e38, 1 / 3, 16777216.0, -0.0, 1e-45])
    event.position[:2] = extremes.reshape(2, 3)
    write_event_csv(tmp_path, event, compress=compress)
    assert_same_event(read_event(tmp_path, 1000), event)
    names = {f"event000001000-{kind}.csv{'.gz' * compress}" for kind in FILES}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_an_event_without_truth_is_written_as_hits_alone(tmp_path, directory):
    (directory / "event000000007-truth.csv").unlink()
    event = read_event(directory, 7)
    write_event_csv(tmp_path / "out", event)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["event000000007-hits.csv"]
    assert_same_event(read_event(tmp_path / "out", 7), event)


def test_the_true_crossing_is_written_where_it_is_known(tmp_path):
    event = random_event(0, [2], num_noise=1)
    position, momentum = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    path = tmp_path / "event000001000-truth.csv"
    write_event_csv(tmp_path, event)
    assert path.read_text().splitlines()[0] == "hit_id,particle_id,weight"
    write_event_csv(tmp_path, event, position, momentum)
    header, *rows = path.read_text().splitlines()
    assert header == "hit_id,particle_id,tx,ty,tz,tpx,tpy,tpz,weight"
    written = np.array([row.split(",")[2:8] for row in rows], np.float32)
    assert (written == np.concatenate([position, momentum], axis=1)).all()
    assert_same_event(read_event(tmp_path, 1000), event)


def test_equal_events_give_equal_files(tmp_path):
    event = random_event(0, [5], num_noise=2)
    for name in ("a", "b"):
        write_event_csv(tmp_path / name, event, compress=True)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes()[4:8] == bytes(4)  # the time of day in a gzip header
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_an_interrupted_writer_leaves_no_event_to_list(tmp_path, monkeypatch):
    def interrupt_at_the_last(path):
        if len(list(tmp_path.iterdir())) == 2:
            raise KeyboardInterrupt
        return replace_file(path)

    monkeypatch.setattr("hypertrack_jax.events.trackml.replace_file", interrupt_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        write_event_csv(tmp_path, random_event(0, [5]))
    assert list_event_ids(tmp_path) == []


def test_a_submission(directory):
    event = read_event(directory, 7)
    path = directory / "out" / "submission.csv"
    assert write_submission(path, event, np.array([0, -1, 0, 5, 0])) == path
    assert path.read_text() == "event_id,hit_id,track_id\n7,3,1\n7,4,0\n7,7,1\n7,9,6\n7,20,1\n"


def test_a_submission_takes_labels_of_any_integer_type_and_a_path_as_text(directory):
    event = read_event(directory, 7)
    path = directory / "submission.csv"
    for labels in (np.array([0, -1, 0, 5, 0], ">i2"), np.array([0, -1, 0, 5, 0], np.int8)):
        assert write_submission(str(path), event, labels) == path
        assert path.read_text().endswith("\n7,3,1\n7,4,0\n7,7,1\n7,9,6\n7,20,1\n")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1]), r"labels are int64 of shape \(2,\); expected one .* of the 5 hits"),
        (np.zeros((5, 1), np.int64), r"of shape \(5, 1\)"),
        (np.zeros(5), r"labels are float64"),
        (np.array([0, -1, -2, 3, 4]), "a hit has the label -2; expected numbers from -1 on"),
    ],
)
def test_labels_that_are_none_are_refused(directory, labels, message):
    event = read_event(directory, 7)
    with pytest.raises(UserError, match=message):
        write_submission.__wrapped__(directory / "out.csv", event, labels)
    assert not (directory / "out.csv").exists()
