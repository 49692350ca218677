"""Customers of several fields: one text for each list of parts, the same from the stream and every kind of file."""

import csv
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebbtide.featurestore.customer import first_of, join, split
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.contract import Reason, event_schema
from ebbtide.featurestore.events.event import TOMBSTONE, EventBatch
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.files.as_stream import contract_spec, records_of
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import remembered
from ebbtide.featurestore.spec import Spec, dump_spec, parse_spec
from ebbtide.featurestore.store.redis.names import HiddenNames
from tests.support.fuzz import NOW_MS
from tests.support.seams.streams import LogRecord

parquet = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")

Row = dict[str, Any]
COLUMNS = ("customer", "kind", "time", "value", "event_id", "position")
PARTS = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4)
LEARNERS = ["ann", "an", "ann~", "~", "~0", "~1", "/", "ann/", "a/b", "é😀", " ", "0", "007", "x" * 60]
COURSES = ["math", "m/1", "m~1", "~/~", "b/c", "/c", "c/", "1", "客", "y" * 60, "z" * 70]


def spec_of(customer: Any = ("learner", "course"), **more: Any) -> Spec:
    kinds = [{"name": "lesson"}, {"name": "paid", "aggregate": ["sum"]}]
    base = {"name": "t", "horizon": "14d", "memory": "90d", "windows": {"30d": 6}, "kinds": kinds}
    said = list(customer) if isinstance(customer, tuple) else customer
    return parse_spec({**base, "mapping": {"ts_format": "ms"}, "customer": said, **more})


WHOLE = {"fields": ["learner", "course"], "key": "whole"}


def record(row: Any, key: str | None, offset: int = 0) -> LogRecord:
    value = None if row is None else json.dumps(row).encode()
    return LogRecord(offset, NOW_MS, None if key is None else key.encode(), value)


def event(**more: Any) -> Row:
    return {"learner": "ann", "course": "math", "type": "lesson", "ts": NOW_MS - 1000, **more}


@given(PARTS, PARTS)
def test_a_list_of_parts_is_one_text_and_back(some: list[str], others: list[str]) -> None:
    assert split(join(some)) == some
    assert (join(some) == join(others)) == (some == others)
    assert first_of(join(some)) == join(some[:1])


@given(PARTS, PARTS)
def test_who_begins_with_a_first_part_is_of_it(some: list[str], others: list[str]) -> None:
    begins = join(some).startswith(join(others[:1]) + "/")
    assert begins == (len(some) > 1 and some[0] == others[0])


@pytest.mark.parametrize(
    ("customer", "key"),
    [(("learner", "course"), "a~1b"), (WHOLE, "a~1b/m~0"), ({**WHOLE, "key": "first"}, "a~1b")],
)
def test_the_key_is_the_first_part_or_the_whole(customer: Any, key: str) -> None:
    """Written as the customer is; the other one of the two is a dead letter that says what is wanted."""
    spec, row = spec_of(customer), event(learner="a/b", course="m~")
    parsed = Parser(spec).parse([record(row, key), *(record(row, k) for k in ("a/b", "m~", "b", "a~1b/m"))])
    assert parsed.events.customers == ["a~1b/m~0"]
    assert spec.keys_of(parsed.events.customers) == [key.encode()]
    assert [bad.index for bad in parsed.rejected] == [1, 2, 3, 4]
    for bad in parsed.rejected:
        assert bad.reason == Reason.KEY_MISMATCH
        assert (
            "learner/course" if spec.customer and spec.customer.key == "whole" else "learner,"
        ) in bad.detail


