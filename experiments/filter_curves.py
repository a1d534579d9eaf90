"""Draws the share of edges that a filter keeps against its efficiency, on held-out sectors.

python experiments/filter_curves.py --param=dense --event_start=8750 --event_end=8769
"""

import command_line
import numpy as np
import tune_flags
from absl import flags
from studies.filter_curves import EFFICIENCIES, NAMES, kept_at, plot_curves, scored_edges

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.tables import markdown_table
from hypertrack_jax.events.sectors import draw_sector
from hypertrack_jax.events.store import load_event
from hypertrack_jax.reconstruction.load import load_tuned_filter
from hypertrack_jax.voxdyn.storage import load_voxdyn, voxdyn_path

flags.adopt_module_key_flags(command_line)
flags.adopt_module_key_flags(tune_flags)

EVENT_START = flags.DEFINE_list("event_start", ["8750"], "First events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["8769"], "Last events of the ranges, included.")
SECTOR_HITS = flags.DEFINE_integer("sector_hits", 8000, "Hits of a sector, on average.", 1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the sectors.", lower_bound=0)


def main() -> None:
    """Prints what is kept at some efficiencies, and draws the curves under --workdir/figs."""
    tune, models = tune_flags.asked_tune(), command_line.workdir("models")
    graphs = tune.voxdyn.node2node, tune.voxdyn.ncell
    voxdyn = load_voxdyn(voxdyn_path(models, *graphs), *graphs, tune.voxdyn.min_count)
    weights = load_tuned_filter(models, tune, voxdyn)
    if weights is None:
        raise UserError(f"--param={tune.name}: this tune has no filter; take dense.")
    rng = np.random.default_rng(SEED.value)
    directory = command_line.workdir("data")
    sectors = (
        draw_sector(load_event(directory, event_id), SECTOR_HITS.value, rng)
        for event_id in command_line.event_range(EVENT_START, EVENT_END)
    )
    stages = scored_edges(sectors, weights, voxdyn, tune)
    lines = [
        [NAMES[name], *(f"{share:.3f}" for share in kept_at(edges, EFFICIENCIES))]
        for name, edges in stages.items()
    ]
    print(markdown_table(["edges kept at", *(f"{e:.2f}" for e in EFFICIENCIES)], lines))
    figure = command_line.workdir("figs", f"filter_{tune.name}.png")
    plot_curves(figure, stages)
    print(figure)


if __name__ == "__main__":
    command_line.run(main)
