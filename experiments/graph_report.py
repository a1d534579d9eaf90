"""Reports on candidate graphs, for pretrain_voxdyn.py and inference.py --pre_only."""

import sys
import time
from pathlib import Path
from typing import Any

import command_line
import numpy as np
from absl import flags
from bad_events import ReadableEvents
from benchmarks.timing import peak_memory
from tqdm import tqdm

from hypertrack_jax.command.start import end_with
from hypertrack_jax.evaluation.evaluate import evaluate_graphs
from hypertrack_jax.evaluation.filter_quality import filter_rows
from hypertrack_jax.evaluation.graph_quality import topology_note
from hypertrack_jax.evaluation.report import Row, event_table, summary_table, write_report
from hypertrack_jax.reconstruction.load import load_tuned_filter
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.connectivity import MAX_COUNT
from hypertrack_jax.voxdyn.model import VoxelDynamics, count_threshold
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path


def report_graphs(
    vd: VoxelDynamics, events: ReadableEvents, node2node: str, min_count: float | int | None
) -> list[Row]:
    """Makes and scores the graphs of events, and prints mean and spread."""
    started = time.perf_counter()
    bar = tqdm(events, unit="event", leave=False)
    rows = list(evaluate_graphs(vd, bar, node2node, min_count, events.problems))
    threshold = vd.min_count if min_count is None else count_threshold(vd.histogram, min_count)
    print(
        f"\n{vd.node2node}, {vd.num_cells} cells, min_count {threshold}: graphs of {len(rows)} "
        f"events at rfactor {events.source.rfactor_end:g}"
    )
    note = topology_note(vd.node2node, node2node)
    print(*([note] if note else []), summary_table(rows), sep="\n")
    print(f"{time.perf_counter() - started:.1f} s, peak memory {peak_memory():.2f} GB")
    return rows


def graphs_of(tune: Tune, events: ReadableEvents, node2node: str | None) -> None:
    """Loads the estimator that a tune names, describes it, and reports its graphs in full.

    Without a `node2node` the graphs are judged by the topology of the fit. If the tune has a
    filter, further tables show what the filter keeps.
    """
    models, wanted = command_line.workdir("models"), tune.voxdyn
    path = voxdyn_path(models, wanted.node2node, wanted.ncell)
    vd = load_voxdyn(path, wanted.node2node, wanted.ncell, wanted.min_count)
    edge_filter = load_tuned_filter(models, tune, vd)
    print(describe_voxdyn(vd))
    rows = report_graphs(vd, events, node2node or wanted.node2node, None)
    print("", event_table(rows), "", sep="\n")
    directory = command_line.workdir("figs", f"graphs_{wanted.node2node}_{wanted.ncell}")
    print(write_rows(directory / "report.json", rows))
    if edge_filter is not None:
        bar = tqdm(events, unit="event", leave=False)
        rows = list(filter_rows(vd, edge_filter, bar))
        print("\nThe filter:", summary_table(rows), "", event_table(rows), "", sep="\n")
        print(write_rows(directory / "filter.json", rows))
    end_with(events.problems)


def write_rows(path: Path, rows: list[Row]) -> Path:
    """Writes rows as JSON, with the values of the script's own flags."""
    write_report(path, rows, own_flags())
    return path


def own_flags() -> dict[str, Any]:
    """The values of the script's own flags."""
    settings = flags.FLAGS.flags_by_module_dict()[sys.argv[0]]
    return {flag.name: flag.value for flag in settings}


def describe_voxdyn(vd: VoxelDynamics) -> str:
    """Describes an estimator in a few lines."""
    num_entries, counts = len(vd.rows.columns), np.arange(len(vd.histogram))
    objective = ", ".join(f"{value:.4g}" for value in vd.objective) or "not fitted"
    thresholds = ", ".join(
        f"{quantile:g}: {count_threshold(vd.histogram, quantile)}"
        for quantile in (0.01, 0.03, 0.1, 0.3)
    )
    num_idle = np.count_nonzero(np.diff(vd.rows.row_offsets) == 0)
    num_saturated = int(vd.histogram[MAX_COUNT:].sum())
    lines = [
        f"{vd.node2node}, {vd.num_cells} cells, {vd.num_events} events",
        f"objective by iteration (mm^2): {objective}",
        f"{(vd.histogram * counts).sum():.4g} pairs of hits counted, {num_entries} entries of C "
        f"({num_entries / vd.num_cells**2:.3%} of all), {num_idle} cells without any",
        f"min_count by quantile of the pairs: {thresholds}",
    ]
    if num_saturated:
        lines.append(f"{num_saturated} counts have reached {MAX_COUNT} and stay there")
    return "\n  ".join(lines)
