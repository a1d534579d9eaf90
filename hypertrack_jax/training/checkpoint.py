"""Host side: Orbax checkpoints that explain themselves; the only file that imports orbax.

A tag is a directory with one sub-directory per saved step. Beside the arrays each holds the whole
Tune as JSON, so that restoring needs no other file. Orbax writes aside and renames, so a step is
either whole or not there.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from hypertrack_jax.tunes.tune import Tune, differing_fields, tune_from_json, tune_to_json

FORMAT_VERSION = 1
_KEPT_LATEST = 2


class Saved(NamedTuple):
    """What is known of a checkpoint before its arrays are read."""

    step: int
    tune: Tune


class Checkpoints:
    """The checkpoints of one tag: the latest two, and the one with the best AUC."""

    def __init__(self, directory: Path, is_writer: bool = False):
        """Opens the directory.

        Args:
          directory: directory of the tag.
          is_writer: makes the directory, and removes what an interrupted save left there; a mere
            reader must not, since a save may be under way.

        Raises:
          OSError: a writer cannot make the directory; better known before training than after.
        """
        self.directory = directory.absolute()
        self._is_writer = is_writer
        if is_writer:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OSError(
                    f"{self.directory}: checkpoints cannot be written there ({error.strerror}); "
                    "choose another --save_tag, or a --workdir that you may write to."
                ) from error
        self._checkpointer = self._open() if self.directory.is_dir() else None

    def __enter__(self) -> "Checkpoints":
        """Closes the directory at the end of a `with` block."""
        return self

    def __exit__(self, *_) -> None:
        if self._checkpointer is not None:
            self._checkpointer.close()

    def steps(self) -> list[int]:
        """Saved steps, rising."""
        if self._checkpointer is None:
            return []
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, state: Any, tune: Tune, auc: float) -> None:
        """Saves `state` in the place of what may be saved at this step.

        Later steps are of a training that was gone back behind; they are removed once the new state
        is safe, so that the latest step is always the one to go on from.

        Raises:
          OSError: the checkpoint cannot be written.
        """
        steps = self.steps()
        description = {"format_version": FORMAT_VERSION, "tune": json.loads(tune_to_json(tune))}
        try:
            assert self._checkpointer is not None, "only a writer saves"
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
                f"{self.directory}: step {step} cannot be saved ({error}); make room, or choose a "
                "--workdir that you may write to."
            ) from error

    def describe(self, step: int = -1) -> Saved:
        """Step and Tune of a checkpoint; -1 for the latest.

        Raises:
          FileNotFoundError: there is no such step.
          ValueError: the checkpoint was written by another program or version.
        """
        steps = self.steps()
        if not steps or step not in (-1, *steps):
            wanted = "checkpoint" if step == -1 else f"step {step}"
            raise FileNotFoundError(
                f"{self.directory}: no {wanted} here (saved steps: {steps or 'none'}); train one "
                "with experiments/train.py, or name another --read_tag or --epoch."
            )
        step = steps[-1] if step == -1 else step
        assert self._checkpointer is not None, "there are steps, so the directory is open"
        description = self._checkpointer.metadata(step).custom_metadata
        if not isinstance(description, dict) or description.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{self.directory}: step {step} is not a checkpoint of this version of "
                "hypertrack_jax; train it anew."
            )
        return Saved(step, tune_from_json(json.dumps(description["tune"])))

    def restore(self, step: int, like: Any) -> Any:
        """The state saved at `step`, with the structure, shapes and types of `like`.

        It is placed on the first device, wherever it was saved.

        Raises:
          ValueError: what was saved has another structure or other shapes, or is damaged.
        """
        assert self._checkpointer is not None, "describe found the step before"
        saved = self._checkpointer.metadata(step).metadata
        if saved is None:
            raise self._damaged(step)
        self._require_same_shapes(step, _shapes(saved), _shapes(like))
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), like
        )
        try:
            return self._checkpointer.load(step, abstract)
        # Orbax puts a dump of its own state over several lines into the message.
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._damaged(step) from error

    def _require_same_shapes(self, step: int, saved: dict, wanted: dict) -> None:
        for name in sorted(saved.keys() | wanted.keys()):
            found, expected = (shapes.get(name, "not there") for shapes in (saved, wanted))
            if found != expected:
                raise ValueError(
                    f"{self.directory}: step {step} does not hold the arrays of this network: "
                    f"{name} is {found}, but {expected} is expected; use the tune it was trained "
                    "with."
                )

    def _damaged(self, step: int) -> ValueError:
        return ValueError(
            f"{self.directory}: step {step} cannot be read, its files are damaged; go on from "
            "another --epoch, or train anew."
        )

    def _open(self) -> ocp.training.Checkpointer:
        policies = ocp.training.preservation_policies
        keep_best = policies.BestN(get_metric_fn=lambda metrics: metrics["auc"], n=1)
        # Any: orbax's own annotations refuse what its documentation passes.
        keep: Any = policies.AnyPreservationPolicy([policies.LatestN(_KEPT_LATEST), keep_best])
        directory: Any = self.directory
        return ocp.training.Checkpointer(
            directory, preservation_policy=keep, cleanup_tmp_directories=self._is_writer
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every array of a tree; names are the same for tuples, NamedTuples and dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }


def require_same_tune(saved: Tune, asked: Tune, parts: tuple[str, ...], directory: Path) -> None:
    """Refuses a checkpoint whose Tune differs from the one asked for, in the named parts.

    Raises:
      ValueError: naming the first field that differs.
    """
    fields = differing_fields(saved, asked, parts)
    if fields:
        part, name = fields[0].split(".")
        raise ValueError(
            f"{directory}: trained with tune {saved.name}, in which {fields[0]} is "
            f"{getattr(getattr(saved, part), name)!r}, but {getattr(getattr(asked, part), name)!r} "
            f"is asked for with tune {asked.name}; give the tune it was trained with, or another "
            "tag."
        )
