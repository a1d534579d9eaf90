"""Compares simulated events with a real TrackML event: tables, and figures under --workdir/figs.

python experiments/simulate.py --num_events=20 --event_start=1000
python experiments/compare_simulation.py --input=DIRECTORY --event_start=1000 --event_end=1019
"""

from pathlib import Path

import command_line
from absl import flags
from studies.cell_comparison import CELL_HEADER, cell_sample_of, cell_table, plot_cells
from studies.event_comparison import plot_comparison, sample_of, summarize
from studies.turning_field import HEADER, field_table

from hypertrack_jax.evaluation.tables import markdown_table
from hypertrack_jax.events.store import load_event
from hypertrack_jax.events.trackml import read_event

flags.declare_key_flag("workdir")

INPUT = flags.DEFINE_string("input", None, "Directory or zip of the real event.", required=True)
REAL_EVENT = flags.DEFINE_integer("real_event", 1, "Number of the real event.")
EVENT_START = flags.DEFINE_list("event_start", ["1000"], "First simulated events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["1009"], "Last events of the ranges, included.")


def main() -> None:
    """Prints the numbers side by side and draws the distributions."""
    directory = command_line.workdir("data")
    figure = command_line.workdir("figs", "simulation.png")
    ids = command_line.event_range(EVENT_START, EVENT_END)
    real_event = read_event(Path(INPUT.value).expanduser(), REAL_EVENT.value)
    events = [load_event(directory, event_id) for event_id in ids]
    real, simulated = sample_of([real_event]), sample_of(events)
    found, expected = summarize(simulated), summarize(real)
    names = sorted(found.keys() & expected.keys(), key=list(found).index)
    lines = [[name, f"{found[name]:.3f}", f"{expected[name]:.3f}"] for name in names]
    print(markdown_table(["per event or particle", "simulated", "real"], lines))
    print(markdown_table(HEADER, field_table(events, [real_event])))
    plot_comparison(figure, simulated, real)
    print(figure)
    cells = cell_sample_of(events), cell_sample_of([real_event])
    if cells[0] is None or cells[1] is None:
        print("Clusters are not compared, since one side has no cells.")
        return
    print(markdown_table(CELL_HEADER, cell_table(cells[0], cells[1])))
    plot_cells(figure.with_name("cells.png"), cells[0], cells[1])
    print(figure.with_name("cells.png"))


if __name__ == "__main__":
    command_line.run(main)
