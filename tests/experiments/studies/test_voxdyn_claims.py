"""The claims measured on toy events, against fits and look-ups made one by one."""

import importlib.util
import json
import re
import weakref
from functools import partial

import numpy as np
import pytest
from studies import claim_report, voxdyn_claims
from studies.points import CentroidPoint
from studies.voxdyn_claims import HeldOut, Study
from toy import helix_event

from hypertrack_jax.evaluation.graph_quality import graph_row
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.events.pileup import thin
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.voxdyn.centroids import fit_centroids
from hypertrack_jax.voxdyn.fit import Training, fit_voxdyn, sample_particle_hits
from hypertrack_jax.voxdyn.storage import load_voxdyn, save_voxdyn, voxdyn_path

TRAINING_IDS, EVAL_IDS = [*range(1, 7)], [11, 12]
needs_plots = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None or importlib.util.find_spec("mplhep") is None,
    reason="needs the extra plots: pip install 'hypertrack-jax[plots]'",
)


def toy_event(event_id):
    return helix_event(event_id, num_particles=30, event_id=event_id)


def thinned(rfactor):
    for event_id in EVAL_IDS:
        yield thin(toy_event(event_id), rfactor, -1, np.random.default_rng([0, event_id]))


def progress(ids, _):
    return ids


TRAINING = Training(TRAINING_IDS, toy_event, num_iterations=2)
HELD_OUT = HeldOut(thinned, EVAL_IDS, None, [1, 3])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Estimators of 32 and 64 cells, fitted to all training events."""
    directory = tmp_path_factory.mktemp("models")
    for ncell in (32, 64):
        vd = fit_voxdyn(map(toy_event, TRAINING_IDS), ncell, "eom", 2)
        save_voxdyn(voxdyn_path(directory, "eom", ncell), vd)
    return directory


def study_of(models, **changes):
    study = Study(
        models=models,
        node2nodes=["eom"],
        ncells=[32, 64],
        training=TRAINING,
        held_out=HELD_OUT,
        rfactors=[0.5, 1.0],
        rfactor=1.0,
        shown_min_counts=[2],
        milestones=[2, 6],
        centroid_hits=[40, 400],
        centroid_events=3,
    )
    return study._replace(**changes)


def measure(study, *claims, directory):
    count_c = partial(
        voxdyn_claims.count_snapshots, training=TRAINING, directory=directory, progress=progress
    )
    return dict(voxdyn_claims.measure_claims(study, claims, count_c, progress))


@pytest.fixture(scope="module")
def measured(models, tmp_path_factory):
    directory = tmp_path_factory.mktemp("counts")
    points = measure(study_of(models), *claim_report.CLAIMS, directory=directory)
    assert not [*directory.iterdir()], "counts must not stay behind"
    return points


def assert_same_graph(point, vd, event, judged):
    """The point's quality is that of a look-up made for its `min_count` alone."""
    edges = predict_edges(vd, event.position, point.quality.min_count)
    row = graph_row(event, edges, judged)
    assert point.quality[1:] == tuple(
        row[name]
        for name in (
            "edges",
            "degree",
            "VD TPR",
            "VD FPR",
            "VD purity",
            "connected share",
            "fully connected",
        )
    )


def test_pileup_and_trade_share_their_look_ups_and_differ_in_min_count(measured):
    vd = fit_voxdyn(map(toy_event, TRAINING_IDS), 64, "eom", 2)
    settings = [
        (p.num_cells, p.pileup, p.event_id, p.quality.min_count) for p in measured["pileup"]
    ]
    assert settings == [(v, pu, e, 2) for v in (32, 64) for pu in (100.0, 200.0) for e in EVAL_IDS]
    assert [p.quality.min_count for p in measured["trade"]] == [1, 3] * 8
    for point in [*measured["pileup"], *measured["trade"]]:
        assert (point.node2node, point.judged, point.num_events) == ("eom", "eom", 6)
        if point.num_cells == 64:
            event = dict(zip(EVAL_IDS, thinned(point.pileup / 200.0), strict=True))[point.event_id]
            assert_same_graph(point, vd, event, "eom")


