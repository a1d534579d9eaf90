"""Times stages or whole reconstructions of events under --workdir/data; writes tables to figs/.

python experiments/benchmark.py --suite=graph,gnn,train_step --rfactor=0.01
python experiments/benchmark.py --suite=scaling --read_tag=pu2 --rfactor=0.01,0.1,0.3,1 --runs=3
python experiments/benchmark.py --suite=voxdyn --event=8752 --event_start=1000 --event_end=1499
"""

import benchmark_flags as asked
import command_line
from absl import flags
from benchmarks.end_to_end import EndToEnd, measure_reconstruction
from benchmarks.graph_constructor import Setting, growth, measure_voxdyn, ratios
from benchmarks.scaling import exponents, plot_scaling
from benchmarks.stages import measure_stages
from benchmarks.timing import Timing, machine, markdown, write_timings

from hypertrack_jax.events.pileup import thin
from hypertrack_jax.events.store import load_event, require_events
from hypertrack_jax.streams import stream

flags.adopt_module_key_flags(asked)


def main() -> None:
    """Measures and reports."""
    suites = asked.SUITE.value
    suite = suites[0] if len(suites) == 1 and suites[0] in asked.ALONE else ""
    if suite == "voxdyn":
        timings = voxdyn_timings()
        notes = [*ratios(timings), *growth(timings)]
    elif suite:
        timings = end_to_end_timings()
        notes = [*ratios(timings), *exponents(timings)]
    else:
        timings = stage_timings()
        notes = ratios(timings)
    print(markdown(timings), machine(), "\n".join(notes), sep="\n\n")
    name = f"benchmark_{suite}.json" if suite else "benchmark.json"
    print(*write_timings(command_line.workdir("figs", name), timings, notes), sep="\n")
    if suite == "scaling":
        print(plot_scaling(command_line.workdir("figs", "scaling.png"), timings))


def voxdyn_timings() -> list[Timing]:
    """Voxel-Dynamics at scale, beside its peers."""
    setting = Setting(
        data=command_line.workdir("data"),
        event=asked.EVENT.value,
        training=command_line.event_range(asked.EVENT_START, asked.EVENT_END),
        models=command_line.workdir("models"),
        node2nodes=asked.NODE2NODE.value,
        min_count=asked.MIN_COUNT.value or 1,
    )
    return list(measure_voxdyn(setting, asked.VOXDYN_PARTS.value, asked.RUNS.value))


def end_to_end_timings() -> list[Timing]:
    """Hits to tracks, beside ACTS."""
    first = asked.EVENT.value
    setting = EndToEnd(
        data=command_line.workdir("data"),
        models=command_line.workdir("models"),
        read_tag=asked.read_tag(),
        min_count=asked.MIN_COUNT.value,
        event_ids=range(first, first + asked.NUM_EVENTS.value),
        rfactors=command_line.floats(asked.RFACTOR),
        noise_ratio=command_line.noise_ratio(asked.NOISE_RATIO),
        seed=asked.SEED.value,
        runs=asked.RUNS.value,
        with_acts="acts" in asked.peers(),
        with_cost=asked.COST.value,
    )
    require_events(setting.data, setting.event_ids)
    return list(measure_reconstruction(setting))


def stage_timings() -> list[Timing]:
    """The stages of one event."""
    event = thin(
        load_event(command_line.workdir("data"), asked.EVENT.value),
        asked.rfactor(),
        command_line.noise_ratio(asked.NOISE_RATIO),
        stream("thin for a benchmark", asked.SEED.value, asked.EVENT.value),
    )
    suites, peers = asked.SUITE.value, asked.peers()
    return list(
        measure_stages(suites, event, asked.model(), asked.RUNS.value, peers, asked.COST.value)
    )


if __name__ == "__main__":
    command_line.run(main)
