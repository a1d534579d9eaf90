"""Host side: what a training run tells of itself, in a progress bar and in files."""

import logging
from pathlib import Path

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from hypertrack_jax.errors import UserError
from hypertrack_jax.model.parameters import FULL_PHASE
from hypertrack_jax.training.batches import Batch
from hypertrack_jax.training.metrics_file import VALIDATION_AUC, MetricsFile
from hypertrack_jax.training.optimizer import learning_rate_schedule
from hypertrack_jax.training.step import StepMetrics, phase_optimizer
from hypertrack_jax.tunes.tune import OptimizerTune

_LOG = logging.getLogger(__name__)
LOG_INTERVAL = 10
"""Steps between two reads from the device."""
MAX_SKIPPED = 20
"""Updates in a row with a gradient that is not finite after which a run stops."""
CUT_INTERVAL = 1000
"""Steps between two warnings of cut micrographs."""


class TrainingProgress:
    """The progress bar, a TensorBoard file and the lines of a `MetricsFile`.

    It reads from the device once per `LOG_INTERVAL`.
    """

    def __init__(
        self,
        directory: Path,
        tune: OptimizerTune,
        first_step: int,
        num_steps: int,
        has_validation: bool,
        batch_size: int = 1,
        is_told: bool = True,
    ):
        """Opens all of them.

        Args:
          directory: where the files go; made if it is not there.
          tune: has the learning rate.
          first_step: first step of this run; older log entries from this step on are purged.
          num_steps: step at which the run ends.
          has_validation: `auc` is that of validation and not of training.
          batch_size: events per update, those of other processes included.
          is_told: False where another process shows and writes all this.

        Raises:
          OSError: the files cannot be written.
        """
        self.auc = 0.0
        """The latest AUC, by which the best checkpoint is chosen."""
        self._tune, self._has_validation, self._batch_size = tune, has_validation, batch_size
        self._pending: list[StepMetrics] = []
        self._latest: tuple[int, Batch] | None = None
        self._phase = self._phase_start = -1
        self._is_first = True
        self._buckets: set[tuple[int, ...]] = set()
        self._next_cut_warning = 0
        directory.mkdir(parents=True, exist_ok=True)
        self._bar = tqdm(
            total=num_steps, initial=first_step, unit="step", smoothing=0.1, disable=not is_told
        )
        self._writer = SummaryWriter(str(directory), purge_step=first_step, write_to_disk=is_told)
        self._file = MetricsFile(directory, first_step) if is_told else None

    def __enter__(self) -> "TrainingProgress":
        """Closes all at the end of a `with` block."""
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        self._writer.close()
        if self._file is not None:
            self._file.close()

    def enter_phase(self, phase: int, phase_start: int) -> None:
        """From now on metrics are of this phase, which began at the step `phase_start`."""
        if (phase, phase_start) == (self._phase, self._phase_start):
            return
        self.flush()
        self._phase, self._phase_start = phase, phase_start
        self._buckets = set()
        self._is_first = True

    def announce_bucket(self, batch: Batch) -> None:
        """Tells of the pause for compilation when a phase meets a new bucket."""
        bucket = (batch.graphs.nodes.mask.shape[1], batch.graphs.senders.shape[1])
        if bucket not in self._buckets:
            self._buckets.add(bucket)
            _LOG.info("phase %d: compiling for %d hits and %d edges", self._phase, *bucket)

    def record(self, step: int, metrics: StepMetrics, batch: Batch) -> None:
        """Takes the metrics of an update.

        Raises:
          UserError: the loss of the first update of a run or a phase is not finite; or the gradient
            has not been finite for `MAX_SKIPPED` updates.
        """
        if self._is_first:
            self._is_first = False
            _require_finite(step, metrics)
        self._pending.append(metrics)
        self._latest = step, batch
        self._bar.update()
        if (step + 1) % LOG_INTERVAL:
            return
        # All but the newest are computed by now, so reading them does not hold the device up.
        *ready, newest = self._pending
        self._pending = [newest]
        if ready:
            self._log(step, jax.device_get(ready), batch)

    def flush(self) -> None:
        """Logs what has not been logged, at the end of a run or a phase."""
        if self._pending and self._latest is not None:
            ready, self._pending = self._pending, []
            step, batch = self._latest
            self._log(step, jax.device_get(ready), batch)

    def record_validation(self, step: int, auc: float) -> None:
        """Takes the mean AUC of the validation events."""
        self.auc = auc
        self._writer.add_scalar("validation/auc", auc, step)
        if self._file is not None:
            self._file.write(step, {VALIDATION_AUC: auc})
        _LOG.info("step %d: validation AUC %.4f", step, auc)

    def _log(self, step: int, metrics: list[StepMetrics], batch: Batch) -> None:
        scalars = [entry.losses._asdict() | entry._asdict() for entry in metrics]
        names = [name for name in scalars[0] if name != "losses"]
        means = {name: float(np.mean([entry[name] for entry in scalars])) for name in names}
        # Training and validation differ too much to be compared for the best checkpoint.
        if not self._has_validation:
            self.auc = float(np.nan_to_num(means["auc"]))
        schedule = learning_rate_schedule(phase_optimizer(self._tune, self._phase))
        means["learning_rate"] = np.asarray(schedule(step - self._phase_start)).item()
        means["phase"] = self._phase
        for name, value in means.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        if self._file is not None:
            self._file.write(step, means)
        self._bar.set_postfix_str(self._summary(means, batch))
        self._warn_of_cuts(step, means["is_cut"])
        if metrics[-1].num_skipped >= MAX_SKIPPED:
            raise UserError(
                f"the gradient was not finite in {int(metrics[-1].num_skipped)} updates in a row "
                f"up to step {step}; lower the learning_rate, or go on from an earlier epoch."
            )

    def _summary(self, means: dict[str, float], batch: Batch) -> str:
        steps_per_second = self._bar.format_dict["rate"]
        rate = f"{steps_per_second * self._batch_size:.1f}" if steps_per_second else "-"
        parts = [f"phase {self._phase} loss {means['loss']:.3f} auc {means['auc']:.4f}"]
        if self._phase == FULL_PHASE:
            parts.append(f"cluster {means['cluster_bce']:.3f} {means['cluster_contrastive']:.3f}")
            parts.append(f"found {means['num_clusters']:.0f}")
        parts.append(f"lr {means['learning_rate']:.1e} events/s {rate} edges {batch.num_edges}")
        return " ".join(parts)

    def _warn_of_cuts(self, step: int, share: float) -> None:
        if share > 0 and step >= self._next_cut_warning:
            self._next_cut_warning = step + CUT_INTERVAL
            _LOG.warning(
                "step %d: micrographs or neighbours were cut in %.0f %% of the latest events, "
                "since they did not fit; a higher edge_threshold makes them smaller",
                step,
                100 * share,
            )


def _require_finite(step: int, metrics: StepMetrics) -> None:
    """Waits for the first update of a phase and refuses a loss that is not finite."""
    loss = float(metrics.losses.loss)
    if not np.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {step}, the first of this run or phase; look for extreme "
            "positions of hits in the events, begin with other weights, or use fp_dtype float32."
        )
