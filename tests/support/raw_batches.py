"""Record batches as other clients write them, byte by byte: what aiokafka's producer would never send.

A batch is built by aiokafka's builder, then changed where a test wants it, with its checksum made good again.
"""

import struct
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
HEADER_BYTES, EPOCH_AT, CRC_AT, ATTRIBUTES_AT = 61, 12, 17, 21

Row = tuple[bytes | None, bytes | None, Sequence[tuple[str, bytes | None]]]


def batch_of(
    rows: Sequence[Row],
    *,
    codec: str = "none",
    base_offset: int = 0,
    leader_epoch: int = -1,
    timestamp_ms: int = 1_700_000_000_000,
    transactional: bool = False,
    producer_id: int = -1,
) -> bytes:
    """A batch of version 2, of these keys, values and headers, a millisecond apart."""
    builder = DefaultRecordBatchBuilder(
        2, CODECS[codec], int(transactional), producer_id, 0 if producer_id >= 0 else -1, -1, 1 << 30
    )
    for n, (key, value, headers) in enumerate(rows):
        assert builder.append(n, timestamp_ms + n, key, value, list(headers)) is not None
    batch = bytearray(builder.build())
    struct.pack_into(">q", batch, 0, base_offset)
    struct.pack_into(">i", batch, EPOCH_AT, leader_epoch)
    return bytes(batch)  # neither is under the checksum


def replaced(batch: bytes, old: bytes, new: bytes) -> bytes:
    """The batch with `old` written over by `new`, of the same length, and a checksum that agrees."""
    assert len(old) == len(new) and old in batch
    changed = bytearray(batch.replace(old, new))
    struct.pack_into(">I", changed, CRC_AT, calc_crc32c(memoryview(changed)[ATTRIBUTES_AT:]))
    return bytes(changed)


async def produce_raw(producer: AIOKafkaProducer, topic: str, partition: int, batch: bytes) -> int:
    """Send a batch as it is. Returns the offset that its first record got."""
    tp = TopicPartition(topic, partition)
    await producer.partitions_for(topic)
    leader = producer.client.cluster.leader_for_partition(tp)
    request = ProduceRequest(
        transactional_id=None, required_acks=-1, timeout=10_000, topics=[(topic, [(partition, batch)])]
    )
    answer = await producer.client.send(leader, request)
    ((_, ((_, code, offset, *_),)),) = answer.topics
    if code:
        raise for_code(code)(tp)
    return int(offset)
