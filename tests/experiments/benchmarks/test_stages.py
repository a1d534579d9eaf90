"""The benchmark of the stages measures what it says, and what it says can be read."""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarks import stages, timing
from benchmarks.end_to_end import reconstruction_cost
from benchmarks.program_cost import ProgramCost, product_operations
from benchmarks.stages import fresh_model, gnn_cost, measure_stages, step_cost
from benchmarks.timing import Timing, markdown, write_timings
from handmade import with_cells
from toy import helix_event
from toy_model import FILTERED_TUNE, toy_voxdyn

from hypertrack_jax.events.sectors import whole
from hypertrack_jax.graph.edge_pairs import edge_pairs
from hypertrack_jax.model.parameters import EDGE, GNN_PHASE
from hypertrack_jax.networks.edge_filter import init_filter
from hypertrack_jax.networks.edge_predictor import EdgePredictor
from hypertrack_jax.networks.kernels import block_size
from hypertrack_jax.training.batches import graph_batch
from hypertrack_jax.tunes.tune import ClusterTune, FilterTune, NetworkTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn


@pytest.fixture(scope="module")
def event():
    return helix_event(0, 8, event_id=9)


@pytest.fixture(scope="module")
def model():
    network = NetworkTune("cylindrical", "helix", 2, 8, 5, (4,), num_attention_blocks=1)
    # `cut` compiles in no time.
    cluster = ClusterTune(cluster="cut")
    tune = Tune("small", voxdyn=VoxdynTune(ncell=64), network=network, cluster=cluster)
    events = [helix_event(1, 20, event_id=number) for number in range(3)]
    return fresh_model(fit_voxdyn(events, 64, "hyper", num_iterations=2), tune)


def test_suites_beside_their_peers(model, event):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    timings = list(measure_stages(["graph", "gnn", "cluster"], event, model, 3, ["sklearn"]))
    names = [one.suite for one in timings]
    single, half = re.fullmatch(
        r"gnn / ours in bfloat16 \(edge AUC (0\.\d{4}), not (0\.\d{4})\)", names.pop(2)
    ).groups()
    # The weights are random, and so are the ranks of edges that differ little.
    assert abs(float(single) - float(half)) < 0.05
    assert names == [
        "graph / ours",
        "gnn / ours",
        "cluster / ours",
        "cluster / scikit-learn DBSCAN",
        "cluster / scikit-learn HDBSCAN",
    ]
    num_edges = int(candidate_graph(model, event).n_edge[0])
    for one in timings:
        assert (one.hits, one.edges, one.runs) == (len(event.position), num_edges, 3)
        assert 0 < one.min <= one.median <= one.max
        assert one.cpu > 0 and one.peak_memory > 0.05


def test_a_model_with_a_filter_that_looks_at_cells():
    # Thresholds that leave some edges of random scores.
    weights = init_filter(jax.random.key(0), 8, "shape")
    weights = weights._replace(thresholds=jnp.array([-0.05, -1, -1]))
    tune = replace(FILTERED_TUNE, edge_filter=FilterTune("triplets", width=8, cells="shape"))
    model, event = fresh_model(toy_voxdyn(), tune, weights), with_cells(helix_event(0, 8))
    suites = ["graph", "gnn", "cluster"]
    timings = list(measure_stages(suites, event, model, 1, with_cost=True))
    assert [one.suite.split(" / ")[0] for one in timings] == ["graph", "gnn", "gnn", "cluster"]
    num_edges = len(model(event, with_edges=True).senders)
    assert {one.edges for one in timings} == {num_edges} and num_edges > 0
    assert timings[1].cost.products > 0
    # One program of all stages takes the cells, too.
    assert reconstruction_cost(model, event).products > timings[1].cost.products


def test_training_step_beside_torch(model, event):
    pytest.importorskip("torch_geometric", reason="PyTorch Geometric is not installed")
    weights = jax.tree.map(np.asarray, model.params)
    # Optax has no strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        timings = list(measure_stages(["gnn", "train_step"], event, model, 2, ["torch"]))
    names = [one.suite.split(" / ")[1][:7] for one in timings]
    assert names == ["ours", "ours in", "PyTorch", "ours", "PyTorch"]
    jax.tree.map(np.testing.assert_array_equal, weights, jax.tree.map(np.asarray, model.params))


