"""Host side: the stages of the check of an accelerator, most valuable first."""

import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator_inputs import (
    MODEL,
    Setting,
    events,
    load_model,
    peak_gigabytes,
    sector_hits,
    sector_of_full_event,
    share_of,
    stored_ids,
)
from benchmarks.timing import machine
from hypertrack_jax import device
from hypertrack_jax.evaluation.compiled_time import watched_compilation
from hypertrack_jax.evaluation.metrics import track_scores
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.pileup import OWN_NOISE_RATIO
from hypertrack_jax.events.sectors import Sector, whole
from hypertrack_jax.events.store import load_event
from hypertrack_jax.graph.segment import segment_sum
from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.parameters import FULL_PHASE, GNN_PHASE
from hypertrack_jax.model.weights import Weights, save_weights
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.training.batches import Batch, EventSource, graph_batch
from hypertrack_jax.training.devices import make_spread_step, spread_over
from hypertrack_jax.training.step import begin_phase, init_state
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.compact import compact_voxdyn

ROOT = Path(__file__).parents[2]
DTYPES_TRIED = ("float32", "bfloat16")
SMALL_STEPS = ((FULL_PHASE, "float32"), (GNN_PHASE, "bfloat16"))
"""Phases and types of the training steps of a dry run."""
RUNS = 10
"""Counted runs."""
SAVING_SECONDS = 20.0
"""Seconds kept for the end of a training: a step, the checkpoint and its copies."""
CLEARLY_FASTER = 0.95
"""Another size is recommended where it takes less than this share of the time."""
SIZES = {
    "located_hits": ("VD", (16384, 131072)),
    "filter_pairs": ("filter", (65536, 262144, 1048576)),
    "filter_hits": ("filter", (512, 2048, 8192)),
    "edges": ("GNN", (32768, 131072, 524288)),
    "few_micrographs and many_micrographs": ("cluster", (512, 2048, 8192)),
    "spanned_micrographs": ("cluster", (1024, 2**20)),
}
"""Sizes that are tried, and the stage of the reconstruction that they change."""


class StageOfCheck(NamedTuple):
    """A stage of the check, and its time limit."""

    run: Callable[[Setting], None]
    limit: float
    """Seconds that it may take."""


def device_rates(setting: Setting) -> None:
    """Versions, device, and the rates that bound all else."""
    add = partial(setting.report.add, "device")
    setting.report.note("device", machine())
    setting.report.note("device", f"backend {jax.default_backend()}")
    told = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in told:
        line = f"{told['bytes_limit'] / 1e9:.1f} GB of the device are for jax"
        setting.report.note("device", line)
    number, width = (2**16, 256) if setting.is_small else (2**28, 8192)
    column = jnp.ones(number, jnp.float32)
    seconds = best_seconds(jax.jit(lambda x: x + 1), column)
    add(what="copy, float32", rate=8e-9 * number / seconds, unit="GB/s read and written")
    del column
    for dtype, precision in (("bfloat16", None), ("float32", None), ("float32", "highest")):
        matrix = jax.random.normal(jax.random.key(0), (width, width), dtype)
        product = jax.jit(partial(jnp.matmul, precision=precision))
        rate = 2e-12 * width**3 / best_seconds(product, matrix, matrix)
        what = f"matrix product {width}, {dtype}, precision {precision or 'default'}"
        add(what=what, rate=rate, unit="Tflop/s")
    edges, hits = number // 128, number // 2048
    rows = jnp.ones((hits, 64), jnp.float32)
    rng = np.random.default_rng(0)
    senders = jnp.asarray(rng.integers(0, hits, edges), jnp.int32)
    moved = 4e-9 * 64 * edges
    seconds = best_seconds(jax.jit(lambda x, at: x[at]), rows, senders)
    add(
        what=f"64 values of {hits} hits gathered for {edges} edges",
        rate=moved / seconds,
        unit="GB/s",
    )
    of_edges, receivers = jnp.ones((edges, 64), jnp.float32), jnp.sort(senders)
    summed = jax.jit(partial(segment_sum, num_segments=hits, sorted_ids=True))
    seconds = best_seconds(summed, of_edges, receivers)
    add(what="64 values of each edge summed by receiver", rate=moved / seconds, unit="GB/s")


def number_of_runs(setting: Setting) -> int:
    """Counted runs of a piece of work."""
    return 2 if setting.is_small else RUNS


def best_seconds(work: Callable[..., Any], *arguments: Any) -> float:
    """The shortest time of a program in several runs, after one that compiles it."""
    jax.block_until_ready(work(*arguments))
    return min(seconds_of(partial(work, *arguments)) for _ in range(RUNS))


def seconds_of(work: Callable[[], Any]) -> float:
    """The time of one run."""
    started = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - started


