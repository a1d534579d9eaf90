"""The least time of a card: the larger of what products and bytes take."""

import jax
import pytest
from benchmarks import limits
from benchmarks.limits import (
    H100,
    Limit,
    limit_cells,
    programs_of_an_accelerator,
    stage_limits,
    step_limits,
)
from benchmarks.program_cost import ProgramCost, product_operations
from benchmarks.stages import gnn_products
from toy import helix_event

from hypertrack_jax import device
from hypertrack_jax.events.sectors import whole
from hypertrack_jax.model.parameters import init_parameters
from hypertrack_jax.networks.edge_filter import init_filter
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.tune import ClusterTune, FilterTune, NetworkTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn

EVENT = helix_event(0, 8, event_id=9)


@pytest.fixture(scope="module")
def model():
    network = NetworkTune("cylindrical", "helix+filter", 1, 8, 5, (4,), num_attention_blocks=1)
    tune = Tune(
        "small",
        voxdyn=VoxdynTune(ncell=64),
        edge_filter=FilterTune(filter="triplets", width=8),
        network=network,
        cluster=ClusterTune(cluster="cut"),
    )
    voxdyn = fit_voxdyn([helix_event(1, 20)], 64, "hyper", num_iterations=1)
    parameters = jax.jit(init_parameters, static_argnums=0)(tune, jax.random.key(0))
    return Reconstructor(tune, voxdyn, *parameters, init_filter(jax.random.key(0), 8))


def test_products_and_bytes_of_the_stages(model, monkeypatch):
    monkeypatch.setattr(device, "ACCELERATOR", device.ACCELERATOR._replace(filter_pairs=64))
    # Before the programs of an accelerator take the place of those of this machine.
    looked_up = model.run_to("VD", model.begin(EVENT.position))
    hits, lists = looked_up.made
    made = model.run_to("GNN", looked_up).made
    found = {limit.what.split(", ")[1]: limit for limit in stage_limits(model, EVENT, "toy")}
    assert list(found) == ["VD", "filter", "GNN", "CC", "cluster"]
    assert found["VD"].cost.products == found["CC"].cost.products == 0
    with programs_of_an_accelerator():
        assert found["GNN"].cost.products == gnn_products(made[1].graph, model)
    assert found["GNN"].edges == int(made[1].graph.n_edge[0])
    columns = model.voxdyn.rows.columns
    assert found["VD"].num_bytes > columns.size * columns.dtype.itemsize
    # The loop over raw pairs counts as often as it runs.
    stage = model.stages(len(EVENT.position))[1]
    traced = jax.jit(stage.function, static_argnums=(0, 1)).trace(
        stage.method, stage.capacities, model.shared(), hits, lists
    )
    of_pairs = found["filter"].cost.products - product_operations(traced.jaxpr, 0)
    num_blocks = -(-int(lists.lists.num_raw) // 64)
    assert num_blocks > 10 and of_pairs == num_blocks * 64 * 2 * (16 * 8 + 8 * 8 + 8)


def test_what_a_step_takes_gives_and_holds(model, monkeypatch):
    monkeypatch.setattr(limits, "program_cost", lambda *_: ProgramCost(7.0, 8.0, 9.0, 4, 5, 6))
    found = list(step_limits(model, whole(EVENT), "step"))
    assert [limit.what for limit in found] == ["step, phase 1", "step, phase 2"]
    assert all(limit.memory == 4 + 5 + 6 for limit in found)
    assert all(limit.num_bytes == 4 + 5 + 2 * 6 for limit in found)
    assert found[0].hits == len(EVENT.position) and found[0].edges > 0


def test_the_larger_of_both_times_bounds():
    cost = ProgramCost(6.7e10, 0.0, 0.0, 10**6, 2 * 10**6, 175 * 10**3)
    by_products = Limit("a", 1, 2, cost)
    by_bytes = by_products._replace(cost=cost._replace(argument_bytes=33_15 * 10**7))
    assert by_products.milliseconds(H100) == pytest.approx(1.0)
    assert by_bytes.milliseconds(H100) == pytest.approx(9.896, rel=1e-3)
    assert limit_cells(by_products, H100) == ["a", "1", "2", "67", "3.35", "3.17", "1"]
