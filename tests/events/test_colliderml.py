"""ColliderML's Parquet tables, in the schema of its documentation."""

import sys

import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.events.colliderml import (
    list_colliderml_events,
    read_colliderml_events,
    write_colliderml_tracks,
)
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.events.submissions import read_submissions, submitted_label

arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

FIRST = 90_000
EVENTS = [helix_event(seed=5, num_particles=6, event_id=FIRST + number) for number in range(5)]


def hit_rows(events):
    """The table of hits; noise has a particle that is in no table."""
    rows = []
    for event in events:
        ids = np.append(event.particles.particle_id, 999_999_999)
        position = event.position.astype(np.float32)
        columns = {
            **{name: position[:, axis] for axis, name in enumerate("xyz")},
            **{f"true_{name}": position[:, axis] for axis, name in enumerate("xyz")},
            "time": np.zeros(len(position), np.float32),
            "particle_id": ids[event.hit_particle].astype(np.uint64),
            "cell_id": np.arange(len(position)).astype(np.uint64),
            "detector": np.ones(len(position), np.uint8),
            "volume_id": event.module[:, 0].astype(np.uint8),
            "layer_id": event.module[:, 1].astype(np.uint16),
            "surface_id": event.module[:, 2].astype(np.uint32),
        }
        rows.append({"event_id": event.event_id, **columns})
    return rows


def particle_rows(events):
    """The table of particles, with a photon before the others."""
    rows = []
    for event in events:
        particles = event.particles

        def with_photon(values):
            return np.concatenate([np.zeros((1, *values.shape[1:]), values.dtype), values])

        vertex, momentum = with_photon(particles.vertex), with_photon(particles.momentum)
        columns = {
            "particle_id": np.append(77, particles.particle_id).astype(np.uint64),
            "pdg_id": np.full(len(vertex), 13),
            "mass": np.full(len(vertex), 0.1, np.float32),
            "energy": np.ones(len(vertex), np.float32),
            "charge": with_photon(particles.charge).astype(np.float32),
            **{f"v{name}": vertex[:, axis] for axis, name in enumerate("xyz")},
            "time": np.zeros(len(vertex), np.float32),
            **{f"p{name}": momentum[:, axis] for axis, name in enumerate("xyz")},
            "vertex_primary": np.ones(len(vertex), np.uint16),
            "parent_id": np.where(np.arange(len(vertex)) == 2, 77, -1),
        }
        rows.append({"event_id": event.event_id, **columns})
    return rows


def write(directory, rows, name, file="train-00000-of-00001", rows_in_group=2):
    """Writes a shard where `colliderml download` puts it."""
    path = (
        directory
        / "CERN__ColliderML-Release-1"
        / f"ttbar_pu0_{name}"
        / "data"
        / f"ttbar_pu0_{name}"
        / f"{file}.parquet"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        key: arrow.array([row[key] for row in rows], arrow.uint32() if key == "event_id" else None)
        for key in rows[0]
    }
    parquet.write_table(arrow.table(columns), path, row_group_size=rows_in_group)
    return path


@pytest.fixture
def tables(tmp_path):
    """Hits in two shards; particles in one, in the other order."""
    write(tmp_path, hit_rows(EVENTS[:3]), "tracker_hits", "train-00000-of-00002")
    write(tmp_path, hit_rows(EVENTS[3:]), "tracker_hits", "train-00001-of-00002")
    write(tmp_path, particle_rows(EVENTS[::-1]), "particles")
    return tmp_path


def test_events_are_read_as_they_were_written(tables):
    assert list_colliderml_events(tables) == [event.event_id for event in EVENTS]
    found = list(read_colliderml_events(tables))
    assert [one.event.event_id for one in found] == [event.event_id for event in EVENTS]
    for (event, is_primary), expected in zip(found, EVENTS, strict=True):
        np.testing.assert_array_equal(event.position, expected.position)
        np.testing.assert_array_equal(event.hit_particle, expected.hit_particle)
        np.testing.assert_array_equal(event.module, expected.module)
        assert event.hit_id.tolist() == [*range(len(event.position))]
        assert event.hit_weight.sum() == pytest.approx(1)
        assert len(set(event.hit_weight[event.hit_particle != NOISE])) == 1
        for name, values in expected.particles._asdict().items():
            np.testing.assert_array_equal(getattr(event.particles, name), values, name)
        # Of the rows, 0 is the photon and 2 its child.
        assert is_primary.tolist() == [True, False, True, True, True, True]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (range(FIRST + 2), [0, 1]),
        (range(FIRST + 3, FIRST + 99), [3, 4]),
        ([FIRST + 4, FIRST + 1], [1, 4]),
    ],
)
def test_events_by_number(tables, wanted, expected):
    numbers = [one.event.event_id for one in read_colliderml_events(tables, wanted)]
    assert numbers == [FIRST + number for number in expected]


