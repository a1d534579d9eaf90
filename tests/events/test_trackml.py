"""TrackML files: what is read, what is refused, and what comes back from the writer."""

import gzip
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from handmade import assert_same_event, random_event

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.events.store import load_event, save_event
from hypertrack_jax.events.trackml import (
    list_event_ids,
    read_event,
    write_event_csv,
    write_submission,
)
from hypertrack_jax.files import replace_file

REAL = Path(__file__).parents[3] / "shared" / "data" / "trackml"

# Three hits of particle 2^59 + 1, one of 2^59 + 2, one of noise; the truth in another order.
HITS = """hit_id,x,y,z,volume_id,layer_id,module_id
3,-76.566,-11.3673,-1502.5,7,2,1
4,0.1,0.2,0.3,8,4,12
7,1,2,3,8,4,13
9,1e-3,2,3,8,6,1
20,5,6,7,9,2,108
"""
TRUTH = """hit_id,particle_id,tx,ty,tz,tpx,tpy,tpz,weight
20,576460752303423489,0,0,0,0,0,0,0.25
3,576460752303423489,0,0,0,0,0,0,0.25
9,576460752303423490,0,0,0,0,0,0,0.125
4,0,0,0,0,0,0,0,0.0
7,576460752303423489,0,0,0,0,0,0,0.375
"""
PARTICLES = """particle_id,particle_type,vx,vy,vz,px,py,pz,q,nhits
576460752303423490,211,0.1,0.2,0.3,1.5,2.5,3.5,1,99
576460752303423999,211,0,0,0,1,1,1,-1,99
576460752303423489,-211,1,2,3,4,5,6,-1,99
"""
FILES = {"hits": HITS, "truth": TRUTH, "particles": PARTICLES}


@pytest.fixture
def directory(tmp_path):
    for kind, text in FILES.items():
        (tmp_path / f"event000000007-{kind}.csv").write_text(text)
    return tmp_path


def _change(directory, kind, old, new):
    path = directory / f"event000000007-{kind}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_every_column_arrives(directory):
    event = read_event(directory, 7)
    assert event.event_id == 7 and event.has_truth
    assert event.hit_id.tolist() == [3, 4, 7, 9, 20]
    assert event.position.dtype == np.float32
    assert event.position[0].tolist() == np.float32([-76.566, -11.3673, -1502.5]).tolist()
    assert event.module.tolist() == [[7, 2, 1], [8, 4, 12], [8, 4, 13], [8, 6, 1], [9, 2, 108]]
    assert event.hit_particle.tolist() == [2, NOISE, 2, 0, 2]
    assert event.hit_weight.tolist() == [0.25, 0, 0.375, 0.125, 0.25]
    particles = event.particles
    assert particles.particle_id.tolist() == [2**59 + 2, 2**59 + 511, 2**59 + 1]
    assert particles.vertex[0].tolist() == np.float32([0.1, 0.2, 0.3]).tolist()
    assert particles.momentum[0].tolist() == [1.5, 2.5, 3.5]
    assert particles.charge.tolist() == [1, -1, -1]
    # Counted, not read; a particle without hits stays.
    assert particles.num_hits.tolist() == [1, 0, 3]


def test_columns_are_found_by_name(directory):
    expected = read_event(directory, 7)
    for kind, text in FILES.items():
        rows = [line.split(",")[::-1] for line in text.splitlines()]
        reversed_text = "\r\n".join(",".join(row) for row in rows) + "\r\n"
        (directory / f"event000000007-{kind}.csv").write_text("\ufeff" + reversed_text, newline="")
    assert_same_event(read_event(directory, 7), expected)


def test_weights_that_sum_to_one_are_kept_and_others_scaled(directory):
    _change(directory, "truth", "0.375\n", "0.375001\n")
    assert read_event(directory, 7).hit_weight[2] == 0.375001
    _change(directory, "truth", "0.375001\n", "0.125\n")
    with pytest.warns(UserWarning, match=r"truth\.csv: the weights sum to 0\.75 instead of 1"):
        weight = read_event(directory, 7).hit_weight
    np.testing.assert_allclose(weight, np.array([0.25, 0, 0.125, 0.125, 0.25]) / 0.75, rtol=1e-15)


