"""Host side: the report on reconstructed events as one HTML file, for a screen, a phone and paper.

The file holds its figures and its style, and opens without a network. Only the pages of events,
which lie beside it, are links.
"""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

import numpy as np

from hypertrack_jax.evaluation.efficiency import BinnedRatio, bin_labels, wilson_interval
from hypertrack_jax.evaluation.event_page import page_name
from hypertrack_jax.evaluation.inference_report import InferenceReport, Program
from hypertrack_jax.evaluation.report import EVENT_ID, Row, event_table
from hypertrack_jax.evaluation.tables import DASH, mean_and_spread
from hypertrack_jax.files import replace_file
from hypertrack_jax.tunes.tune import Tune

TRACKS = ("efficiency", "purity", "DMS", "TrackML", "hit efficiency", "hit purity")
"""Scores of tracks, as the rows name them."""
EDGES = ("VD TPR", "VD FPR", "VD purity", "GNN TPR", "GNN FPR", "GNN AUC")
"""Scores of candidate edges."""
DEFINITIONS = {
    "track": "A set of hits that the program found. No hit is in two tracks.",
    "match": "A track matches a particle when each has more than half of its hits in the other, "
    "both with at least {min_hits} hits.",
    "efficiency": "The share of particles with at least {min_hits} hits that a track matches.",
    "purity": "The share of tracks that match a particle; the fake rate is the rest.",
    "hit efficiency, hit purity": "The share of a matched particle's hits that are in its track, "
    "and the share of such a track's hits that are the particle's.",
    "DMS": "The weight of the hits that matched tracks share with their particles, over the weight "
    "of the hits of particles with at least {min_hits} hits.",
    "TrackML": "The score of the TrackML challenge (arXiv:1904.06778).",
    "VD, GNN": "The candidate edges of Voxel-Dynamics, and the scored ones above the threshold of "
    "{edge_threshold:g}: share of the true edges kept (TPR), of the false ones (FPR), and of true "
    "ones among the kept (purity). AUC: probability that a true edge scores above a false one.",
    "mean ± spread": "Mean and standard deviation over events, with n - 1. What has an interval is "
    "counted over all events; the interval is Wilson's, at one standard deviation.",
    "pT, eta, impact parameter of a track": "By the circle through its first, middle and last hit "
    "as if in 2 T: a fake has no particle that could tell them.",
}
WIDE = {
    "efficiency.png": "Efficiency against what a particle is.",
    "fake_rate.png": "Fake rate against what a track looks like.",
    "event.png": "The first event. True tracks left, found tracks right; mistakes are red.",
}
"""Captions of figures with several panels."""
SMALL = {
    "roc.png": "Edges: ROC curve of the edge predictor, of the first events.",
    "edge_scores.png": "Edges: what true and false ones score.",
}
"""Captions of the other figures."""
STYLE = """
:root { color-scheme: light; --line: #ccc; --quiet: #666; --bar: #332288; }
body { font: 16px/1.5 "Helvetica Neue", Helvetica, Arial, sans-serif; color: #111;
  max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 2px solid #111; }
p, figcaption, .quiet { color: var(--quiet); } a { color: #332288; }
.scroll, figure { overflow-x: auto; margin: 0 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
.words td + td { white-space: normal; overflow-wrap: anywhere; }
figure { break-inside: avoid; } figure img { max-width: 100%; height: auto; }
.big { display: flex; flex-wrap: wrap; gap: .5rem 2.5rem; margin: 1rem 0; }
.big b { display: block; font-size: 1.9rem; line-height: 1.2; } .big span { color: var(--quiet); }
.bar { display: inline-block; height: .8rem; background: var(--bar); }
.scroll td:has(.bar) { text-align: left; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 0 2rem; }
dt { font-weight: bold; } dd { margin: 0 0 .4rem; } pre { overflow-x: auto; font-size: .8rem; }
@media (max-width: 40rem) { body { font-size: 15px; } .big b { font-size: 1.3rem; }
  .scroll th, .scroll td { white-space: normal; font-size: .85rem; padding-right: .4rem; }
  .wide img { max-width: none; width: 36rem; } }
@page { margin: 15mm; }
@media print { body { max-width: none; font-size: 10pt; padding: 0; }
  figure img { max-height: 11cm; } h2 { break-after: avoid; }
  tr, dd { break-inside: avoid; } pre { white-space: pre-wrap; font-size: 6pt; }
  a { color: inherit; } .bar, img { print-color-adjust: exact; } }
"""


