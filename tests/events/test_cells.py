"""Clusters by hand, and cells in TrackML's files: beside hits, in zips, and wrong ones."""

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
from handmade import assert_same_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.cells import FiredCells, cluster_cells
from hypertrack_jax.events.event import choose_hits
from hypertrack_jax.events.modules import (
    find_modules,
    read_modules,
    write_detector_csv,
)
from hypertrack_jax.events.pileup import thin
from hypertrack_jax.events.sectors import draw_sector
from hypertrack_jax.events.trackml import read_event, write_event_csv

REAL = Path(__file__).parents[3] / "shared" / "data" / "trackml"
needs_real_event = pytest.mark.skipif(not REAL.is_dir(), reason="the real event is not here")

HITS = """hit_id,x,y,z,volume_id,layer_id,module_id
3,30,0,-5,8,2,1
4,0.1,0.2,600,9,4,12
7,1,2,3,9,4,12
"""
TRUTH = """hit_id,particle_id,tx,ty,tz,tpx,tpy,tpz,weight
3,5,0,0,0,0,0,0,0.5
4,5,0,0,0,0,0,0,0.5
7,0,0,0,0,0,0,0,0
"""
PARTICLES = "particle_id,vx,vy,vz,px,py,pz,q\n5,0,0,0,1,1,1,1\n"
# A staircase of three channels by two for hit 7, one cell for hit 3, none for hit 4.
CELLS = """hit_id,ch0,ch1,value
7,10,300,0.25
3,0,1279,0.5
7,11,300,0.125
7,12,299,0.0625
"""
# In the barrel u is along y, v along z; in the disk v is along x.
DETECTOR = """,volume_id,layer_id,module_id,cx,cy,cz,rot_xu,rot_xv,rot_xw,rot_yu,rot_yv,rot_yw,\
rot_zu,rot_zv,rot_zw,module_t,module_minhu,module_maxhu,module_hv,pitch_u,pitch_v
0,9,4,12,0,0,600,0,1,0,1,0,0,0,0,-1,0.15,8.4,8.4,36,0.05,0.05625
1,8,2,1,30,0,0,0,0,1,1,0,0,0,1,0,0.15,8.4,8.4,36,0.05,0.05625
"""
FILES = {"hits": HITS, "truth": TRUTH, "particles": PARTICLES, "cells": CELLS}


@pytest.fixture
def directory(tmp_path):
    source = tmp_path / "events"
    source.mkdir()
    for kind, text in FILES.items():
        (source / f"event000000007-{kind}.csv").write_text(text)
    (source / "detectors.csv").write_text(DETECTOR)
    return source


def test_clusters_by_hand(directory):
    cells = read_event(directory, 7).cells
    assert cells.extent.tolist() == [[1, 1], [0, 0], [3, 2]]
    assert cells.num_cells.tolist() == [1, 0, 3]
    assert cells.charge.tolist() == [0.5, 0, 0.4375]
    # Channels 10, 11, 12 and 300, 300, 299: covariance -1/3, variances 2/3 and 2/9.
    np.testing.assert_allclose(cells.slant, [0, 0, -np.sqrt(3) / 2], rtol=1e-6)
    # Of 336 channels along u and 1280 along v.
    assert cells.is_cut.tolist() == [[True, True], [False, False], [False, False]]


