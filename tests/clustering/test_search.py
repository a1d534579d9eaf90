"""The batched search against the published, sequential one, and by its own promises."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sequential_search import sequential_clusters
from toy import helix_event

from hypertrack_jax.clustering.components import connected_components
from hypertrack_jax.clustering.micrographs import Micrographs
from hypertrack_jax.clustering.neighbors import Neighbors, kept_neighbors
from hypertrack_jax.clustering.search import (
    FoundClusters,
    Members,
    SearchHits,
    SearchSizes,
    only_tracks,
    open_hits,
    score_needed,
    search_clusters,
    settle,
    walk_from,
    with_left_over,
)
from hypertrack_jax.evaluation.metrics import track_scores
from hypertrack_jax.tunes.tune import ClusterTune

PUBLISHED = ClusterTune()
SIZES = SearchSizes(num_slots=64, num_rounds=200, num_seeds=16)
NUM_NEIGHBORS = 64
NUM_HITS, NUM_EDGES = 400, 8192


def scored_edges(event, seed, false_per_hit=10.0, overlap=0.2):
    """Symmetric edges of the event: true ones mostly near 1, false ones mostly near 0."""
    rng = np.random.default_rng(seed)
    particle, num_hits = event.hit_particle, len(event.position)
    is_true = (particle[:, None] == particle[None, :]) & (particle[:, None] >= 0)
    is_edge = is_true | (rng.random(is_true.shape) < false_per_hit / num_hits)
    logit = np.where(is_true, 2.5, -2.5) + rng.normal(0, 10 * overlap, is_true.shape)
    logit, is_edge = np.triu(logit, 1), np.triu(is_edge, 1)
    logit, is_edge = logit + logit.T, is_edge | is_edge.T
    receivers, senders = np.nonzero(is_edge)
    probability = (1 / (1 + np.exp(-logit[receivers, senders]))).astype(np.float32)
    return probability, senders.astype(np.int32), receivers.astype(np.int32)


def membership_table(event, seed):
    """[hit, hit]: probability that a hit belongs with a pivot, right nine times out of ten."""
    rng = np.random.default_rng([seed, 1])
    particle = event.hit_particle
    same = (particle[:, None] == particle[None, :]) & (particle[:, None] >= 0)
    logit = np.where(same, 2.0, -2.0) + rng.normal(0, 4, same.shape)
    return (1 / (1 + np.exp(-(logit + logit.T) / 2))).astype(np.float32)


def batched(
    event,
    edges,
    table,
    tune=PUBLISHED,
    sizes=SIZES,
    key=0,
    capacity=NUM_HITS,
    num_neighbors=NUM_NEIGHBORS,
):
    """The batched search over an event that is padded to `capacity` hits."""
    num_hits, num_edges = len(event.position), len(edges[0])
    more_hits, more_edges = capacity - num_hits, NUM_EDGES - num_edges
    probability, senders, receivers = (
        np.pad(array, (0, more_edges), constant_values=value)
        # Padding edges look certain.
        for array, value in zip(edges, (1, capacity - 1, capacity - 1), strict=True)
    )
    clusters = compiled(tune, sizes, num_neighbors)(
        np.pad(event.position, ((0, more_hits), (0, 0))),
        np.arange(capacity) < num_hits,
        (probability, senders, receivers, np.arange(NUM_EDGES) < num_edges),
        np.pad(table, (0, more_hits)),
        jax.random.key(key),
    )
    np.testing.assert_array_equal(clusters.label[num_hits:], -1)
    return clusters._replace(
        label=clusters.label[:num_hits], membership=clusters.membership[:num_hits]
    )


@cache
def compiled(tune, sizes, num_neighbors):
    """The search as one program, compiled once per tune and sizes."""

    @jax.jit
    def search(position, hit_mask, edges, table, key):
        num_hits = len(position)

        def membership(micrographs: Micrographs) -> Members:
            mask = micrographs.hit < num_hits
            # No hit is looked up as the last one, and masked.
            hit, pivot = (jnp.minimum(index, num_hits - 1) for index in micrographs[:2])
            p = table[hit[:, :, None], pivot[:, None, :]].mean(axis=2)
            p = jnp.where(mask, p, 0)
            return Members(p, p > 0.5)

        probability, senders, receivers, mask = edges
        neighbors = kept_neighbors(*edges, num_hits, num_neighbors, 0.55)
        component = connected_components(senders, receivers, mask & (probability > 0.55), num_hits)
        hits = SearchHits(position, component, open_hits(component, hit_mask, tune.min_hits))
        return search_clusters(hits, neighbors, membership, tune, sizes, key)

    return search


def sequential(event, edges, table, seed, micrograph="pivot-spanned"):
    return sequential_clusters(
        *edges,
        len(event.position),
        lambda hits, pivots: table[np.ix_(hits, pivots)].mean(axis=1),
        np.random.default_rng(seed),
        micrograph=micrograph,
    )


def setup(seed, num_particles=25, false_per_hit=10.0):
    event = helix_event(seed, num_particles)
    return event, scored_edges(event, seed, false_per_hit), membership_table(event, seed)


# Whole components are only of use where few edges join particles.
@pytest.mark.parametrize(("micrograph", "false_per_hit"), [("pivot-spanned", 10.0), ("full", 0.8)])
def test_at_least_as_good_as_the_published_search(micrograph, false_per_hit):
    """On the same edge scores and memberships, in the mean over events."""
    tune, ours, theirs = ClusterTune(micrograph=micrograph), [], []
    sizes = SIZES._replace(num_slots=512)
    for seed in range(24):
        event, edges, table = setup(seed, false_per_hit=false_per_hit)
        clusters = batched(event, edges, table, tune, sizes, key=seed)
        assert not clusters.is_unfinished
        assert clusters.needed_slots <= sizes.num_slots
        ours.append(track_scores(event, np.asarray(clusters.label)).dms)
        label = sequential(event, edges, table, seed, micrograph)
        theirs.append(track_scores(event, label).dms)
    assert 0.3 < np.mean(theirs) < 0.9
    assert np.mean(ours) >= np.mean(theirs)


def test_perfect_edges_and_memberships_give_the_particles():
    event = helix_event(3, 30, noise_ratio=0.2)
    edges = scored_edges(event, 3, overlap=0.0)
    particle = event.hit_particle
    table = ((particle[:, None] == particle) & (particle >= 0)).astype(np.float32)
    label = np.asarray(batched(event, edges, table).label)
    scores = track_scores(event, label)
    assert (scores.dms, scores.efficiency, scores.purity) == (1.0, 1.0, 1.0)
    np.testing.assert_array_equal(label >= 0, particle >= 0)


def test_padding_changes_nothing():
    """A strategy by radius, so that no random number depends on the number of hits."""
    event, edges, table = setup(0)
    tune = ClusterTune(seed_strategy="largest_transverse")
    plain = batched(event, edges, table, tune, capacity=len(event.position))
    padded = batched(event, edges, table, tune)
    np.testing.assert_array_equal(padded.label, plain.label)
    np.testing.assert_allclose(padded.membership, plain.membership)


@pytest.mark.parametrize("random_paths", [1, 4])
def test_same_key_same_clusters(random_paths):
    event, edges, table = setup(1)
    tune = ClusterTune(random_paths=random_paths)
    first, again = (batched(event, edges, table, tune, key=7) for _ in range(2))
    other = batched(event, edges, table, tune, key=8)
    np.testing.assert_array_equal(first.label, again.label)
    assert (np.asarray(first.label) != np.asarray(other.label)).any()


def test_clusters_are_whole():
    event, edges, table = setup(2)
    clusters = batched(event, edges, table)
    label, membership = np.asarray(clusters.label), np.asarray(clusters.membership)
    sizes = np.bincount(label[label >= 0])
    assert len(sizes) == clusters.num_clusters > 5
    assert sizes.min() >= 4
    np.testing.assert_array_equal(membership > 0.5, label >= 0)


@pytest.mark.parametrize(
    ("sizes", "flag"),
    [
        (SIZES._replace(num_slots=8), lambda c: c.needed_slots > 8),
        (SIZES._replace(num_rounds=1), lambda c: c.is_unfinished),
    ],
)
def test_capacities_that_do_not_suffice_are_told(sizes, flag):
    event, edges, table = setup(0)
    found = batched(event, edges, table, sizes=sizes)
    assert flag(found)
    # A search that is of no use ends at once; one without rounds would be given more of them.
    if sizes.num_rounds == SIZES.num_rounds:
        assert not found.is_unfinished
        assert found.num_micrographs <= (sizes.num_seeds if found.needed_slots else 0)
    # It tells how much is needed: enough is given, and nothing is left to tell.
    enough = batched(event, edges, table)
    assert enough.needed_slots <= SIZES.num_slots
    assert not enough.is_unfinished


def test_a_search_among_too_few_neighbors_ends_before_it_begins():
    event, edges, table = setup(0)
    found = batched(event, edges, table, num_neighbors=6)
    assert found.num_micrographs == found.num_clusters == 0
    assert not found.is_unfinished


def test_few_seeds_find_as_much_in_more_rounds():
    event = helix_event(3, 30)
    edges = scored_edges(event, 3, overlap=0.0)
    particle = event.hit_particle
    table = ((particle[:, None] == particle) & (particle >= 0)).astype(np.float32)
    label = np.asarray(batched(event, edges, table, sizes=SIZES._replace(num_seeds=2)).label)
    assert track_scores(event, label).efficiency == 1.0


@pytest.mark.parametrize("num_real", [7, 16])
def test_few_seeds_of_several_draws_walk_as_those_of_one(num_real):
    """With gaps between them or one behind the other: the same pivots, and the same dead ends."""
    event, (probability, senders, receivers), _ = setup(5)
    num_hits = len(event.position)
    mask = jnp.ones(len(senders), bool)
    edges = (jnp.asarray(a) for a in (probability, senders, receivers))
    neighbors = jax.jit(kept_neighbors, static_argnums=(4, 5))(
        *edges, mask, num_hits, NUM_NEIGHBORS, 0.55
    )
    walked = jax.jit(walk_from, static_argnums=(3, 4))
    seeds = np.random.default_rng(0).permutation(num_hits)[:num_real]
    in_one, in_three = (np.full(n * SIZES.num_seeds, num_hits, np.int32) for n in (1, 3))
    in_one[:num_real] = in_three[1 : 3 * num_real : 3] = seeds
    one, three = (
        walked(
            jnp.asarray(seed),
            jnp.ones(num_hits, bool),
            neighbors,
            PUBLISHED,
            SIZES.num_seeds,
            jax.random.key(0),
        )
        for seed in (in_one, in_three)
    )
    assert 1 < one[0].sum() < num_real
    # Rows without pivots hold anything.
    for found, expected in ((three[0], one[0]), (three[2], one[2])):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(three[1][three[0]], one[1][one[0]])


def test_micrographs_are_handed_out():
    event, edges, table = setup(0)
    clusters = batched(event, edges, table, sizes=SIZES._replace(num_micrographs=200))
    number = int(clusters.num_micrographs)
    assert clusters.num_clusters <= number < 200
    few = batched(event, edges, table, sizes=SIZES._replace(num_micrographs=5))
    np.testing.assert_array_equal(few.micrographs.hit, clusters.micrographs.hit[:5])
    assert few.num_micrographs == number
    hit, pivot, size = (np.asarray(rows) for rows in clusters.micrographs)
    np.testing.assert_array_equal((hit < len(event.position)).sum(axis=1), size)
    assert (size[:number] >= 3).all()
    assert (size[number:] == 0).all()
    for row in range(number):
        assert np.isin(pivot[row], hit[row]).all()


def test_a_hit_that_several_claim_goes_to_the_surest():
    """By hand: sums of 2 p - 1 are 1.2, 1.4 and 0.9; the last is no candidate."""
    hit = np.array([[0, 1, 9], [1, 2, 3], [2, 3, 9]], np.int32)
    probability = np.array([[0.8, 0.8, 0.0], [0.8, 0.7, 0.7], [0.99, 0.96, 0.0]], np.float32)
    micrographs = Micrographs(
        jnp.asarray(hit), jnp.zeros((3, 1), jnp.int32), jnp.zeros(3, jnp.int32)
    )
    members = Members(jnp.asarray(probability), jnp.asarray(hit < 9))
    kept = settle(micrographs, members, jnp.array([True, True, False]), 9)
    np.testing.assert_array_equal(
        kept, [[True, False, False], [True, True, True], [False, False, False]]
    )


def found_clusters(label, membership):
    """What a search found, as far as hits go."""
    none = jnp.int32(0)
    micrographs = Micrographs(
        jnp.zeros((0, 1), jnp.int32), jnp.zeros((0, 1), jnp.int32), jnp.zeros(0, jnp.int32)
    )
    label, membership = jnp.array(label, jnp.int32), jnp.array(membership, jnp.float32)
    return FoundClusters(
        label, membership, none, micrographs, none, none, is_unfinished=jnp.array(False)
    )


def test_a_hit_left_over_joins_its_surest_neighbour_in_a_cluster():
    """By hand: hit 2 has a surer neighbour without a cluster, hit 3 no other than hit 2."""
    num_hits = 6
    found = found_clusters([3, 4, -1, -1, -1, 4], [0.9, 0.8, 0, 0, 0, 0.7])
    hit = [[5, 2, 6], [2, 5, 6], [0, 1, 3], [2, 6, 6], [6, 6, 6], [0, 1, 6]]
    probability = [[1, 0.5, 0], [0.6, 1, 0], [0.5, 0.6, 0.9], [0.9, 0, 0], [0] * 3, [1, 1, 0]]
    neighbors = Neighbors(
        jnp.array(hit, jnp.int32), jnp.array(probability), jnp.zeros(num_hits, jnp.int32)
    )
    joined = with_left_over(found, neighbors)
    np.testing.assert_array_equal(joined.label, [3, 4, 4, -1, -1, 4])
    np.testing.assert_allclose(joined.membership, [0.9, 0.8, 0.6, 0, 0, 0.7], rtol=1e-6)
    assert joined.num_clusters == found.num_clusters
    # Cluster 3 has one hit, cluster 4 three with the one that joined.
    large = only_tracks(joined, 3, None)
    np.testing.assert_array_equal(large.label, [-1, 4, 4, -1, -1, 4])
    np.testing.assert_allclose(large.membership, [0, 0.8, 0.6, 0, 0, 0.7], rtol=1e-6)
    assert large.num_clusters == 1
    assert only_tracks(joined, 1, None).num_clusters == 2
    # Their scores: 0.8, and 0.6 + 0.2 + 0.4.
    for min_score, label in [(0.79, joined.label), (0.81, large.label), (1.21, [-1] * 6)]:
        sure = only_tracks(joined, 1, min_score)
        np.testing.assert_array_equal(sure.label, label)
        np.testing.assert_array_equal(sure.membership > 0, np.asarray(label) >= 0)
        assert sure.num_clusters == len(np.unique(label)) - 1


def test_more_hits_need_a_larger_score_up_to_a_full_event():
    needed = [float(score_needed(3.75, jnp.int32(number))) for number in (0, 10**4, 10**5, 10**6)]
    np.testing.assert_allclose(needed, [0, 0.375, 3.75, 3.75])


@pytest.mark.parametrize("num_particles", [0, 1])
def test_events_with_next_to_nothing(num_particles):
    event = helix_event(0, num_particles)
    if num_particles == 0:
        event = event._replace(
            position=np.zeros((1, 3), np.float32), hit_particle=np.array([-1], np.int32)
        )
    edges = scored_edges(event, 0, false_per_hit=0)
    table = np.ones((len(event.position),) * 2, np.float32)
    if not len(edges[0]):
        edges = tuple(np.zeros(1, array.dtype) for array in edges)
    clusters = batched(event, edges, table)
    assert clusters.num_clusters == num_particles
    assert not clusters.is_unfinished


def test_failures_end_the_search():
    """A membership that never takes anything: every hit fails as often as it may, then it ends."""
    event, edges, table = setup(0)
    clusters = batched(event, edges, np.zeros_like(table))
    assert clusters.num_clusters == 0
    assert not clusters.is_unfinished
    more = batched(event, edges, np.zeros_like(table), ClusterTune(max_failures=4))
    assert int(more.num_micrographs) > 1.5 * int(clusters.num_micrographs)
