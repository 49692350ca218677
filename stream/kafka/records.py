"""Record batches as they lie in a log, read so that none of them can hurt more than its own partition.

    a fetch    | batch | batch | control | batch | …             Kafka's record format, version 2
    a batch    base offset 8, length 4, LEADER EPOCH 4, magic 1, CRC 4, attributes 2 (codec, transactional, control),
               last offset delta 4, timestamps 8 + 8, producer id 8, epoch 2, sequence 4, count 4 │ records, compressed

aiokafka's own reader ends whoever reads on a header name that is not UTF-8 (brokers do not look, and librdkafka sends
what it is given), decompresses whatever it is handed (17 kB may be 17 MiB, or 17 GiB), and drops the leader epoch. So
each batch is read here: its codec by a decompressor that stops at a bound, its records by aiokafka's compiled reader,
and by a forgiving one where that fails. `read_safely` puts this into a consumer that has started.

Invariants: a batch that cannot be read raises UnreadableBatch when a fetch *begins* with it; what lies before it has
been given out by then. `next_fetch_offset` passes control batches, aborted ones and gaps, as aiokafka's does.
"""

# ruff: noqa: SLF001 -- what a fetch brought is private to aiokafka; tests/unit/test_private_names.py pins the names

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cramjam
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import KafkaError
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords
from numpy.typing import NDArray

from ebbtide.stream.clock import SystemClock
from ebbtide.stream.errors import UnreadableBatch

HEADER = struct.Struct(">qiibIhiqqqhii")
LENGTH = struct.Struct(">i")
FRAME_BYTES, MAGIC_AT, ATTRIBUTES_AT = 12, 16, 21
CODEC_MASK, LOG_APPEND_TIME, TRANSACTIONAL, CONTROL = 0x07, 0x08, 0x10, 0x20
CODECS = {1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}
XERIAL, XERIAL_BYTES = b"\x82SNAPPY\x00", 16  # Java's snappy comes in blocks, each behind its length
VARINT_BITS_MAX = 63
FETCH = 1  # the key of Kafka's fetch API
UNREADABLE = (
    "look at it with kafka-dump-log; raise kafka.fetch_uncompressed_bytes_max if it is too large; what is corrupt can"
    " be passed by moving the log's begin behind it (kafka-delete-records) and a rebuild"
)
FULL = (
    "failed to write whole buffer",
    "smaller than required",
)  # what cramjam says of an output that is too small


class PlainRecord(NamedTuple):
    """A record, as the forgiving reader gives it: what aiokafka's `ConsumerRecord` is made from."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    checksum: None
    headers: list[tuple[str, bytes | None]]


class BatchHeader(NamedTuple):
    """The 61 bytes in front of a batch's records; timestamps in ms."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    first_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int


