"""Raw batches are read as aiokafka reads them, where it can; and where it cannot, they hurt their partition only."""

import gzip
import struct
import tracemalloc
import zlib
from dataclasses import dataclass
from typing import ClassVar

import cramjam
import numpy as np
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.protocol.fetch import FetchResponse_v4
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given, settings
from hypothesis import strategies as st

from ebbtide.stream.errors import UnreadableBatch
from ebbtide.stream.kafka.records import FETCH, Answers, Decompressor, RecordBatches, forgiving
from tests.support.raw_batches import ATTRIBUTES_AT, CODECS, CRC_AT, HEADER_BYTES, Row, batch_of, replaced

TP = TopicPartition("clicks", 3)
ROW: Row = (b"jane", b'{"type": "view"}', [("trace", b"1"), ("empty", None)])
BIG = 1 << 20


def reader(
    raw: bytes, *, bytes_max: int = BIG, fetch_offset: int = 0, aborted: list[tuple[int, int]] | None = None
) -> RecordBatches:
    return RecordBatches(TP, raw, aborted or [], fetch_offset, Decompressor(bytes_max), None)


rows = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=20),
        st.none() | st.binary(max_size=200),
        st.lists(st.tuples(st.text(max_size=8), st.none() | st.binary(max_size=8)), max_size=3),
    ),
    min_size=1,
    max_size=8,
)


@st.composite
def fetches(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]]]:
    """Batches of any codec, some of transactions, some of which were aborted; the last one cut short at times."""
    raw, offset, aborted = b"", draw(st.integers(0, 5)), list[tuple[int, int]]()
    for _ in range(draw(st.integers(1, 4))):
        some, transactional = draw(rows), draw(st.booleans())
        producer_id = draw(st.integers(1, 3)) if transactional else -1
        if transactional and draw(st.booleans()):
            aborted.append((producer_id, offset))
        raw += batch_of(
            some, codec=draw(st.sampled_from(sorted(CODECS))), base_offset=offset, leader_epoch=draw(st.integers(0, 9)),
            transactional=transactional, producer_id=producer_id,
        )  # fmt: skip
        offset += len(some) + draw(st.integers(0, 3))
    return raw + (batch_of(draw(rows), base_offset=offset)[: draw(st.integers(0, 60))]), aborted


@settings(max_examples=150, deadline=None)
@given(fetches(), st.integers(0, 12))
def test_what_aiokafka_can_read_is_read_the_same(
    fetch: tuple[bytes, list[tuple[int, int]]], begin: int
) -> None:
    raw, aborted = fetch
    theirs = PartitionRecords(TP, MemoryRecords(raw), aborted, begin, None, None, True, 1)
    ours = reader(raw, fetch_offset=begin, aborted=aborted)
    for right in theirs:
        found = next(ours)
        assert (found.offset, found.timestamp, found.key, found.value, list(found.headers)) == (
            right.offset, right.timestamp, right.key, right.value, list(right.headers),
        )  # fmt: skip
        assert ours.next_fetch_offset == theirs.next_fetch_offset
    assert next(ours, None) is None
    assert ours.next_fetch_offset == theirs.next_fetch_offset


@settings(max_examples=200, deadline=None)
@given(rows, st.booleans())
def test_the_forgiving_reader_agrees_on_good_batches(some: list[Row], append_time: bool) -> None:
    batch = bytearray(batch_of(some, base_offset=7))
    if append_time:  # the broker's own timestamp, in the header's last-but-one
        batch[ATTRIBUTES_AT + 1] |= 8
        struct.pack_into(">q", batch, 35, 1_800_000_000_000)
    raw = bytes(batch)
    right = list(reader(replaced(raw, raw[CRC_AT : CRC_AT + 4], raw[CRC_AT : CRC_AT + 4])))
    found = forgiving(raw)
    assert [(r.offset, r.timestamp, r.timestamp_type, r.key, r.value, r.headers) for r in found] == [
        (r.offset, r.timestamp, r.timestamp_type, r.key, r.value, r.headers) for r in right
    ]


@pytest.mark.parametrize("codec", CODECS)
def test_a_header_name_that_is_not_utf8_is_read(codec: str) -> None:
    """Its batch is read all the same, also compressed; the name has escapes for what it is not."""
    plain = replaced(batch_of([ROW, (b"joe", b"{}", [("??", b"v")]), ROW]), b"??", b"\xff\xfe")
    batch = plain if codec == "none" else compressed(plain, codec)
    found = list(reader(batch))
    assert [r.offset for r in found] == [0, 1, 2]
    assert [r.key for r in found] == [b"jane", b"joe", b"jane"]
    assert found[1].headers == [("\\xff\\xfe", b"v")]
    assert found[0].headers == [("trace", b"1"), ("empty", None)]


