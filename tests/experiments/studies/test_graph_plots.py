"""What the figures of the candidate graph show, read back from the objects that matplotlib drew."""

import importlib.util
import sys

import numpy as np
import pytest
from studies import graph_plots
from studies.points import CentroidPoint, GraphPoint

from hypertrack_jax.evaluation.graph_quality import GraphQuality

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


def point(tpr=0.9, degree=10.0, **changes):
    """A point with some numbers, of which the changes are given."""
    setting = {"node2node": "hyper", "num_cells": 64, "num_events": 10, "pileup": 2.0}
    setting |= {"event_id": 1, "min_count": 1, "share": 0.95, "fpr": 1e-3, "purity": 0.1} | changes
    quality = GraphQuality(
        setting["min_count"],
        100,
        degree,
        tpr,
        setting["fpr"],
        setting["purity"],
        setting["share"],
        0.5,
    )
    return GraphPoint(
        setting["node2node"],
        setting.get("judged", setting["node2node"]),
        setting["num_cells"],
        setting["num_events"],
        setting["pileup"],
        setting["event_id"],
        quality,
    )


def bars_of(axes):
    """Of each line: its label, places, means, and lower and upper ends of the bars there are."""
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container
        ends = np.array([bar[:, 1] for bar in bars.get_segments() if len(bar)])
        found[container.get_label()] = (*line.get_data(), ends)
    return found


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@needs_plots
def test_pileup_figure_shows_mean_and_spread_over_events(tmp_path, figures):
    # Two events at each pile-up, the larger pile-up first.
    points = [
        point(tpr, pileup=pileup, event_id=event, fpr=fpr, purity=purity)
        for pileup, event, tpr, fpr, purity in (
            (200.0, 1, 0.9, 2e-3, 0.01),
            (200.0, 2, 0.7, 4e-3, 0.03),
            (2.0, 1, 0.8, 3e-3, 0.5),
            (2.0, 2, 0.8, 3e-3, None),
        )
    ]
    points += [point(0.5, node2node="eom", judged="hyper", min_count=4, purity=None)]
    path = tmp_path / "figs" / "pileup.png"
    graph_plots.plot_pileup(path, points)
    assert path.read_bytes().startswith(b"\x89PNG")
    tpr, fpr, purity = figures[0].axes
    hyper = "hyper, $V$ = 64, min_count 1"
    mixed = "eom, judged by hyper, $V$ = 64, min_count 4"
    assert legend_of(figures[0]) == [hyper, mixed]
    spread = np.std([0.9, 0.7], ddof=1)
    x, y, ends = bars_of(tpr)[hyper]
    np.testing.assert_array_equal(x, [2.0, 200.0])
    np.testing.assert_allclose(y, [0.8, 0.8])
    np.testing.assert_allclose(ends, [[0.8, 0.8], [0.8 - spread, 0.8 + spread]])
    np.testing.assert_allclose(bars_of(fpr)[hyper][1], [3e-3, 3e-3])
    # Without a purity the second event leaves the first one's.
    np.testing.assert_allclose(bars_of(purity)[hyper][1], [0.5, 0.02])
    assert len(bars_of(purity)[mixed][0]) == 0
    np.testing.assert_allclose(bars_of(tpr)[mixed][1], [0.5])
    # One event has no spread.
    assert len(bars_of(tpr)[mixed][2]) == 0
    assert [axes.get_xscale() for axes in figures[0].axes] == ["log"] * 3
    assert [label.get_text() for label in tpr.get_xticklabels()] == ["2", "200"]
    assert tpr.get_ylim()[0] < 0.5
    colours = {container[0].get_color() for container in tpr.containers}
    styles = {container[0].get_linestyle() for container in tpr.containers}
    markers = {container[0].get_marker() for container in tpr.containers}
    assert (len(colours), len(styles), len(markers)) == (1, 2, 2)


@needs_plots
def test_centroid_figure_keeps_cells_apart(tmp_path, figures):
    points = [
        CentroidPoint(hits, distance2, point(tpr, num_cells=cells))
        for hits, distance2, cells, tpr in (
            (3000, 40.0, 64, 0.9),
            (1000, 50.0, 64, 0.8),
            (1000, 60.0, 64, 0.8),
            (1000, None, 64, 0.8),
            (3000, 9.0, 256, 0.6),
        )
    ]
    graph_plots.plot_centroid_hits(tmp_path / "centroids.svg", points)
    assert b"<svg" in (tmp_path / "centroids.svg").read_bytes()
    distance, tpr = (bars_of(axes) for axes in figures[0].axes)
    few, many = (f"hyper, $V$ = {cells}, min_count 1" for cells in (64, 256))
    np.testing.assert_array_equal(distance[few][0], [1000, 3000])
    np.testing.assert_allclose(distance[few][1], [55.0, 40.0])
    np.testing.assert_allclose(tpr[few][1], [0.8, 0.9])
    np.testing.assert_allclose([distance[many][1], tpr[many][1]], [[9.0], [0.6]])
    assert [axes.get_xscale() for axes in figures[0].axes] == ["log", "log"]