def test_an_event_without_truth(directory):
    (directory / "event000000007-truth.csv").unlink()
    event = read_event(directory, 7)
    assert not event.has_truth
    assert event.hit_particle.tolist() == [NOISE] * 5
    assert event.hit_weight.tolist() == [0.0] * 5
    assert len(event.particles.particle_id) == 0


def _gzip_all(directory):
    for path in list(directory.iterdir()):
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def _zip_all(directory, folder, compression=zipfile.ZIP_DEFLATED):
    path = directory / "events.zip"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(directory.glob("event*.csv*")):
            archive.write(file, folder + file.name)
            file.unlink()
        archive.writestr("__MACOSX/._event000000007-hits.csv", b"\0")
    return path


@pytest.mark.parametrize("is_gzipped", [False, True])
@pytest.mark.parametrize("folder", [None, "", "train_1/"])
def test_a_directory_or_zip_plain_or_gzipped(directory, folder, is_gzipped):
    expected = read_event(directory, 7)
    if is_gzipped:
        _gzip_all(directory)
    source = directory if folder is None else _zip_all(directory, folder)
    assert_same_event(read_event(source, 7), expected)
    assert list_event_ids(source) == [7]


def test_events_are_listed_in_order(directory):
    for name in (
        "event000021110-hits.csv.gz",
        "event000001000-hits.csv",
        "event000000008-truth.csv",
    ):
        (directory / name).touch()
    assert list_event_ids(directory) == [7, 1000, 21110]


def test_two_files_for_one_thing_are_refused(directory):
    shutil.copy(directory / "event000000007-hits.csv", directory / "event000000007-hits.csv.gz")
    with pytest.raises(ValueError, match="holds the hits of the same event; remove one"):
        read_event(directory, 7)


