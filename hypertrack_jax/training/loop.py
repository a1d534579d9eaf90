"""Host side: the training loop (algorithm section 7): the edge predictor first, then both."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import jax
from jax.typing import DTypeLike

from hypertrack_jax.compilation import forget_programs_if_many
from hypertrack_jax.device import memory_told
from hypertrack_jax.events.sectors import require_sectors
from hypertrack_jax.graph.event_graph import EventGraph, core_edges
from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.parameters import EDGE, FULL_PHASE, GNN_PHASE
from hypertrack_jax.networks.edge_filter import FilterWeights
from hypertrack_jax.networks.edge_predictor import predict
from hypertrack_jax.reconstruction.devices import map_events
from hypertrack_jax.training.batches import fixed_sectors, graph_batch, prefetched
from hypertrack_jax.training.devices import (
    Devices,
    any_process,
    make_spread_step,
    mean_of_processes,
    spread_over,
)
from hypertrack_jax.training.edge_auc import masked_auc
from hypertrack_jax.training.progress import TrainingProgress
from hypertrack_jax.training.run import DTYPES, TrainingRun, first_state, require_consistent
from hypertrack_jax.training.step import (
    PHASE_INTERVAL,
    TrainState,
    begin_phase,
    due_phase,
)
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics

_LOG = logging.getLogger(__name__)
AGREE_INTERVAL = 10
"""Steps after which several processes agree whether to save or to stop; each waits for all."""
_UPDATES = 2**31
"""Purpose of the random key of the updates; fresh weights come from the first few numbers."""


def train(
    run: TrainingRun,
    tune: Tune,
    voxdyn: VoxelDynamics,
    edge_filter: FilterWeights | None = None,
) -> TrainState:
    """Trains until `run.num_steps`, Ctrl-C or SIGTERM; saves by time and at the end.

    The same call goes on from the latest checkpoint, however the run ended, and arrives at the
    weights of a run that was never stopped. On other devices, or with more or fewer processes, it
    arrives at the same weights up to rounding. All processes have to make the same call.

    Args:
      run: data, places, durations, and what to begin with.
      tune: the model and how it is trained.
      voxdyn: the graph constructor.
      edge_filter: the filter of its graphs, if the tune has one; it is trained before.

    Returns:
      The state at the end.

    Raises:
      UserError: a number is out of range, or the run asks for what does not go together; the
        checkpoint belongs to another tune or graph constructor; the tag is taken, or another
        process trains it; there are fewer events than processes; the first loss is not finite, or
        the gradient stayed so.
      OSError: a file cannot be read or written.
    """
    require_consistent(run, tune)
    for source in filter(None, (run.source, run.validation)):
        if source.sector_hits is not None and source.rfactor_end == 1:
            require_sectors(source.directory, source.event_ids, source.sector_hits)
    devices = spread_over(run.batch_size)
    place = devices.replicated()
    with Checkpoints(run.checkpoint_directory, is_writer=True, place=place) as checkpoints:
        state = first_state(run, tune, count_pairs(voxdyn), checkpoints)
        state = devices.replicate(state)
        step = int(state.step)
        if step >= run.num_steps:
            _LOG.warning("step %d is reached already; raise num_steps to go on", step)
            return state
        with TrainingProgress(
            run.log_directory,
            tune.optimizer,
            step,
            run.num_steps,
            has_validation=run.validation is not None,
            batch_size=run.batch_size,
            is_told=jax.process_index() == 0,
        ) as progress:
            key = jax.random.fold_in(jax.random.key(run.source.seed), _UPDATES)
            trainer = _Trainer(run, tune, voxdyn, edge_filter, devices, checkpoints, progress)
            return trainer.updates(state, key)


class _Trainer:
    """A run's data, its compiled programs, and where its results go."""

    def __init__(
        self,
        run: TrainingRun,
        tune: Tune,
        voxdyn: VoxelDynamics,
        edge_filter: FilterWeights | None,
        devices: Devices,
        checkpoints: Checkpoints,
        progress: TrainingProgress,
    ):
        self.run, self.tune, self.devices = run, tune, devices
        self.voxdyn, self.edge_filter = voxdyn, edge_filter
        self.checkpoints, self.progress = checkpoints, progress
        dtype = DTYPES[run.fp_dtype]
        # Compiled when first called: a phase that does not come costs nothing.
        self.train_steps = {
            phase: make_spread_step(tune, dtype, phase, devices)
            for phase in (GNN_PHASE, FULL_PHASE)
        }
        self.event_auc = _make_event_auc(tune, dtype)
        self.phase = GNN_PHASE
        self.saved_at = time.monotonic()

    def updates(self, state: TrainState, key: jax.Array) -> TrainState:
        """One update after another, until all are done or a signal comes."""
        run, first_step = self.run, int(state.step)
        places = self.devices.slots().place.tolist()
        of_run = run.source, self.voxdyn, self.tune, run.batch_size
        ahead = prefetched(*of_run, first_step, places, self.edge_filter)
        with ahead as batches, _stop_signals() as signals:
            for step in range(first_step, run.num_steps):
                if step == first_step or step % PHASE_INTERVAL == 0:
                    state = self.in_due_phase(state)
                batch = next(batches)
                self.progress.announce_bucket(batch)
                forget_programs_if_many()
                what = f"a training step of {batch.num_hits} hits and {batch.num_edges} edges"
                with memory_told(what, "a smaller sector_hits or rfactor, a larger min_count"):
                    state, metrics = self.train_steps[self.phase](state, batch.graphs, key)
                self.progress.record(step, metrics, batch)
                is_stopped, is_save_due = self.wishes(step + 1, bool(signals))
                is_last = is_stopped or step + 1 == run.num_steps
                self.after_update(step + 1, state, is_last, is_save_due)
                if is_last:
                    break
        if is_stopped:
            _LOG.warning("stopped at step %d; the same command goes on from there", step + 1)
        return state

    def in_due_phase(self, state: TrainState) -> TrainState:
        """The state in the phase that the next update belongs to, which may begin anew."""
        self.phase = due_phase(self.tune, state, self.run.phase)
        if self.phase != int(state.phase):
            numbers = int(state.step), self.phase, float(state.auc_mean)
            _LOG.info("step %d: phase %d begins (mean AUC before: %.4f)", *numbers)
            state = begin_phase(self.tune, jax.device_get(state), self.phase)
            state = self.devices.replicate(state)
        self.progress.enter_phase(self.phase, int(state.phase_start))
        return state

    def wishes(self, num_done: int, has_signal: bool) -> list[bool]:
        """Whether to stop and whether to save, if any process wishes it; the same in all."""
        if jax.process_count() > 1 and num_done % AGREE_INTERVAL:
            return [False, False]
        is_save_due = time.monotonic() - self.saved_at > 60 * self.run.save_period
        return any_process(has_signal, is_save_due)

    def after_update(
        self, num_done: int, state: TrainState, is_last: bool, is_save_due: bool
    ) -> None:
        """Validates and saves when it is time to."""
        run = self.run
        if is_last:
            self.progress.flush()
        if run.validation is not None and (
            num_done % run.validate_every == 0 or num_done == run.num_steps
        ):
            self.progress.record_validation(num_done, self.validation_auc(state))
        if is_last or is_save_due:
            num_pairs = count_pairs(self.voxdyn)
            self.checkpoints.save(num_done, state, self.tune, self.progress.auc, num_pairs)
            self.saved_at = time.monotonic()

    def validation_auc(self, state: TrainState) -> float:
        """Mean edge AUC over validation events, normalised by running statistics."""
        source = self.run.validation
        assert source is not None, "there is no validation without"
        own = source.event_ids[jax.process_index() :: jax.process_count()]
        sectors, areas = fixed_sectors(source._replace(event_ids=own)), []
        weights = self.devices.of_process((state.params[EDGE], state.batch_stats))
        num_devices = self.devices.local.size
        while group := list(islice(sectors, num_devices)):
            # Each device has one; of a last group that is too small the last event is repeated.
            filled = group + group[-1:] * (num_devices - len(group))
            graphs = graph_batch(filled, self.voxdyn, self.tune, self.edge_filter).graphs
            graphs = self.devices.spread(graphs)
            found = map_events(self.event_auc, self.devices.local, weights, graphs)
            areas += jax.device_get(found)[: len(group)].tolist()
        return mean_of_processes(areas)


def _make_event_auc(tune: Tune, dtype: DTypeLike) -> Callable[..., jax.Array]:
    def event_auc(weights, graph: EventGraph):
        params, batch_stats = weights
        logit = predict(tune.network, params, batch_stats, graph, dtype, is_symmetric=True).logit
        return masked_auc(logit, graph.edges.label, core_edges(graph))

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
