"""The log below a group's mark, batch by batch, for whoever makes a state again beside the group.

    begin ───────────────────────── mark ───────── end
          given out, as batches that │ never given out: not said yet, and to be said
          follow each other          │ by whoever the group's worker is then

It reads outside of any group and commits nothing, so the group does not notice. A batch states the consumer's position
before and after its fetch, as the worker's own do (`stream/batch.py`), so gaps of compaction and transactions belong to
the batch they lie in; one that straddles the committed offset is cut there. It refuses to know what a batch is folded
into.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import CoordinationType
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from ebbtide.stream.batch import CommittedOffset, FetchedBatch
from ebbtide.stream.errors import BrokerUnavailable, CheckpointOutsideLog, StreamError
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.errors import failure
from ebbtide.stream.kafka.protocol.group import committed_offsets
from ebbtide.stream.kafka.reader import reader
from ebbtide.stream.kafka.settings import KafkaSettings

POLL_S = 1.0
RETRY_S = 0.25


class CommittedLog:
    """The partitions of `settings.topic` up to the committed offsets of `settings.group`. Open it with
    `open_settled`."""

    def __init__(
        self,
        settings: KafkaSettings,
        consumer: AIOKafkaConsumer,
        admin_client: AIOKafkaAdminClient,
        partitions: list[TopicPartition],
    ) -> None:
        self._settings, self._consumer, self._admin = settings, consumer, admin_client
        self._tps = {tp.partition: tp for tp in partitions}
        self._positions: dict[int, int] = {}
        # Before the consumer has its turn: it would look for a position by itself, and find none.
        consumer.pause(*partitions)
        for tp in partitions:
            consumer.seek(tp, 0)

    @property
    def partitions(self) -> int:
        """How many the topic has."""
        return len(self._tps)

    async def committed(self) -> dict[int, CommittedOffset]:
        """The group's marks as Kafka holds them now; a partition that was never committed has none."""
        problem: Exception = TimeoutError()
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                while True:
                    try:
                        group, tps = self._settings.group, list(self._tps.values())
                        found = await committed_offsets(self._ask_coordinator, group, tps)
                        break
                    except KafkaError as error:  # a coordinator that moves, or is elected just now
                        if not error.retriable:
                            raise
                        problem = error
                    await asyncio.sleep(RETRY_S)
        except (KafkaError, TimeoutError) as error:
            problem = problem if isinstance(error, TimeoutError) else error
            raise failure(
                self._settings, f"to tell the committed offsets of {self._settings.group!r}", problem
            ) from error
        return {tp.partition: CommittedOffset(*at) for tp, at in found.items()}

    async def _ask_coordinator(self, request: Any) -> Any:
        client = self._admin._client  # noqa: SLF001 -- its own question passes over what is said of the whole group
        node = await client.coordinator_lookup(CoordinationType.GROUP, self._settings.group)
        return await client.send(node, request)

    async def ranges(self) -> dict[int, tuple[int, int]]:
        """By partition: the first retained offset, and the one after the last that may be read."""
        tps = list(self._tps.values())
        try:
            begin, end = await self._consumer.beginning_offsets(tps), await self._consumer.end_offsets(tps)
        except KafkaError as error:
            raise failure(self._settings, "to tell the offsets", error) from error
        return {tp.partition: (begin[tp], end[tp]) for tp in tps}

    def seek(self, partition: int, offset: int) -> None:
        """The next batch of the partition begins at `offset`."""
        self._positions[partition] = offset
        self._consumer.seek(self._tps[partition], offset)
        self._consumer.resume(self._tps[partition])

    async def next(self, partition: int, until: int) -> FetchedBatch | None:
        """The batch that begins where the last one ended; None at `until`, which no record given out reaches.

        May be asked for several partitions at once. Raises CheckpointOutsideLog when retention was faster,
        BrokerUnavailable when nothing comes, and then `seek` has to be called again.
        """
        start, tp = self._positions[partition], self._tps[partition]
        if start >= until:
            return None
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                if start != await self._consumer.position(tp):
                    self._consumer.seek(tp, start)
                end, records = start, []
                while end == start:
                    fetched = await self._consumer.getmany(
                        tp, timeout_ms=round(POLL_S * 1000), max_records=self._settings.fetch_records_max
                    )
                    records, end = fetched.get(tp, []), await self._consumer.position(tp)
        except (KafkaError, TimeoutError) as error:
            raise self._problem(tp, start, error) from error
        if end > until:
            records, end = [record for record in records if record.offset < until], until
        self._positions[partition] = end
        return FetchedBatch(tp.topic, partition, 0, start, end, records)

    def _problem(self, tp: TopicPartition, start: int, error: Exception) -> StreamError:
        where = f"{tp.topic}[{tp.partition}] at offset {start}"
        if isinstance(error, OffsetOutOfRangeError):
            return CheckpointOutsideLog(
                f"{where}: Kafka no longer has it",
                hint="retention was faster: drop what was made, begin again",
            )
        if isinstance(error, TimeoutError):
            return BrokerUnavailable(f"Kafka at {self._settings.url} sends nothing of {where}")
        return failure(self._settings, f"to let us read {where}", error)


@asynccontextmanager
async def open_committed_log(settings: KafkaSettings) -> AsyncIterator[CommittedLog]:
    """The log below the committed offsets of `settings.group`. Raises BrokerUnavailable, BrokerMisconfigured."""
    async with admin(settings) as client, reader(settings, settings.topic, reset=False) as (consumer, tps):
        yield CommittedLog(settings, consumer, client, tps)
