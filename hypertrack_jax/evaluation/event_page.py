"""Host side: an event as one HTML file to rotate and zoom; needs the extra `plots`.

The file holds plotly's script, so it opens without a network. plotly is imported when a page is
written, so everything else works without it.
"""

import base64
import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.evaluation.metrics import NO_CLUSTER, match_tracks
from hypertrack_jax.evaluation.plots import MISTAKE_COLOUR, NOISE_COLOUR, TRACK_COLOURS
from hypertrack_jax.evaluation.track_shapes import track_shapes
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.files import replace_file

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
else:
    # The tests check annotations at run time, where plotly may be missing.
    Figure = Any

LOST_COLOUR = "#EE7733"
TRUE_COLOUR = "#555555"
LARGE = 20_000
"""Hits. The planes of a larger event are too crowded for lines and show only points. Its view in
space is drawn on request: without a graphics card it takes longer than all the rest."""
PT_BANDS = (0.5, 1.5)
"""GeV; borders between the bands of pT that can be switched on and off."""
MAX_PROMPT = 3.0
"""mm from the beam line. Particles that begin beyond are displaced."""
NO_GROUP = 6
"""Group of hits in no track, or of no particle: they have no momentum and no origin."""
_SCRIPT = Path(__file__).with_suffix(".js")
_STYLE = """body { margin: 0; overflow: hidden; font: 14px sans-serif; }
#choice { padding: 6px 12px; height: 20px; } #choice label { margin: 0 10px 0 4px; }
#words { display: none; position: fixed; z-index: 9;
  padding: 4px 8px; white-space: pre; background: #fffffff0; border: 1px solid #888; }
button { position: fixed; z-index: 9; left: 25vw; top: 45vh; padding: 8px 16px; font: inherit; }"""
_GAP = -1
"""Stands between two tracks of a layer: the line is not drawn there."""


class Layer(NamedTuple):
    """What one entry of the legend switches on and off, or the part of it that has one colour."""

    name: str
    colour: str
    hits: Int[np.ndarray, " place"]
    """Hits to draw, of each track from the origin outwards; `_GAP` between tracks."""
    mode: str = "lines+markers"
    symbol: str = "circle"
    dash: str = "solid"
    is_shown: bool = True
    """Whether it is on when the page opens."""
    by_particle: bool = False
    """Whether hits are switched on and off with their particles, not with their tracks."""


def write_event_page(
    path: Path,
    event: Event,
    hit_label: ArrayLike,
    membership: Float[np.ndarray, " hit"] | None = None,
    min_hits: int = 4,
) -> Path:
    """Writes an event as a page: hits and tracks in space, in the x-y and in the r-z plane.

    Args:
      path: the file to write, .html.
      event: the event. Without truth all tracks that were found have one status.
      hit_label: track of each hit, as in `metrics.track_scores`.
      membership: probability of each hit to belong to its track, see `Tracks`.
      min_hits: as in `metrics.match_tracks`.

    Returns:
      `path`.

    Raises:
      ImportError: plotly is missing.
      UserError: the labels are not one integer per hit.
      OSError: the file cannot be written.
    """
    figure, layers = event_figure(event, hit_label, min_hits)
    script = _SCRIPT.read_text()
    content = json.dumps(_content(event, np.asarray(hit_label), membership, layers, min_hits))
    page = figure.to_html(
        include_plotlyjs=True,
        # Leaves room for the checkboxes above.
        default_height="calc(100vh - 34px)",
        config={"responsive": True, "displaylogo": False, "scrollZoom": True},
        post_script=f"{{ const page = {content};\n{script} }}",
    )
    title = f"<head><title>Event {event.event_id}</title><style>{_STYLE}</style>"
    with replace_file(path) as file:
        file.write(page.replace("<head>", title, 1).encode())
    return path


def page_name(event_id: int) -> str:
    """File of the page of an event, such as `event000001000.html`."""
    return f"event{event_id:09d}.html"


