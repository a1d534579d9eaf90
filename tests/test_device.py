"""The device: what it takes at once, its memory, and that it computes what a CPU does.

The tests marked `accelerator` run on whatever device jax likes best. On a CPU they compare the
programs that other devices get with those that a CPU gets.
"""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import random_rows
from toy import helix_event
from toy_model import FILTERED_TUNE, taking_all

from hypertrack_jax import device, memory
from hypertrack_jax.errors import UserError
from hypertrack_jax.events.sectors import whole
from hypertrack_jax.model.parameters import GNN_PHASE, init_parameters
from hypertrack_jax.networks.edge_filter import init_filter
from hypertrack_jax.reconstruction.reconstructor import Reconstructor, run_stages
from hypertrack_jax.training.batches import graph_batch
from hypertrack_jax.training.event_loss import loss_method
from hypertrack_jax.training.step import Model, event_gradient
from hypertrack_jax.tunes.tune import ClusterTune, LossTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.hit_edges import edges_of_cells
from hypertrack_jax.voxdyn.voronoi import assign_cells

EVENT = helix_event(0, num_particles=8)
TUNE = replace(
    FILTERED_TUNE,
    cluster=ClusterTune(edge_threshold=0.0, num_draws=1),
    loss=LossTune(contrastive_max_particles=2),
)
NUM_CELLS = TUNE.voxdyn.ncell


@contextlib.contextmanager
def programs(are_of_cpu, where):
    """Programs as a CPU gets them, or as other devices do."""
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch, jax.default_device(where):
        patch.setattr(device, "is_cpu", lambda: are_of_cpu)
        yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def voxdyn():
    events = [helix_event(1, num_particles=20, event_id=number) for number in range(3)]
    return fit_voxdyn(events, NUM_CELLS, "hyper", num_iterations=2)


def in_gap(values, lowest, highest):
    """A number in the widest gap of a range of quantiles: another device rounds in another way."""
    rising = np.sort(values)
    rising = rising[int(lowest * len(rising)) : int(highest * len(rising))]
    widest = int(np.argmax(np.diff(rising)))
    return float(rising[widest : widest + 2].mean())


@pytest.fixture(scope="module")
def made(voxdyn):
    """The model and the results of all stages, as a CPU has them."""
    # On the host, from where either device takes them.
    parameters = jax.device_get(jax.jit(init_parameters, static_argnums=0)(TUNE, jax.random.key(0)))
    weights = init_filter(jax.random.key(0), 8)
    model = Reconstructor(TUNE, voxdyn, *parameters, weights)
    with programs(True, jax.devices("cpu")[0]):
        # The first stages of the filter keep all pairs, the last one about half.
        open_weights = weights._replace(thresholds=jnp.full(3, -100.0))
        model = replace(model, edge_filter=open_weights, params=taking_all(model.params))
        graph = model.run_to("filter", model.begin(EVENT.position)).made[1].graph
        scores = np.asarray(graph.edges.score)[: int(graph.n_edge[0])]
        thresholds = jnp.array([-100, -100, in_gap(scores, 0.4, 0.6)], jnp.float32)
        model = replace(model, edge_filter=weights._replace(thresholds=thresholds))
        done = model.run_to("GNN", model.begin(EVENT.position))
        num_edges = int(done.made[1].graph.n_edge[0])
        probability = np.asarray(done.made[2].probability)[:num_edges]
        cluster = replace(TUNE.cluster, edge_threshold=in_gap(probability, 0.8, 0.95))
        model = model.with_cluster(cluster)
        results = {stage: jax.device_get(result) for stage, result in stage_results(model)}
    return model, results


def stage_results(model, given=None):
    """Each stage and its result, by the results `given` of the stages before or by its own."""
    progress = model.begin(EVENT.position)
    for stage in model.stages(len(EVENT.position)):
        progress = run_stages([stage], lambda s, *rest: s(*rest), model.shared(), progress)
        yield stage.name, progress.made[-1]
        if given is not None:
            progress = progress._replace(made=(*progress.made[:-1], given[stage.name]))


@pytest.fixture(scope="module")
def of_device(made):
    """What the device makes of the same."""
    model, given = made
    with programs(False, jax.devices()[0]):
        results = {stage: jax.device_get(result) for stage, result in stage_results(model, given)}
        labels = [np.asarray(model(EVENT.position).hit_label) for _ in range(2)]
    return results, labels