class Decompressor:
    """Decompresses a batch of up to `bytes_max` bytes. Not for two threads at once: the output is its own, used again
    (memory that is never written to costs nothing)."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._output: NDArray[np.uint8] | None = None

    def plain(self, batch: bytes) -> bytes:
        """The same batch without its compression. Raises ValueError when it cannot be, or is larger than the bound."""
        codec = batch[ATTRIBUTES_AT + 1] & CODEC_MASK
        if codec == 0:
            return batch
        if codec not in CODECS:
            raise ValueError(f"it is compressed by an unknown codec, {codec}")
        if self._output is None:
            self._output = np.empty(HEADER.size + self._bytes_max, np.uint8)
        output = self._output
        try:
            size = _decompress(CODECS[codec], memoryview(batch)[HEADER.size :], output[HEADER.size :])
        except cramjam.DecompressionError as error:
            if any(words in str(error) for words in FULL):
                raise ValueError(
                    f"{len(batch):,} bytes that are more than {self._bytes_max:,} once decompressed"
                ) from error
            raise ValueError(f"it cannot be decompressed ({CODECS[codec]}): {error}") from error
        output[: HEADER.size] = np.frombuffer(batch, np.uint8, HEADER.size)
        output[ATTRIBUTES_AT + 1] &= ~np.uint8(CODEC_MASK)
        return output[: HEADER.size + size].tobytes()


def _decompress(codec: str, payload: memoryview, output: NDArray[np.uint8]) -> int:
    """Bytes written to `output`. Raises cramjam.DecompressionError, also when they are more than fit."""
    if codec != "snappy":
        written: int = getattr(cramjam, codec).decompress_into(payload, output)
        return written
    if bytes(payload[: len(XERIAL)]) != XERIAL:
        return int(cramjam.snappy.decompress_raw_into(payload, output.data))
    at, size = XERIAL_BYTES, 0
    while at + LENGTH.size <= len(payload):
        (length,) = LENGTH.unpack_from(payload, at)
        at += LENGTH.size
        size += cramjam.snappy.decompress_raw_into(payload[at : at + length], output[size:].data)
        at += length
    return size


def forgiving(batch: bytes) -> list[PlainRecord]:
    """The records of an uncompressed batch; a header name that is not UTF-8 has backslash escapes for what is not.
    Raises ValueError or IndexError when the bytes make no sense."""
    header = BatchHeader(*HEADER.unpack_from(batch))
    append_time = bool(header.attributes & LOG_APPEND_TIME)
    at, records = HEADER.size, list[PlainRecord]()

    def varint() -> int:
        nonlocal at
        raw = shift = 0
        while True:
            byte = batch[at]
            at += 1
            raw |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (raw >> 1) ^ -(raw & 1)
            shift += 7
            if shift > VARINT_BITS_MAX:
                raise ValueError("a number of more than ten bytes")

    def sized() -> bytes | None:
        nonlocal at
        length = varint()
        if length < 0:
            return None
        if at + length > len(batch):
            raise ValueError("a record is longer than its batch")
        at += length
        return batch[at - length : at]

    for _ in range(header.records):
        length = varint()
        end = at + length
        at += 1  # attributes: none is in use
        timestamp = header.max_timestamp if append_time else header.first_timestamp
        timestamp += 0 if append_time else varint()
        if append_time:
            varint()
        offset, key, value = header.base_offset + varint(), sized(), sized()
        headers = [((sized() or b"").decode(errors="backslashreplace"), sized()) for _ in range(varint())]
        if at != end:
            raise ValueError(f"a record of {length} bytes ends after {length + at - end}")
        records.append(PlainRecord(offset, timestamp, int(append_time), key, value, None, headers))
    return records


class RecordBatches:
    """What one fetch brought of a partition: an iterator of records, in the place of aiokafka's PartitionRecords.

    `next_fetch_offset` is the position after what was given out; `leader_epoch` that of the last batch passed, -1 when
    unknown. Every reader of ours reads what was committed, and no more.
    """

    def __init__(
        self,
        tp: TopicPartition,
        raw: bytes,
        aborted: Sequence[tuple[int, int]],
        fetch_offset: int,
        decompressor: Decompressor,
        finish: Callable[[Any], Any] | None,
    ) -> None:
        self._tp, self._raw, self._begin = tp, raw, fetch_offset
        self._aborted = sorted(aborted, key=lambda each: each[1])  # (producer id, first offset)
        self._decompressor, self._finish = decompressor, finish
        self._aborting: set[int] = set()
        self.next_fetch_offset = fetch_offset
        self.leader_epoch = -1
        self._records = self._unpack()

    def __iter__(self) -> Iterator[Any]:
        return self._records  # goes on where it was left

    def __next__(self) -> Any:
        return next(self._records)

    def _unpack(self) -> Iterator[Any]:
        for batch in _frames(self._raw):
            try:
                leader_epoch, next_offset, records = self._read(batch)
            except (ValueError, IndexError, struct.error, KafkaError) as error:
                if self.next_fetch_offset > self._begin:
                    return  # it is met again, at the begin of the next fetch
                where = f"{self._tp.topic}[{self._tp.partition}] at offset {self.next_fetch_offset}"
                raise UnreadableBatch(f"{where} cannot be read: {error}", hint=UNREADABLE) from error
            self.leader_epoch = leader_epoch
            for record in records:
                # One before it is of the batch that the fetch cut into.
                if record.offset >= self.next_fetch_offset:
                    self.next_fetch_offset = record.offset + 1
                    yield record if self._finish is None else self._finish(record)
            # The last offset of a batch outlives its records, whatever compaction took.
            self.next_fetch_offset = next_offset

    def _read(self, batch: bytes) -> tuple[int, int, Sequence[Any]]:
        """Leader epoch, the offset after it, and its records that may be seen."""
        if batch[MAGIC_AT] < 2:  # from before Kafka 0.11: no epoch, no transactions, no headers
            old = MemoryRecords(batch).next_batch()
            if not old.validate_crc():
                raise ValueError("its checksum is wrong")
            return -1, old.next_offset, list(old)
        header = BatchHeader(*HEADER.unpack_from(batch))
        next_offset = header.base_offset + header.last_offset_delta + 1
        if not DefaultRecordBatch(batch).validate_crc():
            raise ValueError("its checksum is wrong")
        while self._aborted and self._aborted[0][1] <= header.base_offset:
            self._aborting.add(self._aborted.pop(0)[0])
        if header.attributes & CONTROL:
            marker = next(iter(DefaultRecordBatch(self._decompressor.plain(batch))), None)
            if marker is not None and ControlRecord.parse(marker.key) == ABORT_MARKER:
                self._aborting.discard(header.producer_id)
            return header.leader_epoch, next_offset, ()
        if header.attributes & TRANSACTIONAL and header.producer_id in self._aborting:
            return header.leader_epoch, next_offset, ()
        plain = self._decompressor.plain(batch)
        try:
            return header.leader_epoch, next_offset, list(DefaultRecordBatch(plain))
        except UnicodeDecodeError:
            return header.leader_epoch, next_offset, forgiving(plain)


def _frames(raw: bytes) -> Iterator[bytes]:
    """The whole batches of a fetch, whose last one may have been cut short."""
    at = 0
    while at + FRAME_BYTES <= len(raw):
        end = at + FRAME_BYTES + LENGTH.unpack_from(raw, at + FRAME_BYTES - LENGTH.size)[0]
        if end > len(raw) or end <= at + MAGIC_AT:
            return
        yield raw[at:end]
        at = end


class Answers:
    """A client that keeps the bytes that the last fetch was answered with, until they have been taken: at once, or not
    at all, of partitions that were given away meanwhile.

    asked_ms: when each partition's last answer was asked for, by the wall clock, ms UTC: it was not made before that,
    whenever it is read (a machine that was suspended meanwhile reads it an hour later).
    """

    def __init__(self, client: Any) -> None:
        self._client, self._clock = client, SystemClock()
        self.raw: dict[TopicPartition, bytes] = {}
        self.asked_ms: dict[TopicPartition, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def send(self, node_id: int, request: Any) -> Any:
        asked_ms = self._clock.now_ms()
        response = await self._client.send(node_id, request)
        if request.API_KEY == FETCH:
            self.raw = {
                TopicPartition(topic, partition): records
                for topic, partitions in response.topics
                for partition, *_, records in partitions
            }
            self.asked_ms.update(dict.fromkeys(self.raw, asked_ms))
        return response


class _Arrivals(OrderedDict[TopicPartition, Any]):
    """What has been fetched and not taken, by partition. Whatever is put in is read by us from then on."""

    def __init__(self, answers: Answers, bytes_max: int, bare: bool) -> None:
        super().__init__()
        self._answers, self._bare = answers, bare
        self._decompressor = Decompressor(bytes_max)

    def __setitem__(self, tp: TopicPartition, held: Any) -> None:
        if isinstance(held, FetchResult) and isinstance(theirs := held._partition_records, PartitionRecords):
            finish = None if self._bare else lambda record: theirs._consumer_record(tp, record)
            held._partition_records = RecordBatches(
                tp,
                self._answers.raw.pop(tp),
                theirs._aborted_transactions,
                theirs.next_fetch_offset,
                self._decompressor,
                finish,
            )
        super().__setitem__(tp, held)


def read_safely(consumer: AIOKafkaConsumer, bytes_max: int, *, bare: bool = False) -> Answers:
    """Read what `consumer` fetches as this module says. Called once it has started and before it has a partition.

    `bytes_max`: of one batch, decompressed. `bare`: records know no topic and partition, and cost half as much.
    """
    fetcher = consumer._fetcher
    fetcher._client = answers = Answers(fetcher._client)
    fetcher._records = _Arrivals(answers, bytes_max, bare)
    return answers
