"""Checkpoints: what is kept, what they say of themselves, and what is refused."""

import gc
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.compiled_time import watched_compilation
from hypertrack_jax.model import checkpoint
from hypertrack_jax.model.checkpoint import LOCK, Checkpoints, require_same_tune
from hypertrack_jax.model.parameters import init_parameters
from hypertrack_jax.tunes import helix, tune_5
from hypertrack_jax.tunes.tune import LossTune, NetworkTune, Tune

TUNE = Tune(
    "mine",
    network=NetworkTune(num_layers=2, edge_mlp_dims=(7, 5, 3)),
    loss=LossTune(edge_bce=0.1234567890123),
)


def arrays(number):
    """A state of several types and shapes that `number` decides."""
    return {
        "step": jnp.asarray(number, jnp.int32),
        "kernel": jnp.linspace(-1, 1, 6, dtype=jnp.float32).reshape(2, 3) * number / 3,
        "half": [jnp.full(4, number / 7, jnp.bfloat16)],
    }


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path / "models" / "tag", is_writer=True) as opened:
        yield opened


def assert_identical(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_saved_state_and_its_tune_come_back_unchanged(checkpoints):
    checkpoints.save(3, arrays(3), TUNE, auc=0.7, num_pairs=5)
    with Checkpoints(checkpoints.directory) as again:
        saved = again.describe()
        assert saved == (3, TUNE, 5)
        assert_identical(again.restore(3, jax.eval_shape(arrays, 0)), arrays(3))


def test_arrays_on_several_devices_are_saved_without_programs(checkpoints):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    # A shape of its own, that no other test has compiled for.
    state = {"kernel": jax.device_put(np.ones((2 * len(jax.devices()), 37)), everywhere)}
    with watched_compilation() as compiled:
        checkpoints.save(1, state, TUNE, auc=0.5)
    assert not compiled
    assert_identical(checkpoints.restore(1, state), state)


def test_every_saved_step_has_its_own_arrays(checkpoints):
    for step in (1, 2):
        checkpoints.save(step, arrays(step), replace(TUNE, name=f"tune {step}"), auc=0.5)
    assert checkpoints.steps() == [1, 2]
    assert checkpoints.describe().step == 2
    assert checkpoints.describe(1).tune.name == "tune 1"
    assert_identical(checkpoints.restore(1, arrays(0)), arrays(1))


def test_the_latest_two_and_the_best_are_kept(checkpoints):
    for step, auc in enumerate((0.5, 0.9, 0.6, 0.7, 0.8), start=1):
        checkpoints.save(step, arrays(step), TUNE, auc)
    assert checkpoints.steps() == [2, 4, 5]


def test_looking_for_a_checkpoint_leaves_no_trace(tmp_path):
    with Checkpoints(tmp_path / "models" / "tag") as reader:
        assert reader.steps() == []
        with pytest.raises(FileNotFoundError, match=r"tag: no checkpoint here .*train one"):
            reader.describe()
    assert not (tmp_path / "models").exists()


def test_a_step_that_is_not_there_is_named(checkpoints):
    checkpoints.save(4, arrays(4), TUNE, auc=0.5)
    with pytest.raises(FileNotFoundError, match=r"no step 3 here \(saved steps: \[4\]\)"):
        checkpoints.describe(3)


def test_an_unfinished_save_is_no_checkpoint(checkpoints):
    checkpoints.save(1, arrays(1), TUNE, auc=0.5)
    (checkpoints.directory / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(checkpoints.directory) as again:
        assert again.steps() == [1]


def test_a_checkpoint_of_another_version_is_refused(checkpoints, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 0)
    checkpoints.save(1, arrays(1), TUNE, auc=0.5)
    monkeypatch.undo()
    with pytest.raises(UserError, match="step 1 is not a checkpoint of this version"):
        checkpoints.describe()


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": jnp.zeros((3, 3))},
        {"kernel": jnp.zeros((2, 2))},
        {"another": jnp.zeros(2)},
    ],
    ids=["larger", "smaller", "another array"],
)
def test_arrays_of_another_network_are_refused(checkpoints, change):
    checkpoints.save(1, arrays(1), TUNE, auc=0.5)
    with pytest.raises(
        UserError, match="step 1 does not hold the arrays of this network"
    ) as caught:
        checkpoints.restore(1, arrays(0) | change)
    (name,) = change
    assert name in str(caught.value)
    assert len(str(caught.value)) < 400


