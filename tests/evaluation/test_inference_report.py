"""What a report on reconstructed events holds, against the parts that it is made of."""

from dataclasses import replace

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation import inference_report
from hypertrack_jax.evaluation.efficiency import (
    binned_efficiency,
    efficiency_table,
    joint_ratios,
)
from hypertrack_jax.evaluation.evaluate import evaluate_events
from hypertrack_jax.evaluation.inference_report import Wanted, draw_figures, report_events
from hypertrack_jax.evaluation.report import event_table, summary_table
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.events.topology import truth_edges
from hypertrack_jax.events.trackml import write_submission
from hypertrack_jax.tunes.tune import Tune, VoxdynTune

TUNE = Tune("small", voxdyn=VoxdynTune(node2node="eom"))
EVENTS = [helix_event(number, num_particles=5, event_id=number) for number in range(14)]
FIGURES = ["event.png", "event.html", "edge_scores.png", "roc.png"]
FIGURES += ["efficiency.png", "fake_rate.png"]
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
        seconds={"total": 1.0},
    )


def with_false_edge(position):
    """The same, and an edge between the first hits of two particles."""
    tracks, particle = perfect(position), TRUTH[position.tobytes()].hit_particle
    ends = [np.argmax(particle == number).astype(np.int32) for number in (0, 1)]
    return tracks._replace(
        senders=np.append(tracks.senders, ends[0]),
        receivers=np.append(tracks.receivers, ends[1]),
        probability=np.append(tracks.probability, np.float32(0.1)),
    )


def only(event, chosen):
    """Some of the hits of an event."""
    names = ("position", "hit_id", "hit_particle", "hit_weight", "module")
    return event._replace(**{name: getattr(event, name)[chosen] for name in names})


def without_truth(event):
    return event._replace(has_truth=False)


def test_rows_are_those_of_the_events_and_the_text_shows_them():
    report = report_events(perfect, EVENTS, TUNE, Wanted())
    assert report.rows == [one.row for one in evaluate_events(perfect, EVENTS, TUNE)]
    assert {row["VD TPR"] for row in report.rows} == {1.0}
    found = binned_efficiency(EVENTS[0], EVENTS[0].hit_particle)
    for event in EVENTS[1:]:
        found = joint_ratios(found, binned_efficiency(event, event.hit_particle))
    tables = event_table(report.rows), summary_table(report.rows), efficiency_table(found)
    assert report.text == "\n\n".join(tables)
    assert (report.problems, report.drawn) == ([], [])


def test_events_without_times_are_counted():
    def untimed(position):
        tracks = perfect(position)
        return tracks._replace(seconds={}) if position is EVENTS[1].position else tracks

    report = report_events(untimed, EVENTS[:3], TUNE, Wanted())
    assert report.text.endswith(f"\n\n{inference_report.UNTIMED_NOTE.format(1, 3)}")
    assert [row.get("total ms") for row in report.rows] == [1000.0, None, 1000.0]


def test_truth_of_another_topology_is_judged_by_and_said():
    report = report_events(perfect, EVENTS, TUNE, Wanted("hyper"))
    hyper = replace(TUNE, voxdyn=VoxdynTune(node2node="hyper"))
    assert report.rows == [one.row for one in evaluate_events(perfect, EVENTS, hyper)]
    assert {row["VD purity"] for row in report.rows} == {1.0}
    assert "fitted with eom, judged against hyper" in report.text
    assert report.judged_by == replace(hyper, voxdyn=VoxdynTune(node2node="hyper"))


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


def test_the_first_events_with_truth_are_kept_for_the_figures():
    events = [without_truth(EVENTS[0]), *EVENTS[1:]]
    report = report_events(perfect, events, TUNE, Wanted(has_figures=True))
    numbers = [one.event.event_id for one in report.drawn]
    assert numbers == [*range(1, 1 + inference_report.MAX_DRAWN)]
    assert len(report.rows) == len(EVENTS)


def test_without_truth_the_columns_that_need_it_are_empty(tmp_path):
    events = map(without_truth, EVENTS)
    report = report_events(perfect, events, TUNE, Wanted(has_figures=True))
    assert "particles" not in report.text
    sizes = {"event", "hits", "edges", "total ms"}
    for row in report.rows:
        assert {name for name, value in row.items() if value is not None} == sizes
        assert set(row) > sizes
    assert draw_figures(tmp_path, report) == ([], ["no figures: none of the events has truth."])


