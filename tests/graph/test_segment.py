"""Every segment operation against a loop over the segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypertrack_jax.graph.segment import (
    add_to_segments,
    put_columns,
    put_rows,
    raise_segments,
    rank_in_segment,
    segment_max,
    segment_min,
    segment_sum,
)

NUM_SEGMENTS = 6
EMPTY = 3


def entries(is_sorted=True, num_columns=None, seed=0):
    """Data and ids; segment 3 is empty, and the last ids are padding."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(np.array([0, 1, 2, 4, 5, NUM_SEGMENTS], np.int32), 60)
    if is_sorted:
        ids = np.sort(ids)
    shape = (60,) if num_columns is None else (60, num_columns)
    return rng.normal(size=shape).astype(np.float32), ids


def on_device(*arrays):
    return tuple(jnp.asarray(array) for array in arrays)


@pytest.mark.parametrize("is_sorted", [True, False])
@pytest.mark.parametrize("num_columns", [None, 3])
@pytest.mark.parametrize(
    ("operation", "of_segment", "if_empty"),
    [
        (segment_sum, lambda part: part.sum(axis=0), 0.0),
        (segment_max, lambda part: part.max(axis=0), -np.inf),
        (segment_min, lambda part: part.min(axis=0), np.inf),
    ],
)
def test_reductions_equal_a_loop(operation, of_segment, if_empty, num_columns, is_sorted):
    data, ids = entries(is_sorted, num_columns)
    found = np.asarray(operation(*on_device(data, ids), NUM_SEGMENTS, sorted_ids=is_sorted))
    assert len(found) == NUM_SEGMENTS  # and none for the padding's id
    for segment in range(NUM_SEGMENTS):
        part = data[ids == segment]
        expected = of_segment(part) if len(part) else if_empty
        np.testing.assert_allclose(found[segment], expected, rtol=1e-5)
    assert np.all(found[EMPTY] == if_empty)


def test_ids_outside_are_dropped_by_every_operation():
    ids = jnp.array([-NUM_SEGMENTS, -1, 2, NUM_SEGMENTS, NUM_SEGMENTS + 9])
    data, expected = jnp.arange(1.0, 6), np.zeros(NUM_SEGMENTS)
    expected[2] = 3
    zeros = jnp.zeros(NUM_SEGMENTS)
    for found in (
        segment_sum(data, ids, NUM_SEGMENTS),
        add_to_segments(zeros, data, ids),
        raise_segments(zeros, data, ids),
        put_rows(zeros, data, ids),
        put_columns(zeros[None], data[None], ids[None])[0],
        jnp.maximum(segment_max(data, ids, NUM_SEGMENTS), 0),
    ):
        np.testing.assert_array_equal(found, expected)


def test_reductions_of_whole_numbers_stay_exact():
    data, ids = on_device(np.array([2**30, 1, 5], np.int32), np.array([0, 0, 1], np.int32))
    np.testing.assert_array_equal(segment_sum(data, ids, 2), [2**30 + 1, 5])
    assert segment_max(data, ids, 3)[2] == np.iinfo(np.int32).min
    assert segment_min(data, ids, 3)[2] == np.iinfo(np.int32).max


def test_blocks_added_one_after_another_make_the_whole_sum():
    data, ids = entries(num_columns=3)
    total = jnp.zeros((NUM_SEGMENTS, 3))
    for block in (slice(0, 25), slice(25, 60)):
        total = add_to_segments(total, jnp.asarray(data[block]), jnp.asarray(ids[block]))
    whole = segment_sum(*on_device(data, ids), NUM_SEGMENTS)
    np.testing.assert_allclose(total, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_columns", [None, 3])
def test_blocks_taken_in_one_after_another_give_the_largest_of_all(num_columns):
    data, ids = entries(num_columns=num_columns)
    highest = jnp.full((NUM_SEGMENTS, *data.shape[1:]), -1.0).at[EMPTY].set(0.25)
    for block in (slice(0, 25), slice(25, 60)):
        highest = raise_segments(highest, jnp.asarray(data[block]), jnp.asarray(ids[block]))
    whole = segment_max(*on_device(data, ids), NUM_SEGMENTS)
    lowest = np.where(np.arange(NUM_SEGMENTS) == EMPTY, 0.25, -1.0)
    columns = (1,) * (data.ndim - 1)
    np.testing.assert_array_equal(highest, np.maximum(whole, lowest.reshape(-1, *columns)))


def test_no_entries_at_all():
    data, ids = on_device(np.zeros((0, 2), np.float32), np.zeros(0, np.int32))
    assert np.all(segment_sum(data, ids, 3) == np.zeros((3, 2)))


@pytest.mark.parametrize("num_segments", [3, 5000])
@pytest.mark.parametrize("num_entries", [0, 1, 70000])
def test_ranks_count_the_entries_before(num_entries, num_segments):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, num_segments + 2, num_entries).astype(np.int32)
    rank, count = jax.jit(rank_in_segment, static_argnums=1)(ids, num_segments)
    seen = np.zeros(num_segments, np.int64)
    wanted = np.zeros(num_entries, np.int64)
    for place in np.flatnonzero(ids < num_segments):
        wanted[place] = seen[ids[place]]
        seen[ids[place]] += 1
    np.testing.assert_array_equal(count, seen)
    np.testing.assert_array_equal(np.asarray(rank)[ids < num_segments], wanted[ids < num_segments])