def candidate_graph(model, event):
    return model.run_to("VD", model.begin(event.position)).made[1].graph


def test_cost_of_the_network_grows_with_its_layers(model, event):
    cost = gnn_cost(event, model)
    tune = replace(model.tune, network=replace(model.tune.network, num_layers=3))
    deeper = gnn_cost(event, fresh_model(model.voxdyn, tune))
    num_edges = len(candidate_graph(model, event).senders)
    # By pairs, one layer more has three products of latent times latent width for two edges, one of
    # ten scalars, and five on each hit: two before the messages, and latents of twice the width.
    # Two norms are folded into what follows them.
    graph = candidate_graph(model, event)
    pairs, num_hits = edge_pairs(graph).mask, len(graph.nodes.mask)
    block = block_size(len(pairs), are_pairs=True)
    num_pairs = -(-int(pairs.sum()) // block) * block
    more = num_pairs * (3 * 8 * 8 + 10 * 8) + num_hits * (2 * 8 * 8 + 16 * 8 + 8 * 8 + 8 * 8)
    assert deeper.products - cost.products == 2 * (more + 2 * 8 * 8)
    assert cost.argument_bytes > 2 * 4 * num_edges


def test_a_step_has_three_times_the_products_of_the_network_in_training(model, event):
    graph = graph_batch([whole(event)], model.voxdyn, model.tune).graphs
    variables = {"params": model.params[EDGE], "batch_stats": model.batch_stats}

    @jax.jit
    def forward(graph):
        network = EdgePredictor(model.tune.network)
        return network.apply(variables, graph, train=True, mutable=["batch_stats"])

    of_graph = forward.trace(jax.tree.map(lambda array: array[0], graph))
    products = product_operations(of_graph.jaxpr)
    # One for each gradient beside the forward pass; the inputs of the first layer have none.
    assert 2.5 * products < step_cost(event, model, GNN_PHASE).products <= 3 * products


def test_unknown_suite_and_peer(model, event):
    with pytest.raises(ValueError, match=r"--suite=gn: expected some of graph, gnn"):
        next(measure_stages(["gn"], event, model, 1))
    with pytest.raises(ValueError, match=r"--peers=pytorch: expected some of acts, torch, sklearn"):
        next(measure_stages(["gnn"], event, model, 1, ["pytorch"]))


def test_missing_peer_is_not_taken_for_installed(monkeypatch):
    found = {"sklearn": object()}.get
    monkeypatch.setattr(stages.importlib.util, "find_spec", found)
    assert stages.installed_peers() == ["sklearn"]


def test_runs_take_turns():
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = timing.in_turn(works, runs=3)
    assert "".join(calls) == "aabb" + "ababab"
    assert len(seconds["a"].wall) == len(seconds["b"].cpu) == 3


def test_tables_tell_what_there_is(tmp_path):
    plain = Timing("a / ours", 10, 20, 3, 0.002, 0.001, 0.004, 0.5)
    cost = ProgramCost(2e9, 3e9, 4e9, 5, 6, 7)
    scored = plain._replace(suite="a / peer", efficiency=0.5, dms=0.25, cost=cost)
    assert "efficiency" not in markdown([plain]) and "CPU" not in markdown([plain])
    lines = markdown([plain, scored]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len(cells[0]) == len(cells[2])
    assert cells[2][-6:] == ["2.0", "1.0", "4.0", "0.50", "-", "-"]
    assert cells[3][-2:] == ["0.500", "0.250"]
    assert cells[-1] == ["a / peer", "2", "3", "4", "5e-09", "6e-09", "7e-09"]
    json_file, tables = write_timings(tmp_path / "b.json", [plain, scored], ["a note"])
    report = json.loads(json_file.read_text())
    assert report["timings"][1]["cost"]["products"] == 2e9
    assert report["timings"][0]["cost"] is None
    assert "jax " in report["machine"] and "cores" in report["machine"]
    text = tables.read_text()
    assert "a note" in text and report["date"] in text and lines[2] in text
