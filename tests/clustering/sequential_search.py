"""The published search for clusters, written plainly: one component, one cluster after another.

An oracle for the batched search (algorithm section 5). Slow and sequential; the three defects named
there are left out: no rejected cluster shifts another, none is lost, no cluster is cut.
"""

import numpy as np
from scipy.sparse import coo_array, csgraph

MIN_DOUBT = 1e-3


def sequential_clusters(
    probability,
    senders,
    receivers,
    num_hits,
    membership,
    rng,
    edge_threshold=0.55,
    pivot_threshold=0.4,
    num_pivots=3,
    max_failures=2,
    min_hits=4,
    micrograph="pivot-spanned",
):
    """Cluster of each hit, -1 for none; `membership(hits, pivots)` gives probabilities."""
    kept = (probability > edge_threshold) & (senders != receivers)
    edge = coo_array((probability[kept], (receivers[kept], senders[kept])), (num_hits, num_hits))
    dense = edge.toarray()
    _, component = csgraph.connected_components(edge, directed=False)
    label, number = np.full(num_hits, -1), 0
    for name in range(component.max() + 1):
        active = component == name
        failures = np.zeros(num_hits, int)
        if active.sum() < min_hits:
            continue
        while active.sum() >= 3:
            pivots = _best_walk(dense, active, rng, num_pivots, pivot_threshold)
            chosen = np.zeros(0, int)
            if len(pivots) == num_pivots:
                near = active if micrograph == "full" else active & (dense[pivots] > 0).any(axis=0)
                near[pivots] = True
                hits = np.flatnonzero(near)
                chosen = hits[membership(hits, pivots) > 0.5]
            if len(chosen) >= min_hits:
                label[chosen], number = number, number + 1
                active = active & (label < 0)
            else:
                failures[pivots] += 1
                active = active & (failures < max_failures)
    return label


def _best_walk(dense, active, rng, num_pivots, pivot_threshold):
    hits = np.flatnonzero(active)
    seeds = rng.choice(hits, size=min(2, len(hits)), replace=False)
    walks = [_greedy_walk(dense, active, seed, num_pivots, pivot_threshold) for seed in seeds]
    return max(walks, key=lambda walk: (len(walk[0]) == num_pivots, walk[1]))[0]


def _greedy_walk(dense, active, seed, num_pivots, pivot_threshold):
    walk, score = [int(seed)], 0.0
    while len(walk) < num_pivots:
        strength = np.where(active, dense[walk[-1]], 0)
        strength[walk] = 0
        following = int(np.argmax(strength))
        if strength[following] <= pivot_threshold:
            break
        p = strength[following]
        walk.append(following)
        score += np.log(p / (1 - p + MIN_DOUBT))
    return walk, score
