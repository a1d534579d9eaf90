"""ACTS's csv files, as pyacts writes them and as older releases and traccc have them."""

import csv
import json

import numpy as np
import pytest

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.acts_csv import list_acts_events, read_acts_event, write_acts_tracks
from hypertrack_jax.events.event import NOISE

# Two of the modules in TrackML's list.
DETECTOR = """,volume_id,layer_id,module_id,cx,cy,cz,rot_xu,rot_xv,rot_xw,rot_yu,rot_yv,rot_yw,\
rot_zu,rot_zv,rot_zw,module_t,module_minhu,module_maxhu,module_hv,pitch_u,pitch_v
0,9,4,12,0,0,600,0,1,0,1,0,0,0,0,-1,0.15,8.4,8.4,36,0.05,0.05625
1,8,2,1,30,0,0,0,0,1,1,0,0,0,1,0,0.15,8.4,8.4,36,0.05,0.05625
"""
VOLUMES = (7, 8, 9, 12, 13, 14, 16, 17, 18)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two events of 20 muons, by ACTS's own writers."""
    acts = pytest.importorskip("acts", reason="pyacts is not installed")
    from acts.examples import simulation

    directory = tmp_path_factory.mktemp("acts")
    smearing = [{"index": axis, "mean": 0.0, "stddev": 0.02, "type": "Gauss"} for axis in (0, 1)]
    header = {"format-version": 0, "value-identifier": "digitization-configuration"}
    entries = [{"volume": volume, "value": {"smearing": smearing}} for volume in VOLUMES]
    config = directory / "digitization.json"
    config.write_text(json.dumps({"acts-geometry-hierarchy-map": header, "entries": entries}))
    quiet, unit = acts.logging.ERROR, acts.UnitConstants
    detector = acts.examples.GenericDetector(acts.examples.GenericDetector.Config(logLevel=quiet))
    geometry = detector.trackingGeometry()
    field = acts.ConstantBField(acts.Vector3(0, 0, 2 * unit.T))
    random = acts.examples.RandomNumbers(seed=3)
    chain = acts.examples.Sequencer(events=2, numThreads=1, logLevel=quiet, trackFpes=False)
    simulation.addParticleGun(
        chain,
        simulation.MomentumConfig(0.5 * unit.GeV, 5 * unit.GeV, transverse=True),
        simulation.EtaConfig(-2, 2, uniform=True),
        simulation.ParticleConfig(20, acts.PdgParticle.eMuon, randomizeCharge=True),
        rnd=random,
    )
    files = {"rnd": random, "outputDirCsv": directory, "logLevel": quiet}
    simulation.addFatras(chain, geometry, field, **files)
    simulation.addDigitization(chain, geometry, field, digiConfigFile=config, **files)
    chain.run()
    return directory


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_measurements_of_acts_are_hits(written):
    assert list_acts_events(written) == [0, 1]
    event = read_acts_event(written, 1)
    measured = table(written / "event000000001-measurements.csv")
    simulated = table(written / "event000000001-hits.csv")
    links = table(written / "event000000001-measurement-simhit-map.csv")
    assert len(event.hit_id) == len(measured) > 100
    names = [f"global_{axis}" for axis in "xyz"]
    expected = np.array([[row[name] for name in names] for row in measured], np.float32)
    np.testing.assert_array_equal(event.position, expected)
    of = {int(link["measurement_id"]): simulated[int(link["hit_id"])] for link in links}
    parts = ("pv", "sv", "part", "gen", "subpart")
    for hit in range(len(measured)):
        row = of[int(event.hit_id[hit])]
        pv, sv, part, gen, sub = (int(row[f"particle_id_{name}"]) for name in parts)
        name = pv << 52 | sv << 40 | part << 24 | gen << 16 | sub
        assert event.particles.particle_id[event.hit_particle[hit]] == name
        true = np.array([row["tx"], row["ty"], row["tz"]], float)
        assert np.abs(event.position[hit] - true).max() < 0.2
        geometry = int(row["geometry_id"])
        module = [geometry >> 56, geometry >> 36 & 0xFFF, geometry >> 8 & 0xFFFFF]
        assert event.module[hit].tolist() == module
        assert module[0] in VOLUMES
    particles = event.particles
    assert (np.abs(particles.charge) == 1).sum() == 20
    assert particles.num_hits.sum() == len(measured)
    pt = np.hypot(*particles.momentum[:, :2].T)
    assert (pt[particles.num_hits > 5] > 0.4).all()
    assert event.hit_weight.sum() == pytest.approx(1)


