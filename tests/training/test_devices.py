"""Events spread over devices: the same weights as on one, whatever the numbers of both."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from one_device import devices_for

from hypertrack_jax.errors import UserError
from hypertrack_jax.model.parameters import GNN_PHASE
from hypertrack_jax.reconstruction.devices import EVENT_AXIS, map_events
from hypertrack_jax.training import devices
from hypertrack_jax.training.batches import graph_batch, step_events
from hypertrack_jax.training.devices import join_processes, make_spread_step, spread_over
from hypertrack_jax.training.event_loss import loss_method
from hypertrack_jax.training.step import (
    Model,
    event_gradient,
    init_state,
    update_method,
    updated_state,
)

KEY = jax.random.key(5)


def graphs_of(source, spread, voxdyn, tune, number=0):
    places = spread.slots().place.tolist()
    events = step_events(source, number, spread.batch_size, places)
    return graph_batch(events, voxdyn, tune).graphs


def test_a_batch_is_shared_among_the_devices_that_it_has_events_for():
    assert len(jax.local_devices()) == 2
    assert [spread_over(number).local.size for number in (1, 2, 3)] == [1, 2, 2]
    even, uneven = (spread_over(number).slots() for number in (4, 3))
    assert (even.place.tolist(), even.weight.tolist()) == ([0, 1, 2, 3], [0.25] * 4)
    assert uneven.place.tolist() == [0, 1, 2, 0]
    np.testing.assert_allclose(uneven.weight, [1 / 3, 1 / 3, 1 / 3, 0])


def test_every_process_has_a_share_of_its_own(monkeypatch):
    # Three devices in all, of which a process has one.
    everywhere = Mesh(np.array([*jax.devices(), jax.devices()[0]]), (EVENT_AXIS,))
    shares = []
    for index in range(3):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(devices_for(5, 0)._replace(everywhere=everywhere).slots())
    assert [share.place.tolist() for share in shares] == [[0, 1], [2, 3], [4, 0]]
    assert sum(share.weight.sum() for share in shares) == pytest.approx(1)
    assert shares[2].weight[1] == 0


@pytest.mark.usefixtures("optax_promotion")
def test_two_devices_make_the_update_of_a_mean_by_hand(source, voxdyn, small_tune):
    # Adam would divide by the size of a gradient, however small, and rounding become a step.
    tune = replace(small_tune, optimizer=replace(small_tune.optimizer, optimizer="SGD"))
    spread = devices_for(3, 0, 1)
    train_step = make_spread_step(tune, jnp.float32, GNN_PHASE, spread)
    by_hand = jax.jit(init_state, static_argnums=0)(tune, jax.random.key(1))
    state = spread.replicate(by_hand)
    gradient_of, update = (jax.jit(f, static_argnums=0) for f in (event_gradient, updated_state))
    method = loss_method(tune, jnp.float32, GNN_PHASE)
    for number in range(2):
        graphs = graphs_of(source, spread, voxdyn, tune, number)
        state, metrics = train_step(state, graphs, KEY)
        model = Model(by_hand.params, by_hand.batch_stats, by_hand.loss_scale)
        found, step_key = [], jax.random.fold_in(KEY, number)
        for place in range(3):
            graph = jax.tree.map(lambda leaf: leaf[place], graphs)  # noqa: B023
            found.append(gradient_of(method, model, graph, jax.random.fold_in(step_key, place)))
        mean = jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), axis=0), *found)
        by_hand, _ = update(update_method(tune, jnp.float32, GNN_PHASE), by_hand, mean)
        assert len({float(one.losses.loss) for one in found}) == 3
        assert_close(metrics.losses, mean.losses)
    assert_close(state, by_hand)


def assert_close(first, second):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), first, second)


def test_every_graph_is_mapped_by_the_device_it_lies_on(source, voxdyn, small_tune):
    spread = devices_for(4, 0, 1)
    graphs = graphs_of(source, spread, voxdyn, small_tune)

    def num_hits(factor, graph):
        return factor * graph.nodes.mask.sum()

    found = map_events(num_hits, spread.local, jnp.int32(2), spread.spread(graphs))
    np.testing.assert_array_equal(found, 2 * graphs.nodes.mask.sum(axis=1))
    assert len(found.sharding.device_set) == 2


def test_more_processes_than_events_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"^batch_size is 1, so some of the 2 processes .*; "):
        spread_over(1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost:1234", None, 0), "^coordinator_address, num_processes .* go together; "),
        ((None, 2, None), "go together"),
        (("localhost", 2, 0), "^coordinator_address is 'localhost'; .*like localhost:12345"),
        (("localhost:x", 2, 0), "host and port"),
        (("localhost:70000", 2, 0), "host and port"),
        (("localhost:1234", 2, 2), "^process_id is 2; expected a number from 0 to 1, "),
        (("localhost:1234", 2, -1), "process_id is -1"),
    ],
)
def test_arguments_of_processes_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        join_processes(*given)


def test_one_process_has_nobody_to_meet():
    join_processes(None, None, None)
    assert jax.process_count() == 1
    assert devices.any_process(True, False) == [True, False]
    assert devices.mean_of_processes([1.0, 2.0, 6.0]) == 3