# Orbax leaves readers of the damaged files to the garbage collector, which then complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_one_sentence(checkpoints):
    checkpoints.save(1, arrays(1), TUNE, auc=0.5)
    files = [
        path for path in (checkpoints.directory / "1" / "state").rglob("d/*") if path.is_file()
    ]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:-40])
    with (
        Checkpoints(checkpoints.directory) as again,
        pytest.raises(UserError, match=r"tag: step 1 cannot be read, .*another step") as caught,
    ):
        again.restore(1, arrays(0))
    assert len(str(caught.value)) < 300
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("content", [b"", b'{"a": [1', b"[]", b"\xff\xfe\x00"])
def test_damaged_descriptions_are_one_sentence(checkpoints, content):
    checkpoints.save(1, arrays(1), TUNE, auc=0.5)
    step = checkpoints.directory / "1"
    texts = [path for path in step.rglob("*") if path.is_file() and b"{" == path.read_bytes()[:1]]
    assert len(texts) > 2
    for path in texts:
        whole = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(UserError) as caught, Checkpoints(checkpoints.directory) as again:
            again.restore(again.describe(1).step, arrays(0))
            # What the name of this file says is asked of nobody.
            raise UserError(f"{path.name} is not needed")
        assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
        path.write_bytes(whole)
    gc.collect()


def test_one_training_at_a_time_writes_to_a_tag(tmp_path):
    with Checkpoints(tmp_path / "tag", is_writer=True) as first:
        first.save(1, arrays(1), TUNE, auc=0.5)
        with pytest.raises(UserError, match=r"tag: another process trains this tag; .*another tag"):
            Checkpoints(tmp_path / "tag", is_writer=True)
        with Checkpoints(tmp_path / "tag") as reader, Checkpoints(tmp_path / "other", True):
            assert reader.steps() == [1]
        first.save(2, arrays(2), TUNE, auc=0.5)
    with Checkpoints(tmp_path / "tag", is_writer=True) as second:
        assert second.steps() == [1, 2]


def test_a_killed_training_leaves_its_tag_free(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from hypertrack_jax.model.checkpoint import Checkpoints\n"
        "opened = Checkpoints(Path(sys.argv[1]), is_writer=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    status = subprocess.run([sys.executable, "-c", program, tmp_path / "tag"]).returncode
    assert status == -signal.SIGKILL and (tmp_path / "tag" / LOCK).is_file()
    with Checkpoints(tmp_path / "tag", is_writer=True) as checkpoints:
        assert checkpoints.steps() == []


def test_no_place_to_write_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        OSError, match=r"tag: checkpoints cannot be written .*choose another"
    ) as caught:
        Checkpoints(tmp_path / "file" / "tag", is_writer=True)
    assert "\n" not in str(caught.value)


def test_a_save_that_fails_is_one_sentence(checkpoints, monkeypatch):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._checkpointer, "save", no_space)
    with pytest.raises(OSError, match=r"step 1 cannot be saved .*No space.*make room") as caught:
        checkpoints.save(1, arrays(1), TUNE, auc=0.5)
    assert "\n" not in str(caught.value)
    assert checkpoints.steps() == []


def test_another_tune_is_refused_by_its_first_difference(tmp_path):
    parts = ("voxdyn", "network")
    require_same_tune(helix.TUNE, helix.TUNE, parts, tmp_path)
    other_optimizer = replace(helix.TUNE, optimizer=tune_5.TUNE.optimizer, name="other")
    require_same_tune(helix.TUNE, other_optimizer, parts, tmp_path)
    with pytest.raises(
        UserError, match=r"trained with tune helix, in which voxdyn.ncell is 16384, but 65536 is"
    ):
        require_same_tune(helix.TUNE, tune_5.TUNE, parts, tmp_path)
    with pytest.raises(
        UserError, match=r"network.node_features is 'cylindrical', but 'cartesian' is asked for"
    ):
        require_same_tune(helix.TUNE, tune_5.TUNE, ("network",), tmp_path)


def weights(scale=1.0, width=3):
    """Weights of two parts and statistics, all of which `scale` decides."""
    return {
        "params": {
            "edge": {"fusion": {"kernel": scale * jnp.arange(2.0 * width).reshape(2, width)}},
            "cluster": {"threshold": jnp.full((), scale)},
        },
        "batch_stats": {"fusion": {"mean": jnp.full(4, scale)}},
    }


