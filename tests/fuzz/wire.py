"""Kafka's record format as some client may write it: batches of version 2, byte by byte, seeded.

    batch    base offset 8, length 4, leader epoch 4, magic 1, CRC 4, attributes 2, last offset delta 4,
             timestamps 8 + 8, producer id 8, epoch 2, sequence 4, count 4 │ records, compressed or not
    record   length, attributes 1, timestamp delta, offset delta, key, value, headers      sizes are varints, -1 is null

Clients choose header names, keys, timestamps and codecs; brokers look at few of them. Each recipe makes one batch that
is whole, whatever it holds, or one that no broker should take (`Batch.whole` is False): that is found out by sending.
It knows the format by heart and builds it by no client library, so what reads it is judged by somebody else. Invariant:
`Batch.records` are exactly what its bytes say.
"""

import gzip
import random
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cramjam
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.record.util import calc_crc32c

from tests.support.fuzz import NOW_MS, fuzzed, good, user_of
from tests.support.raw_batches import produce_raw

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
TRANSACTIONAL, CONTROL = 0x10, 0x20
HEAD = struct.Struct(">qiib")  # base offset, length, leader epoch, magic
BODY = struct.Struct(">hiqqqhii")  # attributes … count
NO_TIMESTAMP = -1
BOMB_BYTES_MAX = 8 << 20
NAMES = (
    b"trace", b"", b"\xff", b"\xc3(", b"caf\xe9", b"\xed\xa0\x80", b"\x00", "☕".encode(), b"x" * 300,
    b"ebbtide-reason", b"ebbtide-\xff",
)  # fmt: skip


class WireRecord(NamedTuple):
    """One record. Header names are bytes, as they are on the wire; `timestamp`: ms, what a reader should be told."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[bytes, bytes | None], ...] = ()
    timestamp: int = NOW_MS


class Batch(NamedTuple):
    """`data` is what is sent. `whole`: whether a broker should take it."""

    recipe: str
    data: bytes
    records: Sequence[WireRecord]
    whole: bool = True


def varint(value: int) -> bytes:
    """Zigzag, seven bits a byte, the lowest first."""
    left, out = (value << 1) ^ (value >> 63), bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


def _sized(content: bytes | None) -> bytes:
    return varint(-1) if content is None else varint(len(content)) + content


def record_bytes(record: WireRecord, offset_delta: int, base_ms: int) -> bytes:
    """A record as it stands in a batch that begins at `base_ms`."""
    body = b"".join(
        [
            b"\0", varint(record.timestamp - base_ms), varint(offset_delta), _sized(record.key),
            _sized(record.value), varint(len(record.headers)),
            *(_sized(name) + _sized(value) for name, value in record.headers),
        ]
    )  # fmt: skip
    return varint(len(body)) + body


def batch_bytes(
    records: Sequence[WireRecord],
    *,
    codec: int = NONE,
    attributes: int = 0,
    base_ms: int | None = None,
    count: int | None = None,
    wrong_crc: bool = False,
) -> bytes:
    """A batch of these records. `count` and `wrong_crc` are for lies."""
    base = records[0].timestamp if base_ms is None else base_ms
    payload = b"".join(record_bytes(record, n, base) for n, record in enumerate(records))
    body = BODY.pack(
        codec | attributes, len(records) - 1, base, max(r.timestamp for r in records), -1, -1, -1,
        len(records) if count is None else count,
    ) + _compressed(codec, payload)  # fmt: skip
    crc = calc_crc32c(body) ^ wrong_crc
    return HEAD.pack(0, len(body) + 9, -1, 2) + struct.pack(">I", crc) + body


def _compressed(codec: int, payload: bytes) -> bytes:
    match codec:
        case 1:
            return gzip.compress(payload, 1)
        case 2:  # Java's framing
            packed = bytes(cramjam.snappy.compress_raw(payload))
            return b"\x82SNAPPY\0" + struct.pack(">iii", 1, 1, len(packed)) + packed
        case 3:
            packer = cramjam.lz4.Compressor(block_linked=False)  # Kafka reads no other frames
            packer.compress(payload)
            return bytes(packer.finish())
        case 4:
            return bytes(cramjam.zstd.compress(payload))
    return payload


Recipe = Callable[[random.Random], Batch]


def _records(draw: random.Random, most: int = 40) -> list[WireRecord]:
    """What the JSON fuzzer makes, as a client would send it; no large ones."""
    made = fuzzed(draw.getrandbits(48), draw.randrange(1, most))
    return [WireRecord(r.key, r.value) for r in made if len(r.value or b"") < 20_000] or [
        WireRecord(b"c1", b"{}")
    ]


def _codecs(draw: random.Random) -> Batch:
    records, codec = _records(draw), draw.randrange(5)
    return Batch("codecs", batch_bytes(records, codec=codec), records)


def _headers(draw: random.Random) -> Batch:
    """Names of any bytes, none, many, repeated; values that are not there."""

    def some() -> tuple[tuple[bytes, bytes | None], ...]:
        names = draw.choices([*NAMES, draw.randbytes(4)], k=draw.choice([0, 1, 3, 50]))
        return tuple((name, draw.choice([None, b"", b"\xff\0", draw.randbytes(9)])) for name in names)

    records = [record._replace(headers=some()) for record in _records(draw)]
    return Batch("headers", batch_bytes(records, codec=draw.randrange(5)), records)


def _keys(draw: random.Random) -> Batch:
    keys = [None, b"", b"\xff\xfe", b"\0", b"c" * 4_000, "é".encode("latin-1"), draw.randbytes(16)]
    records = [record._replace(key=draw.choice([record.key, *keys])) for record in _records(draw)]
    records.append(WireRecord(None, None))
    return Batch("keys", batch_bytes(records, codec=draw.randrange(5)), records)


def _no_time(draw: random.Random) -> Batch:
    """No timestamp, which brokers take."""
    records = [record._replace(timestamp=NO_TIMESTAMP) for record in _records(draw)]
    return Batch("no time", batch_bytes(records), records)


def _times(draw: random.Random) -> Batch:
    """Out of order, before the batch's own base, at the beginning of time."""
    times = [0, 1, NOW_MS, NOW_MS - 10**9, NOW_MS - draw.randrange(10**6)]
    records = [record._replace(timestamp=draw.choice(times)) for record in _records(draw)]
    return Batch("times", batch_bytes(records, base_ms=NOW_MS, codec=draw.randrange(5)), records)


