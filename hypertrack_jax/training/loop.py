"""Host side: the training loop, phase 1 (algorithm section 7): the GNN edge predictor alone."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tensorboardX import SummaryWriter
from tqdm import tqdm

from hypertrack_jax.events.event import Event
from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.networks.edge_predictor import predict
from hypertrack_jax.training.batches import (
    Batch,
    EventSource,
    fixed_events,
    graph_batch,
    prefetched,
)
from hypertrack_jax.training.checkpoint import Checkpoints, require_same_tune
from hypertrack_jax.training.edge_auc import masked_auc
from hypertrack_jax.training.optimizer import learning_rate_schedule
from hypertrack_jax.training.step import StepMetrics, TrainState, init_state, make_train_step
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics

_LOG = logging.getLogger(__name__)
LOG_INTERVAL = 10
"""Steps between two reads from the device."""
MAX_SKIPPED = 20
"""Updates in a row with a gradient that is not finite after which a run stops."""
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""Types of the arrays over hits and edges; weights and statistics are float32 in all of them."""


@dataclass(frozen=True)
class TrainingRun:
    """What a run is made of, beside the Tune and the graph constructor."""

    source: EventSource
    """Training events."""
    checkpoint_directory: Path
    """Directory of the tag."""
    log_directory: Path
    """Directory of the TensorBoard event files."""
    num_steps: int
    """Updates in all, those before a resume included."""
    batch_size: int = 1
    """Events per update."""
    fp_dtype: str = "float32"
    """A key of `DTYPES`."""
    save_period: float = 15.0
    """Minutes between two checkpoints."""
    validation: EventSource | None = None
    """Validation events, or None for a run without validation."""
    validate_every: int = 500
    """Updates between two validations; there is one at the end, too."""


def train(run: TrainingRun, tune: Tune, voxdyn: VoxelDynamics, epoch: int = -1) -> TrainState:
    """Trains until `run.num_steps`, Ctrl-C or SIGTERM; saves by time and at the end.

    Args:
      run: data, places and durations.
      tune: the model and how it is trained.
      voxdyn: the graph constructor.
      epoch: -1 goes on from the latest checkpoint, or begins where there is none; 0 begins, and
        refuses a tag that has checkpoints; a larger number goes on from that step.

    Returns:
      The state at the end.

    Raises:
      ValueError: the checkpoint belongs to another tune; the tag is taken; the gradient stayed
        non-finite.
      OSError: a file cannot be read or written.
    """
    trainer = _Trainer(run, tune, voxdyn)
    with Checkpoints(run.checkpoint_directory, is_writer=True) as checkpoints:
        state = trainer.first_state(checkpoints, epoch)
        with _Progress(run, tune, int(state.step)) as progress, _stop_signals() as stopped:
            first_step = int(state.step)
            state = trainer.updates(state, checkpoints, progress, stopped)
            step = int(state.step)
            if run.validation is not None and step % run.validate_every and not stopped:
                progress.record_validation(step, trainer.validation_auc(state))
            if step > first_step:
                checkpoints.save(step, state, tune, progress.auc)
    return state


class _Trainer:
    """A run's data and compiled programs."""

    def __init__(self, run: TrainingRun, tune: Tune, voxdyn: VoxelDynamics):
        self.run, self.tune, self.voxdyn = run, tune, voxdyn
        self.key = jax.random.key(run.source.seed)
        self.train_step = make_train_step(tune, DTYPES[run.fp_dtype])
        self.event_auc = _make_event_auc(tune, DTYPES[run.fp_dtype])

    def first_state(self, checkpoints: Checkpoints, epoch: int) -> TrainState:
        """Fresh or restored, as `epoch` asks; see `train`."""
        steps = checkpoints.steps()
        if epoch == 0 and steps:
            raise ValueError(
                f"{checkpoints.directory}: --epoch=0 begins anew, but this tag has checkpoints up "
                f"to step {steps[-1]}; choose another --save_tag, or --epoch=-1 to go on."
            )
        resumes = epoch > 0 or (epoch == -1 and len(steps) > 0)
        saved = checkpoints.describe(epoch) if resumes else None
        if saved is not None:
            require_same_tune(saved.tune, self.tune, ("voxdyn", "network"), checkpoints.directory)
        fresh = jax.jit(init_state, static_argnums=0)(self.tune, self.key)
        if saved is None:
            return fresh
        _LOG.info("resuming %s from step %d", checkpoints.directory.name, saved.step)
        return checkpoints.restore(saved.step, fresh)

    def updates(
        self,
        state: TrainState,
        checkpoints: Checkpoints,
        progress: "_Progress",
        stopped: list[int],
    ) -> TrainState:
        """One update after another, until all are done or a signal is in `stopped`."""
        run, first_step = self.run, int(state.step)
        saved_at = time.monotonic()
        with prefetched(
            run.source, self.voxdyn, self.tune.voxdyn, run.batch_size, first_step
        ) as batches:
            for step in range(first_step, run.num_steps):
                batch = next(batches)
                progress.announce_bucket(batch)
                state, metrics = self.train_step(state, batch.graphs, self.key)
                progress.record(step, metrics, batch)
                done = step + 1
                if run.validation is not None and done % run.validate_every == 0:
                    progress.record_validation(done, self.validation_auc(state))
                if time.monotonic() - saved_at > 60 * run.save_period:
                    checkpoints.save(done, state, self.tune, progress.auc)
                    saved_at = time.monotonic()
                if stopped or done == run.num_steps:
                    progress.flush(step, batch)
                if stopped:
                    _LOG.warning("stopped at step %d; the same command goes on from there", done)
                    break
        return state

    def validation_auc(self, state: TrainState) -> float:
        """Mean edge AUC over validation events, normalised by running statistics."""
        assert self.run.validation is not None
        areas = []
        for event in fixed_events(self.run.validation):
            graph = jax.tree.map(lambda array: array[0], self._graphs([event]))
            areas.append(float(self.event_auc(state.params, state.batch_stats, graph)))
        return float(np.mean(areas))

    def _graphs(self, events: list[Event]) -> EventGraph:
        return graph_batch(events, self.voxdyn, self.tune.voxdyn).graphs


