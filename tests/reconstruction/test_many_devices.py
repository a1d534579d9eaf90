"""Events on several devices at once: what they get one by one, whatever is beside them."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from toy import helix_event
from toy_graph import SMALL_NETWORK
from toy_model import taking_all

from hypertrack_jax import memory
from hypertrack_jax.evaluation.evaluate import evaluate_events
from hypertrack_jax.evaluation.inference_report import Wanted, report_events
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.reconstruction import devices as spread
from hypertrack_jax.reconstruction import reconstructor as reconstruct
from hypertrack_jax.reconstruction.devices import (
    EVENTS_PER_DEVICE,
    SpreadReconstructor,
    as_evaluated,
)
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
    voxdyn = fit_voxdyn(lambda: events, tune.voxdyn.ncell, "hyper", num_iterations=2)
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
    """Numbers of hits of the events of each run, and on how many devices they lie."""
    found = []

    def map_events(program, mesh, known, hits):
        found.append((np.asarray(hits.num_hits).tolist(), len(hits.position.sharding.device_set)))
        return original(program, mesh, known, hits)

    original = spread.map_events
    monkeypatch.setattr(spread, "map_events", map_events)
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
    assert all(one.seconds == {} for one in found)
    # An event without hits is not run; those alone of their capacities have an empty one beside.
    assert {devices for _, devices in runs} == {2}
    ran = sorted(number for numbers, _ in runs for number in numbers if number)
    assert sorted(set(ran)) == sorted({len(position) for position in positions[1:]})
    capacities = [model.sizes(len(position)) for position in positions[1:]]
    if method == "cut":
        # The search of the transformer may need more, and then runs again.
        assert len(ran) == len(positions) - 1
        assert len(runs) == sum(-(-capacities.count(one) // 2) for one in set(capacities))
        assert len(set(capacities)) > 1 and len(runs) < len(positions) - 1


@pytest.mark.parametrize(
    ("method", "short"),
    [("cut", {"num_blocks": 1, "num_edges": 64}), ("transformer", {"num_neighbors": 2})],
)
def test_an_event_that_exceeds_its_capacities_is_run_again(model, monkeypatch, runs, method, short):
    model = by(model, method)
    positions = [ONE, *POSITIONS[:2]]
    expected = [model(position, with_edges=True) for position in positions]
    tiny = model.sizes(max(map(len, positions)))
    if method == "transformer":
        tiny = tiny._replace(search=tiny.search._replace(**short))
    else:
        tiny = tiny._replace(**short)
    monkeypatch.setattr(reconstruct, "sizes_for", lambda *_: tiny)
    assert_same(SpreadReconstructor.of(model)(positions, with_edges=True), expected)
    again = [number for numbers, _ in runs for number in numbers if number]
    assert again.count(1) == 1
    assert again.count(len(positions[1])) > 1


def test_no_events_have_no_tracks(model):
    assert SpreadReconstructor.of(model)([], with_timings=True) == []


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
    with pytest.raises(ValueError, match=r"2 events at once, the largest of 1 hits and up to \d+"):
        together([ONE])


def test_the_evaluation_of_batches_is_that_of_events(model, monkeypatch):
    """But for the times: each event has its share of the batch's."""
    monkeypatch.setattr(spread, "EVENTS_PER_DEVICE", 2)
    batched = as_evaluated(model)
    assert batched.batch_size == 4 < len(EVENTS)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    alone = as_evaluated(model)
    found, expected = ([*evaluate_events(way, EVENTS, model.tune)] for way in (batched, alone))
    assert_same([one.tracks for one in found], [one.tracks for one in expected])
    for one, other in zip(found, expected, strict=True):
        assert untimed(one.row) == pytest.approx(untimed(other.row), rel=1e-4)
    times = [one.row["per event ms"] for one in found]
    assert 0 < times[0] == times[3] != times[4]
    assert "total ms" not in found[0].row and "per event ms" not in expected[0].row


def untimed(row):
    """What a row tells but its times; -1 for a ratio over nothing."""
    told = {name: value for name, value in row.items() if not name.endswith(" ms")}
    return {name: -1 if value is None else value for name, value in told.items()}


def test_a_report_tells_that_devices_shared_the_events(model):
    report = report_events(as_evaluated(model), EVENTS[:2], model.tune, Wanted())
    assert f"a batch over the number of its events, at most {2 * EVENTS_PER_DEVICE}" in report.text
