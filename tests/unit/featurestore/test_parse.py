"""Kafka records to events: what fits becomes columns, what does not is refused with its reason, and nothing is lost."""

import json
import math
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.contract import Reason
from ebbtide.featurestore.events.event import TOMBSTONE
from ebbtide.featurestore.events.parse import VALUE_BYTES_MAX, Parsed, ParseLimits, Parser
from ebbtide.featurestore.hashing import hash_texts
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS
from tests.support.fuzz import NOW_MS, fuzzed
from tests.support.seams.streams import LogRecord

COLUMNS = ("kind", "time", "value", "event_id", "position")
KINDS: list[dict[str, Any]] = [
    {"name": "page_view"},
    {"name": "search"},
    {"name": "add_to_cart"},
    {"name": "purchase", "aggregate": ["sum", "mean", "last"]},
    {"name": "newsletter", "role": "contact"},
    {"name": "account_closed", "role": "terminal"},
    {"name": "plan", "role": "attribute", "attribute": "category", "categories": ["free", "plus"]},
]
MORE_KINDS: list[dict[str, Any]] = [
    *KINDS,
    {"name": "basket", "types": ["basket", "order"], "value": "properties.cart.total", "aggregate": ["sum"]},
    {"name": "coupon", "stamp": "day_end"},
    {"name": "renewal", "role": "attribute", "attribute": "date"},
    {"name": "seats", "role": "attribute", "value": "properties.seats"},
]
GOOD = {"user_id": "c1", "type": "purchase", "ts": NOW_MS - 1000, "value": 9.5}


def spec_of(kinds: list[dict[str, Any]] | None = None, **more: Any) -> Spec:
    base = {"name": "t", "horizon": "14d", "memory": "90d", "windows": {"30d": 6}}
    return parse_spec({**base, "kinds": kinds or MORE_KINDS, **more})


def sent(event: Any, key: bytes | None = b"c1", timestamp: int = NOW_MS, offset: int = 0) -> LogRecord:
    """A record of anything: bytes as they are, all else as JSON."""
    value = event if isinstance(event, bytes | None) else json.dumps(event).encode()
    return LogRecord(offset, timestamp, key, value)


def parse(*records: LogRecord, spec: Spec | None = None) -> Parsed:
    return Parser(spec or spec_of()).parse(records)


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != field}


def test_a_batch_becomes_columns_in_offset_order() -> None:
    parsed = parse(
        sent({"user_id": "b", "type": "page_view", "ts": "2025-12-31T10:00:00.25Z", "event_id": "x"}, b"b", offset=7),
        sent({"user_id": "a", "type": "purchase", "ts": NOW_MS, "value": 3}, b"a", offset=9),
        sent({"user_id": "b", "type": "purchase", "ts": NOW_MS, "value": None, "more": [1]}, b"b", offset=12),
    )  # fmt: skip
    events = parsed.events
    assert (parsed.rejected, parsed.ignored, parsed.tombstones) == ([], 0, [])
    assert events.customers == ["b", "a"]
    assert events.customer.tolist() == [0, 1, 0]
    assert events.kind.tolist() == [0, 3, 3]
    assert events.time.tolist() == [1_767_175_200_250, NOW_MS, NOW_MS]
    np.testing.assert_array_equal(events.value, [math.nan, 3.0, math.nan])
    assert events.event_id.tolist() == [int(hash_texts(["x"])[0]), 0, 0]
    assert events.position.tolist() == [7, 9, 12]
    dtypes = [getattr(events, name).dtype for name in ("customer", *COLUMNS)]
    assert dtypes == [np.int32, np.uint8, np.int64, np.float64, np.uint64, np.int64]