def test_what_is_not_there_is_named(directory):
    with pytest.raises(FileNotFoundError, match=r"no event000000008-hits\.csv or \.csv\.gz"):
        read_event(directory, 8)
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory or zip"):
        list_event_ids(directory / "nowhere")
    (directory / "event000000007-particles.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"truth\.csv: there is truth, but no particles file"
    ):
        read_event(directory, 7)


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("hits", "volume_id", "volume", "no column 'volume_id' among hit_id, x, y, z, volume,"),
        ("truth", "weight", "w", "no column 'weight'"),
        ("particles", "vz", "v", "no column 'vz'"),
        ("hits", "-11.3673", "nan", "y of hit_id 3 is nan, which is not finite"),
        ("hits", "1e-3", "-inf", "x of hit_id 9 is -inf, which is not finite"),
        ("hits", "1e-3", "1e39", "x of hit_id 9 is inf, which is not finite"),
        ("truth", "0.375\n", "nan\n", "weight of hit_id 7 is nan, which is not finite"),
        ("truth", "0.375\n", "-0.375\n", "weight -0.375 is negative"),
        ("particles", "2.5", "inf", f"py of particle_id {2**59 + 2} is inf, which is not finite"),
        ("hits", "\n4,", "\n3,", "hit_id 3 occurs more than once"),
        ("truth", "\n4,", "\n3,", "hit_id 3 occurs more than once"),
        ("particles", "3999", "3489", f"particle_id {2**59 + 1} occurs more than once"),
        ("particles", "576460752303423999", "0", "particle_id 0 is the name of noise"),
        ("truth", "\n4,", "\n5,", r"not those of event000000007-hits\.csv"),
        ("truth", "4,0,0,0,0,0,0,0,0.0\n", "", r"not those of event000000007-hits\.csv"),
        ("truth", TRUTH[-10:], TRUTH[-10:] + "21,0,0,0,0,0,0,0,0\n", "not those of"),
        (
            "truth",
            "423490",
            "423491",
            r"576460752303423491 is not in event000000007-particles\.csv",
        ),
        ("hits", "1e-3", "one", "line 5: x is 'one'; expected a number: correct"),
        ("hits", "1e-3", "", "line 5: x is ''; expected a number:"),
        ("hits", "9,1e-3", "9.5,1e-3", "line 5: hit_id is '9.5'; expected a whole number of 64"),
        ("hits", ",9,2,108\n", ",9", "line 6 has 5 fields where the header has 7; correct"),
        ("hits", "4,0.1", "4,0,1", "line 3 has 8 fields where the header has 7"),
        ("hits", "\n4,", "\n\n\n4,0,", "line 5 has 8 fields where the header has 7"),
        ("particles", "999,211,", "999,", "line 3 has 9 fields where the header has 10"),
        ("hits", "layer_id", "x", "the column 'x' occurs twice"),
        ("hits", "\n4,", "\n9223372036854775808,", "hit_id is '9223372036854775808'; expected a"),
        ("hits", "2,108", "2,1_08", "line 6: module_id is '1_08'; expected a whole number"),
        ("truth", "\n4,0,", "\n4,18446744073709551616,", "particle_id is '18446744073709551616'"),
        (
            "particles",
            "-1,99\n5",
            "-0.5,99\n5",
            f"q of particle_id {2**59 + 511} is -0.5; ",
        ),
        ("particles", "-1,99\n5", "-1,x\n5", "line 3: nhits is 'x'; expected a number"),
        ("particles", "-1,99\n5", "-1,inf\n5", "nhits of particle_id .* is inf, which is not"),
        ("particles", "particle_type", "nhits", "the column 'nhits' occurs twice"),
        ("particles", "-1,99\n5", "1e12,99\n5", "q of particle_id .* is 1000000000000.0; expected"),
        ("truth", "0.375\n", "1e308\n4,0,0,0,0,0,0,0,1e308\n", "occurs more than once"),
        ("hits", "hit_id,x,y", "a\x00b" * 99, r"no column 'hit_id' among a\?ba\?b.{54}…; "),
        ("hits", "20,5,6", "20," + "7" * 99 + "x,6", r"line 6: x is '7{60}…'; expected a num"),
        ("hits", HITS, "", "the file is empty"),
        ("hits", "\n4,", "\n#4,", "line 3: hit_id is '#4'; expected"),
        ("hits", HITS[HITS.index("\n") :], "\n\n", "the event has no hits"),
    ],
)
def test_a_wrong_file_is_named_in_one_sentence(directory, kind, old, new, message):
    _change(directory, kind, old, new)
    with pytest.raises(ValueError, match=message) as error:
        read_event(directory, 7)
    text = str(error.value)
    assert text.startswith(str(directory / f"event000000007-{kind}.csv: ")[:-1])
    assert "\n" not in text and ".;" not in text and text.endswith(".")


def _each_line(change):
    """The text with each line changed: `change(line, is_header)`."""
    return lambda text: "".join(
        change(line, number == 0) + "\n" for number, line in enumerate(text.splitlines())
    )


SAME_EVENT = {
    "line ends of Windows": lambda text: text.replace("\n", "\r\n"),
    "line ends of old Macs": lambda text: text.replace("\n", "\r"),
    "byte order mark": lambda text: "\ufeff" + text,
    "spaces after commas": lambda text: text.replace(",", ", "),
    "tabs before commas": lambda text: text.replace(",", "\t,"),
    "index column": _each_line(lambda line, is_header: ("," if is_header else "0,") + line),
    "other order of columns": _each_line(lambda line, _: ",".join(line.split(",")[::-1])),
    "an extra column": _each_line(lambda line, is_header: line + (",more" if is_header else ",x")),
    "an extra column twice": _each_line(
        lambda line, is_header: line + (",more,more" if is_header else ",x,y")
    ),
    "trailing commas": _each_line(lambda line, _: line + ","),
    "trailing commas in rows": _each_line(lambda line, is_header: line + ",," * (not is_header)),
    "trailing comma in the header": _each_line(lambda line, is_header: line + "," * is_header),
    "blank lines": lambda text: "\n" + text.replace("\n", "\n\n"),
    "a last line of spaces": lambda text: text + "   ",
    "no last line end": lambda text: text.rstrip("\n"),
    "columns in upper case": _each_line(lambda line, _: line.upper()),
    "scientific notation": lambda text: text.replace("1e-3", "1.0E-03").replace(
        "0.25\n", "+25e-2\n"
    ),
    "charges as floats": lambda text: text.replace(",-1,99", ",-1.0,99").replace(
        ",1,99", ",+1.,99"
    ),
    "no column nhits": lambda text: text.replace("q,nhits", "q").replace("1,99\n", "1\n"),
    "shuffled rows of truth": lambda text: (
        "\n".join([*text.splitlines()[:1], *text.splitlines()[:0:-1]]) if "weight" in text else text
    ),
}


