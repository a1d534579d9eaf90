"""What a report on reconstructed events holds, against the parts that it is made of."""

from dataclasses import replace

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.evaluation import inference_report
from hypertrack_jax.evaluation.efficiency import (
    binned_efficiency,
    efficiency_table,
    joint_efficiency,
)
from hypertrack_jax.evaluation.evaluate import evaluate_events
from hypertrack_jax.evaluation.inference_report import Wanted, report_events
from hypertrack_jax.evaluation.report import event_table, summary_table
from hypertrack_jax.events.topology import truth_edges
from hypertrack_jax.events.trackml import write_submission
from hypertrack_jax.tunes.tune import Tune, VoxdynTune

TUNE = Tune("small", voxdyn=VoxdynTune(node2node="eom"))
EVENTS = [helix_event(number, num_particles=5, event_id=number) for number in range(14)]
TRUTH = {event.position.tobytes(): event for event in EVENTS}


def perfect(position):
    """The particles as tracks, and all edges between hits of one particle."""
    event = TRUTH[position.tobytes()]
    senders, receivers = truth_edges(event, "hyper")
    return Tracks(
        hit_label=event.hit_particle,
        membership=np.ones(len(position), np.float32),
        senders=senders,
        receivers=receivers,
        probability=np.full(len(senders), 0.5, np.float32),
        seconds={"VD": 1.0},
    )


def without_truth(event):
    return event._replace(has_truth=False)


@pytest.fixture
def drawn(monkeypatch):
    """What would have been drawn: (directory, numbers of the events, topology) of each call."""
    calls = []

    def write_figures(directory, evaluated, tune):
        calls.append((directory, [one.event.event_id for one in evaluated], tune.voxdyn.node2node))
        return [directory / "event.png"]

    monkeypatch.setattr(inference_report, "write_figures", write_figures)
    monkeypatch.setattr(inference_report, "plot_efficiency", lambda path, found: None)
    return calls


def test_rows_are_those_of_the_events_and_the_text_shows_them(tmp_path, drawn):
    report = report_events(perfect, EVENTS, TUNE, Wanted())
    assert report.rows == [one.row for one in evaluate_events(perfect, EVENTS, TUNE)]
    assert {row["VD TPR"] for row in report.rows} == {1.0}
    found = binned_efficiency(EVENTS[0], EVENTS[0].hit_particle)
    for event in EVENTS[1:]:
        found = joint_efficiency(found, binned_efficiency(event, event.hit_particle))
    tables = event_table(report.rows), summary_table(report.rows), efficiency_table(found)
    assert report.text == "\n\n".join([*tables, ""])
    assert (report.figures, drawn, [*tmp_path.iterdir()]) == ([], [], [])


def test_truth_of_another_topology_is_judged_by_and_said(drawn, tmp_path):
    report = report_events(perfect, EVENTS, TUNE, Wanted("hyper", figures=tmp_path))
    hyper = replace(TUNE, voxdyn=VoxdynTune(node2node="hyper"))
    assert report.rows == [one.row for one in evaluate_events(perfect, EVENTS, hyper)]
    assert {row["VD purity"] for row in report.rows} == {1.0}
    assert "fitted with eom, judged against hyper" in report.text
    assert drawn[0][2] == "hyper"


def test_edges_are_judged_by_their_labels_unless_a_topology_is_asked_for():
    tune = replace(TUNE, voxdyn=VoxdynTune(node2node="eom", labels="hyper"))
    for wanted, judged_by in ((Wanted(), tune), (Wanted("eom"), TUNE)):
        report = report_events(perfect, EVENTS[:2], tune, wanted)
        assert report.rows == [one.row for one in evaluate_events(perfect, EVENTS[:2], judged_by)]


def test_submissions_are_those_of_each_event(tmp_path):
    report_events(perfect, EVENTS[:2], TUNE, Wanted(submissions=tmp_path / "found"))
    for event in EVENTS[:2]:
        expected = write_submission(tmp_path / "expected.csv", event, event.hit_particle)
        found = tmp_path / "found" / f"event{event.event_id:09d}-submission.csv"
        assert found.read_bytes() == expected.read_bytes()


def test_figures_show_the_first_events_that_have_truth(tmp_path, drawn):
    events = [without_truth(EVENTS[0]), *EVENTS[1:]]
    report = report_events(perfect, events, TUNE, Wanted(figures=tmp_path))
    assert drawn == [(tmp_path, [*range(1, 1 + inference_report.MAX_SHOWN)], "eom")]
    assert report.figures == [tmp_path / "event.png", tmp_path / "efficiency.png"]
    assert len(report.rows) == len(EVENTS)


def test_without_truth_there_is_nothing_to_draw(tmp_path, drawn):
    report = report_events(perfect, map(without_truth, EVENTS), TUNE, Wanted(figures=tmp_path))
    assert (report.figures, drawn) == ([], [])
    assert "particles" not in report.text
    assert {row["DMS"] for row in report.rows} == {None}


def test_unknown_topology_is_noticed_before_the_first_event():
    def never(position):
        raise AssertionError("reconstructed")

    with pytest.raises(ValueError, match="hypre"):
        report_events(never, EVENTS, TUNE, Wanted("hypre"))
