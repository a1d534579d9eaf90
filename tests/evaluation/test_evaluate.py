"""The evaluation of events: what of them counts when something goes wrong, and which times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import helix_event

from hypertrack_jax.clustering.tracks import Tracks
from hypertrack_jax.errors import MissingPackageError, UserError
from hypertrack_jax.evaluation import evaluate
from hypertrack_jax.evaluation.evaluate import (
    Batched,
    as_evaluated,
    evaluate_events,
    evaluate_graphs,
)
from hypertrack_jax.reconstruction.capacities import FirstCapacities
from hypertrack_jax.reconstruction.reconstructor import Reconstructor
from hypertrack_jax.tunes.tune import Tune
from hypertrack_jax.voxdyn.fit import fit_voxdyn

TUNE = Tune("small")
EVENTS = [helix_event(number, num_particles=5, event_id=number) for number in range(5)]
BAD = EVENTS[2].position


def no_edges(position):
    none = np.zeros(0, np.int32)
    number = len(position)
    return Tracks(
        np.zeros(number, np.int32),
        np.ones(number, np.float32),
        none,
        none,
        np.zeros(0, np.float32),
        {"total": 1.0},
    )


def refusing(position):
    if position is BAD:
        raise UserError("hits in metres")
    return no_edges(position)


def test_the_first_bad_event_ends_an_evaluation_without_a_list():
    found = evaluate_events(refusing, EVENTS, TUNE)
    assert [next(found).event.event_id for _ in range(2)] == [0, 1]
    with pytest.raises(UserError, match="hits in metres"):
        next(found)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_bad_event_costs_the_others_of_its_batch_nothing(size):
    batched = Batched(lambda positions: [refusing(one) for one in positions], size)
    problems = []
    found = list(evaluate_events(batched, EVENTS, TUNE, problems))
    assert [one.event.event_id for one in found] == [0, 1, 3, 4]
    assert problems == ["event 2: hits in metres"]


def test_scores_that_are_not_numbers_are_a_problem_of_their_event():
    def diverged(position):
        nan = np.full(2, np.nan, np.float32)
        ends = np.arange(2, dtype=np.int32)
        tracks = no_edges(position)
        if position is BAD:
            return tracks._replace(senders=ends, receivers=ends, probability=nan)
        return tracks

    problems = []
    assert len(list(evaluate_events(diverged, EVENTS, TUNE, problems))) == 4
    assert len(problems) == 1 and problems[0].startswith("event 2: 2 of 2 edge scores are NaN")


def test_a_missing_package_ends_the_evaluation():
    def reconstruct(position):
        raise MissingPackageError("scikit-learn is missing")

    with pytest.raises(MissingPackageError):
        list(evaluate_events(reconstruct, EVENTS, TUNE, []))


def test_a_defect_is_no_problem_of_an_event():
    with pytest.raises(ZeroDivisionError):
        list(evaluate_events(lambda position: 1 // 0, EVENTS, TUNE, []))


@jax.jit
def program(x):
    return x + 1


class Compiling(Reconstructor):
    """Compiles a program for each new number of hits, as an event does that needs more room."""

    def __call__(self, position, *, with_edges=False):
        program(jnp.zeros(len(position)))
        return no_edges(position)

    def capacities(self, num_hits):
        return FirstCapacities(1, None, None, None)

    def warm_up(self, num_hits):
        for number in num_hits:
            program(jnp.zeros(number))


@pytest.fixture(scope="module")
def vd():
    return fit_voxdyn(EVENTS, 64, "hyper", num_iterations=2)


def test_times_that_hold_a_compilation_do_not_count(vd, monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    sizes = [EVENTS[0], EVENTS[0], helix_event(0, num_particles=9), EVENTS[0]]
    found = list(evaluate_events(as_evaluated(Compiling(TUNE, vd, {}, None)), sizes, TUNE))
    # The first size was warmed up. The third event compiled its own program.
    assert [one.row.get("total ms") for one in found] == [1000.0, 1000.0, None, 1000.0]


def test_a_graph_is_made_again_only_where_something_was_compiled(vd, monkeypatch):
    calls = []

    def predict_edges(vd, position, min_count):
        calls.append(len(position))
        return original(vd, position, min_count)

    original = evaluate.predict_edges
    monkeypatch.setattr(evaluate, "predict_edges", predict_edges)
    jax.clear_caches()
    rows = list(evaluate_graphs(vd, [EVENTS[0]] * 3, "hyper"))
    assert len(calls) == 2 + 1 + 1
    assert all(row["VD ms"] > 0 for row in rows)


def test_a_bad_event_costs_the_other_graphs_nothing(vd):
    outside = EVENTS[1]._replace(position=EVENTS[1].position + np.float32(1e6))
    problems = []
    rows = list(evaluate_graphs(vd, [EVENTS[0], outside, EVENTS[2]], "hyper", None, problems))
    assert [row["event"] for row in rows] == [0, 2]
    assert len(problems) == 1 and problems[0].startswith("event 1: ")
    with pytest.raises(UserError):
        list(evaluate_graphs(vd, [outside], "hyper"))
