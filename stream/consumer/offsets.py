"""Questions about offsets and the commit, as asked of a consumer that belongs to the group.

They run in the consumer thread (stream.consumer.thread), wait no longer than they are told, and answer in our terms:
aiokafka itself asks again for as long as an error may pass. What is committed is a committed offset: an offset with its
metadata.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup
from aiokafka.errors import KafkaError
from aiokafka.protocol.commit import OffsetCommitRequest

from ebbtide.stream.batch import CommittedOffset, lost_tail
from ebbtide.stream.errors import AnotherLog, BrokerMisconfigured, BrokerUnavailable
from ebbtide.stream.kafka.errors import failure
from ebbtide.stream.kafka.protocol import group, logs, metadata
from ebbtide.stream.kafka.settings import KafkaSettings

RETRY_S = 0.1
NO_LINGER = struct.pack("ii", 1, 0)
TOGETHER_S = 1.0
NOT_A_MEMBER = (
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
)
log = logging.getLogger(__name__)


class Member(NamedTuple):
    """Who commits: what the group's coordinator knew us by when the partitions became ours."""

    generation: int
    id: str


async def log_range(
    settings: KafkaSettings, consumer: AIOKafkaConsumer, tp: TopicPartition
) -> tuple[int, int]:
    """First retained offset, and the one after the last record that may be read."""
    both = asyncio.gather(consumer.beginning_offsets([tp]), consumer.end_offsets([tp]))
    begin, end = await _answer(settings, both)
    return begin[tp], end[tp]


async def log_ranges(
    settings: KafkaSettings,  # noqa: ARG001 -- as all of these
    consumer: AIOKafkaConsumer,
    tps: Collection[TopicPartition],
) -> dict[TopicPartition, tuple[int, int] | None]:
    """`log_range` of each, in a request a broker; None of one whose leader has not answered within TOGETHER_S: it is to
    be asked about by itself, and holds up nobody else."""
    client, found = consumer._client, dict[TopicPartition, tuple[int, int] | None].fromkeys(tps)  # noqa: SLF001 -- see below
    with suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(TOGETHER_S):
            begins = await logs.log_ends(client, tps, logs.READ_COMMITTED, logs.EARLIEST)
            ends = await logs.log_ends(client, tps, logs.READ_COMMITTED)
        found |= {tp: (begin, ends[tp]) for tp, begin in begins.items() if tp in ends}
    return found


async def committed(
    settings: KafkaSettings, consumer: AIOKafkaConsumer, tps: Collection[TopicPartition]
) -> dict[TopicPartition, CommittedOffset | None]:
    """The group's committed offset of each; None if there never was one.

    Not before a transaction of an earlier owner is over, ended by whoever took the partition over: up to Kafka 3.9 its
    offset may be read for a moment as it was before.
    """
    coordinator = consumer._coordinator  # noqa: SLF001 -- consumer.committed() drops the metadata
    asked = group.ask_committed(coordinator, settings.group, tps, stable=True)
    found = await _answer(settings, asked)
    return {tp: CommittedOffset(*found[tp]) if tp in found else None for tp in tps}


async def epoch_end(
    settings: KafkaSettings, consumer: AIOKafkaConsumer, tp: TopicPartition, leader_epoch: int
) -> int | None:
    """As `Source.epoch_end`. Asked again while a leader moves."""

    async def ask() -> int | None:
        while True:
            try:
                return await logs.epoch_end_offset(consumer._client, tp, leader_epoch)  # noqa: SLF001 -- it has no public way to ask
            except KafkaError as error:
                if not error.retriable:
                    raise
            await asyncio.sleep(RETRY_S)

    end: int | None = await _answer(settings, ask())
    return end


async def ask_tail(
    settings: KafkaSettings, consumer: AIOKafkaConsumer, tp: TopicPartition, leader_epoch: int, read: int
) -> AnotherLog | BrokerUnavailable | None:
    """As `lost_tail`, asked. That it cannot be asked is wrong, too: whoever hears of it opens the partition again, and
    asks then."""
    try:
        end = await epoch_end(settings, consumer, tp, leader_epoch)
    except BrokerUnavailable as error:
        return error
    return lost_tail(tp.partition, read, leader_epoch, end)