@pytest.mark.parametrize("change", SAME_EVENT)
def test_other_ways_to_write_the_same_event(directory, change):
    expected = read_event(directory, 7)
    for kind, text in FILES.items():
        path = directory / f"event000000007-{kind}.csv"
        path.write_text(SAME_EVENT[change](text), newline="")
    assert_same_event(read_event(directory, 7), expected)


@pytest.mark.parametrize(
    ("names", "hit_ids"),
    [
        (["0", "1", "2", "3", "4"], [0, 1, 2, 3, 4]),
        ([str(2**62 + k) for k in range(5)], [2**62 + k for k in range(5)]),
        ([str(2**63 - 5 + k) for k in range(5)], [2**63 - 5 + k for k in range(5)]),
    ],
)
def test_hit_ids_of_any_size(directory, names, hit_ids):
    expected = read_event(directory, 7)
    for kind in ("hits", "truth"):
        path = directory / f"event000000007-{kind}.csv"
        header, *rows = path.read_text().splitlines()
        new = dict(zip(["3", "4", "7", "9", "20"], names, strict=True))
        rows = [",".join([new[row.split(",")[0]], *row.split(",")[1:]]) for row in rows]
        path.write_text("\n".join([header, *rows]))
    found = read_event(directory, 7)
    assert found.hit_id.tolist() == hit_ids
    assert_same_event(found._replace(hit_id=expected.hit_id), expected)


@pytest.mark.parametrize(
    ("name", "held"),
    [(2**63 + 5, 5 - 2**63), (2**64 - 1, -1), (2**63 - 1, 2**63 - 1), (-5, -5)],
)
def test_particle_ids_of_64_bits(directory, tmp_path, name, held):
    """TrackML's are unsigned; those of others may be negative. The held ones have the same bits."""
    for kind in ("truth", "particles"):
        _change(directory, kind, str(2**59 + 1), str(name))
    event = read_event(directory, 7)
    assert event.particles.particle_id.tolist() == [2**59 + 2, 2**59 + 511, held]
    assert event.hit_particle.tolist() == [2, NOISE, 2, 0, 2]
    write_event_csv(tmp_path / "out", event)
    assert_same_event(read_event(tmp_path / "out", 7), event)
    written = (tmp_path / "out" / "event000000007-truth.csv").read_text()
    assert f"\n3,{name % 2**64}," in written
    assert_same_event(load_event(save_event(tmp_path, event).parent, 7), event)


