"""Prints the least time that a card needs for our programs, by their products and bytes.

This is a bound; accelerator.py measures. Needs one full event and takes minutes.

python experiments/accelerator_limits.py --workdir=work --event=8752
"""

from collections.abc import Iterator

import command_line
import numpy as np
from absl import flags
from benchmarks.limits import H100, TITLES, Limit, limit_cells, stage_limits, step_limits

from hypertrack_jax.events.pileup import OWN_NOISE_RATIO, thin
from hypertrack_jax.events.sectors import draw_sector
from hypertrack_jax.events.store import load_event
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.streams import stream

flags.adopt_module_key_flags(command_line)

EVENT = flags.DEFINE_integer("event", 8752, "Number of a full event.")
SECTOR_HITS = flags.DEFINE_integer("sector_hits", 24_000, "Hits of a training step's sector.", 1)
PILE_UPS = ((0.01, "pu2"), (0.1, "pu200"), (1.0, "pu200"))
"""Fractions of particles kept, and the model; the file of `pu20` has no graph constructor."""


def main() -> None:
    """Prints one table, each row when it is known."""
    print(f"{H100.name}: {H100.products / 1e12:g} Tflop/s, {H100.bandwidth / 1e12:g} TB/s\n")
    print("|", " | ".join(TITLES), "|\n|" + "---|" * len(TITLES))
    for limit in limits():
        print("|", " | ".join(limit_cells(limit, H100)), "|", flush=True)


def limits() -> Iterator[Limit]:
    """The stages at each pile-up, then training steps of a sector."""
    full = load_event(command_line.workdir("data"), EVENT.value)
    for rfactor, name in PILE_UPS:
        rng = stream("thin for a benchmark", 0, EVENT.value)
        event = thin(full, rfactor, OWN_NOISE_RATIO, rng)
        what = f"pile-up {200 * rfactor:g} by {name}"
        yield from stage_limits(Reconstructor.load(name), event, what)
    sector = draw_sector(full, SECTOR_HITS.value, np.random.default_rng(0))
    yield from step_limits(Reconstructor.load("pu200"), sector, "training step of a sector")


if __name__ == "__main__":
    command_line.run(main)