async def topic_id(settings: KafkaSettings, consumer: AIOKafkaConsumer) -> str:
    """As `Source.topic_id`."""
    described = await _answer(settings, metadata.describe(consumer._client, [settings.topic]))  # noqa: SLF001 -- see above
    found: str = described[settings.topic].topic_id
    return found


async def log_ends(
    consumer: AIOKafkaConsumer, tps: Iterable[TopicPartition]
) -> dict[TopicPartition, tuple[int, int]]:
    """(high watermark, last stable offset) of the partitions whose leaders answer. Raises KafkaError."""
    client = consumer._client  # noqa: SLF001 -- end_offsets() knows one of the two
    high = await logs.log_ends(client, tps, logs.READ_UNCOMMITTED)
    stable = await logs.log_ends(client, tps, logs.READ_COMMITTED)
    return {tp: (end, stable.get(tp, -1)) for tp, end in high.items()}


async def commit(
    settings: KafkaSettings,
    consumer: AIOKafkaConsumer,
    member: Member,
    committed: Mapping[TopicPartition, CommittedOffset],
    timeout_s: float,
) -> bool:
    """True when Kafka has them; False when it may not, and they stay to be committed, by us or the next owner.

    In the name of `member`, and of nobody else: aiokafka's own commit speaks for whoever we are when it is sent. Put
    out of the group, that is nobody, and a group that has lost all of its members takes an offset from anybody.
    """
    coordinator = consumer._coordinator  # noqa: SLF001 -- consumer.commit() names no member, see above
    topics = [(settings.topic, [(tp.partition, *at) for tp, at in committed.items()])]
    request = OffsetCommitRequest(settings.group, *member, OffsetCommitRequest.DEFAULT_RETENTION_TIME, topics)
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    await coordinator.ensure_coordinator_known()
                    await _lets_go_when_closed(consumer, coordinator.coordinator_id)
                    _raise_refusal(settings, await coordinator._send_req(request))  # noqa: SLF001 -- it keeps the connection
                    return True
                except NOT_A_MEMBER:
                    return False  # a rebalance is under way, or was
                except KafkaError as error:
                    if not error.retriable:
                        raise
                    if isinstance(error, kafka_errors.NotCoordinatorForGroupError):
                        coordinator.coordinator_dead()
                await asyncio.sleep(RETRY_S)
    except (KafkaError, TimeoutError) as error:
        problem = failure(settings, "a commit", error)
        if isinstance(problem, BrokerMisconfigured):
            raise problem from error
        log.warning("not committed", extra={"reason": str(problem)})
        return False


async def _lets_go_when_closed(consumer: AIOKafkaConsumer, coordinator_id: int) -> None:
    """Closed before it was answered, the coordinator's connection takes a commit with it that has not left this
    machine. Closed in good manners, the system would go on sending it for minutes, and it would arrive behind the next
    one, which goes by another connection: the committed offset would move back."""
    client, lane = consumer._client, ConnectionGroup.COORDINATION  # noqa: SLF001 -- its connections are private
    await client.ready(coordinator_id, group=lane)
    connection = client._conns.get((coordinator_id, lane))  # noqa: SLF001 -- see above
    writer = connection._writer if connection is not None else None  # noqa: SLF001 -- see above
    if writer is not None and (sock := writer.get_extra_info("socket")) is not None:
        with suppress(OSError):  # it is closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)


def _raise_refusal(settings: KafkaSettings, answer: Any) -> None:
    """Raises the first error of a commit's answer, of what it is."""
    for topic, partitions in answer.topics:
        for _, code in partitions:
            error = kafka_errors.for_code(code)
            if error is not kafka_errors.NoError:
                raise error(settings.group if error is kafka_errors.GroupAuthorizationFailedError else topic)


async def _answer(settings: KafkaSettings, question: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(settings.request_timeout_s):
            return await question
    except (KafkaError, TimeoutError) as error:
        raise failure(settings, "to tell offsets", error) from error
