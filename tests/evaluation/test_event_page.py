"""The page of an event: what each status shows, and that it opens without a network."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.evaluation import event_page
from hypertrack_jax.evaluation.event_page import event_figure, write_event_page
from hypertrack_jax.evaluation.metrics import match_tracks
from hypertrack_jax.events.event import NOISE, no_particles

pytest.importorskip("plotly", reason="needs the extra plots: pip install 'hypertrack-jax[plots]'")

EVENT = helix_event(0, num_particles=8)
PARTICLE = EVENT.hit_particle


def hits_of(particle):
    return np.flatnonzero(PARTICLE == particle)


@pytest.fixture
def label():
    """The true tracks with one mistake of each kind."""
    label = PARTICLE.astype(np.int64)
    label[hits_of(1)] = NOISE  # lost
    label[[hits_of(2)[0], *hits_of(NOISE)[:3]]] = 50  # fake, and a missed hit of particle 2
    label[hits_of(3)[0]] = 4  # in a wrong track
    return label


def shown(figure, name, panel):
    """Names of the hits that a status shows in one of the three panels."""
    kind, axis = [("scatter3d", None), ("scattergl", "x"), ("scattergl", "x2")][panel]
    found = [
        trace
        for trace in figure.data
        if trace.name == name and trace.type == kind and (axis is None or trace.xaxis == axis)
    ]
    numbers = np.concatenate([np.asarray(trace.customdata)[:, 0] for trace in found])
    return sorted(numbers[np.isfinite(numbers)].astype(int))


def test_each_status_shows_its_hits_in_all_three_panels(label):
    figure = event_figure(EVENT, label)
    matched = np.isin(label, [0, 2, 3, 4, 5, 6, 7])
    expected = {
        "noise or short track": (label == NOISE) & (PARTICLE == NOISE),
        "matched track": matched,
        "fake track": label == 50,
        "lost particle": PARTICLE == 1,
        "hit in a wrong track": matched & (label != PARTICLE),
        "missed hit": (PARTICLE == 2) & (label != 2),
    }
    for name, is_shown in expected.items():
        assert is_shown.any()
        for panel in range(3):
            assert shown(figure, name, panel) == sorted(EVENT.hit_id[is_shown]), name
    matching = match_tracks(EVENT, label)
    assert (matching.particle != NOISE).sum() == 7
    assert "8 tracks found, 7 matched, 1 fake; 1 of 8 particles lost" in figure.layout.title.text


def test_points_lie_where_the_hits_do_and_tell_their_names(label):
    membership = np.linspace(0, 1, len(label)).astype(np.float32)
    figure = event_figure(EVENT, label, membership)
    place = {number: row for row, number in enumerate(EVENT.hit_id.tolist())}
    for trace in figure.data:
        if trace.name == "true track of a match":
            assert trace.visible == "legendonly" and trace.customdata is None
            continue
        told = np.asarray(trace.customdata)
        is_hit = np.isfinite(told[:, 0])
        rows = [place[number] for number in told[is_hit, 0].astype(int).tolist()]
        np.testing.assert_array_equal(told[is_hit, 1], PARTICLE[rows])
        np.testing.assert_array_equal(told[is_hit, 2], label[rows])
        np.testing.assert_array_equal(told[is_hit, 3].astype(np.float32), membership[rows])
        x, y, z = EVENT.position[rows].T
        r = np.hypot(x, y)
        if trace.type == "scatter3d":
            np.testing.assert_array_equal(trace.z[is_hit], y)
            horizontal, vertical = z, x
        else:
            horizontal, vertical = (z, r) if trace.xaxis == "x2" else (x, y)
        np.testing.assert_array_equal(trace.x[is_hit], horizontal)
        np.testing.assert_array_equal(trace.y[is_hit], vertical)
        assert np.isnan(trace.x[~is_hit]).all()


def test_a_track_is_one_line_from_the_origin_outwards(label):
    along = event_page._along(EVENT, label)
    parts = np.split(along, np.flatnonzero(along == -1))
    parts = [part[part != -1] for part in parts]
    assert sorted(np.unique(label[part]).item() for part in parts) == sorted(set(label) - {NOISE})
    for part in parts:
        assert (np.diff(np.linalg.norm(EVENT.position[part], axis=1)) >= 0).all()


def test_without_truth_there_are_tracks_and_other_hits(label):
    num_hits = len(label)
    blind = EVENT._replace(
        hit_particle=np.full(num_hits, NOISE, np.int32),
        hit_weight=np.zeros(num_hits),
        particles=no_particles(),
        has_truth=False,
    )
    figure = event_figure(blind, label)
    assert shown(figure, "found track", 1) == sorted(EVENT.hit_id[label != NOISE])
    assert shown(figure, "hit in no track", 1) == sorted(EVENT.hit_id[label == NOISE])
    assert {trace.name for trace in figure.data} == {"found track", "hit in no track"}


def test_large_numbers_of_hits_are_not_rounded(label):
    odd = EVENT._replace(hit_id=EVENT.hit_id + 2**24)
    assert shown(event_figure(odd, label), "lost particle", 0) == sorted(odd.hit_id[PARTICLE == 1])


def test_a_crowded_page_is_smaller(label, monkeypatch):
    num_traces = len(event_figure(EVENT, label).data)
    monkeypatch.setattr(event_page, "LARGE", 10)
    figure = event_figure(EVENT, label)
    assert len(figure.data) == num_traces - 2
    told = {trace.type for trace in figure.data if trace.customdata is not None}
    assert told == {"scatter3d"}
    assert {trace.mode for trace in figure.data if trace.type == "scattergl"} == {"markers"}


def test_nothing_to_draw_and_wrong_labels(label):
    event_figure(EVENT, np.full(len(label), NOISE))
    with pytest.raises(UserError, match="the labels of event 1 have shape"):
        event_figure(EVENT, label[1:])


def test_without_plotly_the_extra_is_named(label, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.subplots", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'hypertrack-jax\[plots\]'"):
        event_figure(EVENT, label)


def test_the_page_needs_no_other_file(label, tmp_path):
    page = write_event_page(tmp_path / "new" / "event.html", EVENT, label).read_text()
    assert "<title>Event 1</title>" in page
    assert not re.search(r"<(script|img)[^>]*\ssrc=|<link|@import", page)


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_draws_it(label, tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="needs the extra plots")
    page, picture = write_event_page(tmp_path / "event.html", EVENT, label), tmp_path / "seen.png"
    done = subprocess.run(
        [
            "chromium",
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--use-gl=angle",
            "--use-angle=swiftshader",
            "--enable-unsafe-swiftshader",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,800",
            "--virtual-time-budget=20000",
            "--enable-logging=stderr",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not re.search(r"CONSOLE.*([Ee]rror|Uncaught)", done.stderr)
    seen = image.imread(picture)[..., :3]
    is_coloured = seen.max(axis=2) - seen.min(axis=2) > 0.2
    # Space on the left, the x-y plane above and the r-z plane below on the right.
    for part in (is_coloured[80:650, :680], is_coloured[60:340, 760:], is_coloured[420:640, 760:]):
        assert part.sum() > 300