@pytest.mark.parametrize("event_id", [0, 999_999_999, 1_000_000_000, 10**17])
def test_event_numbers_of_any_length(tmp_path, event_id):
    event = random_event(0, [3, 2], event_id=event_id)
    write_event_csv(tmp_path, event)
    assert list_event_ids(tmp_path) == [event_id]
    assert_same_event(read_event(tmp_path, event_id), event)
    assert_same_event(load_event(save_event(tmp_path, event).parent, event_id), event)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.upper(),
        lambda name: name.replace("event", "event0"),
        lambda name: name.replace("event00", "event"),
        lambda name: "deep/down in/" + name,
        lambda name: name.split("-")[1] + "/" + name,
    ],
    ids=["upper case", "ten digits", "seven digits", "nested folders", "a folder for each kind"],
)
def test_files_of_other_names_and_in_folders(directory, rename):
    expected = read_event(directory, 7)
    for path in list(directory.glob("*.csv")):
        new = directory / rename(path.name)
        new.parent.mkdir(parents=True, exist_ok=True)
        path.rename(new)
    # What others put beside them.
    (directory / "event000000007-blacklist_hits.csv").write_text("hit_id\n3\n")
    (directory / "._event000000007-hits.csv").write_bytes(b"\0")
    assert_same_event(read_event(directory, 7), expected)
    assert_same_event(read_event(str(directory), 7), expected)
    assert list_event_ids(str(directory)) == [7]


def test_zips_with_names_of_windows_and_paths_that_lead_out(directory, tmp_path):
    expected = read_event(directory, 7)
    for folder in ("train_1\\", "../../", "/"):
        path = tmp_path / "odd.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for kind, text in FILES.items():
                archive.writestr(f"{folder}event000000007-{kind}.csv", text)
        assert_same_event(read_event(path, 7), expected)
        assert list_event_ids(path) == [7]


def test_a_zip_in_a_zip_is_to_be_unpacked(directory, tmp_path):
    inner = _zip_all(directory, "")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "train_1.zip")
    with pytest.raises(FileNotFoundError, match="event, or unpack the zips in it"):
        read_event(tmp_path / "outer.zip", 7)


@pytest.mark.parametrize("kind", ["only noise", "one hit", "zero weights"])
def test_events_with_little_in_them(tmp_path, kind):
    event = {
        "only noise": random_event(0, [], num_noise=9),
        "one hit": random_event(0, [1]),
        "zero weights": random_event(0, [3])._replace(hit_weight=np.zeros(3)),
    }[kind]
    write_event_csv(tmp_path, event)
    assert_same_event(read_event(tmp_path, 1000), event)


def test_wide_module_numbers(directory):
    _change(directory, "hits", "2,108", f"2,{2**40 + 1}")
    event = read_event(directory, 7)
    assert event.module[4].tolist() == [9, 2, 2**40 + 1]
    assert_same_event(load_event(save_event(directory, event).parent, 7), event)


def test_uncharged_particles_are_told(directory):
    _change(directory, "particles", "-1,99\n5", "0,99\n5")
    with pytest.warns(UserWarning, match=r"particles\.csv: 1 particles have the charge 0"):
        assert read_event(directory, 7).particles.charge.tolist() == [1, 0, -1]


def test_weights_that_sum_to_too_much(directory):
    _change(directory, "truth", "0.375\n", "2e9\n")
    with pytest.warns(UserWarning, match=r"the weights sum to 2e\+09 instead of 1"):
        assert read_event(directory, 7).hit_weight.sum() == pytest.approx(1)
    _change(directory, "truth", "2e9\n", "1e308\n")
    _change(directory, "truth", "0.125\n", "1e308\n")
    with pytest.raises(UserError, match="the sum of the weights is infinite"):
        read_event(directory, 7)


def _strict_and_lenient(directory, strict_message, warning):
    with pytest.raises(UserError, match=strict_message):
        read_event(directory, 7)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        event = read_event(directory, 7, lenient=True)
    told = [str(one.message) for one in told]
    assert warning in told[0]
    return event, told


def test_lenient_reading_leaves_out_hits_without_a_position(directory):
    expected = read_event(directory, 7)
    _change(directory, "hits", "1e-3", "nan")
    _change(directory, "hits", "-11.3673", "inf")
    event, told = _strict_and_lenient(
        directory, "x of hit_id 9 is nan", "hits.csv: 2 hits are left out, since their position"
    )
    assert event.hit_id.tolist() == [4, 7, 20]
    assert event.hit_particle.tolist() == [NOISE, 2, 2]
    assert event.particles.num_hits.tolist() == [0, 0, 2]
    np.testing.assert_array_equal(event.position, expected.position[[1, 2, 4]])
    np.testing.assert_allclose(event.hit_weight, [0, 0.6, 0.4])
    assert [text for text in told if "the weights sum to 0.625 instead of 1" in text]