def test_an_empty_range_is_told(tables):
    with pytest.raises(UserError, match="none of these events is in it; it has 5, from 90000 to"):
        next(read_colliderml_events(tables, range(1, 3)))


def test_the_column_primary_counts_where_it_is(tmp_path):
    rows = particle_rows(EVENTS[:1])
    rows[0]["primary"] = np.arange(7) % 2 == 1
    write(tmp_path, hit_rows(EVENTS[:1]), "tracker_hits")
    write(tmp_path, rows, "particles")
    (found,) = read_colliderml_events(tmp_path)
    assert found.is_primary.tolist() == [True, False, True, False, True, False]


def test_names_from_0_are_raised_and_majority_names_are_known(tmp_path):
    hits, particles = hit_rows(EVENTS[:1]), particle_rows(EVENTS[:1])
    first = EVENTS[0].particles.particle_id[0]
    for rows in (hits, particles):
        ids = rows[0]["particle_id"]
        ids[ids == first] = 0
    hits[0]["majority_particle_id"] = hits[0].pop("particle_id")
    write(tmp_path, hits, "tracker_hits")
    write(tmp_path, particles, "particles")
    (found,) = read_colliderml_events(tmp_path)
    np.testing.assert_array_equal(found.event.hit_particle, EVENTS[0].hit_particle)
    expected = [1, *(EVENTS[0].particles.particle_id[1:] + 1)]
    assert found.event.particles.particle_id.tolist() == expected


def test_neutral_particles_with_hits_are_kept(tmp_path):
    particles = particle_rows(EVENTS[:1])
    particles[0]["charge"][3] = 0
    write(tmp_path, hit_rows(EVENTS[:1]), "tracker_hits")
    write(tmp_path, particles, "particles")
    (found,) = read_colliderml_events(tmp_path)
    np.testing.assert_array_equal(found.event.hit_particle, EVENTS[0].hit_particle)
    assert found.event.particles.charge[2] == 0


def changed(name, values):
    def change(hits, particles):
        rows = hits if name in hits[0] else particles
        rows[0][name] = values(rows[0][name])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hits, _: hits[0].pop("z"), "no column 'z'; expected a table of ColliderML"),
        (lambda hits, _: hits[0].pop("particle_id"), "no column 'majority_particle_id'"),
        (lambda _, particles: particles[0].pop("charge"), "no column 'charge'"),
        (changed("x", lambda x: np.where(np.arange(len(x)) == 2, np.inf, x)), "is not finite"),
        (changed("y", lambda y: y[:-1]), "columns of one event have different lengths"),
        (changed("x", lambda x: [*x[:-1].tolist(), None]), "a value is missing"),
        (changed("x", lambda x: x.astype(str).tolist()), "a column is of type"),
        (changed("charge", lambda q: q + 0.5), "a charge that is no whole number"),
        (changed("px", lambda p: p * np.nan), "a particle that is not finite"),
        (changed("vx", lambda v: v[:0]), "columns of one event have different lengths"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, change, message):
    hits, particles = hit_rows(EVENTS[:1]), particle_rows(EVENTS[:1])
    change(hits, particles)
    write(tmp_path, hits, "tracker_hits")
    write(tmp_path, particles, "particles")
    with pytest.raises(UserError, match=message):
        list(read_colliderml_events(tmp_path))