def compressed(plain: bytes, codec: str) -> bytes:
    """The same batch by that codec, with the checksum made good."""
    payload = plain[HEADER_BYTES:]
    packed = {
        "gzip": lambda: gzip.compress(payload),
        "snappy": lambda: bytes(cramjam.snappy.compress_raw(payload)),
        "lz4": lambda: bytes(cramjam.lz4.compress(payload)),
        "zstd": lambda: bytes(cramjam.zstd.compress(payload)),
    }[codec]()
    batch = bytearray(plain[:HEADER_BYTES] + packed)
    struct.pack_into(">i", batch, 8, len(batch) - 12)
    batch[ATTRIBUTES_AT + 1] |= CODECS[codec]
    raw = bytes(batch)
    return replaced(raw, raw[CRC_AT : CRC_AT + 4], raw[CRC_AT : CRC_AT + 4])


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_decompression_stops_at_the_bound(codec: str) -> None:
    """A batch of exactly the bound is read; one byte more is refused, in bytes that a person can compare."""
    batch = batch_of([(b"k", b" " * (3 << 20), [])], codec=codec)
    assert len(batch) < 200_000
    size = len(batch_of([(b"k", b" " * (3 << 20), [])])) - HEADER_BYTES
    assert len(next(reader(batch, bytes_max=size)).value) == 3 << 20
    with pytest.raises(
        UnreadableBatch, match=rf"clicks\[3\] at offset 0 cannot be read.*more than {size - 1:,} once"
    ):
        next(reader(batch, bytes_max=size - 1))


def test_a_bomb_costs_no_memory_beyond_the_bound() -> None:
    """A quarter of a gibibyte of zeros in a quarter of a megabyte is given up at the bound."""
    deflate = zlib.compressobj(wbits=31)
    packed = b"".join(deflate.compress(bytes(1 << 24)) for _ in range(16)) + deflate.flush()
    frame = bytearray(batch_of([ROW], codec="none")[:HEADER_BYTES] + packed)
    struct.pack_into(">i", frame, 8, len(frame) - 12)
    frame[ATTRIBUTES_AT + 1] |= CODECS["gzip"]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="once decompressed"):
            Decompressor(BIG).plain(bytes(frame))
        assert tracemalloc.get_traced_memory()[1] < 3 * BIG
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("where", [30, HEADER_BYTES + 3, -1])
def test_a_rotten_batch_is_a_fault_where_it_begins(where: int) -> None:
    """What lies before it is given out; the next fetch begins with it, and says so."""
    good, bad = batch_of([ROW, ROW]), bytearray(batch_of([ROW], base_offset=2))
    bad[where] ^= 0x55
    both = reader(good + bytes(bad))
    assert [r.offset for r in both] == [0, 1]
    assert both.next_fetch_offset == 2
    with pytest.raises(
        UnreadableBatch, match=r"clicks\[3\] at offset 2 cannot be read: its checksum is wrong"
    ):
        list(reader(bytes(bad), fetch_offset=2))


@pytest.mark.parametrize("seed", range(20))
def test_bytes_at_random_are_a_fault_and_nothing_worse(seed: int) -> None:
    """With a checksum that agrees, so that the records themselves are looked at."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(200):
        batch = bytearray(batch_of([ROW, ROW], codec=str(rng.choice(sorted(CODECS)))))
        for at in rng.integers(ATTRIBUTES_AT, len(batch), rng.integers(1, 6)):
            batch[at] = rng.integers(256)
        raw = bytes(batch)
        again = replaced(raw, raw[CRC_AT : CRC_AT + 4], raw[CRC_AT : CRC_AT + 4])
        try:
            found = list(reader(again))
        except UnreadableBatch:
            continue
        assert len(found) <= 1 << 16


def test_the_leader_epoch_is_of_the_last_batch_passed() -> None:
    """Control batches, aborted ones and empty ones count: they are passed, too."""
    raw = b"".join(
        batch_of(
            [ROW], base_offset=n, leader_epoch=epoch, transactional=n == 2, producer_id=9 if n == 2 else -1
        )
        for n, epoch in enumerate((4, 4, 6))
    )
    found = reader(raw, aborted=[(9, 2)])
    assert found.leader_epoch == -1
    epochs = [(record.offset, found.leader_epoch) for record in found]  # as each is given out
    assert epochs == [(0, 4), (1, 4)]
    assert (found.leader_epoch, found.next_fetch_offset) == (6, 3)


@dataclass(frozen=True)
class Asked:
    """A fetch of one partition."""

    partition: int
    API_KEY: ClassVar[int] = FETCH


class OneBatch:
    """A broker that has a batch in every partition."""

    async def send(self, _node_id: int, request: Asked) -> FetchResponse_v4:
        raw = batch_of([ROW])
        return FetchResponse_v4(0, [(TP.topic, [(request.partition, 0, 1, 1, [], raw)])])


async def test_what_nobody_took_of_an_answer_is_let_go() -> None:
    """Partitions come and go; of one that went while it was fetched, the bytes would stay for as long as the worker."""
    answers = Answers(OneBatch())
    for partition in range(200):
        await answers.send(1, Asked(partition))
        assert list(answers.raw) == [TopicPartition(TP.topic, partition)]
