"""A dead letter and back: what the record was, where it lay, and what no client or broker would take otherwise."""

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebbtide.stream.errors import DeadLetterFlood
from ebbtide.stream.outputs.dead_letter import (
    Position,
    dead_letter_of,
    original_headers,
    parse_headers,
    size_bytes,
)
from ebbtide.stream.turn.flood import FloodGuard
from tests.support.raw_batches import batch_of
from tests.support.seams.streams import LogRecord

WHERE = Position("clickstream", 3, 42)


def records(start: int, count: int) -> list[LogRecord]:
    return [LogRecord(offset, 0, b"ann", b"{") for offset in range(start, start + count)]


def judging(share_max: float) -> Callable[[int, int], None]:
    """A guard that is given so many records, the next of a log, of which so many are bad."""
    guard, at = FloodGuard(share_max), 0

    def judge(count: int, bad: int) -> None:
        nonlocal at
        guard.admit(records(at, count), range(bad))
        at += count

    return judge


def test_a_letter_keeps_the_record_and_says_where_it_lay() -> None:
    record = LogRecord(42, 1_700_000_000_000, b"ann", b"{", (("trace", b"1"),))
    made = dead_letter_of(record, WHERE, "not_json", "unexpected end", topic="dead")
    assert (made.topic, made.key, made.value) == ("dead", b"ann", b"{")
    said = parse_headers(made.headers)
    assert said is not None
    assert (said.reason, said.detail, said.source) == ("not_json", "unexpected end", WHERE)
    assert (said.timestamp, said.has_value) == (1_700_000_000_000, True)
    assert original_headers(made.headers) == [("trace", b"1")]


def test_a_letter_is_dated_by_its_sending() -> None:
    """Else retention deletes the dead letter of an old record at once, and a broker refuses one from the year 9999."""
    for timestamp in (-1, 1, 253_402_300_799_999):
        made = dead_letter_of(LogRecord(42, timestamp, b"ann", b"{"), WHERE, "future", "", topic="dead")
        assert made.timestamp_ms is None
        said = parse_headers(made.headers)
        assert said is not None
        assert said.timestamp == timestamp


def test_a_record_of_nothing_becomes_a_letter_that_can_be_sent() -> None:
    """Kafka's client sends no record without key and value, but others do."""
    made = dead_letter_of(LogRecord(42, 0, None, None), WHERE, "key_mismatch", "", topic="dead")
    assert made.value == b""
    said = parse_headers(made.headers)
    assert said is not None
    assert not said.has_value


def test_a_record_without_a_value_is_no_tombstone_of_its_letters() -> None:
    """A null under a key that cannot be read is a dead letter, not a word that forgets the dead letters of that key."""
    made = dead_letter_of(LogRecord(42, 0, b"\xff", None), WHERE, "key_mismatch", "", topic="dead")
    assert (made.key, made.value) == (b"\xff", b"")
    said = parse_headers(made.headers)
    assert said is not None
    assert not said.has_value


@settings(max_examples=200, deadline=None)
@given(
    st.none() | st.integers(0, 9_000),
    st.none() | st.integers(0, 9_000),
    st.lists(st.tuples(st.text(max_size=30), st.integers(0, 3_000)), max_size=8),
    st.integers(4_096, 12_000),
)
def test_a_letter_always_fits(
    key: int | None, value: int | None, sizes: list[tuple[str, int]], bytes_max: int
) -> None:
    """By Kafka's own count of a batch that holds nothing else; and what was omitted is told."""
    record = LogRecord(
        42, 0, None if key is None else b"k" * key, None if value is None else b"v" * value,
        [(name, b"h" * size) for name, size in sizes],
    )  # fmt: skip
    made = dead_letter_of(record, WHERE, "too_large", "d" * 2_000, topic="dead", bytes_max=bytes_max)
    batch = batch_of([(made.key, made.value, made.headers)])
    assert len(batch) <= size_bytes(made) <= bytes_max
    said = parse_headers(made.headers)
    assert said is not None
    assert said.source == WHERE
    if said.omitted is None:
        assert (made.key, made.value) == (record.key, record.value or b"")
        assert original_headers(made.headers) == [
            h for h in record.headers if not h[0].startswith("ebbtide-")
        ]
    else:
        assert made.value == b"" and made.key in (record.key, None)
        assert said.omitted == (value or 0, hashlib.sha256(record.value or b"").hexdigest())


def test_a_message_that_is_no_letter() -> None:
    assert parse_headers([("trace", b"1")]) is None
    assert (
        parse_headers([("ebbtide-reason", b"x"), ("ebbtide-topic", b"t"), ("ebbtide-partition", b"one")])
        is None
    )


def test_a_flood_stops_and_a_trickle_does_not() -> None:
    judge = judging(0.5)
    for _ in range(100):
        judge(100, 50)
    with pytest.raises(DeadLetterFlood, match="of the last"):
        judge(100, 51)


def test_what_is_tried_again_counts_once() -> None:
    """An outage has a batch tried again and again, cut in other places each time: its few bad records stay few."""
    guard, log = FloodGuard(0.5), records(0, 12)
    for tried in range(1_000):
        guard.admit(log, range(7))
        guard.admit(log[: tried % 12 + 1], [])
    assert (guard._recent.of, guard._recent.bad) == (12, 7)
    guard.admit(records(6, 1_000), range(6))  # half of it is known
    assert (guard._recent.of, guard._recent.bad) == (1_006, 7)
    guard.admit([], [])
    assert len(guard._recent) == 2


def test_a_few_bad_records_are_no_flood() -> None:
    """A topic that begins with a hundred bad records is no reason to stop; the thousandth one is."""
    judge = judging(0.5)
    for _ in range(9):
        judge(100, 100)
    with pytest.raises(DeadLetterFlood):
        judge(100, 100)


def test_what_is_long_past_is_forgotten() -> None:
    """A flood is of the last ten thousand records: good years do not excuse a bad hour."""
    judge = judging(0.5)
    for _ in range(1_000):
        judge(1_000, 0)
    for _ in range(5):
        judge(1_000, 1_000)
    with pytest.raises(DeadLetterFlood, match="6,000 of the last 10,000"):
        judge(1_000, 1_000)


def test_a_header_without_a_value_is_no_letter() -> None:
    """Any producer may send one under our names; Kafka has null values, and the client hands them on."""
    null: list[tuple[str, bytes]] = [("ebbtide-reason", None)]  # type: ignore[list-item]  # what the client gives
    assert parse_headers(null) is None
