"""A topic's id, its partitions, and what we may do with it: Metadata v10, or v8.

A worker that may not write dead letters would find out at its first bad record, days later; one whose topic was made
anew under its name would fold on as if nothing had happened. A cluster without an authorizer grants everything; a
broker that is too old to tell an id gives an empty one, never an error.
"""

from collections.abc import Sequence
from enum import IntEnum
from io import BytesIO
from typing import Any
from uuid import UUID

from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, CompactArray, Int16, Int32, Schema, TaggedFields

from ebbtide.stream.kafka.protocol.wire import COMPACT, NO_TAGS, TEXT

NOT_TOLD = -(1 << 31)  # Kafka's own default of a set of operations


class Operation(IntEnum):
    """Kafka's codes, each one's bit in a set of operations. Of them a worker needs these."""

    READ = 3
    WRITE = 4
    CREATE = 5
    DESCRIBE = 8


class Uuid(AbstractType[bytes]):  # type: ignore[misc]  # aiokafka publishes no types
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class MetadataResponseV8(Response):  # type: ignore[misc]  # aiokafka publishes no types
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", TEXT), ("port", Int32), ("rack", TEXT))),
        ("cluster_id", TEXT),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", TEXT),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32),
                        ("replicas", Array(Int32)), ("isr", Array(Int32)), ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("operations", Int32),
            ),
        ),
        ("cluster_operations", Int32),
    )  # fmt: skip


class MetadataRequestV8(RequestStruct):  # type: ignore[misc]  # aiokafka publishes no types
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = MetadataResponseV8
    SCHEMA = Schema(
        ("topics", Array(TEXT)),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_operations", Boolean),
        ("include_topic_operations", Boolean),
    )


class MetadataResponseV10(Response):  # type: ignore[misc]  # aiokafka publishes no types
    """The first with a topic's id."""

    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32), ("host", COMPACT), ("port", Int32), ("rack", COMPACT), ("tags", TaggedFields)
            ),
        ),
        ("cluster_id", COMPACT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", COMPACT),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)), ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)), ("tags", TaggedFields),
                    ),
                ),
                ("operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_operations", Int32),
        ("tags", TaggedFields),
    )  # fmt: skip


class MetadataRequestV10(RequestStruct):  # type: ignore[misc]  # aiokafka publishes no types
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = MetadataResponseV10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("topic", COMPACT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_operations", Boolean),
        ("include_topic_operations", Boolean),
        ("tags", TaggedFields),
    )


class DescribeTopics(Request[MetadataRequestV8 | MetadataRequestV10]):  # type: ignore[misc]  # aiokafka publishes no types
    """Of `topics`, none of them created by being asked for."""

    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: Any) -> RequestStruct:
        if request_struct_class is MetadataRequestV8:
            return MetadataRequestV8(self._topics, False, False, True)
        named = [(bytes(16), topic, NO_TAGS) for topic in self._topics]
        return MetadataRequestV10(named, False, False, True, NO_TAGS)


class Described:
    """A topic as Kafka describes it to us; `partitions` counts them, `leaderless` those that nobody serves now,
    `replicas` is the smallest number of copies, `topic_id` is "" when it is not told."""

    def __init__(
        self, error_code: int, topic_id: str, partitions: Sequence[tuple[Any, ...]], operations: int
    ) -> None:
        self._error = kafka_errors.for_code(error_code)
        self.topic_id, self.partitions, self._operations = topic_id, len(partitions), operations
        self.leaderless = sum(leader == -1 for _, _, leader, *_ in partitions)
        self.replicas = min((len(replicas) for _, _, _, _, replicas, *_ in partitions), default=0)

    @property
    def there(self) -> bool:
        return self._error is kafka_errors.NoError

    @property
    def forbidden(self) -> bool:
        """We may not even know whether it is there."""
        return self._error is kafka_errors.TopicAuthorizationFailedError

    def allows(self, operation: Operation) -> bool:
        return self._operations == NOT_TOLD or bool(self._operations >> operation & 1)


async def describe(client: AIOKafkaClient, topics: list[str]) -> dict[str, Described]:
    """Topic → what we are told of it. Raises KafkaError."""
    answer = await client.send(client.get_random_node(), DescribeTopics(topics))
    if answer.API_VERSION == MetadataResponseV8.API_VERSION:
        rows = [(code, name, "", parts, operations) for code, name, _, parts, operations in answer.topics]
    else:
        rows = [
            (code, name, str(UUID(bytes=found)) if any(found) else "", parts, operations)
            for code, name, found, _, parts, operations, _ in answer.topics
        ]
    return {
        name: Described(code, topic_id, parts, operations) for code, name, topic_id, parts, operations in rows
    }
