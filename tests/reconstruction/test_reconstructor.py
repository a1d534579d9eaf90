"""The product: hits in, tracks out, and how tracks are scored against the truth."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from toy import helix_event
from toy_model import TUNE, taking_all

from hypertrack_jax import memory
from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.compilation import use_compilation_cache
from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.compiled_time import watched_compilation
from hypertrack_jax.evaluation.evaluate import evaluate_events
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.events.topology import edge_labels
from hypertrack_jax.graph.event_graph import Bucket, hit_graph
from hypertrack_jax.reconstruction import reconstructor as reconstruct
from hypertrack_jax.reconstruction.candidates import predict_edges
from hypertrack_jax.reconstruction.capacities import GraphCapacities
from hypertrack_jax.reconstruction.hits import ordered_hits
from hypertrack_jax.reconstruction.reconstructor import run_stage
from hypertrack_jax.tunes.tune import ClusterTune

EVENT = helix_event(0, num_particles=6)
SCORES = ("VD TPR", "GNN AUC", "DMS", "efficiency", "purity", "TrackML")


def with_edges(model):
    """The model as the evaluation calls it."""
    return partial(model, with_edges=True)


def with_threshold(model, threshold, min_hits=4):
    return model.with_cluster(
        ClusterTune(cluster="cut", edge_threshold=threshold, min_hits=min_hits)
    )


def by_transformer(model):
    """A model that finds several tracks: it takes all that hangs together by the best edges."""
    probability = model(EVENT.position, with_edges=True).probability
    threshold = float(np.quantile(probability, 0.9))
    taking = replace(model, params=taking_all(model.params))
    return taking.with_cluster(ClusterTune(edge_threshold=threshold))


def by_host(model, position):
    """Tracks from the graph that training makes, by the other stages."""
    begun = model.run_to("VD", model.begin(position))
    places, hits = begun.hits.order, begun.hits.position
    edges = predict_edges(model.voxdyn, hits)
    graph = begun.made[1].graph
    made = hit_graph(hits, *edges, bucket=Bucket(len(graph.nodes.mask), len(graph.senders)))
    candidates = begun.made[1]._replace(graph=jax.device_put(made))
    done = model.run_to("cluster", begun._replace(made=(begun.made[0], candidates)))
    probability = np.asarray(done.made[2].probability)[: len(edges.senders)]
    ends = (places[end].astype(np.int32) for end in edges[:2])
    return Tracks(*model.tracks(done)[:2], *ends, probability, {})


def test_a_model_on_graphs_without_the_rarer_pairs(model):
    fewer = model.with_min_count(3)
    found, every = fewer(EVENT.position, with_edges=True), model(EVENT.position, with_edges=True)
    edges = predict_edges(model.voxdyn, EVENT.position, 3)
    assert 0 < len(found.senders) < len(every.senders)
    assert edge_set(found) == edge_set(edges)
    with pytest.raises(ValueError, match="loaded without counts below 3"):
        held = model.voxdyn._replace(min_count=3)
        replace(model, voxdyn=held).with_min_count(2)


def edge_set(edges):
    return set(zip(edges.senders.tolist(), edges.receivers.tolist(), strict=True))


def assert_same(found, expected):
    for one, other in zip(found[:5], expected[:5], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", ["cut", "none", "dbscan", "transformer"])
def test_the_program_finds_what_its_stages_find_in_the_graph_of_the_training(model, method):
    if method == "dbscan":
        pytest.importorskip("sklearn", reason="dbscan needs scikit-learn")
    chosen = by_transformer(model)
    chosen = chosen.with_cluster(replace(chosen.tune.cluster, cluster=method))
    found = chosen(EVENT.position, with_edges=True)
    assert_same(found, by_host(chosen, EVENT.position))
    assert found.hit_label.shape == found.membership.shape == (len(EVENT.position),)
    assert (found.hit_label.max() > 0) == (method != "none")


@pytest.mark.parametrize("method", ["cut", "none", "dbscan", "hdbscan", "transformer"])
def test_tracks_do_not_depend_on_the_order_of_the_hits(model, method):
    if "scan" in method:
        pytest.importorskip("sklearn", reason="dbscan and hdbscan need scikit-learn")
    chosen = by_transformer(model)
    chosen = chosen.with_cluster(replace(chosen.tune.cluster, cluster=method))
    # Two hits at one position, which nothing tells apart, are in one track or in none.
    position = np.vstack([EVENT.position, EVENT.position[:1]])
    expected = chosen(position, with_edges=True)
    for seed in range(3):
        shuffled = np.random.default_rng(seed).permutation(len(position))
        found = chosen(position[shuffled], with_edges=True)
        label = np.empty_like(found.hit_label)
        label[shuffled] = found.hit_label
        assert partition(label) == partition(expected.hit_label)
        places = shuffled[found.senders], shuffled[found.receivers]
        assert len(places[0]) == len(expected.senders)
        # In the order of first hits, whichever comes first.
        np.testing.assert_array_equal(found.hit_label, reconstruct.by_first_hit(found.hit_label))
    assert (expected.hit_label.max() > 0) == (method != "none")


def partition(label):
    """The clusters as sets of hits."""
    return {frozenset(np.flatnonzero(label == one)) for one in np.unique(label[label >= 0])}


def test_clusters_are_numbered_by_their_first_hits():
    label = np.array([-1, 5, 2, 5, -1, 0, 2, 2], np.int32)
    expected = [-1, 0, 1, 0, -1, 2, 1, 1]
    np.testing.assert_array_equal(reconstruct.by_first_hit(label), expected)
    np.testing.assert_array_equal(reconstruct.by_first_hit(label[1:4]), [0, 1, 0])


def test_every_hit_has_a_label_a_time_has_each_stage_and_edges_come_if_asked_for(model):
    tracks = model(EVENT.position, with_edges=True)
    assert np.all((tracks.probability > 0) & (tracks.probability < 1))
    assert set(tracks.seconds) == {"total", "VD", "GNN", "CC", "cluster"}
    assert 0 < sum(tracks.seconds.values()) < 2 * tracks.seconds["total"]
    bare = model(EVENT.position)
    assert_same(bare[:2], tracks[:2])
    assert [len(part) for part in bare[2:5]] == [0, 0, 0]


def test_capacities_grow_until_they_suffice_stage_by_stage(model, monkeypatch, caplog):
    chosen = by_transformer(model)
    expected = chosen(EVENT.position, with_edges=True)
    first = chosen.capacities(len(EVENT.position))
    tiny = first._replace(
        graph=GraphCapacities(num_blocks=1, num_edges=64),
        kept=first.kept._replace(num_neighbors=2),
        search=first.search._replace(num_slots=4, num_rounds=1),
    )
    runs = []

    def counted(stage, *arguments):
        runs.append(stage.name)
        return run_stage(stage, *arguments)

    monkeypatch.setattr(reconstruct, "run_stage", counted)
    monkeypatch.setattr(reconstruct, "first_capacities", lambda *_: tiny)
    caplog.set_level("INFO")
    found = chosen(EVENT.position, with_edges=True)
    assert_same(found[:1] + found[2:4], expected[:1] + expected[2:4])
    np.testing.assert_allclose(found.probability, expected.probability, rtol=1e-5)
    # Only the stage that was short of room is run again.
    assert runs[:6] == ["VD", "VD", "VD", "GNN", "CC", "CC"]
    assert set(runs[6:]) == {"cluster"} and len(runs) > 8
    assert caplog.text.count("do not suffice; running again in") == len(runs) - 4
    assert expected.hit_label.max() > 0


@pytest.mark.parametrize(
    ("told", "error", "match"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory", UserError, "the memory ran out in VD of an event"),
        ("INTERNAL: a defect", jax.errors.JaxRuntimeError, "INTERNAL: a defect"),
    ],
)
def test_memory_that_runs_out_is_told(model, monkeypatch, told, error, match):
    def failing(*_):
        raise jax.errors.JaxRuntimeError(told)

    monkeypatch.setattr(reconstruct, "run_stage", failing)
    with pytest.raises(error, match=match):
        model(EVENT.position)


def test_many_hits_at_nearly_one_position_are_refused(model):
    copies = np.full((17, 3), 400, np.float32)
    with pytest.raises(UserError, match=r"17 hits lie within 0\.02 mm at \(400, 400, 400\) mm, "):
        model(np.vstack([EVENT.position, copies]))
    model(np.vstack([EVENT.position, copies[:16]]))
    crowd = np.array([-32, 5, 100]) + np.random.default_rng(0).uniform(-0.01, 0.01, (500, 3))
    with pytest.raises(UserError, match=r"\d+ hits lie within 0\.02 mm at \(-3[12]"):
        model(np.vstack([EVENT.position, crowd.astype(np.float32)]))


def test_an_event_too_large_for_the_memory_is_refused(model, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"an event of \d+ hits with .*num_edges=\d+ needs about"):
        model(EVENT.position)


def test_the_same_hits_give_the_same_tracks_whatever_was_run_before_or_beside(model):
    chosen = by_transformer(model)
    events = [EVENT.position, helix_event(3, num_particles=5).position]
    expected = [chosen(position) for position in events]
    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(chosen, 3 * events), 3 * expected, strict=True):
            assert_same(found[:2], one[:2])


def test_what_is_warmed_up_is_not_compiled_again(model):
    jax.clear_caches()
    other = with_threshold(model, 0.3, min_hits=5)
    (first,) = other.warm_up([len(EVENT.position), len(EVENT.position)])
    assert first == other.capacities(len(EVENT.position))
    with watched_compilation() as compiled:
        other(EVENT.position, with_edges=True)
        # Thresholds are not part of the programs.
        with_threshold(model, 0.7, min_hits=5)(EVENT.position)
    assert not compiled


def test_compiled_programs_are_kept_where_they_are_asked_to_be(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    try:
        use_compilation_cache(tmp_path / "kept")
        jax.config.update(names[1], 0.0)
        jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(7))
        assert any((tmp_path / "kept").iterdir())
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_tracks_are_the_components_of_the_edges_above_the_threshold(model):
    probability = model(EVENT.position, with_edges=True).probability
    chosen = with_threshold(model, float(np.quantile(probability, 0.8)), 3)
    tracks = chosen(EVENT.position, with_edges=True)
    kept = tracks.probability > np.quantile(probability, 0.8)
    label = np.arange(len(EVENT.position))
    for _ in label:
        np.minimum.at(label, tracks.receivers[kept], label[tracks.senders[kept]])
        np.minimum.at(label, tracks.senders[kept], label[tracks.receivers[kept]])
    names, component, size = np.unique(label, return_inverse=True, return_counts=True)
    number = np.cumsum(size >= 3) - 1
    expected = np.where(size >= 3, number, NOISE)[component]
    assert 1 <= expected.max() + 1 < len(names)
    np.testing.assert_array_equal(tracks.hit_label, expected)


def test_no_edge_above_the_threshold_is_no_track(model):
    assert np.all(with_threshold(model, 1.0)(EVENT.position).hit_label == NOISE)


def test_an_event_without_hits_has_no_tracks(model):
    tracks = model(np.zeros((0, 3), np.float32), with_edges=True)
    assert [part.shape for part in tracks[:5]] == 5 * [(0,)]


def test_a_single_hit_is_no_track(model):
    assert model(EVENT.position[:1]).hit_label.tolist() == [NOISE]


def test_a_masked_array_and_an_event_are_refused(model):
    masked = np.ma.masked_array(EVENT.position, np.zeros_like(EVENT.position, bool))
    with pytest.raises(UserError, match="masked array, whose mask would be lost; give"):
        model(masked)
    with pytest.raises(UserError, match=r"not an event; give event\.position"):
        ordered_hits(EVENT)
    assert_same(model(EVENT.position.astype(">f4"))[:2], model(EVENT.position)[:2])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_position_that_is_not_finite_is_refused(model, bad):
    position = EVENT.position.copy()
    position[5, 1] = bad
    with pytest.raises(ValueError, match="a hit position is not finite; remove such hits"):
        model(position)


@pytest.mark.parametrize(
    "bad",
    [
        EVENT.position[:, :2],
        EVENT.position[0],
        EVENT.position.T,
        EVENT.position.astype(int),
        EVENT.position.astype(np.float16),
        EVENT.position.astype(str),
        np.zeros(0, np.float32),
    ],
)
def test_positions_of_another_shape_or_type_are_refused(model, bad):
    with pytest.raises(ValueError, match=r"of shape .* expected x, y and z in mm of each hit"):
        model(bad)


def test_double_precision_is_rounded(model):
    assert_same(model(EVENT.position.astype(np.float64))[:2], model(EVENT.position)[:2])


def test_hits_outside_the_detector_belong_to_no_track(model):
    """And change nothing for the others; a warning tells of them."""
    outside = np.array([[1e5, 2e5, -3e5], [0, 100, 1e300]])
    with pytest.warns(UserWarning, match="2 of .* hits lie outside the space .* get no edges"):
        tracks = model(np.vstack([EVENT.position, outside]), with_edges=True)
    expected = model(EVENT.position, with_edges=True)
    np.testing.assert_array_equal(tracks.hit_label, [*expected.hit_label, NOISE, NOISE])
    assert edge_set(tracks) == edge_set(expected)
    with pytest.raises(ValueError, match=r"2 of 2 hits lie outside .* give positions in mm"):
        model(outside)


def test_evaluation_scores_events_in_their_order(model):
    events = [helix_event(0, num_particles=6, event_id=number) for number in (4, 2)]
    evaluated = list(evaluate_events(with_edges(model), events, TUNE))
    assert [one.event.event_id for one in evaluated] == [4, 2]
    for one in evaluated:
        assert one.row["hits"] == len(one.event.position)
        assert one.row["edges"] == len(one.tracks.senders)
        ends = one.tracks.senders, one.tracks.receivers
        np.testing.assert_array_equal(one.label, edge_labels(one.event, *ends, "hyper"))
        graph_and_edges = [name for name in one.row if name.startswith(("VD T", "VD F", "GNN T"))]
        values = np.array([one.row[name] for name in (*graph_and_edges, "GNN AUC", "DMS")], float)
        assert np.all((values >= 0) & (values <= 1))
        assert one.row["GNN ms"] == pytest.approx(1e3 * one.tracks.seconds["GNN"])


def test_evaluation_knows_perfect_tracks(model):
    def truth(position):
        tracks = model(position, with_edges=True)
        return tracks._replace(hit_label=EVENT.hit_particle)

    (one,) = evaluate_events(truth, [EVENT], TUNE)
    for name in ("DMS", "efficiency", "purity", "TrackML", "hit efficiency", "hit purity"):
        assert one.row[name] == pytest.approx(1)


def test_an_event_without_truth_has_no_scores(model):
    unknown = EVENT._replace(
        has_truth=False,
        hit_particle=np.full_like(EVENT.hit_particle, NOISE),
        hit_weight=np.zeros_like(EVENT.hit_weight),
    )
    (one,) = evaluate_events(with_edges(model), [unknown], TUNE)
    assert [one.row[name] for name in SCORES] == [None] * len(SCORES)
    assert one.row["edges"] == len(one.tracks.senders)
    assert not one.label.any()
    np.testing.assert_array_equal(one.tracks.hit_label, model(EVENT.position).hit_label)
