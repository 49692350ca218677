"""Whoever reads the output topics, as our contract tells them to: what they believe in the end, and what went wrong.

    alerts    opened 10 ─ resolved 20 ─ null ─ opened 30      in offset order, a topic partition at a time
    belief    open        closed        unknown  open

A consumer ignores an alert whose `sequence` is not above the last of customer and target, and forgets a customer at a
null. It
knows keys, values and headers; it refuses to know how they came to be. Two things go wrong that no set of ids shows:
an alert that is ignored though it was never said before (it came behind a later one), and a record that was made of
what lies before a tombstone and comes behind the null that passes it on: forgotten, and there again.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from ebbtide.stream.outputs.dead_letter import tombstone_origin

Place = tuple[str, int]
"""Input topic and partition."""


class Belief(NamedTuple):
    """Of a customer: whether an episode is open, and the last sequence."""

    open: bool
    sequence: int


@dataclass
class AlertConsumer:
    """Reads one alert topic. `beliefs`: by customer. `ignored`: ids that were ignored when they were said first."""

    beliefs: dict[str, Belief] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    _heard: set[str] = field(default_factory=set)

    def read(self, key: bytes, value: bytes | None) -> None:
        """The next record of the customer's partition."""
        if value is None:
            self.beliefs.pop(key.decode(), None)
            return
        said = orjson.loads(value)
        identity, customer, sequence = said["alert_id"], said["customer"], said["sequence"]
        last = self.beliefs.get(customer)
        if last is None or sequence > last.sequence:
            self.beliefs[customer] = Belief(said["state"] in ("opened", "escalated"), sequence)
        elif identity not in self._heard:
            self.ignored.append(identity)
        self._heard.add(identity)


@dataclass
class ForgottenWatch:
    """Reads one output topic of any kind and knows which input records each of its records stems from.

    `behind`: (key, input offset) of what came behind the null of a tombstone that lies above it in the input.
    """

    behind: list[tuple[bytes, int]] = field(default_factory=list)
    _forgotten: dict[tuple[bytes, Place], int] = field(default_factory=lambda: defaultdict(lambda: -1))

    def null(self, key: bytes, headers: Sequence[tuple[str, bytes]]) -> None:
        """A null. One that does not say which tombstone it passes on forgets nothing."""
        if (origin := tombstone_origin(headers)) is not None:
            place = key, (origin.topic, origin.partition)
            self._forgotten[place] = max(self._forgotten[place], origin.offset)

    def value(self, key: bytes, topic: str, partition: int, offset: int) -> None:
        """A record that stems from the input record at `offset`."""
        if offset < self._forgotten[key, (topic, partition)]:
            self.behind.append((key, offset))
