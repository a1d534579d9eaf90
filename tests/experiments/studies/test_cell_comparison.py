"""The comparison of simulated clusters with real ones."""

import importlib.util

import numpy as np
import pytest
from handmade import random_event, with_cells
from studies.cell_comparison import (
    cell_sample_of,
    cell_table,
    helix_directions,
    plot_cells,
    summarize_cells,
)

from hypertrack_jax.events.event import NOISE

needs_plots = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None or importlib.util.find_spec("mplhep") is None,
    reason="needs the extra plots: pip install 'hypertrack-jax[plots]'",
)


def test_direction_of_a_helix_by_hand():
    event = random_event(0, [2], num_noise=1)
    particles = event.particles._replace(
        vertex=np.array([[1, 0, 5]], np.float32), momentum=np.array([[2, 0, 3]], np.float32)
    )
    # The circle that leaves (1, 0) along x, of radius 10 about (1, 10): after a quarter it is at
    # (11, 10) and goes along y, after a half at (1, 20) and goes back.
    position = np.array([[11, 10, 9], [1, 20, 9], [3, 3, 3]], np.float32)
    event = event._replace(
        particles=particles, position=position, hit_particle=np.array([0, 0, NOISE], np.int32)
    )
    expected = [[0, 2, 3], [-2, 0, 3]]
    np.testing.assert_allclose(helix_directions(event)[:2], expected, atol=1e-6)


def _event():
    """Two particle hits in volume 8, one in 13, one of noise in 8, and one without cells."""
    event = with_cells(random_event(0, [4], num_noise=1))
    frame = np.tile(np.diag([2.0, 3.0, 1.0]).astype(np.float32), (5, 1, 1))
    cells = event.cells._replace(
        extent=np.array([[1, 1], [3, 2], [1, 4], [2, 5], [0, 0]], np.int32),
        num_cells=np.array([1, 4, 4, 6, 0], np.int32),
        charge=np.array([2.0, 4.0, 3.0, 5.0, 0.0], np.float32),
        frame=frame,
    )
    return event._replace(
        cells=cells,
        hit_particle=np.array([0, 0, 0, NOISE, 0], np.int32),
        module=np.array([[8, 2, 1], [8, 2, 2], [13, 2, 3], [8, 2, 4], [8, 2, 5]]),
        position=np.array([[0, 0, z] for z in (1, 2, 3, 4, 5)], np.float32),
        particles=event.particles._replace(
            vertex=np.zeros((1, 3), np.float32), momentum=np.array([[0, 0, 2]], np.float32)
        ),
    )


def test_summary_by_hand():
    sample = cell_sample_of([_event()])
    assert len(sample.volume) == 4
    rows = summarize_cells(sample)
    # Straight along the normal, a path is as long as the module is thick.
    np.testing.assert_allclose(rows["8, particles"][:5], [2, 1.5, 0.5, 0.5, 3])
    np.testing.assert_allclose(rows["8, noise"][:5], [2, 5, 0, 0, 5])
    np.testing.assert_allclose(rows["13, particles"][:5], [1, 4, 1, 0, 3])
    # Channels are 1/2 and 1/3 of the depth along x and y, all hits on the z axis: two channels more
    # than one along u and one along v lean by 1 and 1/3.
    leaning = np.degrees(np.arctan(np.hypot(1, 1 / 3)))
    np.testing.assert_allclose(sample.angle[:2], [0, leaning], atol=0.1)
    np.testing.assert_allclose(rows["8, particles"][5], leaning / 2, atol=0.1)
    np.testing.assert_allclose(sample.channels[:3], 0, atol=1e-6)
    table = cell_table(sample, sample)
    assert table[0][:2] == ["8, particles", "2.000 / 2.000"] and len(table) == 3
    assert cell_sample_of([_event()._replace(cells=None)]) is None


@needs_plots
def test_figure(tmp_path):
    sample = cell_sample_of([_event()] * 5)
    plot_cells(tmp_path / "cells.png", sample, sample)
    assert (tmp_path / "cells.png").read_bytes().startswith(b"\x89PNG")
