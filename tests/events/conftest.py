"""What the tests of TrackML's files share."""

import pytest
from trackml_files import write_files


@pytest.fixture
def directory(tmp_path):
    """A directory with the csv files of event 7."""
    write_files(tmp_path)
    return tmp_path
