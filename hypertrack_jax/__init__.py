"""HyperTrack in JAX: hits of a particle detector in, particle tracks out.

The names below are the public ones. Each is imported when it is first used, so that a program that
only reads events does not wait for jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hypertrack_jax.clustering.tracks import Tracks
    from hypertrack_jax.errors import UserError
    from hypertrack_jax.evaluation.metrics import track_scores
    from hypertrack_jax.events.event import Event, Particles
    from hypertrack_jax.events.pileup import thin
    from hypertrack_jax.events.store import load_event, save_event
    from hypertrack_jax.events.trackml import read_event, write_submission
    from hypertrack_jax.reconstruction.candidates import predict_edges
    from hypertrack_jax.reconstruction.export import export_reconstruction
    from hypertrack_jax.reconstruction.reconstructor import Reconstructor
    from hypertrack_jax.training.batches import EventSource
    from hypertrack_jax.training.loop import train
    from hypertrack_jax.training.run import TrainingRun
    from hypertrack_jax.tunes.load import load_tune
    from hypertrack_jax.tunes.tune import Tune
    from hypertrack_jax.voxdyn.fit import fit_voxdyn

_MODULES = {
    "Event": "events.event",
    "EventSource": "training.batches",
    "Particles": "events.event",
    "Reconstructor": "reconstruction.reconstructor",
    "Tracks": "clustering.tracks",
    "TrainingRun": "training.run",
    "Tune": "tunes.tune",
    "UserError": "errors",
    "export_reconstruction": "reconstruction.export",
    "fit_voxdyn": "voxdyn.fit",
    "load_event": "events.store",
    "load_tune": "tunes.load",
    "predict_edges": "reconstruction.candidates",
    "read_event": "events.trackml",
    "save_event": "events.store",
    "thin": "events.pileup",
    "track_scores": "evaluation.metrics",
    "train": "training.loop",
    "write_submission": "events.trackml",
}

__all__ = [
    "Event",
    "EventSource",
    "Particles",
    "Reconstructor",
    "Tracks",
    "TrainingRun",
    "Tune",
    "UserError",
    "export_reconstruction",
    "fit_voxdyn",
    "load_event",
    "load_tune",
    "predict_edges",
    "read_event",
    "save_event",
    "thin",
    "track_scores",
    "train",
    "write_submission",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
