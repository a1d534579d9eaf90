"""The training loop: phases, resuming, stopping, refusing, and what it writes."""

import json
import logging
import os
import signal
import struct
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event as LogEvent

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.edge_metrics import auc
from hypertrack_jax.graph.event_graph import event_graph
from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.parameters import CLUSTER, EDGE
from hypertrack_jax.networks.edge_predictor import predict
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.training import loop, progress, step
from hypertrack_jax.training.batches import fixed_events, graph_batch, step_events
from hypertrack_jax.training.event_loss import Losses
from hypertrack_jax.training.loop import train
from hypertrack_jax.training.metrics_file import METRICS_FILE, VALIDATION_AUC
from hypertrack_jax.training.optimizer import learning_rate_schedule
from hypertrack_jax.training.progress import TrainingProgress
from hypertrack_jax.training.run import TrainingRun
from hypertrack_jax.training.step import StepMetrics
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics

pytestmark = pytest.mark.usefixtures("optax_promotion", "short_intervals")


@pytest.fixture
def short_intervals(monkeypatch):
    monkeypatch.setattr(progress, "LOG_INTERVAL", 2)
    monkeypatch.setattr(progress, "MAX_SKIPPED", 3)


class Runner(NamedTuple):
    """Trains under a directory of its own."""

    run: TrainingRun
    tune: Tune
    voxdyn: VoxelDynamics

    def train(self, num_steps, tune=None, **changes):
        run = replace(self.run, num_steps=num_steps, **changes)
        return train(run, tune or self.tune, self.voxdyn)

    def saved_steps(self):
        with Checkpoints(self.run.checkpoint_directory) as checkpoints:
            return checkpoints.steps()


@pytest.fixture
def make_runner(source, small_tune, voxdyn, tmp_path):
    def make(tag="tag"):
        run = TrainingRun(
            source, tmp_path / "models" / tag, tmp_path / "runs" / tag, 0, batch_size=2
        )
        return Runner(run, small_tune, voxdyn)

    return make


@pytest.fixture
def runner(make_runner):
    return make_runner()


def kernel_of(state):
    return state.params[EDGE]["edge_mlp"]["kernel"]