REFUSED: list[tuple[str, LogRecord, Reason]] = [
    ("random bytes", sent(b"\x80\x03\xff"), Reason.NOT_JSON),
    ("empty", sent(b""), Reason.NOT_JSON),
    ("cut off", sent(b'{"user_id": "c1"'), Reason.NOT_JSON),
    ("two values", sent(json.dumps(GOOD).encode() * 2), Reason.NOT_JSON),
    ("deep nesting", sent(b"[" * 60_000), Reason.NOT_JSON),
    ("deep objects", sent(b'{"a":' * 12_000), Reason.NOT_JSON),
    ("lone surrogate", sent(b'{"user_id": "\\ud800"}'), Reason.NOT_JSON),
    ("surrogate bytes", sent(b'{"user_id": "\xed\xa0\x80"}'), Reason.NOT_JSON),
    ("null", sent(b"null"), Reason.WRONG_TYPE),
    ("a list", sent([GOOD]), Reason.WRONG_TYPE),
    ("a number", sent(5), Reason.WRONG_TYPE),
    ("no user_id", sent(without("user_id")), Reason.MISSING_FIELD),
    ("no type", sent(without("type")), Reason.MISSING_FIELD),
    ("no ts", sent(without("ts")), Reason.MISSING_FIELD),
    ("null user_id", sent({**GOOD, "user_id": None}), Reason.MISSING_FIELD),
    ("empty user_id", sent({**GOOD, "user_id": ""}, b""), Reason.MISSING_FIELD),
    ("null ts", sent({**GOOD, "ts": None}), Reason.MISSING_FIELD),
    ("user_id a number", sent({**GOOD, "user_id": 1}), Reason.WRONG_TYPE),
    ("user_id too long", sent({**GOOD, "user_id": "c" * 129}, b"c" * 129), Reason.WRONG_TYPE),
    ("type a list", sent({**GOOD, "type": ["purchase"]}), Reason.WRONG_TYPE),
    ("ts true", sent({**GOOD, "ts": True}), Reason.WRONG_TYPE),
    ("ts a fraction", sent({**GOOD, "ts": 1.5}), Reason.WRONG_TYPE),
    ("ts words", sent({**GOOD, "ts": "yesterday"}), Reason.WRONG_TYPE),
    ("ts no such day", sent({**GOOD, "ts": "2025-02-30T00:00:00Z"}), Reason.WRONG_TYPE),
    ("ts digits", sent({**GOOD, "ts": "20250101"}), Reason.WRONG_TYPE),
    ("value true", sent({**GOOD, "value": True}), Reason.WRONG_TYPE),
    ("value text", sent({**GOOD, "value": "9.50"}), Reason.WRONG_TYPE),
    ("value text where none is read", sent({**GOOD, "type": "page_view", "value": "9.50"}), Reason.WRONG_TYPE),
    ("value an object", sent({**GOOD, "value": {}}), Reason.WRONG_TYPE),
    ("event_id a number", sent({**GOOD, "event_id": 5}), Reason.WRONG_TYPE),
    ("properties a list", sent({**GOOD, "properties": []}), Reason.WRONG_TYPE),
    ("property text", sent({**GOOD, "type": "order", "properties": {"cart": {"total": "1"}}}), Reason.WRONG_TYPE),
    ("NaN", sent({**GOOD, "value": math.nan}), Reason.NOT_FINITE),
    ("-Infinity", sent({**GOOD, "value": -math.inf}), Reason.NOT_FINITE),
    ("1e999", sent(b'{"user_id":"c1","type":"purchase","ts":1,"value":1e999}'), Reason.NOT_FINITE),
    ("a value no record holds", sent({**GOOD, "value": 1e31}), Reason.NOT_FINITE),
    ("a property, too", sent({**GOOD, "type": "order", "properties": {"cart": {"total": 1e31}}}), Reason.NOT_FINITE),
    ("too large", sent(b" " * (VALUE_BYTES_MAX + 1)), Reason.TOO_LARGE),
    ("10 MB", sent({**GOOD, "properties": {"x": "y" * 10_000_000}}), Reason.TOO_LARGE),
    ("no key", sent(GOOD, None), Reason.KEY_MISMATCH),
    ("empty key", sent(GOOD, b""), Reason.KEY_MISMATCH),
    ("another's key", sent(GOOD, b"c2"), Reason.KEY_MISMATCH),
    ("a quoted key", sent(GOOD, b'"c1"'), Reason.KEY_MISMATCH),
    ("tombstone without key", sent(None, None), Reason.KEY_MISMATCH),
    ("tombstone with empty key", sent(None, b""), Reason.KEY_MISMATCH),
    ("tombstone with binary key", sent(None, b"\xff"), Reason.KEY_MISMATCH),
    ("tombstone with endless key", sent(None, b"c" * 129), Reason.KEY_MISMATCH),
    ("unknown type", sent({**GOOD, "type": "Purchase"}), Reason.UNKNOWN_TYPE),
    ("unknown type, whatever else", sent({"type": "identify", "ts": []}, None), Reason.UNKNOWN_TYPE),
    ("year 9999", sent({**GOOD, "ts": "9999-12-31T23:59:59Z"}), Reason.FUTURE),
    ("tomorrow and more", sent({**GOOD, "ts": NOW_MS + DAY_MS + 1}), Reason.FUTURE),
    ("year 1900", sent({**GOOD, "ts": "1900-01-01T00:00:00Z"}), Reason.TIMESTAMP_RANGE),
    ("1970 to the millisecond", sent({**GOOD, "ts": 0}), Reason.TIMESTAMP_RANGE),
    ("year 10000", sent({**GOOD, "ts": 253_402_300_800_000}), Reason.TIMESTAMP_RANGE),
    ("ts of 64 bits and one", sent({**GOOD, "ts": 2**64}), Reason.TIMESTAMP_RANGE),
    ("ts of 300 digits", sent({**GOOD, "ts": 10**300}), Reason.TIMESTAMP_RANGE),
    ("no date", sent({**GOOD, "type": "renewal", "value": "soon"}), Reason.BAD_ATTRIBUTE),
    ("attribute text", sent({**GOOD, "type": "seats", "properties": {"seats": "5"}}), Reason.BAD_ATTRIBUTE),
    ("attribute true", sent({**GOOD, "type": "seats", "properties": {"seats": True}}), Reason.BAD_ATTRIBUTE),
    ("attribute list", sent({**GOOD, "type": "seats", "properties": {"seats": [5]}}), Reason.BAD_ATTRIBUTE),
]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_a_bad_record_is_refused_with_its_reason(record: LogRecord, reason: Reason) -> None:
    parsed = parse(record)
    assert [bad.reason for bad in parsed.rejected] == [reason]
    assert (len(parsed.events), parsed.ignored) == (0, 0)
    assert parsed.rejected[0].detail


