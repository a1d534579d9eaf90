"""The border: the events of a batch over the devices of one process, or of several.

Every process makes and computes a share of the batch, in a program whose sizes the others need not
know. The processes exchange one vector per device and update: the weighted sum of gradients,
statistics and losses. Then all processes make the same update of the same state.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hypertrack_jax.errors import UserError
from hypertrack_jax.graph.event_graph import EventGraph
from hypertrack_jax.reconstruction.devices import EVENT_AXIS, on_each_device
from hypertrack_jax.training.event_loss import LossMethod, loss_method
from hypertrack_jax.training.step import (
    Model,
    StepMetrics,
    TrainState,
    UpdateMethod,
    batch_gradient,
    no_gradient,
    update_method,
    updated_state,
)
from hypertrack_jax.tunes.tune import Tune

_SAME, _SPREAD = PartitionSpec(), PartitionSpec(EVENT_AXIS)


class Slots(NamedTuple):
    """The events that a process computes, in the order of its devices."""

    place: Int[np.ndarray, " slot"]
    """Place of each in the batch."""
    weight: Float[np.ndarray, " slot"]
    """Its part of a mean over the batch; 0 for an event that is repeated to have an equal number
    for each device."""


class Devices(NamedTuple):
    """The devices that compute a batch of events."""

    batch_size: int
    local: Mesh
    """Devices of this process."""
    everywhere: Mesh
    """Devices of all processes, as many of each."""

    def slots(self) -> Slots:
        """The share of this process."""
        num_slots = _rounded_up(self.batch_size, self.everywhere.size) * self.local.size
        number = jax.process_index() * num_slots + np.arange(num_slots)
        weight = np.where(number < self.batch_size, 1 / self.batch_size, 0.0)
        return Slots((number % self.batch_size).astype(np.int32), weight.astype(np.float32))

    def replicated(self) -> NamedSharding:
        """The placement of a state: whole on every device."""
        return NamedSharding(self.everywhere, _SAME)

    def replicate(self, tree: Any) -> Any:
        """Places a tree, which is the same in all processes, whole on every device.

        A state with another placement, as after a resume or a change of phase, would be compiled
        for once more.
        """

        def put(leaf):
            host = np.asarray(leaf)
            return jax.make_array_from_callback(
                host.shape, self.replicated(), lambda index: host[index]
            )

        return jax.tree.map(put, tree)

    def spread(self, tree: Any) -> Any:
        """NumPy arrays, whose leading axis is over the events of this process, on its devices."""
        return jax.device_put(tree, NamedSharding(self.local, _SPREAD))

    def of_process(self, tree: Any) -> Any:
        """Replicated arrays as arrays of this process alone."""
        if self.local == self.everywhere:
            return tree
        return jax.tree.map(partial(_regrouped, NamedSharding(self.local, _SAME)), tree)

    def of_all(self, array: Float[Array, "device value"]) -> Float[Array, "all_devices value"]:
        """The rows of all processes, each of which has those of its own devices."""
        if self.local == self.everywhere:
            return array
        shape = (self.everywhere.size, *array.shape[1:])
        return _regrouped(NamedSharding(self.everywhere, _SPREAD), array, shape)


def spread_over(batch_size: int) -> Devices:
    """As many devices as have an event to compute, and as many of each process.

    Raises:
      UserError: there are fewer events than processes.
    """
    num_processes = jax.process_count()
    if batch_size < num_processes:
        raise UserError(
            f"batch_size is {batch_size}, so some of the {num_processes} processes have no event; "
            "choose a multiple of their number, or start fewer."
        )
    of_each = [jax.local_devices(process_index=index) for index in range(num_processes)]
    num_devices = min(*map(len, of_each), _rounded_up(batch_size, num_processes))
    taken = [devices[:num_devices] for devices in of_each]
    return Devices(
        batch_size,
        Mesh(np.array(taken[jax.process_index()]), (EVENT_AXIS,)),
        Mesh(np.array(taken).reshape(-1), (EVENT_AXIS,)),
    )


def make_spread_step(
    tune: Tune, dtype: DTypeLike, phase: int, devices: Devices
) -> Callable[[TrainState, EventGraph, PRNGKeyArray], tuple[TrainState, StepMetrics]]:
    """The update `(state, graphs, key) -> (state, metrics)` by the events of all processes.

    `graphs` are NumPy arrays with a leading axis over the slots of this process, all padded to one
    bucket. A device takes its events one after another, see `batch_gradient`. The randomness of an
    event depends on `key`, `state.step` and its place in the batch alone, and so on nothing that
    the devices decide. `state` is donated.

    The gradient is compiled once per bucket and exchanges nothing. The optimiser has hundreds of
    operations that do not depend on the bucket, so it is compiled apart and only once.
    """
    of_loss, of_update = loss_method(tune, dtype, phase), update_method(tune, dtype, phase)
    slots = devices.spread(devices.slots())

    def train_step(state: TrainState, graphs: EventGraph, key: PRNGKeyArray):
        model = Model(state.params, state.batch_stats, state.loss_scale)
        sums = _device_sums(
            of_loss,
            devices.local,
            *devices.of_process((model, state.step)),
            devices.spread(graphs),
            slots,
            key,
        )
        return _update(of_update, devices.replicated(), state, devices.of_all(sums))

    return train_step


def any_process(*wishes: bool) -> list[bool]:
    """For each wish, whether any process has it. All processes must ask at the same step."""
    if jax.process_count() == 1:
        return list(wishes)
    return process_allgather(np.array(wishes)).any(axis=0).tolist()


def mean_of_processes(values: Sequence[float]) -> float:
    """Mean over the values of all processes. All of them must ask at the same step."""
    sums = process_allgather(np.array([np.sum(values), len(values)], np.float32))
    total, number = sums.sum(axis=0).tolist()
    return total / number


def join_processes(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Meets the processes that train together; to be called before jax looks for devices.

    Args:
      coordinator_address: `host:port` of process 0. A single process has None here and below.
      num_processes: how many there are.
      process_id: number of this one, from 0.

    Raises:
      UserError: the values do not go together.
      OSError: the others are not there.
    """
    given = coordinator_address, num_processes, process_id
    if given == (None, None, None):
        return
    if coordinator_address is None or num_processes is None or process_id is None:
        raise UserError(
            "coordinator_address, num_processes and process_id go together; give all three, or "
            "none of them to train with one process."
        )
    host, _, port = coordinator_address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"coordinator_address is {coordinator_address!r}; expected host and port of process 0, "
            "like localhost:12345."
        )
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"process_id is {process_id}; expected a number from 0 to {num_processes - 1}, another "
            f"one for each of the {num_processes} processes."
        )
    try:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    except RuntimeError as error:
        raise OSError(
            f"coordinator_address is {coordinator_address}, but the {num_processes} processes did "
            "not meet there; start all of them, with a port of process 0 that is free."
        ) from error


