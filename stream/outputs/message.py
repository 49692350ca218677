"""What goes out to Kafka, and the ways out as protocols: no Kafka client here.

Sink       messages, acknowledged                                       whoever produces
Delivery   what partitions say, each with how far it is then            a worker: at least once, or exactly once
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.stream.batch import CommittedOffset, Source
from ebbtide.stream.errors import RecordTooLarge

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


class Parcel(NamedTuple):
    """What a partition says at once. `committed`: where its committed offset stands when that is said; None of what is
    said ahead of its commit."""

    partition: int
    messages: Sequence[Message]
    committed: CommittedOffset | None = None


class Delivery(Protocol):
    """The way out of a worker's partitions."""

    def attach(self, source: Source) -> None:
        """Whose committed offsets they are; before any partition is taken over."""
        ...

    async def take_over(self, partition: int) -> None:
        """From here on nothing that an earlier owner of the partition still has on its way is heard, as far as this
        can be promised; so its committed offset is read after this. Raises BrokerUnavailable, BrokerMisconfigured."""
        ...

    async def send_each(self, parcels: Sequence[Parcel]) -> list[EbbtideError | None]:
        """By parcel: None when it is acknowledged by all replicas, or why that is not known; its partition is to be
        taken over anew then, and says again what it had to say. No partition has two parcels in one call."""
        ...

    def abandon(self) -> None:
        """As in `Sink`."""
        ...


class AtLeastOnce(ABC):
    """A sink as a `Delivery`: what may not have been acknowledged is said again, with the same id, in order. It knows
    no owners, and how far a partition is goes its own way, later."""

    @abstractmethod
    async def send_all(self, messages: Sequence[Message]) -> None:
        """As in `Sink`."""

    @abstractmethod
    def abandon(self) -> None:
        """As in `Sink`."""

    def attach(self, source: Source) -> None:
        """As in `Delivery`."""
        del source

    async def take_over(self, partition: int) -> None:
        """As in `Delivery`."""
        del partition

    async def send_each(self, parcels: Sequence[Parcel]) -> list[EbbtideError | None]:
        """As in `Delivery`: one error for all, since they travel together. Whose record is too large for its topic
        shows when each goes alone: it is its own partition's affair, and what had gone out goes out again."""
        try:
            await self.send_all([message for parcel in parcels for message in parcel.messages])
        except RecordTooLarge as error:
            if len(parcels) == 1:
                return [error]
            return [(await self.send_each([parcel]))[0] for parcel in parcels]
        except EbbtideError as error:
            return [error] * len(parcels)
        return [None] * len(parcels)
