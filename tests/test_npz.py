"""Files of arrays: what is read is what was declared, and damage is one sentence."""

import zipfile

import numpy as np
import pytest

from hypertrack_jax import memory
from hypertrack_jax.errors import UserError
from hypertrack_jax.npz import ArrayType, NpzFormat, read_npz, write_npz

FORMAT = NpzFormat(
    kind="a file of things",
    remedy="make it anew",
    arrays={
        "name": ArrayType(np.str_, ()),
        "point": ArrayType(np.float32, ("thing", 3)),
        "size": ArrayType(np.int32, ("thing",)),
        "is_whole": ArrayType(np.bool_, ()),
    },
    version=1,
)
ARRAYS = {
    "name": np.array("Größe"),
    "point": np.arange(30, dtype=np.float32).reshape(10, 3),
    "size": np.arange(10, dtype=np.int32),
    "is_whole": np.array(True),
}
ONE = NpzFormat("a file of numbers", "make it anew", {"x": ArrayType(np.float64)})


def save(path, **changes):
    """As NumPy itself writes it; None leaves an array out."""
    arrays = {"format_version": 1, **ARRAYS, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def header(text: str) -> bytes:
    line = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


def put(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("compress", [False, True])
def test_what_was_written_is_read(tmp_path, compress):
    path = write_npz(tmp_path / "new" / "x.npz", FORMAT, ARRAYS, compress)
    found = read_npz(path, FORMAT)
    assert found.keys() == ARRAYS.keys()
    for name, array in found.items():
        assert array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(array, ARRAYS[name])
        array[...] = array  # not read-only
    assert list(read_npz(path, FORMAT, ["size"])) == ["size"]
    with np.load(path, allow_pickle=False) as other:
        np.testing.assert_array_equal(other["point"], ARRAYS["point"])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(12.0).reshape(3, 4)[:, ::2],
        np.arange(6, dtype=">f8"),
        np.arange(6, dtype="<i4"),
        np.float64(3.5),
        np.zeros((2, 3, 4, 5)),
        np.arange(2**18 + 7, dtype=np.float64),
    ],
    ids=str,
)
def test_arrays_of_every_layout_are_read(tmp_path, array):
    np.savez(tmp_path / "x.npz", x=array)
    found = read_npz(tmp_path / "x.npz", ONE)["x"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype == np.float64 and found.dtype.isnative


def test_other_members_are_read_where_they_are_declared(tmp_path):
    save(tmp_path / "x.npz", more=np.ones(2), text=None)
    assert "more" not in read_npz(tmp_path / "x.npz", FORMAT)
    others = FORMAT._replace(others=ArrayType(np.float32))
    np.testing.assert_array_equal(read_npz(tmp_path / "x.npz", others)["more"], [1, 1])
    save(tmp_path / "x.npz", more=np.array("text"))
    with pytest.raises(UserError, match="more is of type <U4, where float32 is expected"):
        read_npz(tmp_path / "x.npz", others)


def test_optional_members_are_all_there_or_none(tmp_path):
    both = {"low": ArrayType(np.int32, ("part",)), "high": ArrayType(np.int32, ("part",))}
    optional, path = FORMAT._replace(optional=both), tmp_path / "x.npz"
    assert read_npz(write_npz(path, optional, ARRAYS), optional).keys() == ARRAYS.keys()
    parts = {"low": np.arange(3), "high": np.arange(3)}
    found = read_npz(write_npz(path, optional, {**ARRAYS, **parts}), optional)
    np.testing.assert_array_equal(found["high"], parts["high"])
    assert found["high"].dtype == np.int32
    save(path, low=np.arange(3))
    with pytest.raises(UserError, match="lacks high"):
        read_npz(path, optional)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"point": None, "name": None}, "lacks name, point"),
        ({"point": np.zeros((10, 4), np.float32)}, r"point has the shape \(10, 4\), where .*, 3\)"),
        ({"point": np.zeros(30, np.float32)}, r"point has the shape \(30,\)"),
        ({"size": np.zeros(9, np.int32)}, r"size has the shape \(9,\), where \(10,\) is expected"),
        ({"size": np.zeros(10)}, "size is of type float64, where int32 is expected"),
        ({"size": np.full(10, 2**40)}, "size has numbers that int32 cannot hold"),
        ({"name": np.array(5)}, "name is of type int64, where str_? is expected"),
        ({"name": np.array("x", object)}, "name is not an array of numbers or text"),
        ({"name": np.array(b"x")}, "name is not an array of numbers or text"),
        ({"point": np.array("x")}, "point is of type <U1, where float32 is expected"),
        ({"format_version": None}, "lacks format_version"),
        ({"format_version": np.array("1")}, "format_version is of type <U1"),
    ],
)
def test_arrays_that_are_not_those_declared_are_refused(tmp_path, changes, reason):
    path = tmp_path / "x.npz"
    save(path, **changes)
    message = rf"x\.npz: damaged or not a file of things \({reason}.*\); make it anew\.$"
    with pytest.raises(UserError, match=message):
        read_npz(path, FORMAT)


def test_another_version_is_told(tmp_path):
    save(tmp_path / "x.npz", format_version=7)
    with pytest.raises(
        UserError, match=r"format version 7, but this program reads version 1; make it anew\.$"
    ):
        read_npz(tmp_path / "x.npz", FORMAT)


