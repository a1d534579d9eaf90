"""TrackML events: what is read, and what is refused."""

import gzip
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from handmade import assert_same_event, random_event
from trackml_files import FILES, HITS, TRUTH, change_file

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import NOISE
from hypertrack_jax.events.store import load_event, save_event
from hypertrack_jax.events.trackml import (
    list_event_ids,
    read_event,
    write_event_csv,
)

REAL = Path(__file__).parents[3] / "shared" / "data" / "trackml"


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
    change_file(directory, "truth", "0.375\n", "0.375001\n")
    assert read_event(directory, 7).hit_weight[2] == 0.375001
    change_file(directory, "truth", "0.375001\n", "0.125\n")
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
    change_file(directory, kind, old, new)
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
        change_file(directory, kind, str(2**59 + 1), str(name))
    event = read_event(directory, 7)
    assert event.particles.particle_id.tolist() == [2**59 + 2, 2**59 + 511, held]
    assert event.hit_particle.tolist() == [2, NOISE, 2, 0, 2]
    write_event_csv(tmp_path / "out", event)
    assert_same_event(read_event(tmp_path / "out", 7), event)
    written = (tmp_path / "out" / "event000000007-truth.csv").read_text()
    assert f"\n3,{name % 2**64}," in written
    assert_same_event(load_event(save_event(tmp_path, event).parent, 7), event)


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
    change_file(directory, "hits", "2,108", f"2,{2**40 + 1}")
    event = read_event(directory, 7)
    assert event.module[4].tolist() == [9, 2, 2**40 + 1]
    assert_same_event(load_event(save_event(directory, event).parent, 7), event)


def test_uncharged_particles_are_told(directory):
    change_file(directory, "particles", "-1,99\n5", "0,99\n5")
    with pytest.warns(UserWarning, match=r"particles\.csv: 1 particles have the charge 0"):
        assert read_event(directory, 7).particles.charge.tolist() == [1, 0, -1]


def test_weights_that_sum_to_too_much(directory):
    change_file(directory, "truth", "0.375\n", "2e9\n")
    with pytest.warns(UserWarning, match=r"the weights sum to 2e\+09 instead of 1"):
        assert read_event(directory, 7).hit_weight.sum() == pytest.approx(1)
    change_file(directory, "truth", "2e9\n", "1e308\n")
    change_file(directory, "truth", "0.125\n", "1e308\n")
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
    change_file(directory, "hits", "1e-3", "nan")
    change_file(directory, "hits", "-11.3673", "inf")
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
    change_file(directory, "truth", "weight", "other")
    event, _ = _strict_and_lenient(
        directory,
        "no column 'weight'",
        "4 particle hits are given equal weights",
    )
    assert event.hit_weight.tolist() == [0.25, 0, 0.25, 0.25, 0.25]


def test_lenient_reading_leaves_out_a_particle_named_0(directory):
    change_file(directory, "particles", "576460752303423999", "0")
    event, _ = _strict_and_lenient(
        directory, "particle_id 0 is the name of noise", "1 particle named 0 is left out"
    )
    assert event.particles.particle_id.tolist() == [2**59 + 2, 2**59 + 1]
    assert event.hit_particle.tolist() == [1, NOISE, 1, 0, 1]


def test_lenient_reading_changes_nothing_about_sound_files(directory):
    assert_same_event(read_event(directory, 7, lenient=True), read_event(directory, 7))


def test_a_warning_names_the_line_of_the_caller(directory):
    change_file(directory, "truth", "0.375\n", "0.125\n")
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
