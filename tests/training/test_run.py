"""What a run begins with: fresh, transferred, resumed or reset weights, and what is refused."""

import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.errors import UserError
from hypertrack_jax.model import checkpoint, weights
from hypertrack_jax.model.checkpoint import Checkpoints
from hypertrack_jax.model.parameters import CLUSTER, EDGE
from hypertrack_jax.training.run import TrainingRun, first_state, require_consistent
from hypertrack_jax.training.step import begin_phase, init_state
from hypertrack_jax.tunes import tune_5

NUM_PAIRS = 1000


@pytest.fixture
def run(source, tmp_path):
    return TrainingRun(source, tmp_path / "mine", tmp_path / "runs", num_steps=10)


def fresh(tune, seed=3):
    """What a run with the seed of the source begins with, or one with another seed."""
    return jax.jit(init_state, static_argnums=0)(tune, jax.random.key(seed))


def trained(tune):
    """A state as some training in phase 2 may have left it: other numbers everywhere."""
    state = jax.tree.map(lambda leaf: leaf + leaf.dtype.type(2), fresh(tune, seed=1))
    return state._replace(step=jnp.int32(7), phase=jnp.int32(2), phase_start=jnp.int32(5))


def save(directory, state, tune, num_pairs=NUM_PAIRS):
    with Checkpoints(directory, is_writer=True) as checkpoints:
        checkpoints.save(int(state.step), state, tune, auc=0.5, num_pairs=num_pairs)


def begin(run, tune):
    with Checkpoints(run.checkpoint_directory) as checkpoints:
        return first_state(run, tune, NUM_PAIRS, checkpoints)