def _make_event_auc(tune: Tune, dtype: DTypeLike) -> Callable[..., jax.Array]:
    @jax.jit
    def event_auc(params, batch_stats, graph: EventGraph):
        logit = predict(tune.network, params, batch_stats, graph, dtype).logit
        return masked_auc(logit, graph.edges.label, graph.edges.mask)

    return event_auc


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM fill the list instead of ending the process; a second one ends it."""
    received: list[int] = []

    def note(number, _):
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Progress:
    """The progress bar and the TensorBoard file; reads the device once per `LOG_INTERVAL`."""

    def __init__(self, run: TrainingRun, tune: Tune, first_step: int):
        self.auc = 0.0
        self._run = run
        self._schedule = learning_rate_schedule(tune.optimizer)
        self._pending: list[StepMetrics] = []
        self._buckets: set[tuple[int, ...]] = set()
        self._bar = tqdm(total=run.num_steps, initial=first_step, unit="step", smoothing=0.1)
        run.log_directory.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(run.log_directory), purge_step=first_step)

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        self._writer.close()

    def announce_bucket(self, batch: Batch) -> None:
        bucket = (batch.graphs.nodes.mask.shape[1], batch.graphs.senders.shape[1])
        if bucket not in self._buckets:
            self._buckets.add(bucket)
            _LOG.info("compiling for %d hits and %d edges", *bucket)

    def record(self, step: int, metrics: StepMetrics, batch: Batch) -> None:
        self._pending.append(metrics)
        self._bar.update()
        if (step + 1) % LOG_INTERVAL:
            return
        # All but the newest have long been computed, so that the device keeps working meanwhile.
        *ready, newest = self._pending
        self._pending = [newest]
        if ready:
            self._log(step, jax.device_get(ready), batch)

    def flush(self, step: int, batch: Batch) -> None:
        """Logs what has not been logged, at the end of a run."""
        if self._pending:
            ready, self._pending = self._pending, []
            self._log(step, jax.device_get(ready), batch)

    def record_validation(self, step: int, auc: float) -> None:
        self.auc = auc
        self._writer.add_scalar("validation/auc", auc, step)
        _LOG.info("step %d: validation AUC %.4f", step, auc)

    def _log(self, step: int, metrics: list[StepMetrics], batch: Batch) -> None:
        means = {
            name: float(np.mean(np.asarray([getattr(entry, name) for entry in metrics])))
            for name in StepMetrics._fields
        }
        # Training and validation differ too much to be compared for the best checkpoint.
        if self._run.validation is None:
            self.auc = float(np.nan_to_num(means["auc"]))
        rate = np.asarray(self._schedule(step)).item()
        for name, value in {**means, "learning_rate": rate}.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        steps_per_second = self._bar.format_dict["rate"]
        events = f"{steps_per_second * self._run.batch_size:.1f}" if steps_per_second else "-"
        self._bar.set_postfix_str(
            f"loss {means['loss']:.3f} auc {means['auc']:.4f} lr {rate:.1e} "
            f"events/s {events} edges {batch.num_edges}"
        )
        if metrics[-1].num_skipped >= MAX_SKIPPED:
            raise ValueError(
                f"the gradient was not finite in {int(metrics[-1].num_skipped)} updates in a row "
                f"up to step {step}; lower --learning_rate, or go on from an earlier --epoch."
            )
