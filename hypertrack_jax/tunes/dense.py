"""All pile-ups: the local road on the edges that a filter leaves.

In the `eom` graph of a full event 2 % of the edges join hits of one particle, and a network that
takes means over a hundred neighbours does not learn from it. The filter takes nine tenths of the
edges out. Its C is small: fit it with experiments/pretrain_voxdyn.py --node2node=eom --ncell=65536
--num_copies=32 with 100 events, and train the filter with experiments/train_filter.py
--rfactor_start=0.01.
"""

from dataclasses import replace

from hypertrack_jax.tunes import local
from hypertrack_jax.tunes.tune import FilterTune

TUNE = replace(
    local.TUNE,
    name="dense",
    voxdyn=replace(local.TUNE.voxdyn, ncell=65536, min_count=3),
    # Crowded hits make false tracks of few sure hits: four, where `local` takes two.
    cluster=replace(local.TUNE.cluster, edge_threshold=0.5, core_hits=4, min_score=2.0),
    edge_filter=FilterTune(filter="triplets"),
    network=replace(local.TUNE.network, edge_features="helix+filter"),
)