@needs_plots
def test_training_figure_has_a_panel_for_each_topology_and_a_line_for_each_setting(
    tmp_path, figures
):
    points = [
        point(tpr, node2node=topology, num_events=events, num_cells=cells, min_count=count)
        for topology, events, cells, count, tpr in (
            ("hyper", 100, 64, 1, 0.9),
            ("hyper", 10, 64, 1, 0.6),
            ("hyper", 10, 256, 1, 0.3),
            ("hyper", 10, 64, 2, 0.2),
            ("eom", 10, 64, 1, 0.7),
        )
    ]
    graph_plots.plot_training_events(tmp_path / "events.png", points)
    hyper, eom = figures[0].axes
    assert (hyper.get_title(), eom.get_title()) == ("hyper", "eom")
    assert [label.get_text() for label in hyper.get_xticklabels()] == ["10", "100"]
    lines = [tuple(map(tuple, container[0].get_data())) for container in hyper.containers]
    assert lines == [((10, 100), (0.6, 0.9)), ((10,), (0.3,)), ((10,), (0.2,))]
    assert [tuple(container[0].get_ydata()) for container in eom.containers] == [(0.7,)]
    small, large, rare = (container[0] for container in hyper.containers)
    assert small.get_color() == rare.get_color() != large.get_color()
    assert small.get_linestyle() == large.get_linestyle() != rare.get_linestyle()
    assert legend_of(figures[0]) == ["$V$ = 64", "min_count 1", "$V$ = 256", "min_count 2"]


@needs_plots
def test_trade_figure_follows_min_count_and_skips_what_is_not_known(tmp_path, figures):
    points = [
        point(tpr, degree, pileup=pileup, min_count=count, share=share, event_id=event)
        for pileup, count, event, degree, tpr, share in (
            (2.0, 4, 1, 5.0, 0.6, 0.7),
            (2.0, 1, 1, 20.0, 0.9, 1.0),
            (2.0, 1, 2, 30.0, 0.8, 0.9),
            (2.0, 8, 1, 0.0, 0.0, None),
            (200.0, 1, 1, 900.0, 0.9, 1.0),
        )
    ]
    graph_plots.plot_trade(tmp_path / "trade.pdf", points)
    tpr, share = figures[0].axes
    low, high = (line.get_xydata() for line in tpr.get_lines())
    np.testing.assert_allclose(low, [[25.0, 0.85], [5.0, 0.6], [0.0, 0.0]])
    np.testing.assert_allclose(high, [[900.0, 0.9]])
    np.testing.assert_allclose(share.get_lines()[0].get_xydata(), [[25.0, 0.95], [5.0, 0.7]])
    assert legend_of(figures[0])[1] == "Pile-up 2"
    title = figures[0].legends[0].get_title().get_text()
    assert title == "From right to left: min_count 1, 4, 8"
    # An empty graph has no place on a logarithmic axis, and must not stretch it.
    assert tpr.get_xlim()[0] > 1.0
    assert share.get_ylim()[0] <= 0.7


@needs_plots
def test_many_lines_still_get_a_colour(tmp_path, figures):
    points = [
        point(num_cells=cells, pileup=pileup) for cells in range(1, 10) for pileup in (2.0, 9)
    ]
    graph_plots.plot_pileup(tmp_path / "pileup.png", points)
    assert len(figures[0].axes[0].containers) == 9


@needs_plots
@pytest.mark.parametrize(
    "plot",
    [
        graph_plots.plot_pileup,
        graph_plots.plot_centroid_hits,
        graph_plots.plot_training_events,
        graph_plots.plot_trade,
    ],
)
def test_no_points_give_an_empty_figure(tmp_path, plot):
    plot(tmp_path / "empty.png", [])
    assert (tmp_path / "empty.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"trade\.png: drawing needs .*hypertrack-jax\[plots\]"):
        graph_plots.plot_trade(tmp_path / "trade.png", [point()])
