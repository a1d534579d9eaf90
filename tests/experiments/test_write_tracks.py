"""The script that writes tracks for other programs."""

import csv

import numpy as np
import pytest
from test_road import script
from toy import helix_event

from hypertrack_jax.events.store import save_event
from hypertrack_jax.events.submissions import submission_path
from hypertrack_jax.events.trackml import write_submission


def test_tracks_of_every_event_are_written(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    events = [helix_event(seed=1, num_particles=5, event_id=number) for number in (1, 2, 3)]
    for event in events:
        save_event(tmp_path / "data", event)
        if event.event_id > 1:
            path = submission_path(tmp_path / "tracks", event.event_id)
            write_submission(path, event, event.hit_particle)
    arguments = (f"--events={tmp_path / 'data'}", f"--submission={tmp_path / 'tracks'}")

    done = script(tmp_path, "write_tracks", *arguments, "--format=acts", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    paths = sorted(tmp_path.glob("*-tracks.csv"))
    assert [path.name for path in paths] == [f"event00000000{n}-tracks.csv" for n in (2, 3)]
    with open(paths[0]) as file:
        rows = list(csv.DictReader(file))
    sizes = np.bincount(events[1].hit_particle[events[1].hit_particle >= 0])
    assert [int(row["nMeasurements"]) for row in rows] == sizes.tolist()
    assert {row["good/duplicate/fake"] for row in rows} == {"good"}

    output = tmp_path / "tracks.parquet"
    done = script(tmp_path, "write_tracks", *arguments, "--format=colliderml", f"--output={output}")
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(output)
    assert set(table["event_id"].to_pylist()) == {2, 3}
    assert len(table) == sum((event.hit_particle >= 0).sum() for event in events[1:])

    wrong = (f"--events={tmp_path / 'data' / 'event000000001.npz'}", arguments[1])
    done = script(tmp_path, "write_tracks", *wrong, "--format=acts", f"--output={tmp_path}")
    assert done.returncode == 2
    assert "has the tracks of no event of" in done.stderr
    assert done.stderr.count("\n") == 1
