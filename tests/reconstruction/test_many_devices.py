"""Events on several devices at once: what they get one by one, whatever is beside them."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from toy import helix_event
from toy_graph import SMALL_NETWORK
from toy_model import taking_all

from hypertrack_jax import memory
from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation import evaluate
from hypertrack_jax.evaluation.evaluate import EVENTS_PER_DEVICE, as_evaluated, evaluate_events
from hypertrack_jax.evaluation.inference_report import Wanted, report_events
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.reconstruction import devices as spread
from hypertrack_jax.reconstruction import reconstructor as reconstruct
from hypertrack_jax.reconstruction.capacities import GraphCapacities
from hypertrack_jax.reconstruction.devices import SpreadReconstructor
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.training.step import init_state
from hypertrack_jax.tunes.tune import ClusterTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn

EVENTS = [
    helix_event(seed, num_particles=number, event_id=seed)
    for seed, number in enumerate((6, 6, 30, 5, 6))
]
POSITIONS = [event.position for event in EVENTS]
NONE, ONE = POSITIONS[0][:0], POSITIONS[0][:1]


@pytest.fixture(scope="module")
def model():
    """Tracks by components of the best edges, none of which is near the threshold."""
    network = replace(
        SMALL_NETWORK,
        node_features="cylindrical",
        edge_features="helix",
        num_heads=1,
        num_attention_blocks=1,
    )
    tune = Tune("small", VoxdynTune(ncell=64), network=network, cluster=ClusterTune(cluster="cut"))
    events = [helix_event(1, num_particles=20, event_id=number) for number in range(3)]
    voxdyn = fit_voxdyn(events, tune.voxdyn.ncell, "hyper", num_iterations=2)
    state = jax.jit(init_state, static_argnums=0)(tune, jax.random.key(0))
    untold = Reconstructor(tune, voxdyn, taking_all(state.params), state.batch_stats)
    rising = np.sort(untold(POSITIONS[0], with_edges=True).probability)
    best = rising[int(0.85 * len(rising)) : int(0.95 * len(rising))]
    widest = int(np.argmax(np.diff(best)))
    threshold = float(best[widest : widest + 2].mean())
    return untold.with_cluster(ClusterTune(cluster="cut", edge_threshold=threshold))


def by(model, method):
    return model.with_cluster(replace(model.tune.cluster, cluster=method))


def assert_same(found, expected):
    """The same tracks and edges; probabilities up to the rounding of another program."""
    for one, other in zip(found, expected, strict=True):
        for name in ("hit_label", "senders", "receivers"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name in ("membership", "probability"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5)


@pytest.fixture
def runs(monkeypatch):
    """Stage, numbers of hits of the events of each run, and on how many devices they lie."""
    found = []

    def run_spread(mesh, stage, capacities, shared, hits, *made):
        num_devices = len(hits.position.sharding.device_set)
        found.append((stage.name, np.asarray(hits.num_hits).tolist(), num_devices))
        return original(mesh, stage, capacities, shared, hits, *made)

    original = spread.run_spread
    monkeypatch.setattr(spread, "run_spread", run_spread)
    return found


@pytest.mark.parametrize("method", ["cut", "transformer"])
def test_events_together_get_the_tracks_that_they_get_one_by_one(model, method, runs):
    model = by(model, method)
    positions = [NONE, *POSITIONS, ONE]
    expected = [model(position, with_edges=True) for position in positions]
    found = SpreadReconstructor.of(model)(positions, with_edges=True)
    assert_same(found, expected)
    assert [len(one.hit_label) for one in found] == [len(one) for one in positions]
    assert max(one.hit_label.max() for one in found[1:]) > 0
    assert found[-1].hit_label.tolist() == [NOISE]
    assert found[0].seconds == {} and found[1].seconds.keys() == expected[1].seconds.keys()
    # An event without hits is not run; the others go in pairs of about the same size.
    assert {devices for _, _, devices in runs} == {2}
    graphs = [numbers for stage, numbers, _ in runs if stage == "VD"]
    rising = sorted(len(position) for position in positions[1:])
    assert [number for pair in graphs for number in pair] == rising
    # The order of the hits of one changes nothing, nor does what is beside it.
    shuffled = np.random.default_rng(0).permutation(len(POSITIONS[2]))
    (again,) = SpreadReconstructor.of(model)([POSITIONS[2][shuffled]])
    label = np.empty_like(again.hit_label)
    label[shuffled] = again.hit_label
    np.testing.assert_array_equal(reconstruct.by_first_hit(label), found[3].hit_label)


def test_events_that_exceed_their_capacities_are_run_again(model, monkeypatch, runs):
    model = by(model, "transformer")
    positions = [ONE, POSITIONS[0]]
    expected = [model(position, with_edges=True) for position in positions]
    first = model.capacities(len(POSITIONS[0]))
    tiny = first._replace(
        graph=GraphCapacities(num_blocks=1, num_edges=64),
        kept=first.kept._replace(num_neighbors=2),
    )
    monkeypatch.setattr(reconstruct, "first_capacities", lambda *_: tiny)
    assert_same(SpreadReconstructor.of(model)(positions, with_edges=True), expected)
    names = [stage for stage, _, _ in runs]
    assert names[:6] == ["VD", "VD", "VD", "GNN", "CC", "CC"]


def test_no_events_have_no_tracks(model):
    assert SpreadReconstructor.of(model)([]) == []


def test_what_one_event_is_refused_for_several_are(model, monkeypatch):
    together = SpreadReconstructor.of(model)
    outside = np.full((1, 3), 1e6, np.float32)
    with pytest.warns(UserWarning, match=r"1 of \d+ hits lie outside .* get no edges"):
        together([ONE, np.vstack([POSITIONS[0], outside])])
    with pytest.raises(ValueError, match=r"1 of 1 hits lie outside .* give positions in mm"):
        together([outside])
    with pytest.raises(ValueError, match=r"of shape .* expected x, y and z"):
        together([ONE, POSITIONS[0].T])
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"2 events at once, the largest of 1 hits with num_"):
        together([ONE])


def test_places_that_one_event_is_refused_for_several_are(model):
    in_pipe = POSITIONS[2].copy()
    in_pipe[1:, :2] = 1
    for reconstruct_one in (model, lambda hits: SpreadReconstructor.of(model)([hits])):
        with pytest.raises(UserError, match="of the beam line, where the training had none"):
            reconstruct_one(in_pipe)


def test_the_evaluation_of_batches_is_that_of_events(model, monkeypatch):
    """But for the times: each event has its share of the batch's."""
    monkeypatch.setattr(evaluate, "EVENTS_PER_DEVICE", 2)
    batched = as_evaluated(model)
    assert batched.batch_size == 4 < len(EVENTS)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    alone = as_evaluated(model)
    found, expected = ([*evaluate_events(way, EVENTS, model.tune)] for way in (batched, alone))
    assert_same([one.tracks for one in found], [one.tracks for one in expected])
    for one, other in zip(found, expected, strict=True):
        assert untimed(one.row) == pytest.approx(untimed(other.row), rel=1e-4)
    # Now all is compiled.
    again = evaluate_events(batched, EVENTS, model.tune)
    assert all(one.row["total ms"] > 0 for one in again)


def untimed(row):
    """What a row tells but its times; -1 for a ratio over nothing."""
    told = {name: value for name, value in row.items() if not name.endswith(" ms")}
    return {name: -1 if value is None else value for name, value in told.items()}


def test_a_report_tells_that_devices_shared_the_events(model):
    report = report_events(as_evaluated(model), EVENTS[:2], model.tune, Wanted())
    assert f"shared the events, at most {2 * EVENTS_PER_DEVICE} at once" in report.text