def test_without_measurements_the_simulated_hits_are_hits(written, tmp_path):
    for name in ("hits", "particles_simulated"):
        file = f"event000000000-{name}.csv"
        (tmp_path / file).write_bytes((written / file).read_bytes())
    event, rows = read_acts_event(tmp_path, 0), table(tmp_path / "event000000000-hits.csv")
    assert event.hit_id.tolist() == [*range(len(rows))]
    expected = np.array([[row[f"t{axis}"] for axis in "xyz"] for row in rows], np.float32)
    np.testing.assert_array_equal(event.position, expected)


HITS = """particle_id,geometry_id,tx,ty,tz,tt,index
4503599644147712,1152921779484754176,1.5,2.5,3.5,0,0
4503599660924928,1152921779484754432,10,20,30,0,0
4503599644147712,1224979236083728640,4,5,6,0,1
"""
PARTICLES = """particle_id,particle_type,process,vx,vy,vz,vt,px,py,pz,m,q
4503599660924928,11,0,0.5,0.25,-8,0,1,2,3,0,-1
4503599644147712,13,0,0,0,7,0,-1,0.5,0,0.1,1
"""
MEASUREMENTS = """measurement_id,geometry_id,local_key,local0,local1
0,1224979236083728640,6,0,0
5,1152921779484754176,6,0,0
"""
# Volume 8, layer 2, sensitive 1; volume 9, layer 4, sensitive 12.
_ONE, _TWO = (8 << 56) + (2 << 36) + (1 << 8), (9 << 56) + (4 << 36) + (12 << 8)
MEASURED = f"""measurement_id,geometry_id,global_x,global_y,global_z
9,{_ONE},1,2,3
0,{_TWO},4,5,6
"""
CELLS = f"""geometry_id,measurement_id,channel0,channel1,timestamp,value
{_TWO},0,10,300,0,0.25
{_ONE},9,0,1279,0,0.5
{_TWO},0,12,299,0,0.5
"""
LINKS = """measurement_id,hit_id
5,1
5,0
0,2
"""


def write(directory, **changes):
    """An event of an older release."""
    files = {"hits": HITS, "particles_initial": PARTICLES}
    files |= {
        name.replace("measurement_simhit", "measurement-simhit").replace("_map", "-map"): text
        for name, text in changes.items()
    }
    for name, text in files.items():
        if text is not None:
            (directory / f"event000000007-{name}.csv").write_text(text)
    return directory


def test_an_event_of_an_older_release(tmp_path):
    event = read_acts_event(write(tmp_path), 7)
    assert event.event_id == 7
    assert event.position.tolist() == [[1.5, 2.5, 3.5], [10, 20, 30], [4, 5, 6]]
    assert event.hit_particle.tolist() == [1, 0, 1]
    assert event.particles.particle_id.tolist() == [4503599660924928, 4503599644147712]
    assert event.particles.charge.tolist() == [-1, 1]
    assert event.particles.vertex[0].tolist() == [0.5, 0.25, -8]
    assert event.particles.momentum[1].tolist() == [-1, 0.5, 0]
    assert event.particles.num_hits.tolist() == [1, 2]
    assert event.hit_weight.tolist() == [1 / 3] * 3
    assert event.module.tolist() == [[16, 4, 1], [16, 4, 2], [17, 2, 1]]


