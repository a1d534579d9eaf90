"""A Tune as data: through JSON and back, its choices, and the published values."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.topology import TOPOLOGIES
from hypertrack_jax.tunes import helix, tune_5
from hypertrack_jax.tunes.tune import (
    ClusterTune,
    FilterTune,
    LossTune,
    NetworkTune,
    OptimizerTune,
    Tune,
    VoxdynTune,
    choices,
    differing_fields,
    tune_from_json,
    tune_to_json,
)

OTHER = Tune(
    "other",
    VoxdynTune("eom", 17, 3),
    NetworkTune("cylindrical", "helix", 2, 8, 7, (5, 4, 3)),
    ClusterTune(edge_threshold=0.123456789012345, min_hits=6),
    LossTune(0.1, 2.0, 0.3, 0.25, 12),
    OptimizerTune("AdamW", 1e-3, "constant", 7, 0.2, 3, 0.0, 1e-8, 2.5),
)


@pytest.mark.parametrize("tune", [tune_5.TUNE, helix.TUNE, OTHER], ids=lambda tune: tune.name)
def test_json_brings_a_tune_back_unchanged(tune):
    again = tune_from_json(tune_to_json(tune))
    assert again == tune
    # Compiled programs take the network's part as a static argument.
    assert hash(again) == hash(tune)


def test_every_field_reaches_json():
    text = json.loads(tune_to_json(OTHER))
    assert text["network"]["edge_mlp_dims"] == [5, 4, 3]
    for part in ("voxdyn", "network", "cluster", "loss", "optimizer"):
        assert set(text[part]) == {entry.name for entry in fields(getattr(OTHER, part))}
    assert text["cluster"]["edge_threshold"] == 0.123456789012345
    assert text["cluster"]["min_hits"] == 6


@pytest.mark.parametrize(
    ("part", "field", "allowed"),
    [
        ("voxdyn", "node2node", "hyper, eom, cricket"),
        ("network", "node_features", "cartesian, cylindrical"),
        ("network", "edge_features", "none, helix, helix\\+filter"),
        ("edge_filter", "filter", "none, triplets"),
        ("optimizer", "optimizer", "AdamW"),
        ("optimizer", "scheduler_type", "constant, warm-cos"),
    ],
)
def test_a_misspelt_choice_is_refused(part, field, allowed):
    misspelt = replace(getattr(OTHER, part))
    # Past the type check that the tests alone have.
    object.__setattr__(misspelt, field, "hypr")
    with pytest.raises(UserError, match=rf"{field} is 'hypr'; choose one of {allowed}"):
        replace(OTHER, **{part: misspelt})


def test_the_feature_of_a_filter_needs_a_filter():
    network = NetworkTune(edge_features="helix+filter")
    with pytest.raises(UserError, match=r"but FilterTune\.filter is 'none'; choose 'triplets'"):
        Tune("x", network=network)
    assert Tune("x", network=network, edge_filter=FilterTune("triplets")).network == network


def test_a_tune_from_before_there_were_filters_has_none():
    text = json.loads(tune_to_json(OTHER))
    del text["edge_filter"]
    assert tune_from_json(json.dumps(text)).edge_filter == FilterTune("none")


def test_a_misspelt_choice_in_a_file_is_refused():
    text = tune_to_json(OTHER).replace('"eom"', '"eon"')
    program = (
        "import sys; from hypertrack_jax.tunes.tune import tune_from_json; "
        "tune_from_json(sys.argv[1])"
    )
    # In another process, without the type check that the tests alone have.
    command = [sys.executable, "-c", program, text]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "UserError: VoxdynTune.node2node is 'eon'; choose one of hyper" in found.stderr


@pytest.mark.parametrize("part", [None, "network"])
def test_a_field_of_another_version_is_named(part):
    values = json.loads(tune_to_json(OTHER))
    (values if part is None else values[part])["num_dragons"] = 4
    where = "tune" if part is None else "tune.network"
    with pytest.raises(
        UserError, match=rf"{where} has the field 'num_dragons', which this version"
    ):
        tune_from_json(json.dumps(values))


def test_a_field_that_is_missing_has_its_default():
    values = json.loads(tune_to_json(OTHER))
    del values["loss"], values["network"]["num_layers"]
    tune = tune_from_json(json.dumps(values))
    assert tune.loss == LossTune()
    assert tune.network == replace(OTHER.network, num_layers=5)


def test_a_tune_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        OTHER.network.num_layers = 3  # type: ignore[misc]


def test_differences_are_named_within_the_parts_asked_for():
    changed = replace(
        OTHER,
        voxdyn=replace(OTHER.voxdyn, ncell=18),
        network=replace(OTHER.network, num_layers=3, latent_dim=9),
    )
    parts = ("voxdyn", "network")
    assert differing_fields(OTHER, changed, parts) == [
        "voxdyn.ncell",
        "network.num_layers",
        "network.latent_dim",
    ]
    assert differing_fields(OTHER, changed, ("voxdyn",)) == ["voxdyn.ncell"]
    assert differing_fields(OTHER, changed, ("loss", "cluster")) == []
    assert differing_fields(OTHER, OTHER, parts) == []


def test_choices_are_those_of_the_library():
    assert choices(VoxdynTune, "node2node") == TOPOLOGIES
    schedules = ("constant", "warm-cos", "cos", "exp", "step")
    assert choices(OptimizerTune, "scheduler_type") == schedules


def test_tune_5_has_the_published_values():
    """algorithm.md, sections 2, 3, 5, 6 and 7; `ncell` is that of pile-up 2."""
    tune = tune_5.TUNE
    assert tune.name == "tune-5"
    assert tune.voxdyn == VoxdynTune(node2node="hyper", ncell=65536, min_count=1)
    assert tune.network == NetworkTune("cartesian", "none", 5, 64, 61, (30, 30))
    assert tune.cluster == ClusterTune(edge_threshold=0.55, min_hits=4)
    assert tune.loss == LossTune(
        edge_bce=0.2,
        edge_focal_gamma=1.0,
        edge_contrastive=1.0,
        contrastive_temperature=0.3,
        contrastive_max_particles=300,
    )
    assert tune.optimizer == OptimizerTune(
        optimizer="AdamW",
        learning_rate=5e-4,
        scheduler_type="warm-cos",
        period=10_000,
        floor=0.1,
        warmup_steps=0,
        weight_decay=1e-5,
        epsilon=1e-6,
        clip_norm=1.0,
    )


def test_the_helix_tune_is_the_published_network_with_other_inputs():
    published = {"node_features": "cartesian", "edge_features": "none", "edge_mlp_dims": (30, 30)}
    assert replace(helix.TUNE.network, **published) == tune_5.TUNE.network
    assert helix.TUNE.loss == replace(tune_5.TUNE.loss, particle_weight="equal")


@pytest.mark.parametrize("text", ["{}", '{"name": "x", "network": 3}', "[]"])
def test_json_that_is_no_whole_tune_is_one_sentence(text):
    with pytest.raises(UserError, match=r"^tune.* write it anew\.$"):
        tune_from_json(text)


@pytest.mark.parametrize(
    ("part", "field", "value", "told"),
    [
        (
            OptimizerTune,
            "learning_rate",
            float("nan"),
            "is nan; expected a finite number",
        ),
        (OptimizerTune, "learning_rate", float("inf"), "is inf; expected a finite number"),
        (OptimizerTune, "warmup_steps", -1, "is -1; expected a finite number from 0 on"),
        (OptimizerTune, "period", 2.5, "is 2.5; expected int"),
        (ClusterTune, "edge_threshold", 1.5, "is 1.5; expected a finite number from 0 to 1"),
        (ClusterTune, "training_threshold", "0.1", r"is '0.1'; expected float | None"),
        (ClusterTune, "min_hits", True, "is True; expected int"),
        (NetworkTune, "length_scale", 0.0, "is 0; expected the detector's radius in mm"),
        (NetworkTune, "edge_mlp_dims", (30, -1), "is -1; expected a finite number"),
        (NetworkTune, "edge_mlp_dims", [30], r"is [30]; expected tuple"),
    ],
)
def test_a_number_out_of_range_or_of_another_type_is_told(part, field, value, told):
    name, odd = part.__name__.removesuffix("Tune").lower(), part()
    # Not by the constructor, whose types are checked in tests alone.
    object.__setattr__(odd, field, value)
    with pytest.raises(UserError) as raised:
        Tune("odd", **{name: odd})
    assert str(raised.value).startswith(f"{part.__name__}.{field} {told}")


def test_a_damaged_tune_is_told():
    text = tune_to_json(tune_5.TUNE)
    with pytest.raises(UserError, match="damaged"):
        tune_from_json(text[:-5])
