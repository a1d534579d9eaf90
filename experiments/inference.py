"""Reconstructs and scores events under --workdir/data with a trained model, or only their graphs.

python experiments/inference.py --read_tag=pu2 --rfactor=0.01 --event_start=8750 --event_end=8799
python experiments/inference.py --pre_only --node2node=eom --ncell=65536 --truth_node2node=hyper
"""

from dataclasses import replace
from pathlib import Path

import command_line
from absl import flags
from bad_events import ReadableEvents
from benchmarks.peers import PEERS
from graph_report import graphs_of, own_flags, write_rows
from tqdm import tqdm

from hypertrack_jax.command.start import end_with
from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.evaluate import as_evaluated
from hypertrack_jax.evaluation.inference_report import Wanted, draw_figures, report_events
from hypertrack_jax.evaluation.report_page import write_report_page
from hypertrack_jax.events.topology import TOPOLOGIES
from hypertrack_jax.model.checkpoint import require_same_tune
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.training.batches import EventSource
from hypertrack_jax.tunes.load import PACKAGED, load_tune
from hypertrack_jax.tunes.tune import ClusterTune, choices

flags.adopt_module_key_flags(command_line)

READ_TAG = flags.DEFINE_string("read_tag", None, "Name of the trained model.")
PRE_ONLY = flags.DEFINE_boolean("pre_only", False, "Only the graphs, which need no trained model.")
EPOCH = flags.DEFINE_integer("epoch", -1, "Step of the checkpoint; -1: the latest.", lower_bound=-1)
PARAM = flags.DEFINE_string(
    "param", None, f"Tune of the model, or for --pre_only: {', '.join(PACKAGED)}, or a file."
)
NODE2NODE = flags.DEFINE_enum(
    "node2node", None, TOPOLOGIES, "Topology that the model must have, or that --pre_only takes."
)
NCELL = flags.DEFINE_integer(
    "ncell", None, "Number of cells the model must have, or that --pre_only takes.", lower_bound=1
)
MIN_COUNT = flags.DEFINE_float(
    "min_count", None, "Smallest C that makes edges, or a quantile; default: the tune's."
)
TRUTH_NODE2NODE = flags.DEFINE_enum(
    "truth_node2node", None, TOPOLOGIES, "Topology of the true edges; default: the model's."
)
CLUSTER = flags.DEFINE_enum(
    "cluster",
    None,
    choices(ClusterTune, "cluster"),
    "What makes tracks; default: the tune's, or cut where its transformer is not trained.",
)
EDGE_THRESHOLD = flags.DEFINE_float(
    "edge_threshold", None, "Edges less probable than this are cut; default: the tune's.", 0.0, 1.0
)
CORE_HITS = flags.DEFINE_integer(
    "core_hits", None, "Fewest hits the transformer chooses for a track; default: the tune's.", 1
)
MIN_SCORE = flags.DEFINE_float(
    "min_score",
    None,
    "Smallest sum of 2 p - 1 over the hits of a track, where p is their membership, in an event of "
    "1e5 hits; less in smaller ones, in proportion. Higher for purity, lower for efficiency; "
    "default: the tune's.",
    lower_bound=0,
)
RFACTOR = flags.DEFINE_float("rfactor", 1.0, "Fraction of particles kept.")
NOISE_RATIO = flags.DEFINE_string(
    "noise_ratio", "-1", "Noise hits over all hits; -1: as in the event; none: no noise."
)
EVENT_START = flags.DEFINE_list("event_start", ["8750"], "First events of the ranges.")
EVENT_END = flags.DEFINE_list("event_end", ["9999"], "Last events of the ranges.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the thinning.", lower_bound=0)
SUBMISSION_DIR = flags.DEFINE_string(
    "submission_dir", None, "Directory for tracks as TrackML submissions; default: not written."
)
FIGURES = flags.DEFINE_boolean("figures", False, "Draw figures; write pages of report and events.")
BESIDE = flags.DEFINE_multi_enum("peers", [], PEERS, "Other programs to run on the same events.")


def main() -> None:
    """Prints a table per event and in summary; writes both as JSON, and what else is asked for."""
    ids = command_line.event_range(EVENT_START, EVENT_END)
    thinning = RFACTOR.value, RFACTOR.value, command_line.noise_ratio(NOISE_RATIO), SEED.value
    events = ReadableEvents(EventSource(command_line.workdir("data"), ids, *thinning))
    if PRE_ONLY.value:
        tune = load_tune(PARAM.value or "tune-5")
        voxdyn = command_line.changed(tune.voxdyn, NODE2NODE, NCELL, MIN_COUNT)
        return graphs_of(replace(tune, voxdyn=voxdyn), events, TRUTH_NODE2NODE.value)
    if READ_TAG.value is None:
        raise UserError("--read_tag is missing: name a trained model, or give --pre_only.")
    reconstruct = model(READ_TAG.value)
    directory = command_line.workdir("figs", READ_TAG.value)
    submissions = Path(SUBMISSION_DIR.value) if SUBMISSION_DIR.value else None
    peers = dict(PEERS[name] for name in BESIDE.value)
    wanted = Wanted(TRUTH_NODE2NODE.value, submissions, FIGURES.value, peers, READ_TAG.value)
    bar = tqdm(events, unit="event")
    report = report_events(as_evaluated(reconstruct), bar, reconstruct.tune, wanted)
    print(report.text, write_rows(directory / "report.json", report.rows), sep="\n\n")
    if FIGURES.value:
        files, missing = draw_figures(directory, report)
        print(*files, *missing, sep="\n")
        print(write_report_page(directory / "report.html", report, own_flags(), files, missing))
    end_with([*events.problems, *report.problems])


def model(tag: str) -> Reconstructor:
    """The model of a tag, which must be what the other flags ask for."""
    models = command_line.workdir("models")
    loaded = Reconstructor.load(tag, models, EPOCH.value)
    asked = replace(
        loaded.tune,
        network=load_tune(PARAM.value).network if PARAM.value else loaded.tune.network,
        voxdyn=command_line.changed(loaded.tune.voxdyn, NODE2NODE, NCELL),
    )
    require_same_tune(loaded.tune, asked, ("network", "voxdyn"), models / tag)
    min_count = command_line.changed(loaded.tune.voxdyn, MIN_COUNT).min_count
    cluster = command_line.changed(
        loaded.tune.cluster, EDGE_THRESHOLD, CORE_HITS, MIN_SCORE, CLUSTER
    )
    return loaded.with_min_count(min_count).with_cluster(cluster)


if __name__ == "__main__":
    command_line.run(main)