def assert_identical(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_run_without_checkpoints_begins_afresh(run, small_tune):
    assert_identical(begin(run, small_tune), fresh(small_tune))
    assert_identical(begin(replace(run, epoch=0), small_tune), fresh(small_tune))


def test_a_run_goes_on_from_its_checkpoint(run, small_tune):
    save(run.checkpoint_directory, trained(small_tune), small_tune)
    assert_identical(begin(run, small_tune), trained(small_tune))


def test_a_soft_reset_keeps_the_weights_and_the_steps_alone(run, small_tune):
    state = trained(small_tune)
    save(run.checkpoint_directory, state, small_tune)
    reset = begin(replace(run, soft_reset=True), small_tune)
    assert_identical(reset, begin_phase(small_tune, state, 1))
    assert (reset.step, reset.phase, reset.phase_start) == (7, 1, 7)


@pytest.mark.parametrize("soft_reset", [False, True])
def test_a_run_does_not_go_on_with_another_graph_constructor(run, small_tune, soft_reset):
    save(run.checkpoint_directory, trained(small_tune), small_tune, num_pairs=NUM_PAIRS // 2)
    with pytest.raises(UserError, match=r"mine: .* counted 1000 pairs, .* that counted 500; fit"):
        begin(replace(run, soft_reset=soft_reset), small_tune)


def test_a_checkpoint_that_does_not_know_its_graph_constructor_is_gone_on_from(
    run, small_tune, caplog
):
    save(run.checkpoint_directory, trained(small_tune), small_tune, num_pairs=None)
    assert_identical(begin(run, small_tune), trained(small_tune))
    assert "make sure that it was trained with the one at hand" in caplog.text


def test_a_soft_reset_needs_a_checkpoint(run, small_tune):
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        begin(replace(run, soft_reset=True), small_tune)


def test_a_transfer_takes_the_weights_and_nothing_else(run, small_tune, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    state = trained(small_tune)
    save(tmp_path / "other", state, small_tune)
    run = replace(run, transfer_directory=tmp_path / "other")
    begun = begin(run, small_tune)
    expected = fresh(small_tune)._replace(params=state.params, batch_stats=state.batch_stats)
    assert_identical(begun, expected)
    number = len(jax.tree.leaves((state.params, state.batch_stats)))
    assert f"step 7 of other: {number} arrays loaded, 0 skipped, 0 initialised" in caplog.text


def test_a_transfer_from_the_first_version_initialises_the_clusterer(
    run, small_tune, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    state = trained(small_tune)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 1)
    save(tmp_path / "other", state._replace(params=state.params[EDGE]), small_tune)
    monkeypatch.undo()
    begun = begin(replace(run, transfer_directory=tmp_path / "other"), small_tune)
    assert_identical(begun.params[EDGE], state.params[EDGE])
    assert_identical(begun.batch_stats, state.batch_stats)
    assert_identical(begun.params[CLUSTER], fresh(small_tune).params[CLUSTER])
    assert "initialised: params/cluster/threshold, params/cluster/transformer" in caplog.text
    assert "skipped:" not in caplog.text


def test_a_transfer_into_another_network_takes_what_fits(run, small_tune, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    state = trained(small_tune)
    save(tmp_path / "other", state, small_tune)
    network = replace(small_tune.network, edge_mlp_dims=(5, 6))
    tune = replace(small_tune, network=network)
    begun = begin(replace(run, transfer_directory=tmp_path / "other"), tune)
    assert_identical(begun.params[EDGE]["fusion"], state.params[EDGE]["fusion"])
    assert_identical(
        begun.params[EDGE]["edge_mlp"]["kernel"], state.params[EDGE]["edge_mlp"]["kernel"]
    )
    first_layer = begun.params[EDGE]["edge_mlp"]["layers_0"]
    assert_identical(first_layer, fresh(tune).params[EDGE]["edge_mlp"]["layers_0"])
    for what in ("skipped", "initialised"):
        assert f"{what}: batch_stats/edge_mlp/layers_0, params/edge/edge_mlp" in caplog.text


def test_a_shipped_model_is_transferred_where_no_tag_has_its_name(
    run, small_tune, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(weights, "SHIPPED", tmp_path / "shipped")
    state, of_a_tag = trained(small_tune), fresh(small_tune, seed=1)
    params = state.params | {CLUSTER: {"former": jnp.zeros(2)}}
    shipped = weights.Weights(small_tune, params, state.batch_stats, num_pairs=1)
    weights.save_weights(tmp_path / "shipped" / "good.npz", shipped)
    run = replace(run, transfer_directory=tmp_path / "good")
    begun = begin(run, small_tune)
    params = fresh(small_tune).params | {EDGE: state.params[EDGE]}
    assert_identical(
        begun, fresh(small_tune)._replace(params=params, batch_stats=state.batch_stats)
    )
    loaded, kept = (
        len(jax.tree.leaves(part)) for part in ((params[EDGE], state.batch_stats), params[CLUSTER])
    )
    numbers = f"{loaded} arrays loaded, 1 skipped, {kept} initialised"
    assert f"transfer from the weights good: {numbers}" in caplog.text
    assert "skipped: params/cluster/former\n" in caplog.text
    save(tmp_path / "good", of_a_tag, small_tune)
    assert_identical(begin(run, small_tune).params, of_a_tag.params)


def test_a_transfer_is_over_once_there_are_checkpoints(run, small_tune, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    save(run.checkpoint_directory, trained(small_tune), small_tune)
    run = replace(run, transfer_directory=tmp_path / "gone")
    assert_identical(begin(run, small_tune), trained(small_tune))
    assert "the transfer is over, since mine has checkpoints of its own" in caplog.text


def test_a_transfer_from_nothing_or_from_what_does_not_fit_is_refused(run, small_tune, tmp_path):
    run = replace(run, transfer_directory=tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"other: no checkpoint here"):
        begin(run, small_tune)
    with Checkpoints(tmp_path / "other", is_writer=True) as checkpoints:
        checkpoints.save(1, {"params": {"another": jnp.zeros(2)}}, small_tune, auc=0.5)
    with pytest.raises(UserError, match=r"other: step 1 of other has no array that fits"):
        begin(run, small_tune)


def refusal(run, tune):
    with pytest.raises(UserError, match=r"^\w.*; .*\.$") as caught:
        require_consistent(run, tune)
    return str(caught.value)


def test_what_does_not_go_together_is_refused(run, small_tune):
    require_consistent(run, small_tune)
    cut = replace(small_tune, cluster=replace(small_tune.cluster, cluster="cut"))
    require_consistent(replace(run, phase=1), cut)
    assert "the tune's cluster is 'cut'" in refusal(replace(run, phase=2), cut)
    assert "epoch 0" in refusal(replace(run, soft_reset=True, epoch=0), small_tune)
    other = run.checkpoint_directory.with_name("other")
    transfer = replace(run, soft_reset=True, transfer_directory=other)
    assert "transfer" in refusal(transfer, small_tune)
    transfer = replace(run, transfer_directory=run.checkpoint_directory)
    assert "from mine, the tag itself" in refusal(transfer, small_tune)
    assert "fp_dtype float16" in refusal(replace(run, fp_dtype="float16"), tune_5.TUNE)
    require_consistent(replace(run, fp_dtype="float16"), small_tune)
    require_consistent(replace(run, fp_dtype="bfloat16"), tune_5.TUNE)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "num_steps": (0, -1),
        "batch_size": (0, -1),
        "validate_every": (0,),
        "save_period": (NAN, INF, -1.0),
        "fp_dtype": ("float8", ""),
        "phase": (0, 3),
        "epoch": (-2,),
    }.items(),
)
def test_numbers_out_of_range_are_refused_by_name(run, small_tune, name, values):
    for value in values:
        said = refusal(replace(run, **{name: value}), small_tune)
        assert said.startswith(f"{name} is {value!r}; expected ")


@pytest.mark.parametrize("part", ["source", "validation"])
@pytest.mark.parametrize(
    ("names", "values"),
    [
        (
            ("rfactor_start", "rfactor_end"),
            [(0.2, 0.1), (0.0, 1.0), (0.5, 1.5), (NAN, 1), (1, NAN)],
        ),
        (("noise_ratio",), [(NAN,), (INF,), (1.0,), (-0.5,)]),
        (("seed",), [(-1,), (2**63,)]),
        (("event_ids",), [([],)]),
    ],
)
def test_sources_out_of_range_are_refused_by_name(run, small_tune, part, names, values):
    for of_names in values:
        source = run.source._replace(**dict(zip(names, of_names, strict=True)))
        said = refusal(replace(run, **{part: source}), small_tune)
        assert all(name in said for name in names)