def test_arrays_that_fit_are_taken_and_the_others_stay(checkpoints):
    saved = weights(2.0, width=5)
    saved["params"]["edge"]["former"] = {"bias": jnp.zeros(2)}
    checkpoints.save(3, saved | {"step": jnp.int32(3)}, TUNE, auc=0.5)
    checkpoints.save(4, weights(4.0) | {"step": jnp.int32(4)}, TUNE, auc=0.5)
    fitted = checkpoints.restore_fitting(weights(7.0), step=3)
    assert fitted.origin == "step 3 of tag"
    assert fitted.loaded == ["batch_stats/fusion/mean", "params/cluster/threshold"]
    assert fitted.skipped == ["params/edge/former/bias", "params/edge/fusion/kernel"]
    assert fitted.kept == ["params/edge/fusion/kernel"]
    expected = weights(2.0)
    expected["params"]["edge"] = weights(7.0)["params"]["edge"]
    assert_identical(fitted.arrays, expected)
    latest = checkpoints.restore_fitting({"params": weights(7.0)["params"]})
    assert (latest.origin, latest.skipped, latest.kept) == ("step 4 of tag", [], [])
    assert_identical(latest.arrays, {"params": weights(4.0)["params"]})


def test_the_first_version_had_the_weights_of_the_edge_predictor_alone(checkpoints, monkeypatch):
    now = weights(2.0)
    former = now | {"params": now["params"]["edge"], "opt_state": (jnp.zeros(2),)}
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 1)
    checkpoints.save(1, former, TUNE, auc=0.5)
    monkeypatch.undo()
    with pytest.raises(UserError, match="step 1 is not a checkpoint of this version"):
        checkpoints.describe()
    fitted = checkpoints.restore_fitting(weights(7.0))
    assert (fitted.skipped, fitted.kept) == ([], ["params/cluster/threshold"])
    expected = weights(2.0)
    expected["params"]["cluster"] = weights(7.0)["params"]["cluster"]
    assert_identical(fitted.arrays, expected)


def test_nothing_fits_into_another_model(checkpoints):
    checkpoints.save(1, arrays(1), TUNE, auc=0.5)
    fitted = checkpoints.restore_fitting(weights())
    assert (fitted.loaded, fitted.skipped) == ([], [])
    assert_identical(fitted.arrays, weights())


def test_weights_of_another_program_are_refused(checkpoints, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no checkpoint here"):
        checkpoints.restore_fitting(weights())
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 0)
    checkpoints.save(1, weights(), TUNE, auc=0.5)
    monkeypatch.undo()
    with pytest.raises(UserError, match="step 1 is not a checkpoint of this version"):
        checkpoints.restore_fitting(weights())


def test_what_an_interrupted_deletion_left_is_removed(tmp_path):
    with Checkpoints(tmp_path / "tag", is_writer=True) as checkpoints:
        for step, auc in ((1, 0.9), (2, 0.5), (3, 0.6)):
            checkpoints.save(step, arrays(step), TUNE, auc)
    # As a deletion of step 2 that came as far as this.
    for path in (checkpoints.directory / "2" / "metrics").iterdir():
        path.unlink()
    with Checkpoints(checkpoints.directory, is_writer=True) as again:
        assert_identical(again.restore(again.describe().step, arrays(0)), arrays(3))
        again.save(4, arrays(4), TUNE, auc=0.7)
        assert again.steps() == [1, 3, 4]


def parameters_of(number):
    """The arrays of a small network, each of them full of one number."""
    shapes = jax.eval_shape(partial(init_parameters, TUNE), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, number, leaf.dtype), shapes)


def trained(number):
    """A training state, with more in it than a model has."""
    rest = {"phase": jnp.int32(2), "opt_state": (jnp.zeros(3),)}
    return parameters_of(number)._asdict() | rest


def test_the_parameters_come_back_without_the_rest_of_the_state(checkpoints):
    checkpoints.save(1, trained(1), TUNE, auc=0.5)
    checkpoints.save(2, trained(2), TUNE, auc=0.5)
    with Checkpoints(checkpoints.directory) as again:
        parameters, phase = again.restore_parameters(1, TUNE)
    assert phase == 2
    assert_identical(parameters, parameters_of(1))


def test_parameters_of_another_network_are_refused(checkpoints):
    checkpoints.save(1, trained(1), TUNE, auc=0.5)
    other = replace(TUNE, network=replace(TUNE.network, edge_mlp_dims=(7, 6, 3)))
    with pytest.raises(UserError, match=r"does not hold the arrays of this network: .*edge_mlp"):
        checkpoints.restore_parameters(1, other)


def test_the_parameters_are_read_without_optimiser_and_training(checkpoints):
    checkpoints.save(1, trained(1), TUNE, auc=0.5)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hypertrack_jax.model.checkpoint import Checkpoints\n"
        "with Checkpoints(Path(sys.argv[1])) as checkpoints:\n"
        "    checkpoints.restore_parameters(1, checkpoints.describe(1).tune)\n"
        "print([name for name in sys.modules if name.startswith(('optax', 'hypertrack_jax.tr'))])\n"
    )
    command = [sys.executable, "-c", program, checkpoints.directory]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
