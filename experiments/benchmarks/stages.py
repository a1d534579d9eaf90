"""Host side: times of the stages on one event."""

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from benchmarks.peers.torch_gnn import backward_pass, torch_gnn
from benchmarks.program_cost import (
    ProgramCost,
    product_operations,
    program_cost,
)
from benchmarks.timing import Timing, Works, in_turn, timing_of
from hypertrack_jax.clustering.density import dbscan, hdbscan
from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.edge_metrics import auc
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.sectors import whole
from hypertrack_jax.events.topology import edge_labels
from hypertrack_jax.graph.edge_pairs import EdgePairs, edge_pairs
from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.model.parameters import EDGE, FULL_PHASE, GNN_PHASE
from hypertrack_jax.networks.edge_filter import FilterWeights
from hypertrack_jax.networks.edge_predictor import EdgePredictor, predict, takes_pairs
from hypertrack_jax.networks.kernels import block_size
from hypertrack_jax.reconstruction.reconstructor import Progress, Reconstructor
from hypertrack_jax.training.batches import graph_batch
from hypertrack_jax.training.devices import make_spread_step, spread_over
from hypertrack_jax.training.event_loss import loss_method
from hypertrack_jax.training.step import Model, begin_phase, event_gradient, init_state
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.model import VoxelDynamics

_LOG = logging.getLogger(__name__)
GOOD_EDGE, BAD_EDGE = 0.95, 0.02
"""Probabilities of true and false edges in the suite `cluster`."""
PEERS = {"acts": "acts", "torch": "torch_geometric", "sklearn": "sklearn"}
"""The peers, and the module that each needs."""


def fresh_model(
    voxdyn: VoxelDynamics, tune: Tune, edge_filter: FilterWeights | None = None
) -> Reconstructor:
    """A model with fresh weights. The work of the edge predictor does not depend on weights."""
    state = init_state(tune, jax.random.key(0))
    return Reconstructor(tune, voxdyn, state.params, state.batch_stats, edge_filter)


def installed_peers() -> list[str]:
    """Names of the peers whose packages are there."""
    return [name for name, module in PEERS.items() if importlib.util.find_spec(module)]


def require_peers(peers: Sequence[str]) -> None:
    """Raises a `UserError` unless every name is one of `PEERS`."""
    for peer in peers:
        if peer not in PEERS:
            raise UserError(f"--peers={peer}: expected some of {', '.join(PEERS)}.")


def measure_stages(
    suites: Sequence[str],
    event: Event,
    model: Reconstructor,
    runs: int,
    peers: Sequence[str] = (),
    with_cost: bool = False,
) -> Iterator[Timing]:
    """Times stages on one event, ours and the peers' in turn.

    Args:
      suites: of `graph` (hits to padded graph), `gnn` (forward pass of the edge predictor in
        inference, also in bfloat16; peer: torch), `train_step` (gradient of all losses of phase 1,
        and update; torch makes the gradient of a binary cross entropy alone), `phase2_step` (the
        same in phase 2, the search for clusters included) and `cluster` (components and clusters
        from good edges: true ones at 0.95, false ones at 0.02; sklearn: DBSCAN and HDBSCAN on the
        same). The work of the last two depends on the weights.
      event: the event, thinned to the pile-up wanted.
      model: weights, graph constructor and tune.
      runs: counted runs of each.
      peers: of `PEERS`.
      with_cost: also give the cost of the edge predictor and of training steps, which compiles
        them once more.

    Yields:
      Timings suite by suite. A suite that does not fit in the memory of the device is left out,
      with a warning in the log. Peak memory is that of this process, peers included.

    Raises:
      UserError: there is no such suite or peer, or the torch peer does not have this network.
      ImportError: a peer is not installed.
    """
    makers = {
        "graph": _graph_work,
        "gnn": _gnn_work,
        "train_step": partial(_train_step_work, phase=GNN_PHASE),
        "phase2_step": partial(_train_step_work, phase=FULL_PHASE),
        "cluster": _cluster_work,
    }
    costs = {
        "gnn": gnn_cost,
        "train_step": partial(step_cost, phase=GNN_PHASE),
        "phase2_step": partial(step_cost, phase=FULL_PHASE),
    }
    for suite in suites:
        if suite not in makers:
            raise UserError(f"--suite={suite}: expected some of {', '.join(makers)}.")
    require_peers(peers)
    graph = with_graph(model, model.begin(event)).made[1].graph
    sizes = len(event.position), int(graph.n_edge[0])
    for suite in suites:
        try:
            seconds_of = in_turn(makers[suite](event, model, peers), runs)
        except jax.errors.JaxRuntimeError as error:
            _LOG.warning("%s is left out: %s", suite, error)
            continue
        for who, seconds in seconds_of.items():
            timing = timing_of(f"{suite} / {who}", *sizes, seconds)
            if with_cost and who == "ours" and suite in costs:
                timing = timing._replace(cost=costs[suite](event, model))
            yield timing


def with_graph(model: Reconstructor, hits: Progress) -> Progress:
    """The candidate graph of some hits: what the edge predictor takes."""
    return model.run_to("VD" if model.edge_filter is None else "filter", hits)


def gnn_cost(event: Event, model: Reconstructor) -> ProgramCost:
    """Operations and bytes of the edge predictor on an event; its products as `gnn_products`."""
    *_, gnn, _, _ = model.stages(len(event.position))
    made = with_graph(model, model.begin(event)).made
    cost = program_cost(gnn.function, gnn.method, gnn.capacities, model.shared(), *made)
    return cost._replace(products=gnn_products(made[1].graph, model))


