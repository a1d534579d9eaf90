"""Our own tune: tune-5 with the geometry of a helix given to the network as features.

Its `min_count` is for C of 100 full events counted in 16 copies (pretrain_voxdyn.py
--num_copies=16), as `quickstart.py --train` makes it.
"""

from hypertrack_jax.tunes.tune import (
    ClusterTune,
    LossTune,
    NetworkTune,
    OptimizerTune,
    Tune,
    VoxdynTune,
)

TUNE = Tune(
    name="helix",
    voxdyn=VoxdynTune(ncell=16384, min_count=12),
    network=NetworkTune(
        node_features="cylindrical",
        edge_features="helix",
        # Wider than published: it also has to weigh the pair features.
        edge_mlp_dims=(64, 32),
    ),
    cluster=ClusterTune(edge_threshold=0.5, training_threshold=0.15, core_hits=4),
    # The efficiency counts particles, and short, soft and displaced ones are those that are lost.
    loss=LossTune(particle_weight="equal"),
    optimizer=OptimizerTune(learning_rate=3e-3, warmup_steps=50, phase2_rate=0.5),
)
