"""Events without those that cannot be read."""

from collections.abc import Iterator

from hypertrack_jax.errors import UserError
from hypertrack_jax.events.event import Event
from hypertrack_jax.training.batches import EventSource, fixed_events


class ReadableEvents:
    """The `fixed_events` of a source without those that cannot be read."""

    def __init__(self, source: EventSource):
        self.source = source
        self.problems: list[str] = []
        """A sentence for each event that was left out."""

    def __len__(self) -> int:
        return len(self.source.event_ids)

    def __iter__(self) -> Iterator[Event]:
        for event_id in self.source.event_ids:
            try:
                yield from fixed_events(self.source._replace(event_ids=[event_id]))
            except (UserError, OSError) as error:
                # The events may be read more than once.
                if str(error) not in self.problems:
                    self.problems.append(str(error))
