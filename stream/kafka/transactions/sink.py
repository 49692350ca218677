"""Exactly once, for whoever reads committed records: each partition's messages and its committed offset in one
transaction.

    opening    1 take_over   2 committed offset   3 checkpoint, outbox   4 what is unsaid, with the offset
    serving    letters, nulls, scores: a transaction without an offset, before the apply · alerts: one with it, after

Kafka decides what was said, Redis what is known. A partition with nothing to say makes no transaction; its offset goes
by the group's ordinary commit, and never while one of its transactions is open, for Kafka keeps what it wrote last.

A producer is three numbers and a few sequence numbers, so all partitions have theirs, over the connections of one
client. *Refused*: a client library's producer a partition, which is four sockets and three tasks each, and a bound on
how many are alive, which makes a thousand partitions take each other's places.
"""

import asyncio
from collections.abc import Sequence
from typing import Self

from aiokafka.errors import KafkaError

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.stream.batch import Hold, Source
from ebbtide.stream.errors import BrokerUnavailable, PartitionRevoked
from ebbtide.stream.kafka.errors import failure, transactional_prefix
from ebbtide.stream.kafka.producer import TOO_LARGE, too_large
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.transactions.link import Link
from ebbtide.stream.kafka.transactions.producer import TRANSACTION_S, PartitionProducer, take_over
from ebbtide.stream.outputs.message import Parcel


class ExactlyOnce:
    """The `Delivery` of a worker (see there). An async context manager."""

    def __init__(self, settings: KafkaSettings, link: Link | None = None) -> None:
        self._settings, self._link = settings, link or Link(settings)
        self._producers: dict[int, PartitionProducer] = {}
        self._source: Source | None = None

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        try:
            # Once, so that a right that is missing is told before the group is joined, and not by each partition.
            async with asyncio.timeout(self._settings.request_timeout_s):
                await take_over(self._link, f"{transactional_prefix(self._settings)}start")
        except (KafkaError, TimeoutError) as error:
            await self._link.__aexit__()
            raise failure(self._settings, "transactions", error) from error
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._link.__aexit__(*error)

    def attach(self, source: Source) -> None:
        """As in `Delivery`."""
        self._source = source

    async def take_over(self, partition: int) -> None:
        """As in `Delivery`: by its epoch."""
        if (last := self._producers.pop(partition, None)) is not None:
            last.broken = True
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                producer = await PartitionProducer.take_over(self._link, self._settings, partition)
        except (KafkaError, TimeoutError) as error:
            raise failure(self._settings, "to take over a partition", error) from error
        self._producers[partition] = producer
        self._committed.forget_committed(partition)

    async def send_each(self, parcels: Sequence[Parcel]) -> list[EbbtideError | None]:
        """As in `Delivery`: a transaction a parcel, all at once."""
        told = [parcel for parcel in parcels if parcel.messages]
        # Bound now: a turn that is left over from before a partition was taken over anew has the producer of its time.
        producers = {parcel.partition: self._producers.get(parcel.partition) for parcel in told}
        with_offset = frozenset(parcel.partition for parcel in told if parcel.committed is not None)
        hold = Hold(frozenset(), -1)
        try:
            if with_offset:
                hold = await self._committed.hold_commits(with_offset)
        except EbbtideError as error:
            return [error if parcel.messages else None for parcel in parcels]
        saying = [
            asyncio.ensure_future(self._say(parcel, producers[parcel.partition], hold)) for parcel in told
        ]
        try:
            outcomes = dict(
                zip((parcel.partition for parcel in told), await asyncio.gather(*saying), strict=True)
            )
        except asyncio.CancelledError:
            await asyncio.wait(saying)
            raise
        return [outcomes.get(parcel.partition) for parcel in parcels]

    def abandon(self) -> None:
        """What is on its way is refused once the next owner has taken over, so nobody has to be held back."""

    @property
    def _committed(self) -> Source:
        if self._source is None:
            raise RuntimeError("attach a source before partitions are taken over")
        return self._source

    async def _say(
        self, parcel: Parcel, producer: PartitionProducer | None, hold: Hold
    ) -> EbbtideError | None:
        partition, messages, committed = parcel
        if committed is not None and partition not in hold.partitions:
            return PartitionRevoked(f"partition {partition} is not ours")
        said = False
        try:
            if producer is None:
                return BrokerUnavailable(f"the producer of partition {partition} has to be taken over")
            async with asyncio.timeout(min(self._settings.request_timeout_s, TRANSACTION_S)):
                await producer.transact(messages, committed)
            said = True
        except EbbtideError as error:
            return error
        except TOO_LARGE as error:
            return too_large(error)
        except (KafkaError, TimeoutError) as error:
            return failure(self._settings, "to take what we sent", error, "WRITE")
        finally:
            if committed is not None:
                self._settled(parcel, producer, said)
                self._committed.release_commits(hold, partition)
        return None

    def _settled(self, parcel: Parcel, producer: PartitionProducer | None, said: bool) -> None:
        """Tell whose offsets they are; of a producer that has been replaced meanwhile, only that it is over."""
        if self._producers.get(parcel.partition) is producer:
            if said and parcel.committed is not None:
                self._committed.note_committed(parcel.partition, parcel.committed)
            else:
                self._committed.forget_committed(parcel.partition)