BAD: list[tuple[Row, Reason, str]] = [
    ({"course": None}, Reason.MISSING_FIELD, "customer_2 (from course) is missing or empty"),
    ({"course": ""}, Reason.MISSING_FIELD, "customer_2 (from course) is missing or empty"),
    ({"learner": ""}, Reason.MISSING_FIELD, "user_id (from learner) is missing or empty"),
    ({"course": 7}, Reason.WRONG_TYPE, "customer_2 (from course): expected text of 1 to 128 characters, got a number"),
    ({"course": "c" * 129}, Reason.WRONG_TYPE, "customer_2 (from course): expected text"),
    ({"course": "c" * 125}, Reason.WRONG_TYPE, "user_id, customer_2: together more than 128 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "reason", "detail"), BAD)
def test_a_bad_part_is_a_dead_letter_that_names_it(more: Row, reason: Reason, detail: str) -> None:
    parsed = Parser(spec_of()).parse(
        [record(event(), "ann"), record(event(**more), "ann"), record(event(), "ann")]
    )
    assert len(parsed.events) == 2
    assert [(bad.index, bad.reason) for bad in parsed.rejected] == [(1, reason)]
    assert parsed.rejected[0].detail.startswith(detail)


def test_a_part_that_is_not_there_is_missing() -> None:
    row = event()
    del row["course"]
    (bad,) = Parser(spec_of()).parse([record(row, "ann")]).rejected
    assert (bad.reason, bad.detail) == (Reason.MISSING_FIELD, "customer_2 (from course) is missing or empty")


def test_a_tombstone_is_of_a_first_part_or_a_whole() -> None:
    """What is neither can be nobody, and is a dead letter rather than an erasure that finds nothing."""
    keys = ["ann", "ann/math", "ann/", "/math", "ann/math/more", "a~1b"]
    parsed = Parser(spec_of()).parse([record(None, key, i) for i, key in enumerate(keys)])
    assert parsed.events.customers == ["ann", "ann/math", "a~1b"]
    assert (parsed.events.kind == TOMBSTONE).all()
    assert [(bad.index, bad.reason) for bad in parsed.rejected] == [
        (i, Reason.KEY_MISMATCH) for i in (2, 3, 4)
    ]
    assert "a customer is learner/course, and its first part learner" in parsed.rejected[0].detail


def test_what_a_first_part_had_forgotten_is_not_learned() -> None:
    """Of all who begin with it; what comes behind is."""
    told = ["ann/math", "bob/math", "ann/art", None, "ann/math", "bob/art"]
    records = [
        record(None, "ann", i) if who is None
        else record(event(learner=who.split("/")[0], course=who.split("/")[1]), who.split("/")[0], i)
        for i, who in enumerate(told)
    ]  # fmt: skip
    log = Parser(spec_of()).parse(records).events
    assert remembered(log, spec_of()).position.tolist() == [1, 4, 5]


def test_an_ordinary_customer_may_hold_the_separator() -> None:
    row = {"user_id": "a/b~", "type": "lesson", "ts": NOW_MS - 1}
    parsed = Parser(spec_of(None)).parse([record(row, "a/b~"), record(None, "a/b~"), record(None, "a/")])
    assert parsed.events.customers == ["a/b~", "a/"] and not parsed.rejected


def rows_of(rng: np.random.Generator, n: int) -> list[Row]:
    return [
        {
            # The last ones, of the first row, are too long together.
            "learner": str(rng.choice(LEARNERS)) if i else LEARNERS[-1],
            "course": str(rng.choice(COURSES)) if i else COURSES[-1],
            "type": str(rng.choice(["lesson", "paid"])), "ts": NOW_MS - 10_000 + i, "value": float(i % 7),
            "event_id": f"e{i}",
        }
        for i in range(n)
    ]  # fmt: skip


def as_csv(rows: list[Row]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_parquet(rows: list[Row]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


WRITERS: dict[str, Callable[[list[Row]], bytes]] = {
    "events.csv": as_csv,
    "events.jsonl": lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows),
    "events.parquet": as_parquet,
}


def assert_same(one: EventBatch, other: EventBatch) -> None:
    assert one.customers == other.customers
    for column in COLUMNS:
        assert getattr(one, column).tobytes() == getattr(other, column).tobytes(), column


@pytest.mark.parametrize("customer", [("learner", "course"), WHOLE, ("course", "type", "learner")])
@pytest.mark.parametrize("name", list(WRITERS))
def test_files_are_the_stream_byte_for_byte(
    tmp_path: Path, name: str, customer: Any, rng: np.random.Generator
) -> None:
    """Parts with separators in them, too long together, and of one field twice; and so are the records that a file is
    streamed as."""
    spec, rows = spec_of(customer), rows_of(rng, 400)
    assert spec.customer is not None
    path = tmp_path / name
    path.write_bytes(WRITERS[name](rows))
    log = read_log(path, spec, tolerant=True)
    keys = [spec.keys_of([join([row[field] for field in spec.customer.fields])])[0].decode() for row in rows]
    live = Parser(spec).parse(
        [record(row, key, i) for i, (row, key) in enumerate(zip(rows, keys, strict=True))]
    )
    assert_same(log.events, live.events)
    assert log.problems.total == len(live.rejected) > 0
    assert {tuple(split(name)) for name in log.events.customers} <= {
        tuple(row[field] for field in spec.customer.fields) for row in rows
    }
    sent = [LogRecord(i, ts, key, value) for i, (key, value, ts) in enumerate(records_of(log, spec))]
    again = Parser(contract_spec(spec)).parse(sent)
    assert not again.rejected
    assert again.events.customers == log.events.customers
    assert again.events.value.tobytes() == log.events.value.tobytes()
    assert Layout(contract_spec(spec)).id == Layout(spec).id


@pytest.fixture(params=[1, 2, None])
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    seed = request.param if request.param is not None else np.random.SeedSequence().entropy
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def test_parts_that_are_numbers_are_their_digits(tmp_path: Path) -> None:
    """In a typed file, as an id is that is one field."""
    rows = [
        {"learner": n, "course": 10 * n, "type": "lesson", "ts": NOW_MS + n, "value": 1.0}
        for n in range(1, 4)
    ]
    for name in ("events.parquet", "events.jsonl"):
        path = tmp_path / name
        path.write_bytes(WRITERS[name](rows))
        assert read_log(path, spec_of()).events.customers == ["1/10", "2/20", "3/30"]


def test_a_file_without_a_part_says_which(tmp_path: Path) -> None:
    path = tmp_path / "events.csv"
    path.write_text("learner,type,ts\nann,lesson,1\n")
    with pytest.raises(SpecError, match="no column 'course' for customer_2"):
        read_log(path, spec_of())
    path.write_text("learner,course,type,ts,value\nann,,lesson,1,\n")
    with pytest.raises(SpecError, match=r"customer_2 is missing or empty \(column 'course'\)"):
        read_log(path, spec_of())


@pytest.mark.parametrize(
    ("customer", "mapping", "said"),
    [
        (["learner"], {}, "at least 2"),
        (list("abcde"), {}, "at most 4"),
        (["learner", "learner"], {}, "named twice"),
        (["learner", ""], {}, "at least 1 character"),
        ({"fields": ["a", "b"], "key": "last"}, {}, "'first' or 'whole'"),
        (["learner", "course"], {"user_id": "who"}, "both say who the customer is"),
    ],
)
def test_a_spec_that_cannot_mean_it_is_refused(customer: Any, mapping: Row, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        spec_of(customer, mapping=mapping)


def test_only_a_composite_customer_is_another_layout() -> None:
    """State of other customers, or in other partitions, is not to be gone on with; the names of the fields are no
    matter."""
    specs = [spec_of(None), spec_of(), spec_of(WHOLE), spec_of(("a", "b", "c"))]
    assert len({Layout(spec).id for spec in specs}) == len(specs)
    assert Layout(spec_of(("who", "what"))).id == Layout(spec_of()).id
    for spec in specs:
        assert parse_spec(dump_spec(spec)) == spec


def test_the_schema_of_an_event_has_the_parts() -> None:
    schema = event_schema(spec_of(("a", "b", "c")))
    assert {"user_id", "customer_2", "customer_3"} <= set(schema["required"])
    assert "customer_2" not in event_schema(spec_of(None))["properties"]


@given(st.lists(PARTS.filter(lambda parts: len(parts) == 2), min_size=1, max_size=5))
def test_hidden_composites_begin_alike_and_open(customers: list[list[str]]) -> None:
    names = HiddenNames("k" * 32, composite=True)
    stored = {join(parts): names.stored(join(parts)) for parts in customers}
    for customer, hidden in stored.items():
        assert hidden.isascii() and names.customer(hidden.encode()) == customer
    for one, other in itertools.product(stored, repeat=2):
        begins = stored[one].startswith(names.beginning(first_of(other)))
        assert begins == (first_of(one) == first_of(other))