@partial(jax.jit, static_argnums=(0, 1))
def _device_sums(
    method: LossMethod,
    mesh: Mesh,
    model: Model,
    step: Int[Array, ""],
    graphs: EventGraph,
    slots: Slots,
    key: PRNGKeyArray,
) -> Float[Array, "device value"]:
    """Of every device the `batch_gradient` of its events, as a vector.

    A single vector, so that the devices exchange one array and not hundreds.
    """

    def of_device(model, graphs, slots, key):
        total = batch_gradient(method, model, graphs, slots.place, slots.weight, key)
        return ravel_pytree(total)[0][None]

    places = _SAME, _SPREAD, _SPREAD, _SAME
    step_key = jax.random.fold_in(key, step)
    return on_each_device(of_device, mesh, places)(model, graphs, slots, step_key)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _update(
    method: UpdateMethod,
    replicated: NamedSharding,
    state: TrainState,
    sums: Float[Array, "device value"],
) -> tuple[TrainState, StepMetrics]:
    """The update by the sum over all devices, which is a mean since the weights add up to 1."""
    model = Model(state.params, state.batch_stats, state.loss_scale)
    _, unravel = ravel_pytree(no_gradient(model))
    after = updated_state(method, state, unravel(sums.sum(axis=0)))
    return jax.lax.with_sharding_constraint(after, replicated)


def _regrouped(
    sharding: NamedSharding, array: Array, shape: tuple[int, ...] | None = None
) -> Array:
    """The shards of this process, as shards of another array."""
    parts = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape or array.shape, sharding, parts)


def _rounded_up(number: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-number // divisor)