@pytest.mark.parametrize("case", REFUSED, ids=[case[0] for case in REFUSED])
def test_a_bad_record_says_nothing_of_its_content(case: tuple[str, LogRecord, Reason]) -> None:
    """Details go into headers and logs; customers and values don't."""
    for bad in parse(case[1]).rejected:
        assert "c1" not in bad.detail
        assert "9.5" not in bad.detail


ODD_BUT_GOOD: list[tuple[str, Any, float, int]] = [
    ("a whole float of ms", {**GOOD, "ts": float(NOW_MS)}, 9.5, NOW_MS),
    ("an offset", {**GOOD, "ts": "2025-12-31T23:30:00-00:30"}, 9.5, NOW_MS),
    ("lower case", {**GOOD, "ts": "2026-01-01t00:00:00z"}, 9.5, NOW_MS),
    ("no offset is UTC", {**GOOD, "ts": "2026-01-01 00:00:00.0009"}, 9.5, NOW_MS),
    ("a date", {**GOOD, "ts": "2026-01-01"}, 9.5, NOW_MS),
    ("the first millisecond", {**GOOD, "ts": 1}, 9.5, 1),
    ("a day ahead of Kafka", {**GOOD, "ts": NOW_MS + DAY_MS}, 9.5, NOW_MS + DAY_MS),
    ("minus zero", {**GOOD, "value": -0.0}, -0.0, NOW_MS - 1000),
    ("an integer of 64 bits", {**GOOD, "value": 2**63}, 2.0**63, NOW_MS - 1000),
    ("an integer beyond", {**GOOD, "value": 2**70}, 2.0**70, NOW_MS - 1000),
    ("no value", without("value"), math.nan, NOW_MS - 1000),
    ("a value that its kind does not read", {**GOOD, "type": "search"}, math.nan, NOW_MS - 1000),
    ("the last of two", json.dumps(GOOD)[:-1].encode() + b',"value":2}', 2.0, NOW_MS - 1000),
    ("the day's end", {**GOOD, "type": "coupon", "ts": "2025-12-31"}, math.nan, NOW_MS - 1),
    ("a property", {**GOOD, "type": "order", "properties": {"cart": {"total": 4}}}, 4.0, NOW_MS - 1000),
    ("a property elsewhere", {**GOOD, "type": "order", "properties": {"cart": 4}}, math.nan, NOW_MS - 1000),
    ("no properties", {**GOOD, "type": "order", "properties": None}, math.nan, NOW_MS - 1000),
    ("a category", {**GOOD, "type": "plan", "value": "plus"}, 2.0, NOW_MS - 1000),
    ("no category", {**GOOD, "type": "plan", "value": "gold"}, 0.0, NOW_MS - 1000),
    ("a date as text", {**GOOD, "type": "renewal", "value": "1970-01-11"}, 10.0, NOW_MS - 1000),
    ("a date in ms", {**GOOD, "type": "renewal", "value": 10 * DAY_MS}, 10.0, NOW_MS - 1000),
    ("an attribute's number", {**GOOD, "type": "seats", "properties": {"seats": 5}}, 5.0, NOW_MS - 1000),
    ("an attribute unknown", {**GOOD, "type": "seats"}, math.nan, NOW_MS - 1000),
    ("nested as deep as may be", {**GOOD, "more": json.loads("[" * 900 + "]" * 900)}, 9.5, NOW_MS - 1000),
]  # fmt: skip


