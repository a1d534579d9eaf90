"""The filter as a stage: it keeps the pairs of the training, in every form of the product."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import helix_event
from toy_model import FILTERED_TUNE as TUNE
from toy_model import filtered_model, toy_voxdyn

from hypertrack_jax import device
from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.compiled_time import watched_compilation
from hypertrack_jax.events.sectors import whole
from hypertrack_jax.networks.edge_filter import init_filter
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.reconstruction.capacities import (
    FilterCapacities,
    filter_capacities,
    require_room,
)
from hypertrack_jax.reconstruction.devices import SpreadReconstructor
from hypertrack_jax.reconstruction.export import one_program
from hypertrack_jax.reconstruction.filter_classifier import (
    DROPPED,
    THRESHOLD,
    export_filter,
    filter_logits,
)
from hypertrack_jax.reconstruction.onnx_file import INPUTS, OUTPUT
from hypertrack_jax.reconstruction.stages import filtered_edges, raw_pairs
from hypertrack_jax.training.filter_training import most_neighbors, sector_pairs, stages_at
from hypertrack_jax.tunes.tune import ClusterTune
from hypertrack_jax.voxdyn.lookup import TOO_MANY

EVENT = helix_event(0, num_particles=20)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Toy events, too, pass in many blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "CPU", device.CPU._replace(filter_pairs=64))
        yield


@pytest.fixture(scope="module")
def model():
    """A model whose filter takes about half of the edges out, and whose cuts leave components."""
    voxdyn = toy_voxdyn()
    weights = init_filter(jax.random.key(0), 8)
    made = sector_pairs(*whole(EVENT), voxdyn, TUNE)
    thresholds = []
    for number in range(3):
        given = (thresholds + [-np.inf] * 2)[:2]
        pairs = stages_at(most_neighbors(made), weights, made, given)[number]
        rising = np.sort(np.asarray(pairs.logit)[: int(pairs.number)])
        rising = rising[len(rising) // 6 : len(rising) // 4]
        # In the widest gap: another program rounds in another way.
        widest = int(np.argmax(np.diff(rising)))
        thresholds.append(float(rising[widest : widest + 2].mean()))
    weights = weights._replace(thresholds=jnp.array(thresholds, jnp.float32))
    fresh = filtered_model(TUNE, voxdyn, weights)
    rising = np.sort(fresh(EVENT.position, with_edges=True).probability)
    best = rising[int(0.85 * len(rising)) : int(0.95 * len(rising))]
    widest = int(np.argmax(np.diff(best)))
    threshold = float(best[widest : widest + 2].mean())
    return fresh.with_cluster(ClusterTune(cluster="cut", edge_threshold=threshold))


def test_the_stage_keeps_what_the_training_would(model):
    weights = model.edge_filter
    made = sector_pairs(*whole(EVENT), model.voxdyn, TUNE)
    thresholds = [float(value) for value in weights.thresholds]
    stages = stages_at(most_neighbors(made), weights, made, thresholds[:2])
    last = stages[-1]
    is_kept = np.arange(len(last.one)) < int(last.number)
    is_kept &= np.asarray(last.logit) >= thresholds[2]
    wanted = {
        frozenset((int(one), int(other))): float(logit)
        for one, other, logit in zip(
            np.asarray(last.one)[is_kept],
            np.asarray(last.other)[is_kept],
            np.asarray(last.logit)[is_kept],
            strict=True,
        )
    }
    edges = predict_edges(model.voxdyn, EVENT.position, 1, weights)
    found = by_ends(edges, edges.score)
    assert {frozenset(ends) for ends in found} == set(wanted)
    assert len(found) == 2 * len(wanted) == len(edges.senders) > 100
    for ends, score in found.items():
        assert score == pytest.approx(wanted[frozenset(ends)], abs=1e-4)
        assert score == found[ends[::-1]]
    assert (np.diff(edges.receivers) >= 0).all()
    raw = predict_edges(model.voxdyn, EVENT.position, 1)
    counts = by_ends(raw, raw.counts)
    assert all(counts[ends] == n for ends, n in by_ends(edges, edges.counts).items())
    assert len(found) < 0.7 * len(counts)


def by_ends(edges, values):
    ends = zip(edges.senders.tolist(), edges.receivers.tolist(), strict=True)
    return dict(zip(ends, values.tolist(), strict=True))


def test_plain_operations_give_the_scores_of_the_stage(model):
    weights, raw = model.edge_filter, predict_edges(model.voxdyn, EVENT.position, 1)
    order = np.random.default_rng(0).permutation(len(raw.senders))
    index = np.stack([raw.senders, raw.receivers])[:, order]
    count = raw.counts[order, None].astype(np.float32)
    logit = np.asarray(jax.jit(filter_logits)(weights, EVENT.position, index, count))
    edges = predict_edges(model.voxdyn, EVENT.position, 1, weights)
    expected = by_ends(edges, edges.score)
    is_kept = logit >= weights.thresholds[-1]
    assert not is_kept[index[0] == index[1]].any() and (index[0] == index[1]).any()
    found = dict(zip(zip(*index[:, is_kept].tolist(), strict=True), logit[is_kept], strict=True))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_one_file_of_the_filter_takes_events_of_any_size(model):
    pytest.importorskip("jax2onnx", reason="jax2onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    weights = model.edge_filter
    session = runtime.InferenceSession(export_filter(weights))
    told = session.get_modelmeta().custom_metadata_map
    assert float(told[THRESHOLD]) == weights.thresholds[-1]
    for num_hits in (len(EVENT.position), 60):
        position = EVENT.position[:num_hits]
        raw = predict_edges(model.voxdyn, position, 1)
        index = np.stack([raw.senders, raw.receivers]).astype(np.int64)
        count = raw.counts[:, None].astype(np.float32)
        given = dict(zip(INPUTS, (position, index, count), strict=True))
        (found,) = session.run([OUTPUT], given)
        expected = np.asarray(filter_logits(weights, position, index.astype(np.int32), count))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert (expected > DROPPED).sum() > 20


def test_a_model_without_a_filter_has_none_to_write():
    with pytest.raises(UserError, match="the model has no filter; choose a model with one"):
        export_filter(None)


def test_every_capacity_that_is_too_small_is_told_and_enlarged(model):
    begun = model.begin(EVENT.position)
    constructor, hits = model.shared().constructor, begun.made[0]
    first = model.capacities(len(EVENT.position))
    raw, needed = raw_pairs(first.graph, constructor, hits)

    def run(capacities):
        return filtered_edges(capacities, model.edge_filter, hits, raw)

    # The filter of this model keeps more than trained ones do.
    ample = FilterCapacities(8192, 256, 8192, 256, 8192)
    whole_graph, needed = run(ample)
    enough = FilterCapacities(*map(int, needed))
    assert all(n < c for n, c in zip(enough, ample, strict=True))
    for name in ("num_pairs", "num_neighbors_second", "num_second"):
        small = enough._replace(**{name: getattr(enough, name) - 2})
        candidates, needed = run(small)
        assert getattr(needed, name) == getattr(enough, name)
        assert candidates.graph.n_edge[0] == 0
    assert whole_graph.graph.n_edge[0] == 2 * enough.num_second
    exact, _ = run(enough)
    assert exact.graph.n_edge[0] == 2 * enough.num_second


def test_tracks_depend_neither_on_the_order_of_hits_nor_on_how_the_stages_run(model):
    tracks = model(EVENT.position)
    assert tracks.hit_label.max() > 1
    assert list(tracks.seconds) == ["VD", "filter", "GNN", "CC", "cluster", "total"]
    order = np.random.default_rng(0).permutation(len(EVENT.position))
    shuffled = model(EVENT.position[order])
    same = tracks.hit_label[order][:, None] == tracks.hit_label[order]
    np.testing.assert_array_equal(shuffled.hit_label[:, None] == shuffled.hit_label, same)
    for spread in SpreadReconstructor.of(model)([EVENT.position, EVENT.position[:50]])[:1]:
        np.testing.assert_array_equal(spread.hit_label, tracks.hit_label)
    # With room for more hits: the filter of this model keeps more than trained ones do.
    room = 2 * len(EVENT.position)
    num_places = model.capacities(room).num_hits
    padded = np.pad(EVENT.position, ((0, num_places - len(EVENT.position)), (0, 0)))
    found = jax.jit(one_program(model, room))(padded, np.int32(len(EVENT.position)))
    assert not found["is_overflow"]
    np.testing.assert_array_equal(found["label"][: len(EVENT.position)], tracks.hit_label)


def test_other_thresholds_need_no_other_program(model):
    """Up to the filter: what it leaves decides the capacities of the rest."""
    thresholds = model.edge_filter.thresholds + 0.1
    higher = replace(model, edge_filter=model.edge_filter._replace(thresholds=thresholds))
    before = model.run_to("filter", model.begin(EVENT.position)).made[1].graph.n_edge[0]
    with watched_compilation() as compiled:
        after = higher.run_to("filter", higher.begin(EVENT.position)).made[1].graph.n_edge
    assert not compiled
    assert 0 < after[0] < before


def test_other_counts_than_those_of_the_filter_are_refused(model):
    assert model.with_min_count(1).tune == model.tune
    with pytest.raises(UserError, match="the filter of this model was trained on graphs of min_c"):
        model.with_min_count(2)


def test_thresholds_that_keep_nothing_give_no_tracks(model):
    nothing = replace(model, edge_filter=model.edge_filter._replace(thresholds=jnp.full(3, 1e9)))
    tracks = nothing(EVENT.position)
    assert (tracks.hit_label == -1).all()


def test_a_filter_that_memory_cannot_hold_is_refused():
    capacities = filter_capacities(1000, 5000, "none")
    require_room(capacities, 1000)
    with pytest.raises(UserError, match="more pairs of this event than 32-bit indices reach"):
        require_room(capacities._replace(num_pairs=TOO_MANY), 1000)
