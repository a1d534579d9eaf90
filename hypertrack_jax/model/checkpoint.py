"""Host side: Orbax checkpoints that explain themselves; the only file that imports orbax.

A tag is a directory with one sub-directory per saved step. Beside the arrays each step holds the
whole Tune as JSON, so that restoring needs no other file. Orbax writes aside and renames, so a step
is either whole or not there.
"""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from orbax.checkpoint import v1 as ocp

from hypertrack_jax.errors import UserError
from hypertrack_jax.model.orbax_errors import reason_of, tell_once
from hypertrack_jax.model.parameters import (
    Fitted,
    Parameters,
    by_name,
    fitted,
    init_parameters,
    nested,
)
from hypertrack_jax.tunes.tune import Tune, differing_fields, tune_from_json, tune_to_json

try:
    import fcntl
except ImportError:  # Windows has no such locks.
    fcntl = None

FORMAT_VERSION = 2
"""Raised whenever a state of the former layout can no longer be restored."""
LOCK = ".training"
"""File in the directory of a tag that its training keeps locked."""
_KEPT_LATEST = 2
_FORMER_PLACES = {1: ("params/", "params/edge/")}
"""By former version, where the weights were and where they are now."""


class Saved(NamedTuple):
    """The description of a checkpoint, which is read before its arrays."""

    step: int
    tune: Tune
    num_pairs: int | None
    """Pairs that the C-matrix of the training had counted, each once; None in old checkpoints."""