def event_figure(
    event: Event, hit_label: ArrayLike, min_hits: int = 4
) -> tuple["Figure", list[Layer]]:
    """The figure of the page; arguments and errors are those of `write_event_page`.

    Returns:
      The figure, and what it draws: the `meta` of a trace is the number of its layer.
    """
    try:
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingPackageError(
            "an event page needs plotly, which is not installed; "
            "run pip install 'hypertrack-jax[plots]'."
        ) from error
    label = whole_labels(event, hit_label)
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"type": "scene", "rowspan": 2}, {"type": "xy"}], [None, {"type": "xy"}]],
        column_widths=[0.62, 0.38],
        horizontal_spacing=0.06,
        vertical_spacing=0.1,
    )
    layers, title = _layers(event, label, min_hits)
    named = set()
    for number, layer in enumerate(layers):
        for trace, row, col in _traces(number, layer, event, is_first=layer.name not in named):
            figure.add_trace(trace, row=row, col=col)
        named.add(layer.name)
    figure.update_layout(
        title=html.escape(title),
        template="plotly_white",
        legend={"orientation": "h", "y": -0.02, "yanchor": "top", "itemsizing": "constant"},
        margin={"l": 10, "r": 20, "t": 40, "b": 60},
        scene={
            "xaxis_title": "z [mm]",
            "yaxis_title": "x [mm]",
            "zaxis_title": "y [mm]",
            "aspectmode": "manual",
            "aspectratio": {"x": 1.6, "y": 0.9, "z": 0.9},
            "camera": {"eye": {"x": 0.9, "y": 1.9, "z": 0.6}},
        },
    )
    figure.update_xaxes(title_text="x [mm]", row=1, col=2)
    figure.update_yaxes(title_text="y [mm]", row=1, col=2, scaleanchor="x", scaleratio=1)
    figure.update_xaxes(title_text="z [mm]", row=2, col=2)
    figure.update_yaxes(title_text="r [mm]", row=2, col=2)
    return figure, layers


def whole_labels(event: Event, hit_label: ArrayLike) -> Int[np.ndarray, " hit"]:
    """The labels as an array, for an event with or without truth.

    Raises:
      UserError: they are not one integer per hit.
    """
    label = np.asarray(hit_label)
    if label.shape != event.hit_id.shape or label.dtype.kind not in "iu":
        raise UserError(
            f"the labels of event {event.event_id} have shape {label.shape} and type "
            f"{label.dtype}; expected an integer for each hit, shape {event.hit_id.shape}."
        )
    return label


def _layers(event: Event, label: Int[np.ndarray, " hit"], min_hits: int) -> tuple[list[Layer], str]:
    """What there is to draw, and what to write above it."""
    in_track = label >= 0
    num_hits, num_tracks = len(label), len(np.unique(label[in_track]))
    heading = f"Event {event.event_id}: {num_hits} hits, {num_tracks} tracks found"
    if not event.has_truth:
        rest = Layer("hit in no track", NOISE_COLOUR, np.flatnonzero(~in_track), "markers")
        return [rest, *_coloured("found track", event, np.where(in_track, label, NOISE))], heading
    matching = match_tracks(event, label, min_hits)
    in_track, truth = matching.hit_cluster != NO_CLUSTER, event.hit_particle
    found = np.full(num_hits, NOISE, np.int64)
    found[in_track] = matching.particle[matching.hit_cluster[in_track]]
    is_matched = in_track & (found != NOISE)
    is_wanted = matching.particle_size >= min_hits
    is_found = np.zeros(len(is_wanted), bool)
    is_found[matching.particle[matching.particle != NOISE]] = True
    # The last entry serves hits of no particle, whose index is -1.
    is_lost = np.append(is_wanted & ~is_found, False)[truth]
    is_true = np.append(is_wanted & is_found, False)[truth]
    noise = np.flatnonzero(~in_track & ~is_lost & ~is_true)
    wrong = np.flatnonzero(is_matched & (found != truth))
    missed = np.flatnonzero(is_true & ~is_matched)
    num_found, num_wanted = int(is_found.sum()), int(is_wanted.sum())
    heading += (
        f", {num_found} matched, {num_tracks - num_found} fake; "
        f"{num_wanted - num_found} of {num_wanted} particles lost"
    )
    fake = np.where(in_track & ~is_matched, label, NOISE)
    lost = _along(event, np.where(is_lost, truth, NOISE))
    true = _along(event, np.where(is_true, truth, NOISE))
    layers = [
        Layer("noise or short track", NOISE_COLOUR, noise, "markers", by_particle=True),
        *_coloured("matched track", event, np.where(is_matched, label, NOISE)),
        Layer("fake track", MISTAKE_COLOUR, _along(event, fake), dash="dash"),
        Layer("lost particle", LOST_COLOUR, lost, dash="dot", by_particle=True),
        Layer("hit in a wrong track", MISTAKE_COLOUR, wrong, "markers", "x"),
        Layer("missed hit", LOST_COLOUR, missed, "markers", "circle-open", by_particle=True),
        Layer(
            "true track of a match", TRUE_COLOUR, true, "lines", is_shown=False, by_particle=True
        ),
    ]
    return layers, heading


