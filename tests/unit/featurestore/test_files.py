"""Event files to whole-log columns: every format the same log, every misfit named, and back through the stream."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.contract import Reason
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.files.as_stream import contract_spec, records_of
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.hashing import hash_texts
from ebbtide.featurestore.spec import Spec, load_spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS
from tests.support.seams.streams import LogRecord

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

T0 = 1_767_225_600_000  # 2026-01-01
KINDS: list[dict[str, Any]] = [
    {"name": "visit"},
    {"name": "purchase", "types": ["purchase", "order"], "aggregate": ["sum", "mean", "last"]},
    {"name": "basket", "value": "properties.cart.items", "aggregate": ["sum"]},
    {"name": "coupon", "role": "contact", "stamp": "day_end"},
    {
        "name": "plan", "role": "attribute", "value": "properties.plan", "attribute": "category",
        "categories": ["free", "7"],
    },
    {"name": "renewal", "role": "attribute", "value": "properties.due", "attribute": "date"},
    {"name": "seats", "role": "attribute"},
]  # fmt: skip
MAPPING = {"user_id": "who", "type": "what", "ts": "when", "event_id": "id", "value": "amount"}
COLUMNS = ("customer", "kind", "time", "value", "event_id", "position")

Row = dict[str, Any]
ROWS: list[Row] = [
    {"who": "00001", "what": "visit", "when": T0 + 5000, "id": "e1"},
    {"who": "00002", "what": "order", "when": T0 + 1000, "id": "e2", "amount": 12.25},
    {"who": "00001", "what": "purchase", "when": T0 + 5000, "id": "e3", "amount": 3.0},
    {"who": "NA", "what": "basket", "when": T0 + 7000, "cart.items": 4.0},
    {"who": "null", "what": "coupon", "when": T0, "id": "e4"},
    {"who": "é 😀", "what": "plan", "when": T0 + 9000, "plan": "7", "id": "e5"},
    {"who": "é 😀", "what": "plan", "when": T0 + 9001, "plan": "gold"},
    {"who": "00002", "what": "renewal", "when": T0 + 9002, "due": "2026-03-01T12:00:00.123456Z"},
    {"who": "00002", "what": "seats", "when": T0 + 9003, "amount": -7.5},
    {"who": "00002", "what": "purchase", "when": T0 + 9004},
]
FIELDS = ("who", "what", "when", "id", "amount", "cart.items", "plan", "due")


def spec_of(
    mapping: dict[str, Any] | None = None, kinds: list[dict[str, Any]] | None = None, **more: Any
) -> Spec:
    base = {"name": "t", "horizon": "14d", "memory": "90d", "windows": {"30d": 6}}
    return parse_spec(
        {**base, "kinds": kinds or KINDS, "mapping": MAPPING if mapping is None else mapping, **more}
    )


def as_csv(rows: list[Row], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
    writer.writerow(FIELDS)
    writer.writerows([[row.get(name, "") for name in FIELDS] for row in rows])
    return text.getvalue().encode()


def as_jsonl(rows: list[Row]) -> bytes:
    lines = []
    for row in rows:
        properties: Row = {name: row[name] for name in ("plan", "due") if name in row}
        if "cart.items" in row:
            properties["cart"] = {"items": row["cart.items"]}
        own = {name: row[name] for name in ("who", "what", "when", "id", "amount") if name in row}
        lines.append(json.dumps({**own, "properties": properties, "more": [1]}))
    return ("\n".join(lines) + "\n\n").encode()


def as_parquet(rows: list[Row]) -> bytes:
    def column(name: str, kind: Any) -> Any:
        return pa.array([row.get(name) for row in rows], kind)

    items = [{"items": row.get("cart.items")} for row in rows]
    return parquet_of(
        who=column("who", pa.string()),
        what=column("what", pa.string()).dictionary_encode(),
        when=column("when", pa.timestamp("ms", "Europe/Berlin")),
        id=column("id", pa.large_string()),
        amount=column("amount", pa.float64()),
        cart=pa.array(items, pa.struct([("items", pa.float64())])),
        plan=column("plan", pa.string()),
        due=column("due", pa.string()),
    )


def parquet_of(**columns: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[Row]], bytes]] = {
    "events.csv": as_csv,
    "events.tsv": lambda rows: as_csv(rows, "\t"),
    "semicolons.csv": lambda rows: as_csv(rows, ";"),
    "bom.csv": lambda rows: b"\xef\xbb\xbf" + as_csv(rows),
    "events.jsonl": as_jsonl,
    "events.ndjson": as_jsonl,
    "events.parquet": as_parquet,
}


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def read_text(folder: Path, text: str, spec: Spec, name: str = "events.csv", **more: Any) -> EventLog:
    return read_log(written(folder, name, text.encode()), spec, **more)


def streamed(log: EventLog, spec: Spec) -> EventBatch:
    """The log through Kafka's form and the parser, in batches."""
    records = [LogRecord(i, ts, key, value) for i, (key, value, ts) in enumerate(records_of(log, spec))]
    parsed = Parser(contract_spec(spec)).parse(records)
    assert parsed.rejected == []
    return parsed.events


