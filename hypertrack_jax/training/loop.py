"""Host side: the training loop (algorithm section 7): the edge predictor first, then both."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.typing import DTypeLike

from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.networks.edge_predictor import predict
from hypertrack_jax.training.batches import fixed_events, graph_batch, prefetched
from hypertrack_jax.training.checkpoint import Checkpoints
from hypertrack_jax.training.edge_auc import masked_auc
from hypertrack_jax.training.event_loss import EDGE, FULL_PHASE, GNN_PHASE
from hypertrack_jax.training.progress import Progress
from hypertrack_jax.training.run import DTYPES, TrainingRun, first_state
from hypertrack_jax.training.step import (
    PHASE_INTERVAL,
    TrainState,
    begin_phase,
    due_phase,
    make_train_step,
)
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics

_LOG = logging.getLogger(__name__)


def train(run: TrainingRun, tune: Tune, voxdyn: VoxelDynamics) -> TrainState:
    """Trains until `run.num_steps`, Ctrl-C or SIGTERM; saves by time and at the end.

    However a run ends, the same call goes on from its latest checkpoint and arrives at the weights
    of a run that never ended.

    Args:
      run: data, places, durations, and what to begin with.
      tune: the model and how it is trained.
      voxdyn: the graph constructor.

    Returns:
      The state at the end.

    Raises:
      ValueError: the run asks for what does not go together; the checkpoint belongs to another
        tune; the tag is taken; the gradient stayed non-finite.
      OSError: a file cannot be read or written.
    """
    key = jax.random.key(run.source.seed)
    with Checkpoints(run.checkpoint_directory, is_writer=True) as checkpoints:
        state = _placed(first_state(run, tune, key, checkpoints))
        step = int(state.step)
        if step >= run.num_steps:
            _LOG.warning("step %d is reached already; raise --num_steps to go on", step)
            return state
        span, has_validation = (step, run.num_steps), run.validation is not None
        with Progress(run.log_directory, tune.optimizer, *span, has_validation) as progress:
            return _Trainer(run, tune, voxdyn, checkpoints, progress).updates(state, key)


class _Trainer:
    """A run's data, its compiled programs, and where its results go."""

    def __init__(
        self,
        run: TrainingRun,
        tune: Tune,
        voxdyn: VoxelDynamics,
        checkpoints: Checkpoints,
        progress: Progress,
    ):
        self.run, self.tune, self.voxdyn = run, tune, voxdyn
        self.checkpoints, self.progress = checkpoints, progress
        dtype = DTYPES[run.fp_dtype]
        # Compiled when first called: a phase that does not come costs nothing.
        self.train_steps = {
            phase: make_train_step(tune, dtype, phase) for phase in (GNN_PHASE, FULL_PHASE)
        }
        self.event_auc = _make_event_auc(tune, dtype)
        self.phase = GNN_PHASE
        self.saved_at = time.monotonic()

    def updates(self, state: TrainState, key: jax.Array) -> TrainState:
        """One update after another, until all are done or a signal comes."""
        run, first_step = self.run, int(state.step)
        ahead = prefetched(run.source, self.voxdyn, self.tune.voxdyn, run.batch_size, first_step)
        with ahead as batches, _stop_signals() as stopped:
            for step in range(first_step, run.num_steps):
                if step == first_step or step % PHASE_INTERVAL == 0:
                    state = self.in_due_phase(state)
                batch = next(batches)
                self.progress.announce_bucket(batch)
                state, metrics = self.train_steps[self.phase](state, batch.graphs, key)
                self.progress.record(step, metrics, batch)
                is_last = bool(stopped) or step + 1 == run.num_steps
                self.after_update(step + 1, state, is_last)
                if is_last:
                    break
        if stopped:
            _LOG.warning("stopped at step %d; the same command goes on from there", step + 1)
        return state

    def in_due_phase(self, state: TrainState) -> TrainState:
        """The state in the phase that the next update belongs to."""
        self.phase = due_phase(self.tune, state, self.run.phase)
        if self.phase != int(state.phase):
            numbers = int(state.step), self.phase, float(state.auc_mean)
            _LOG.info("step %d: phase %d begins (mean AUC before: %.4f)", *numbers)
            state = _placed(begin_phase(self.tune, state, self.phase))
        self.progress.enter_phase(self.phase, int(state.phase_start))
        return state

    def after_update(self, num_done: int, state: TrainState, is_last: bool) -> None:
        """Validates and saves when it is time to."""
        run = self.run
        if is_last:
            self.progress.flush()
        if run.validation is not None and (
            num_done % run.validate_every == 0 or num_done == run.num_steps
        ):
            self.progress.record_validation(num_done, self.validation_auc(state))
        if is_last or time.monotonic() - self.saved_at > 60 * run.save_period:
            self.checkpoints.save(num_done, state, self.tune, self.progress.auc)
            self.saved_at = time.monotonic()

    def validation_auc(self, state: TrainState) -> float:
        """Mean edge AUC over validation events, normalised by running statistics."""
        assert self.run.validation is not None
        areas = []
        for event in fixed_events(self.run.validation):
            graphs = graph_batch([event], self.voxdyn, self.tune.voxdyn).graphs
            graph = jax.tree.map(lambda array: array[0], graphs)
            areas.append(float(self.event_auc(state.params[EDGE], state.batch_stats, graph)))
        return float(np.mean(areas))


def _placed(state: TrainState) -> TrainState:
    """The state bound to the first device.

    Arrays that are bound and such that are not make programs of their own; a state of both, after a
    resume or a change of phase, would be compiled for twice.
    """
    return jax.device_put(state, jax.devices()[0])


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
