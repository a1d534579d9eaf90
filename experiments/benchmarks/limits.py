"""Host side: the least time that an accelerator needs for our programs, by operations and bytes.

The programs are those that an accelerator gets, compiled for this processor. The bound is reached
by no real run: it takes every array once and counts no start of a kernel.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.program_cost import ProgramCost, product_operations, program_cost
from benchmarks.stages import gnn_products
from hypertrack_jax import device
from hypertrack_jax.evaluation.tables import markdown_table
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
    """A program and what it needs at least."""

    what: str
    hits: int
    edges: int
    products: float
    """Multiplications and additions of its matrix products."""
    num_bytes: float
    """Bytes of what it takes, of what it gives, and twice of what it holds in between."""

    def milliseconds(self, rates: Rates) -> float:
        """The larger of both times."""
        return 1e3 * max(self.products / rates.products, self.num_bytes / rates.bandwidth)


def stage_limits(model: Reconstructor, event: Event, what: str) -> Iterator[Limit]:
    """The stages of the reconstruction of an event, in the capacities it is tried in first.

    The products of the search for clusters are those of a single round.
    """
    done = model.run_to("cluster", model.begin(event.position))
    num_edges = int(done.made[1].graph.n_edge[0])
    progress = model.begin(event.position)
    for stage in model.stages(len(event.position)):
        made = progress.made
        progress = model.run_to(stage.name, progress)
        program = jax.jit(stage.function, static_argnums=(0, 1))
        arguments = (stage.method, stage.capacities, model.shared(), *made)
        cost = program_cost(program, *arguments)
        products = cost.products
        if stage.name == "GNN":
            products = gnn_products(made[1].graph, model)
        elif stage.name == "filter":
            num_blocks = -(-int(made[1].lists.num_raw) // device.blocks().filter_pairs)
            products = product_operations(program.trace(*arguments).jaxpr, num_blocks)
        name = f"{what}, {stage.name}"
        yield Limit(name, len(event.position), num_edges, products, _num_bytes(cost))


def step_limits(model: Reconstructor, sector: Sector, what: str) -> Iterator[Limit]:
    """The gradients of a training step of both phases; in phase 2 with a single round of search."""
    batch = graph_batch([sector], model.voxdyn, model.tune, model.edge_filter)
    graph = jax.tree.map(lambda array: array[0], batch.graphs)
    trained = Model(model.params, model.batch_stats, jnp.ones(()))
    gradient: Any = jax.jit(event_gradient, static_argnums=0)
    for phase in (GNN_PHASE, FULL_PHASE):
        method = loss_method(model.tune, jnp.float32, phase)
        cost = program_cost(gradient, method, trained, graph, jax.random.key(0))
        name = f"{what}, phase {phase}"
        yield Limit(name, batch.num_hits, batch.num_edges, cost.products, _num_bytes(cost))


def limit_table(limits: list[Limit], rates: Rates) -> str:
    """The limits as Markdown."""
    titles = ["program", "hits", "edges", "products, Gflop", "bytes, MB", "at least, ms"]
    rows = [
        [
            limit.what,
            str(limit.hits),
            str(limit.edges),
            f"{limit.products / 1e9:.3g}",
            f"{limit.num_bytes / 1e6:.3g}",
            f"{limit.milliseconds(rates):.2g}",
        ]
        for limit in limits
    ]
    return markdown_table(titles, rows)


def as_on_an_accelerator() -> None:
    """Has this process trace what an accelerator would get."""
    device.is_cpu = partial(bool, 0)


def _num_bytes(cost: ProgramCost) -> float:
    return cost.argument_bytes + cost.output_bytes + 2.0 * cost.temporary_bytes