def write_report_page(
    path: Path,
    report: InferenceReport,
    settings: Mapping[str, object],
    files: Sequence[Path] = (),
    missing: Sequence[str] = (),
) -> Path:
    """Writes the report as a page.

    Args:
      path: the file to write, .html.
      report: the report.
      settings: what a reader needs to repeat the measurement.
      files: figures and pages, as `draw_figures` gives them. Figures are embedded; pages are linked
        and have to lie beside the file.
      missing: sentences on figures that could not be drawn.

    Returns:
      `path`.

    Raises:
      OSError: a figure cannot be read, or the file cannot be written.
    """
    name, beside = report.programs[0].name, {file.name: file for file in files}
    parts = [
        f"<h1>Tracks by {html.escape(name)}</h1>",
        _headline(report),
        '<div class="two"><section><h2>Model</h2>',
        _model(report.judged_by),
        "</section><section><h2>Data and settings</h2>",
        _words([("events", _events(report.rows)), *settings.items()]),
        "</section></div><h2>Scores</h2>",
        _scores(report),
        *map(_paragraph, report.notes),
        _figures(WIDE, beside, "wide"),
        _figures(SMALL, beside, "two"),
        *map(_paragraph, missing),
        _ratios(report.programs),
        "<h2>Time per stage</h2>",
        _times(report.rows),
        "<h2>Largest losses</h2>",
        _losses(report, beside),
        "<h2>Definitions</h2>",
        _definitions(report.judged_by),
        "<h2>Events</h2>",
        *map(_paragraph, report.problems),
        f"<pre>{html.escape(event_table(report.rows, width=110))}</pre>",
    ]
    head = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Tracks by {html.escape(name)}</title><style>{STYLE}</style></head><body>\n"
    )
    with replace_file(path) as file:
        file.write((head + "\n".join(filter(None, parts)) + "\n</body></html>\n").encode())
    return path


def _headline(report: InferenceReport) -> str:
    """The few numbers that most readers want."""
    ours = report.programs[0]
    times = [float(time) for row in report.rows if (time := row.get("total ms")) is not None]
    told = {"events": str(len(report.rows))}
    if ours.rows:
        told["of the particles found"] = _whole(ours.efficiency)
        told["of the tracks are fakes"] = _whole(ours.fakes)
    if times:
        told["for an event, median"] = f"{np.median(times):.3g} ms"
    cells = [f"<div><b>{value}</b><span>{name}</span></div>" for name, value in told.items()]
    return f'<div class="big">{"".join(cells)}</div>'


def _model(tune: Tune) -> str:
    """What the tune chooses, in words."""
    voxdyn, cluster, network = tune.voxdyn, tune.cluster, asdict(tune.network)
    edge_filter = tune.edge_filter
    return _words(
        [
            ("tune", tune.name),
            (
                "graph",
                f"Voxel-Dynamics, {voxdyn.ncell} cells, {voxdyn.node2node}, "
                f"min_count {voxdyn.min_count:g}",
            ),
            (
                "filter",
                edge_filter.filter
                + (", with the shape of clusters" if edge_filter.cells != "none" else ""),
            ),
            (
                "edge predictor",
                f"{network['num_layers']} layers ({network['convolution']}), width "
                f"{network['latent_dim']}, edge features: {network['edge_features']}",
            ),
            ("tracks", f"{cluster.cluster}, edge threshold {cluster.edge_threshold:g}"),
            ("true edges", tune.voxdyn.label_topology),
        ]
    )


def _events(rows: Sequence[Row]) -> str:
    """How many events, which, and how large."""
    if not rows:
        return "none"
    numbers = sorted(int(row[EVENT_ID] or 0) for row in rows)
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    which = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    some = ", ".join(which[:6]) + (", ..." if which[6:] else "")
    hits = mean_and_spread([row["hits"] for row in rows], 0)
    return f"{len(rows)} ({some}), {hits} hits each"


def _scores(report: InferenceReport) -> str:
    """Scores of the tracks, then of the edges; one column for each program."""
    programs = [program for program in report.programs if program.rows]
    if not programs:
        return _paragraph("None of the events has truth, so there are no scores.")
    lines = [
        ["particles found, all events", *(_whole(program.efficiency) for program in programs)],
        ["fake rate, all events", *(_whole(program.fakes) for program in programs)],
    ]
    for name in (*TRACKS, *EDGES, "total ms"):
        digits = 1 if name == "total ms" else 4 if name in EDGES else 3
        columns = [[row.get(name) for row in program.rows] for program in programs]
        lines.append([name, *(mean_and_spread(column, digits) for column in columns)])
    return _table(
        ["mean ± spread over events", *(html.escape(program.name) for program in programs)], lines
    )


def _whole(ratios: Mapping[str, BinnedRatio]) -> str:
    """A ratio over all events, with its interval."""
    num_passed, num_all = (int(number.sum()) for number in ratios["hits"])
    return _ratio(num_passed, num_all)


def _ratio(num_passed: int, num_all: int) -> str:
    if not num_all:
        return DASH
    share = num_passed / num_all
    low, high = wilson_interval(num_passed, num_all)
    return f"{share:.3f} <small>+{high - share:.3f} -{share - low:.3f}</small>"


