"""Logged numbers are read back as they were written, and drawn."""

import numpy as np
import pytest
from studies.training_curves import PANELS, plot_curves, read_curves

from hypertrack_jax.training.metrics_file import METRICS_FILE, VALIDATION_AUC, MetricsFile


def write(directory, steps, values_of, first_step=0):
    directory.mkdir(exist_ok=True)
    file = MetricsFile(directory, first_step)
    for step in steps:
        file.write(step, values_of(step))
    file.close()


def test_numbers_are_read_as_they_were_logged(tmp_path):
    """A second run repeats steps of the first, and validates; one number is not finite."""
    write(tmp_path, range(0, 50, 10), lambda step: {"auc": 0.5 + step, "loss": 1.0})
    write(tmp_path, [30, 40], lambda step: {"auc": 2.0 * step, "loss": float("nan")}, 30)
    write(tmp_path, [45], lambda step: {VALIDATION_AUC: 0.75}, 45)
    curves = read_curves(tmp_path)
    np.testing.assert_array_equal(curves["auc"].step, range(0, 50, 10))
    np.testing.assert_array_equal(curves["auc"].value, [0.5, 10.5, 20.5, 60, 80])
    np.testing.assert_array_equal(curves["loss"].step, [0, 10, 20])
    assert (curves[VALIDATION_AUC].step.tolist(), curves[VALIDATION_AUC].value) == ([45], [0.75])


def test_a_damaged_line_is_named(tmp_path):
    write(tmp_path, range(3), lambda step: {"auc": 0.5})
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 3, "au')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 4: expected a JSON object"):
        read_curves(tmp_path)


def test_a_directory_without_training_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training has been logged here"):
        read_curves(tmp_path)


def test_curves_are_drawn_one_after_another(tmp_path):
    pytest.importorskip("mplhep", reason="figures need the extra plots")
    # More than there are colours.
    tags = [f"training-{number}" for number in range(9)]
    for tag in tags:
        write(tmp_path / tag, range(1, 100), lambda step: dict.fromkeys(PANELS, 1 / step))
        write(tmp_path / tag, [99], lambda step: {VALIDATION_AUC: 0.5}, 100)
    trainings = {tag: read_curves(tmp_path / tag) for tag in tags}
    plot_curves(tmp_path / "curves.svg", trainings)
    text = (tmp_path / "curves.svg").read_text()
    # matplotlib draws text as paths, and names its words in comments.
    assert all(tag in text for tag in tags) and "set loss" in text
