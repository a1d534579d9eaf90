"""Tables, summaries and JSON of made-up rows."""

import json
import statistics

import numpy as np
import pytest

from hypertrack_jax.evaluation import report

ROWS = [
    {"event": 21001, "hits": 900, "GNN AUC": 0.9876, "GNN FPR": 2.5e-4, "CC ms": 12.0},
    {"hits": np.int64(1000), "event": 21002, "GNN AUC": None, "CC ms": np.float32(110.5)},
    {"event": 21003, "hits": 1100, "GNN AUC": 0.5, "DMS": 0.25, "CC ms": 8.0},
]


def test_summary_is_over_the_values_there_are():
    summary = report.summarise(ROWS)
    assert [*summary] == ["hits", "GNN AUC", "GNN FPR", "CC ms", "DMS"]
    assert summary["hits"] == (1000.0, 100.0, 3)
    auc = [0.9876, 0.5]
    assert summary["GNN AUC"] == pytest.approx((statistics.mean(auc), statistics.stdev(auc), 2))
    assert summary["DMS"] == (0.25, None, 1)
    assert report.summarise([{"event": 1, "DMS": None}])["DMS"] == (None, None, 0)


def test_event_table_shows_four_digits_and_a_dash_for_what_does_not_apply():
    assert report.event_table(ROWS).splitlines() == [
        "| event | hits | GNN AUC |  GNN FPR | CC ms |    DMS |",
        "|:------|-----:|--------:|---------:|------:|-------:|",
        "| 21001 |  900 |  0.9876 | 2.50e-04 |  12.0 |      - |",
        "| 21002 | 1000 |       - |        - | 110.5 |      - |",
        "| 21003 | 1100 |  0.5000 |        - |   8.0 | 0.2500 |",
    ]


def test_a_wide_event_table_goes_on_below_with_the_event_ids():
    upper, lower = report.event_table(ROWS, width=40).split("\n\n")
    assert upper.splitlines()[0] == "| event | hits | GNN AUC |  GNN FPR |"
    assert lower.splitlines()[0] == "| event | CC ms |    DMS |"
    assert lower.splitlines()[2] == "| 21001 |  12.0 |      - |"
    # A column too wide for any line still gets one.
    assert len(report.event_table(ROWS, width=5).split("\n\n")) == 5


def test_a_published_table_fits_120_columns():
    names = ["hits", "edges", "VD TPR", "VD FPR", "VD purity", "GNN TPR", "GNN FPR", "GNN AUC"]
    names += ["DMS", "efficiency", "purity", "trackml", "VD ms", "GNN ms", "CC ms", "cluster ms"]
    rows = [{"event": 1, **dict.fromkeys(names, 0.1234)}]
    lines = report.event_table(rows).splitlines()
    assert max(map(len, lines)) <= 120
    assert len(lines) == 7


def test_summary_table():
    assert report.summary_table(ROWS).splitlines() == [
        "| quantity |     mean |    std |  n |",
        "|:---------|---------:|-------:|---:|",
        "| hits     |     1000 |    100 |  3 |",
        "| GNN AUC  |   0.7438 | 0.3448 |  2 |",
        "| GNN FPR  | 2.50e-04 |      - |  1 |",
        "| CC ms    |    43.50 |  58.06 |  3 |",
        "| DMS      |   0.2500 |      - |  1 |",
    ]


def test_no_rows():
    assert report.event_table([]) == ""
    assert report.summarise([]) == {}


def test_json_holds_every_number_and_null_where_there_is_none(tmp_path):
    path = tmp_path / "runs" / "report.json"
    report.write_report(path, ROWS, {"read_tag": "toy", "edge_threshold": 0.55})
    content = json.loads(path.read_text())
    assert content["settings"] == {"read_tag": "toy", "edge_threshold": 0.55}
    assert content["events"][1] == {
        "event": 21002,
        "hits": 1000,
        "GNN AUC": None,
        "GNN FPR": None,
        "CC ms": 110.5,
        "DMS": None,
    }
    assert content["summary"]["hits"] == {"mean": 1000.0, "std": 100.0, "n": 3}
    assert "event" not in content["summary"]
    assert [entry.name for entry in path.parent.iterdir()] == ["report.json"]


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf")])
def test_a_number_that_json_lacks_is_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(ValueError, match=f"report.json: event 3 has the value {value} for 'DMS'"):
        report.write_report(path, [{"event": 3, "DMS": value}], {})
    assert path.read_text() == "old"


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        report.write_report(path, ROWS, {"not json": object()})
    assert path.read_text() == "old"
    with pytest.raises(OSError, match=r"report\.json"):
        report.write_report(path / "report.json", ROWS, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