def assert_identical(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_resuming_equals_an_uninterrupted_run(make_runner):
    whole = make_runner("whole").train(6)
    halves = make_runner("halves")
    first_half = halves.train(3)
    second_half = halves.train(6)
    assert int(first_half.step) == 3
    assert_identical(second_half, whole)
    assert np.any(kernel_of(first_half) != kernel_of(whole))
    with Checkpoints(halves.run.checkpoint_directory) as checkpoints:
        assert checkpoints.steps() == [3, 6]
        assert checkpoints.describe() == (6, halves.tune, count_pairs(halves.voxdyn))
        assert_identical(checkpoints.restore(6, whole), whole)


def test_memory_that_runs_out_is_told(runner, monkeypatch):
    def make_failing(*_):
        def step(*_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

        return step

    monkeypatch.setattr(loop, "make_spread_step", make_failing)
    told = (
        r"memory ran out in a training step of \d+ hits and \d+ edges; choose a smaller sector_hits"
    )
    with pytest.raises(UserError, match=told):
        runner.train(1)


def test_a_finished_run_does_nothing_more_and_says_so(runner, caplog):
    state = runner.train(2)
    assert_identical(runner.train(2), state)
    assert runner.saved_steps() == [2]
    assert "step 2 is reached already; raise num_steps" in caplog.text


def test_a_larger_epoch_goes_on_from_that_step(runner):
    runner.train(2)
    at_3 = runner.train(3)
    assert_identical(runner.train(3, epoch=2, log_directory=runner.run.log_directory / "2"), at_3)


def test_going_back_replaces_what_came_after(runner):
    faster = replace(runner.tune, optimizer=replace(runner.tune.optimizer, learning_rate=2e-2))
    runner.train(2)
    runner.train(3)
    runner.train(5)
    again = runner.train(4, epoch=3, tune=faster, log_directory=runner.run.log_directory / "2")
    assert runner.saved_steps()[-1] == 4
    assert_identical(runner.train(4, log_directory=runner.run.log_directory / "3"), again)


def test_a_taken_tag_is_not_begun_anew(runner):
    runner.train(1, epoch=0)
    with pytest.raises(UserError, match=r"tag: epoch 0 begins anew, .*up to step 1; .*other tag"):
        runner.train(2, epoch=0)
    assert runner.saved_steps() == [1]


def test_a_step_that_was_never_saved_is_refused(runner):
    with pytest.raises(FileNotFoundError, match="no step 5 here"):
        runner.train(6, epoch=5)


def test_another_network_is_refused_and_another_optimiser_is_not(runner):
    runner.train(1)
    network = replace(runner.tune.network, latent_dim=9)
    with pytest.raises(UserError, match=r"network\.latent_dim is 16, but 9 is asked for"):
        runner.train(2, tune=replace(runner.tune, network=network))
    slower = replace(runner.tune, optimizer=replace(runner.tune.optimizer, learning_rate=1e-4))
    assert int(runner.train(2, tune=slower).step) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_returns(runner, monkeypatch, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    record = TrainingProgress.record

    def record_and_stop(bar, done, metrics, batch):
        record(bar, done, metrics, batch)
        if done == 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainingProgress, "record", record_and_stop)
    state = runner.train(50)
    assert int(state.step) == 2
    assert runner.saved_steps() == [2]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.undo()
    assert int(runner.train(3).step) == 3


def test_a_second_signal_ends_at_once(runner, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)

    def stop_twice(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingProgress, "record", stop_twice)
    with pytest.raises(KeyboardInterrupt):
        runner.train(50)
    assert signal.getsignal(signal.SIGINT) is handler


def test_checkpoints_by_time(runner):
    # No time between two: each step is saved, and the latest two are kept beside the best.
    runner.train(4, save_period=0.0)
    assert set(runner.saved_steps()) >= {3, 4}
    assert len(runner.saved_steps()) <= 3


def logged(directory):
    """The lines of metrics as {name: {step: value}}."""
    scalars = {}
    for line in (directory / METRICS_FILE).read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            scalars.setdefault(name, {})[step] = value
    return scalars


def in_tensorboard(directory):
    """Scalars of a TensorBoard file as {tag: {step: value}}; the format is TFRecord."""
    (path,) = directory.glob("events*")
    content, scalars, place = path.read_bytes(), {}, 0
    while place < len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        # A record is its size, a checksum of that, the data, and a checksum of those.
        event = LogEvent.FromString(content[place + 12 : place + 12 + size])
        place += size + 16
        for value in event.summary.value:
            scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return scalars


def test_both_files_hold_the_scalars(runner, source):
    # One more than there are devices.
    validation = source._replace(event_ids=[1, 2, 3], seed=9)
    state = runner.train(5, validation=validation, validate_every=3)
    scalars = logged(runner.run.log_directory)
    names = {*Losses._fields, *StepMetrics._fields, "phase", "learning_rate"} - {"losses"}
    assert {"auc_mean", "cluster_bce", "gradient_norm", "loss_scale", "is_cut"} <= names
    assert set(scalars) == names | {VALIDATION_AUC}
    for name in names:
        assert set(scalars[name]) == {1, 3, 4}
        assert np.all(np.isfinite(list(scalars[name].values())))
    schedule = learning_rate_schedule(runner.tune.optimizer)
    assert scalars["learning_rate"] == pytest.approx(
        {step: float(schedule(step)) for step in (1, 3, 4)}
    )
    assert set(scalars[VALIDATION_AUC]) == {3, 5}
    assert scalars[VALIDATION_AUC][5] == pytest.approx(
        mean_auc(state, runner.tune, validation, runner.voxdyn), abs=1e-5
    )
    tags = {name: f"train/{name}" for name in names} | {VALIDATION_AUC: "validation/auc"}
    shown = in_tensorboard(runner.run.log_directory)
    assert shown == {tags[name]: pytest.approx(values) for name, values in scalars.items()}


def mean_auc(state, tune, validation, voxdyn):
    areas = []
    for event in fixed_events(validation):
        edges = predict_edges(voxdyn, event.position)
        graph = event_graph(event, *edges, node2node="hyper")
        on_device = jax.device_put(graph)
        prediction = predict(tune.network, state.params[EDGE], state.batch_stats, on_device)
        mask = graph.edges.mask
        areas.append(auc(graph.edges.label[mask], np.asarray(prediction.logit)[mask]))
    return np.mean(areas)


def test_the_loop_itself_learns(runner):
    scalars = {}
    for num_steps in (2, 60):
        runner.train(num_steps, log_directory=runner.run.log_directory / str(num_steps))
        scalars |= {num_steps: logged(runner.run.log_directory / str(num_steps))["loss"]}
    losses = list(scalars[60].values())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_gradient_that_stays_non_finite_stops_the_run(runner):
    # The first update throws the weights out of float32's range.
    optimizer = replace(runner.tune.optimizer, learning_rate=1e38, weight_decay=1e3)
    with pytest.raises(UserError, match=r"not finite in \d+ updates in a row .*learning_rate"):
        runner.train(40, tune=replace(runner.tune, optimizer=optimizer))
    assert runner.saved_steps() == []


def test_a_first_loss_that_is_not_finite_is_told_at_once(runner, source):
    weights = runner.train(1)
    bias = jnp.full_like(weights.params[EDGE]["fusion"]["layers_0"]["bias"], jnp.nan)
    weights.params[EDGE]["fusion"]["layers_0"]["bias"] = bias
    with Checkpoints(runner.run.checkpoint_directory, is_writer=True) as checkpoints:
        num_pairs = count_pairs(runner.voxdyn)
        checkpoints.save(1, weights, runner.tune, auc=0.5, num_pairs=num_pairs)
    with pytest.raises(UserError, match=r"^the loss is nan at step 1, the first of this run .*; "):
        runner.train(40)


def test_a_tag_is_trained_by_one_process_at_a_time(runner):
    with (
        Checkpoints(runner.run.checkpoint_directory, is_writer=True),
        pytest.raises(UserError, match="another process trains this tag"),
    ):
        runner.train(1)
    assert int(runner.train(1).step) == 1


def test_numbers_are_refused_before_anything_is_written(runner):
    with pytest.raises(UserError, match=r"^save_period is nan; "):
        runner.train(1, save_period=float("nan"))
    assert not runner.run.checkpoint_directory.exists()


def test_an_event_that_is_missing_stops_the_run(runner, source):
    incomplete = source._replace(event_ids=[98, 99])
    with pytest.raises(FileNotFoundError, match="no such event"):
        runner.train(3, source=incomplete)


def test_an_unwritable_place_is_one_sentence(runner, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"tag: checkpoints cannot be written"):
        runner.train(1, checkpoint_directory=tmp_path / "file" / "tag")
    with pytest.raises(OSError, match=r"file"):
        runner.train(1, log_directory=tmp_path / "file" / "tag")


@pytest.fixture
def soon(runner, monkeypatch):
    """A tune with which phase 2 begins at step 4, if it is left to the AUC."""
    monkeypatch.setattr(step, "AUC_MEMORY", 3)
    monkeypatch.setattr(step, "PHASE_INTERVAL", 2)
    monkeypatch.setattr(loop, "PHASE_INTERVAL", 2)
    optimizer = replace(runner.tune.optimizer, auc_threshold=0.1, warmup_steps=8)
    return replace(runner.tune, optimizer=optimizer)


def test_phase_2_begins_by_itself_and_resuming_changes_nothing(make_runner, soon, caplog):
    caplog.set_level(logging.INFO)
    whole = make_runner("whole")
    state = whole.train(8, soon)
    assert (state.step, state.phase, state.phase_start) == (8, 2, 4)
    assert caplog.text.count("phase 2 begins") == 1
    # Stopped just before the change, at it, and after it.
    parts = make_runner("parts")
    before = parts.train(3, soon)
    at = parts.train(4, soon)
    for num_steps in (5, 8):
        resumed = parts.train(num_steps, soon, log_directory=whole.run.log_directory / "parts")
    assert_identical(resumed, state)
    assert (before.phase, at.phase) == (1, 1)
    assert_identical(at.params[CLUSTER], before.params[CLUSTER])
    moved = jax.tree.map(lambda a, b: np.any(a != b), state.params[CLUSTER], at.params[CLUSTER])
    assert any(jax.tree.leaves(moved))


def test_the_logs_tell_the_phases_apart(runner, soon):
    runner.train(8, soon)
    scalars = logged(runner.run.log_directory)
    assert scalars["phase"] == {1: 1, 3: 1, 5: 2, 7: 2}
    # In phase 2 there are clusters.
    assert [scalars["num_micrographs"][n] > 0 for n in (1, 3, 5, 7)] == [0, 0, 1, 1]
    schedule = learning_rate_schedule(soon.optimizer)
    expected = {1: schedule(1), 3: schedule(3), 5: schedule(1), 7: schedule(3)}
    assert scalars["learning_rate"] == pytest.approx({n: float(v) for n, v in expected.items()})


def test_phase_2_is_left_out_or_begun_at_once_where_it_is_asked_for(make_runner, soon):
    assert make_runner("1").train(6, soon, phase=1).phase == 1
    none = replace(soon, cluster=replace(soon.cluster, cluster="none"))
    assert make_runner("none").train(6, none).phase == 1
    state = make_runner("2").train(2, phase=2)
    assert (state.phase, state.phase_start) == (2, 0)


def metrics_with(is_cut):
    losses = Losses(*[np.float32(0)] * len(Losses._fields))._replace(is_cut=np.float32(is_cut))
    return StepMetrics(losses, *[np.float32(0)] * (len(StepMetrics._fields) - 1))


def test_no_mean_is_over_both_phases(runner, source):
    batch = graph_batch(step_events(source, 0, 2), runner.voxdyn, runner.tune)
    places = runner.run.log_directory, runner.tune.optimizer
    with TrainingProgress(*places, 0, 6, has_validation=False) as bar:
        for number in range(6):
            bar.enter_phase(1 + number // 4, number // 4 * 4)
            bar.record(number, metrics_with(is_cut=number >= 4), batch)
    scalars = logged(runner.run.log_directory)
    assert scalars["is_cut"] == {1: 0, 3: 0, 5: 1}
    assert scalars["phase"] == {1: 1, 3: 1, 5: 2}


def test_cut_micrographs_are_told_but_not_at_every_step(runner, source, caplog, monkeypatch):
    monkeypatch.setattr(progress, "CUT_INTERVAL", 10)
    batch = graph_batch(step_events(source, 0, 2), runner.voxdyn, runner.tune)
    places = runner.run.log_directory, runner.tune.optimizer
    with TrainingProgress(*places, 0, 30, has_validation=False) as bar:
        bar.enter_phase(2, 0)
        for number in range(30):
            bar.record(number, metrics_with(is_cut=number > 7), batch)
    told = [record.getMessage() for record in caplog.records if "were cut" in record.getMessage()]
    assert [message.split(":")[0] for message in told] == ["step 9", "step 19", "step 29"]
