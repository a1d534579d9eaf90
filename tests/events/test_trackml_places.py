"""Where TrackML's files lie: directories, folders, gzip and zip, whole and damaged."""

import gzip
import shutil
import zipfile

import pytest
from handmade import assert_same_event, random_event
from trackml_files import FILES

from hypertrack_jax.events.store import load_event, save_event
from hypertrack_jax.events.trackml import (
    list_event_ids,
    read_event,
    write_event_csv,
)


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
