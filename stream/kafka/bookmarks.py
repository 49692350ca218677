"""How far a command has got in a topic, remembered by Kafka itself: a consumer group nobody ever joins.

A committed offset is kept for each partition and *label*, because what is read selectively is finished selectively:
dead letters of one reason may have been replayed to the end while others wait. All labels of a partition travel as the
metadata of one committed offset, the highest of them, so that Kafka's own tools show something true. It knows no dead
letters and sends nothing. The invariant: a committed offset never moves back.
"""

import asyncio
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition
from aiokafka.errors import KafkaError

from ebbtide.stream.ending import closed
from ebbtide.stream.kafka.diagnose import require_metadata, unreachable
from ebbtide.stream.kafka.errors import failure
from ebbtide.stream.kafka.protocol.group import ask_committed
from ebbtide.stream.kafka.settings import KafkaSettings

Progress = dict[int, dict[str, int]]
"""Partition -> label -> the offset after the last one that is done."""


class Bookmarks:
    """The committed offsets of `group` in `topic`. An async context manager."""

    def __init__(self, settings: KafkaSettings, group: str, topic: str) -> None:
        self._settings, self._topic, self._group = settings, topic, group
        self._consumer = AIOKafkaConsumer(
            **settings.client(), group_id=group, enable_auto_commit=False, auto_offset_reset="earliest"
        )

    async def read(self, partitions: int) -> Progress:
        """What was remembered of partitions 0 … partitions - 1. Raises BrokerUnavailable or BrokerMisconfigured."""
        progress: Progress = {}
        tps = [TopicPartition(self._topic, number) for number in range(partitions)]
        self._consumer.assign(tps)
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                # Asked of the group's coordinator, not of the consumer's memory.
                coordinator = self._consumer._coordinator  # noqa: SLF001 -- committed() hides metadata
                found = await ask_committed(coordinator, self._group, tps)
            for tp, (_, metadata) in found.items():
                progress[tp.partition] = _labels(metadata)
        except (KafkaError, TimeoutError) as error:
            raise failure(self._settings, f"to tell what {self._group!r} has done", error) from error
        return progress

    async def refresh(self, known: Progress, partitions: int) -> None:
        """Take into `known` what somebody else has done since: of two at work at once, neither repeats the other."""
        for partition, labels in (await self.read(partitions)).items():
            progress = known.setdefault(partition, {})
            for label, offset in labels.items():
                progress[label] = max(offset, progress.get(label, 0))

    async def write(self, done: Mapping[int, Mapping[str, int]], known: Progress) -> None:
        """Remember `done` on top of what is `known` and what Kafka holds by now; `known` is changed, too."""
        if not done:
            return
        await self.refresh(known, max(done) + 1)
        offsets = {}
        for partition, labels in done.items():
            progress = known.setdefault(partition, {})
            for label, offset in labels.items():
                progress[label] = max(offset, progress.get(label, 0))
            metadata = json.dumps(progress, sort_keys=True, separators=(",", ":"))
            offsets[TopicPartition(self._topic, partition)] = OffsetAndMetadata(
                max(progress.values()), metadata
            )
        try:
            await self._consumer.commit(offsets)
        except KafkaError as error:
            raise failure(self._settings, f"to remember what {self._group!r} has done", error) from error

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
            require_metadata(self._consumer._client)  # noqa: SLF001 -- its cluster is private
        except (KafkaError, OSError, TimeoutError) as error:
            await closed(self._consumer.stop(), "the consumer of bookmarks")
            raise await unreachable(self._settings, error) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await closed(self._consumer.stop(), "the consumer of bookmarks")


def _labels(metadata: str) -> dict[str, int]:
    """What was written; nothing when somebody else's tool has moved the offset."""
    try:
        labels = json.loads(metadata)
    except ValueError:
        return {}
    return {str(label): int(offset) for label, offset in labels.items()} if isinstance(labels, dict) else {}