@pytest.mark.accelerator
def test_cells_are_those_of_a_search_through_all_centroids(voxdyn):
    rng = np.random.default_rng(0)
    position = rng.normal(EVENT.position, 30.0).astype(np.float32)
    with programs(False, jax.devices()[0]):
        cell = np.asarray(assign_cells(voxdyn.index, jnp.asarray(position)))
    centroids = np.asarray(voxdyn.index.centroids, np.float64)
    distance = ((position[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2)
    own = np.take_along_axis(distance, cell[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(own, distance.min(axis=1), rtol=1e-5)


@pytest.mark.accelerator
def test_the_look_up_finds_the_edges_of_the_dense_matrix():
    rng = np.random.default_rng(0)
    dense, rows = random_rows(rng, NUM_CELLS, 0.2)
    cell = np.append(rng.integers(0, NUM_CELLS, 100), np.full(28, NUM_CELLS)).astype(np.int32)
    with programs(False, jax.devices()[0]):
        found = edges_of_cells(
            rows, cell, np.int32(2), block_capacity=512, edge_capacity=8192
        ).edges
    number = int(found.num_edges)
    wanted = np.pad(dense, (0, 1))[cell[:, None], cell[None, :]]
    assert number == (wanted >= 2).sum() and not found.is_overflow
    senders, receivers, counts = (np.asarray(part)[:number] for part in found[:3])
    assert len(set(zip(senders.tolist(), receivers.tolist(), strict=True))) == number
    np.testing.assert_array_equal(counts, wanted[receivers, senders])


@pytest.mark.accelerator
def test_the_filter_keeps_what_it_keeps_on_a_cpu(made, of_device):
    found, wanted = of_device[0]["filter"].graph, made[1]["filter"].graph
    number = int(wanted.n_edge[0])
    assert number > 100
    for name in ("senders", "receivers", "n_edge"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    np.testing.assert_allclose(
        found.edges.score[:number], wanted.edges.score[:number], rtol=1e-3, atol=1e-3
    )


@pytest.mark.accelerator
def test_edge_probabilities_are_those_of_a_cpu(made, of_device):
    found, wanted = of_device[0]["GNN"], made[1]["GNN"]
    number = int(made[1]["filter"].graph.n_edge[0])
    np.testing.assert_allclose(
        found.probability[:number], wanted.probability[:number], rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(found.embedding, wanted.embedding, rtol=1e-2, atol=1e-3)
    assert np.std(wanted.probability[:number]) > 1e-3


@pytest.mark.accelerator
@pytest.mark.parametrize("stage", ["VD", "CC", "cluster"])
def test_the_search_is_that_of_a_cpu(made, of_device, stage):
    found, wanted = of_device[0][stage], made[1][stage]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if np.issubdtype(other.dtype, np.integer) or other.dtype == bool:
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.accelerator
def test_the_same_key_gives_the_same_labels_twice(made, of_device):
    first, second = of_device[1]
    np.testing.assert_array_equal(first, second)
    assert len(set(first[first >= 0])) > 2


@pytest.mark.accelerator
def test_a_training_step_has_the_gradient_of_a_cpu(made):
    model, _ = made
    graphs = graph_batch([whole(EVENT)], model.voxdyn, TUNE, model.edge_filter).graphs
    graph = jax.tree.map(lambda array: np.asarray(array)[0], graphs)
    trained = jax.device_get(Model(model.params, model.batch_stats, jnp.ones(())))
    method = loss_method(model.tune, jnp.float32, GNN_PHASE)

    def gradient():
        # Optax has no strict promotion.
        with jax.numpy_dtype_promotion("standard"):
            step = jax.jit(event_gradient, static_argnums=0)
            return jax.device_get(step(method, trained, graph, jax.random.key(0)))

    with programs(True, jax.devices("cpu")[0]):
        wanted = gradient()
    with programs(False, jax.devices()[0]):
        found = gradient()
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-3)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3 * np.abs(other).max() + 1e-7)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted.params)) > 1e-3


def test_sizes_are_those_of_the_backend(monkeypatch):
    assert device.blocks() == device.CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert device.blocks() == device.ACCELERATOR


def test_the_memory_of_a_card_is_what_jax_may_still_take(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 7)
    assert device.free_memory() == 7
    told = {"bytes_limit": 100, "bytes_in_use": 30}
    monkeypatch.setattr(device, "is_cpu", lambda: False)
    for answer, free in ((told, 70), ({}, None), (None, None)):
        card = SimpleNamespace(memory_stats=lambda answer=answer: answer)
        monkeypatch.setattr(jax, "local_devices", lambda card=card: [card])
        assert device.free_memory() == free


def test_memory_that_runs_out_is_one_sentence():
    with (
        pytest.raises(UserError, match=r"^the memory ran out in a step; choose fewer hits, or a"),
        device.memory_told("a step", "fewer hits"),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        device.memory_told("a step", "fewer hits"),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: a defect")