def test_measurements_without_global_positions_take_true_ones(tmp_path):
    write(tmp_path, measurements=MEASUREMENTS, measurement_simhit_map=LINKS)
    with pytest.warns(UserWarning, match="no columns global_x, .*; true positions are taken"):
        event = read_acts_event(tmp_path, 7)
    assert event.hit_id.tolist() == [0, 5]
    assert event.position.tolist() == [[4, 5, 6], [10, 20, 30]]
    # Measurement 5 is of two simulated hits, and of the first one's particle.
    assert event.hit_particle.tolist() == [1, 0]


def test_a_measurement_of_no_simulated_hit_is_noise(tmp_path):
    header = "measurement_id,geometry_id,global_x,global_y,global_z\n"
    rows = "9,1152921779484754176,1,2,3\n0,1152921779484754176,4,5,6\n"
    write(tmp_path, measurements=header + rows, measurement_simhit_map=LINKS)
    event = read_acts_event(tmp_path, 7)
    assert event.hit_particle.tolist() == [NOISE, 1]
    assert event.hit_weight.tolist() == [0, 1]
    assert event.position.tolist() == [[1, 2, 3], [4, 5, 6]]
    write(tmp_path, measurements=header + rows, measurement_simhit_map=LINKS.split("\n")[0])
    assert read_acts_event(tmp_path, 7).hit_particle.tolist() == [NOISE, NOISE]


def test_cells_where_the_modules_are_known(tmp_path):
    write(tmp_path, measurements=MEASURED, measurement_simhit_map=LINKS, cells=CELLS)
    detector = tmp_path / "detectors.csv"
    detector.write_text(DETECTOR)
    assert read_acts_event(tmp_path, 7).cells is None
    found = read_acts_event(tmp_path, 7, detector=detector).cells
    assert found.extent.tolist() == [[1, 1], [3, 2]]
    assert found.charge.tolist() == [0.5, 0.75]
    # Of 336 channels along u and 1280 along v.
    assert found.is_cut.tolist() == [[True, True], [False, False]]
    older = CELLS.replace("measurement_id", "hit_id")
    write(tmp_path, cells=older)
    again = read_acts_event(tmp_path, 7, detector=detector).cells
    np.testing.assert_array_equal(again.extent, found.extent)
    for text, told in (
        (CELLS.replace(",9,0,", ",8,0,"), "measurement_id 8 is not among the hits"),
        (CELLS.replace("measurement_id", "id"), "neither the column measurement_id nor hit_id"),
        (CELLS.replace("channel0", "cannel0"), "no column 'channel0'"),
    ):
        write(tmp_path, cells=text)
        with pytest.raises(UserError, match=told):
            read_acts_event(tmp_path, 7, detector=detector)


def test_measured_hits_with_a_file_of_truth(tmp_path):
    hits = (
        "hit_id,geometry_id,x,y,z,t\n9,1152921779484754176,1,2,3,0\n4,1152921779484754432,4,5,6,0\n"
    )
    hits += "7,1152921779484754432,7,8,9,0\n"
    rows = HITS.strip().split("\n")
    # Of hit 4 there are two particles, the first one counts; hit 7 is noise.
    truth = [f"hit_id,{rows[0]}", f"4,{rows[2]}", f"9,{rows[1]}", f"4,{rows[3]}"]
    event = read_acts_event(write(tmp_path, hits=hits, truth="\n".join(truth)), 7)
    assert event.hit_id.tolist() == [9, 4, 7]
    assert event.position.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert event.hit_particle.tolist() == [1, 0, NOISE]
    assert event.module[0].tolist() == [16, 4, 1]
    with pytest.raises(UserError, match=r"truth\.csv: the particle \(77\) is not in"):
        changed = "\n".join(truth).replace("4503599660924928", "77")
        read_acts_event(write(tmp_path, hits=hits, truth=changed), 7)