def gnn_products(graph: EventGraph, model: Reconstructor) -> float:
    """Multiplications and additions of the edge predictor's matrix products.

    Counts the blocks that the event fills: of pairs of edges where the network takes pairs, else
    of edges.
    """
    tune = model.tune.network
    variables = {"params": model.params[EDGE], "batch_stats": model.batch_stats}
    pairs = edge_pairs(graph) if takes_pairs(tune) else None

    @jax.jit
    def scored(graph: EventGraph, pairs: EdgePairs | None):
        return EdgePredictor(tune).apply(variables, graph, train=False, pairs=pairs)

    mask = graph.edges.mask if pairs is None else pairs.mask
    loop_runs = -(-int(mask.sum()) // block_size(len(mask), pairs is not None))
    return product_operations(scored.trace(graph, pairs).jaxpr, loop_runs)


def step_cost(event: Event, model: Reconstructor, phase: int) -> ProgramCost:
    """Operations and bytes of losses and gradient of a training step on an event.

    The update, which does not depend on the event, is left out. The search for clusters in phase 2
    counts as a single round, see `ProgramCost`.
    """
    graphs = graph_batch([whole(event)], model.voxdyn, model.tune, model.edge_filter).graphs
    method = loss_method(model.tune, jnp.float32, phase)
    trained = Model(model.params, model.batch_stats, jnp.ones(()))
    graph = jax.tree.map(lambda array: array[0], graphs)
    gradient = jax.jit(event_gradient, static_argnums=0)
    return program_cost(gradient, method, trained, graph, jax.random.key(0))


def _graph_work(event: Event, model: Reconstructor, peers: Sequence[str]) -> Works:
    hits = model.begin(event)
    return {"ours": lambda: with_graph(model, hits)}


def _gnn_work(event: Event, model: Reconstructor, peers: Sequence[str]) -> Works:
    done = with_graph(model, model.begin(event))
    graph = jax.device_put(done.made[1].graph)
    weights = model.params[EDGE], model.batch_stats
    half = jax.jit(partial(predict, model.tune.network, dtype=jnp.bfloat16, is_symmetric=True))
    areas = _edge_auc(event, model, done, half(*weights, graph).logit.astype(jnp.float32))
    works: Works = {
        "ours": lambda: model.run_to("GNN", done),
        f"ours in bfloat16 (edge AUC {areas[1]:.4f}, not {areas[0]:.4f})": lambda: half(
            *weights, graph
        ),
    }
    if "torch" in peers:
        peer = torch_gnn(model.tune.network, model.params[EDGE], model.batch_stats, graph)
        logit = peer()
        ours = np.asarray(model.run_to("GNN", done).made[2].probability)[: len(logit)]
        difference = np.abs(1 / (1 + np.exp(-logit.astype(np.float64))) - ours).max()
        works[f"PyTorch Geometric (probabilities differ by {difference:.0e} at most)"] = peer
    return works


def _edge_auc(
    event: Event, model: Reconstructor, done: Progress, half: Float32[Array, " edge"]
) -> list[float]:
    """Edge AUC of the probabilities in float32, and of the logits `half`; NaN where undefined."""
    label = edge_labels(event, *_ends(done), model.tune.voxdyn.label_topology)
    probability = model.run_to("GNN", done).made[2].probability
    areas = [auc(label, np.asarray(score)[: len(label)]) for score in (probability, half)]
    return [float("nan") if area is None else area for area in areas]


def _ends(done: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Senders and receivers of the candidate edges, as places in the event."""
    graph = done.made[1].graph
    num_edges = int(graph.n_edge[0])
    senders, receivers = (np.asarray(a)[:num_edges] for a in (graph.senders, graph.receivers))
    return done.hits.order[senders], done.hits.order[receivers]


def _cluster_work(event: Event, model: Reconstructor, peers: Sequence[str]) -> Works:
    done = model.run_to("GNN", model.begin(event))
    hits, candidates, scores = done.made
    senders, receivers = _ends(done)
    num_edges = len(senders)
    probability = np.full(len(scores.probability), BAD_EDGE, np.float32)
    probability[:num_edges][edge_labels(event, senders, receivers, "hyper")] = GOOD_EDGE
    scores = scores._replace(probability=jnp.asarray(probability))
    done = done._replace(made=(hits, candidates, scores))
    works: Works = {"ours": lambda: model.run_to("cluster", done)}
    if "sklearn" in peers:
        arguments = probability[:num_edges], senders, receivers, len(event.position)
        for name, peer in {"DBSCAN": dbscan, "HDBSCAN": hdbscan}.items():
            works[f"scikit-learn {name}"] = partial(peer, *arguments)
    return works


def _train_step_work(event: Event, model: Reconstructor, peers: Sequence[str], phase: int) -> Works:
    tune = model.tune
    graphs = graph_batch([whole(event)], model.voxdyn, tune, model.edge_filter).graphs
    key = jax.random.key(0)
    devices = spread_over(1)
    train_step = make_spread_step(tune, jnp.float32, phase, devices)
    trained = {"params": model.params, "batch_stats": model.batch_stats}
    # A copy, placed as in the training loop: a training step donates its state.
    state = devices.replicate(begin_phase(tune, init_state(tune, key)._replace(**trained), phase))

    def work():
        nonlocal state
        state, metrics = train_step(state, graphs, key)
        return state, metrics

    works: Works = {"ours": work}
    if "torch" in peers and phase == GNN_PHASE:
        graph = jax.tree.map(lambda array: array[0], graphs)
        peer = torch_gnn(tune.network, model.params[EDGE], model.batch_stats, graph)
        label = np.asarray(graph.edges.label)[: int(graph.n_edge[0])]
        works["PyTorch Geometric, gradient of one loss"] = lambda: backward_pass(peer, label)
    return works
