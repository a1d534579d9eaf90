"""The exported reconstruction, run by a process that knows nothing of this package."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from toy import helix_event
from toy_graph import SMALL_NETWORK
from toy_model import taking_all

from hypertrack_jax.model.parameters import init_parameters
from hypertrack_jax.reconstruction.export import export_reconstruction
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.tune import ClusterTune, Tune, VoxdynTune
from hypertrack_jax.voxdyn.fit import fit_voxdyn

EVENT = helix_event(0, num_particles=6)
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NETWORK = replace(
    SMALL_NETWORK,
    node_features="cylindrical",
    edge_features="helix",
    num_heads=1,
    num_attention_blocks=1,
)
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import jax
import numpy as np
from exported import load
reconstruct = load(sys.argv[2])
hits = np.load(sys.argv[3])
label, membership = reconstruct(hits)
np.savez(sys.argv[4], label=label, membership=membership)
for wrong in (np.tile(hits, (5, 1)), np.full((2, 3), np.nan)):
    try:
        reconstruct(wrong)
    except ValueError as error:
        print(error)
print(any(name.startswith("hypertrack") for name in sys.modules))
"""


@pytest.fixture(scope="module")
def model():
    events = [helix_event(1, num_particles=20, event_id=number) for number in range(3)]
    voxdyn = fit_voxdyn(events, 64, "hyper", num_iterations=2)
    tune = Tune("small", voxdyn=VoxdynTune(ncell=64), network=NETWORK)
    state = jax.jit(init_parameters, static_argnums=0)(tune, jax.random.key(0))
    fresh = Reconstructor(tune, voxdyn, taking_all(state.params), state.batch_stats)
    scored = fresh.with_cluster(ClusterTune(cluster="none"))(EVENT.position, with_edges=True)
    # In a gap: another program rounds in another way.
    rising = np.sort(scored.probability)[int(0.85 * len(scored.probability)) :]
    widest = int(np.argmax(np.diff(rising[: len(rising) * 2 // 3])))
    threshold = float(rising[widest : widest + 2].mean())
    return fresh.with_cluster(ClusterTune(edge_threshold=threshold))


def test_the_file_finds_the_same_tracks_without_this_package(model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    pytest.importorskip("flatbuffers", reason="an export needs flatbuffers")
    paths = [tmp_path / name for name in ("model.jaxexport", "hits.npy", "found.npz")]
    content = export_reconstruction(model, len(EVENT.position))
    assert jax.export.deserialize(bytearray(content)).platforms == ("cpu", "cuda")
    paths[0].write_bytes(content)
    # In another order than its own: the file has the canonical order inside.
    shuffled = np.random.default_rng(0).permutation(len(EVENT.position))
    np.save(paths[1], EVENT.position[shuffled])
    command = [sys.executable, "-c", PROGRAM, str(EXPERIMENTS), *map(str, paths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    paths[0].write_bytes(content[:-99] + b"x" + content[-98:])
    with pytest.raises(ValueError, match="damaged, or not of export"):
        importlib.import_module("exported").load(paths[0])
    expected = model(EVENT.position[shuffled])
    with np.load(paths[2]) as found:
        np.testing.assert_array_equal(found["label"], expected.hit_label)
        np.testing.assert_allclose(found["membership"], expected.membership, atol=1e-6)
    assert expected.hit_label.max() > 0
    too_large, not_finite, has_package = done.stdout.splitlines()
    assert too_large.startswith(f"an event of {5 * len(EVENT.position)} hits is too large for")
    assert not_finite == "a hit position is not finite; remove such hits."
    assert has_package == "False"


def test_an_event_that_exceeds_a_capacity_is_told_of(model):
    """By the flag that the loader looks at; the capacity for hits suffices."""
    pytest.importorskip("flatbuffers", reason="an export needs flatbuffers")
    small = export_reconstruction(model.with_cluster(ClusterTune(cluster="none")), 100)
    exported = jax.export.deserialize(bytearray(small))
    num_places = exported.in_avals[0].shape[0]
    crowd = np.tile(EVENT.position[:1], (num_places, 1))
    crowd += np.random.default_rng(0).normal(0, 1, crowd.shape).astype(np.float32)
    call = jax.jit(exported.call)
    assert not call(crowd, np.array(20, np.int32))["is_overflow"]
    assert call(crowd, np.array(num_places - 1, np.int32))["is_overflow"]


def test_a_clusterer_of_the_host_is_not_exported(model):
    with pytest.raises(ValueError, match="clusterer dbscan runs on the host"):
        export_reconstruction(model.with_cluster(ClusterTune(cluster="dbscan")), 100)