def test_names_that_need_more_bits_become_row_numbers(tmp_path):
    names = "particle_id_pv,particle_id_sv,particle_id_part,particle_id_gen,particle_id_subpart"
    hits = f"{names},geometry_id,tx,ty,tz\n1,0,2,0,70000,0,1,2,3\n1,0,2,0,0,0,4,5,6\n"
    particles = (
        f"{names},vx,vy,vz,px,py,pz,q\n1,0,2,0,0,0,0,0,1,1,1,1\n1,0,2,0,70000,0,0,0,1,1,1,1\n"
    )
    event = read_acts_event(write(tmp_path, hits=hits, particles_initial=particles), 7)
    assert event.hit_particle.tolist() == [1, 0]
    assert event.particles.particle_id.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hits": HITS.replace("tx", "x")}, r"hits\.csv: no column 'tx' .* ACTS's csv format"),
        ({"hits": HITS.replace("1.5", "nan")}, "which is not finite"),
        ({"hits": HITS.split("\n")[0]}, "has no rows"),
        ({"hits": HITS.replace("particle_id", "barcode")}, "has neither the column particle_id"),
        ({"hits": HITS.replace("4503599660924928", "77")}, r"the particle \(77\) is not in"),
        ({"particles_initial": PARTICLES.replace("60924928", "44147712")}, "occurs twice"),
        ({"particles_initial": PARTICLES.replace(",-1\n", ",-0.5\n")}, "whole number of charges"),
        (
            {"measurements": MEASUREMENTS, "measurement_simhit_map": LINKS.replace("5,1", "5,3")},
            "hit_id 3 is no row of the 3 simulated hits",
        ),
        (
            {"measurements": MEASUREMENTS, "measurement_simhit_map": LINKS.replace("0,2", "1,2")},
            "measurement 0 has neither a global position nor",
        ),
    ],
)
def test_what_is_wrong_is_told(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_acts_event(write(tmp_path, **changes), 7)


@pytest.mark.parametrize("name", ["hits", "particles_initial", "measurement_simhit_map"])
def test_a_missing_file_is_told(tmp_path, name):
    files = {"measurements": MEASUREMENTS, "measurement_simhit_map": LINKS, name: None}
    told = name.replace("_initial", "").replace("_", "-")
    with pytest.raises(FileNotFoundError, match=f"no event000000007-{told}.csv"):
        read_acts_event(write(tmp_path, **files), 7)


def test_tracks_are_written_in_the_columns_of_acts(tmp_path):
    event = read_acts_event(write(tmp_path), 7)
    path = write_acts_tracks(tmp_path / "tracks.csv", event, np.array([3, 3, 0]))
    first, second = table(path)
    assert first["Measurements_ID"] == "[2,]"
    assert second["Measurements_ID"] == "[0,1,]"
    assert (first["nMeasurements"], second["nMeasurements"]) == ("1", "2")
    assert (first["truthMatchProbability"], second["truthMatchProbability"]) == ("1", "0.5")
    # The second has one hit of each particle; the one that is listed first counts.
    assert first["particleId"] == "vp=1|vs=0|p=1|g=0|sp=0"
    assert second["particleId"] == "vp=1|vs=0|p=2|g=0|sp=0"
    assert (first["good/duplicate/fake"], second["good/duplicate/fake"]) == ("good", "good")
    with pytest.raises(UserError, match="one whole number for each of the 3 hits"):
        write_acts_tracks(path, event, np.array([0, 1]))


def test_types_of_tracks(tmp_path):
    hits = (
        HITS.split("\n")[0]
        + "\n"
        + "4503599644147712,0,1,2,3,0,0\n" * 5
        + "4503599660924928,0,1,2,3,0,0\n" * 2
    )
    event = read_acts_event(write(tmp_path, hits=hits), 7)
    event = event._replace(hit_particle=np.array([1, 1, 1, 1, 1, NOISE, 0], np.int32))
    path = write_acts_tracks(tmp_path / "t.csv", event, np.array([0, 0, 1, 1, 1, 2, -1]))
    kinds = [row["good/duplicate/fake"] for row in table(path)]
    assert kinds == ["duplicate", "good", "fake"]
    assert table(path)[2]["particleId"] == "vp=0|vs=0|p=0|g=0|sp=0"
    event = event._replace(has_truth=False)
    write_acts_tracks(path, event, np.full(7, -1))
    assert table(path) == []
