"""Prints a lower bound on the time of our programs on an H100, from their products and bytes.

Nothing is timed: accelerator.py does that. Needs one full event and takes minutes.

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
SECTOR_HITS = flags.DEFINE_integer("sector_hits", 24_000, "Mean hits of a training sector.", 1)
MODEL, RFACTORS = "positions", (0.01, 0.1, 1.0)


def main() -> None:
    """Prints one table, each row when it is known."""
    print(f"{H100.name}: {H100.products / 1e12:g} Tflop/s, {H100.bandwidth / 1e12:g} TB/s\n")
    print("|", " | ".join(TITLES), "|\n|" + "---|" * len(TITLES))
    for limit in limits():
        print("|", " | ".join(limit_cells(limit, H100)), "|", flush=True)


def limits() -> Iterator[Limit]:
    """The stages at each pile-up, then training steps of a sector."""
    full = load_event(command_line.workdir("data"), EVENT.value)
    model = Reconstructor.load(MODEL)
    for rfactor in RFACTORS:
        rng = stream("thin for a benchmark", 0, EVENT.value)
        event = thin(full, rfactor, OWN_NOISE_RATIO, rng)
        yield from stage_limits(model, event, f"pile-up {200 * rfactor:g}")
    sector = draw_sector(full, SECTOR_HITS.value, np.random.default_rng(0))
    yield from step_limits(model, sector, "training step of a sector")


if __name__ == "__main__":
    command_line.run(main)
