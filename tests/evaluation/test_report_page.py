"""The report as a page: its numbers, what it holds, and how it looks on a phone."""

import base64
import html
import re
import shutil
import subprocess

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.evaluation.inference_report import Wanted, report_events
from hypertrack_jax.evaluation.report_page import write_report_page
from hypertrack_jax.tunes.tune import Tune, VoxdynTune

TUNE = Tune("small", voxdyn=VoxdynTune(node2node="eom"))
EVENTS = [helix_event(number, num_particles=5, event_id=number) for number in (3, 4, 5, 9)]
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
FILES = ["efficiency.png", "roc.png", "event000000003.html"]


def finder(lost):
    """Finds all particles but those below `lost`, and makes a track of all noise."""

    def find(position):
        event = next(event for event in EVENTS if event.position is position)
        label = np.where(event.hit_particle < lost(event), -1, event.hit_particle)
        label = np.where(event.hit_particle < 0, 77, label)
        none = np.zeros(0, np.int32)
        sure = np.ones(len(label), np.float32)
        seconds = {"GNN": 0.003, "cluster": 0.001, "total": 0.004}
        return Tracks(label.astype(np.int32), sure, none, none, sure[:0], seconds)

    return find


@pytest.fixture
def page(tmp_path):
    """One particle of event 3 is lost and none of the others; a peer loses two of each."""
    ours, other = finder(lambda event: event.event_id == 3), finder(lambda event: 2)

    def peer(event):
        return other(event.position).hit_label, 0.5

    wanted = Wanted(has_figures=True, peers={"a & b": peer}, name="mine <1>")
    report = report_events(ours, EVENTS, TUNE, wanted)
    for name in FILES:
        (tmp_path / name).write_bytes(PICTURE)
    settings = {"rfactor": 0.01, "event_start": ["3", "9"], "noise_ratio": None, "pre_only": False}
    files = [tmp_path / name for name in FILES]
    return write_report_page(tmp_path / "report.html", report, settings, files, ["no event.png: x"])


def words(page):
    """The text of the page, one line for each row of a table."""
    text = re.sub(r"<style>.*?</style>", "", page.read_text(), flags=re.DOTALL)
    text = re.sub(r"</tr>|<br>|</p>|</h\d>|</div>|</pre>", "\n", text)
    text = re.sub(r"</t[dh]>", " | ", text)
    return html.unescape(re.sub(r"<[^>]*>", "", text)).replace("\xa0", " ")


def test_the_numbers_are_those_of_the_events(page):
    """By hand: 19 of 20 particles and 12 of 20; four of 23 tracks, and four of 16, are noise."""
    told = words(page)
    for line in (
        "mean ± spread over events | mine <1> | a & b |",
        "particles found, all events | 0.950 +0.031 -0.074 | 0.600 +0.102 -0.112 |",
        "fake rate, all events | 0.174 +0.092 -0.065 | 0.250 +0.121 -0.091 |",
        "efficiency | 0.950 ± 0.100 | 0.600 ± 0.000 |",
        "total ms | 4.0 ± 0.0 | 500.0 ± 0.0 |",
        "GNN | 3.0 ± 0.0 | 75% |",
        "event 3 | 1 | 5 |",
        "events | 4 (3-5, 9), ",
        "event_start | 3, 9 |",
        "at least 4 hits",
        "no event.png: x",
    ):
        assert line in told, line
    assert "noise_ratio" not in told and "pre_only" not in told
    assert re.search(r"vertex radius \(mm\) \| < 1 \| 100% \| 0\.950", told)


def test_all_is_inside_but_the_pages_of_events(page):
    text = page.read_text()
    assert (
        re.findall(r'<img[^>]* src="(data:image/png;base64,)', text)
        == ["data:image/png;base64,"] * 2
    )
    assert base64.b64encode(PICTURE).decode() in text
    assert re.findall(r'href="([^"]*)"', text) == ["event000000003.html"]
    assert not re.search(r"<script|<link|@import|url\(|https?:", text)


def test_without_truth_there_are_sizes_and_times(tmp_path):
    blind = [event._replace(has_truth=False) for event in EVENTS]
    report = report_events(finder(lambda event: 0), blind, TUNE, Wanted())
    told = words(write_report_page(tmp_path / "report.html", report, {}))
    assert "None of the events has truth" in told
    assert "total | 4.0 ± 0.0 | 100% |" in told


def test_no_events(tmp_path):
    report = report_events(finder(lambda event: 0), [], TUNE, Wanted())
    assert "No event was timed" in words(write_report_page(tmp_path / "report.html", report, {}))


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_phone_shows_it_without_scrolling_sideways(page, tmp_path):
    """The page is shown as wide as a phone, inside another that asks it how wide it is."""
    root = "document.documentElement"
    told = f"parent.postMessage({root}.scrollWidth - {root}.clientWidth, '*')"
    page.write_text(page.read_text().replace("</body>", f"<script>{told}</script></body>"))
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<script>onmessage = message => { document.title = `over by ${message.data}` }</script>"
        f'<iframe src="{page.name}" style="border:0" width=360 height=800></iframe>'
    )
    done = subprocess.run(
        [
            "chromium",
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000",
            "--enable-logging=stderr",
            "--dump-dom",
            outer.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "<title>over by 0</title>" in done.stdout
    assert not re.search(r"CONSOLE.*([Ee]rror|Uncaught)", done.stderr)
