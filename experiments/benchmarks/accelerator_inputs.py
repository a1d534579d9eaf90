"""Host side: what the stages of the check of an accelerator work on."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.accelerator_report import Report
from benchmarks.timing import peak_memory
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.pileup import OWN_NOISE_RATIO, thin
from hypertrack_jax.events.sectors import Sector, draw_sector, whole
from hypertrack_jax.events.store import load_event
from hypertrack_jax.model.parameters import init_parameters
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.streams import stream

MODEL = "positions"
"""The model that is checked, at all pile-ups."""
SECTOR_HITS = 24_000
"""Hits of a sector with about 3.5e5 edges."""
SMALL_HITS = 500
"""Hits of an event of a dry run."""


class Setting(NamedTuple):
    """What a stage works on."""

    data: Path
    """Directory of full events."""
    report: Report
    seconds: float
    """Time that the stage has."""
    is_small: bool
    """Whether this is a dry run."""


def load_model(setting: Setting) -> Reconstructor:
    """The model; in a dry run with a small network of fresh weights in place of its own."""
    model = Reconstructor.load(MODEL)
    if not setting.is_small:
        return model
    small = {"num_layers": 1, "latent_dim": 8, "embedding_dim": 5, "edge_mlp_dims": (4,)}
    network = replace(model.tune.network, num_heads=1, num_attention_blocks=1, **small)
    cluster = replace(model.tune.cluster, num_draws=1, largest_micrograph=16)
    tune = replace(model.tune, network=network, cluster=cluster)
    params, batch_stats = jax.jit(init_parameters, static_argnums=0)(tune, jax.random.key(0))
    return replace(model, tune=tune, params=params, batch_stats=batch_stats)


def stored_ids(data: Path) -> list[int]:
    """Numbers of the events in a directory; the last, held out from training, comes first."""
    rising = sorted(int(path.stem.removeprefix("event")) for path in data.glob("event*.npz"))
    if not rising:
        raise FileNotFoundError(f"{data}: no events here; simulate.py makes them.")
    return rising[-1:] + rising[:-1]


def events(setting: Setting, rfactor: float) -> Iterator[Event]:
    """The events, thinned; those of a dry run have few hits."""
    for number in stored_ids(setting.data):
        event, rng = load_event(setting.data, number), stream("thin for a benchmark", 0, number)
        yield thin(event, share_of(setting, event) or rfactor, OWN_NOISE_RATIO, rng)


def share_of(setting: Setting, event: Event) -> float | None:
    """The fraction of an event's particles that a dry run keeps; None if this is no dry run."""
    return min(1.0, SMALL_HITS / len(event.position)) if setting.is_small else None


def sector_hits(setting: Setting) -> int | None:
    """Mean hits of a sector; None in a dry run, which takes whole events."""
    return None if setting.is_small else SECTOR_HITS


def sector_of_full_event(setting: Setting) -> Sector:
    """One sector of a full event; in a dry run a whole event with few hits."""
    event, number = next(events(setting, 1.0)), sector_hits(setting)
    if number is None:
        return whole(event)
    return draw_sector(event, number, np.random.default_rng(0))


def peak_gigabytes() -> float:
    """Peak memory of the device in GB; of the process where the device does not report it."""
    told = jax.local_devices()[0].memory_stats() or {}
    peak = told.get("peak_bytes_in_use")
    return peak_memory() if peak is None else peak / 1e9