HUGE = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x00" * 64,
        header(HUGE % "3,") + b"\x00" * 25,
        header(HUGE % "3,") + b"\x00" * 23,
        header(HUGE % "9" * 18),
        header(HUGE % "-1,"),
        header(HUGE % ("9" * 17 + ", " + "9" * 17)),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (), }") + b"cos\nsystem\n",
        header("{'descr': '<f7', 'fortran_order': False, 'shape': (), }") + b"1234567",
        header("{'descr': '<U0', 'fortran_order': False, 'shape': (5,), }"),
        header("{'descr': '<U999999999', 'fortran_order': False, 'shape': (), }"),
        header("(" * 5000),
        b"\x93NUMPY\x02\x00" + header(HUGE % "3,")[8:] + b"\x00" * 24,
    ],
    ids=range(14),
)
def test_members_that_are_no_arrays_are_refused(tmp_path, content):
    put(tmp_path / "x.npz", {"x.npy": content})
    with pytest.raises(UserError, match=r"x\.npz: damaged or not a file of numbers \(.+\); make"):
        read_npz(tmp_path / "x.npz", ONE)


def test_a_name_that_occurs_twice_or_without_its_ending(tmp_path):
    content = header(HUGE % "0,")
    with pytest.warns(UserWarning, match="Duplicate name"):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("x.npy", content)
            archive.writestr("x.npy", content)
    with pytest.raises(UserError, match="a name occurs twice"):
        read_npz(tmp_path / "x.npz", ONE)
    # A name may be cut short by zeros; NumPy then hands out the raw bytes.
    put(tmp_path / "x.npz", {"x": content})
    with pytest.raises(UserError, match="the member 'x' is no array"):
        read_npz(tmp_path / "x.npz", ONE)


def test_a_member_that_lost_its_name_is_not_left_out(tmp_path):
    """Where other members are read, nothing else would tell that one is missing."""
    path, others = tmp_path / "x.npz", ONE._replace(others=ArrayType(np.float64))
    np.savez(path, x=np.ones(3), more=np.ones(2))
    content = path.read_bytes()
    place = content.rindex(b"more.npy")
    for damaged in (b"\0ore.npy", b"more>npy", b"mo\0e.npy"):
        path.write_bytes(content[:place] + damaged + content[place + len(damaged) :])
        with pytest.raises(UserError, match=r"x.npz: damaged or not .* is no array"):
            read_npz(path, others)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_refused(tmp_path, method):
    put(tmp_path / "x.npz", {"x.npy": header(HUGE % "0,")}, method)
    with pytest.raises(UserError, match="x is compressed in an unknown way"):
        read_npz(tmp_path / "x.npz", ONE)


def test_not_a_zip_is_told_without_advice_to_unpickle(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"a page of text")
    with pytest.raises(UserError) as raised:
        read_npz(tmp_path / "x.npz", ONE)
    assert str(raised.value).endswith(
        "x.npz: damaged or not a file of numbers (File is not a zip file); make it anew."
    )


@pytest.mark.parametrize("compress", [False, True])
def test_a_flipped_bit_anywhere_is_one_sentence_or_changes_nothing(tmp_path, compress):
    whole = write_npz(tmp_path / "whole.npz", FORMAT, ARRAYS, compress).read_bytes()
    path, refused = tmp_path / "x.npz", 0
    for place in range(len(whole)):
        flipped = whole[place] ^ (1 << place % 8)
        path.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        try:
            found = read_npz(path, FORMAT)
        except UserError as error:
            message, refused = str(error), refused + 1
            assert message.startswith(f"{path}: ") and "\n" not in message, place
        else:
            for name, array in found.items():
                assert array.dtype == ARRAYS[name].dtype, (place, name)
                np.testing.assert_array_equal(array, ARRAYS[name])
    # The rest: dates, attributes and versions of the members, which mean nothing here.
    assert refused > 0.6 * len(whole)


def test_a_bomb_takes_no_memory(tmp_path, monkeypatch):
    """Zeros deflate to a thousandth; what the header claims is compared with what there is."""
    path = tmp_path / "x.npz"
    put(path, {"x.npy": header(HUGE % f"{2**24},") + b"\x00" * 2**27}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**18
    monkeypatch.setattr(memory, "available_memory", lambda: 2**26)
    with pytest.raises(UserError, match=r"x\.npz: .* needs about 0\.1 GB of memory, but 0\.1 GB"):
        read_npz(path, ONE)
    monkeypatch.undo()


def test_sizes_that_are_claimed_take_no_memory(tmp_path, monkeypatch):
    """Header and zip agree on a gigabyte, of which there are some bytes."""
    content = header(HUGE % f"{2**27},") + bytes(range(99))
    put(tmp_path / "x.npz", {"x.npy": content}, zipfile.ZIP_DEFLATED)
    whole = (tmp_path / "x.npz").read_bytes()
    size, claim = len(content), len(content) - 99 + 2**30
    assert whole.count(size.to_bytes(4, "little")) == 2
    claimed = whole.replace(size.to_bytes(4, "little"), claim.to_bytes(4, "little"))
    (tmp_path / "x.npz").write_bytes(claimed)
    monkeypatch.setattr(np, "empty", lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(UserError, match=r"x claims to hold 10737\d+ bytes"):
        read_npz(tmp_path / "x.npz", ONE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": np.zeros(9, np.int32)}, r"x\.npz: cannot be written \(size has the shape"),
        ({"size": np.full(10, 2**40)}, "size has numbers that int32 cannot hold"),
        ({"point": np.full((10, 3), None)}, "point is of type object, where float32 is expected"),
        ({"more": np.zeros(9)}, "a file of things has no array 'more'"),
    ],
)
def test_only_what_can_be_read_is_written(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        write_npz(tmp_path / "x.npz", FORMAT, ARRAYS | changes)
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_written_in_the_declared_type(tmp_path):
    changes = {"size": np.arange(10), "point": ARRAYS["point"].astype(">f8")}
    path = write_npz(tmp_path / "x.npz", FORMAT, ARRAYS | changes)
    for name, array in read_npz(path, FORMAT).items():
        assert array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(array, ARRAYS[name])
