"""Host side: an event as one HTML file to turn and to zoom; needs the extra `plots`.

The file holds plotly's script, so it opens without a network. plotly is imported when a page is
written, so everything else works without it.
"""

import html
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.evaluation.metrics import NO_CLUSTER, match_tracks
from hypertrack_jax.evaluation.plots import MISTAKE_COLOUR, NOISE_COLOUR, TRACK_COLOURS
from hypertrack_jax.events.event import NOISE, Event
from hypertrack_jax.files import replace_file

if TYPE_CHECKING:
    from plotly.graph_objects import Figure
else:
    # The tests check annotations at run time, where plotly may be missing.
    Figure = Any

LOST_COLOUR = "#EE7733"
TRUE_COLOUR = "#555555"
HOVER = (
    "hit %{customdata[0]:d}<br>particle %{customdata[1]:d}<br>track %{customdata[2]:d}"
    "<br>membership %{customdata[3]:.2f}"
)
LARGE = 30_000
"""Hits. The planes of a larger event are too crowded for lines: they have points alone, which tell
nothing, and no true tracks. The file is smaller by a third and opens in less time."""
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
      membership: how sure each hit is of its track, as `Tracks` has it.
      min_hits: as in `metrics.match_tracks`.

    Returns:
      `path`.

    Raises:
      ImportError: plotly is missing.
      UserError: the labels are not one integer per hit.
      OSError: the file cannot be written.
    """
    figure = event_figure(event, hit_label, membership, min_hits)
    page = figure.to_html(
        include_plotlyjs=True,
        default_height="100vh",
        config={"responsive": True, "displaylogo": False, "scrollZoom": True},
    )
    title = f"<head><title>Event {event.event_id}</title>"
    with replace_file(path) as file:
        file.write(page.replace("<head>", title, 1).encode())
    return path


def event_figure(
    event: Event,
    hit_label: ArrayLike,
    membership: Float[np.ndarray, " hit"] | None = None,
    min_hits: int = 4,
) -> "Figure":
    """The figure of the page; arguments and errors are those of `write_event_page`."""
    try:
        from plotly.subplots import make_subplots
    except ImportError as error:
        raise MissingPackageError(
            "an event page needs plotly, which is not installed; "
            "run pip install 'hypertrack-jax[plots]'."
        ) from error
    label = np.asarray(hit_label)
    if label.shape != event.hit_id.shape or label.dtype.kind not in "iu":
        raise UserError(
            f"the labels of event {event.event_id} have shape {label.shape} and type "
            f"{label.dtype}; expected an integer for each hit, shape {event.hit_id.shape}."
        )
    figure = make_subplots(
        rows=2,
        cols=2,
        specs=[[{"type": "scene", "rowspan": 2}, {"type": "xy"}], [None, {"type": "xy"}]],
        column_widths=[0.62, 0.38],
        horizontal_spacing=0.06,
        vertical_spacing=0.1,
    )
    layers, title = _layers(event, label, min_hits)
    columns = _columns(event, label, membership)
    named = set()
    for layer in layers:
        for trace, row, col in _traces(layer, event, columns, is_first=layer.name not in named):
            figure.add_trace(trace, row=row, col=col)
        named.add(layer.name)
    figure.update_layout(
        title=html.escape(title),
        template="plotly_white",
        legend={"orientation": "h", "y": -0.02, "yanchor": "top", "itemsizing": "constant"},
        margin={"l": 10, "r": 20, "t": 50, "b": 60},
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
    return figure


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
    layers = [
        Layer("noise or short track", NOISE_COLOUR, noise, "markers"),
        *_coloured("matched track", event, np.where(is_matched, label, NOISE)),
        Layer("fake track", MISTAKE_COLOUR, _along(event, fake), dash="dash"),
        Layer(
            "lost particle", LOST_COLOUR, _along(event, np.where(is_lost, truth, NOISE)), dash="dot"
        ),
        Layer("hit in a wrong track", MISTAKE_COLOUR, wrong, "markers", "x"),
        Layer("missed hit", LOST_COLOUR, missed, "markers", "circle-open"),
        Layer(
            "true track of a match",
            TRUE_COLOUR,
            _along(event, np.where(is_true, truth, NOISE)),
            "lines",
            is_shown=False,
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


def _columns(
    event: Event, label: Int[np.ndarray, " hit"], membership: Float[np.ndarray, " hit"] | None
) -> Float[np.ndarray, "hit_and_gap 4"]:
    """What the pointer tells of each hit, and of a gap."""
    sure = np.full(len(label), np.nan) if membership is None else membership
    table = np.stack([event.hit_id, event.hit_particle, label, sure], axis=1)
    # Half the size, where no number is rounded.
    kind = np.float32 if np.abs(table[:, :3]).max(initial=0) < 2**24 else np.float64
    return np.append(table, np.full((1, 4), np.nan), axis=0).astype(kind)


def _traces(
    layer: Layer, event: Event, columns: Float[np.ndarray, "hit_and_gap 4"], is_first: bool
) -> Iterator[tuple[Any, int, int]]:
    """A layer in space and in both planes, and the panel of each."""
    from plotly.graph_objects import Scatter3d, Scattergl

    x, y, z = np.append(event.position, np.full((1, 3), np.nan, np.float32), axis=0)[layer.hits].T
    size = float(np.clip(80 / np.sqrt(len(event.position)), 1, 3))
    is_large = len(event.position) > LARGE
    factor = 2 if layer.symbol != "circle" and not is_large else 1
    common: dict[str, Any] = {
        "name": layer.name,
        "legendgroup": layer.name,
        "mode": layer.mode,
        "visible": True if layer.is_shown else "legendonly",
        "line": {"color": layer.colour, "dash": layer.dash, "width": 1.5},
        "marker": {
            "color": layer.colour,
            "size": factor * size,
            "symbol": layer.symbol,
        },
        "customdata": columns[layer.hits],
        "hovertemplate": HOVER,
    }
    if layer.mode == "lines":
        _silence(common)
    yield Scatter3d(x=z, y=x, z=y, showlegend=is_first, **common), 1, 1
    if is_large:
        if layer.mode == "lines":
            return
        _silence(common)
        common["mode"] = "markers"
    yield Scattergl(x=x, y=y, showlegend=False, **common), 1, 2
    yield Scattergl(x=z, y=np.hypot(x, y), showlegend=False, **common), 2, 2


def _silence(trace: dict[str, Any]) -> None:
    """Has a trace tell nothing of its hits."""
    del trace["customdata"], trace["hovertemplate"]
    trace["hoverinfo"] = "skip"
