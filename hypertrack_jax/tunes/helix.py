"""Our own tune: tune-5 with the geometry of a helix given to the network as features."""

from hypertrack_jax.tunes.tune import (
    ClusterTune,
    NetworkTune,
    OptimizerTune,
    Tune,
    VoxdynTune,
)

TUNE = Tune(
    name="helix",
    voxdyn=VoxdynTune(ncell=16384, min_count=4),
    network=NetworkTune(
        node_features="cylindrical",
        edge_features="helix",
        # Wider than published: it also has to weigh the pair features.
        edge_mlp_dims=(64, 32),
    ),
    cluster=ClusterTune(edge_threshold=0.7),
    optimizer=OptimizerTune(learning_rate=3e-3, warmup_steps=50),
)
