"""Host side: whether trained weights belong to a graph constructor, by the pairs it counted."""

import logging
from pathlib import Path

import numpy as np

from hypertrack_jax.errors import UserError
from hypertrack_jax.voxdyn.model import VoxelDynamics

_LOG = logging.getLogger(__name__)
COUNT_TOLERANCE = 0.02
"""Relative difference in the pairs counted up to which two estimators are the same: the simulation
is not the same to the last bit on all machines."""


def count_pairs(voxdyn: VoxelDynamics) -> int:
    """Pairs that an estimator has counted, by its histogram."""
    return int((np.arange(len(voxdyn.histogram)) * voxdyn.histogram).sum())


def require_same_counts(trained_with: int | None, found: int, path: Path) -> None:
    """Refuses an estimator that was counted on other events than the weights were trained with.

    Args:
      trained_with: pairs counted by the estimator of the training; None where that is not known,
        which a warning tells.
      found: pairs counted by the one at hand.
      path: the file or directory to name.

    Raises:
      UserError: the numbers differ.
    """
    if trained_with is None:
        _LOG.warning(
            "%s: the checkpoint is from before they told what Voxel-Dynamics counted; make sure "
            "that it was trained with the one at hand",
            path,
        )
    elif abs(found - trained_with) > COUNT_TOLERANCE * trained_with:
        raise UserError(
            f"{path}: the Voxel-Dynamics at hand counted {found} pairs, but the weights were "
            f"trained with one that counted {trained_with}; fit it with the events and copies of "
            "the training."
        )
