"""Weights of the published PyTorch program: read as they are meant, and written the same."""

import os
import pickle
import sys
from collections import OrderedDict
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import (
    load_reference,
    reference_graph,
    reference_transformer,
    reference_variables,
)
from published_files import random_content, write

from hypertrack_jax.clustering.transformer import THRESHOLD, TRANSFORMER
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.model.parameters import CLUSTER, EDGE, init_parameters
from hypertrack_jax.model.published_net import (
    published_parameters,
    published_state,
    read_published_net,
    save_as_checkpoint,
    write_published_net,
)
from hypertrack_jax.networks.edge_predictor import EdgePredictor
from hypertrack_jax.networks.set_transformer import membership_logit
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.load import load_tune
from hypertrack_jax.tunes.tune import Tune, VoxdynTune
from hypertrack_jax.tunes.tune_5 import TUNE
from hypertrack_jax.voxdyn.published_voxdyn import read_published_voxdyn
from hypertrack_jax.voxdyn.storage import save_voxdyn, voxdyn_path


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture(scope="module")
def state():
    """The arrays of a random network under their published names."""
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(partial(init_parameters, TUNE), jax.random.key(0))
    return published_state(
        jax.tree.map(lambda leaf: rng.random(leaf.shape).astype(np.float32), shapes)
    )


def write_net(torch, path, state, epoch=7, **more):
    """Writes a file exactly as the published program does."""
    tensors = OrderedDict((name, torch.from_numpy(np.array(a))) for name, a in state.items())
    metrics = {"AUC": np.float64(0.9), "trn": {"loss": [np.float32(1)], "all": np.ones(3)}}
    torch.save({"epoch": epoch, "model": tensors, "metrics": metrics, **more}, path)
    return path


def test_the_model_computes_what_the_published_network_did(torch, tmp_path):
    reference = load_reference()
    names = [name for name in reference if name.startswith("param/")]
    published = {
        name.removeprefix("param/"): reference[name].astype("f4")
        if reference[name].dtype.kind == "f"
        else reference[name]
        for name in names
    }
    net = read_published_net(write_net(torch, tmp_path / "net.pt", published))
    voxdyn = read_published_voxdyn(write(tmp_path / "v.pkl", random_content()))
    tune = Tune(**{**vars(TUNE), "voxdyn": VoxdynTune(ncell=40)})
    save_voxdyn(voxdyn_path(tmp_path, "hyper", 40), voxdyn)
    save_as_checkpoint(tmp_path / "imported", tune, net, voxdyn)

    model = Reconstructor.load("imported", tmp_path)
    assert model.tune == tune
    assert model.tune.network == load_tune("tune-5").network
    expected = reference_variables(reference, "float32")
    transformer = reference_transformer(reference, "float32")
    jax.tree.map(np.testing.assert_array_equal, model.params[EDGE], expected["params"])
    jax.tree.map(np.testing.assert_array_equal, model.batch_stats, expected["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, model.params[CLUSTER][TRANSFORMER], transformer)
    assert float(model.params[CLUSTER][THRESHOLD]) == 0

    graph = reference_graph(reference, "float32")
    variables = {"params": model.params[EDGE], "batch_stats": model.batch_stats}
    apply = jax.jit(EdgePredictor(tune.network).apply, static_argnums=(2, 3))
    edges = apply(variables, graph, False, jnp.dtype("float32"))
    assert_near(edges.logit, reference["out/edge_logit_eval"])
    token = np.concatenate([reference["out/z_eval"], reference["x"]], axis=1).astype("f4")
    mask, pivots = reference["token_mask"], token[reference["pivot_hit"]]
    found = jax.jit(membership_logit, static_argnums=(0, 6))(
        tune.network,
        model.params[CLUSTER][TRANSFORMER],
        token[reference["token_hit"]],
        mask,
        pivots,
        np.ones(pivots.shape[:2], bool),
        jnp.dtype("float32"),
    )
    assert_near(np.asarray(found)[mask], reference["out/cluster_logit"][mask])


def assert_near(found, expected):
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_names_are_those_of_the_published_network():
    reference = load_reference()
    published = {
        name.removeprefix("param/"): value
        for name, value in reference.items()
        if name.startswith("param/")
    }
    state = published_state(published_parameters(published, "here"))
    assert state.keys() == published.keys()
    for name, value in state.items():
        assert value.shape == published[name].shape
        if name.endswith("num_batches_tracked"):
            assert value == 0
        else:
            np.testing.assert_allclose(value, published[name], rtol=1e-12)


def test_what_is_written_is_read_back(torch, tmp_path, state):
    state = {**state, "thr": np.array([0.3], np.float32)}
    parameters = published_parameters(state, "here")
    assert float(parameters.params[CLUSTER][THRESHOLD]) == pytest.approx(np.log(0.3 / 0.7))
    path = write_published_net(tmp_path / "net.pt", TUNE, parameters, 12)
    found = read_published_net(path)
    assert found.epoch == 12
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6),
        found.parameters,
        parameters,
    )
    content = torch.load(path, weights_only=True)
    assert content["metrics"] == {}
    assert content["model"].keys() == state.keys()


