"""The fast path reads nothing that the row's own reader would refuse, and no bit of it differently.

Random nasty tables go through `read_log`, and row by row through `ColumnReader` alone, the judge; rows are built here
from what was written, not by the code under test.
"""

import csv
import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.events.columns import ColumnReader, Columns
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.spec import Mapping, Spec, parse_spec

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

Row = dict[str, Any]
KINDS: list[Row] = [
    {"name": "visit"},
    {"name": "purchase", "aggregate": ["sum"]},
    {"name": "basket", "value": "properties.cart.items", "aggregate": ["last"], "stamp": "day_end"},
    {"name": "plan", "role": "attribute", "attribute": "category", "categories": ["free", "7", "é", "NULL"]},
    {"name": "due", "role": "attribute", "value": "properties.due", "attribute": "date"},
    {"name": "seats", "role": "attribute", "value": "properties.due", "attribute": "number"},
]
TYPES = [
    "visit",
    "purchase",
    "basket",
    "plan",
    "due",
    "seats",
    "visit",
    "purchase",
    "Visit",
    "",
    "scroll",
    " plan",
]
USERS = [
    "a",
    "00001",
    "1.0",
    "é😀",
    "x" * 128,
    "x" * 129,
    "😀" * 128,
    "",
    "NULL",
    "nan",
    "\\N",
    " a ",
    "a\x00b",
]
IDS = ["", "e1", "e2", "0", "NULL", "\\N", "nan", "é", "None"]
NUMBERS = [
    "", "0", "-0", "-0.0", "1", "1.5", "007", "12.34", ".5", "5.", "+1", "-", ".", "1e3", "1E-400", "1e30",
    "1.0000001e30", "1e400", "nan", "inf", "-Infinity", "1_000", " 12 ", "12,5", "0x10", "999999999999999",
    "9999999999999999",
    "0.1234567890123456789", "123456.789012345", "٣", "NULL", "null", "\\N", "None", "NaN", "twelve", "--1", "1.2.3",
    "9007199254740993", "0.30000000000000004", "2026-03-01",
]  # fmt: skip
TIMES = [
    "2026-01-01", "2026-01-01T00:00:00", "2026-01-01 12:30", "2026-01-01t12:30:59z", "2026-01-01T12:30:59.1",
    "2026-01-01T12:30:59.123456Z", "2026-01-01T12:30:59.123456789Z", "2026-01-01T12:30:59.1234567890Z",
    "2026-01-01T12:30:59,5", "2026-01-01T12:30:59+02:00", "2026-01-01T12:30:59-23:59", "2026-01-01T12:30:59+24:00",
    "2026-01-01T12:30:59+0200", "2026-01-01T12:30:59+02", "2026-01-01T12:30:59+02:00:30", "2026-02-29", "2024-02-29",
    "1900-02-29", "2000-02-29", "2026-04-31", "2026-13-01", "2026-00-10", "2026-01-00", "1970-01-01",
    "1969-12-31T23:59:59.9",
    "9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59-01:00", "0001-01-01", "2026-W01-1", "2026-001", "20260101",
    "20260101T120000", "2026-01-01T24:00", "2026-01-01T23:60", "2026-01-01T23:59:60", "2026-01-01T", "2026-01-01 ",
    " 2026-01-01", "2026-01-01X12:00", "2026-01-01T12:00:00 UTC", "2026-01-01T12:00:00ZZ", "2026-1-1", "٢026-01-01",
    "0", "1", "-5", "1767225600000", "1767225600", "1767225600000000", "1767225600000000000", "1767225600.5", "1e12",
    "253402300799999", "253402300800000", "999999999999999999", "9999999999999999999", "9" * 40, "٣", "", "\\N", "soon",
]  # fmt: skip
FORMATS = ["auto", "s", "ms", "us", "ns", "%Y-%m-%d", "%Y-%m-%dT%H:%M:%S%z", "%Y%m%d", "%Y-%m-%d %H:%M:%S %Z"]
SEEDS = range(40)


def spec_of(rng: np.random.Generator) -> Spec:
    base = {"name": "t", "horizon": "14d", "memory": "90d", "windows": {"30d": 6}}
    mapping = {"ts_format": FORMATS[int(rng.integers(len(FORMATS)))]}
    unknown = "ignore" if rng.random() < 0.5 else "dead_letter"
    return parse_spec({**base, "kinds": KINDS, "mapping": mapping, "unknown": unknown})


