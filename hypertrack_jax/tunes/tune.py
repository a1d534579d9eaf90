"""Both sides: the Tune, everything about a model and its training that can be chosen, as data.

A Tune is a tree of frozen dataclasses with values that JSON can hold. Checkpoints carry it whole,
so that nobody has to remember with which settings a model was trained.
"""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from hypertrack_jax.errors import UserError

PROBABILITIES = {
    "edge_threshold",
    "training_threshold",
    "pivot_threshold",
    "auc_threshold",
    "edge_hinge",
    "floor",
    "momentum",
    "exp_decay",
}
"""Fields from 0 to 1; all other numbers are finite and not negative."""


@dataclass(frozen=True)
class VoxdynTune:
    """Voxel-Dynamics, the graph constructor (algorithm section 2)."""

    node2node: Literal["hyper", "eom", "cricket"] = "hyper"
    """Ground-truth topology that C counts."""
    ncell: int = 65536
    """Number of Voronoi cells."""
    min_count: int | float = 1
    """Two cells are connected when C counts at least this many pairs; 1 is the published C > 0. A
    number below 1 is a quantile: the rarest pairs that hold this share of all counted are cut."""
    labels: Literal["node2node", "hyper", "eom", "cricket"] = "node2node"
    """Topology that the edge labels follow; `node2node`: that of C. With `hyper` an edge of a graph
    of neighbours is true when its hits are of one particle, neighbours or not."""

    @property
    def label_topology(self) -> str:
        """Topology of the edge labels."""
        return self.node2node if self.labels == "node2node" else self.labels


@dataclass(frozen=True)
class FilterTune:
    """What takes false edges out of the candidate graph before the edge predictor."""

    filter: Literal["none", "triplets"] = "none"
    """`none`, as published; `triplets`: pairs of hits by their geometry, then by what continues
    them at either end."""
    width: int = 32
    """Width of its hidden layers."""
    efficiency: float = 0.91
    """Share of the edges within particles that it is to keep, every particle with the same weight,
    by which its training chooses the thresholds on events that it was not trained with. Of all
    edges within particles it keeps more: those of long prompt tracks are the surest."""
    cells: Literal["none", "shape"] = "none"
    """`shape`: pairs are also compared with the shape of the hits' clusters, which events then need
    to have, see `Event.cells`."""


@dataclass(frozen=True)
class NetworkTune:
    """GNN edge predictor and set transformer (algorithm sections 3 and 4)."""

    node_features: Literal["cartesian", "cylindrical"] = "cartesian"
    """`cartesian`: x, y, z in mm as published; `cylindrical`: x/r, y/r, r, z, asinh(z/r). The
    gauge convolution has the positions anyway and knows no axes: there `cartesian` is a constant,
    and `cylindrical` tells it where the beam is."""
    edge_features: Literal["none", "helix", "helix+filter"] = "none"
    """`helix`: geometry of a helix through both hits, and log C, in all layers and the edge MLP;
    `helix+filter`: the same with the filter's logit, which knows log C, in its place."""
    num_layers: int = 5
    """Number of convolutions."""
    latent_dim: int = 64
    """Width of every layer."""
    embedding_dim: int = 61
    """Width of the fused hit embedding z; with x, y, z it makes the transformer's 64."""
    edge_mlp_dims: tuple[int, ...] = (30, 30)
    """Hidden widths of the edge MLP."""
    num_heads: int = 4
    """Attention heads of the set transformer; they share its width, so they have to divide it."""
    num_attention_blocks: int = 4
    """Self-attention blocks over the hits of a cluster, after the one that looks at the pivots."""
    convolution: Literal["super", "gauge"] = "super"
    """`super`: SuperEdgeConv, as published; `gauge`: GaugeEdgeConv, which is E(n)-equivariant."""
    aggregation: Literal[
        "mean", "sum", "max", "softmax", "multi-aggregation", "set-transformer"
    ] = "mean"
    """What a hit makes of the messages to it; the last three need all of them in memory."""
    edge_type: Literal["symmetric-dot", "symmetrized", "asymmetric"] = "symmetric-dot"
    """What the edge MLP sees of hits i and j: z_i * z_j; [z_i, z_j], and the mean is taken with
    [z_j, z_i]; or [z_i, z_j] alone, j being the sender."""
    flow_blocks: int = 4
    """Autoregressive blocks of the experimental normalising flow over z."""
    flow_width: int = 196
    """Width of the two hidden layers of each."""
    length_scale: float = 1000.0
    """Radius of the detector in mm, as TrackML's has 1000. All lengths in the networks and in the
    filter are multiples of it, so that another detector is seen as if it had TrackML's size."""

    @property
    def token_dim(self) -> int:
        """Width of the set transformer: the embedding and the three coordinates of a hit."""
        return self.embedding_dim + 3


