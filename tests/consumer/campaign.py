"""Whom to call: the open episodes of an alert topic, by librdkafka's client, as the contract of `alert.json` asks.

    record ─▶ null?            forget the customer in the key: their episodes are over, and so is what is known of them
              seen before?     `sequence` is not above the last of customer and target: do nothing, as of a duplicate
              opened           call them        escalated   call them sooner
              resolved         stop             corrected   stop, and say that it was a mistake
              anything else    remember the sequence; a field or a state of a later release changes nothing here

The position is committed after what it stands for was done, so after a crash records come again: their sequences make
that harmless. A real one keeps `last` and `episodes` where its work is kept, and writes both at once.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from confluent_kafka import Consumer, Message

OPEN, SHUT = ("opened", "escalated"), ("resolved", "corrected")


class Whom(NamedTuple):
    """Of whom an episode is, and about what."""

    customer: str
    target: str


@dataclass
class Campaign:
    """episodes: who is to be called, and the band of their risk; last: the highest sequence heard of each; done: what
    was done, in order. `valid` raises for a value that is no alert."""

    valid: Callable[[dict[str, object]], None]
    episodes: dict[Whom, str] = field(default_factory=dict)
    last: dict[Whom, int] = field(default_factory=dict)
    done: list[tuple[str, Whom]] = field(default_factory=list)

    def hear(self, key: bytes, value: bytes | None) -> None:
        """One record of the topic, in the order of its partition."""
        if value is None:
            customer = key.decode()
            for whom in [whom for whom in self.last if whom.customer == customer]:
                del self.last[whom]
                if self.episodes.pop(whom, None) is not None:
                    self.done.append(("forget", whom))
            return
        alert = json.loads(value)
        if alert["schema_version"] != 2:
            return  # of a release before ours: nothing of it is open any more, or an alert of today says so
        self.valid(alert)
        whom, state = Whom(alert["customer"], alert["target"]), alert["state"]
        if alert["sequence"] <= self.last.get(whom, 0):  # a duplicate, too: its sequence was heard
            return
        self.last[whom] = alert["sequence"]
        if state in OPEN:
            self.episodes[whom] = alert["band"]
            self.done.append(("call", whom))
        elif state in SHUT and self.episodes.pop(whom, None) is not None:
            self.done.append(("stop" if state == "resolved" else "apologise", whom))


def records(consumer: Consumer, topic: str, idle_s: float) -> Iterator[Message]:
    """The topic's records, until none has come for so long; a position is committed when the next record is asked for.
    Raises what the client calls fatal."""
    consumer.subscribe([topic])
    while (message := consumer.poll(idle_s)) is not None:
        if error := message.error():
            if error.fatal():
                raise RuntimeError(str(error))
            continue  # librdkafka tells, and goes on by itself
        yield message
        consumer.commit(message=message, asynchronous=True)


def connect(servers: str, group: str) -> Consumer:
    """A member of a group that reads from the topic's beginning, and only what was committed."""
    return Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