def picked(rng: np.random.Generator, pool: list[Any], common: Any, nasty: float) -> Any:
    return pool[int(rng.integers(len(pool)))] if rng.random() < nasty else common


def judged(rows: list[Any], spec: Spec, *, text: bool, ts_format: str | None = None) -> Columns:
    mapping = Mapping(ts_format=ts_format or spec.mapping.ts_format)
    return ColumnReader(spec, mapping=mapping, text=text).read(rows)


def assert_as_judged(log: EventLog, columns: Columns, lines: Sequence[int], seed: int) -> None:
    order = np.argsort(columns.time, kind="stable")
    columns = columns.take(order)
    events = log.events
    assert [events.customers[c] for c in events.customer] == columns.users, seed
    assert events.customers == list(dict.fromkeys(columns.users)), seed
    assert events.position.tolist() == columns.index.tolist(), seed
    for ours, theirs in (
        (events.kind, columns.kind),
        (events.time, columns.time),
        (events.value, columns.value),
    ):
        assert ours.tobytes() == theirs.tobytes(), seed
    assert events.event_id.tobytes() == columns.event_ids().tobytes(), seed
    assert (log.ids or [""] * len(log)) == (columns.ids or [""] * len(log)), seed
    assert log.ignored == len(columns.ignored), seed
    assert log.problems.total == len(columns.rejected), seed
    shown = [(lines[r.index], r.reason, r.detail) for r in columns.rejected[:20]]
    assert [(p.line, p.reason, p.detail) for p in log.problems.first] == shown, seed
    assert sum(log.problems.unknown_types.values()) == len(columns.unknown), seed


@pytest.mark.parametrize("seed", SEEDS)
def test_text_is_read_as_the_judge_reads_it(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec, nasty = spec_of(rng), float(rng.choice([0.02, 0.2, 0.8]))
    good = {"auto": "2026-01-02T03:04:05.678Z", "s": "1767225600", "%Y%m%d": "20260102"}.get(
        spec.mapping.ts_format, "1767225600000"
    )
    table = [
        {
            "user_id": picked(rng, USERS, f"c{rng.integers(50)}", nasty),
            "type": picked(rng, TYPES, TYPES[int(rng.integers(6))], nasty),
            "ts": picked(rng, TIMES, good, nasty),
            "event_id": picked(rng, IDS, f"e{rng.integers(500)}", nasty),
            "value": picked(rng, NUMBERS, f"{rng.normal() * 10.0 ** rng.integers(-3, 6):.{rng.integers(9)}f}", nasty),
            "cart.items": picked(rng, NUMBERS, str(rng.integers(9)), nasty),
            "due": picked(rng, TIMES + NUMBERS, "2026-01-02", nasty),
        }
        for _ in range(600)
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), quoting=csv.QUOTE_ALL if seed % 2 else csv.QUOTE_MINIMAL)
    writer.writeheader()
    lines = []
    for row in table:
        lines.append(1 + text.getvalue().count("\n"))
        writer.writerow(row)
    path = tmp_path / "nasty.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    log = read_log(path, spec, tolerant=True)
    assert_as_judged(log, judged([of_text(row) for row in table], spec, text=True), lines, seed)


def of_text(row: Row) -> Row:
    """A row of a text file as the judge is given it: nothing for '' and \\N, and no id that says so in words."""
    found = {name: None if text in ("", "\\N") else text for name, text in row.items()}
    if found["event_id"] in ("NULL", "null", "None", "NaN", "nan"):
        found["event_id"] = None
    own = {name: found[name] for name in ("user_id", "type", "ts", "event_id", "value")}
    return {**own, "properties": {"cart": {"items": found["cart.items"]}, "due": found["due"]}}


