"""What the figures show, read back from the objects that matplotlib drew."""

import importlib.util
import sys

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.evaluation import edge_metrics, metrics, plots
from hypertrack_jax.events.event import NOISE, no_particles

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


def classifier(seed, num_edges=2000):
    rng = np.random.default_rng(seed)
    label = rng.random(num_edges) < 0.3
    return label, 1 / (1 + np.exp(-rng.normal(np.where(label, 2.0, -2.0), 2.0)))


def points_of(axes, label):
    """All points drawn under this label, without the gaps between tracks, in lexical order."""
    lines = [line.get_xydata() for line in axes.get_lines() if line.get_label() == label]
    points = np.concatenate(lines)
    return np.unique(points[~np.isnan(points).any(axis=1)], axis=0)


def tracks_of(axes, label):
    """The set of tracks drawn under this label, each as (colour, its points)."""
    tracks = set()
    for line in axes.get_lines():
        points = line.get_xydata()
        gaps = np.flatnonzero(np.isnan(points).any(axis=1))
        if line.get_label() == label and len(points):
            for track in np.split(points, gaps):
                points_of_track = map(tuple, track[~np.isnan(track).any(axis=1)].tolist())
                tracks.add((line.get_color(), frozenset(points_of_track)))
    return tracks


def mistaken_labels(event):
    """Particle 0 loses two hits, 1 is missed, 2 is split in two and noise added, as to 3."""
    label = event.hit_particle.astype(np.int64)
    of_particle = [np.flatnonzero(event.hit_particle == particle) for particle in range(4)]
    label[of_particle[0][:2]] = -1
    label[of_particle[1]] = -1
    label[of_particle[2][::2]] = 100
    label[of_particle[2][1::2]] = 101
    label[np.flatnonzero(event.hit_particle == NOISE)[:2]] = 3, 101
    missed = np.concatenate([of_particle[0][:2], of_particle[1]])
    return label, missed


@needs_plots
def test_event_figure_marks_each_hit_for_what_it_is(tmp_path, figures):
    event = helix_event(3, num_particles=12, noise_ratio=0.2)
    label, missed = mistaken_labels(event)
    halves = np.bincount(label[event.hit_particle == 2])[[100, 101]]
    assert halves[0] == halves[1], "take an event whose particle 2 can be halved"
    plots.plot_event(tmp_path / "event.png", event, label)

    true_xy, found_xy, true_rz, found_rz = figures[0].axes
    xy, is_noise = event.position[:, :2], event.hit_particle == NOISE
    radius = np.hypot(event.position[:, 0], event.position[:, 1])
    rz = np.stack([event.position[:, 2], radius], axis=1)
    wrong = np.flatnonzero((event.hit_particle == 2) | (is_noise & (label >= 0)))
    for point, true_panel, found_panel in ((xy, true_xy, found_xy), (rz, true_rz, found_rz)):
        in_order = lambda hits: np.unique(point[hits], axis=0)  # noqa: B023, E731
        noise = np.flatnonzero(is_noise & (label < 0))
        right = np.setdiff1d(np.flatnonzero(~is_noise), np.append(missed, wrong))
        for name, hits in (
            ("missed hit", missed),
            ("hit in a wrong track", wrong),
            ("noise or short track", noise),
            ("matched track", right),
            ("track without a particle", np.flatnonzero(label >= 100)),
        ):
            np.testing.assert_array_equal(points_of(found_panel, name), in_order(hits), name)
        np.testing.assert_array_equal(
            points_of(true_panel, "matched track"), in_order(np.flatnonzero(~is_noise))
        )
        # A track found without a fault is drawn as the true one is, colour and all.
        faultless = tracks_of(found_panel, "matched track") & tracks_of(true_panel, "matched track")
        assert len(faultless) == 12 - 3
        assert len(tracks_of(true_panel, "matched track")) == 12


@needs_plots
def test_event_figure_is_written_whole_and_names_the_counts(tmp_path, figures):
    event = helix_event(3, num_particles=12, noise_ratio=0.2)
    label, _ = mistaken_labels(event)
    edges = np.array([[0, 1, 2], [3, 4, 5]])
    path = tmp_path / "figs" / "event.png"
    plots.plot_event(path, event, label, edges)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [entry.name for entry in path.parent.iterdir()] == ["event.png"]
    scores = metrics.track_scores(event, label)
    titles = [axes.get_title() for axes in figures[0].axes[:2]]
    assert titles == ["Event 1: 12 true tracks", f"{scores.num_clusters} found, 10 matched"]
    drawn = points_of(figures[0].axes[1], "edge")
    np.testing.assert_array_equal(drawn, np.unique(event.position[:6, :2], axis=0))
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert len(legend) == len({*legend}) == 6


@needs_plots
def test_an_event_of_noise_alone_is_drawn(tmp_path):
    event = helix_event(0, num_particles=2, noise_ratio=0.5)
    noise = np.full(len(event.hit_id), NOISE, np.int32)
    event = event._replace(hit_particle=noise, particles=no_particles())
    plots.plot_event(tmp_path / "noise.svg", event, noise)
    assert b"<svg" in (tmp_path / "noise.svg").read_bytes()


@needs_plots
def test_edge_score_figure_counts_every_edge(tmp_path, figures):
    label, probability = classifier(0)
    plots.plot_edge_scores(tmp_path / "scores.pdf", label, probability, edge_threshold=0.55)
    assert (tmp_path / "scores.pdf").read_bytes().startswith(b"%PDF")
    (axes,) = figures[0].axes
    assert axes.get_yscale() == "log"
    drawn = {patch.get_label(): patch.get_data().values for patch in axes.patches}
    bins = np.linspace(0, 1, 51)
    for name, chosen in (("True", label), ("False", ~label)):
        expected = np.histogram(probability[chosen], bins)[0]
        np.testing.assert_array_equal(drawn[f"{name} edges ({chosen.sum():,})"], expected)
    assert axes.get_lines()[0].get_xdata()[0] == 0.55


@needs_plots
def test_roc_figure_names_each_area(tmp_path, figures):
    classifiers = {"helix": classifier(0), "tune-5": classifier(1)}
    plots.plot_roc(tmp_path / "roc", classifiers)
    assert (tmp_path / "roc").read_bytes().startswith(b"\x89PNG")
    helix, tune_5, _ = figures[0].axes[0].get_lines()
    for line, (name, edges) in zip((helix, tune_5), classifiers.items(), strict=True):
        assert line.get_label() == f"{name} (AUC {edge_metrics.auc(*edges):.4f})"
        np.testing.assert_array_equal(line.get_ydata(), edge_metrics.roc_curve(*edges).tpr)
        np.testing.assert_array_equal(line.get_xdata(), edge_metrics.roc_curve(*edges).fpr)


@needs_plots
def test_a_failed_drawing_leaves_the_old_file(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def fail(figure, file, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    path = tmp_path / "roc.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match=r"roc\.png.*No space left"):
        plots.plot_roc(path, {"helix": classifier(0)})
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


@needs_plots
def test_drawing_leaves_the_callers_style_alone(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "font.size", 3.0)
    plots.plot_roc(tmp_path / "roc.png", {"helix": classifier(0)})
    assert matplotlib.rcParams["font.size"] == 3.0


def test_without_matplotlib_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"roc\.png: drawing needs .*hypertrack-jax\[plots\]"):
        plots.plot_roc(tmp_path / "roc.png", {"helix": classifier(0)})
    assert not [*tmp_path.iterdir()]
