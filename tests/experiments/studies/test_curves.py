"""Logged scalars are read back, also from files that were cut short, and drawn."""

import numpy as np
import pytest
from studies.curves import PANELS, plot_curves, read_curves
from tensorboardX import SummaryWriter


def write(directory, steps, value, name="train/auc"):
    # Files of one second are told apart by the suffix.
    suffix = f".{steps[0]}.{name.replace('/', '-')}"
    with SummaryWriter(str(directory), filename_suffix=suffix) as writer:
        for step in steps:
            writer.add_scalar(name, value(step), step)


def test_scalars_are_read_as_they_were_logged(tmp_path):
    """A second file goes on from an earlier step, and its values count."""
    write(tmp_path, range(0, 50, 10), lambda step: 0.5 + step)
    write(tmp_path, range(30, 80, 10), lambda step: 2.0 * step)
    curve = read_curves(tmp_path)["train/auc"]
    np.testing.assert_array_equal(curve.step, range(0, 80, 10))
    np.testing.assert_allclose(curve.value, [0.5, 10.5, 20.5, 60, 80, 100, 120, 140])


@pytest.mark.parametrize("cut", [1, 4, 9, 30])
def test_a_file_cut_short_is_read_up_to_there(tmp_path, cut):
    write(tmp_path, range(10), float)
    (path,) = tmp_path.glob("events*")
    path.write_bytes(path.read_bytes()[:-cut])
    np.testing.assert_array_equal(read_curves(tmp_path)["train/auc"].value, range(9))


def test_a_directory_without_training_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training has been logged here"):
        read_curves(tmp_path)


def test_curves_are_drawn(tmp_path):
    pytest.importorskip("mplhep", reason="figures need the extra plots")
    for tag in ("first", "second"):
        for name in PANELS:
            write(tmp_path / tag, range(1, 100), lambda step: 1 / step, name)
    trainings = {tag: read_curves(tmp_path / tag) for tag in ("first", "second")}
    plot_curves(tmp_path / "curves.png", trainings)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