def test_events_counts_the_first_events_with_the_stored_centroids(measured):
    points = [p for p in measured["events"] if p.num_cells == 64]
    assert [(p.num_events, p.event_id) for p in points] == [
        (number, event_id) for number in (2, 6) for event_id in EVAL_IDS
    ]
    # All events counted, this is the stored estimator itself, and so are its graphs.
    stored = [p for p in measured["pileup"] if p.num_cells == 64 and p.pileup == 200.0]
    assert points[2:] == stored
    assert all(
        few.quality.tpr < many.quality.tpr for few, many in zip(points[:2], points[2:], strict=True)
    )


def test_centroids_are_fitted_to_few_and_many_hits_and_judged_on_other_events(measured):
    points = measured["centroids"]
    # 40 hits are too few for 64 cells.
    sizes = [(p.graph.num_cells, p.num_centroid_hits, p.graph.event_id) for p in points]
    assert sizes == [(v, n, e) for v, n in ((32, 40), (32, 400), (64, 400)) for e in EVAL_IDS]
    assert all(p.graph.num_events == 3 and p.graph.quality.min_count == 2 for p in points)
    few, many = points[0], points[2]
    assert few.distance2 > many.distance2
    for point, size in ((few, 40), (many, 400)):
        hits = sample_particle_hits(map(toy_event, TRAINING_IDS), size, seed=0)
        centroids = fit_centroids(hits, 32, num_iterations=2, seed=0).centroids
        assert point.distance2 == pytest.approx(distance2_by_hand(centroids, toy_event(11)))


def test_as_few_hits_as_cells_will_do_and_more_than_there_are_count_as_all(models, tmp_path):
    particle_hits = [np.sum(toy_event(k).hit_particle != NOISE) for k in TRAINING_IDS]
    study = study_of(models, ncells=[32], centroid_hits=[31, 32, 10**6, 10**7])
    points = measure(study, "centroids", directory=tmp_path)["centroids"]
    assert [p.num_centroid_hits for p in points] == [32, 32, sum(particle_hits), sum(particle_hits)]


def distance2_by_hand(centroids, event):
    hits = event.position[event.hit_particle != NOISE].astype(np.float64)
    offset = hits[:, None] - np.asarray(centroids, np.float64)[None]
    return (offset**2).sum(axis=2).min(axis=1).mean()


def test_distance_of_an_event_without_particle_hits_is_not_known():
    event = toy_event(11)
    noise = event._replace(hit_particle=np.full(len(event.position), NOISE, np.int32))
    assert voxdyn_claims.mean_distance2(event.position, noise) is None
    assert voxdyn_claims.mean_distance2(event.position, event) == 0.0


def test_snapshots_are_estimators_of_the_first_events(models, tmp_path):
    """A stop at a milestone leaves no trace in what is counted after it."""
    vd = fit_voxdyn(map(toy_event, TRAINING_IDS), 64, "eom", 2)
    centroids, _ = voxdyn_claims._division_of(vd)

    def snapshots(milestones, num_events=6):
        part = TRAINING._replace(event_ids=TRAINING_IDS[:num_events])
        return [
            (vd.num_events, np.asarray(vd.rows.counts).tolist())
            for vd in voxdyn_claims.count_snapshots(
                centroids, "eom", milestones, part, tmp_path, progress
            )
        ]

    found = snapshots([6, 2, 2])
    assert [num_events for num_events, _ in found] == [2, 6]
    assert found == snapshots([2], num_events=2) + snapshots([6])


def test_estimators_are_let_go_one_by_one(models, monkeypatch):
    """No other is alive when one is made."""
    made, alive = [], []

    class Estimator(str):
        pass

    def estimators(number):
        for _ in range(number):
            alive.append(sum(reference() is not None for reference in made))
            vd = Estimator("eom")
            made.append(weakref.ref(vd))
            yield vd
            del vd

    nothing = HeldOut(lambda _: [], [], None, [1])
    assert [*voxdyn_claims.graph_points.__wrapped__(estimators(3), nothing, [1.0])] == []
    monkeypatch.setattr(voxdyn_claims, "centroid_points", lambda *_: [])
    study = study_of(models, node2nodes=["eom", "hyper"])
    (_,) = voxdyn_claims.measure_claims(study, ["centroids"], lambda *_: estimators(2), progress)
    # Three times three, and so many of two topologies.
    # The latter: two estimators of three divisions of space and two topologies.
    assert alive == [0] * (3 + 2 * 3 * 2)


