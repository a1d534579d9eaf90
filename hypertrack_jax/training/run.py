"""Host side: what a training run is made of, and the state that it begins with."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.pileup import OWN_NOISE_RATIO
from hypertrack_jax.model.checkpoint import Checkpoints, require_same_tune
from hypertrack_jax.model.counts import require_same_counts
from hypertrack_jax.model.parameters import FULL_PHASE, GNN_PHASE, Fitted
from hypertrack_jax.model.weights import (
    fit_weights,
    load_weights,
    shipped_names,
    shipped_path,
)
from hypertrack_jax.training.batches import EventSource
from hypertrack_jax.training.step import TrainState, begin_phase, init_state
from hypertrack_jax.tunes.tune import Tune

_LOG = logging.getLogger(__name__)
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
"""Types of the arrays over hits and edges; weights and statistics are float32 in all of them."""


@dataclass(frozen=True)
class TrainingRun:
    """Data, places and durations of a run; the Tune and the graph constructor come apart."""

    source: EventSource
    """Training events."""
    checkpoint_directory: Path
    """Directory of the tag."""
    log_directory: Path
    """Directory of the TensorBoard files and of the `MetricsFile`."""
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
    phase: int | None = None
    """The phase to train in; None for phase 1 until the edges are good enough, then phase 2."""
    epoch: int = -1
    """-1 goes on from the latest checkpoint, or begins if there is none. 0 begins, and refuses a
    tag that has checkpoints. A larger number goes on from that step."""
    soft_reset: bool = False
    """Go on with the weights of the checkpoint, but in phase 1 and with a fresh optimiser and
    schedule. Steps are counted on, so that no checkpoint is overwritten."""
    transfer_directory: Path | None = None
    """Directory of another tag. A run that would begin anew begins with its latest weights or, if
    there is no such directory, with the model that comes with the package under its name."""


def require_consistent(run: TrainingRun, tune: Tune) -> None:
    """Refuses numbers that are out of range, and what does not go together.

    Raises:
      UserError: naming the arguments and what to do.
    """
    for name, value, is_allowed, expected in _numbers(run):
        if not is_allowed:
            raise UserError(f"{name} is {value!r}; expected {expected}.")
    for source in filter(None, (run.source, run.validation)):
        start, end = source.rfactor_start, source.rfactor_end
        if not 0 < start <= end <= 1:
            raise UserError(
                f"rfactor_start is {start} and rfactor_end {end}; expected fractions with "
                "0 < rfactor_start <= rfactor_end <= 1."
            )
    clusterer = tune.cluster.cluster
    if run.phase == FULL_PHASE and clusterer != "transformer":
        raise UserError(
            f"phase 2 trains the transformer, but the tune's cluster is {clusterer!r}; choose "
            "'transformer', or leave the phase out."
        )
    if run.soft_reset and run.epoch == 0:
        raise UserError(
            "soft_reset goes on with the weights of a checkpoint, but epoch 0 begins anew; choose "
            "one of the two."
        )
    if run.soft_reset and run.transfer_directory is not None:
        raise UserError(
            "soft_reset goes on with the weights of this tag, but a transfer begins with those of "
            "another; choose one of the two."
        )
    if run.transfer_directory == run.checkpoint_directory:
        raise UserError(
            f"the transfer is from {run.checkpoint_directory.name}, the tag itself; leave it out "
            "to go on, or set soft_reset for a fresh optimiser."
        )
    if run.fp_dtype == "float16" and tune.network.node_features == "cartesian":
        raise UserError(
            "fp_dtype float16 cannot hold products of coordinates in mm, which tune "
            f"{tune.name} feeds to the network; use bfloat16, or a tune with cylindrical features."
        )


def _numbers(run: TrainingRun) -> Iterator[tuple[str, Any, bool, str]]:
    """Name, value, whether it is allowed and what is expected, for the arguments of a run."""
    for name in ("num_steps", "batch_size", "validate_every"):
        value = getattr(run, name)
        yield name, value, _is_whole(value) and value >= 1, "a whole number from 1 on"
    yield (
        "save_period",
        run.save_period,
        0 <= run.save_period < math.inf,
        "a finite number of minutes, not negative",
    )
    yield "fp_dtype", run.fp_dtype, run.fp_dtype in DTYPES, f"one of {', '.join(DTYPES)}"
    yield "phase", run.phase, run.phase in (None, GNN_PHASE, FULL_PHASE), "1, 2 or None"
    is_epoch = _is_whole(run.epoch) and run.epoch >= -1
    yield "epoch", run.epoch, is_epoch, "-1, 0 or the step of a checkpoint"
    for source in filter(None, (run.source, run.validation)):
        noise = source.noise_ratio
        is_noise = noise is None or noise == OWN_NOISE_RATIO or 0 <= noise < 1
        yield "noise_ratio", noise, is_noise, "None, -1, or a number from 0 to below 1"
        is_seed = _is_whole(source.seed) and 0 <= source.seed < 2**63
        yield "seed", source.seed, is_seed, "a whole number of at most 63 bits, not negative"
        yield "event_ids", source.event_ids, len(source.event_ids) > 0, "at least one event"


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def first_state(
    run: TrainingRun, tune: Tune, num_pairs: int, checkpoints: Checkpoints
) -> TrainState:
    """The state to go on from: fresh, transferred, restored or reset, as the run asks.

    Args:
      run: what is asked.
      tune: the model and how it is trained.
      num_pairs: pairs that the graph constructor has counted, see `counts.count_pairs`.
      checkpoints: those of the tag.

    Returns:
      The state.

    Raises:
      FileNotFoundError: there is no checkpoint where one is needed.
      UserError: the checkpoint belongs to another tune or graph constructor; the tag is taken.
    """
    key = jax.random.key(run.source.seed)
    fresh = jax.jit(init_state, static_argnums=0)(tune, key)
    steps, tag = checkpoints.steps(), checkpoints.directory
    if run.epoch == 0 and steps:
        raise UserError(
            f"{tag}: epoch 0 begins anew, but this tag has checkpoints up to step {steps[-1]}; "
            "choose another tag, or epoch -1 to go on."
        )
    if run.epoch <= 0 and not steps and not run.soft_reset:
        if run.transfer_directory is None:
            return fresh
        return _transferred(run, fresh, checkpoints.place)
    saved = checkpoints.describe(run.epoch)
    require_same_tune(saved.tune, tune, ("voxdyn", "network"), tag)
    require_same_counts(saved.num_pairs, num_pairs, tag)
    if run.transfer_directory is not None:
        _LOG.info("the transfer is over, since %s has checkpoints of its own", tag.name)
    state = checkpoints.restore(saved.step, fresh)
    if run.soft_reset:
        _LOG.info("step %d of %s with a fresh optimiser; num_steps counts on", saved.step, tag.name)
        return begin_phase(tune, jax.device_get(state), GNN_PHASE)
    _LOG.info("resuming %s from step %d", tag.name, saved.step)
    return state


def _transferred(run: TrainingRun, fresh: TrainState, place: Sharding) -> TrainState:
    """The fresh state with the weights of another model, as far as they fit."""
    assert run.transfer_directory is not None
    weights = {"params": fresh.params, "batch_stats": fresh.batch_stats}
    fitted = _fitting(run.transfer_directory, weights, place)
    if not fitted.loaded:
        raise UserError(
            f"{run.transfer_directory}: {fitted.origin} has no array that fits this network; "
            "use the tune it was trained with, or leave the transfer out."
        )
    _LOG.info(
        "transfer from %s: %d arrays loaded, %d skipped, %d initialised",
        fitted.origin,
        len(fitted.loaded),
        len(fitted.skipped),
        len(fitted.kept),
    )
    for what, names in (("skipped", fitted.skipped), ("initialised", fitted.kept)):
        if names:
            _LOG.info("%s: %s", what, ", ".join(_groups(names)))
    return fresh._replace(**fitted.arrays)


def _fitting(directory: Path, weights: dict[str, Any], place: Sharding) -> Fitted:
    """The weights with those of a tag or, where it has no directory, of a shipped model."""
    name = directory.name
    if name in shipped_names() and not directory.is_dir():
        return fit_weights(load_weights(shipped_path(name)), weights, name)
    with Checkpoints(directory, place=place) as other:
        return other.restore_fitting(weights)


def _groups(names: Sequence[str]) -> list[str]:
    """The first three parts of each name, such as `params/edge/fusion`, each once."""
    return sorted({"/".join(name.split("/")[:3]) for name in names})