def test_another_network_is_not_written(torch, tmp_path, state):
    with pytest.raises(UserError, match="network of tune helix is not that of tune-5"):
        write_published_net(
            tmp_path / "net.pt", load_tune("helix"), published_parameters(state, ""), 1
        )


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "thr"), "lacks thr; expected the weights of the published network"),
        (lambda s: {**s, "extra.weight": np.ones(3)}, "has the unknown extra.weight; expected"),
        (
            lambda s: {**s, "mlp_2pt_edx.0.0.weight": np.ones((30, 32), np.float32)},
            r"mlp_2pt_edx.0.0.weight has the shape \(30, 32\), which makes a network of another",
        ),
        (
            lambda s: {**s, "mlp_2pt_edx.2.bias": np.full(1, np.nan, np.float32)},
            "mlp_2pt_edx.2.bias holds values that are no finite numbers",
        ),
        (
            lambda s: {**s, "mlp_2pt_edx.2.bias": np.ones(1, np.int64)},
            "mlp_2pt_edx.2.bias holds values that are no finite numbers",
        ),
    ],
)
def test_another_state_is_refused(torch, tmp_path, state, change, message):
    with pytest.raises(UserError, match=message):
        read_published_net(write_net(torch, tmp_path / "net.pt", change(state)))


class Runs:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_hostile_weights_are_refused_before_anything_runs(torch, tmp_path, state):
    mark = tmp_path / "was here"
    path = write_net(torch, tmp_path / "net.pt", state, more=Runs(f"touch '{mark}'"))
    with pytest.raises(UserError, match="it holds other objects than weights"):
        read_published_net(path)
    path.write_bytes(pickle.dumps(Runs(f"touch '{mark}'")))
    with pytest.raises(UserError, match="damaged, or not weights"):
        read_published_net(path)
    assert not mark.exists()


def test_missing_and_damaged_files_are_told(torch, tmp_path, state):
    path = tmp_path / "net.pt"
    with pytest.raises(FileNotFoundError, match=r"expected model_net_epoch_N\.pt"):
        read_published_net(path)
    whole = write_net(torch, path, state).read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="damaged, or not weights of the published program"):
            read_published_net(path)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(UserError, match=r"the checksum of .* is wrong"):
        read_published_net(path)
    for content in ([1], {"epoch": 1}, {"epoch": -1, "model": {}}, {"epoch": 1, "model": [2]}):
        torch.save(content, path)
        with pytest.raises(UserError, match="damaged, or not weights of the published program"):
            read_published_net(path)


def test_missing_torch_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / "net.pt"
    path.touch()
    with pytest.raises(MissingPackageError, match=r"pip install 'hypertrack-jax\[published\]'"):
        read_published_net(path)
