"""Exponents of power laws that are known, and their figure."""

import pytest
from benchmarks.scaling import (
    LEAST_MEMORY,
    by_program,
    exponents,
    plot_scaling,
    power_law,
)
from benchmarks.timing import Timing


def grown(who, hits, seconds, memory):
    timing = Timing(f"work at {hits} / {who}", hits, 0, 1, seconds, seconds, seconds, memory + 1)
    return timing._replace(idle_memory=1.0)


TIMINGS = [grown("ours", n, 1e-4 * n**1.5, 1e-3 * n) for n in (100, 1000, 10000)] + [
    grown("peer", n, 1e-6 * n**2, 0.1 * n**0.5) for n in (100, 1000, 10000)
]


def test_a_power_law_is_found_again():
    factor, exponent = power_law([10, 100, 700], [3 * n**1.7 for n in (10, 100, 700)])
    assert factor == pytest.approx(3)
    assert exponent == pytest.approx(1.7)


def test_what_the_allocator_had_kept_is_not_fitted():
    kept = grown("ours", 500, 1e-4 * 500**1.5, 0.9 * LEAST_MEMORY)
    assert exponents([*TIMINGS, kept]) == exponents(TIMINGS)


@pytest.mark.parametrize("values", [([10], [1.0]), ([10, 10], [1.0, 2.0]), ([10, 99], [0.0, 2.0])])
def test_one_size_has_no_exponent(values):
    assert power_law(*values) is None


def test_programs_are_told_apart():
    assert {who: len(rows) for who, rows in by_program(TIMINGS).items()} == {"ours": 3, "peer": 3}
    assert exponents(TIMINGS) == [
        "ours: time [s] grows as hits^1.50, memory [GB] grows as hits^1.00",
        "peer: time [s] grows as hits^2.00, memory [GB] grows as hits^0.50",
    ]
    assert exponents(TIMINGS[:1]) == ["ours: too few sizes to tell how it grows"]


def test_figure_has_a_line_and_points_per_program(tmp_path):
    pytest.importorskip("mplhep", reason="mplhep is not installed")
    text = plot_scaling(tmp_path / "scaling.svg", TIMINGS).read_text()
    # Text is drawn as paths; matplotlib names each word in a comment.
    assert "ours" in text and "peer" in text and "Hits" in text