def _bomb(draw: random.Random) -> Batch:
    """Few bytes that are many: one record, or very many."""
    codec, size = draw.randrange(1, 5), draw.randrange(1 << 20, BOMB_BYTES_MAX)
    event = good(draw)
    key = user_of(event)
    if draw.random() < 0.5:
        records = [WireRecord(key, b"x" * size)]
    else:
        records = [WireRecord(key, b" ")] * draw.randrange(1_000, 20_000)
    return Batch("bomb", batch_bytes(records, codec=codec), records)


def _control(draw: random.Random) -> Batch:
    """Only brokers write these."""
    records = [WireRecord(b"\0\0\0\1", b"\0\0\0\0\0\1")]
    flags = draw.choice([CONTROL, CONTROL | TRANSACTIONAL, TRANSACTIONAL])
    return Batch("control", batch_bytes(records, attributes=flags), records, whole=False)


def _lies(draw: random.Random) -> Batch:
    """A wrong checksum, a wrong count, an unknown codec, an end in the middle."""
    records = _records(draw)
    n = len(records)
    data = draw.choice(
        [
            batch_bytes(records, wrong_crc=True),
            batch_bytes(records, count=n + draw.randrange(1, 9)),
            batch_bytes(records, count=-1),
            batch_bytes(records, attributes=7),
            batch_bytes(records)[: -draw.randrange(1, 12)],
        ]
    )
    return Batch("lies", data, records, whole=False)


RECIPES: dict[Recipe, int] = {
    _codecs: 20, _headers: 30, _keys: 15, _no_time: 10, _times: 10, _bomb: 3, _control: 5, _lies: 7,
}  # fmt: skip


def wire_batch(draw: random.Random) -> Batch:
    """A batch by a recipe drawn at random."""
    (recipe,) = draw.choices(list(RECIPES), list(RECIPES.values()))
    return recipe(draw)


async def send_batch(producer: AIOKafkaProducer, topic: str, partition: int, batch: Batch) -> str:
    """Send it as it is. Returns "" when it was taken, else the name of the broker's refusal."""
    try:
        await produce_raw(producer, topic, partition, batch.data)
    except KafkaError as error:
        return type(error).__name__
    return ""
