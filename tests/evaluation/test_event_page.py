"""The page of an event: what each status shows, and that it opens without a network."""

import base64
import itertools
import json
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
from hypertrack_jax.evaluation.track_shapes import track_shapes
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


def shown(drawn, name, panel):
    """Names of the hits that a status shows in one of the three panels."""
    figure, layers = drawn
    kind, axis = [("scatter3d", None), ("scattergl", "x"), ("scattergl", "x2")][panel]
    found = [
        layers[trace.meta].hits
        for trace in figure.data
        if trace.name == name and trace.type == kind and (axis is None or trace.xaxis == axis)
    ]
    hits = np.concatenate(found)
    return sorted(EVENT.hit_id[hits[hits >= 0]])


def test_each_status_shows_its_hits_in_all_three_panels(label):
    figure, _ = drawn = event_figure(EVENT, label)
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
            assert shown(drawn, name, panel) == sorted(EVENT.hit_id[is_shown]), name
    matching = match_tracks(EVENT, label)
    assert (matching.particle != NOISE).sum() == 7
    assert "8 tracks found, 7 matched, 1 fake; 1 of 8 particles lost" in figure.layout.title.text


def test_points_lie_where_the_hits_do(label):
    figure, layers = event_figure(EVENT, label)
    for trace in figure.data:
        rows = layers[trace.meta].hits
        if trace.name == "true track of a match":
            assert (trace.visible, trace.hoverinfo) == ("legendonly", "skip")
        is_hit = rows >= 0
        x, y, z = EVENT.position[rows[is_hit]].T
        r = np.hypot(x, y)
        if trace.type == "scatter3d":
            np.testing.assert_array_equal(trace.z[is_hit], y)
            horizontal, vertical = z, x
        else:
            horizontal, vertical = (z, r) if trace.xaxis == "x2" else (x, y)
        np.testing.assert_array_equal(trace.x[is_hit], horizontal)
        np.testing.assert_array_equal(trace.y[is_hit], vertical)
        assert np.isnan(trace.x[~is_hit]).all()


def content(page):
    """What the script of a page is given, its numbers read."""
    text = page.read_text()
    start = text.index("const page = ") + len("const page = ")
    given, _ = json.JSONDecoder().raw_decode(text[start:])
    tables = [given["hits"], given["particles"], *given["layers"]]
    for table in tables:
        for name, packed in table.items():
            table[name] = np.frombuffer(base64.b64decode(packed["bdata"]), packed["dtype"])
    return given


def test_the_pointer_is_told_the_names_of_hits_particles_and_tracks(label, tmp_path):
    membership = np.linspace(0, 1, len(label)).astype(np.float32)
    odd = EVENT._replace(hit_id=EVENT.hit_id + 2**60)
    for event, kind in ((EVENT, np.int32), (odd, np.int64)):
        given = content(write_event_page(tmp_path / "event.html", event, label, membership))
        hits, particles = given["hits"], given["particles"]
        np.testing.assert_array_equal(hits["hit_id"], event.hit_id)
        assert hits["hit_id"].dtype == kind
        np.testing.assert_array_equal(hits["particle"], PARTICLE)
        np.testing.assert_array_equal(hits["track"], label)
        np.testing.assert_array_equal(hits["membership"], membership)
        np.testing.assert_array_equal(particles["particle_id"], EVENT.particles.particle_id)
        np.testing.assert_allclose(particles["pt"], np.hypot(*EVENT.particles.momentum[:, :2].T))
        _, layers = event_figure(event, label)
        for layer, told in zip(layers, given["layers"], strict=True):
            np.testing.assert_array_equal(told["hit"], layer.hits)


def test_tracks_go_by_their_particle_and_fakes_by_their_shape(label, tmp_path):
    """Group 0 to 5 is the band of pT times two, and one more for displaced particles."""
    momentum, vertex = EVENT.particles.momentum.copy(), EVENT.particles.vertex.copy()
    for particle, (pt, radius) in enumerate(
        [(0.2, 0), (0.2, 5), (0.7, 1), (0.7, 9), (2, 0), (2, 4)]
    ):
        momentum[particle, :2], vertex[particle, :2] = (0, pt), (radius, 0)
    event = EVENT._replace(particles=EVENT.particles._replace(momentum=momentum, vertex=vertex))
    _, layers = event_figure(event, label)
    given = content(write_event_page(tmp_path / "event.html", event, label))
    seen = {}
    for layer, told in zip(layers, given["layers"], strict=True):
        group = told["group"][layer.hits >= 0]
        hits = layer.hits[layer.hits >= 0]
        if layer.name == "lost particle":
            assert set(group) == {1}
        elif layer.name == "matched track":
            seen |= dict(zip(label[hits].tolist(), group.tolist(), strict=True))
        elif layer.name == "fake track":
            shapes = track_shapes(event.position, np.where(label == 50, 0, NOISE))
            band = np.searchsorted([0.5, 1.5], shapes["pT (GeV)"][0])
            assert set(group) == {2 * band + (shapes["impact parameter (mm)"][0] > 3)}
        elif layer.name == "noise or short track":
            assert set(group) == {6}
    assert {track: seen[track] for track in (0, 2, 3, 4, 5)} == {0: 0, 2: 2, 3: 3, 4: 4, 5: 5}
    boxes = [groups for _, groups in given["choices"] if groups]
    for kind in (boxes[:3], boxes[3:]):
        assert sorted(itertools.chain(*kind)) == [*range(6)]