def test_estimators_are_loaded_at_the_counts_that_the_claims_ask_for(models, monkeypatch, tmp_path):
    """Smaller counts stand for more edges, which may not fit into the memory."""
    asked = []

    def load(path, node2node, ncell, min_count):
        asked.append(min_count)
        return load_voxdyn(path, node2node, ncell, min_count)

    monkeypatch.setattr(voxdyn_claims, "load_voxdyn", load)
    scanned = HELD_OUT._replace(min_counts=[5, 3])
    study = study_of(models, ncells=[32], shown_min_counts=[1], held_out=scanned)
    measure(study, "trade", "events", directory=tmp_path)
    # More events than there are is a mistake only where they are to be counted.
    other = study._replace(shown_min_counts=[4], milestones=[77], centroid_events=77)
    measure(other, "pileup", directory=tmp_path)
    # For the events it is the centroids that matter, and C is counted anew.
    assert asked == [3, 1, 4]


def test_topologies_that_differ_are_said(models, tmp_path):
    study = study_of(models, held_out=HELD_OUT._replace(judged="hyper"), ncells=[64])
    points = measure(study, "pileup", directory=tmp_path)["pileup"]
    vd = fit_voxdyn(map(toy_event, TRAINING_IDS), 64, "eom", 2)
    event = next(iter(thinned(0.5)))
    assert_same_graph(points[0], vd, event, "hyper")
    (note,) = claim_report.notes(points)
    assert note.startswith("fitted with eom, judged against hyper")


@needs_plots
@pytest.mark.parametrize("claim", claim_report.CLAIMS)
def test_files_hold_every_point(measured, tmp_path, claim):
    data = claim_report.write_claim(tmp_path, claim, measured[claim], {"seed": 0})
    figure = claim_report.draw_claim(tmp_path, claim, measured[claim])
    assert figure.read_bytes().startswith(b"\x89PNG")
    content = json.loads(data.read_text())
    assert content["claim"] == claim_report.CLAIMS[claim]
    assert (content["settings"], content["notes"]) == ({"seed": 0}, [])
    assert len(content["points"]) == len(measured[claim])
    first, point = content["points"][0], measured[claim][0]
    if isinstance(point, CentroidPoint):
        assert (first["centroid_hits"], first["distance2"]) == (40, point.distance2)
        point = point.graph
    assert {name: first[name] for name in point.quality._fields} == point.quality._asdict()
    assert (first["num_cells"], first["event_id"], first["node2node"]) == (32, 11, "eom")


def test_table_has_a_line_for_each_setting_with_means_over_events(measured):
    heading, rule, *lines = claim_report.claim_table(measured["trade"]).splitlines()
    names = [cell.strip() for cell in heading.strip("|").split("|")]
    assert len(lines) == 2 * 2 * 2 and len({*map(len, [heading, rule, *lines])}) == 1
    assert re.fullmatch(r"\|:-+\|(-+:\|)+", rule)
    cells = dict(zip(names, (cell.strip() for cell in lines[0].strip("|").split("|")), strict=True))
    both = [
        p.quality.tpr
        for p in measured["trade"]
        if (p.num_cells, p.pileup, p.quality.min_count) == (32, 100.0, 1)
    ]
    assert cells["TPR"] == f"{np.mean(both):.4g}"
    assert cells["TPR std"] == f"{np.std(both, ddof=1):.4g}"
    assert (cells["n"], cells["cells"], cells["min_count"]) == ("2", "32", "1")
    assert claim_report.claim_table([]) == ""


@pytest.mark.parametrize(
    ("claims", "changes", "message"),
    [
        (["pileups"], {}, "--claims=pileups is unknown"),
        (["events"], {"milestones": [2, 7]}, "--milestones=7 is more than the 6 training events"),
        (["centroids"], {"centroid_events": 7}, "--centroid_events=7 is more than the 6"),
        (["trade"], {"held_out": HELD_OUT._replace(event_ids=[5, 6])}, "event 5 is both"),
        (["trade"], {"ncells": [77]}, r"voxdyn_eom_77\.npz"),
    ],
)
def test_mistake_gets_one_sentence(models, tmp_path, claims, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        measure(study_of(models, **changes), *claims, directory=tmp_path)
