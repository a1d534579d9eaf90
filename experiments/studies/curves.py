"""Host side: the scalars that a training has logged, and their curves."""

import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from tensorboardX.proto import event_pb2

from hypertrack_jax.evaluation.plots import TRACK_COLOURS, saved_figure

PANELS = {
    "train/auc": "edge AUC",
    "train/edge_contrastive": "contrastive edge loss",
    "train/cluster_bce": "membership loss",
    "train/cluster_contrastive": "set loss",
}
"""Scalars that are drawn."""
_SMOOTHING = 20
"""Logged values that a point of a curve is the mean of."""
_LENGTH, _CHECKSUM = struct.Struct("<Q"), 4


class Curve(NamedTuple):
    """One scalar along a training."""

    step: Int64[np.ndarray, " point"]
    value: Float64[np.ndarray, " point"]


def read_curves(directory: Path) -> dict[str, Curve]:
    """The scalars in the TensorBoard files of a training, by name.

    A file that was cut short is read up to there. Where a training went on from an earlier step,
    the later value of a step counts.

    Raises:
      FileNotFoundError: there are no such files.
    """
    files = sorted(directory.glob("events.out.tfevents.*"))
    if not files:
        raise FileNotFoundError(
            f"{directory}: no training has been logged here; name the tag of one."
        )
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in files:
        for event in _logged_events(path):
            for scalar in event.summary.value:
                found[scalar.tag][event.step] = scalar.simple_value
    return {
        name: Curve(np.array(sorted(of)), np.array([of[step] for step in sorted(of)], np.float64))
        for name, of in found.items()
    }


def plot_curves(path: Path, trainings: Mapping[str, Mapping[str, Curve]]) -> None:
    """Draws the curves of several trainings, one behind the other.

    Args:
      path: the file to write.
      trainings: by tag, in their order, what `read_curves` gives.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      OSError: the file cannot be written.
    """
    with saved_figure(path, 11.0, 7.0) as figure:
        axes = figure.subplots(2, 2, sharex=True).ravel()
        start = 0
        for (tag, curves), colour in zip(trainings.items(), TRACK_COLOURS, strict=False):
            for panel, (name, title) in zip(axes, PANELS.items(), strict=True):
                panel.set_ylabel(title)
                if name in curves and np.any(curves[name].value != 0):
                    smooth = _smoothed(curves[name])
                    panel.plot((start + smooth.step) / 1000, smooth.value, color=colour, label=tag)
            start += max(int(curve.step[-1]) for curve in curves.values())
        axes[0].legend(loc="lower right")
        for panel in axes[2:]:
            panel.set_xlabel("thousand updates")
            # The set loss is negative where micrographs share hits.
            panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))


def _logged_events(path: Path) -> Iterator[Any]:
    """The records of a file: length, its checksum, the event, its checksum."""
    # Made at run time from the message's description, so no type checker knows it.
    event_type: Any = event_pb2.__dict__["Event"]
    data = path.read_bytes()
    place = 0
    while place + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, place)
        begin = place + _LENGTH.size + _CHECKSUM
        place = begin + length + _CHECKSUM
        if place > len(data):
            return
        yield event_type.FromString(data[begin : begin + length])


def _smoothed(curve: Curve) -> Curve:
    """Means over runs of points; a curve of few points as it is."""
    number = len(curve.step) // _SMOOTHING
    if number < 2:
        return curve
    end = number * _SMOOTHING
    step, value = (part[:end].reshape(number, _SMOOTHING) for part in curve)
    return Curve(step.mean(axis=1).astype(np.int64), value.mean(axis=1))