def test_lenient_reading_takes_equal_weights_where_there_are_none(directory):
    _change(directory, "truth", "weight", "other")
    event, _ = _strict_and_lenient(
        directory,
        "no column 'weight'",
        "4 particle hits are given equal weights",
    )
    assert event.hit_weight.tolist() == [0.25, 0, 0.25, 0.25, 0.25]


def test_lenient_reading_leaves_out_a_particle_named_0(directory):
    _change(directory, "particles", "576460752303423999", "0")
    event, _ = _strict_and_lenient(
        directory, "particle_id 0 is the name of noise", "1 particle named 0 is left out"
    )
    assert event.particles.particle_id.tolist() == [2**59 + 2, 2**59 + 1]
    assert event.hit_particle.tolist() == [1, NOISE, 1, 0, 1]


def test_lenient_reading_changes_nothing_about_sound_files(directory):
    assert_same_event(read_event(directory, 7, lenient=True), read_event(directory, 7))


def test_a_warning_names_the_line_of_the_caller(directory):
    _change(directory, "truth", "0.375\n", "0.125\n")
    program = f"from hypertrack_jax import read_event\n\nread_event('{directory}', 7)"
    (directory / "program.py").write_text(program)
    # In a process of its own: here type checks stand between this package and its caller.
    done = subprocess.run(
        [sys.executable, directory / "program.py"], capture_output=True, text=True, check=True
    )
    assert f"{directory / 'program.py'}:3: UserWarning: {directory}" in done.stderr


def test_bytes_that_are_no_text(directory):
    (directory / "event000000007-hits.csv").write_bytes(b"\x80\xff\n")
    with pytest.raises(ValueError, match=r"hits\.csv: not a text file"):
        read_event(directory, 7)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:60],
        lambda data: data[:5],
        lambda data: data[:40] + b"?" + data[41:],
        lambda d: b"x",
    ],
    ids=["cut short", "cut in the header", "changed", "no gzip"],
)
def test_a_damaged_gzip(directory, damage):
    _gzip_all(directory)
    path = directory / "event000000007-hits.csv.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"hits\.csv\.gz: cannot be read to its end \(.+\); fetch"):
        read_event(directory, 7)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_damaged_zip(directory, compression):
    path = _zip_all(directory, "", compression)
    data = path.read_bytes()
    at = data.index(b"event000000007-hits.csv") + 40
    path.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
    with pytest.raises(
        ValueError, match=r"events\.zip.event000000007-hits\.csv: cannot be read to"
    ):
        read_event(path, 7)
    path.write_bytes(data[:-40])
    with pytest.raises(ValueError, match=r"events\.zip: not a directory, and not a complete zip"):
        list_event_ids(path)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("sizes", [[12, 1, 0, 40, 3], [0, 0], []])
def test_the_reader_takes_back_what_the_writer_wrote(tmp_path, sizes, compress):
    event = random_event(4, sizes, num_noise=20)
    extremes = np.float32([1e-38, -3.4e38, 1 / 3, 16777216.0, -0.0, 1e-45])
    event.position[:2] = extremes.reshape(2, 3)
    write_event_csv(tmp_path, event, compress=compress)
    assert_same_event(read_event(tmp_path, 1000), event)
    names = {f"event000001000-{kind}.csv{'.gz' * compress}" for kind in FILES}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_an_event_without_truth_is_written_as_hits_alone(tmp_path, directory):
    (directory / "event000000007-truth.csv").unlink()
    event = read_event(directory, 7)
    write_event_csv(tmp_path / "out", event)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["event000000007-hits.csv"]
    assert_same_event(read_event(tmp_path / "out", 7), event)