def _ratios(programs: Sequence[Program]) -> str:
    """Efficiency and fake rate in bins, as numbers."""
    tables = []
    for program in programs:
        for what, ratios in (("efficiency", program.efficiency), ("fake rate", program.fakes)):
            lines = [
                [f"{name}, {html.escape(label)}", str(num_all), _ratio(num_passed, num_all)]
                for name, of in ratios.items()
                for label, num_passed, num_all in zip(
                    bin_labels(name), of.num_passed.tolist(), of.num_all.tolist(), strict=True
                )
                if num_all
            ]
            number = "particles" if what == "efficiency" else "tracks"
            heading = [html.escape(program.name), number, what]
            tables.append(f"<section>{_table(heading, lines)}</section>" if lines else "")
    inside = "".join(tables)
    summary = "<summary>Efficiency and fake rate in numbers</summary>"
    return f'<details>{summary}<div class="two">{inside}</div></details>' if inside else ""


def _times(rows: Sequence[Row]) -> str:
    """Mean milliseconds of each stage, and bars of their shares."""
    names = dict.fromkeys(name for row in rows for name in row if name.endswith(" ms"))
    values = {
        name: [float(time) for row in rows if (time := row.get(name)) is not None] for name in names
    }
    total = np.mean(values.get("total ms") or [0.0])
    lines = []
    for name, column in values.items():
        share = float(np.mean(column) / total) if total and column else 0.0
        bar = f'<span class="bar" style="width:{12 * share:.2f}rem"></span>'
        lines.append([name.removesuffix(" ms"), mean_and_spread(column, 1), f"{share:.0%}", bar])
    heading = ["stage", "ms", "share", ""]
    return _table(heading, lines) if lines else _paragraph("No event was timed.")


def _losses(report: InferenceReport, beside: Mapping[str, Path]) -> str:
    """The events with the most lost particles, and which particles these are."""
    ours = report.programs[0]
    if not ours.rows:
        return _paragraph("Without truth nothing can be said of them.")
    lines = []
    for loss in report.losses:
        page, number = page_name(loss.event.event_id), str(loss.event.event_id)
        link = f'<a href="{page}">event {number}</a>' if page in beside else f"event {number}"
        lines.append([link, str(loss.num_lost), str(loss.num_particles)])
    events = _table(["event", "particles lost", "of"], lines) if lines else ""
    lost = []
    for name, of in ours.efficiency.items():
        missed = of.num_all - of.num_passed
        place = int(missed.argmax())
        if missed[place]:
            share = f"{missed[place] / missed.sum():.0%}"
            num_passed, num_all = int(of.num_passed[place]), int(of.num_all[place])
            label = html.escape(bin_labels(name)[place])
            lost.append([name, label, share, _ratio(num_passed, num_all)])
    heading = ["most lost by", "in the bin", "of all that are lost", "efficiency there"]
    return events + (_table(heading, lost) if lost else _paragraph("No particle is lost."))


def _definitions(tune: Tune) -> str:
    cluster = tune.cluster
    terms = [
        f"<dt>{html.escape(term)}</dt><dd>"
        + html.escape(text.format(min_hits=cluster.min_hits, edge_threshold=cluster.edge_threshold))
        + "</dd>"
        for term, text in DEFINITIONS.items()
    ]
    return f"<dl>{''.join(terms)}</dl>"


def _figures(captions: Mapping[str, str], beside: Mapping[str, Path], kind: str) -> str:
    """Those figures that were drawn, inside the page."""
    shown = []
    for name, caption in captions.items():
        if name in beside:
            picture = base64.b64encode(beside[name].read_bytes()).decode()
            text = html.escape(caption)
            shown.append(
                f'<figure><img alt="{text}" src="data:image/png;base64,{picture}">'
                f"<figcaption>{text}</figcaption></figure>"
            )
    return f'<div class="{kind}">{"".join(shown)}</div>' if shown else ""


def _words(pairs: Iterable[tuple[str, object]]) -> str:
    """A table of names and what they are; settings without a value are left out."""
    lines = [
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(_plain(value))}</td></tr>"
        for name, value in pairs
        if value is not None and value is not False and value != []
    ]
    return f'<table class="words">{"".join(lines)}</table>'


def _plain(value: object) -> str:
    """A setting as a user types it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "yes" if value is True else str(value)


def _table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table whose cells are HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in heading)
    body = "".join(
        f"<tr>{''.join(f'<td>{cell or DASH}</td>' for cell in line)}</tr>" for line in lines
    )
    # A number and its spread stay in one line.
    inside = f"<tr>{head}</tr>{body}".replace(" ± ", "&nbsp;±&nbsp;")
    return f'<div class="scroll"><table>{inside}</table></div>'


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"
