"""Questions about offsets and the commit, as asked of a consumer that belongs to the group.

They run in the consumer thread (stream.consumer.thread), wait no longer than they are told, and answer in our terms:
aiokafka itself asks again for as long as an error may pass. What is committed is a committed offset: an offset with its
metadata.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.errors import BrokerMisconfigured
from ebbtide.stream.kafka.errors import failure
from ebbtide.stream.kafka.settings import KafkaSettings

log = logging.getLogger(__name__)


async def log_range(
    settings: KafkaSettings, consumer: AIOKafkaConsumer, tp: TopicPartition
) -> tuple[int, int]:
    """First retained offset, and the one after the last record that may be read."""
    both = asyncio.gather(consumer.beginning_offsets([tp]), consumer.end_offsets([tp]))
    begin, end = await _answer(settings, both)
    return begin[tp], end[tp]


async def committed(
    settings: KafkaSettings, consumer: AIOKafkaConsumer, tp: TopicPartition
) -> CommittedOffset | None:
    """The group's mark; None if there never was one."""
    coordinator = consumer._coordinator  # noqa: SLF001 -- consumer.committed() drops the metadata
    found = (await _answer(settings, coordinator.fetch_committed_offsets([tp]))).get(tp)
    return None if found is None else CommittedOffset(found.offset, found.metadata)


async def commit(
    settings: KafkaSettings,
    consumer: AIOKafkaConsumer,
    committed: Mapping[TopicPartition, CommittedOffset],
    timeout_s: float,
) -> bool:
    """True when Kafka has `marks`; False when it may not, and they stay to be committed, by us or the next owner."""
    try:
        async with asyncio.timeout(timeout_s):
            await consumer.commit({tp: OffsetAndMetadata(*committed) for tp, committed in committed.items()})
    except (CommitFailedError, IllegalStateError):
        return False  # a rebalance is under way
    except (KafkaError, TimeoutError) as error:
        problem = failure(settings, "a commit", error)
        if isinstance(problem, BrokerMisconfigured):
            raise problem from error
        log.warning("not committed", extra={"reason": str(problem)})
        return False
    return True


async def _answer(settings: KafkaSettings, question: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(settings.request_timeout_s):
            return await question
    except (KafkaError, TimeoutError) as error:
        raise failure(settings, "to tell offsets", error) from error
