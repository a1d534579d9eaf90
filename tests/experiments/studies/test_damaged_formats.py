"""Damaged files of other programs: none ends in a traceback."""

import pytest
from studies.faults.formats import FORMATS, damaged_format

NEEDED = {"ColliderML": "pyarrow", "published weights": "torch"}


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused_in_one_sentence(tmp_path, name):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name], reason=f"{NEEDED[name]} is not installed")
    found = {damaged_format(name, tmp_path, number) for number in range(10)}
    assert found <= {"right", "refused"}
    assert "refused" in found