def device_tests(setting: Setting) -> None:
    """Runs the tests marked `accelerator`, with programs compiled as for users."""
    marked = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.accelerator" in path.read_text()
    ]
    command = [sys.executable, "-m", "pytest", *marked, "-m", "accelerator", "-v", "-rf"]
    command += ["-o", "addopts=", "-W", "default", "-p", "no:cacheprovider"]
    environment = dict(os.environ)
    if setting.is_small:
        command += ["-k", "look_up"]
    else:
        environment["HYPERTRACK_TEST_PROGRAMS"] = "as users have them"
    if platforms := jax.config.values["jax_platforms"]:
        environment["JAX_PLATFORMS"] = platforms
    # jax has left the memory of the device to this process, see `leave_memory` of accelerator.py.
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment
    ) as tests:
        assert tests.stdout is not None
        for line in tests.stdout:
            print(line, end="", flush=True)
            if found := re.search(r"::(test_\S+) (PASSED|FAILED|ERROR|SKIPPED)", line):
                setting.report.add("tests", test=found[1], outcome=found[2].lower())
    setting.report.note("tests", f"pytest ended with status {tests.returncode}")
    if tests.returncode:
        sys.exit(f"error: tests ended with status {tests.returncode}.")


def reconstructions(setting: Setting) -> None:
    """Hits to tracks at each pile-up: times, compilation, memory, scores."""
    model = load_model(setting)
    for rfactor in (1.0,) if setting.is_small else (0.01, 0.1, 1.0):
        with setting.report.going_on("reconstruct", f"pile-up {200 * rfactor:g}"):
            row = reconstruction(model, next(events(setting, rfactor)), number_of_runs(setting))
            setting.report.add("reconstruct", pileup=200 * rfactor, **row)


def reconstruction(model: Reconstructor, event: Event, num_runs: int) -> dict[str, Any]:
    """Times of all stages, compilation, memory and scores of an event."""
    progress, stages, compiling = model.begin(event.position), {}, 0.0
    for stage in model.stages(len(event.position)):
        with watched_compilation() as compiled:
            progress = model.run_to(stage.name, progress)
        compiling += sum(compiled)
    runs = [model(event.position) for _ in range(num_runs)]
    for stage in runs[0].seconds:
        times = [run.seconds[stage] for run in runs]
        stages[f"{stage}, ms"] = 1e3 * statistics.median(times)
    scores = track_scores(event, runs[0].hit_label, model.tune.cluster.min_hits)
    return {
        "hits": len(event.position),
        "edges": int(progress.made[1].graph.n_edge[0]),
        **stages,
        "compiling, s": compiling,
        "peak so far, GB": peak_gigabytes(),
        "efficiency": scores.efficiency,
        "purity": scores.purity,
    }


def training_steps(setting: Setting) -> None:
    """Training steps of both phases, in float32 and then in bfloat16."""
    model = load_model(setting)
    works = {"sector of a full event": batch_of(model, sector_of_full_event(setting))}
    if not setting.is_small:
        works["pile-up 20"] = batch_of(model, whole(next(events(setting, 0.1))))
    settings = [(phase, dtype) for dtype in DTYPES_TRIED for phase in (GNN_PHASE, FULL_PHASE)]
    for phase, dtype in SMALL_STEPS if setting.is_small else settings:
        for what, batch in works.items():
            with setting.report.going_on("train_step", f"{what}, phase {phase}, {dtype}"):
                step = step_work(model, batch.graphs, phase, dtype)
                with watched_compilation() as compiled:
                    step()
                seconds = [seconds_of(step) for _ in range(number_of_runs(setting))]
                row = {"what": what, "hits": batch.num_hits, "edges": batch.num_edges}
                row |= {"phase": phase, "dtype": dtype}
                row |= {"median, ms": 1e3 * statistics.median(seconds)}
                row |= {"least, ms": 1e3 * min(seconds), "compiling, s": sum(compiled)}
                setting.report.add("train_step", **row, **{"peak so far, GB": peak_gigabytes()})


def batch_of(model: Reconstructor, sector: Sector) -> Batch:
    """The graph of a training step."""
    return graph_batch([sector], model.voxdyn, model.tune, model.edge_filter)


def step_work(model: Reconstructor, graphs: Any, phase: int, dtype: str) -> Callable[[], Any]:
    """Training steps on one batch, one after another from the model's weights."""
    tune, devices, key = training_tune(model), spread_over(1), jax.random.key(0)
    train_step = make_spread_step(tune, dtype, phase, devices)
    trained = {"params": model.params, "batch_stats": model.batch_stats}
    fresh = jax.jit(init_state, static_argnums=0)(tune, key)._replace(**trained)
    state = devices.replicate(begin_phase(tune, fresh, phase))

    def work() -> Any:
        nonlocal state
        state, metrics = train_step(state, graphs, key)
        return state, metrics

    return work


def training_tune(model: Reconstructor) -> Tune:
    """The tune of the model, with a learning rate to continue its training."""
    optimizer = replace(model.tune.optimizer, learning_rate=5e-4, scheduler_type="constant")
    return replace(model.tune, name="accelerator", optimizer=optimizer)