def test_a_cell_that_is_listed_twice_is_one_with_the_sum_of_both(directory):
    expected = read_event(directory, 7).cells
    halved = CELLS.replace("7,11,300,0.125\n", "7,11,300,0.0625\n") + "7,11,300,0.0625\n"
    (directory / "event000000007-cells.csv").write_text(halved)
    cells = read_event(directory, 7).cells
    for one, other in zip(cells, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_direction_in_channels_by_hand(directory):
    frame = read_event(directory, 7).cells.frame
    # In the barrel 0.15 mm are 3 channels along u, and charge drifts by 0.12 of them.
    along_u, along_v, normal = frame[0] @ np.array([2, 1, -4], np.float32)
    np.testing.assert_allclose(along_u / normal, 3 * (0.5 - 0.12), rtol=1e-6)
    np.testing.assert_allclose(along_v / normal, 0.15 / 0.05625 * -2, rtol=1e-6)
    # In a disk `module_t` is half of the thickness, and the field is along the way: no drift.
    along_u, along_v, normal = frame[2] @ np.array([0.1, 0.2, 2], np.float32)
    np.testing.assert_allclose(along_u / normal, -6 * 0.1, rtol=1e-6)
    np.testing.assert_allclose(along_v / normal, -0.3 / 0.05625 * 0.05, rtol=1e-6)
    assert normal == -2


def test_order_of_cells_says_nothing_and_large_channels_lose_nothing():
    rng = np.random.default_rng(0)
    hit = rng.integers(0, 40, 300)
    fired = FiredCells(hit, rng.integers(0, 9, (300, 2)), rng.uniform(size=300).astype(np.float32))
    frame = np.zeros((41, 3, 3), np.float32)
    num_channels = np.full((41, 2), 100)
    cells = cluster_cells(fired, frame, num_channels)
    for index in range(41):
        channel = fired.channel[hit == index]
        extent = np.ptp(channel, axis=0) + 1 if len(channel) else [0, 0]
        np.testing.assert_array_equal(cells.extent[index], extent)
        if len(channel) and np.ptp(channel, axis=0).all():
            expected = np.corrcoef(channel.T)[0, 1]
            np.testing.assert_allclose(cells.slant[index], expected, atol=1e-6)
    order = rng.permutation(300)
    far = FiredCells(hit[order], fired.channel[order] + 2**31 - 10, fired.value[order])
    for name, other in cluster_cells(far, frame, num_channels)._asdict().items():
        if name != "is_cut":
            np.testing.assert_allclose(getattr(cells, name), other, rtol=1e-6, atol=1e-6)
    none = FiredCells(hit[:0], fired.channel[:0], fired.value[:0])
    empty = cluster_cells(none, frame, num_channels)
    assert not empty.extent.any() and not empty.charge.any()


@pytest.mark.parametrize("is_gzipped", [False, True])
@pytest.mark.parametrize("place", ["directory", "in zip", "beside zip", "named"])
def test_cells_are_found_wherever_they_are(directory, place, is_gzipped):
    expected = read_event(directory, 7)
    if is_gzipped:
        for path in list(directory.iterdir()):
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    source, detector = directory, None
    if place == "named":
        detector = directory.parent / ("mine.gz" if is_gzipped else "mine.csv")
        next(directory.glob("detectors*")).rename(detector)
        assert read_event(source, 7).cells is None
    elif place != "directory":
        source = directory.parent / "train_1.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for path in directory.iterdir():
                if place == "in zip" or not path.name.startswith("detectors"):
                    archive.write(path, f"train_1/{path.name}")
        if place == "beside zip":
            assert read_event(source, 7).cells is None
            path = next(directory.glob("detectors*"))
            path.rename(source.parent / path.name)
    assert expected.cells is not None
    assert_same_event(read_event(source, 7, detector=detector), expected)


def test_without_cells_or_modules_there_are_none(directory):
    (directory / "detectors.csv").rename(directory / "modules.csv")
    assert read_event(directory, 7).cells is None
    (directory / "modules.csv").rename(directory / "detectors.csv")
    (directory / "event000000007-cells.csv").unlink()
    assert read_event(directory, 7).cells is None
    assert read_event(directory, 7, detector=directory / "detectors.csv").cells is None


def test_cells_need_no_truth(directory):
    expected = read_event(directory, 7).cells
    (directory / "event000000007-truth.csv").unlink()
    event = read_event(directory, 7)
    assert not event.has_truth
    for one, other in zip(event.cells, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_hits_that_are_left_out_take_their_cells_along(directory):
    path = directory / "event000000007-hits.csv"
    path.write_text(HITS.replace("3,30,0,-5", "3,nan,0,-5"))
    with pytest.warns(UserWarning):
        cells = read_event(directory, 7, lenient=True).cells
    assert cells.num_cells.tolist() == [0, 3]


def _changed(kind, old, new):
    def change(directory):
        path = directory / (f"event000000007-{kind}.csv" if kind in FILES else "detectors.csv")
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _changed("cells", "3,0,", "3,-1,"),
            r"cells\.csv: a cell of hit_id 3 .* -1, 1279; expected",
        ),
        (_changed("cells", "1279", "2147483648"), "hit_id 3 has the channels 0, 2147483648"),
        (_changed("cells", "3,0,", "8,0,"), r"cells\.csv: hit_id 8 is not among the hits"),
        (_changed("cells", "3,0,", "1,0,"), r"cells\.csv: hit_id 1 is not among the hits"),
        (_changed("cells", "0.5", "nan"), "value of hit_id 3 is nan"),
        (_changed("cells", "0.5", ""), "value is ''; expected a number"),
        (_changed("cells", ",0.5", ""), "line 3 has 3 fields where the header has 4"),
        (_changed("cells", "ch1", "ch2"), "no column 'ch1'"),
        (_changed("hits", "8,2,1\n", "8,2,2\n"), r"hits\.csv: hit_id 3 is on module 8-2-2, which"),
        (_changed("hits", "8,2,1\n", "8,2,-1\n"), "hit_id 3 is on module 8-2--1, which"),
        (_changed("hits", "8,2,1\n", f"{2**40},2,1\n"), "hit_id 3 is on module 1099511627776-2-1"),
        (_changed("detectors", "pitch_u", "pitch"), "detectors.csv: no column 'pitch_u'"),
        (_changed("detectors", "1,8,2,1", "1,9,4,12"), "module 9-4-12 occurs twice"),
        (_changed("detectors", "0.05,0.05625\n1", "0,0.05625\n1"), "module 9-4-12 .* not positive"),
        (_changed("detectors", "30,0,0,0,0,1,1", "30,0,0,0,1,1,1"), "module 8-2-1 .* right angles"),
        (
            lambda directory: (directory / "detectors.csv.gz").write_bytes(
                gzip.compress(DETECTOR.encode())
            ),
            "detectors.csv.gz lists the modules, too",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(directory, change, message):
    change(directory)
    with pytest.raises(UserError, match=message) as error:
        read_event(directory, 7)
    assert "\n" not in str(error.value)


def test_a_hit_without_cells_may_lie_on_a_module_that_is_not_listed(directory):
    expected = read_event(directory, 7).cells
    _changed("hits", "600,9,4,12", "600,9,4,13")(directory)
    cells = read_event(directory, 7).cells
    assert not cells.frame[1].any()
    np.testing.assert_array_equal(cells.frame[[0, 2]], expected.frame[[0, 2]])


def test_a_detector_that_is_named_has_to_be_there(directory):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv: no such file; expected TrackML's"):
        read_event(directory, 7, detector="nowhere.csv")


def test_the_writer_gives_files_that_the_reader_takes_back(directory, tmp_path):
    event = read_event(directory, 7)
    modules = read_modules("here", DETECTOR.encode())
    fired = FiredCells(
        np.array([2, 0, 2, 2]),
        np.array([[10, 300], [0, 1279], [11, 300], [12, 299]]),
        np.array([0.25, 0.5, 0.125, 0.0625], np.float32),
    )
    write_event_csv(tmp_path / "out", event, fired=fired, compress=True)
    path = write_detector_csv(tmp_path / "out", modules)
    assert_same_event(read_event(tmp_path / "out", 7), event)
    back = read_modules("there", path.read_bytes())
    for name, one, other in zip(modules._fields, modules, back, strict=True):
        np.testing.assert_array_equal(one, other, name)
    number = np.append(modules.number[[1, 0, 1]], [[8, 2, 5]], axis=0)
    assert find_modules(modules, number).tolist() == [1, 0, 1, -1]


@needs_real_event
def test_clusters_of_the_real_event_are_those_that_its_true_directions_make():
    with pytest.warns(UserWarning, match="the weights sum"):
        event = read_event(REAL, 1)
    truth = np.genfromtxt(
        gzip.open(REAL / "event000000001-truth.csv.gz", "rt"), delimiter=",", names=True
    )
    direction = np.stack([truth[name] for name in ("tpx", "tpy", "tpz")], axis=1)
    is_particle = event.hit_particle >= 0
    crossed = np.einsum("hij,hj->hi", event.cells.frame, direction)[is_particle]
    channels = np.abs(crossed[:, :2] / crossed[:, 2:])
    extent = event.cells.extent[is_particle]
    # The first channel is entered anywhere: on average one is added to those crossed.
    for volume in np.unique(event.module[:, 0]):
        here = event.module[is_particle, 0] == volume
        difference = np.clip(extent[here] - 1 - channels[here], -3, 3)
        np.testing.assert_allclose(difference.mean(axis=0), 0, atol=0.06)
        assert (np.abs(difference) < 1).mean() > 0.97
    # The slant knows the sign of the product of the slopes.
    product = crossed[:, 0] * crossed[:, 1]
    is_slanted = np.abs(event.cells.slant[is_particle]) > 0.5
    agrees = np.sign(product) == np.sign(event.cells.slant[is_particle])
    assert is_slanted.sum() > 500 and agrees[is_slanted].mean() > 0.98


@needs_real_event
def test_thinned_events_and_sectors_keep_each_hit_with_its_cells():
    with pytest.warns(UserWarning, match="the weights sum"):
        event = read_event(REAL, 1)
    event.cells.charge[:] = event.hit_id
    thinned = thin(event, 0.3, -1, np.random.default_rng(0))
    sector = draw_sector(event, 1000, np.random.default_rng(0)).event
    for part in (thinned, sector, choose_hits(event, np.arange(9)[::-1])):
        assert 0 < len(part.position) < len(event.position)
        np.testing.assert_array_equal(part.cells.charge, part.hit_id)
