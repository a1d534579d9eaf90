"""Host side: events from files to submissions on the workers of a dask cluster.

Needs the extra `cluster`. All workers have to see the files and the output under the same paths.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distributed import Client, KilledWorker, WorkerPlugin, as_completed, get_worker

from hypertrack_jax.errors import UserError
from hypertrack_jax.evaluation.reconstruct_files import Found, Reconstruct, reconstruct_place
from hypertrack_jax.evaluation.report import Row
from hypertrack_jax.events.places import EventPlace, read_place

PATIENCE = 10.0
"""Seconds in which a scheduler has to answer."""


class ModelPlugin(WorkerPlugin):
    """Loads a model once on each worker, also on those that join later."""

    def __init__(self, name: str, load: Callable[[], Reconstruct]):
        self.name, self._load = name, load

    def setup(self, worker: Any) -> None:
        """Called by dask as soon as a worker is there."""
        self.reconstruct = self._load()


def reconstruct_on_cluster(
    address: str,
    load: Callable[[], Reconstruct],
    places: Sequence[EventPlace],
    output: Path,
    min_hits: int,
    problems: list[str],
    *,
    lenient: bool = False,
    num_pages: int = 0,
    watched: Callable[..., Iterable[Any]] = lambda futures, total: futures,
) -> Iterator[Row]:
    """Reconstructs events as `reconstruct_files` does, on the workers of a running cluster.

    If a worker is lost, others take its events. Each submission is written whole, and each event is
    reported once.

    Args:
      address: that of the scheduler, such as `tcp://10.0.0.1:8786`.
      load: called on each worker to get what finds the tracks; cloudpickle has to be able to send
        it.
      places: where the events lie, for every worker.
      output: directory for the submissions, for every worker.
      min_hits: as in `reconstruct_files`.
      problems: gets a sentence for each event that is left out.
      lenient: as in `read_event`.
      num_pages: as in `reconstruct_files`.
      watched: passes on the futures as they are done, and may show progress, such as `tqdm`.

    Yields:
      Size and scores of each event, in the order in which they are done.

    Raises:
      UserError: no scheduler answers at the address.
      ImportError: the model or a page needs a package that is missing on a worker.
      OSError: a file cannot be written.
    """
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{address}: no scheduler of dask answers there; start one with `dask scheduler` and "
            "workers with `dask worker ADDRESS`, or name the address that it prints."
        ) from error
    # With its own name, since the cluster may serve others with other models.
    plugin = ModelPlugin(f"hypertrack-{uuid.uuid4().hex}", load)
    with client:
        client.register_plugin(plugin)
        try:
            futures = {
                client.submit(
                    _reconstruct_here,
                    *(plugin.name, place, output, min_hits, lenient, number < num_pages),
                    key=f"{plugin.name}-{place.event_id}",
                    pure=False,
                ): place
                for number, place in enumerate(places)
            }
            done = as_completed(futures, loop=client.loop)
            for future in watched(done, total=len(futures)):
                try:
                    found = future.result()
                except KilledWorker:
                    number = futures[future].event_id
                    problems.append(
                        f"event {number}: every worker that tried it was lost, most likely for "
                        "want of memory; give workers more, or reconstruct it alone."
                    )
                    continue
                if isinstance(found, str):
                    problems.append(found)
                else:
                    yield found
        finally:
            client.unregister_worker_plugin(plugin.name)


def _reconstruct_here(
    name: str,
    place: EventPlace,
    output: Path,
    min_hits: int,
    lenient: bool,
    has_page: bool,
) -> Found:
    """Runs on a worker."""
    plugin: Any = get_worker().plugins[name]
    return reconstruct_place(
        plugin.reconstruct,
        lambda place: read_place(place, lenient=lenient),
        place,
        output,
        min_hits,
        has_page=has_page,
    )