def assert_same(events: EventBatch, others: EventBatch, columns: tuple[str, ...] = COLUMNS) -> None:
    assert events.customers == others.customers
    for column in columns:
        assert getattr(events, column).tobytes() == getattr(others, column).tobytes(), column


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("name", list(WRITERS))
def test_every_format_is_the_same_log(tmp_path: Path, name: str, gz: str) -> None:
    log = read_log(written(tmp_path, name + gz, WRITERS[name](ROWS)), spec_of())
    events = log.events
    order = [
        1,
        0,
        2,
        3,
        5,
        6,
        7,
        8,
        9,
        4,
    ]  # by stamped time, ties as in the file; the coupon at its day's end
    assert events.position.tolist() == order
    assert events.customers == ["00002", "00001", "NA", "é 😀", "null"]
    assert [events.customers[i] for i in events.customer] == [ROWS[i]["who"] for i in order]
    assert events.kind.tolist() == [1, 0, 1, 2, 4, 4, 5, 6, 1, 3]
    assert events.time.tolist() == [*(ROWS[i]["when"] for i in order[:-1]), T0 + DAY_MS - 1]
    due = (T0 + 59 * DAY_MS + 12 * HOUR_MS + 123.456) / DAY_MS
    expected = [12.25, np.nan, 3.0, 4.0, 2.0, 0.0, due, -7.5, np.nan, np.nan]
    np.testing.assert_array_equal(events.value, expected)
    assert events.event_id.tolist() == hash_texts([ROWS[i].get("id", "") for i in order]).tolist()
    assert log.arrival.tolist() == events.time.tolist()
    assert (log.rows, log.ignored, log.problems.total) == (len(ROWS), 0, 0)


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_file_streamed_is_the_file_read_bit_for_bit(tmp_path: Path, name: str) -> None:
    spec = spec_of()
    log = read_log(written(tmp_path, name, WRITERS[name](ROWS)), spec)
    assert_same(streamed(log, spec), log.events, ("customer", "kind", "time", "value", "event_id"))


def test_odd_values_survive_the_stream(tmp_path: Path) -> None:
    """Doubles of every size, dates to the microsecond, categories by any name."""
    rng = np.random.default_rng(5)
    numbers = np.concatenate(
        [rng.standard_normal(300) * 10.0 ** rng.integers(-300, 29, 300), [-0.0, 5e-324, 1e30, 0.1 + 0.2]]
    )
    rows: list[Row] = [
        {"who": "c", "what": "purchase", "when": T0 + i, "amount": x} for i, x in enumerate(numbers.tolist())
    ]
    for i, day in enumerate(rng.integers(-20_000, 40_000, 500).tolist()):
        moment = np.datetime64("1970-01-01T00:00:00.000000") + np.timedelta64(day * 86_399_999_983 + i, "us")
        due = f"{moment}Z" if i % 2 else str(moment)[:10]
        rows.append({"who": "c", "what": "renewal", "when": T0 + 1000 + i, "due": due})
    spec = spec_of()
    log = read_log(written(tmp_path, "odd.jsonl", as_jsonl(rows)), spec)
    assert log.events.value[: len(numbers)].tobytes() == numbers.tobytes()
    assert_same(streamed(log, spec), log.events)
    from_csv = read_log(written(tmp_path, "odd.csv", as_csv(rows)), spec)
    assert_same(from_csv.events, log.events)


def test_records_of_can_begin_later_and_carry_the_logs_own_times(tmp_path: Path) -> None:
    spec = spec_of()
    log = read_log(written(tmp_path, "events.csv", as_csv(ROWS)), spec)
    every = list(records_of(log, spec))
    assert list(records_of(log, spec, 4)) == every[4:]
    assert [ts for _, _, ts in every] == log.events.time.tolist()
    purchase = b'{"user_id":"00002","type":"purchase","ts":1767225601000,"value":12.25,"event_id":"e2"}'
    assert every[0] == (b"00002", purchase, T0 + 1000)