def size_scan(setting: Setting) -> None:
    """Times other sizes of `device.Blocks`, each on the stage it affects, and recommends one."""
    model, event = load_model(setting), next(events(setting, 1.0))
    begun = model.begin(event.position)
    names = [stage.name for stage in model.stages(len(event.position))]
    before = {name: names[names.index(name) - 1] for name in names[1:]}
    sizes = {"located_hits": ("VD", (64,))} if setting.is_small else SIZES
    for size, (stage, values) in sizes.items():
        start = model.run_to(before[stage], begun) if stage in before else begun
        scan(setting, size, values, partial(model.run_to, stage, start))
    if setting.is_small:
        return
    graphs = batch_of(model, sector_of_full_event(setting)).graphs
    for size, values in {"training_edges": (32768, 2**20), "whole_edges": (2**20,)}.items():
        # A new step for each value, since tracing fixes the sizes.
        scan(setting, size, values, lambda: step_work(model, graphs, GNN_PHASE, "float32"), True)


def scan(setting: Setting, size: str, values: Any, work: Any, makes_work: bool = False) -> None:
    """Times some work with the value in use and with other values of one size."""
    name = "CPU" if device.is_cpu() else "ACCELERATOR"
    in_use, seconds = getattr(device, name), {}
    names = size.split(" and ")
    now = getattr(in_use, names[0])
    try:
        for value in dict.fromkeys((now, *values)):
            setattr(device, name, in_use._replace(**dict.fromkeys(names, value)))
            jax.clear_caches()
            with setting.report.going_on("sizes", f"{size} at {value}"):
                seconds[value] = best_seconds(work() if makes_work else work)
                row = {"size": size, "value": value, "least, ms": 1e3 * seconds[value]}
                setting.report.add("sizes", **row, note="in use" if value == now else None)
    finally:
        setattr(device, name, in_use)
        jax.clear_caches()
    if now in seconds:
        setting.report.note("sizes", recommendation(name, size, now, seconds))


def recommendation(name: str, size: str, now: int, seconds: dict[int, float]) -> str:
    """A line that says what to change, or to leave it."""
    best = min(seconds, key=lambda value: seconds[value])
    if seconds[best] < CLEARLY_FASTER * seconds[now]:
        gain = f"{1e3 * seconds[best]:.3g} ms instead of {1e3 * seconds[now]:.3g}"
        return f"- Set {size} to {best} in `{name}` of hypertrack_jax/device.py: {gain}."
    return f"- Leave {size} at {now} in `{name}` of hypertrack_jax/device.py."


def road_training(setting: Setting) -> None:
    """Continues the training of the model on sectors of full events, and saves the result."""
    # Not above: they import torch where it is installed, which would cost each stage a second.
    from hypertrack_jax.training.loop import train
    from hypertrack_jax.training.run import TrainingRun

    model, directory = load_model(setting), setting.report.directory
    runs = directory / "training"
    tune = training_tune(model)
    held_out, *ids = stored_ids(setting.data)
    rfactor = share_of(setting, load_event(setting.data, held_out)) or 1.0
    run = TrainingRun(
        source=EventSource(
            setting.data,
            ids or [held_out],
            rfactor,
            rfactor,
            OWN_NOISE_RATIO,
            0,
            sector_hits(setting),
        ),
        checkpoint_directory=runs / "models",
        log_directory=runs / "log",
        num_steps=2 if setting.is_small else 10**6,
        save_period=1.0,
        phase=FULL_PHASE,
        transfer_directory=None if setting.is_small else Path(MODEL),
    )
    # As Ctrl-C: the training saves and returns.
    allowed = max(setting.seconds - SAVING_SECONDS, 5.0)
    alarm = threading.Timer(allowed, os.kill, (os.getpid(), signal.SIGTERM))
    alarm.daemon = True
    alarm.start()
    started = time.monotonic()
    state = jax.device_get(train(run, tune, model.voxdyn, model.edge_filter))
    alarm.cancel()
    compact = compact_voxdyn(model.voxdyn, tune.voxdyn.min_count)
    weights = Weights(
        tune,
        state.params,
        state.batch_stats,
        count_pairs(model.voxdyn),
        compact,
        model.edge_filter,
    )
    path = save_weights(directory / "trained.npz", weights)
    with tarfile.open(directory / "checkpoints.tar.gz", "w:gz") as archive:
        archive.add(runs, "training")
    setting.report.add(
        "train",
        steps=int(state.step),
        **{"seconds, compiling and loading included": time.monotonic() - started},
        AUC=float(state.auc_mean),
    )
    setting.report.note("train", f"{path.name} is a model; checkpoints.tar.gz goes on from it.")


STAGES = {
    "device": StageOfCheck(device_rates, 45),
    "tests": StageOfCheck(device_tests, 100),
    "reconstruct": StageOfCheck(reconstructions, 120),
    "train_step": StageOfCheck(training_steps, 120),
    "sizes": StageOfCheck(size_scan, 75),
    "train": StageOfCheck(road_training, math.inf),
}
"""All stages, in their order."""