def _coloured(name: str, event: Event, group: Int[np.ndarray, " hit"]) -> Iterator[Layer]:
    """Tracks in several colours; neighbours in azimuth have different ones."""
    chosen = group != NOISE
    numbers, member = np.unique(group[chosen], return_inverse=True)
    along_x, along_y = (
        np.bincount(member, event.position[chosen, axis], len(numbers)) for axis in (0, 1)
    )
    colour = np.full(len(group), NOISE)
    rank = np.argsort(np.argsort(np.arctan2(along_y, along_x)))
    colour[chosen] = rank[member] % len(TRACK_COLOURS)
    for number, shade in enumerate(TRACK_COLOURS):
        yield Layer(name, shade, _along(event, np.where(colour == number, group, NOISE)))


def _along(event: Event, group: Int[np.ndarray, " hit"]) -> Int[np.ndarray, " place"]:
    """The hits of each group from the origin outwards, with gaps between the groups."""
    order = np.lexsort([np.linalg.norm(event.position, axis=1), group])
    order = order[group[order] != NOISE]
    return np.insert(order, np.flatnonzero(np.diff(group[order])) + 1, _GAP)


def _content(
    event: Event,
    label: Int[np.ndarray, " hit"],
    membership: Float[np.ndarray, " hit"] | None,
    layers: Sequence[Layer],
    min_hits: int,
) -> dict[str, Any]:
    """What the script of the page takes, see `event_page.js`."""
    particles = event.particles
    # Half the size, where all fit.
    kind = np.int32 if np.abs(event.hit_id).max(initial=0) < 2**31 else np.int64
    hits = {
        "hit_id": event.hit_id.astype(kind),
        "particle": event.hit_particle,
        "track": label.astype(np.int32),
    }
    if membership is not None:
        hits["membership"] = membership.astype(np.float32)
    of_track, of_particle = _groups(event, label, min_hits)
    shown = []
    for layer in layers:
        group = np.append(of_particle if layer.by_particle else of_track, NO_GROUP)[layer.hits]
        shown.append({"hit": layer.hits.astype(np.int32), "group": group.astype(np.int8)})
    low, high = PT_BANDS
    return {
        "hits": _packed(hits),
        "particles": _packed(
            {
                "particle_id": particles.particle_id.astype(np.int64),
                "pt": np.hypot(particles.momentum[:, 0], particles.momentum[:, 1]),
                "radius": np.hypot(particles.vertex[:, 0], particles.vertex[:, 1]),
            }
        ),
        "layers": [_packed(columns) for columns in shown],
        "modes": [layer.mode.removesuffix("+markers") for layer in layers],
        "choices": [
            ["pT in GeV:", None],
            [f"below {low:g}", [0, 1]],
            [f"to {high:g}", [2, 3]],
            ["above", [4, 5]],
            ["origin:", None],
            [f"within {MAX_PROMPT:g} mm of the beam line", [0, 2, 4]],
            ["displaced", [1, 3, 5]],
        ],
        "hasTruth": event.has_truth,
        "isLarge": len(label) > LARGE,
    }


