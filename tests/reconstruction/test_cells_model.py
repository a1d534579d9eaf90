"""A model whose filter looks at the shape of clusters, from its training to its tracks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from handmade import with_cells
from toy import helix_event
from toy_model import FILTERED_TUNE, filtered_model, toy_voxdyn

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import choose_hits
from hypertrack_jax.events.sectors import whole
from hypertrack_jax.events.store import save_event
from hypertrack_jax.model.counts import count_pairs
from hypertrack_jax.model.filters import load_filter
from hypertrack_jax.networks.edge_filter import init_filter, needs_cells
from hypertrack_jax.reconstruction import capacities
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.reconstruction.devices import SpreadReconstructor
from hypertrack_jax.reconstruction.export import export_reconstruction
from hypertrack_jax.reconstruction.filter_classifier import filter_logits, node_features_of
from hypertrack_jax.training.batches import EventSource, graph_batch
from hypertrack_jax.training.filter_training import FilterRun, train_filter
from hypertrack_jax.tunes.tune import FilterTune, Tune, tune_from_json, tune_to_json

EVENT = with_cells(helix_event(0, num_particles=20))
TUNE = replace(FILTERED_TUNE, edge_filter=FilterTune(filter="triplets", width=8, cells="shape"))


@pytest.fixture(scope="module", autouse=True)
def long_rows():
    """Room for what filters keep that were not trained: else each is compiled several times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacities, "FEW", 80)
        yield


@pytest.fixture(scope="module")
def voxdyn():
    return toy_voxdyn()


@pytest.fixture(scope="module")
def model(voxdyn):
    """The filter takes a part of the edges out by what it sees of the clusters."""
    weights = init_filter(jax.random.key(0), 8, "shape")
    weights = weights._replace(thresholds=jnp.array([-0.05, -1, -1]))
    return filtered_model(TUNE, voxdyn, weights)


def edges_of(tracks):
    return set(zip(tracks.senders.tolist(), tracks.receivers.tolist(), strict=True))


def test_clusters_go_with_their_hits(model):
    tracks = model(EVENT, with_edges=True)
    again = model(EVENT.position, EVENT.cells, with_edges=True)
    assert edges_of(again) == edges_of(tracks)
    order = np.random.default_rng(0).permutation(len(EVENT.position))
    shuffled = model(choose_hits(EVENT, order), with_edges=True)
    assert {(order[a], order[b]) for a, b in edges_of(shuffled)} == edges_of(tracks)
    # The same clusters at other hits are other edges, and so it is that the filter looks at them.
    other = model(EVENT.position, choose_hits(EVENT, order).cells, with_edges=True)
    assert edges_of(other) != edges_of(tracks)


def test_other_ways_to_the_graph_see_the_same_clusters(model):
    expected = edges_of(model(EVENT, with_edges=True))
    ways = model.voxdyn, EVENT.position, 1, model.edge_filter
    assert edges_of(predict_edges(*ways, EVENT.cells)) == expected
    raw = predict_edges(*ways[:3])
    index = np.stack([raw.senders, raw.receivers])
    nodes, counts = node_features_of(EVENT.position, EVENT.cells), raw.counts[:, None]
    logit = jax.jit(filter_logits)(model.edge_filter, nodes, index, counts.astype(np.float32))
    is_kept = np.asarray(logit) >= model.edge_filter.thresholds[-1]
    assert set(zip(*index[:, is_kept].tolist(), strict=True)) == expected
    spread = SpreadReconstructor.of(model)([EVENT, EVENT], with_edges=True)
    assert [edges_of(tracks) for tracks in spread] == [expected, expected]
    batch = graph_batch([whole(EVENT)], model.voxdyn, TUNE, model.edge_filter)
    assert batch.num_edges == len(expected)
    assert len(model.warm_up([len(EVENT.position)])) == 1
    assert model(choose_hits(EVENT, np.arange(0))).hit_label.size == 0


def test_a_model_that_needs_cells_names_those_that_do_not(model):
    for call in (
        lambda: model(EVENT.position),
        lambda: model(EVENT._replace(cells=None)),
        lambda: predict_edges(model.voxdyn, EVENT.position, 1, model.edge_filter),
    ):
        with pytest.raises(UserError, match=r"there are no cells; give .* none: positions, pu2\.$"):
            call()
    with pytest.raises(UserError, match="7 clusters of cells for"):
        model(EVENT.position, choose_hits(EVENT, np.arange(7)).cells)
    with pytest.raises(UserError, match="cannot be exported, since"):
        export_reconstruction(model, 100)


def test_a_model_of_positions_does_not_look_at_cells(model):
    tune = replace(TUNE, edge_filter=replace(TUNE.edge_filter, cells="none"))
    plain = replace(model, tune=tune, edge_filter=init_filter(jax.random.key(0), 8))
    assert plain.ordered(EVENT).cells is None and plain.no_hits().cells is None
    np.testing.assert_array_equal(
        plain.ordered(EVENT).position, plain.ordered(EVENT.position).position
    )


def test_a_filter_is_trained_with_cells_and_belongs_to_its_tune(tmp_path, voxdyn):
    for number in range(2):
        save_event(tmp_path, with_cells(helix_event(5, num_particles=20, event_id=number)))
    save_event(tmp_path, helix_event(5, num_particles=20, event_id=2))
    # Without a step: its program takes long to compile, and takes the same inputs.
    source = EventSource(tmp_path, [0], 1.0, 1.0, -1, 0)
    run = FilterRun(source, source._replace(event_ids=[1]), 0, tmp_path / "f.npz", tmp_path / "log")
    weights = train_filter(run, TUNE, voxdyn, iter)
    assert needs_cells(weights)
    counts = count_pairs(voxdyn), 1
    assert needs_cells(load_filter(run.path, TUNE.edge_filter, *counts))
    with pytest.raises(UserError, match="and the cells 'none' of the tune"):
        load_filter(run.path, replace(TUNE.edge_filter, cells="none"), *counts)
    with pytest.raises(UserError, match="there are no cells"):
        train_filter(
            replace(run, held_out=source._replace(event_ids=[2]), path=tmp_path / "g.npz"),
            TUNE,
            voxdyn,
            iter,
        )


def test_a_tune_with_cells_has_a_filter():
    assert tune_from_json(tune_to_json(TUNE)) == TUNE
    with pytest.raises(UserError, match=r"cells is 'shape', but FilterTune\.filter is"):
        Tune("wrong", edge_filter=FilterTune(cells="shape"))
