"""A look every few seconds at the topic as a whole, in the consumer thread: where its logs end, and whether it is still
the same topic.

A partition that is paused, stopped or being opened is not fetched: its log grows unseen; and those of others say
whether the whole topic is quiet. A topic that is deleted and made again is fetched on as if it were the same, once it
is as long. One request a broker and isolation, and one about the topic.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from ebbtide.stream.clock import SystemClock
from ebbtide.stream.consumer import offsets
from ebbtide.stream.errors import AnotherLog, PartitionFault, StreamError
from ebbtide.stream.kafka.settings import KafkaSettings

EVERY_S = 2.0


class TopicWatch:
    """`on_other`: called once another topic is found to have taken this one's place. What it holds may be looked at
    from the event loop."""

    def __init__(self, settings: KafkaSettings, on_other: Callable[[], None]) -> None:
        self._settings, self._on_other = settings, on_other
        self._task: asyncio.Task[None] | None = None
        self._clock = SystemClock()
        self._ends: dict[TopicPartition, tuple[int, int]] = {}
        self._asked_ms = 0
        self._id = ""  # what the topic was when a partition was opened first
        self._other_id = ""  # … and what it was found to be since
        self.topic_end = -1
        """As `Source.topic_end`."""

    @property
    def is_another(self) -> bool:
        """The topic was made again since a partition was opened first."""
        return bool(self._other_id)

    def begin(self, consumer: AIOKafkaConsumer) -> None:
        """Partitions were assigned: what the topic is now is the one that they are of."""
        self._id = self._other_id = ""
        if self._task is None:
            self._task = asyncio.create_task(self._watch(consumer))

    def end(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()

    def ends(self, tp: TopicPartition) -> tuple[int, int]:
        """(high watermark, last stable offset) of a partition when they were looked at last; -1 is unknown."""
        return self._ends.get(tp, (-1, -1))

    def seen_ms(self, tp: TopicPartition) -> int:
        """When that was asked, by the wall clock, ms UTC; 0 when it is not known. Look at it before the ends."""
        return self._asked_ms if tp in self._ends else 0

    async def topic_id(self, consumer: AIOKafkaConsumer) -> str:
        """As `Source.topic_id`."""
        found = await offsets.topic_id(self._settings, consumer)
        self._id = self._id or found
        return found

    def another_log(self, tp: TopicPartition) -> PartitionFault:
        """What is wrong with each partition of a topic that was made again."""
        return AnotherLog(
            f"partition {tp.partition}: the topic was deleted and made again: it is {self._other_id} now, and was"
            f" {self._id}; what came of the new one in the last seconds may have been folded",
            hint="rebuild the state, under another kafka.group and redis.prefix",
        )

    async def _watch(self, consumer: AIOKafkaConsumer) -> None:
        topic = self._settings.topic
        while True:
            every = {TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic) or ()}
            ours = {tp for tp in consumer.assignment() if tp.topic == topic}
            with suppress(KafkaError, TimeoutError):
                asked_ms = self._clock.now_ms()
                async with asyncio.timeout(self._settings.request_timeout_s):
                    self._ends = await offsets.log_ends(consumer, every | ours)
                self._asked_ms = asked_ms
                if every <= self._ends.keys():
                    self.topic_end = sum(self._ends[tp][0] for tp in every)
            with suppress(StreamError):
                found = await offsets.topic_id(self._settings, consumer)
                if self._id and found and found != self._id:
                    self._other_id = found
                    self._on_other()
            await asyncio.sleep(EVERY_S)
