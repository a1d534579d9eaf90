"""Host side: what a training run is made of, and the state that it begins with."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from hypertrack_jax.model.checkpoint import Checkpoints, require_same_tune
from hypertrack_jax.model.parameters import FULL_PHASE, GNN_PHASE, Fitted
from hypertrack_jax.model.weights import (
    fit_weights,
    load_weights,
    require_same_counts,
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
    phase: int | None = None
    """The phase to train in; None for phase 1 until the edges are good enough, then phase 2."""
    epoch: int = -1
    """-1 goes on from the latest checkpoint, or begins where there is none; 0 begins, and refuses a
    tag that has checkpoints; a larger number goes on from that step."""
    soft_reset: bool = False
    """Go on with the weights of the checkpoint, but in phase 1 and with a fresh optimiser and
    schedule. Steps are counted on, so that no checkpoint is overwritten."""
    transfer_directory: Path | None = None
    """Directory of another tag, whose latest weights a run begins with that would begin anew. Where
    there is none, the model that comes with the package under its name."""


def require_consistent(run: TrainingRun, tune: Tune) -> None:
    """Refuses what cannot be asked for together.

    Raises:
      ValueError: naming the flags and what to do.
    """
    start, end = run.source.rfactor_start, run.source.rfactor_end
    if not 0 < start <= end <= 1:
        raise ValueError(
            f"--rfactor_start={start} with --rfactor_end={end} is not a range of fractions; "
            "expected 0 < start <= end <= 1."
        )
    clusterer = tune.cluster.cluster
    if run.phase == FULL_PHASE and clusterer != "transformer":
        raise ValueError(
            f"--phase=2 trains the transformer, but --cluster={clusterer} trains without it; "
            "give --cluster=transformer, or leave --phase out."
        )
    if run.soft_reset and run.epoch == 0:
        raise ValueError(
            "--soft_reset=1 goes on with the weights of a checkpoint, but --epoch=0 begins anew; "
            "give one of the two."
        )
    if run.soft_reset and run.transfer_directory is not None:
        raise ValueError(
            "--soft_reset=1 goes on with the weights of this tag, --transfer_tag begins with those "
            "of another; give one of the two."
        )
    if run.transfer_directory == run.checkpoint_directory:
        raise ValueError(
            f"--transfer_tag={run.checkpoint_directory.name} is the --save_tag itself; leave it "
            "out to go on, or give --soft_reset=1 for a fresh optimiser."
        )
    if run.fp_dtype == "float16" and tune.network.node_features == "cartesian":
        raise ValueError(
            "--fp_dtype=float16 cannot hold products of coordinates in mm, which tune "
            f"{tune.name} feeds to the network; use bfloat16, or a tune with cylindrical features."
        )


def first_state(
    run: TrainingRun, tune: Tune, num_pairs: int, checkpoints: Checkpoints
) -> TrainState:
    """The state to go on from: fresh, transferred, restored or reset, as the run asks.

    Args:
      run: what is asked.
      tune: the model and how it is trained.
      num_pairs: pairs that the graph constructor has counted, see `weights.count_pairs`.
      checkpoints: those of the tag.

    Returns:
      The state.

    Raises:
      FileNotFoundError: there is no checkpoint where one is needed.
      ValueError: the checkpoint belongs to another tune or graph constructor; the tag is taken.
    """
    require_consistent(run, tune)
    key = jax.random.key(run.source.seed)
    fresh = jax.jit(init_state, static_argnums=0)(tune, key)
    steps, tag = checkpoints.steps(), checkpoints.directory
    if run.epoch == 0 and steps:
        raise ValueError(
            f"{tag}: --epoch=0 begins anew, but this tag has checkpoints up to step {steps[-1]}; "
            "choose another --save_tag, or --epoch=-1 to go on."
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
        raise ValueError(
            f"{run.transfer_directory}: {fitted.origin} has no array that fits this network; "
            "use the tune it was trained with, or leave --transfer_tag out."
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
    """What comes before the third slash of each name, such as `params/edge/fusion`, once."""
    return sorted({"/".join(name.split("/")[:3]) for name in names})
