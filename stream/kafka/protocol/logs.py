"""Where logs end, and where the log of a leader epoch does: ListOffsets, aiokafka's own, and OffsetForLeaderEpoch v3.

A worker whose log lost its tail would fold on as if nothing had happened. A broker that is too old to say is "unknown"
(None), never an error.
"""

from collections import defaultdict
from collections.abc import Iterable

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.types import Array, Int16, Int32, Int64, Schema

from ebbtide.stream.kafka.protocol.wire import TEXT

EARLIEST, LATEST = -2, -1
READ_UNCOMMITTED, READ_COMMITTED = 0, 1


class EpochEndResponseV3(Response):  # type: ignore[misc]  # aiokafka publishes no types
    API_KEY = 23
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                ("topic", TEXT),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16), ("partition", Int32), ("leader_epoch", Int32), ("end_offset", Int64)
                    ),
                ),
            ),
        ),
    )  # fmt: skip


class EpochEndRequestV3(RequestStruct):  # type: ignore[misc]  # aiokafka publishes no types
    API_KEY = 23
    API_VERSION = 3
    RESPONSE_TYPE = EpochEndResponseV3
    SCHEMA = Schema(
        ("replica_id", Int32),
        (
            "topics",
            Array(
                ("topic", TEXT),
                (
                    "partitions",
                    Array(("partition", Int32), ("current_leader_epoch", Int32), ("leader_epoch", Int32)),
                ),
            ),
        ),
    )


class EpochEnd(Request[EpochEndRequestV3]):  # type: ignore[misc]  # aiokafka publishes no types
    """Of one partition, asked as a consumer (replica -1) that does not say which leader it expects (-1)."""

    API_KEY = 23

    def __init__(self, tp: TopicPartition, leader_epoch: int) -> None:
        self._tp, self._leader_epoch = tp, leader_epoch

    def build(self, request_struct_class: type[EpochEndRequestV3]) -> EpochEndRequestV3:
        return request_struct_class(-1, [(self._tp.topic, [(self._tp.partition, -1, self._leader_epoch)])])


async def epoch_end_offset(client: AIOKafkaClient, tp: TopicPartition, leader_epoch: int) -> int | None:
    """The offset after the last record of the newest epoch at or below `leader_epoch` in the log of `tp`.

    -1 when the log has no such epoch, as one that was restored from before it; None when the broker is too old to say.
    Raises KafkaError, of a leader that moves a retriable one.
    """
    leader = client.cluster.leader_for_partition(tp)
    if leader is None or leader == -1:
        client.force_metadata_update()
        raise kafka_errors.LeaderNotAvailableError(tp)
    try:
        answer = await client.send(leader, EpochEnd(tp, leader_epoch))
    except (NotImplementedError, kafka_errors.IncompatibleBrokerVersion):
        return None
    ((_, ((code, _, _, end),)),) = answer.topics
    error = kafka_errors.for_code(code)
    if error is kafka_errors.NoError:
        return int(end)
    if error.invalid_metadata:
        client.force_metadata_update()
    raise error(tp)


async def log_ends(
    client: AIOKafkaClient, tps: Iterable[TopicPartition], isolation: int, at: int = LATEST
) -> dict[TopicPartition, int]:
    """Where the logs end now: the high watermark for READ_UNCOMMITTED, the last stable offset for READ_COMMITTED; or
    where they begin, `at` EARLIEST. What a leader does not answer is missing. Raises KafkaError when one cannot be
    reached."""
    by_leader: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for tp in tps:
        leader = client.cluster.leader_for_partition(tp)
        if leader is not None and leader != -1:
            by_leader[leader][tp.topic].append((tp.partition, at))
    ends: dict[TopicPartition, int] = {}
    for leader, topics in by_leader.items():
        answer = await client.send(leader, OffsetRequest(-1, isolation, list(topics.items())))
        for topic, partitions in answer.topics:
            for partition, code, _, offset in partitions:
                if kafka_errors.for_code(code) is kafka_errors.NoError:
                    ends[TopicPartition(topic, partition)] = offset
    return ends