@pytest.mark.parametrize(
    ("_", "event", "value", "time"), ODD_BUT_GOOD, ids=[case[0] for case in ODD_BUT_GOOD]
)
def test_an_odd_event_is_read_as_it_was_meant(_: str, event: Any, value: float, time: int) -> None:
    parsed = parse(sent(event), spec=spec_of(past_max="40000d"))
    assert parsed.rejected == []
    assert parsed.events.time.tolist() == [time]
    assert parsed.events.value.tobytes() == np.array([value]).tobytes()


def test_a_record_without_timestamp_is_a_dead_letter() -> None:
    """Nothing tells its time from a wrong one: one event of the year 9999 would make all that follow late."""
    for ts in ("9999-01-01", GOOD["ts"]):
        parsed = parse(sent({**GOOD, "ts": ts}, timestamp=-1))
        assert [bad.reason for bad in parsed.rejected] == [Reason.NO_TIMESTAMP]
    assert not parse(sent(None, timestamp=-1)).rejected, "a tombstone is not judged by its time"


def test_an_event_older_than_memory_and_a_week_is_too_old() -> None:
    """By its own record, whenever it is read; epoch seconds taken for milliseconds are of January 1970."""
    oldest = spec_of().memory_ms + 7 * DAY_MS
    assert len(parse(sent({**GOOD, "ts": NOW_MS - oldest})).events) == 1
    for ts in (NOW_MS - oldest - 1, NOW_MS // 1000):
        (bad,) = parse(sent({**GOOD, "ts": ts})).rejected
        assert bad.reason is Reason.TOO_OLD
        assert "before the record's own timestamp" in bad.detail
    strict = spec_of(past_max="60d")
    assert len(parse(sent({**GOOD, "ts": NOW_MS - 60 * DAY_MS}), spec=strict).events) == 1
    assert len(parse(sent({**GOOD, "ts": NOW_MS - 60 * DAY_MS - 1}), spec=strict).rejected) == 1


def test_a_kind_dated_at_the_days_end_is_not_future() -> None:
    noon = NOW_MS + DAY_MS // 2
    coupon = {**GOOD, "type": "coupon", "ts": noon}
    assert len(parse(sent(coupon, timestamp=noon), spec=spec_of(future_max="5m")).events) == 1
    late = parse(sent(coupon, timestamp=noon - 301_000), spec=spec_of(future_max="5m"))
    assert [bad.reason for bad in late.rejected] == [Reason.FUTURE]


def test_an_empty_event_id_is_none_at_all() -> None:
    """Else all events of a careless producer would be one another's duplicates."""
    parsed = parse(
        sent({**GOOD, "event_id": ""}), sent({**GOOD, "event_id": None}), sent({**GOOD, "event_id": "e"})
    )
    assert (parsed.events.event_id == 0).tolist() == [True, True, False]


def test_a_tombstone_stands_among_the_events() -> None:
    sends = [(GOOD, b"c1"), (None, b"c1"), (None, b"other"), (b"{", b"c1"), (GOOD, b"c1")]
    parsed = parse(*(sent(value, key, offset=i) for i, (value, key) in enumerate(sends, 1)))
    events = parsed.events
    assert parsed.tombstones == [1, 2]
    assert events.position.tolist() == [1, 2, 3, 5]
    assert events.kind.tolist() == [3, TOMBSTONE, TOMBSTONE, 3]
    assert [events.customers[i] for i in events.customer] == ["c1", "c1", "other", "c1"]
    assert events.time.tolist() == [NOW_MS - 1000, NOW_MS, NOW_MS, NOW_MS - 1000]
    np.testing.assert_array_equal(events.value, [9.5, math.nan, math.nan, 9.5])
    assert [bad.index for bad in parsed.rejected] == [3]


def test_unknown_types_are_ignored_where_the_spec_says_so() -> None:
    spec = spec_of(unknown="ignore")
    foreign = [sent({"type": "identify"}), sent({**GOOD, "type": "identify"}, None)]
    parsed = parse(*foreign, sent(GOOD), sent({**GOOD, "ts": []}), spec=spec)
    assert (len(parsed.events), parsed.ignored) == (1, 2)
    assert [(bad.index, bad.reason) for bad in parsed.rejected] == [(3, Reason.WRONG_TYPE)]


def test_the_size_limit_is_the_callers() -> None:
    small = ParseLimits(value_bytes_max=64)
    parsed = Parser(spec_of(), small).parse([sent({**GOOD, "more": "x" * 64})])
    assert [bad.reason for bad in parsed.rejected] == [Reason.TOO_LARGE]


def test_an_empty_batch_is_a_batch() -> None:
    parsed = parse()
    assert (len(parsed.events), parsed.events.customers, parsed.rejected) == (0, [], [])
    assert parsed.events.value.dtype == np.float64


FOREIGN: list[tuple[str, dict[str, str], Any]] = [
    (
        "segment track",
        {
            "user_id": "userId", "type": "event", "ts": "timestamp", "event_id": "messageId",
            "value": "properties.revenue",
        },
        {
            "type": "track", "userId": "c1", "event": "purchase", "messageId": "m1",
            "timestamp": "2026-01-01T00:00:00.000Z", "properties": {"revenue": 9.5},
        },
    ),
    (
        "snowplow",
        {"type": "event_name", "ts": "derived_tstamp", "value": "tr_total"},
        {
            "event": "transaction", "event_name": "purchase", "user_id": "c1", "event_id": "m1",
            "derived_tstamp": "2026-01-01 00:00:00.000", "tr_total": 9.5,
        },
    ),
    (
        "ga4",
        {
            "user_id": "user_pseudo_id", "type": "event_name", "ts": "event_timestamp", "ts_format": "us",
            "event_id": "bundle", "value": "event_params.0.value.double_value",
        },
        {
            "event_name": "purchase", "event_timestamp": "1767225600000999", "user_pseudo_id": "c1", "bundle": "m1",
            "event_params": [{"key": "value", "value": {"double_value": 9.5}}],
        },
    ),
    (
        "cloudevents",
        {"user_id": "subject", "ts": "time", "event_id": "id", "value": "data.amount"},
        {
            "specversion": "1.0", "id": "m1", "source": "/shop", "type": "purchase", "subject": "c1",
            "time": "2026-01-01T00:00:00Z", "data": {"amount": 9.5},
        },
    ),
    (
        "dots in a name, seconds",
        {"user_id": "user.id", "ts": "at", "ts_format": "s", "value": "a.b", "event_id": "id"},
        {"user.id": "c1", "type": "purchase", "at": 1_767_225_600.0, "a": {"b": 9.5}, "id": "m1"},
    ),
    (
        "dates",
        {"ts": "day", "ts_format": "%Y%m%d"},
        {"user_id": "c1", "type": "purchase", "day": 20260101, "value": 9.5, "event_id": "m1"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mapping", "event"), [case[1:] for case in FOREIGN], ids=[case[0] for case in FOREIGN]
)
def test_a_mapping_reads_events_that_were_not_designed_for_us(mapping: dict[str, str], event: Any) -> None:
    parsed = parse(sent(event), spec=spec_of(mapping=mapping))
    assert parsed.rejected == []
    assert parsed.events.time.tolist() == [NOW_MS]
    assert parsed.events.value.tolist() == [9.5]
    assert parsed.events.event_id.tolist() == hash_texts(["m1"]).tolist()


def test_a_mapping_names_the_field_as_its_producer_knows_it() -> None:
    parsed = parse(
        sent({"userId": 5, "type": "purchase", "ts": 1}), spec=spec_of(mapping={"user_id": "userId"})
    )
    assert "userId" in parsed.rejected[0].detail


def test_a_time_format_that_is_none_is_an_error_at_once() -> None:
    with pytest.raises(SpecError, match="ts_format"):
        Parser(spec_of(mapping={"ts_format": "seconds"}))


@pytest.mark.parametrize("unknown", ["dead_letter", "ignore"])
def test_fuzz_every_record_ends_up_somewhere(unknown: str) -> None:
    """20,000 records, in batches of every size, and one by one: the same events, the same refusals, exact counts."""
    records = fuzzed(seed=1, n=20_000)
    parser = Parser(spec_of(KINDS, unknown=unknown))
    cuts = np.unique(np.random.default_rng(2).integers(0, len(records), 60)).tolist()
    together = [parser.parse(records[a:b]) for a, b in zip([0, *cuts], [*cuts, len(records)], strict=True)]
    alone = [parser.parse([record]) for record in records]
    for parsed, begin, end in zip(together, [0, *cuts], [*cuts, len(records)], strict=True):
        assert len(parsed.events) + len(parsed.rejected) + parsed.ignored == end - begin
        own = alone[begin:end]
        refused = [(i, bad.reason, bad.detail) for i, one in enumerate(own) for bad in one.rejected]
        assert [(bad.index, bad.reason, bad.detail) for bad in parsed.rejected] == refused
        assert parsed.ignored == sum(one.ignored for one in own)
        assert parsed.tombstones == [i for i, one in enumerate(own) if one.tombstones]
        for column in COLUMNS:
            expected = np.concatenate([getattr(one.events, column) for one in own])
            assert getattr(parsed.events, column).tobytes() == expected.tobytes()
        users = [one.events.customers[0] for one in own if len(one.events)]
        assert [parsed.events.customers[i] for i in parsed.events.customer] == users
        assert parsed.events.customers == list(dict.fromkeys(users))
    reasons = Counter(bad.reason for one in alone for bad in one.rejected)
    expected_reasons = set(Reason) - {Reason.BAD_ROW, Reason.BAD_ATTRIBUTE, Reason.MISPLACED}
    if unknown == "ignore":
        expected_reasons -= {Reason.UNKNOWN_TYPE}
    assert set(reasons) == expected_reasons
    assert sum(len(one.events) for one in alone) > 5_000


def test_fuzz_what_is_accepted_says_what_was_sent() -> None:
    """A naive reader of the accepted records agrees with every column."""
    kinds = [kind["name"] for kind in KINDS]
    records = fuzzed(seed=3, n=20_000)
    events = Parser(spec_of(KINDS)).parse(records).events
    for i, position in enumerate(events.position.tolist()):
        record = records[position]
        assert record.key == events.customers[events.customer[i]].encode()
        if record.value is None:
            assert events.kind[i] == TOMBSTONE
            continue
        event = json.loads(record.value)
        assert record.key == event["user_id"].encode()
        assert kinds[events.kind[i]] == event["type"]
        at = event["ts"]
        if isinstance(at, str):
            moment = datetime.fromisoformat(at.upper())
            at = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        assert events.time[i] == at
        value = event.get("value") if event["type"] == "purchase" else None
        if event["type"] == "plan" and event.get("value") is not None:
            value = {"free": 1.0, "plus": 2.0}.get(event["value"], 0.0)
        np.testing.assert_array_equal(events.value[i], math.nan if value is None else float(value))
        assert (events.event_id[i] == 0) == (event.get("event_id") in (None, ""))