def test_events_without_particles_or_twice_and_missing_tables_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory of ColliderML's tables"):
        list_colliderml_events(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no Parquet files of tracker_hits in it"):
        list_colliderml_events(tmp_path)
    write(tmp_path, hit_rows(EVENTS), "tracker_hits")
    write(tmp_path, particle_rows(EVENTS[:3]), "particles")
    with pytest.raises(UserError, match=r"event 90003 has hits but no particles \(2 of 5"):
        next(read_colliderml_events(tmp_path))
    assert len(list(read_colliderml_events(tmp_path, range(FIRST + 3)))) == 3
    write(tmp_path, hit_rows(EVENTS[:1]), "tracker_hits", "train-00001-of-00001")
    with pytest.raises(UserError, match=r"event 90000 is in .*, too; name a directory"):
        list_colliderml_events(tmp_path)


def test_a_file_cut_short_is_refused(tables):
    path = next(tables.rglob("*tracker_hits/*.parquet"))
    whole = path.read_bytes()
    for share in (0, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match="damaged or not a table of ColliderML"):
            list(read_colliderml_events(tables))


def test_tracks_are_written_as_a_submission(tmp_path):
    labels = [np.where(event.hit_particle < 4, event.hit_particle, -1) for event in EVENTS]
    path = write_colliderml_tracks(tmp_path / "s.parquet", zip(EVENTS, labels, strict=True))
    table = parquet.read_table(path)
    assert table.column_names == ["event_id", "hit_id", "track_id"]
    numbers = np.concatenate(
        [np.full((label >= 0).sum(), e.event_id) for e, label in zip(EVENTS, labels, strict=True)]
    )
    np.testing.assert_array_equal(table["event_id"], numbers)
    np.testing.assert_array_equal(
        table["hit_id"],
        np.concatenate([e.hit_id[label >= 0] for e, label in zip(EVENTS, labels, strict=True)]),
    )
    np.testing.assert_array_equal(
        table["track_id"], np.concatenate([label[label >= 0] for label in labels])
    )
    submitted = read_submissions(path)
    assert list(submitted) == [event.event_id for event in EVENTS]
    for event, label in zip(EVENTS, labels, strict=True):
        # From 1 on: in the csv of others a hit of track 0 is in no track.
        found = submitted_label(submitted[event.event_id], event)
        np.testing.assert_array_equal(found, np.where(label >= 0, label + 1, -1))
    with pytest.raises(UserError, match="one whole number for each of its hits"):
        write_colliderml_tracks(path, [(EVENTS[0], labels[0][1:])])
    assert parquet.read_table(path).equals(table)


def test_a_submission_that_is_damaged_or_another_table_is_refused(tmp_path):
    path = write_colliderml_tracks(tmp_path / "s.parquet", [(EVENTS[0], EVENTS[0].hit_particle)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or not a table of ColliderML"):
        read_submissions(path)
    parquet.write_table(arrow.table({"event_id": [1], "hit_id": [1]}), path)
    with pytest.raises(UserError, match="has the columns event_id, hit_id; expected event_id, hi"):
        read_submissions(path)
    table = {"event_id": [1], "hit_id": [1], "track_id": [0.5]}
    parquet.write_table(arrow.table(table), path)
    with pytest.raises(UserError, match="a column is of type double"):
        read_submissions(path)


def test_missing_pyarrow_is_one_sentence(tables, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'hypertrack-jax\[colliderml\]'"):
        list_colliderml_events(tables)


def test_the_package_colliderml_reads_these_tables_and_scores_these_tracks(tables):
    package = pytest.importorskip("colliderml", reason="colliderml is not installed")
    from colliderml.polars import explode_event_table_pyarrow
    from colliderml.tasks.tracking import metrics

    found = package.core.loader.load_tables(
        {
            "data_dir": tables,
            "channels": "ttbar",
            "pileup": "pu0",
            "objects": ["tracker_hits", "particles"],
        }
    )
    truth = explode_event_table_pyarrow(found["tracker_hits"].to_arrow(), index_name="hit_id")
    events = [one.event for one in read_colliderml_events(tables)]
    for event in events:
        rows = truth.filter(arrow.compute.equal(truth["event_id"], event.event_id))
        assert rows["hit_id"].to_pylist() == event.hit_id.tolist()
        np.testing.assert_array_equal(rows["x"], event.position[:, 0])

    perfect = [event.hit_particle for event in events]
    path = write_colliderml_tracks(tables / "perfect.parquet", zip(events, perfect, strict=True))
    assert metrics.trackml_weighted_efficiency(parquet.read_table(path), truth) == 1

    # Particles 0 and 1 of each event become one track; only a particle of more hits is found.
    merged = [np.where(label == 1, 0, label) for label in perfect]
    path = write_colliderml_tracks(tables / "merged.parquet", zip(events, merged, strict=True))
    num_found = num_hits = 0
    for event in events:
        sizes = event.particles.num_hits
        num_found += sizes[2:].sum() + sizes[:2].max()
        num_hits += sizes.sum()
    found = metrics.trackml_weighted_efficiency(parquet.read_table(path), truth)
    assert found == pytest.approx(num_found / num_hits, abs=1e-6)
    assert metrics.fake_rate(parquet.read_table(path), truth) == 0
