"""All pile-ups, with cells: `dense` behind a filter that also looks at the shape of clusters.

Its C is that of `dense`. Its filter is trained on events that have cells, see `Event.cells`, by
experiments/train_filter.py --param=dense-cells --rfactor_start=0.01.
"""

from dataclasses import replace

from hypertrack_jax.tunes import dense

TUNE = replace(
    dense.TUNE,
    name="dense-cells",
    cluster=replace(dense.TUNE.cluster, edge_threshold=0.4, min_score=3.75),
    edge_filter=replace(dense.TUNE.edge_filter, cells="shape", efficiency=0.96),
)
