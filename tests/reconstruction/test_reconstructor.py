"""The product: hits in, tracks out, and how tracks are scored against the truth."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from toy import helix_event
from toy_graph import SMALL_NETWORK
from toy_model import taking_all

from hypertrack_jax import memory
from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.evaluation.evaluate import evaluate_events
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.events.topology import edge_labels
from hypertrack_jax.graph.event_graph import Bucket, hit_graph
from hypertrack_jax.model import weights as training_weights
from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.model.weights import Weights, count_pairs, save_weights
from hypertrack_jax.reconstruction import reconstructor as reconstruct
from hypertrack_jax.reconstruction import stages as compiled
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.reconstruction.stages import Needed, enough_sizes
from hypertrack_jax.training.step import init_state
from hypertrack_jax.tunes.tune import ClusterTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn
from hypertrack_jax.voxdyn.lookup import TOO_MANY
from hypertrack_jax.voxdyn.model import predict_edges
from hypertrack_jax.voxdyn.storage import save_voxdyn, voxdyn_path

EVENT = helix_event(0, num_particles=6)
TUNE = Tune(
    "small",
    voxdyn=VoxdynTune(ncell=64),
    # Tokens of 11, which one head alone can take.
    network=replace(
        SMALL_NETWORK,
        node_features="cylindrical",
        edge_features="helix",
        num_heads=1,
        num_attention_blocks=1,
    ),
    cluster=ClusterTune(cluster="cut"),
)
SCORES = ("VD TPR", "GNN AUC", "DMS", "efficiency", "purity", "TrackML")


@pytest.fixture(scope="module")
def state():
    return jax.jit(init_state, static_argnums=0)(TUNE, jax.random.key(0))


@pytest.fixture(scope="module")
def voxdyn():
    events = [helix_event(1, num_particles=20, event_id=number) for number in range(3)]
    return fit_voxdyn(lambda: events, TUNE.voxdyn.ncell, "hyper", num_iterations=2)


@pytest.fixture(scope="module")
def model(state, voxdyn):
    return Reconstructor(TUNE, voxdyn, state.params, state.batch_stats)


def with_edges(model):
    """The model as the evaluation calls it."""
    return partial(model, with_edges=True, with_timings=True)


def with_threshold(model, threshold, min_hits=4):
    return model.with_cluster(
        ClusterTune(cluster="cut", edge_threshold=threshold, min_hits=min_hits)
    )


def by_transformer(model):
    """A model that finds several tracks: it takes all that hangs together by the best edges."""
    probability = model(EVENT.position, with_edges=True).probability
    threshold = float(np.quantile(probability, 0.9))
    taking = model._replace(params=taking_all(model.params))
    return taking.with_cluster(ClusterTune(edge_threshold=threshold))


def by_host(model, position, sizes):
    """Tracks from the graph that training makes, in a bucket of the same capacities."""
    edges = predict_edges(model.voxdyn, position)
    graph = hit_graph(position, *edges, bucket=Bucket(sizes.num_hits, sizes.num_edges))
    graph = jax.device_put(graph)
    scores = model.score(graph)
    clusters = model.cluster(graph, scores, model.keep(graph, scores))
    probability = np.asarray(scores.probability)[: len(edges.senders)]
    return Tracks(*clusters, edges.senders, edges.receivers, probability, {})


def test_a_model_on_graphs_without_the_rarer_pairs(model):
    fewer = model.with_min_count(3)
    found, every = fewer(EVENT.position, with_edges=True), model(EVENT.position, with_edges=True)
    edges = predict_edges(model.voxdyn, EVENT.position, 3)
    assert 0 < len(found.senders) < len(every.senders)
    np.testing.assert_array_equal(found.senders, edges.senders)
    with pytest.raises(ValueError, match="loaded without counts below 3"):
        held = model.voxdyn._replace(min_count=3)
        model._replace(voxdyn=held).with_min_count(2)


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
    assert_same(found, by_host(chosen, EVENT.position, chosen.sizes(len(EVENT.position))))
    assert found.hit_label.shape == found.membership.shape == (len(EVENT.position),)
    assert (found.hit_label.max() > 0) == (method != "none")


def test_every_hit_has_a_label_and_edges_and_timings_come_if_asked_for(model):
    tracks = model(EVENT.position, with_edges=True, with_timings=True)
    assert np.all((tracks.probability > 0) & (tracks.probability < 1))
    assert set(tracks.seconds) == {"total", "VD", "GNN", "CC", "cluster"}
    assert all(seconds > 0 for seconds in tracks.seconds.values())
    bare = model(EVENT.position)
    assert_same(bare[:2], tracks[:2])
    assert [len(part) for part in bare[2:]] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("method", "short"),
    [
        ("cut", {"num_blocks": 1, "num_edges": 64}),
        ("transformer", {"num_neighbors": 2, "num_slots": 4}),
    ],
)
def test_capacities_grow_until_they_suffice(model, monkeypatch, caplog, method, short):
    chosen = by_transformer(model)
    chosen = chosen.with_cluster(replace(chosen.tune.cluster, cluster=method))
    expected = chosen(EVENT.position, with_edges=True)
    ample = chosen.sizes(len(EVENT.position))
    if method == "transformer":
        tiny = ample._replace(search=ample.search._replace(**short))
    else:
        tiny = ample._replace(**short)
    program, runs = reconstruct.reconstruct, []

    def counted(method, sizes, *arguments):
        runs.append(sizes)
        return program(method, sizes, *arguments)

    monkeypatch.setattr(reconstruct, "reconstruct", counted)
    monkeypatch.setattr(reconstruct, "sizes_for", lambda *_: tiny)
    caplog.set_level("INFO")
    assert_same(chosen(EVENT.position, with_edges=True), expected)
    tries = [one.args[1] for one in caplog.records if "larger capacities" in one.msg]
    # Where the search alone falls short, the edges are not scored again.
    assert runs == ([tiny] if method == "transformer" else [tiny, *tries])
    assert len(tries) == len(short)
    assert expected.hit_label.max() > 0


def test_the_first_capacities_follow_from_the_number_of_hits(model):
    sizes = [model.sizes(number) for number in (1, 100, 1000, 10_000, 100_000)]
    assert sizes == sorted(sizes)
    assert model.sizes(1000).num_hits > 1000
    # Denser rows of C, more edges.
    sparse = model._replace(tune=replace(model.tune, voxdyn=VoxdynTune(ncell=64, min_count=9)))
    assert sparse.sizes(10_000).num_edges < sizes[3].num_edges


def test_more_hits_than_usual_are_told_of(model, monkeypatch, caplog):
    monkeypatch.setattr(reconstruct, "LARGEST_HITS", 10)
    caplog.set_level("INFO")
    model(EVENT.position)
    assert f"an event of {len(EVENT.position)} hits is more than usual" in caplog.text


def test_a_graph_that_32_bits_do_not_reach_is_refused(model):
    sizes = model.sizes(1)
    with pytest.raises(ValueError, match="more edges than 32-bit indices reach; choose"):
        enough_sizes(sizes, Needed(num_edges=TOO_MANY))


def test_an_event_too_large_for_the_memory_is_refused(model, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"an event of \d+ hits and up to \d+ edges needs about"):
        model(EVENT.position)


def test_the_same_hits_give_the_same_tracks_whatever_was_run_before_or_beside(model):
    chosen = by_transformer(model)
    events = [EVENT.position, helix_event(3, num_particles=5).position]
    expected = [chosen(position) for position in events]
    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(chosen, 3 * events), 3 * expected, strict=True):
            assert_same(found[:2], one[:2])


def test_what_is_warmed_up_is_not_compiled_again(model):
    other = with_threshold(model, 0.3, min_hits=5)
    (sizes,) = other.warm_up([len(EVENT.position), len(EVENT.position)])
    assert sizes == other.sizes(len(EVENT.position))
    before = compiled.reconstruct._cache_size()
    other(EVENT.position)
    # Thresholds are not part of the program.
    with_threshold(model, 0.7, min_hits=5)(EVENT.position)
    assert compiled.reconstruct._cache_size() == before


def test_compiled_programs_are_kept_where_they_are_asked_to_be(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    try:
        reconstruct.use_compilation_cache(tmp_path / "kept")
        jax.config.update(names[1], 0.0)
        jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(7))
        assert any((tmp_path / "kept").iterdir())
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_tracks_are_the_components_of_the_edges_above_the_threshold(model):
    probability = model(EVENT.position, with_edges=True).probability
    chosen = with_threshold(model, float(np.quantile(probability, 0.6)), 3)
    tracks = chosen(EVENT.position, with_edges=True)
    kept = tracks.probability > np.quantile(probability, 0.6)
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
    outside = np.array([[1e5, 2e5, -3e5], [0, 1, 1e300]])
    with pytest.warns(UserWarning, match="2 of .* hits lie outside the space .* get no edges"):
        tracks = model(np.vstack([EVENT.position, outside]), with_edges=True)
    expected = model(EVENT.position, with_edges=True)
    np.testing.assert_array_equal(tracks.hit_label, [*expected.hit_label, NOISE, NOISE])
    assert_same(tracks[2:4], expected[2:4])
    with pytest.raises(ValueError, match=r"2 of 2 hits lie outside .* give positions in mm"):
        model(outside)


def test_a_loaded_model_is_the_saved_one(model, state, voxdyn, tmp_path):
    with Checkpoints(tmp_path / "tag", is_writer=True) as checkpoints:
        checkpoints.save(7, state, TUNE, auc=0.5)
    path = voxdyn_path(tmp_path, "hyper", TUNE.voxdyn.ncell)
    with pytest.raises(FileNotFoundError, match="voxdyn_hyper_64"):
        Reconstructor.load("tag", tmp_path)
    save_voxdyn(path, voxdyn)
    loaded = Reconstructor.load("tag", tmp_path)
    assert loaded.tune == TUNE
    assert_same(loaded(EVENT.position), model(EVENT.position))
    assert Reconstructor.load(tmp_path / "tag", step=7).tune == TUNE
    with pytest.raises(FileNotFoundError, match="no step 8 here"):
        Reconstructor.load("tag", tmp_path, 8)
    with pytest.raises(FileNotFoundError, match=r"other: no checkpoint here"):
        Reconstructor.load("other", tmp_path)
    assert not (tmp_path / "other").exists()


def test_a_checkpoint_is_not_loaded_with_another_graph_constructor(state, voxdyn, tmp_path, caplog):
    save_voxdyn(voxdyn_path(tmp_path, "hyper", TUNE.voxdyn.ncell), voxdyn)
    for tag, num_pairs in (("same", count_pairs(voxdyn)), ("other", 7), ("former", None)):
        with Checkpoints(tmp_path / tag, is_writer=True) as checkpoints:
            checkpoints.save(1, state, TUNE, auc=0.5, num_pairs=num_pairs)
    Reconstructor.load("same", tmp_path)
    with pytest.raises(ValueError, match=r"voxdyn_hyper_64\.npz: .* with one that counted 7; fit"):
        Reconstructor.load("other", tmp_path)
    assert not caplog.text
    Reconstructor.load("former", tmp_path)
    assert "make sure that it was trained with the one at hand" in caplog.text


def test_a_transformer_that_was_not_trained_is_not_used(state, voxdyn, tmp_path, caplog):
    tune = replace(TUNE, cluster=ClusterTune())
    save_voxdyn(voxdyn_path(tmp_path, "hyper", TUNE.voxdyn.ncell), voxdyn)
    for phase, expected in ((1, "cut"), (2, "transformer")):
        tag = f"phase{phase}"
        with Checkpoints(tmp_path / tag, is_writer=True) as checkpoints:
            checkpoints.save(1, state._replace(phase=jnp.int32(phase)), tune, auc=0.5)
        assert Reconstructor.load(tag, tmp_path).tune.cluster.cluster == expected
        assert ("has not been trained" in caplog.text) == (phase == 1)
        caplog.clear()


def test_a_model_that_comes_with_the_package_is_found_by_name(model, tmp_path, monkeypatch):
    """Unless the user has one of that name; with the Voxel-Dynamics that it was trained with."""
    weights = Weights(TUNE, model.params, model.batch_stats, count_pairs(model.voxdyn))
    monkeypatch.setattr(training_weights, "SHIPPED", tmp_path / "shipped")
    save_weights(tmp_path / "shipped" / "good.npz", weights)
    save_weights(tmp_path / "shipped" / "other.npz", weights._replace(num_pairs=7))
    save_voxdyn(voxdyn_path(tmp_path, "hyper", TUNE.voxdyn.ncell), model.voxdyn)
    expected = model(EVENT.position)
    assert_same(Reconstructor.load("good", tmp_path)(EVENT.position), expected)
    copied = shutil.copy(tmp_path / "shipped" / "good.npz", tmp_path / "mine.npz")
    assert_same(Reconstructor.load(copied)(EVENT.position), expected)
    with pytest.raises(ValueError, match="the weights were trained with one that counted 7"):
        Reconstructor.load("other", tmp_path)
    (tmp_path / "good").mkdir()
    with pytest.raises(FileNotFoundError, match="good: no checkpoint here"):
        Reconstructor.load("good", tmp_path)


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


def test_the_compilation_is_not_timed(model):
    calls = []

    def reconstruct(position):
        calls.append(position)
        tracks = model(position, with_edges=True)
        return tracks._replace(seconds={"GNN": 100.0 / len(calls)})

    (one,) = evaluate_events(reconstruct, [EVENT], TUNE)
    assert one.row["GNN ms"] == 1e3 * 100.0 / 2
