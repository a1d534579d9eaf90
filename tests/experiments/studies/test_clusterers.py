"""The comparison of clusterers: the same edges for all, and means that are means."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from benchmarks.stages import fresh_model
from handmade import with_cells
from studies.clusterers import (
    SCORES,
    ClusterScore,
    compare_clusterers,
    comparison_table,
)
from toy import helix_event
from toy_model import FILTERED_TUNE, toy_voxdyn

from hypertrack_jax.evaluation.metrics import track_scores
from hypertrack_jax.networks.edge_filter import init_filter
from hypertrack_jax.tunes.tune import ClusterTune, FilterTune, NetworkTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn


@pytest.fixture(scope="module")
def model():
    """A small model with fresh weights."""
    network = NetworkTune("cylindrical", "none", 1, 8, 5, (4,), num_attention_blocks=1)
    tune = Tune("small", voxdyn=VoxdynTune(ncell=64), network=network)
    events = [helix_event(1, num_particles=20, event_id=number) for number in range(3)]
    voxdyn = fit_voxdyn(events, 64, "hyper", num_iterations=2)
    return fresh_model(voxdyn, tune)


def test_every_method_at_every_threshold_as_the_model_alone_would(model):
    events = [helix_event(0, 6, event_id=number) for number in (3, 8)]
    probability = model.with_cluster(ClusterTune(cluster="none"))(
        events[0].position, with_edges=True
    ).probability
    thresholds = [float(np.quantile(probability, q)) for q in (0.5, 0.9)]
    results = list(compare_clusterers(model, events, ["cut", "none"], thresholds))
    expected = [
        (event, method, threshold)
        for event in events
        for method in ("cut", "none")
        for threshold in thresholds
    ]
    assert len(results) == len(expected) == 8
    for one, (event, method, threshold) in zip(results, expected, strict=True):
        assert (one.event_id, one.method, one.edge_threshold) == (
            event.event_id,
            method,
            threshold,
        )
        cluster = ClusterTune(cluster=method, edge_threshold=threshold)
        alone = model.with_cluster(cluster)(event.position)
        scores = track_scores(event, alone.hit_label)
        assert one.scores == {name: getattr(scores, name) for name in SCORES}
        assert one.seconds > 0
    # Without clusters there is no purity.
    assert results[2].scores["purity"] is None


def test_a_model_that_looks_at_cells_gets_them():
    tune = replace(FILTERED_TUNE, edge_filter=FilterTune("triplets", width=8, cells="shape"))
    weights = init_filter(jax.random.key(0), 8, "shape")
    model, event = fresh_model(toy_voxdyn(), tune, weights), with_cells(helix_event(0, 8))
    (found,) = compare_clusterers(model, [event], ["cut"], [tune.cluster.edge_threshold])
    assert found.scores["dms"] == track_scores(event, model(event).hit_label).dms


def test_the_table_has_mean_and_spread():
    def score(method, value):
        return ClusterScore(1, method, 0.5, dict.fromkeys(SCORES, value), 0.002)

    table = comparison_table([score("cut", 0.5), score("cut", 0.7), score("none", None)])
    heading, _, cut, none = (line.split(" | ") for line in table.splitlines())
    assert [cell.strip("| ") for cell in heading[:4]] == [
        "clusterer",
        "edge threshold",
        "DMS",
        "efficiency",
    ]
    # The standard deviation of the sample, with n - 1.
    assert [cell.strip("| ") for cell in cut[:3]] == ["cut", "0.5", "0.600 ± 0.141"]
    assert cut[-1].strip("| ") == "2.0 ± 0.0"
    assert [cell.strip("| ") for cell in none[:3]] == ["none", "0.5", "-"]
