"""Host side: the least time that an accelerator needs for our programs, by operations and bytes.

The programs are those for an accelerator, but compiled for this processor. No real run reaches the
bound: it moves every array only once each way, and leaves out the launches of kernels.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.program_cost import ProgramCost, product_operations, program_cost
from benchmarks.stages import gnn_products
from hypertrack_jax import device
from hypertrack_jax.events.event import Event
from hypertrack_jax.events.sectors import Sector
from hypertrack_jax.model.parameters import FULL_PHASE, GNN_PHASE
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.training.batches import graph_batch
from hypertrack_jax.training.event_loss import loss_method
from hypertrack_jax.training.step import Model, event_gradient


class Rates(NamedTuple):
    """What a card can do."""

    name: str
    products: float
    """Floating-point operations per second, of matrix products in float32."""
    bandwidth: float
    """Bytes per second."""


H100 = Rates("H100 SXM, published", 67e12, 3.35e12)
"""NVIDIA's data sheet: float32 without tensor cores (with them in TF32 seven times as much), and
80 GB of HBM3."""


class Limit(NamedTuple):
    """A program and its cost, for a lower bound on its time."""

    what: str
    hits: int
    edges: int
    cost: ProgramCost

    @property
    def num_bytes(self) -> int:
        """Bytes moved: arguments and results once, temporary arrays twice."""
        return self.memory + self.cost.temporary_bytes

    @property
    def memory(self) -> int:
        """Bytes held: arguments, results and temporary arrays."""
        cost = self.cost
        return cost.argument_bytes + cost.output_bytes + cost.temporary_bytes

    def milliseconds(self, rates: Rates) -> float:
        """Lower bound on the time: the longer of computing the products and moving the bytes."""
        products = self.cost.products / rates.products
        return 1e3 * max(products, self.num_bytes / rates.bandwidth)


def stage_limits(model: Reconstructor, event: Event, what: str) -> Iterator[Limit]:
    """The stages of the reconstruction of an event, with the capacities that are tried first.

    The products of the search for clusters are those of a single round.
    """
    progress, given = model.begin(event), []
    stages = model.stages(len(event.position))
    for stage in stages:
        given.append(progress.made)
        progress = model.run_to(stage.name, progress)
    num_edges = int(progress.made[1].graph.n_edge[0])
    with programs_of_an_accelerator():
        for stage, made in zip(stages, given, strict=True):
            program = jax.jit(stage.function, static_argnums=(0, 1))
            arguments = (stage.method, stage.capacities, model.shared(), *made)
            cost = program_cost(program, *arguments)
            if stage.name == "GNN":
                cost = cost._replace(products=gnn_products(made[1].graph, model))
            elif stage.name == "filter":
                most, capacity = device.blocks().filter_pairs, stage.capacities.num_pairs
                num_blocks = -(-int(made[1].lists.num_raw) // device.size_of_block(most, capacity))
                products = product_operations(program.trace(*arguments).jaxpr, num_blocks)
                cost = cost._replace(products=products)
            yield Limit(f"{what}, {stage.name}", len(event.position), num_edges, cost)


def step_limits(model: Reconstructor, sector: Sector, what: str) -> Iterator[Limit]:
    """The gradients of a training step of both phases; in phase 2 with a single round of search."""
    batch = graph_batch([sector], model.voxdyn, model.tune, model.edge_filter)
    graph = jax.tree.map(lambda array: array[0], batch.graphs)
    trained = Model(model.params, model.batch_stats, jnp.ones(()))
    gradient: Any = jax.jit(event_gradient, static_argnums=0)
    with programs_of_an_accelerator():
        for phase in (GNN_PHASE, FULL_PHASE):
            method = loss_method(model.tune, jnp.float32, phase)
            cost = program_cost(gradient, method, trained, graph, jax.random.key(0))
            yield Limit(f"{what}, phase {phase}", batch.num_hits, batch.num_edges, cost)


@contextlib.contextmanager
def programs_of_an_accelerator() -> Iterator[None]:
    """Makes this process trace programs as for an accelerator; on a CPU they would run slowly."""
    before = device.is_cpu
    jax.clear_caches()
    device.is_cpu = lambda: False
    try:
        yield
    finally:
        device.is_cpu = before
        jax.clear_caches()


TITLES = ("program", "hits", "edges", "products, Gflop", "bytes, MB", "memory, MB", "at least, ms")


def limit_cells(limit: Limit, rates: Rates) -> list[str]:
    """A row of the table."""
    return [
        limit.what,
        str(limit.hits),
        str(limit.edges),
        f"{limit.cost.products / 1e9:.3g}",
        f"{limit.num_bytes / 1e6:.3g}",
        f"{limit.memory / 1e6:.3g}",
        f"{limit.milliseconds(rates):.2g}",
    ]
