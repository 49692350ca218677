"""What we may do with a topic, asked before anything is done: Kafka tells with a topic's description, if it is asked.

A worker that may not write dead letters would find out at its first bad record, days later. The client library's own
request is too old to ask, so ours is here: Metadata v8, the last one without compact fields. It knows operations by
Kafka's numbers; it refuses to say who needs which. A cluster without an authorizer grants everything.
"""

from enum import IntEnum

from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

TEXT = String("utf-8")
NOT_TOLD = -(1 << 31)  # Kafka's own default of a set of operations


class Operation(IntEnum):
    """Kafka's codes, each one's bit in a set of operations. Of them a worker needs these."""

    READ = 3
    WRITE = 4
    CREATE = 5
    DESCRIBE = 8


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


class DescribeTopics(Request[MetadataRequestV8]):  # type: ignore[misc]  # aiokafka publishes no types
    """Of `topics`, none of them created by being asked for."""

    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[MetadataRequestV8]) -> MetadataRequestV8:
        return request_struct_class(self._topics, False, False, True)


class Described:
    """A topic as Kafka describes it to us; `partitions` counts them."""

    def __init__(self, error_code: int, partitions: int, operations: int) -> None:
        self._error, self.partitions, self._operations = (
            kafka_errors.for_code(error_code),
            partitions,
            operations,
        )

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
    return {
        topic: Described(error_code, len(partitions), operations)
        for error_code, topic, _, partitions, operations in answer.topics
    }