def test_the_true_crossing_is_written_where_it_is_known(tmp_path):
    event = random_event(0, [2], num_noise=1)
    position, momentum = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    path = tmp_path / "event000001000-truth.csv"
    write_event_csv(tmp_path, event)
    assert path.read_text().splitlines()[0] == "hit_id,particle_id,weight"
    write_event_csv(tmp_path, event, position, momentum)
    header, *rows = path.read_text().splitlines()
    assert header == "hit_id,particle_id,tx,ty,tz,tpx,tpy,tpz,weight"
    written = np.array([row.split(",")[2:8] for row in rows], np.float32)
    assert (written == np.concatenate([position, momentum], axis=1)).all()
    assert_same_event(read_event(tmp_path, 1000), event)


def test_equal_events_give_equal_files(tmp_path):
    event = random_event(0, [5], num_noise=2)
    for name in ("a", "b"):
        write_event_csv(tmp_path / name, event, compress=True)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes()[4:8] == bytes(4)  # the time of day in a gzip header
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_an_interrupted_writer_leaves_no_event_to_list(tmp_path, monkeypatch):
    def interrupt_at_the_last(path):
        if len(list(tmp_path.iterdir())) == 2:
            raise KeyboardInterrupt
        return replace_file(path)

    monkeypatch.setattr("hypertrack_jax.events.trackml.replace_file", interrupt_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        write_event_csv(tmp_path, random_event(0, [5]))
    assert list_event_ids(tmp_path) == []


def test_a_submission(directory):
    event = read_event(directory, 7)
    path = directory / "out" / "submission.csv"
    assert write_submission(path, event, np.array([0, -1, 0, 5, 0])) == path
    assert path.read_text() == "event_id,hit_id,track_id\n7,3,1\n7,4,0\n7,7,1\n7,9,6\n7,20,1\n"


def test_a_submission_takes_labels_of_any_integer_type_and_a_path_as_text(directory):
    event = read_event(directory, 7)
    path = directory / "submission.csv"
    for labels in (np.array([0, -1, 0, 5, 0], ">i2"), np.array([0, -1, 0, 5, 0], np.int8)):
        assert write_submission(str(path), event, labels) == path
        assert path.read_text().endswith("\n7,3,1\n7,4,0\n7,7,1\n7,9,6\n7,20,1\n")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1]), r"labels are int64 of shape \(2,\); expected one .* of the 5 hits"),
        (np.zeros((5, 1), np.int64), r"of shape \(5, 1\)"),
        (np.zeros(5), r"labels are float64"),
        (np.array([0, -1, -2, 3, 4]), "a hit has the label -2; expected numbers from -1 on"),
    ],
)
def test_labels_that_are_none_are_refused(directory, labels, message):
    event = read_event(directory, 7)
    with pytest.raises(UserError, match=message):
        write_submission.__wrapped__(directory / "out.csv", event, labels)
    assert not (directory / "out.csv").exists()


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real TrackML event in {REAL}")
def test_a_real_event(tmp_path):
    assert list_event_ids(REAL) == [1]
    # The file holds 5 % of the event's particles.
    with pytest.warns(UserWarning, match="the weights sum to"):
        event = read_event(REAL, 1)
    assert len(event.hit_id) == 5527
    assert (event.particles.num_hits > 0).sum() == 468
    assert np.mean(event.hit_particle == NOISE) == pytest.approx(0.15, abs=0.001)
    assert event.hit_weight.sum() == pytest.approx(1, abs=1e-12)
    assert set(event.module[:, 0].tolist()) == {7, 8, 9, 12, 13, 14, 16, 17, 18}
    # The file's own count of hits is the oracle of ours.
    with gzip.open(REAL / "event000000001-particles.csv.gz", "rt") as file:
        rows = [line.split(",") for line in file.read().splitlines()[1:]]
    assert event.particles.particle_id.tolist() == [int(row[0]) for row in rows]
    assert event.particles.num_hits.tolist() == [int(row[-1]) for row in rows]
    write_event_csv(tmp_path, event)
    assert_same_event(read_event(tmp_path, 1), event._replace(cells=None))
