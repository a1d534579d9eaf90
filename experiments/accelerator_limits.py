"""Prints the least time that a card needs for our programs, by their products and bytes.

A bound and no measurement; accelerator.py measures. Needs one full event and takes minutes.

python experiments/accelerator_limits.py --workdir=work --event=8752
"""

import command_line
import numpy as np
from absl import flags
from benchmarks.limits import H100, as_on_an_accelerator, limit_table, stage_limits, step_limits

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
    """Prints one table."""
    full = load_event(command_line.workdir("data"), EVENT.value)
    as_on_an_accelerator()
    limits = []
    for rfactor, name in PILE_UPS:
        model = Reconstructor.load(name)
        rng = stream("thin for a benchmark", 0, EVENT.value)
        event = thin(full, rfactor, OWN_NOISE_RATIO, rng)
        limits += stage_limits(model, event, f"pile-up {200 * rfactor:g} by {name}")
    sector = draw_sector(full, SECTOR_HITS.value, np.random.default_rng(0))
    limits += step_limits(model, sector, "training step of a sector")
    print(f"{H100.name}: {H100.products / 1e12:g} Tflop/s, {H100.bandwidth / 1e12:g} TB/s\n")
    print(limit_table(limits, H100))


if __name__ == "__main__":
    command_line.run(main)