class Checkpoints:
    """The checkpoints of one tag: the latest two, and the one with the best AUC."""

    def __init__(
        self, directory: Path, is_writer: bool = False, place: jax.sharding.Sharding | None = None
    ):
        """Opens the directory. Where several processes train, all of them have to.

        Args:
          directory: directory of the tag.
          is_writer: makes the directory, locks it, and removes what an interrupted save left there.
            A mere reader must not, since a save may be under way.
          place: where restored arrays go, wherever they were saved; None for the first device.

        Raises:
          UserError: a writer finds that another process trains this tag, or what tells of a step is
            damaged.
          OSError: a writer cannot make the directory.
        """
        tell_once()
        self.directory = directory.absolute()
        self._is_writer = is_writer
        self.place = place or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        self._lock: BinaryIO | None = None
        if is_writer:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._lock = self._locked()
            except OSError as error:
                raise OSError(
                    f"{self.directory}: checkpoints cannot be written there ({error.strerror}); "
                    "choose another tag, or a directory that you may write to."
                ) from error
        try:
            self._checkpointer = self._open() if self.directory.is_dir() else None
        # Orbax reads the metrics of all steps, and raises whatever its parser does.
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if self._lock is not None:
                self._lock.close()
            raise UserError(
                f"{self.directory}: the metrics of step {_step_of_damage(self.directory)} are "
                "damaged; remove that step to go on from another, or train anew."
            ) from error

    def __enter__(self) -> "Checkpoints":
        """Closes the directory at the end of a `with` block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        try:
            if self._checkpointer is not None:
                self._checkpointer.close()
        except Exception:
            # A save that failed is raised again, but has been told.
            if kind is None:
                raise
        finally:
            if self._lock is not None:
                self._lock.close()

    def steps(self) -> list[int]:
        """Saved steps, rising."""
        if self._checkpointer is None:
            return []
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(
        self, step: int, state: Any, tune: Tune, auc: float, num_pairs: int | None = None
    ) -> None:
        """Saves `state` and what `Saved` tells; a checkpoint of this step is replaced.

        Later steps belong to a training that went back to an earlier one. They are removed once the
        new state is safe, so that the latest step is always the one to go on from.

        Raises:
          OSError: the checkpoint cannot be written.
        """
        steps = self.steps()
        description = {
            "format_version": FORMAT_VERSION,
            "tune": json.loads(tune_to_json(tune)),
            "num_pairs": num_pairs,
        }
        context = ocp.Context()
        # Else programs cut each array into as many parts as there are devices.
        context.array.saving.use_replica_parallel = False
        try:
            assert self._checkpointer is not None, "only a writer saves"
            with context:
                self._checkpointer.save(
                    step,
                    state,
                    metrics={"auc": auc},
                    custom_metadata=description,
                    force=True,
                    overwrite=step in steps,
                )
            for later in (saved for saved in steps if saved > step):
                self._checkpointer.delete(later)
        except (OSError, ValueError) as error:
            raise OSError(
                f"{self.directory}: step {step} cannot be saved ({reason_of(error)}); make room, "
                "or choose a directory that you may write to."
            ) from error

    def describe(self, step: int = -1) -> Saved:
        """The description of a checkpoint; -1 for the latest.

        Raises:
          FileNotFoundError: there is no such step.
          UserError: the checkpoint was written by another program or version.
        """
        step, description = self._description(step, oldest=FORMAT_VERSION)
        tune = tune_from_json(json.dumps(description["tune"]))
        return Saved(step, tune, description.get("num_pairs"))

    def restore(self, step: int, like: Any) -> Any:
        """The state saved at `step`, with the structure, shapes and types of `like`.

        Raises:
          UserError: what was saved has another structure or other shapes, or is damaged.
        """
        self._require_same_shapes(step, by_name(self._tree(step)), by_name(like))
        return self._load(step, jax.tree.map(self._abstract, like))

    def restore_parameters(self, step: int, tune: Tune) -> tuple[Parameters, int]:
        """The arrays of the model that was saved at `step`, and the phase it was in.

        Nothing else is read, so that no optimiser is needed.

        Raises:
          UserError: what was saved has other shapes, or is damaged.
        """
        like = jax.eval_shape(partial(init_parameters, tune), jax.random.key(0))
        phase = jax.ShapeDtypeStruct((), jnp.int32)
        wanted = {**like._asdict(), "phase": phase}
        saved = {
            name: leaf
            for name, leaf in by_name(self._tree(step)).items()
            if name.split("/")[0] in wanted
        }
        self._require_same_shapes(step, saved, by_name(wanted))
        found = self._load(step, jax.tree.map(self._abstract, wanted), is_partial=True)
        return Parameters(found["params"], found["batch_stats"]), int(found["phase"])

    def restore_fitting(self, into: dict[str, Any], step: int = -1) -> Fitted:
        """The saved arrays that have name and shape of those in `into`, which keeps the others.

        Nothing else is read. Checkpoints of former versions are read, too.

        Args:
          into: nested dicts of parts of a state by their names, such as `params`.
          step: the checkpoint; -1 for the latest.

        Raises:
          FileNotFoundError: there is no such step.
          UserError: the checkpoint was written by another program, or is damaged.
        """
        step, description = self._description(step, oldest=min(_FORMER_PLACES))
        saved, wanted = by_name(self._tree(step)), by_name(into)
        places = {
            name: former
            for name, former in _present_names(saved, description["format_version"]).items()
            if name.split("/")[0] in into
        }
        loaded = {
            name: places[name]
            for name, leaf in wanted.items()
            if name in places and saved[places[name]].shape == leaf.shape
        }
        abstract = nested({former: self._abstract(wanted[name]) for name, former in loaded.items()})
        found = by_name(self._load(step, abstract, is_partial=True)) if loaded else {}
        present = {name: found[former] for name, former in loaded.items()}
        return fitted(f"step {step} of {self.directory.name}", wanted, places, present)

    def _description(self, step: int, oldest: int) -> tuple[int, dict[str, Any]]:
        """Step and description of a checkpoint, whose version must not be before `oldest`."""
        steps = self.steps()
        if not steps or step not in (-1, *steps):
            wanted = "checkpoint" if step == -1 else f"step {step}"
            raise FileNotFoundError(
                f"{self.directory}: no {wanted} here (saved steps: {steps or 'none'}); train one, "
                "or name another tag or step."
            )
        step = steps[-1] if step == -1 else step
        description = self._metadata(step).custom_metadata
        version = description.get("format_version") if isinstance(description, dict) else None
        if not isinstance(version, int) or not oldest <= version <= FORMAT_VERSION:
            raise UserError(
                f"{self.directory}: step {step} is not a checkpoint of this version of "
                "hypertrack_jax; train it anew."
            )
        assert isinstance(description, dict), "it has a version"
        return step, description

    def _tree(self, step: int) -> Any:
        """Shapes and types of what was saved at a step that `describe` or its like found."""
        saved = self._metadata(step).metadata
        if saved is None:
            raise self._damaged(step)
        return saved

    def _metadata(self, step: int) -> Any:
        """What orbax knows of a step; damaged text makes it raise whatever its parser does."""
        assert self._checkpointer is not None, "there are steps, so the directory is open"
        try:
            return self._checkpointer.metadata(step)
        except Exception as error:
            raise self._damaged(step) from error

    def _load(self, step: int, abstract: Any, is_partial: bool = False) -> Any:
        assert self._checkpointer is not None, "its metadata was read before"
        context = ocp.Context()
        context.pytree.loading.partial_load = is_partial
        try:
            with context:
                return self._checkpointer.load(step, abstract)
        # Orbax puts a dump of its own state over several lines into the message.
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(step) from error

    def _abstract(self, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.place)

    def _require_same_shapes(self, step: int, saved: dict, wanted: dict) -> None:
        for name in sorted(saved.keys() | wanted.keys()):
            found, expected = (
                arrays[name].shape if name in arrays else "not there" for arrays in (saved, wanted)
            )
            if found != expected:
                raise UserError(
                    f"{self.directory}: step {step} does not hold the arrays of this network: "
                    f"{name} is {found}, but {expected} is expected; use the tune it was trained "
                    "with."
                )

    def _damaged(self, step: int) -> UserError:
        return UserError(
            f"{self.directory}: step {step} cannot be read, its files are damaged; go on from "
            "another step, or train anew."
        )

    def _locked(self) -> BinaryIO | None:
        """The locked file of this training; it is process 0 that holds it for all.

        The kernel releases it when the process ends, however that happens.
        """
        file = open(self.directory / LOCK, "ab") if jax.process_index() == 0 else None
        is_taken = file is not None and not _is_lockable(file)
        if jax.process_count() > 1:
            is_taken = bool(process_allgather(np.array(is_taken)).any())
        if not is_taken:
            return file
        if file is not None:
            file.close()
        raise UserError(
            f"{self.directory}: another process trains this tag; wait for its end, or choose "
            "another tag."
        )

    def _open(self) -> ocp.training.Checkpointer:
        policies = ocp.training.preservation_policies
        keep_best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["auc"],
            n=1,
            # A process that was killed while it deleted a step leaves such directories.
            keep_checkpoints_without_metrics=False,
        )
        # Any: orbax's own annotations refuse what its documentation passes.
        keep: Any = policies.AnyPreservationPolicy([policies.LatestN(_KEPT_LATEST), keep_best])
        directory: Any = self.directory
        return ocp.training.Checkpointer(
            directory, preservation_policy=keep, cleanup_tmp_directories=self._is_writer
        )


def _step_of_damage(directory: Path) -> str:
    """Name of the first step whose metrics are no JSON object."""
    for path in sorted(directory.glob("*/metrics/metrics")):
        try:
            if isinstance(json.loads(path.read_bytes()), dict):
                continue
        except ValueError:
            pass
        return path.parents[1].name
    return "unknown"


def require_same_tune(saved: Tune, asked: Tune, parts: tuple[str, ...], directory: Path) -> None:
    """Refuses a checkpoint whose Tune differs from the one asked for, in the named parts.

    Raises:
      UserError: naming the first field that differs.
    """
    fields = differing_fields(saved, asked, parts)
    if fields:
        part, name = fields[0].split(".")
        raise UserError(
            f"{directory}: trained with tune {saved.name}, in which {fields[0]} is "
            f"{getattr(getattr(saved, part), name)!r}, but {getattr(getattr(asked, part), name)!r} "
            f"is asked for with tune {asked.name}; give the tune it was trained with, or another "
            "tag."
        )


def _is_lockable(file: BinaryIO) -> bool:
    """Locks a file and says whether that succeeded; True where the file system has no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _present_names(saved: Iterable[str], version: int) -> dict[str, str]:
    """The names of saved arrays, by the names that they have now."""
    former, present = _FORMER_PLACES.get(version, ("", ""))
    return {
        present + name.removeprefix(former) if name.startswith(former) else name: name
        for name in saved
    }