@dataclass(frozen=True)
class ClusterTune:
    """Edge scores to clusters (algorithm section 5)."""

    cluster: Literal["transformer", "cut", "dbscan", "hdbscan", "none"] = "transformer"
    """What makes clusters: the set transformer, connected components (`cut`), a density clusterer
    of scikit-learn, or nothing; training with another than `transformer` trains the GNN alone."""
    edge_threshold: float = 0.55
    """Edges with a smaller probability are cut."""
    training_threshold: float | None = None
    """In training each event draws its edge threshold between this and `edge_threshold`, so that
    the transformer knows sparse and crowded micrographs; None as published: no draw."""
    min_hits: int = 4
    """Smallest cluster that counts as a track."""
    seed_strategy: Literal[
        "random", "largest_3d", "smallest_3d", "largest_transverse", "smallest_transverse"
    ] = "random"
    """Which of the hits around become seeds; the others go by radius."""
    num_draws: int = 4
    """Draws of seeds; of the walks that come near each other the best is kept."""
    seed_hops: int = 1
    """A seed outranks all hits that are so many steps away; more for sparse graphs."""
    random_paths: int = 1
    """1: greedy walks; more: the best of so many Monte-Carlo walks from each seed."""
    num_pivots: int = 3
    """Hits of a walk, the seed included."""
    pivot_threshold: float = 0.4
    """A walk does not go along edges with a smaller probability."""
    max_failures: int = 2
    """A hit with so many failures is no longer clustered."""
    micrograph: Literal["pivot-spanned", "full"] = "pivot-spanned"
    """Hits that the transformer sees: those near the pivots, or the whole component."""
    micrograph_hops: int = 1
    """With `pivot-spanned`: largest number of steps from a pivot; 1 as published."""
    largest_micrograph: int | None = None
    """With `pivot-spanned`: most hits, those nearest by steps; None: all of them, as published."""
    membership_threshold: Literal["fixed", "fisher", "soft"] = "fixed"
    """Which membership is enough: 0.5; Fisher's threshold of each micrograph; or a learnt one."""
    core_hits: int | None = None
    """Fewest hits that the transformer has to choose for a cluster. Hits that none took then join
    that of their surest neighbour, and clusters still below `min_hits` are dropped. None, as
    published: `min_hits`, and hits left over stay alone."""
    min_score: float | None = None
    """Clusters of the transformer with a smaller sum of 2 p - 1 over their hits, the expected
    number of right hits minus that of wrong ones, are dropped. It holds for events of 1e5 hits and
    more; in smaller ones less is enough, in proportion to the hits. None, as published: none is."""


@dataclass(frozen=True)
class LossTune:
    """Weights and constants of the losses (algorithm section 6)."""

    edge_bce: float = 0.2
    """Weight of the focal edge loss."""
    edge_focal_gamma: float = 1.0
    """Focusing exponent, arXiv:1708.02002; 0 gives plain binary cross entropy."""
    edge_contrastive: float = 1.0
    """Weight of the contrastive edge loss."""
    contrastive_temperature: float = 0.3
    """Temperature tau of the contrastive loss."""
    contrastive_max_particles: int = 300
    """The contrastive loss looks at this many random particles of an event at most."""
    edge_loss: Literal["focal", "BCE", "BCE+hinge"] = "focal"
    """What `edge_bce` weighs: focal, or plain binary cross entropy, or that with a hinge."""
    edge_hinge: float = 0.05
    """Share of the hinge in `BCE+hinge`."""
    cluster_bce: float = 0.2
    """Weight of the focal membership loss."""
    cluster_focal_gamma: float = 1.0
    """Focusing exponent of the membership loss."""
    cluster_contrastive: float = 0.2
    """Weight of the set loss over clusters."""
    cluster_contrastive_type: Literal["intersect", "dice", "jaccard"] = "intersect"
    """The set loss: right minus wrong hits taken, or a soft Dice or Jaccard index."""
    cluster_target: Literal["pivotmajor", "major"] = "pivotmajor"
    """A cluster's particle is that of most of its pivots, or of most of the hits it takes."""
    particle_weight: Literal["trackml", "equal"] = "trackml"
    """What a particle weighs in the edge losses. `trackml`, as published: its hit weights in the
    contrastive one, its number of edges in the other. `equal`: a short, soft or displaced track as
    much as any other."""
    flow: float = 0.0
    """Weight of the experimental normalising flow over hit embeddings; 0 leaves it out."""


@dataclass(frozen=True)
class OptimizerTune:
    """Optimiser and learning-rate schedule (algorithm section 7)."""

    optimizer: Literal["AdamW", "Adam", "SGD"] = "AdamW"
    learning_rate: float = 5e-4
    """Peak learning rate."""
    scheduler_type: Literal["constant", "warm-cos", "cos", "exp", "step"] = "warm-cos"
    """`warm-cos` is cosine annealing with warm restarts every `period` steps, `cos` without;
    `exp` and `step` fall by a factor every step, or every `step_period`."""
    period: int = 10_000
    """Steps between two restarts of `warm-cos`, or until `cos` is at the floor."""
    floor: float = 0.1
    """Lowest learning rate of `warm-cos` and `cos`, as a fraction of the peak."""
    warmup_steps: int = 0
    """Linear rise from 0 before the schedule proper; 0 as published."""
    weight_decay: float = 1e-5
    """On weight matrices; biases and norms are never decayed."""
    epsilon: float = 1e-6
    """Denominator constant of Adam and AdamW."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient."""
    auc_threshold: float = 0.998
    """Phase 2 begins when the running mean of the training edge AUC is above it."""
    phase2_rate: float = 1.0
    """Peak learning rate of phase 2, as a fraction of that of phase 1; 1 as published."""
    momentum: float = 0.9
    """Share of the last update that `SGD` keeps."""
    exp_decay: float = 1e-5
    """What `exp` takes from the learning rate at every step, as a fraction of it."""
    step_period: int = 1000
    """Steps between two falls of `step`."""
    step_factor: float = 0.9
    """What `step` multiplies the learning rate by at each."""


