"""Messages as Kafka's record batches, in rounds: a request holds at most one batch a topic partition.

    messages ─▶ by topic partition, in order ─▶ round 0: first batch of each · round 1: second of each · …

Pure, but for the partitioner's draw of a place for a message without a key.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from aiokafka import TopicPartition
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from ebbtide.stream.outputs.message import Message

SEQUENCES = 1 << 31
"""A producer's numbers a topic partition begin again after so many."""
MAGIC, PLAIN, TRANSACTIONAL = 2, 0, 1


class Producer(NamedTuple):
    """What the broker knows a transactional producer by: its id, and the epoch that its owner was given."""

    id: int
    epoch: int


def placed(
    messages: Sequence[Message], partitions: Mapping[str, Sequence[int]]
) -> dict[TopicPartition, list[Message]]:
    """The messages by the topic partition they go to, in order. `partitions`: of each of their topics."""
    choose, found = DefaultPartitioner(), dict[TopicPartition, list[Message]]()
    for message in messages:
        numbers = partitions[message.topic]
        number = choose(message.key, numbers, numbers) if message.partition is None else message.partition
        found.setdefault(TopicPartition(message.topic, number), []).append(message)
    return found


def rounds(
    placed: Mapping[TopicPartition, Sequence[Message]],
    producer: Producer,
    sequences: dict[TopicPartition, int],
    batch_bytes_max: int,
) -> list[dict[TopicPartition, bytes]]:
    """Batches of at most `batch_bytes_max`, except for a single record that is larger, to be sent round by round.
    `sequences`, the producer's next number in each topic partition, moves on."""
    made: list[dict[TopicPartition, bytes]] = []
    for tp, messages in placed.items():
        at = n = 0
        while at < len(messages):
            builder = DefaultRecordBatchBuilder(
                MAGIC,
                PLAIN,
                TRANSACTIONAL,
                producer.id,
                producer.epoch,
                sequences.get(tp, 0),
                batch_bytes_max,
            )
            begin = at
            while at < len(messages):
                _, key, value, headers, timestamp_ms, _ = messages[at]
                if builder.append(at - begin, timestamp_ms, key, value, list(headers)) is None:
                    break
                at += 1
            sequences[tp] = (sequences.get(tp, 0) + at - begin) % SEQUENCES
            if n == len(made):
                made.append({})
            made[n][tp] = bytes(builder.build())
            n += 1
    return made
