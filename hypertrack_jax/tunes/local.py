"""The local road: helix on a graph of neighbouring hits alone, tens of times smaller than `hyper`.

At the same true edge efficiency (0.97 of their own links) the `eom` graph of a full event has a
fiftieth of the edges; experiments/results/voxdyn.md has the measurement. TPR does not depend on
pile-up, so one setting of Voxel-Dynamics is the best for all: fit it with
experiments/pretrain_voxdyn.py --node2node=eom --ncell=262144 --num_copies=32 with 1000 events.

An edge is true when its hits are of one particle, and the transformer sees the hits within eight
steps of its pivots, a whole track of neighbours. Two hits that it chooses are enough for a cluster,
which others may join: short and displaced tracks have few sure neighbours. `min_count` 3 gives up a
smaller degree for a true edge efficiency of 0.98: the graph bounds what any clusterer can find.
"""

from dataclasses import replace

from hypertrack_jax.tunes import helix
from hypertrack_jax.tunes.tune import ClusterTune, VoxdynTune

TUNE = replace(
    helix.TUNE,
    name="local",
    voxdyn=VoxdynTune(node2node="eom", ncell=262144, min_count=3, labels="hyper"),
    cluster=ClusterTune(
        edge_threshold=0.45,
        training_threshold=0.25,
        core_hits=2,
        seed_hops=2,
        num_draws=8,
        num_pivots=4,
        max_failures=4,
        micrograph_hops=8,
        largest_micrograph=48,
    ),
)