def test_a_mapped_arrival_is_the_order_of_the_log(tmp_path: Path) -> None:
    """What happened first may arrive last; Kafka would have brought it last."""
    text = "user_id,type,ts,got\na,visit,1000,9000\nb,visit,2000,2000\na,coupon,3000,2500\n"
    spec = spec_of({"arrival": "got"}, KINDS[:1] + KINDS[3:4], future_max="1h")
    log = read_text(tmp_path, text, spec)
    assert log.events.position.tolist() == [1, 2, 0]
    assert log.events.time.tolist() == [2000, DAY_MS - 1, 1000]
    assert log.arrival.tolist() == [2000, 2500, 9000]
    assert_same(streamed(log, spec), log.events, ("customer", "kind", "time"))
    rows = [{"user_id": "a", "type": "visit", "ts": 1000, "m": {"got": got}} for got in (9000, 1)]
    nested = read_text(
        tmp_path, "\n".join(map(json.dumps, rows)), spec_of({"arrival": "m.got"}, KINDS[:1]), "e.jsonl"
    )
    assert nested.arrival.tolist() == [1, 9000]


def test_events_of_one_moment_stay_as_they_stand_in_the_file(tmp_path: Path) -> None:
    rows = [f"c{i},visit,{1000 + i % 3}" for i in range(5_000)]
    log = read_text(tmp_path, "\n".join(["user_id,type,ts", *rows]), spec_of({}, KINDS[:1]))
    assert log.events.position.tolist() == sorted(range(5_000), key=lambda i: i % 3)


FORMATS: list[tuple[str, str, int]] = [
    ("auto", "2026-01-01T01:00:00+01:00", T0),
    ("auto", "2026-01-01", T0),
    ("auto", "1767225600000", T0),
    ("s", "1767225600", T0),
    ("s", "1767225600.0019", T0 + 1),
    ("ms", "1767225600000", T0),
    ("us", "1767225600001999", T0 + 1),
    ("%Y%m%d", "20260101", T0),
    ("%d.%m.%Y %H:%M", "01.01.2026 01:00", T0 + HOUR_MS),
    ("%Y-%m-%dT%H:%M%z", "2026-01-01T01:00+0100", T0),
]


@pytest.mark.parametrize(("ts_format", "text", "time"), FORMATS)
def test_times_are_read_as_the_mapping_says(tmp_path: Path, ts_format: str, text: str, time: int) -> None:
    spec = spec_of({"ts_format": ts_format}, KINDS[:1])
    assert read_text(tmp_path, f"user_id,type,ts\na,visit,{text}\n", spec).events.time.tolist() == [time]


TYPED = [pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.date32(), pa.date64()]


@pytest.mark.parametrize("kind", TYPED, ids=str)
def test_typed_times_of_parquet_need_no_format(tmp_path: Path, kind: Any) -> None:
    """Whatever the mapping says about text; and whole-number ids are their digits, and NaN is missing."""
    data = parquet_of(
        user_id=pa.array([7, 7], pa.int32()),
        type=["purchase", "purchase"],
        ts=pa.array([datetime(2026, 1, 1)] * 2, kind),  # noqa: DTZ001 - Arrow takes it as UTC
        value=[np.nan, 2.5],
    )
    path = written(tmp_path, "typed.parquet", data)
    events = read_log(path, spec_of({"ts_format": "%Y%m%d"}, KINDS[:2])).events
    assert events.customers == ["7"]
    assert events.time.tolist() == [T0, T0]
    np.testing.assert_array_equal(events.value, [np.nan, 2.5])


def test_ids_that_are_numbers_in_json_are_their_digits(tmp_path: Path) -> None:
    """Data frames write them so; on the stream, where the key says what the id is, they are refused."""
    rows = '{"u":{"id":42},"type":"visit","ts":1000}\n{"u":{"id":"42"},"type":"visit","ts":1001}\n'
    log = read_text(tmp_path, rows, spec_of({"user_id": "u.id"}, KINDS[:1]), "e.jsonl")
    assert log.events.customers == ["42"]


