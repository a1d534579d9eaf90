"""The scripts that take and give files of the published program."""

import numpy as np
import pytest
from published_files import random_content, write
from test_road import script


def test_a_published_model_comes_in_and_goes_out(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import jax

    from hypertrack_jax.model.parameters import init_parameters
    from hypertrack_jax.model.published_net import write_published_net
    from hypertrack_jax.tunes.tune_5 import TUNE

    shapes = jax.eval_shape(lambda: init_parameters(TUNE, jax.random.key(0)))
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(lambda leaf: rng.random(leaf.shape).astype("f4"), shapes)
    net = write_published_net(tmp_path / "net.pt", TUNE, parameters, 60)
    voxdyn = write(tmp_path / "voxdyn.pkl", random_content())
    arguments = (f"--net={net}", f"--voxdyn={voxdyn}", "--save_tag=published")

    done = script(tmp_path, "import_published", *arguments)
    assert done.returncode == 0, done.stderr
    assert "voxdyn_hyper_40.npz: 40 cells" in done.stdout
    assert "published: epoch 60" in done.stdout
    again = script(tmp_path, "import_published", *arguments)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "choose another name" in again.stderr
    other = script(tmp_path, "import_published", *arguments[:2], "--save_tag=other")
    assert other.returncode == 2
    assert "choose another --workdir" in other.stderr

    back = tmp_path / "back.pt"
    done = script(tmp_path, "export_published", "--read_tag=published", f"--output={back}")
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(path, weights_only=True) for path in (net, back))
    assert second["epoch"] == 60
    assert all(
        torch.allclose(first["model"][name], second["model"][name]) for name in first["model"]
    )
    assert first["model"].keys() == second["model"].keys()
