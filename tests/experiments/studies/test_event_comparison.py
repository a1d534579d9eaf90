"""The comparison of simulated with real events."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from studies.event_comparison import plot_comparison, sample_of, summarize
from toy import helix_event

from hypertrack_jax.events.event import NOISE
from hypertrack_jax.events.store import save_event
from hypertrack_jax.events.trackml import write_event_csv

ROOT = Path(__file__).parents[3]
needs_plots = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None or importlib.util.find_spec("mplhep") is None,
    reason="needs the extra plots: pip install 'hypertrack-jax[plots]'",
)


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, as matplotlib holds them."""
    from matplotlib.figure import Figure

    drawn, save = [], Figure.savefig

    def keep_and_save(figure, *args, **kwargs):
        drawn.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep_and_save)
    return drawn


def test_summary_by_hand():
    event = helix_event(0, num_particles=4, noise_ratio=0)
    particles = event.particles._replace(
        num_hits=np.array([0, 4, 6, 8], np.int32),
        vertex=np.array([[0, 0, 5], [0.05, 0, 0], [3, 4, 0], [0, 20, 0]], np.float32),
        momentum=np.array([[3, 4, 0], [0, 1, 0], [2, 0, 0], [0, 3, 0]], np.float32),
    )
    hit_particle = np.where(np.arange(len(event.position)) < 10, NOISE, event.hit_particle)
    event = event._replace(particles=particles, hit_particle=hit_particle.astype(np.int32))
    found = summarize(sample_of([event, event]))
    num_hits = len(event.position)
    assert found["hits per particle"] == 4.5
    assert found["hits per particle with hits"] == 6
    assert found["particles without hits"] == 0.25
    assert found["median pT (GeV)"] == 2.5
    assert found["rms eta"] == 0
    assert found["displaced particles"] == 0.5
    assert found["noise ratio"] == pytest.approx(10 / num_hits)
    in_volume = (event.module[:, 0] == 8).sum()
    assert found["hits per particle, volume 8"] == pytest.approx(in_volume / 4)


def test_samples_need_truth():
    with pytest.raises(ValueError, match="no event to compare"):
        sample_of([])
    with pytest.raises(ValueError, match="event 7 has no truth"):
        sample_of([helix_event(0, event_id=7)._replace(has_truth=False)])


@needs_plots
def test_figure_scales_the_simulation(tmp_path, figures):
    real = sample_of([helix_event(1, num_particles=40)])
    simulated = sample_of([helix_event(seed, num_particles=40) for seed in range(2, 12)])
    plot_comparison(tmp_path / "simulation.png", simulated, real)
    assert (tmp_path / "simulation.png").read_bytes().startswith(b"\x89PNG")
    hits_per_particle, pt, eta, *_ = figures[0].axes
    for axes in (hits_per_particle, eta):
        # Ten times the particles, drawn as high as one event.
        (stairs,) = axes.patches
        assert stairs.get_data().values.sum() == pytest.approx(40)
        points = axes.containers[0].lines[0].get_ydata()
        assert points.sum() == 40
    assert pt.get_xscale() == "log"


@needs_plots
def test_script(tmp_path):
    write_event_csv(tmp_path / "real", helix_event(0, num_particles=30, event_id=1))
    for event_id in (1000, 1001):
        save_event(tmp_path / "data", helix_event(0, num_particles=30, event_id=event_id))

    def run(*arguments):
        return subprocess.run(
            [
                sys.executable,
                "experiments/compare_simulation.py",
                f"--workdir={tmp_path}",
                f"--input={tmp_path / 'real'}",
                *arguments,
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = run("--event_end=1001")
    assert done.returncode == 0, done.stderr
    lines = [line.strip("|").split("|") for line in done.stdout.splitlines()[2:-2]]
    fields = next(number for number, line in enumerate(lines) if "abs(z)" in line[0])
    real = {name.strip(): float(value) for name, _, value in lines[:fields]}
    turned = [float(value.split()[0]) for *_, value in lines[fields + 2 :]]
    np.testing.assert_allclose(turned, 2.0, atol=0.15)
    assert abs(np.median(turned) - 2.0) < 0.01
    assert len(turned) > 3
    expected = summarize(sample_of([helix_event(0, num_particles=30, event_id=1)]))
    assert real["hits per particle"] == pytest.approx(expected["hits per particle"], abs=1e-3)
    assert (tmp_path / "figs" / "simulation.png").is_file()
    assert done.stdout.endswith("Clusters are not compared, since one side has no cells.\n")

    missing = run("--event_end=1002")
    assert missing.returncode == 2
    assert "event000001002.npz" in missing.stderr and "Traceback" not in missing.stderr