MISFITS: list[tuple[str, str, str, list[tuple[int, Reason]]]] = [
    ("a short row", "e.csv", "user_id,type,ts,value\na,visit\nb,visit,5,\n", [(2, Reason.BAD_ROW)]),
    ("a long row", "e.csv", "user_id,type,ts,value\na,visit,5,,,\nb,visit,5,\n", [(2, Reason.BAD_ROW)]),
    (
        "a line break", "e.csv", 'user_id,type,ts,value\n"a\nb",visit,5,\n\nc,visit,x,\nd,visit,5,\n',
        [(5, Reason.WRONG_TYPE)],
    ),
    ("no customer", "e.csv", "user_id,type,ts,value\n,visit,5,\nb,visit,5,\n", [(2, Reason.MISSING_FIELD)]),
    ("no type", "e.csv", "user_id,type,ts,value\na,,5,\nb,visit,5,\n", [(2, Reason.MISSING_FIELD)]),
    ("no time", "e.csv", "user_id,type,ts,value\na,visit,,\nb,visit,5,\n", [(2, Reason.MISSING_FIELD)]),
    ("no number", "e.csv", "user_id,type,ts,value\na,purchase,5,12 €\nb,visit,5,12 €\n", [(2, Reason.WRONG_TYPE)]),
    ("NaN", "e.csv", "user_id,type,ts,value\na,purchase,5,nan\nb,visit,5,\n", [(2, Reason.NOT_FINITE)]),
    ("too much", "e.csv", "user_id,type,ts,value\na,purchase,5,1e39\nb,visit,5,\n", [(2, Reason.NOT_FINITE)]),
    ("1900", "e.csv", "user_id,type,ts,value\na,visit,1900-01-01,\nb,visit,5,\n", [(2, Reason.TIMESTAMP_RANGE)]),
    ("unknown", "e.csv", "user_id,type,ts,value\nb,visit,5,\na,Visit,5,\n", [(3, Reason.UNKNOWN_TYPE)]),
    ("no JSON", "e.jsonl", '{"user_id":"a"\n\n{"user_id":"b","type":"visit","ts":5}\n', [(1, Reason.NOT_JSON)]),
    ("a list", "e.jsonl", '[]\n{"user_id":"b","type":"visit","ts":5}\n', [(1, Reason.WRONG_TYPE)]),
    (
        "two of three", "e.jsonl", '\n{"user_id":"b","type":"visit","ts":5}\n5\n{}\n',
        [(3, Reason.WRONG_TYPE), (4, Reason.MISSING_FIELD)],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("_", "name", "text", "misfits"), MISFITS, ids=[case[0] for case in MISFITS])
def test_a_row_that_does_not_fit_stops_the_reading(
    tmp_path: Path, _: str, name: str, text: str, misfits: list[tuple[int, Reason]]
) -> None:
    spec = spec_of({}, KINDS[:2])
    with pytest.raises(
        SpecError, match=rf"{len(misfits)} of \d+ rows.* line {misfits[0][0]}: .*{misfits[0][1]}"
    ):
        read_text(tmp_path, text, spec, name)
    log = read_text(tmp_path, text, spec, name, tolerant=True)
    assert [(problem.line, problem.reason) for problem in log.problems.first] == misfits
    assert log.problems.total == len(misfits)
    assert len(log) + log.ignored + log.problems.total == log.rows
    assert log.events.customers[-1] in "bd"


def test_misfits_are_counted_all_and_shown_in_part(tmp_path: Path) -> None:
    text = "user_id,type,ts\n" + "a,visit,never\n" * 9_000 + "a,visit,5\n" + "a,visit\n" * 1_000
    log = read_text(tmp_path, text, spec_of({}, KINDS[:1]), tolerant=True)
    assert log.problems.counts == {Reason.WRONG_TYPE: 9_000, Reason.BAD_ROW: 1_000}
    assert [problem.line for problem in log.problems.first] == list(range(2, 22))
    assert (len(log), log.rows) == (1, 10_001)
    assert log.events.position.tolist() == [9_000]


def test_ignored_types_are_no_problem_and_are_counted_by_name(tmp_path: Path) -> None:
    text = "user_id,type,ts\na,visit,5\na,scroll,6\n,scroll,\na,Visit,6\n"
    log = read_text(tmp_path, text, spec_of({}, KINDS[:1], unknown="ignore"))
    assert (len(log), log.ignored, log.problems.total) == (1, 3, 0)
    assert log.problems.unknown_types == {"scroll": 2, "Visit": 1}


def test_an_event_long_after_its_arrival_does_not_fit(tmp_path: Path) -> None:
    text = f"user_id,type,ts,got\na,visit,{2 * DAY_MS},5\na,visit,{DAY_MS},5\na,visit,5,\na,visit,5,-4\na,visit,5,0\n"
    log = read_text(tmp_path, text, spec_of({"arrival": "got"}, KINDS[:1]), tolerant=True)
    assert [(problem.line, problem.reason) for problem in log.problems.first] == [
        (2, Reason.FUTURE),
        (4, Reason.WRONG_TYPE),
        (5, Reason.WRONG_TYPE),
        (6, Reason.TIMESTAMP_RANGE),
    ]
    assert log.events.time.tolist() == [DAY_MS]


def test_missing_columns_are_named_at_once(tmp_path: Path) -> None:
    spec = spec_of({"user_id": "who", "value": "amount", "arrival": "got"})
    with pytest.raises(SpecError) as caught:
        read_text(tmp_path, "user_id,type,ts,cart.items,plan\n", spec)
    for name in (
        "'who' for user_id",
        "'amount' for value",
        "'due' for properties.due",
        "'got' for arrival",
        "'plan'",
    ):
        assert name in str(caught.value)
    assert "'plan' for" not in str(caught.value)


UNREADABLE: list[tuple[str, str, bytes, str]] = [
    ("an unknown ending", "events.xlsx", b"", "format"),
    ("no ending", "events", b"", "format"),
    ("an empty CSV", "e.csv", b"", "no column"),
    ("no CSV", "e.csv", b"\x00\xff\xfe\x81", "UTF-8|no column"),
    ("Latin-1 further down", "e.csv", b"user_id,type,ts\na,visit,5\n\xe9,visit,5\n", "UTF-8"),
    ("an open quote", "e.csv", b'user_id,type,ts\n"a,visit,5\n' + b"b,visit,5\n" * 20_000, "quote"),
    (
        "half a gzip",
        "e.csv.gz",
        gzip.compress(b"user_id,type,ts\n" + bytes(range(48, 58)) * 9999)[:60],
        "damaged|gzip",
    ),
    (
        "a gzip with a wrong sum",
        "e.jsonl.gz",
        gzip.compress(b"{}\n" * 99)[:-8] + b"12345678",
        "damaged|CRC|gzip",
    ),
    ("no Parquet", "e.parquet", b"user_id,type,ts\n", "Parquet"),
    ("fractions as ids", "e.parquet", parquet_of(user_id=[1.5], type=["visit"], ts=[5]), "fractions"),
]


@pytest.mark.parametrize(("_", "name", "data", "words"), UNREADABLE, ids=[case[0] for case in UNREADABLE])
def test_a_file_that_cannot_be_read_is_one_clear_error(
    tmp_path: Path, _: str, name: str, data: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SpecError, match=words):
        read_log(path, spec_of({}, KINDS[:1]))


def test_a_file_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    for name in ("no.csv", "no.jsonl.gz", "no.parquet"):
        with pytest.raises(SpecError, match="No such file"):
            read_log(tmp_path / name, spec_of())
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(SpecError, match="directory"):
        read_log(tmp_path / "dir.csv", spec_of())


@pytest.mark.parametrize("name", ["e.csv", "e.jsonl", "e.parquet"])
def test_a_file_without_rows_is_an_empty_log(tmp_path: Path, name: str) -> None:
    log = read_log(written(tmp_path, name, WRITERS[f"events{name[1:]}"]([])), spec_of())
    assert (len(log), log.rows, log.events.customers) == (0, 0, [])
    assert list(records_of(log, spec_of())) == []


@pytest.mark.parametrize("name", ["e.csv.gz", "e.jsonl", "e.parquet"])
def test_progress_is_told_and_ends_at_the_end(tmp_path: Path, name: str) -> None:
    rows = [{"who": f"c{i}", "what": "visit", "when": T0 + i} for i in range(20_000)]
    told: list[float] = []
    log = read_log(
        written(tmp_path, name, WRITERS[f"events.{name.split('.')[1]}"](rows)),
        spec_of(),
        progress=told.append,
    )
    assert len(log) == 20_000
    assert told == sorted(told)
    assert told[0] < 1
    assert told[-1] == 1


DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
PUBLIC = [("cdnow", 69_659, 23_570), ("complete_journey", 164_539, 2_469)]


@pytest.mark.data
@pytest.mark.parametrize(("name", "events", "customers"), PUBLIC)
def test_public_logs_are_read_whole_and_stream_as_they_were_read(
    name: str, events: int, customers: int
) -> None:
    path = DATA / name / "events.csv.gz"
    if not path.exists():
        pytest.skip("no public logs beside the project")
    spec = load_spec(Path(__file__).resolve().parents[3] / "ops" / "specs" / f"{name}.yaml")
    log = read_log(path, spec)
    assert (len(log), len(log.events.customers), log.problems.total) == (events, customers, 0)
    assert_same(streamed(log, spec), log.events, ("customer", "kind", "time", "value"))
