"""The lines of metrics: what is written, what a resumed run removes, and what a kill leaves."""

import json

import pytest

from hypertrack_jax.training.metrics_file import METRICS_FILE, VALIDATION_AUC, MetricsFile


def write(directory, first_step, lines):
    file = MetricsFile(directory, first_step)
    for step, values in lines:
        file.write(step, values)
    return file


def lines_of(directory):
    content = (directory / METRICS_FILE).read_text()
    assert content.endswith("\n")
    return [json.loads(line) for line in content.splitlines()]


def test_each_line_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    file = write(tmp_path, 0, [(9, {"loss": 1.5, "auc": 0.25}), (10, {VALIDATION_AUC: 0.5})])
    # It is not closed yet, as in a process that is killed.
    lines = lines_of(tmp_path)
    file.close()
    assert lines == [{"step": 9, "loss": 1.5, "auc": 0.25}, {"step": 10, "validation_auc": 0.5}]


def test_a_resumed_run_removes_the_lines_of_the_steps_that_it_repeats(tmp_path):
    before = [(9, {"loss": 3.0}), (10, {VALIDATION_AUC: 0.5}), (10, {"loss": 2.0})]
    write(tmp_path, 0, [*before, (19, {"loss": 2.5}), (20, {VALIDATION_AUC: 0.6})]).close()
    write(tmp_path, 10, [(14, {"loss": 1.0})]).close()
    # The update of step 10 is repeated; the validation after ten updates is not.
    assert lines_of(tmp_path) == [
        {"step": 9, "loss": 3.0},
        {"step": 10, "validation_auc": 0.5},
        {"step": 14, "loss": 1.0},
    ]


@pytest.mark.parametrize("left", ['{"step": 9, "lo', '{"step": 9, "loss": 1.0}', "\0\0\0"])
def test_a_part_of_a_line_that_a_kill_left_is_removed(tmp_path, left):
    (tmp_path / METRICS_FILE).write_text('{"step": 4, "loss": 3.0}\n' + left)
    write(tmp_path, 20, [(24, {"loss": 2.0})]).close()
    assert lines_of(tmp_path) == [{"step": 4, "loss": 3.0}, {"step": 24, "loss": 2.0}]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    write(tmp_path, 0, [(9, {"loss": float("nan"), "norm": float("inf"), "auc": 1.0})]).close()
    assert lines_of(tmp_path) == [{"step": 9, "loss": None, "norm": None, "auc": 1.0}]
