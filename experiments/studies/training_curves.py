"""Host side: the numbers that a training has logged, and their curves."""

import json
from collections import defaultdict
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.plots import TRACK_COLOURS, saved_figure
from hypertrack_jax.training.metrics_file import METRICS_FILE, VALIDATION_AUC

PANELS = {
    "auc": "edge AUC",
    "edge_contrastive": "contrastive edge loss",
    "cluster_bce": "membership loss",
    "cluster_contrastive": "set loss",
}
"""Numbers that are drawn, and the names of their axes."""
_SMOOTHING = 20
"""Each point of a curve is the mean of this many logged values."""


class Curve(NamedTuple):
    """One number along a training."""

    step: Int64[np.ndarray, " point"]
    value: Float64[np.ndarray, " point"]


def read_curves(directory: Path) -> dict[str, Curve]:
    """Reads `metrics.jsonl` in the log directory of a training.

    Returns:
      The curve of each number by its name, without values that are null.

    Raises:
      FileNotFoundError: the directory has no such file.
      UserError: a line is not JSON.
    """
    path = directory / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory}: no training has been logged here; name the tag of one."
        )
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: expected a JSON object; remove the line."
            ) from error
        step = values.pop("step")
        for name, value in values.items():
            if value is not None:
                found[name].append((step, value))
    return {
        name: Curve(
            np.array([step for step, _ in points], np.int64),
            np.array([value for _, value in points], np.float64),
        )
        for name, points in found.items()
    }


def plot_curves(path: Path, trainings: Mapping[str, Mapping[str, Curve]]) -> None:
    """Draws the curves of several trainings one after another; the validation AUC is dashed.

    Args:
      path: the file to write.
      trainings: what `read_curves` returns for each tag, in the order to draw.

    Raises:
      ImportError: matplotlib or mplhep is missing.
      OSError: the file cannot be written.
    """
    with saved_figure(path, 11.0, 7.0) as figure:
        axes = figure.subplots(2, 2, sharex=True).ravel()
        start = 0
        for (tag, curves), colour in zip(trainings.items(), cycle(TRACK_COLOURS), strict=False):
            for panel, (name, title) in zip(axes, PANELS.items(), strict=True):
                panel.set_ylabel(title)
                if name in curves and np.any(curves[name].value != 0):
                    smooth = _smoothed(curves[name])
                    panel.plot((start + smooth.step) / 1000, smooth.value, color=colour, label=tag)
            if VALIDATION_AUC in curves:
                validation = curves[VALIDATION_AUC]
                axes[0].plot((start + validation.step) / 1000, validation.value, "--", color=colour)
            start += max(int(curve.step[-1]) for curve in curves.values())
        axes[0].legend(loc="lower right")
        for panel in axes[2:]:
            panel.set_xlabel("thousand updates")
            # The set loss is negative where micrographs share hits.
            panel.set_ylim(bottom=min(0, panel.get_ylim()[0]))


def _smoothed(curve: Curve) -> Curve:
    """Means over runs of points; a curve of few points is not changed."""
    number = len(curve.step) // _SMOOTHING
    if number < 2:
        return curve
    end = number * _SMOOTHING
    step, value = (part[:end].reshape(number, _SMOOTHING) for part in curve)
    return Curve(step.mean(axis=1).astype(np.int64), value.mean(axis=1))
