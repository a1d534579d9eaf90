"""The benchmark of Voxel-Dynamics measures what it says, on toy sizes."""

import sys

import pytest
from benchmarks import graph_constructor
from benchmarks.timing import Timing
from toy import helix_event

from hypertrack_jax.events.store import save_event
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path


@pytest.fixture
def setting(tmp_path):
    for event_id in (1, 2, 3):
        save_event(tmp_path / "data", helix_event(seed=event_id, event_id=event_id))
    return graph_constructor.Setting(
        data=tmp_path / "data",
        event=3,
        training=(1, 2),
        models=tmp_path / "models",
        node2nodes=["eom"],
        min_count=1,
        counted_cells=64,
        num_hits=300,
        iterations=2,
    )


def timing(suite, median):
    return Timing(suite, 10, 0, 1, median, median, median, 0.0)


def test_count_writes_the_file_that_graph_reads(setting):
    counted, *graphs = graph_constructor.measure_voxdyn(setting, ["count", "graph"], runs=2)
    vd = load_voxdyn(voxdyn_path(setting.models, "eom", 64))
    assert vd.num_events == 2
    assert counted.edges == len(vd.rows.columns)
    assert counted.suite.startswith("count eom pairs, 64 cells, 2 events")
    assert len(graphs) == 8
    assert all(t.median > 0 and t.runs == 2 and t.peak_memory > 0.05 for t in graphs)
    full = graphs[-1]
    assert full.hits == len(helix_event(seed=3, event_id=3).position)
    assert full.suite.startswith("eom graph, pile-up 200")


def test_ratios_are_of_medians_at_the_same_work():
    timings = [timing("a / ours", 2.0), timing("a / peer", 5.0), timing("b / peer", 9.0)]
    assert graph_constructor.ratios(timings) == ["a: 2.50 times as fast as peer"]


def test_growth_is_per_hit_and_per_edge():
    def at(what, pileup, hits, edges, seconds):
        suite = f"eom {what}, pile-up {pileup}, 64 cells / ours"
        return Timing(suite, hits, edges, 1, seconds, seconds, seconds, 0.0)

    lines = graph_constructor.growth(
        [
            at("assign", 20, 100, 1000, 1e-6),
            at("graph", 20, 100, 1000, 3e-6),
            at("assign", 200, 1000, 50_000, 3e-5),
            at("graph", 200, 1000, 50_000, 2.3e-4),
        ]
    )
    assert "assignment, per hit: 10.0 ns, at pile-up 200 30.0 ns, ratio 3.00" in lines[0]
    assert "look-up, per edge: 2.0 ns, at pile-up 200 4.0 ns, ratio 2.00" in lines[1]
    assert len(lines) == 2


def test_unknown_part(setting):
    with pytest.raises(ValueError, match=r"--voxdyn_parts=asign: expected some of assign"):
        list(graph_constructor.measure_voxdyn(setting, ["count", "asign"], runs=1))
    assert not setting.models.exists()


def test_missing_faiss_is_one_sentence(setting, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[bench\]'"):
        list(graph_constructor.measure_voxdyn(setting, ["assign"], runs=1))
