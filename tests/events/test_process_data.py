"""The script that turns Kaggle files into event files, run as a user would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from handmade import assert_same_event, random_event

from hypertrack_jax.events.cells import FiredCells
from hypertrack_jax.events.modules import Modules, geometry_ids, write_detector_csv
from hypertrack_jax.events.store import load_event
from hypertrack_jax.events.trackml import write_event_csv

ROOT = Path(__file__).parents[2]


@pytest.fixture
def kaggle(tmp_path):
    """Events 1000 to 1003 as Kaggle files."""
    events = [
        random_event(i, [8, 3, 1, 0], num_noise=4, event_id=i) for i in (1000, 1001, 1002, 1003)
    ]
    for event in events:
        write_event_csv(tmp_path / "kaggle", event)
    return {event.event_id: event for event in events}


def _process(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, "experiments/process_data.py", f"--workdir={tmp_path}", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def _written(tmp_path):
    """Numbers of the events in the work directory, where nothing but events may lie."""
    names = [path.name for path in (tmp_path / "data").glob("*")]
    return sorted(int(re.fullmatch(r"event(\d{9})\.npz", name)[1]) for name in names)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ((), [1000, 1001, 1002, 1003]),
        (("--event_start=1000,1002", "--event_end=1000,1003"), [1000, 1002, 1003]),
    ],
)
def test_events_arrive_whole(tmp_path, kaggle, ranges, expected):
    done = _process(tmp_path, f"--input={tmp_path / 'kaggle'}", *ranges)
    assert done.returncode == 0, done.stderr
    assert f"{len(expected)} events written to {tmp_path / 'data'}" in done.stdout
    assert f"{len(expected)}/{len(expected)}" in done.stderr  # the progress bar
    assert _written(tmp_path) == expected
    for event_id in expected:
        assert_same_event(load_event(tmp_path / "data", event_id), kaggle[event_id])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input=nowhere",), "nowhere: no such directory or zip"),
        (("--input=tests",), r"tests: no TrackML event in it"),
        (
            ("--input={kaggle}", "--event_start=1002", "--event_end=1005"),
            r"event 1004 is not in it \(2 of 4 .* narrow --event_start",
        ),
        (("--input={kaggle}", "--event_start=1002"), "--event_end 0"),
        (
            ("--input={kaggle}", "--event_start=x", "--event_end=1003"),
            "--event_start=x: expected a number",
        ),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_writes_nothing(tmp_path, kaggle, arguments, message):
    filled = [argument.format(kaggle=tmp_path / "kaggle") for argument in arguments]
    done = _process(tmp_path, *filled)
    assert done.returncode == 2
    assert re.fullmatch(f"error: .*{message}.*\n", done.stderr)
    assert not (tmp_path / "data").exists()


def test_a_bad_event_is_listed_and_the_others_go_on(tmp_path, kaggle):
    path = tmp_path / "kaggle" / "event000001001-hits.csv"
    path.write_text(path.read_text()[:-10])
    done = _process(tmp_path, f"--input={tmp_path / 'kaggle'}")
    assert done.returncode == 1
    assert f"3 events written to {tmp_path / 'data'}" in done.stdout
    assert re.search(rf"^error: 1 events were left out:\n{path}: .*\n\Z", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    assert _written(tmp_path) == [1000, 1002, 1003]


def test_a_hit_that_is_not_finite_is_left_out_where_that_is_asked_for(tmp_path, kaggle):
    path = tmp_path / "kaggle" / "event000001001-hits.csv"
    header, row, *rest = path.read_text().splitlines()
    number = header.split(",").index("x")
    row = ",".join("nan" if i == number else field for i, field in enumerate(row.split(",")))
    path.write_text("\n".join([header, row, *rest]) + "\n")
    which = (f"--input={tmp_path / 'kaggle'}", "--event_start=1001", "--event_end=1001")
    assert _process(tmp_path, *which).returncode == 1
    done = _process(tmp_path, *which, "--lenient")
    assert done.returncode == 0, done.stderr
    assert len(load_event(tmp_path / "data", 1001).position) == len(kaggle[1001].position) - 1


def test_an_event_without_truth_arrives_whole(tmp_path):
    event = random_event(0, [], num_noise=9, event_id=7)._replace(has_truth=False)
    write_event_csv(tmp_path / "kaggle", event)
    done = _process(tmp_path, f"--input={tmp_path / 'kaggle'}")
    assert done.returncode == 0, done.stderr
    assert_same_event(load_event(tmp_path / "data", 7), event)


def test_a_work_directory_that_cannot_be_written(tmp_path, kaggle):
    (tmp_path / "data").write_text("in the way")
    done = _process(tmp_path, f"--input={tmp_path / 'kaggle'}")
    assert done.returncode == 2
    assert re.search(r"^error: .*data.event0000010\d\d\.npz: cannot be written", done.stderr, re.M)
    assert "Traceback" not in done.stderr


def test_other_formats_arrive_whole(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    from test_acts_csv import write
    from test_colliderml import EVENTS, hit_rows, particle_rows
    from test_colliderml import write as write_table

    from hypertrack_jax.events.acts_csv import read_acts_event
    from hypertrack_jax.events.colliderml import read_colliderml_events

    assert parquet
    (tmp_path / "acts").mkdir()
    write(tmp_path / "acts")
    done = _process(tmp_path, f"--input={tmp_path / 'acts'}", "--format=acts")
    assert done.returncode == 0, done.stderr
    assert_same_event(load_event(tmp_path / "data", 7), read_acts_event(tmp_path / "acts", 7))

    source = tmp_path / "ttbar_pu0"
    write_table(source, hit_rows(EVENTS), "tracker_hits")
    write_table(source, particle_rows(EVENTS), "particles")
    ranges = ("--event_start=90001", "--event_end=90003")
    done = _process(tmp_path, f"--input={source}", "--format=colliderml", *ranges)
    assert done.returncode == 0, done.stderr
    assert _written(tmp_path) == [7, 90001, 90002, 90003]
    for found in read_colliderml_events(source, range(90001, 90004)):
        event = load_event(tmp_path / "data", found.event.event_id)
        assert_same_event(event, found.event)

    path = write_table(tmp_path / "empty", hit_rows(EVENTS), "tracker_hits")
    parquet.write_table(parquet.read_table(path).slice(0, 0), path)
    done = _process(tmp_path, f"--input={tmp_path / 'empty'}", "--format=colliderml")
    assert "no ColliderML event in it; expected rows in tracker_hits." in done.stderr


def test_cells_arrive_where_the_modules_are_listed(tmp_path):
    event = random_event(0, [2], event_id=1)._replace(module=np.array([[8, 2, 1], [9, 4, 12]]))
    fired = FiredCells(np.array([1, 0]), np.array([[5, 6], [7, 8]]), np.ones(2, np.float32))
    write_event_csv(tmp_path / "csv", event, fired=fired)
    modules = Modules(
        geometry_id=geometry_ids(event.module),
        number=event.module.astype(np.int32),
        center=np.zeros((2, 3)),
        axes=np.broadcast_to(np.eye(3)[:2], (2, 2, 3)),
        half_size=np.ones((2, 3)),
        pitch=np.ones((2, 2)),
        thickness=np.ones(2),
        drift=np.zeros(2),
    )
    path = write_detector_csv(tmp_path / "elsewhere", modules)
    without = _process(tmp_path, f"--input={tmp_path / 'csv'}")
    assert without.returncode == 0
    assert "their cells are left out, since no detectors.csv is there" in without.stdout
    assert load_event(tmp_path / "data", 1).cells is None
    done = _process(tmp_path, f"--input={tmp_path / 'csv'}", f"--detector={path}")
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stdout
    cells = load_event(tmp_path / "data", 1).cells
    assert cells.extent.tolist() == [[1, 1], [1, 1]] and cells.charge.tolist() == [1, 1]
    lost = _process(tmp_path, f"--input={tmp_path / 'csv'}", "--detector=nowhere.csv")
    assert lost.returncode == 1 and "nowhere.csv: no such file" in lost.stderr
