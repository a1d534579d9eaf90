"""The training loop: resuming, stopping, refusing, and what it writes."""

import os
import signal
import struct
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event as LogEvent

from hypertrack_jax.evaluation.metrics import auc
from hypertrack_jax.graph.event_graph import event_graph
from hypertrack_jax.reconstruct import edge_probability
from hypertrack_jax.training import loop
from hypertrack_jax.training.batches import fixed_events
from hypertrack_jax.training.checkpoint import Checkpoints
from hypertrack_jax.training.loop import TrainingRun, train
from hypertrack_jax.training.optimizer import learning_rate_schedule
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics, predict_edges

pytestmark = pytest.mark.usefixtures("optax_promotion", "short_intervals")


@pytest.fixture
def short_intervals(monkeypatch):
    monkeypatch.setattr(loop, "LOG_INTERVAL", 2)
    monkeypatch.setattr(loop, "MAX_SKIPPED", 3)


class Runner(NamedTuple):
    """Trains under a directory of its own."""

    run: TrainingRun
    tune: Tune
    voxdyn: VoxelDynamics

    def train(self, num_steps, epoch=-1, tune=None, **changes):
        run = replace(self.run, num_steps=num_steps, **changes)
        return train(run, tune or self.tune, self.voxdyn, epoch)

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


def assert_identical(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_resuming_equals_an_uninterrupted_run(make_runner):
    whole = make_runner("whole").train(6)
    halves = make_runner("halves")
    first_half = halves.train(3)
    second_half = halves.train(6)
    assert int(first_half.step) == 3
    assert_identical(second_half, whole)
    assert np.any(first_half.params["edge_mlp"]["kernel"] != whole.params["edge_mlp"]["kernel"])
    with Checkpoints(halves.run.checkpoint_directory) as checkpoints:
        assert checkpoints.steps() == [3, 6]
        assert checkpoints.describe() == (6, halves.tune)
        assert_identical(checkpoints.restore(6, whole), whole)


def test_a_finished_run_does_nothing_more(runner):
    state = runner.train(2)
    assert_identical(runner.train(2), state)
    assert runner.saved_steps() == [2]


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
    with pytest.raises(
        ValueError, match=r"tag: --epoch=0 begins anew, .*up to step 1; .*--save_tag"
    ):
        runner.train(2, epoch=0)
    assert runner.saved_steps() == [1]


def test_a_step_that_was_never_saved_is_refused(runner):
    with pytest.raises(FileNotFoundError, match="no step 5 here"):
        runner.train(6, epoch=5)


def test_another_network_is_refused_and_another_optimiser_is_not(runner):
    runner.train(1)
    network = replace(runner.tune.network, latent_dim=9)
    with pytest.raises(ValueError, match=r"network\.latent_dim is 16, but 9 is asked for"):
        runner.train(2, tune=replace(runner.tune, network=network))
    slower = replace(runner.tune, optimizer=replace(runner.tune.optimizer, learning_rate=1e-4))
    assert int(runner.train(2, tune=slower).step) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_returns(runner, monkeypatch, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    record = loop._Progress.record

    def record_and_stop(progress, step, metrics, batch):
        record(progress, step, metrics, batch)
        if step == 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(loop._Progress, "record", record_and_stop)
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

    monkeypatch.setattr(loop._Progress, "record", stop_twice)
    with pytest.raises(KeyboardInterrupt):
        runner.train(50)
    assert signal.getsignal(signal.SIGINT) is handler


def test_checkpoints_by_time(runner):
    # No time between two: each step is saved, and the latest two are kept beside the best.
    runner.train(4, save_period=0.0)
    assert set(runner.saved_steps()) >= {3, 4}
    assert len(runner.saved_steps()) <= 3


def logged(directory):
    """Scalars of a TensorBoard file as {tag: {step: value}}; the format is TFRecord."""
    (path,) = directory.iterdir()
    content, scalars, place = path.read_bytes(), {}, 0
    while place < len(content):
        (size,) = struct.unpack_from("<Q", content, place)
        # A record is its size, a checksum of that, the data, and a checksum of those.
        event = LogEvent.FromString(content[place + 12 : place + 12 + size])
        place += size + 16
        for value in event.summary.value:
            scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return scalars


def test_tensorboard_holds_the_scalars(runner, source):
    validation = source._replace(event_ids=[1, 2], seed=9)
    state = runner.train(5, validation=validation, validate_every=3)
    scalars = logged(runner.run.log_directory)
    train_tags = {
        f"train/{name}"
        for name in ("loss", "edge_bce", "edge_contrastive", "auc", "gradient_norm", "num_skipped")
    }
    assert set(scalars) == train_tags | {"train/learning_rate", "validation/auc"}
    for tag in train_tags:
        assert set(scalars[tag]) == {1, 3, 4}
        assert np.all(np.isfinite(list(scalars[tag].values())))
    schedule = learning_rate_schedule(runner.tune.optimizer)
    assert scalars["train/learning_rate"] == pytest.approx(
        {step: float(schedule(step)) for step in (1, 3, 4)}
    )
    assert set(scalars["validation/auc"]) == {3, 5}
    assert scalars["validation/auc"][5] == pytest.approx(
        mean_auc(state, runner.tune, validation, runner.voxdyn), abs=1e-5
    )


def mean_auc(state, tune, validation, voxdyn):
    areas = []
    for event in fixed_events(validation):
        edges = predict_edges(voxdyn, event.position)
        graph = event_graph(event, *edges, node2node="hyper")
        on_device = jax.device_put(graph)
        score = edge_probability(tune.network, state.params, state.batch_stats, on_device)
        mask = graph.edges.mask
        areas.append(auc(graph.edges.label[mask], np.asarray(score)[mask]))
    return np.mean(areas)


def test_the_loop_itself_learns(runner):
    scalars = {}
    for num_steps in (2, 60):
        runner.train(num_steps, log_directory=runner.run.log_directory / str(num_steps))
        scalars |= {num_steps: logged(runner.run.log_directory / str(num_steps))["train/loss"]}
    losses = list(scalars[60].values())
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_gradient_that_stays_non_finite_stops_the_run(runner):
    # The first update throws the weights out of float32's range.
    optimizer = replace(runner.tune.optimizer, learning_rate=1e38, weight_decay=1e3)
    with pytest.raises(ValueError, match=r"not finite in \d+ updates in a row .*--learning_rate"):
        runner.train(40, tune=replace(runner.tune, optimizer=optimizer))
    assert runner.saved_steps() == []


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


def test_half_precision_trains_with_weights_in_float32(runner):
    state = runner.train(2, fp_dtype="bfloat16")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))
    assert int(state.num_skipped) == 0
