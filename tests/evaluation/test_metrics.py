"""Every score against a hand-computed event and against its definition in plain loops."""

from collections import Counter

import numpy as np
import pytest

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation import metrics
from hypertrack_jax.events.event import NOISE, Event, Particles


def event_of(hit_particle, weight=None, num_particles=None):
    """An event of these hits; weights are equal over the particle hits unless given."""
    hit_particle = np.array(hit_particle, np.int32)
    num_hits = len(hit_particle)
    if num_particles is None:
        num_particles = int(hit_particle.max(initial=NOISE)) + 1
    if weight is None:
        weight = (hit_particle != NOISE) / max(np.count_nonzero(hit_particle != NOISE), 1)
    return Event(
        event_id=7,
        position=np.zeros((num_hits, 3), np.float32),
        hit_id=np.arange(num_hits, dtype=np.int64),
        hit_particle=hit_particle,
        hit_weight=np.array(weight, np.float64),
        module=np.zeros((num_hits, 3), np.int32),
        particles=Particles(
            particle_id=np.arange(1, num_particles + 1, dtype=np.int64),
            vertex=np.zeros((num_particles, 3), np.float32),
            momentum=np.ones((num_particles, 3), np.float32),
            charge=np.ones(num_particles, np.int32),
            num_hits=np.bincount(
                hit_particle[hit_particle != NOISE], minlength=num_particles
            ).astype(np.int32),
        ),
        has_truth=True,
    )


def label_of(*runs):
    """Labels given as (label, number of hits) runs."""
    return np.repeat([label for label, _ in runs], [count for _, count in runs])


def test_perfect_clusters_score_one_and_a_cluster_below_four_hits_counts_as_found():
    # Particles of 5, 4 and 3 hits and two noise hits.
    truth = label_of((0, 5), (1, 4), (2, 3), (NOISE, 2))
    assert metrics.track_scores(event_of(truth), truth) == metrics.TrackScores(
        num_particles=2,
        num_clusters=3,
        num_matched=2,
        efficiency=1.0,
        purity=2 / 3,
        dms=pytest.approx(1.0),
        trackml=pytest.approx(1.0),
        hit_efficiency=1.0,
        hit_purity=1.0,
    )


@pytest.mark.parametrize(("num_noise", "is_match"), [(3, True), (4, False)])
def test_half_of_the_cluster_is_no_majority(num_noise, is_match):
    event = event_of(label_of((0, 4), (NOISE, num_noise)))
    scores = metrics.track_scores(event, np.zeros(4 + num_noise, np.int64))
    assert scores.num_matched == is_match
    assert scores.trackml == (1.0 if is_match else 0.0)


@pytest.mark.parametrize(("num_found", "is_match"), [(5, True), (4, False)])
def test_half_of_the_particle_is_no_majority(num_found, is_match):
    event = event_of(label_of((0, 8)))
    scores = metrics.track_scores(event, label_of((3, num_found), (-1, 8 - num_found)))
    assert scores.num_matched == is_match
    assert scores.hit_efficiency == (0.625 if is_match else None)


def test_cluster_and_particle_need_four_hits_each_except_in_the_trackml_score():
    # Particle 0 has 5 hits of which a cluster holds 3; particle 1 has 3 hits, and a cluster holds
    # them and one noise hit.
    event = event_of(label_of((0, 5), (1, 3), (NOISE, 1)), weight=[*[0.1] * 5, *[0.15] * 3, 0.05])
    scores = metrics.track_scores(event, label_of((0, 3), (-1, 2), (1, 4)))
    assert (scores.num_particles, scores.num_clusters, scores.num_matched) == (1, 2, 0)
    assert scores.dms == 0.0
    assert scores.trackml == pytest.approx(0.3 + 0.45)
    assert metrics.track_scores(event, label_of((0, 3), (-1, 2), (1, 4)), 3).num_matched == 2


def test_hand_computed_event():
    # Particle 0 (6 hits) is split 4 + 2; particles 1 (5 hits) and 2 (4 hits) are merged;
    # particle 3 (4 hits) is found with one noise hit; particle 4 (4 hits) is missed.
    event = event_of(
        label_of((0, 6), (1, 5), (2, 4), (3, 4), (4, 4), (NOISE, 2)),
        weight=[*[1, 2, 3, 4, 5, 6], *[7] * 5, *[8] * 4, *[9] * 4, *[10] * 4, 0, 0],
    )
    label = label_of((10, 4), (20, 2), (30, 9), (40, 4), (-1, 4), (40, 1), (-1, 1))
    # The merged cluster has 5 of 9 hits of particle 1, all it has: a match.
    assert metrics.track_scores(event, label) == metrics.TrackScores(
        num_particles=5,
        num_clusters=4,
        num_matched=3,
        efficiency=3 / 5,
        purity=3 / 4,
        dms=(10 + 35 + 36) / (21 + 35 + 32 + 36 + 40),
        trackml=(10 + 35 + 36) / (21 + 35 + 32 + 36 + 40),
        hit_efficiency=pytest.approx((4 / 6 + 1 + 1) / 3),
        hit_purity=pytest.approx((1 + 5 / 9 + 4 / 5) / 3),
    )
    assert metrics.particle_matched(metrics.match_tracks(event, label)).tolist() == [
        True,
        True,
        False,
        True,
        False,
    ]
    matching = metrics.match_tracks(event, label)
    assert matching.particle.tolist() == [0, NOISE, 1, 3]
    assert matching.num_shared.tolist() == [4, 0, 5, 4]
    assert matching.weight_shared.tolist() == [10.0, 0.0, 35.0, 36.0]
    assert matching.cluster_size.tolist() == [4, 2, 9, 5]
    assert matching.particle_size.tolist() == [6, 5, 4, 4, 4]
    assert matching.hit_cluster.tolist() == [
        *label_of((0, 4), (1, 2), (2, 9), (3, 4), (-1, 4), (3, 1), (-1, 1))
    ]