@dataclass(frozen=True)
class Tune:
    """Everything that can be tuned."""

    name: str
    voxdyn: VoxdynTune = field(default_factory=VoxdynTune)
    network: NetworkTune = field(default_factory=NetworkTune)
    cluster: ClusterTune = field(default_factory=ClusterTune)
    loss: LossTune = field(default_factory=LossTune)
    optimizer: OptimizerTune = field(default_factory=OptimizerTune)
    edge_filter: FilterTune = field(default_factory=FilterTune)

    def __post_init__(self):
        """Refuses choices that are not on their lists, and numbers out of range.

        Raises:
          UserError: naming the field, its value and what is allowed.
        """
        for entry in dataclasses.fields(self)[1:]:
            _check_choices(getattr(self, entry.name))
            _check_numbers(getattr(self, entry.name))
        if not self.network.length_scale:
            raise UserError("NetworkTune.length_scale is 0; expected the detector's radius in mm.")
        if self.network.edge_features == "helix+filter" and self.edge_filter.filter == "none":
            raise UserError(
                "NetworkTune.edge_features is 'helix+filter', but FilterTune.filter is 'none'; "
                "choose 'triplets' for the filter, or 'helix' for the features."
            )
        if self.edge_filter.cells != "none" and self.edge_filter.filter == "none":
            raise UserError(
                f"FilterTune.cells is {self.edge_filter.cells!r}, but FilterTune.filter is 'none'; "
                "choose 'triplets' for the filter, or 'none' for the cells."
            )


def tune_to_json(tune: Tune) -> str:
    """The Tune as JSON text."""
    return json.dumps(dataclasses.asdict(tune), indent=2)


def tune_from_json(text: str) -> Tune:
    """The Tune that `tune_to_json` wrote.

    Raises:
      UserError: a field that this version does not know, or a value that is not on its list.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"a tune is damaged ({error}); write it anew.") from error
    return _from_dict(Tune, values, "tune")


def differing_fields(first: Tune, second: Tune, parts: tuple[str, ...]) -> list[str]:
    """Dotted names of the fields in which two Tunes differ, within the parts named."""
    return [
        f"{part}.{entry.name}"
        for part in parts
        for entry in dataclasses.fields(getattr(first, part))
        if getattr(getattr(first, part), entry.name) != getattr(getattr(second, part), entry.name)
    ]


def _check_choices(part: Any) -> None:
    for name, kind in typing.get_type_hints(type(part)).items():
        if typing.get_origin(kind) is Literal and getattr(part, name) not in typing.get_args(kind):
            raise UserError(
                f"{type(part).__name__}.{name} is {getattr(part, name)!r}; "
                f"choose one of {', '.join(typing.get_args(kind))}."
            )


def _check_numbers(part: Any) -> None:
    for name, kind in typing.get_type_hints(type(part)).items():
        value, highest = getattr(part, name), 1 if name in PROBABILITIES else math.inf
        if not _is_of(kind, value):
            told = kind.__name__ if isinstance(kind, type) else str(kind)
            raise UserError(f"{type(part).__name__}.{name} is {value!r}; expected {told}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not (
                0 <= number <= highest and number < math.inf
            ):
                raise UserError(
                    f"{type(part).__name__}.{name} is {number}; expected a finite number from 0 "
                    + ("to 1." if highest == 1 else "on.")
                )


def _is_of(kind: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(arguments[0], one) for one in value)
    if arguments:
        return any(_is_of(one, value) for one in arguments)
    if kind is float:
        kind = (int, float)
    return isinstance(value, kind) and not isinstance(value, bool)


def _from_dict(kind: type, values: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise UserError(f"{where} is {values!r}, but its fields are expected; write it anew.")
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(
            f"{where} has the field {unknown[0]!r}, which this version of hypertrack_jax does not "
            "know; use the version that wrote it."
        )
    converted = {
        name: _from_value(hints[name], value, f"{where}.{name}") for name, value in values.items()
    }
    try:
        return kind(**converted)
    except TypeError as error:
        raise UserError(f"{where} is not complete ({error}); write it anew.") from error


def _from_value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _from_dict(kind, value, where)
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(value)
    return value


def choices(part: type, name: str) -> tuple[str, ...]:
    """The values a choice can take, such as `choices(OptimizerTune, "optimizer")`."""
    return typing.get_args(typing.get_type_hints(part)[name])
