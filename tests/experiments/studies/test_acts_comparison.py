"""The comparison with ACTS: each program once, in files of their own, and a table of all."""

import json

import numpy as np
import pytest
from benchmarks.end_to_end import Run
from studies import acts_comparison
from studies.acts_comparison import Setting, compare, draw, results, table
from toy import helix_event

from hypertrack_jax.events.store import save_event


@pytest.fixture
def setting(tmp_path):
    for number in (3, 4):
        save_event(tmp_path, helix_event(number, num_particles=12, event_id=number))
    return Setting(tmp_path, tmp_path, [3, 4], 0.5, 0, "solenoid")


@pytest.fixture
def programs(monkeypatch):
    """One that knows the truth and one that finds nothing; all in this process."""
    asked = []

    def runner(setting, program):
        asked.append(program)
        right = (lambda event: event.hit_particle) if program == "right" else None
        return lambda event: Run(
            right(event) if right else np.full(len(event.position), -1), 0.5, 0.25
        )

    monkeypatch.setattr(acts_comparison, "_runner", runner)
    monkeypatch.setattr(acts_comparison, "alone", lambda function, *given: function(*given))
    return asked


def test_each_program_runs_once_and_has_a_line(setting, programs, tmp_path):
    found = tmp_path / "found"
    compare(found, setting, ["right"])
    compare(found, setting, ["right", "blind"])
    compare(found, setting._replace(rfactor=0.05), ["blind"])
    assert programs == ["right", "blind", "blind"]
    rows = [line.split("|") for line in table(results(found)).splitlines()[2:]]
    cells = [[cell.strip() for cell in row[1:-1]] for row in rows]
    assert [row[:3] for row in cells] == [
        ["10", "blind", "2"],
        ["100", "blind", "2"],
        ["100", "right", "2"],
    ]
    assert cells[2][4].startswith("1.000") and cells[1][4].startswith("0.000")
    assert cells[2][-3:-1] == ["0.5", "0.25"]
    bins = json.loads(next(found.glob("pileup_100_right.json")).read_text())["rows"][0]["bins"]
    assert bins["pT (GeV)"][0] == bins["pT (GeV)"][1]


@pytest.mark.parametrize("other", [{"event_ids": [3]}, {"seed": 1}, {"field": "uniform"}])
def test_results_of_other_events_are_not_taken_for_these(setting, programs, tmp_path, other):
    found = tmp_path / "found"
    compare(found, setting, ["right"])
    compare(found, setting._replace(**other), ["right"])
    assert programs == ["right", "right"]
    (path,) = found.iterdir()
    without = json.loads(path.read_text())
    assert other.items() <= without.items()
    del without[next(iter(other))]
    path.write_text(json.dumps(without))
    compare(found, setting._replace(**other), ["right"])
    assert len(programs) == 3


def test_the_figure_has_a_row_for_each_pileup(setting, programs, tmp_path):
    pytest.importorskip("mplhep", reason="the extra plots is not installed")
    found = tmp_path / "found"
    compare(found, setting, ["right"])
    compare(found, setting._replace(rfactor=0.2), ["blind"])
    draw(tmp_path / "acts.png", results(found))
    assert (tmp_path / "acts.png").stat().st_size > 10_000
