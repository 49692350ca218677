"""Batches written by hand against our reader: what is whole is read as written, what is not harms nobody else."""

import random
from collections import Counter

from aiokafka import TopicPartition

from ebbtide.stream.errors import UnreadableBatch
from ebbtide.stream.kafka.records import Decompressor, RecordBatches
from tests.fuzz.wire import Batch, wire_batch

READER = Decompressor(16 << 20)


def drawn(n: int) -> list[Batch]:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    return [wire_batch(draw) for _ in range(n)]


def read(data: bytes) -> list[object]:
    return list(RecordBatches(TopicPartition("wire", 0), data, [], 0, READER, None))


def test_whole_batches_are_read_as_written() -> None:
    seen = Counter[str]()
    for batch in drawn(120):
        if not batch.whole:
            continue
        seen[batch.recipe] += 1
        wanted = [
            (
                n, record.key, record.value, record.timestamp,
                [(name.decode(errors="backslashreplace"), value) for name, value in record.headers],
            )
            for n, record in enumerate(batch.records)
        ]  # fmt: skip
        got = [
            (r.offset, r.key, r.value, r.timestamp, list(r.headers))  # type: ignore[attr-defined]  # aiokafka's or ours
            for r in read(batch.data)
        ]
        assert got == wanted, batch.recipe
    assert len(seen) == 6, seen


def test_broken_batches_raise_one_error_or_none() -> None:
    """What no broker takes may still lie on a disk: our own error, and no other."""
    errors = Counter[str]()
    for batch in drawn(150):
        if batch.whole:
            continue
        try:
            read(batch.data)
        except UnreadableBatch:
            errors[batch.recipe] += 1
    assert errors["lies"] > 0, errors
