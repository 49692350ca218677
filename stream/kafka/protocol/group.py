"""What a group has committed: OffsetFetch v7, or v3.

A partition of which nothing was ever committed begins anew: nothing of its past is news, and its committed offset is
set. So "nothing" may be said only where it is so. Two answers look like it, and aiokafka takes them for it:

- An error of the whole group (its coordinator is another broker, or reads its log still) comes without partitions.
- Up to Kafka 3.9 the offset of a transaction that is over is read for a moment as it was before (KIP-447); `stable`
  waits for it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.errors import KafkaError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.commit import OffsetFetchRequest_v3
from aiokafka.protocol.types import Boolean, CompactArray, Int16, Int32, Int64, Schema, TaggedFields

from ebbtide.stream.kafka.protocol.wire import COMPACT, NO_TAGS

UNSTABLE_OFFSET_COMMIT = 88
"""A transaction with an offset is not over; aiokafka does not know the code."""
ASK_AGAIN_S = 0.1


class OffsetFetchResponseV7(Response):  # type: ignore[misc]  # aiokafka publishes no types
    API_KEY = 9
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", COMPACT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", COMPACT),
                        ("error_code", Int16), ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("error_code", Int16),
        ("tags", TaggedFields),
    )  # fmt: skip


class OffsetFetchRequestV7(RequestStruct):  # type: ignore[misc]  # aiokafka publishes no types
    """The first that waits for transactions (KIP-447)."""

    API_KEY = 9
    API_VERSION = 7
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = OffsetFetchResponseV7
    SCHEMA = Schema(
        ("group", COMPACT),
        (
            "topics",
            CompactArray(("topic", COMPACT), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)),
        ),
        ("require_stable", Boolean),
        ("tags", TaggedFields),
    )


class OffsetFetch(Request[OffsetFetchRequest_v3 | OffsetFetchRequestV7]):  # type: ignore[misc]  # aiokafka publishes no types
    """Of a group, about these partitions. `stable`: not while a transaction may still move them."""

    API_KEY = 9

    def __init__(self, group: str, tps: Collection[TopicPartition], *, stable: bool) -> None:
        self._group, self._stable = group, stable
        self._topics: dict[str, list[int]] = defaultdict(list)
        for tp in tps:
            self._topics[tp.topic].append(tp.partition)

    def build(self, request_struct_class: Any) -> RequestStruct:
        topics = list(self._topics.items())
        if request_struct_class is OffsetFetchRequest_v3:
            return request_struct_class(self._group, topics)
        return OffsetFetchRequestV7(self._group, [(*each, NO_TAGS) for each in topics], self._stable, NO_TAGS)


async def committed_offsets(
    send: Callable[[OffsetFetch], Awaitable[Any]],
    group: str,
    tps: Collection[TopicPartition],
    *,
    stable: bool = False,
) -> dict[TopicPartition, tuple[int, str]]:
    """Offset and metadata of each that the group has committed; `send` asks its coordinator.

    Raises KafkaError, also of what the answer says of the group as a whole; under `stable` a retriable one while a
    transaction may still move one of them.
    """
    answer = await send(OffsetFetch(group, tps, stable=stable))
    _raise(answer.error_code, group, group)
    found: dict[TopicPartition, tuple[int, str]] = {}
    for topic, partitions, *_ in answer.topics:
        for each in partitions:
            partition, offset, metadata, code = each if len(each) == 4 else (*each[:2], *each[3:5])
            _raise(code, topic, group)
            if offset >= 0:
                found[TopicPartition(topic, partition)] = (offset, metadata or "")
    return found


async def ask_committed(
    coordinator: Any, group: str, tps: Collection[TopicPartition], *, stable: bool = False
) -> dict[TopicPartition, tuple[int, str]]:
    """`committed_offsets`, asked of a consumer's coordinator until it tells; not bounded. Raises KafkaError of what
    does not pass."""
    while True:
        await coordinator.ensure_coordinator_known()
        try:
            return await committed_offsets(coordinator._send_req, group, tps, stable=stable)  # noqa: SLF001 -- it keeps the connection
        except KafkaError as error:
            if not error.retriable:
                raise
            if isinstance(error, kafka_errors.NotCoordinatorForGroupError):
                coordinator.coordinator_dead()
        await asyncio.sleep(ASK_AGAIN_S)


def _raise(code: int, of: str, group: str) -> None:
    """The error of a topic or a group: whoever is refused is told by the error whose right it lacks."""
    if code == UNSTABLE_OFFSET_COMMIT:
        raise kafka_errors.GroupLoadInProgressError(f"a transaction of {group!r} is not over yet")
    error = kafka_errors.for_code(code)
    if error is not kafka_errors.NoError:
        raise error(of)