ANY: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, 7, 7.0, 1e31, -1e30, 1 << 53, (1 << 53) + 1, 1 << 63, (1 << 64) - 1, "", "7",
    "free", "x", [], {}, [1], {"a": 1}, 1767225600000, 1767225600.0, 1767225600.25, -0.0, 5e-324, 1e308, "2026-01-01",
    "1767225600000",
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_json_is_read_as_the_judge_reads_it(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec, nasty = spec_of(rng), float(rng.choice([0.01, 0.1, 0.6]))
    rows: list[Any] = []
    for _ in range(600):
        cart: Any = (
            {"items": picked(rng, ANY, 2.0, nasty)} if rng.random() > nasty else picked(rng, ANY, {}, 1)
        )
        properties: Row = {"cart": cart, "due": picked(rng, [*ANY, *TIMES], "2026-01-02", nasty)}
        row: Row = {
            "user_id": picked(rng, [*ANY, *USERS], f"c{rng.integers(50)}", nasty),
            "type": picked(rng, [*ANY, *TYPES], TYPES[int(rng.integers(6))], nasty),
            "ts": picked(rng, [*ANY, *TIMES], 1767225600000 + int(rng.integers(10**9)), nasty),
            "event_id": picked(rng, [*ANY, *IDS], f"e{rng.integers(500)}", nasty),
            "value": picked(rng, ANY, float(rng.normal()), nasty),
            "properties": properties if rng.random() > nasty / 4 else picked(rng, ANY, None, 1),
        }
        row = {name: value for name, value in row.items() if rng.random() > nasty / 8}
        rows.append(row if rng.random() > nasty / 8 else picked(rng, ANY, None, 1))
    path = tmp_path / "nasty.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    log = read_log(path, spec, tolerant=True)
    given = json.loads(json.dumps(rows))
    for row in given:
        if isinstance(row, dict):
            row.update(
                {name: str(row[name]) for name in ("user_id", "event_id") if type(row.get(name)) is int}
            )
    assert_as_judged(log, judged(given, spec, text=False), range(1, 601), seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_typed_columns_are_read_as_the_judge_reads_them(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec, n, nasty = spec_of(rng), 600, float(rng.choice([0.02, 0.3]))
    users: list[Any] = [picked(rng, [*USERS, None], f"c{rng.integers(50)}", nasty) for _ in range(n)]
    whole = rng.random() < 0.3
    if whole:
        users = [None if rng.random() < nasty else int(rng.integers(50)) for _ in range(n)]
    doubles = [0.0, -0.0, np.nan, np.inf, 1e30, 1.1e30, 5e-324, None, 2.5]
    values: list[Any] = [picked(rng, doubles, float(rng.normal()), nasty) for _ in range(n)]
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    moments = [moment + timedelta(milliseconds=int(rng.integers(10**10))) for _ in range(n)]
    times: list[Any] = [None if rng.random() < nasty / 4 else when for when in moments]
    typed = rng.random() < 0.5
    ts: list[Any] = (
        times if typed else [picked(rng, [1, -1, 1 << 62, None, 0], 1767225600000, nasty) for _ in range(n)]
    )
    due: list[Any] = [picked(rng, [*TIMES, None], "2026-05-05", nasty) for _ in range(n)]
    types = [picked(rng, [*TYPES, None], TYPES[int(rng.integers(6))], nasty) for _ in range(n)]
    ids = [picked(rng, [*IDS, None], f"e{rng.integers(500)}", nasty) for _ in range(n)]
    kind_of_ts = pa.timestamp(str(rng.choice(["ms", "us"])), "UTC") if typed else pa.int64()
    table = pa.table({
        "user_id": pa.array(users, pa.int32() if whole else pa.string()),
        "type": pa.array(types, pa.string()).dictionary_encode(),
        "ts": pa.array(ts, kind_of_ts),
        "event_id": pa.array(ids, pa.large_string()),
        "value": pa.array(values, pa.float64()),
        "cart": pa.array([{"items": value} for value in values], pa.struct([("items", pa.float64())])),
        "due": pa.array(due, pa.binary() if seed % 2 else pa.string()),
    })  # fmt: skip
    path = tmp_path / "nasty.parquet"
    parquet.write_table(table, path)
    log = read_log(path, spec, tolerant=True)

    def number(value: Any) -> Any:
        return None if value is None or value != value else value  # noqa: PLR0124 - NaN is not itself

    rows = [
        {
            "user_id": str(user) if type(user) is int else user,
            "type": event_type,
            "ts": round(when.timestamp() * 1000) if isinstance(when, datetime) else when,
            "event_id": event_id,
            "value": number(value),
            "properties": {"cart": {"items": number(value)}, "due": until},
        }
        for user, event_type, when, event_id, value, until in zip(
            users, types, ts, ids, values, due, strict=True
        )
    ]
    columns = judged(rows, spec, text=False, ts_format="ms" if typed else None)
    assert_as_judged(log, columns, range(1, n + 1), seed)