def test_a_peer_finds_the_tracks_of_the_same_events(tmp_path):
    """A peer that gives each track of three particles two of them has efficiency 3/5, and 2/3."""

    def peer(event):
        if event.event_id == 2:
            raise UserError("event 2: no module")
        label = np.where(event.hit_particle > 2, -1, event.hit_particle)
        return np.where(event.hit_particle == NOISE, 9, label), 0.25

    wanted = Wanted(has_figures=True, peers={"other": peer}, name="mine")
    report = report_events(perfect, [*EVENTS[:3], without_truth(EVENTS[3])], TUNE, wanted)
    ours, other = report.programs
    assert (ours.name, other.name) == ("mine", "other")
    assert [row["event"] for row in ours.rows] == [0, 1, 2]
    assert [row["event"] for row in other.rows] == [0, 1]
    assert {row["efficiency"] for row in other.rows} == {3 / 5}
    assert {row["total ms"] for row in other.rows} == {250.0}
    sums = [other.efficiency["hits"], other.fakes["hits"], ours.fakes["hits"]]
    assert [(of.num_passed.sum(), of.num_all.sum()) for of in sums] == [(6, 10), (2, 8), (0, 15)]
    assert report.problems == ["other: event 2: no module"]
    assert "other, the same events:" in report.text
    assert summary_table(other.rows) in report.text


def test_the_largest_losses_are_kept():
    def reconstruct(position):
        tracks = perfect(position)
        lost = {4: 2, 7: 5, 9: 1, 11: 3}.get(TRUTH[position.tobytes()].event_id, 0)
        return tracks._replace(hit_label=np.where(tracks.hit_label < lost, -1, tracks.hit_label))

    losses = report_events(reconstruct, EVENTS, TUNE, Wanted(has_figures=True)).losses
    told = [(loss.event.event_id, loss.num_lost, loss.num_particles) for loss in losses]
    assert told == [(7, 5, 5), (11, 3, 5), (4, 2, 5)]
    assert all(len(loss.tracks.senders) == len(loss.tracks.probability) == 0 for loss in losses)


def test_a_bad_event_is_named_and_the_others_are_reported():
    def reconstruct(position):
        if position is EVENTS[3].position:
            raise UserError("all hits lie outside")
        return perfect(position)

    report = report_events(reconstruct, EVENTS, TUNE, Wanted())
    assert report.problems == ["event 3: all hits lie outside"]
    good = [event for event in EVENTS if event.event_id != 3]
    assert report.rows == [one.row for one in evaluate_events(perfect, good, TUNE)]


def test_figures_are_drawn(tmp_path):
    pytest.importorskip("mplhep", reason="needs the extra plots")
    pytest.importorskip("plotly", reason="needs the extra plots")
    report = report_events(with_false_edge, EVENTS[:2], TUNE, Wanted(has_figures=True))
    files, problems = draw_figures(tmp_path, report)
    assert problems == []
    pages = [f"event{number:09d}.html" for number in (0, 1)]
    assert [path.name for path in files] == [*FIGURES, *pages]
    assert [path.stem for path in sorted(tmp_path.glob("*.json"))] == [
        "event",
        "event000000000",
        "event000000001",
    ]
    begins = {".png": b"\x89PNG", ".html": b"<"}
    assert all(path.read_bytes().startswith(begins[path.suffix]) for path in files)


@pytest.mark.parametrize(
    ("chosen", "missing"),
    [
        # All edges are true.
        (lambda particle: particle == 0, {"roc.png": "a ROC curve needs true and false edges"}),
        # Noise alone, and a single hit.
        (
            lambda particle: particle == NOISE,
            {
                "edge_scores.png": "edge scores need candidate edges",
                "roc.png": "a ROC curve",
                "efficiency.png": "efficiency: no particle",
                "fake_rate.png": "fake rate: no particle or track",
            },
        ),
        (
            lambda particle: np.arange(len(particle)) == np.argmax(particle == 0),
            {"roc.png": "a ROC curve", "efficiency.png": "efficiency: no particle"},
        ),
    ],
    ids=["one particle", "noise", "one hit"],
)
def test_figures_that_cannot_be_drawn_are_named(tmp_path, chosen, missing):
    pytest.importorskip("mplhep", reason="needs the extra plots")
    pytest.importorskip("plotly", reason="needs the extra plots")
    event = only(EVENTS[0], chosen(EVENTS[0].hit_particle))
    TRUTH[event.position.tobytes()] = event
    report = report_events(perfect, [event], TUNE, Wanted("hyper", has_figures=True))
    assert report.rows[0]["hits"] == len(event.position) > 0
    files, problems = draw_figures(tmp_path, report)
    drawn = [path.name for path in files if path.name in FIGURES]
    assert drawn == [name for name in FIGURES if name not in missing]
    for problem, (name, reason) in zip(problems, missing.items(), strict=True):
        assert problem.startswith(f"no {name}: {reason}")


def test_unknown_topology_is_noticed_before_the_first_event():
    def never(position):
        raise AssertionError("reconstructed")

    with pytest.raises(ValueError, match="hypre"):
        report_events(never, EVENTS, TUNE, Wanted("hypre"))
