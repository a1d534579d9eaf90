"""The spread of values, and the tables that show them."""

import statistics

import pytest

from hypertrack_jax.evaluation.tables import markdown_table, mean_and_spread, summary_of


def test_the_standard_deviation_is_that_of_the_sample():
    assert summary_of([0.5, None, 0.7, 1.0]) == pytest.approx(
        (statistics.mean([0.5, 0.7, 1.0]), statistics.stdev([0.5, 0.7, 1.0]), 3)
    )
    assert summary_of([4]) == (4.0, None, 1)
    assert summary_of([None]) == (None, None, 0)


def test_one_value_has_no_spread_and_none_has_no_mean():
    assert mean_and_spread([0.5, 0.7], 3) == "0.600 ± 0.141"
    assert mean_and_spread([0.5, None], 2) == "0.50"
    assert mean_and_spread([None], 2) == mean_and_spread([], 2) == "-"


def test_words_begin_at_the_left_and_numbers_end_at_the_right():
    table = markdown_table(
        ["who", "how", "n"], [["ours", "quickly", "12"], ["a peer", "", "3"]], num_words=2
    )
    assert table.splitlines() == [
        "| who    | how     |  n |",
        "|:-------|:--------|---:|",
        "| ours   | quickly | 12 |",
        "| a peer | -       |  3 |",
    ]
