"""Both sides: the Tune, everything about a model and its training that can be chosen, as data.

A Tune is a tree of frozen dataclasses with values that JSON can hold. Checkpoints carry it whole,
so that nobody has to remember with which settings a model was trained.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class VoxdynTune:
    """Voxel-Dynamics, the graph constructor (algorithm section 2)."""

    node2node: Literal["hyper", "eom", "cricket"] = "hyper"
    """Ground-truth topology that C counts and the edge labels follow."""
    ncell: int = 65536
    """Number of Voronoi cells."""
    min_count: int | float = 1
    """Two cells are connected when C counts at least this many pairs; 1 is the published C > 0. A
    number below 1 is a quantile: the rarest pairs that hold this share of all counted are cut."""


@dataclass(frozen=True)
class NetworkTune:
    """GNN edge predictor (algorithm section 3)."""

    node_features: Literal["cartesian", "cylindrical"] = "cartesian"
    """`cartesian`: x, y, z in mm as published; `cylindrical`: x/r, y/r, r, z, asinh(z/r)."""
    edge_features: Literal["none", "helix"] = "none"
    """`helix`: geometry of a helix through both hits, and log C, in all layers and the edge MLP."""
    num_layers: int = 5
    """Number of `SuperEdgeConv` layers."""
    latent_dim: int = 64
    """Width of every layer."""
    embedding_dim: int = 61
    """Width of the fused hit embedding z; with x, y, z it makes the transformer's 64."""
    edge_mlp_dims: tuple[int, ...] = (30, 30)
    """Hidden widths of the edge MLP on z_i * z_j."""


@dataclass(frozen=True)
class ClusterTune:
    """Edge scores to clusters (algorithm section 5)."""

    edge_threshold: float = 0.55
    """Edges with a smaller probability are cut."""
    min_hits: int = 4
    """Smallest cluster that counts as a track."""


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


@dataclass(frozen=True)
class OptimizerTune:
    """Optimiser and learning-rate schedule (algorithm section 7)."""

    optimizer: Literal["AdamW"] = "AdamW"
    learning_rate: float = 5e-4
    """Peak learning rate."""
    scheduler_type: Literal["constant", "warm-cos"] = "warm-cos"
    """`warm-cos` is cosine annealing with warm restarts every `period` steps."""
    period: int = 10_000
    """Steps between two restarts of `warm-cos`."""
    floor: float = 0.1
    """Lowest learning rate of `warm-cos`, as a fraction of the peak."""
    warmup_steps: int = 0
    """Linear rise from 0 before the schedule proper; 0 as published."""
    weight_decay: float = 1e-5
    """On weight matrices; biases and norms are never decayed."""
    epsilon: float = 1e-6
    """Denominator constant of Adam."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient."""


@dataclass(frozen=True)
class Tune:
    """Everything that can be tuned."""

    name: str
    voxdyn: VoxdynTune = field(default_factory=VoxdynTune)
    network: NetworkTune = field(default_factory=NetworkTune)
    cluster: ClusterTune = field(default_factory=ClusterTune)
    loss: LossTune = field(default_factory=LossTune)
    optimizer: OptimizerTune = field(default_factory=OptimizerTune)

    def __post_init__(self):
        """Refuses a choice that is not on its list: a misspelt Tune fails where it is made."""
        for part in (self.voxdyn, self.network, self.cluster, self.loss, self.optimizer):
            _check_choices(part)


def tune_to_json(tune: Tune) -> str:
    """The Tune as JSON text."""
    return json.dumps(dataclasses.asdict(tune), indent=2)


def tune_from_json(text: str) -> Tune:
    """The Tune that `tune_to_json` wrote.

    Raises:
      ValueError: a field that this version does not know, or a value that is not on its list.
    """
    return _from_dict(Tune, json.loads(text), "tune")


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
            raise ValueError(
                f"{type(part).__name__}.{name} is {getattr(part, name)!r}; "
                f"choose one of {', '.join(typing.get_args(kind))}."
            )


def _from_dict(kind: type, values: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {values!r}, but its fields are expected; write it anew.")
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(
            f"{where} has the field {unknown[0]!r}, which this version of hypertrack_jax does not "
            "know; use the version that wrote it."
        )
    converted = {
        name: _from_value(hints[name], value, f"{where}.{name}") for name, value in values.items()
    }
    try:
        return kind(**converted)
    except TypeError as error:
        raise ValueError(f"{where} is not complete ({error}); write it anew.") from error


def _from_value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _from_dict(kind, value, where)
    if isinstance(kind, types.GenericAlias) and typing.get_origin(kind) is tuple:
        return tuple(value)
    return value


def choices(part: type, name: str) -> tuple[str, ...]:
    """The values a choice can take, such as `choices(OptimizerTune, "optimizer")`."""
    return typing.get_args(typing.get_type_hints(part)[name])