def test_a_track_is_one_line_from_the_origin_outwards(label):
    along = event_page._along(EVENT, label)
    parts = np.split(along, np.flatnonzero(along == -1))
    parts = [part[part != -1] for part in parts]
    assert sorted(np.unique(label[part]).item() for part in parts) == sorted(set(label) - {NOISE})
    for part in parts:
        assert (np.diff(np.linalg.norm(EVENT.position[part], axis=1)) >= 0).all()


def test_without_truth_there_are_tracks_and_other_hits(label, tmp_path):
    num_hits = len(label)
    blind = EVENT._replace(
        hit_particle=np.full(num_hits, NOISE, np.int32),
        hit_weight=np.zeros(num_hits),
        particles=no_particles(),
        has_truth=False,
    )
    drawn = event_figure(blind, label)
    assert shown(drawn, "found track", 1) == sorted(EVENT.hit_id[label != NOISE])
    assert shown(drawn, "hit in no track", 1) == sorted(EVENT.hit_id[label == NOISE])
    assert {trace.name for trace in drawn[0].data} == {"found track", "hit in no track"}
    given = content(write_event_page(tmp_path / "event.html", blind, label))
    assert not given["hasTruth"]
    for layer, told in zip(drawn[1], given["layers"], strict=True):
        group = told["group"][layer.hits >= 0]
        assert (group < 6).all() if layer.name == "found track" else (group == 6).all()


def test_a_crowded_event_has_its_planes_alone(label, monkeypatch):
    num_traces = len(event_figure(EVENT, label)[0].data)
    monkeypatch.setattr(event_page, "LARGE", 10)
    figure, _ = event_figure(EVENT, label)
    assert len(figure.data) == num_traces * 2 / 3
    modes = {trace.name: trace.mode for trace in figure.data}
    assert set(modes.values()) == {"markers", "lines"}
    assert modes["true track of a match"] == "lines" and modes["fake track"] == "markers"


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


CLICKS = """
const drawn = (inSpace) => plot.data.flatMap((trace) => isSpace(trace) === inSpace ?
  [...read(trace.x)].filter(Number.isFinite).length : []);
const turn = (...numbers) => numbers.forEach((n) => {
  const box = bar.querySelectorAll("input")[n];
  box.checked = !box.checked;
  box.onchange();
});
const steps = [drawn(false)];
turn(3, 4);
steps.push(drawn(false));
draw().then(() => {
  steps.push(drawn(true));
  turn(3, 4);
  console.log("steps", JSON.stringify([...steps, drawn(false), drawn(true)]));
  console.log("told", JSON.stringify([0, 1, 2].map(told)));
});
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_draws_it_and_switches_tracks_on_and_off(label, tmp_path, monkeypatch):
    """Of a large event: planes, planes without tracks, space without them, then all with them."""
    image = pytest.importorskip("matplotlib.image", reason="needs the extra plots")
    monkeypatch.setattr(event_page, "LARGE", 10)
    label[2] = NOISE
    page, picture = write_event_page(tmp_path / "event.html", EVENT, label), tmp_path / "seen.png"
    end = 'plot.on("plotly_unhover"'
    page.write_text(page.read_text().replace(end, f"{CLICKS}{end}"))
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

    logged = {
        word: json.loads(text)
        for word, text in re.findall(r'CONSOLE.*?"(steps|told) (\[.*\])"', done.stderr)
    }
    layers = event_figure(EVENT, label)[1]
    sizes = [int((layer.hits >= 0).sum()) for layer in layers]
    noise = [sizes[0], *[0] * (len(layers) - 1)]
    in_planes = [np.repeat(number, 2).tolist() for number in (sizes, noise)]
    assert logged["steps"] == [*in_planes, noise, in_planes[0], sizes]
    particles = EVENT.particles.particle_id[PARTICLE[:3]]
    assert [PARTICLE[hit] == NOISE for hit in range(3)] == [True, True, False]
    assert logged["told"][0] == f"hit {EVENT.hit_id[0]}\nnoise\ntrack {label[0]}"
    assert f"\nparticle {particles[2]}\n" in logged["told"][2]
    assert logged["told"][2].endswith("r = 0.0 mm\nin no track")

    seen = image.imread(picture)[..., :3]
    is_coloured = seen.max(axis=2) - seen.min(axis=2) > 0.2
    # Space on the left, the x-y plane above and the r-z plane below on the right.
    for part in (is_coloured[80:590, :680], is_coloured[60:320, 760:], is_coloured[360:580, 760:]):
        assert part.sum() > 150