def _groups(
    event: Event, label: Int[np.ndarray, " hit"], min_hits: int
) -> tuple[Int[np.ndarray, " hit"], Int[np.ndarray, " hit"]]:
    """The group of each hit's track, and that of its particle.

    A group is twice the band of pT, plus 1 if displaced. A track has the group of the particle that
    it matches, and a fake that of its `track_shapes`.
    """
    momentum, vertex = event.particles.momentum, event.particles.vertex
    of_particles = _group(np.hypot(*momentum[:, :2].T), np.hypot(*vertex[:, :2].T))
    _, cluster = np.unique(np.where(label >= 0, label, NO_CLUSTER), return_inverse=True)
    # The first cluster is NO_CLUSTER if any hit is outside tracks; its number becomes -1.
    cluster = cluster - int((label < 0).any())
    shapes = track_shapes(event.position, cluster)
    of_tracks = _group(shapes["pT (GeV)"], shapes["impact parameter (mm)"])
    if event.has_truth:
        particle = match_tracks(event, label, min_hits).particle
        of_tracks = np.where(
            particle != NOISE, np.append(of_particles, NO_GROUP)[particle], of_tracks
        )
    return (
        np.append(of_tracks, NO_GROUP)[cluster],
        np.append(of_particles, NO_GROUP)[event.hit_particle],
    )


def _group(pt: Float[np.ndarray, " one"], radius: Float[np.ndarray, " one"]) -> np.ndarray:
    return 2 * np.searchsorted(PT_BANDS, pt, side="right") + (radius > MAX_PROMPT)


def _packed(columns: dict[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """Columns of numbers as plotly writes them, base64 of their bytes."""
    return {
        name: {
            "dtype": f"{column.dtype.kind}{column.dtype.itemsize}",
            "bdata": base64.b64encode(column.tobytes()).decode(),
        }
        for name, column in columns.items()
    }


def _traces(
    number: int, layer: Layer, event: Event, is_first: bool
) -> Iterator[tuple[Any, int, int]]:
    """A layer in both planes and in space, and the panel of each."""
    from plotly.graph_objects import Scatter3d, Scattergl

    x, y, z = np.append(event.position, np.full((1, 3), np.nan, np.float32), axis=0)[layer.hits].T
    size = float(np.clip(80 / np.sqrt(len(event.position)), 1, 3))
    is_large = len(event.position) > LARGE
    is_plain = is_large or layer.symbol == "circle"
    common: dict[str, Any] = {
        "name": layer.name,
        "legendgroup": layer.name,
        "meta": number,
        "visible": True if layer.is_shown else "legendonly",
        "line": {"color": layer.colour, "dash": layer.dash, "width": 1.5},
        "marker": {
            "color": layer.colour,
            "size": size if is_plain else 2 * size,
            "symbol": "circle" if is_plain else layer.symbol,
        },
        # The script of the page shows words of its own beside the pointer.
        "hoverinfo": "skip" if layer.mode == "lines" else "none",
    }
    mode = layer.mode
    if is_large and mode == "lines+markers":
        mode = "markers"
    yield Scattergl(x=x, y=y, mode=mode, showlegend=is_first and is_large, **common), 1, 2
    yield Scattergl(x=z, y=np.hypot(x, y), mode=mode, showlegend=False, **common), 2, 2
    if not is_large:
        yield Scatter3d(x=z, y=x, z=y, mode=mode, showlegend=is_first, **common), 1, 1
