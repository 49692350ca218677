"""What goes out to Kafka, and the way out as a protocol: no Kafka client here."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

Headers = Sequence[tuple[str, bytes]]


class Message(NamedTuple):
    """One record to produce. `value` None is a tombstone; `timestamp_ms` None means the time of sending; `partition`
    None leaves it to Kafka's default partitioner (murmur2 of the key)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int | None = None
    partition: int | None = None


class Sink(Protocol):
    """Where messages go. Returns when every one is acknowledged by all replicas; raises BrokerUnavailable when that
    is not known for some of them: sending all of them again is safe for whoever reads by id or position."""

    async def send_all(self, messages: Sequence[Message]) -> None: ...

    def abandon(self) -> None:
        """Send nothing more of what is not acknowledged: the partitions it is of are another's. Called on the event
        loop, returns at once; whoever waits in `send_all` gets BrokerUnavailable. What is sent next goes its way."""
        ...