def scores_by_loops(event, label, min_hits):
    """The definitions of algorithm.md, section 8, and of the challenge, word by word."""
    true = {p: {*np.flatnonzero(event.hit_particle == p)} for p in {*event.hit_particle} - {NOISE}}
    found = [{*np.flatnonzero(label == c)} for c in sorted({*label[label >= 0]})]
    weight = lambda hits: sum(event.hit_weight[hit] for hit in hits)  # noqa: E731
    wanted = {p: hits for p, hits in true.items() if len(hits) >= min_hits}
    matches = [
        (cluster, hits)
        for cluster in found
        for hits in wanted.values()
        if len(cluster) >= min_hits
        and len(cluster & hits) / len(cluster) > 0.5
        and len(cluster & hits) / len(hits) > 0.5
    ]
    trackml = 0.0
    for cluster in found:
        (major, count), *_ = Counter(event.hit_particle[[*cluster]]).most_common()
        if major != NOISE and count / len(cluster) > 0.5 and count / len(true[major]) > 0.5:
            trackml += weight(cluster & true[major])
    return (
        len(wanted),
        len(found),
        len(matches),
        len(matches) / len(wanted),
        len(matches) / len(found),
        sum(weight(c & h) for c, h in matches) / sum(map(weight, wanted.values())),
        trackml / event.hit_weight.sum(),
        np.mean([len(c & h) / len(h) for c, h in matches]),
        np.mean([len(c & h) / len(c) for c, h in matches]),
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("min_hits", [2, 4])
def test_track_scores_equal_loops_over_sets(seed, min_hits):
    rng = np.random.default_rng(seed)
    hit_particle = rng.integers(NOISE, 12, 80)
    event = event_of(hit_particle, weight=rng.random(80) * (hit_particle != NOISE))
    # Mostly right labels, under other names, so that there are matches and mistakes.
    label = np.where(rng.random(80) < 0.3, rng.integers(-1, 15, 80), (hit_particle + 1) % 13 * 7)
    expected = scores_by_loops(event, label, min_hits)
    assert 0 < expected[2] < expected[1]
    np.testing.assert_allclose(metrics.track_scores(event, label, min_hits), expected, rtol=1e-12)


def test_scores_do_not_depend_on_the_order_of_hits_or_the_names_of_clusters():
    rng = np.random.default_rng(0)
    hit_particle, label = rng.integers(-1, 4, 60), rng.integers(-1, 3, 60)
    label[:40] = hit_particle[:40]
    weight = rng.integers(1, 9, 60)
    order, name = rng.permutation(60), np.array([900, 4, 0, 31, -5])
    np.testing.assert_allclose(
        metrics.track_scores(event_of(hit_particle[order], weight[order]), name[label[order]]),
        metrics.track_scores(event_of(hit_particle, weight), label),
        rtol=1e-12,
    )


def test_a_ratio_over_nothing_is_none():
    all_noise = event_of([NOISE] * 5)
    scores = metrics.track_scores(all_noise, np.zeros(5, np.int64))
    assert scores[:3] == (0, 1, 0)
    assert scores[3:] == (None, 0.0, None, None, None, None)
    nothing_found = metrics.track_scores(event_of([0] * 5), np.full(5, -1))
    assert nothing_found[:3] == (1, 0, 0)
    assert nothing_found[3:] == (0.0, None, 0.0, 0.0, None, None)
    # A particle that the thinning left without hits is not reconstructable, and not a mistake.
    hitless, label = event_of([0] * 5, num_particles=3), np.zeros(5, np.int64)
    assert metrics.track_scores(hitless, label).efficiency == 1.0
    matching = metrics.match_tracks(hitless, label)
    assert metrics.particle_matched(matching).tolist() == [True, False, False]


def test_an_event_without_truth_is_refused():
    event = event_of([0] * 5)._replace(has_truth=False)
    with pytest.raises(UserError, match="event 7 has no truth"):
        metrics.track_scores(event, np.zeros(5, np.int64))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros(8, np.int64), "event 7 has 5 hits but 8 labels"),
        (np.zeros(5), r"shape \(5,\) and type float64; expected an integer for each hit"),
        (np.zeros((5, 1), int), r"shape \(5, 1\) and type int64; expected .* shape \(5,\)"),
        (["a"] * 5, "type <U1; expected an integer"),
        (np.ma.masked_array(np.zeros(5, int), np.zeros(5, bool)), "masked array"),
    ],
)
def test_labels_that_are_no_integers_for_the_hits_are_refused(label, message):
    with pytest.raises(UserError, match=message):
        metrics.track_scores(event_of([0] * 5), label)


@pytest.mark.parametrize("kind", [list, lambda label: np.array(label, ">u2")])
def test_labels_of_any_integers_have_the_same_scores(kind):
    event, label = event_of([0, 0, 0, 0, 1]), [1, 1, 1, 1, 0]
    assert metrics.track_scores(event, kind(label)) == metrics.track_scores(event, np.array(label))
