"""Event files as exporters and engines write them: each is read as it is meant, or refused in one error that names
file, line, column and remedy; none is read short."""

import gzip
import json
import os
import re
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.check.events import check
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.files.delimited import LINES_MAX
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.featurestore.times.durations import HOUR_MS

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).resolve().parents[3]
T0 = 1_767_225_600_000  # 2026-01-01
ISO = "2026-01-01T00:00:00Z"
KINDS: list[dict[str, Any]] = [
    {"name": "visit", "types": ["visit", "view"]},
    {"name": "purchase", "aggregate": ["sum"]},
    {"name": "renewal", "role": "attribute", "value": "properties.due", "attribute": "date"},
]
HEAD = "user_id,type,ts,value"
A, B = (f'{{"user_id":"{user}","type":"visit","ts":5}}' for user in "ab")


def spec_of(kinds: int = 1, **mapping: Any) -> Spec:
    base = {"name": "t", "horizon": "14d", "memory": "90d", "windows": {"30d": 6}}
    return parse_spec({**base, "kinds": KINDS[:kinds], "mapping": mapping})


def written(folder: Path, data: bytes | str, name: str = "e.csv") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def customers(log: EventLog) -> list[str]:
    """Of each event, in the file's order."""
    order = np.argsort(log.events.position)
    return [log.events.customers[c] for c in log.events.customer[order]]


def values(log: EventLog) -> list[float | None]:
    found = log.events.value[np.argsort(log.events.position)].tolist()
    return [None if value != value else value for value in found]  # noqa: PLR0124 - NaN is not itself


Quoted = tuple[str, str, str, list[str]]
TEXTS: list[Quoted] = [
    ("all quoted", "e.csv", f'"user_id","type","ts","value"\n"a","visit","{ISO}",""\n', ["a"]),
    ("a quoted delimiter", "e.csv", f'{HEAD}\n"a,b",visit,5,\n', ["a,b"]),
    ("a doubled quote", "e.csv", f'{HEAD}\n"a""b",visit,5,\n', ['a"b']),
    ("a quote inside", "e.csv", f'{HEAD},size\na,visit,5,,24" screen\nb,visit,5,,3" tape\n', ["a", "b"]),
    ("a quote at the end", "e.csv", f'{HEAD},size\na,visit,5,,24"\nb,visit,5,,3"\n', ["a", "b"]),
    ("text over lines", "e.csv", f'{HEAD},note\na,visit,5,,"one\ntwo, three\n\nfour"\nb,visit,5,,\n', ["a", "b"]),
    ("an empty quoted line", "e.csv", f'{HEAD},note\na,visit,5,,"\n"\nb,visit,5,,x\n', ["a", "b"]),
    ("CR LF", "e.csv", f"{HEAD}\r\na,visit,5,\r\nb,visit,5,\r\n", ["a", "b"]),
    ("CR alone", "e.csv", f"{HEAD}\ra,visit,5,\rb,visit,5,\r", ["a", "b"]),
    ("CR alone, quoted", "e.csv", f'{HEAD}\r"a",visit,5,\r"b\rc",visit,5,\r', ["a", "b\rc"]),
    ("mixed ends", "e.csv", f"{HEAD}\r\na,visit,5,\nb,visit,5,\r\n\r\n\nc,visit,5,", ["a", "b", "c"]),
    ("no end of the last line", "e.csv", f"{HEAD}\na,visit,5,", ["a"]),
    ("blank lines", "e.csv", f"{HEAD}\n\na,visit,5,\n\n\nb,visit,5,\n\n", ["a", "b"]),
    ("a delimiter at each end", "e.csv", f"{HEAD},\na,visit,5,,\nb,visit,5,,\n", ["a", "b"]),
    ("blanks in the header", "e.csv", " user_id , type , ts , value \na,visit,5,\n", ["a"]),
    ("blanks in ids", "e.csv", f"{HEAD}\n a,visit,5,\na ,visit,5,\n", [" a", "a "]),
    ("an index column", "e.csv", f",{HEAD}\n0,a,visit,5,\n1,b,visit,5,\n", ["a", "b"]),
    ("semicolons", "e.csv", "user_id;type;ts;value\na;visit;5;\n", ["a"]),
    ("semicolons, commas in names", "e.csv", 'user_id;type;ts;"a,b,c,d,e"\na;visit;5;1,5\n', ["a"]),
    ("pipes", "e.psv", "user_id|type|ts|value\na|visit|5|\n", ["a"]),
    ("sep=", "e.csv", "sep=;\r\nuser_id;type;ts;value\r\na;visit;5;\r\n", ["a"]),
    ("a TSV with lone quotes", "e.tsv", 'user_id\ttype\tts\tt\na\tvisit\t5\t"x\nb\tvisit\t5\t"y\n', ["a", "b"]),
    ("a TSV that quotes", "e.tsv", '"user_id"\t"type"\t"ts"\n"a"\t"visit"\t"5"\n"b\tc"\t"visit"\t"5"\n', ["a", "b\tc"]),
    ("a TSV with quoted headers", "e.tsv", '"user_id"\t"type"\t"ts"\na\tvisit\t5\n', ["a"]),
    (
        "a TSV that quotes late", "e.tsv",
        "user_id\ttype\tts\tn\n" + f"a\tvisit\t5\t{'x' * 300_000}\n" + 'a\tvisit\t5\tx\n'
        '"b\tc"\tvisit\t5\tx\n"d ""e"""\tvisit\t5\tx\nf\tvisit\t5\t"over\nlines"\n'
        'g\tvisit\t5\t"x\n"h" i\tvisit\t5\tx\nj"\tvisit\t5\tx\n',
        ["a", "a", "b\tc", 'd "e"', "f", "g", '"h" i', 'j"'],
    ),
    ("a byte order mark", "e.csv", f"\ufeff{HEAD}\na,visit,5,\n", ["a"]),
    ("a mark before a quote", "e.csv", '\ufeff"user_id","type","ts"\n"a","visit","5"\n', ["a"]),
    ("a long unread field", "e.csv", f"{HEAD},note\na,visit,5,,{'x' * 300_000}\nb,visit,5,,\n", ["a", "b"]),
    ("a long quoted field", "e.csv", f'{HEAD},note\na,visit,5,,"{"x,""y" * 90_000}"\nb,visit,5,,\n', ["a", "b"]),
    ("a NUL", "e.csv", f"{HEAD},n\na,visit,5,,x\x00y\nb,visit,5,,\n", ["a", "b"]),
    ("unread doubled columns", "e.csv", f"{HEAD},x,x\na,visit,5,,1,2\n", ["a"]),
    ("lines", "e.jsonl", f"{A}\r\n\r\n{B}", ["a", "b"]),
    ("lines ended by CR", "e.jsonl", f"{A}\r{B}\r", ["a", "b"]),
    ("a mark before lines", "e.json", '\ufeff{"user_id":"a","type":"visit","ts":5}\n', ["a"]),
    ("an array", "e.json", f"[{A},{B}]", ["a", "b"]),
    (
        "an indented array", "e.json",
        "\n" + json.dumps([{"user_id": u, "type": "visit", "ts": 5} for u in "ab"], indent=2), ["a", "b"],
    ),
    ("an empty array", "e.json", "[]\n", []),
    (
        "a long line", "e.jsonl",
        json.dumps({"user_id": "a", "type": "visit", "ts": 5, "html": "x" * 300_000}) + "\n", ["a"],
    ),
    ("escapes", "e.jsonl", '{"user_id":"\\u00e9\\ud83d\\ude00","type":"visit","ts":5}\n', ["é😀"]),
]  # fmt: skip


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("_", "name", "text", "users"), TEXTS, ids=[case[0] for case in TEXTS])
def test_text_files_as_they_are_written(
    tmp_path: Path, _: str, name: str, text: str, users: list[str], gz: bool
) -> None:
    data = text.encode()
    log = read_log(written(tmp_path, gzip.compress(data) if gz else data, name), spec_of())
    assert customers(log) == users
    assert log.rows == len(users)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.jsonl"])
def test_encodings_that_say_what_they_are(tmp_path: Path, encoding: str, name: str) -> None:
    text = '{"user_id":"é😀","type":"visit","ts":5}\n'
    if name != "e.jsonl":
        text = f"{HEAD}\né😀,visit,5,\n".replace(",", "," if name == "e.csv" else "\t")
    assert customers(read_log(written(tmp_path, text.encode(encoding), name), spec_of())) == ["é😀"]


def test_what_is_not_read_may_be_latin_1(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEAD},note\na,visit,5,,caf\xe9\n".encode("latin-1"))
    assert customers(read_log(path, spec_of())) == ["a"]


REFUSED: list[tuple[str, str, bytes, str]] = [
    ("Latin-1", "e.csv", f"{HEAD}\nb,visit,5,\n\xe9,visit,5,\n".encode("latin-1"), r"line 3, column 'user_id'.*UTF-8"),
    ("Latin-1 header", "e.csv", f"{HEAD},\xe9\nb,visit,5,\n".encode("latin-1"), r"e\.csv.*UTF-8 in its header"),
    ("Latin-1 JSON", "e.jsonl", b'{"user_id":"\xe9","type":"visit","ts":5}\n', "line 1.*UTF-8"),
    ("UTF-16 unmarked", "e.csv", f"{HEAD}\na,visit,5,\n".encode("utf-16-le"), "no column|UTF-16"),
    ("half a UTF-16", "e.csv", f"{HEAD}\na,visit,5,\n".encode("utf-16")[:-1], "UTF-16"),
    ("two lone quotes", "e.csv", f'{HEAD},n\na,visit,5,,"x\nb,visit,5,,\nc,visit,5,,"y\n'.encode(), "line 2 to line 4"),
    ("neighbouring quotes", "e.csv", f'{HEAD},n\na,visit,5,,"x\nb,visit,5,,"y\n'.encode(), "line 2 to line 3.*quote"),
    ("a lone closing quote", "e.csv", f'{HEAD},n\na,visit,5,,"x\nb,visit,5,,"\n'.encode(), "line 2 to line 3.*quote"),
    ("an open quote", "e.csv", f'{HEAD},n\na,visit,5,,"x\n'.encode() + b"b,visit,5,,\n" * 9, "line 2 to line 11"),
    ("an endless quote", "e.csv", f'{HEAD},n\na,visit,5,,"x\n'.encode() + b"b\n" * LINES_MAX, "line 2.*quote"),
    ("a doubled column", "e.csv", b"user_id,type,ts,ts\na,visit,5,6\n", "'ts' more than once"),
    ("a doubled header", "e.tsv", b"user_id\ttype\tts\tuser_id\n", "'user_id' more than once"),
    ("no header", "e.csv", b"a,visit,5,\nb,visit,6,\n", "no column 'user_id'.*it has 'a', 'visit'"),
    ("a delimiter too many", "e.csv", f"{HEAD}\na,visit,5,,\n".encode(), "5 fields under a header of 4: a delim"),
    ("a dot in numbers", "e.csv", f"{HEAD}\na,purchase,5,1.234,5\n".encode(), "line 2: 5 fields"),
    ("a comma in numbers", "e.csv", b"user_id;type;ts;value\na;purchase;5;12,5\n", "line 2: purchase: value: expected"),
    ("\\N for a customer", "e.csv", f"{HEAD}\n\\N,visit,5,\n".encode(), "line 2: user_id is missing"),
    ("an object of an array", "e.json", b'[{"user_id":"a","type":"visit","ts":5},{}]', "line 2: user_id is missing"),
    ("half an array", "e.json", b'[{"user_id":"a","type":"visit","ts":5},\n', "line 1: .*not_json"),
    ("fractions as ids", "e.jsonl", b'{"user_id":1.0,"type":"visit","ts":5}\n', "line 1: user_id: expected text"),
    ("a gzip cut off", "e.csv.gz", gzip.compress(f"{HEAD}\n".encode() + os.urandom(9999))[:5000], "damaged gzip"),
    ("a spreadsheet", "e.xlsx", b"PK", "format"),
]  # fmt: skip


@pytest.mark.parametrize(("_", "name", "data", "words"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_cannot_be_read_is_one_error_that_says_where(
    tmp_path: Path, _: str, name: str, data: bytes, words: str
) -> None:
    path, spec = written(tmp_path, data, name), spec_of(2 if "purchase" in words else 1)
    with pytest.raises(SpecError, match=words) as caught:
        read_log(path, spec)
    assert str(path) in str(caught.value)
    assert any(finding.severity == "error" for finding in check(path, spec))


NULLS = [
    ("", None),
    ("NULL", None),
    ("null", None),
    ("None", None),
    ("\\N", None),
    ("1.50", 1.5),
    ("-0", -0.0),
    ("1e2", 100.0),
]


@pytest.mark.parametrize(("text", "value"), NULLS)
def test_what_is_written_where_a_number_is_missing(tmp_path: Path, text: str, value: float | None) -> None:
    log = read_log(written(tmp_path, f"{HEAD},due\na,purchase,5,{text},{text}\n"), spec_of(2))
    assert values(log) == [value]


@pytest.mark.parametrize("text", ["NULL", "null", "None", "\\N", "NaN", "nan", ""])
def test_an_event_id_that_says_none_is_none(tmp_path: Path, text: str) -> None:
    """Taken for an id, all events of a customer but one would be its duplicates."""
    log = read_log(written(tmp_path, f"{HEAD},event_id\na,visit,5,,{text}\na,visit,5,,{text}\n"), spec_of())
    assert log.ids is None
    assert not log.events.event_id.any()


@pytest.mark.parametrize("text", ["NaN", "nan", "inf", "-Infinity", "1e31"])
def test_a_number_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"line 2: .*not_finite"):
        read_log(written(tmp_path, f"{HEAD}\na,purchase,5,{text}\n"), spec_of(2))


@pytest.mark.parametrize("text", ["00001", "123.0", "1e5", "NULL", "nan", "NA", "0x1F", "-1", "+49", "true"])
def test_text_stays_text_in_ids(tmp_path: Path, text: str) -> None:
    assert customers(read_log(written(tmp_path, f"{HEAD}\n{text},visit,5,\n"), spec_of())) == [text]


TIMES: list[tuple[str, str, int]] = [
    ("auto", "2026-01-01", T0), ("auto", "2026-01-01 00:00", T0), ("auto", "2026-01-01 00:00:00", T0),
    ("auto", "2026-01-01T00:00:00.1", T0 + 100), ("auto", "2026-01-01T00:00:00.123456789", T0 + 123),
    ("auto", "2026-01-01T02:00:00+02:00", T0), ("auto", "2026-01-01T02:00:00+0200", T0),
    ("auto", "2025-12-31T19:00:00-05", T0), ("auto", str(T0), T0), ("s", str(T0 // 1000), T0),
    ("s", f"{T0 // 1000}.5", T0 + 500), ("ms", str(T0), T0), ("us", f"{T0}999", T0), ("ns", f"{T0}999999", T0),
    ("%Y%m%d", "20260101", T0), ("%d/%m/%Y", "01/01/2026", T0), ("%m/%d/%Y %I:%M %p", "01/01/2026 12:00 AM", T0),
    ("%d.%m.%y %H:%M:%S", "01.01.26 01:00:00", T0 + HOUR_MS), ("%d %b %Y", "01 Jan 2026", T0),
    ("%Y-%m-%d %H:%M:%S %Z", "2026-01-01 00:00:00 UTC", T0), ("%Y-%m-%d %H:%M:%S %Z", "2026-01-01 00:00:00 GMT", T0),
    ("%Y-%m-%d %H:%M:%S%z", "2026-01-01 01:00:00+01:00", T0), ("%Y-%m-%d %%Z", "2026-01-01 %Z", T0),
]  # fmt: skip


@pytest.mark.parametrize(("ts_format", "text", "time"), TIMES)
def test_times_in_every_shape_and_unit(tmp_path: Path, ts_format: str, text: str, time: int) -> None:
    log = read_log(written(tmp_path, f"{HEAD}\na,visit,{text},\n"), spec_of(ts_format=ts_format))
    assert log.events.time.tolist() == [time]


READS = """
import sys
from ebbtide.featurestore.files.reader import read_log
for ts_format in ("%Y-%m-%d %H:%M:%S %Z", "auto"):
    log = read_log(sys.argv[1], sys.argv[2], tolerant=True)
    print(log.events.time.tolist(), log.problems.words())
"""


def test_no_reading_depends_on_the_zone_of_the_machine(tmp_path: Path) -> None:
    """Python's %Z takes the names of the machine's own zone, and takes them for UTC."""
    rows = [f"a,visit,2024-01-10 12:00:00 {zone}," for zone in ("CET", "EST", "EDT", "UTC", "JST", "gmt")]
    path = written(tmp_path, "\n".join([HEAD, *rows]))
    spec = written(
        tmp_path,
        'name: t\nhorizon: 14d\nmemory: 90d\nwindows: {30d: 6}\nkinds: [{name: visit}]\nmapping: {ts_format: "%Y-%m-%d '
        '%H:%M:%S %Z"}\n',
        "spec.yaml",
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", READS, str(path), str(spec)],
            cwd=ROOT, env={**os.environ, "TZ": zone}, capture_output=True, text=True, check=True,
        ).stdout
        for zone in ("UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo")
    }  # fmt: skip
    (output,) = outputs
    assert output.startswith("[1704888000000, 1704888000000] line 2: ts: expected a date")


def parquet_of(path: Path, columns: dict[str, Any], **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, **more)
    return path


MOMENT = datetime(2026, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
STAMPS = [
    pa.timestamp("s"), pa.timestamp("s", "UTC"), pa.timestamp("ms"), pa.timestamp("ms", "Europe/Berlin"),
    pa.timestamp("us"), pa.timestamp("us", "America/New_York"), pa.timestamp("ns"), pa.timestamp("ns", "UTC"),
]  # fmt: skip


@pytest.mark.parametrize("int96", [False, True], ids=["int64", "int96"])
@pytest.mark.parametrize("kind", STAMPS, ids=str)
def test_parquet_timestamps(tmp_path: Path, kind: Any, int96: bool) -> None:
    columns = {
        "user_id": ["a"], "type": ["visit"],
        "ts": pa.array([MOMENT.replace(tzinfo=None) if kind.tz is None else MOMENT], pa.timestamp("us", kind.tz)).cast(
            kind, safe=False
        ),
    }  # fmt: skip
    path = parquet_of(tmp_path / "e.parquet", columns, use_deprecated_int96_timestamps=int96)
    expected = T0 + (1000 if kind.unit == "s" else 1500)
    assert read_log(path, spec_of(ts_format="%Y%m%d")).events.time.tolist() == [expected]


@pytest.mark.parametrize("int96", [False, True], ids=["us", "int96"])
def test_a_date_of_the_year_9999(tmp_path: Path, int96: bool) -> None:
    """INT96 in nanoseconds wrapped round to 1816."""
    due = pa.array([datetime(9999, 12, 31)], pa.timestamp("us"))  # noqa: DTZ001 - Arrow takes it as UTC
    columns = {"user_id": ["a"], "type": ["renewal"], "ts": [T0], "due": due, "value": [1.0]}
    path = parquet_of(tmp_path / "e.parquet", columns, use_deprecated_int96_timestamps=int96)
    assert values(read_log(path, spec_of(3))) == [2_932_896.0]


IDS: list[tuple[Any, str]] = [
    (pa.array(["00001"]), "00001"), (pa.array(["00001"], pa.large_string()), "00001"),
    (pa.array(["00001"], pa.string_view()), "00001"), (pa.array([b"00001"], pa.binary()), "00001"),
    (pa.array([b"00001"], pa.large_binary()), "00001"), (pa.array([b"00001"], pa.binary(5)), "00001"),
    (pa.array(["00001"]).dictionary_encode(), "00001"), (pa.array([b"00001"]).dictionary_encode(), "00001"),
    (pa.array([7], pa.int8()), "7"), (pa.array([7], pa.uint32()), "7"), (pa.array([-7], pa.int64()), "-7"),
    (pa.array([(1 << 64) - 1], pa.uint64()), "18446744073709551615"),
    (pa.array([Decimal(7)], pa.decimal128(10, 0)), "7"),
    (pa.array([Decimal(10**30)], pa.decimal128(38, 0)), "1" + "0" * 30),
]  # fmt: skip


@pytest.mark.parametrize(("ids", "user"), IDS, ids=[str(ids.type) for ids, _ in IDS])
def test_parquet_ids(tmp_path: Path, ids: Any, user: str) -> None:
    path = parquet_of(tmp_path / "e.parquet", {"user_id": ids, "type": ["visit"], "ts": [T0]})
    assert customers(read_log(path, spec_of())) == [user]


NUMBERS: list[tuple[Any, float | None]] = [
    (pa.array([2], pa.int16()), 2.0), (pa.array([2], pa.uint64()), 2.0), (pa.array([1.5], pa.float32()), 1.5),
    (pa.array([1.5], pa.float16()), 1.5), (pa.array([Decimal("1.50")], pa.decimal128(9, 2)), 1.5),
    (pa.array([Decimal("19.90")], pa.decimal128(18, 2)), 19.9),
    (pa.array([Decimal("19.9")], pa.decimal256(60, 9)), 19.9),
    (pa.array([Decimal(3)], pa.decimal128(30, 0)), 3.0), (pa.array([None], pa.null()), None),
    (pa.array([np.nan]), None), (pa.array([None], pa.float64()), None), (pa.array([1.5]).dictionary_encode(), 1.5),
]  # fmt: skip


@pytest.mark.parametrize(("numbers", "value"), NUMBERS, ids=[str(numbers.type) for numbers, _ in NUMBERS])
def test_parquet_numbers(tmp_path: Path, numbers: Any, value: float | None) -> None:
    columns = {"user_id": ["a"], "type": ["purchase"], "ts": [T0], "value": numbers}
    assert values(read_log(parquet_of(tmp_path / "e.parquet", columns), spec_of(2))) == [value]


TYPED_TIMES = [
    (pa.array([date(2026, 1, 1)], pa.date32()), "auto"), (pa.array([date(2026, 1, 1)], pa.date64()), "s"),
    (pa.array([T0]), "auto"), (pa.array([T0 // 1000], pa.int32()), "s"), (pa.array([float(T0)]), "ms"),
    (pa.array([T0 * 1000]), "us"), (pa.array([T0 * 10**6]), "ns"),
    (pa.array([Decimal(T0)], pa.decimal128(18, 0)), "ms"),
    (pa.array([ISO]), "auto"), (pa.array([b"2026-01-01"], pa.binary()), "auto"), (pa.array([20260101]), "%Y%m%d"),
    (pa.array(["2026-01-01"]).dictionary_encode(), "auto"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ts", "ts_format"), TYPED_TIMES, ids=[f"{ts.type} {form}" for ts, form in TYPED_TIMES]
)
def test_parquet_times(tmp_path: Path, ts: Any, ts_format: str) -> None:
    path = parquet_of(tmp_path / "e.parquet", {"user_id": ["a"], "type": ["visit"], "ts": ts})
    assert read_log(path, spec_of(ts_format=ts_format)).events.time.tolist() == [T0]


def test_parquet_structs_are_found_by_dotted_names(tmp_path: Path) -> None:
    inner = pa.array([{"id": 7, "more": {"at": T0}}, None, {"id": None, "more": None}])
    path = parquet_of(tmp_path / "e.parquet", {"u": inner, "type": ["visit"] * 3, "u.x": [1, 2, 3]})
    log = read_log(path, spec_of(user_id="u.id", ts="u.more.at"), tolerant=True)
    assert (customers(log), log.problems.total) == (["7"], 2)


PARQUET_REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("fractions", {"user_id": [1.0], "type": ["visit"], "ts": [T0]}, "'user_id' holds fractions"),
    (
        "decimals with a scale",
        {"user_id": pa.array([Decimal("1.0")], pa.decimal128(9, 1)), "type": ["visit"], "ts": [T0]}, "holds fractions",
    ),
    ("bytes", {"user_id": pa.array([b"\xff\xfe"]), "type": ["visit"], "ts": [T0]}, "'user_id' holds bytes.*UTF-8"),
    ("text as a number", {"user_id": ["a"], "type": ["purchase"], "ts": [T0], "value": ["1.5"]}, "row 1: .*got text"),
    ("lists", {"user_id": [["a"]], "type": ["visit"], "ts": [T0]}, "row 1: user_id: expected text"),
    ("truth", {"user_id": [True], "type": ["visit"], "ts": [T0]}, "row 1: user_id: expected text"),
    ("a time of day", {"user_id": ["a"], "type": ["visit"], "ts": pa.array([5], pa.time32("s"))}, "row 1: ts"),
    ("no column", {"user_id": ["a"], "type": ["visit"]}, "no column 'ts' for ts"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("_", "columns", "words"), PARQUET_REFUSED, ids=[case[0] for case in PARQUET_REFUSED]
)
def test_parquet_that_does_not_fit(tmp_path: Path, _: str, columns: dict[str, Any], words: str) -> None:
    path, spec = parquet_of(tmp_path / "e.parquet", columns), spec_of(2 if "value" in columns else 1)
    with pytest.raises(SpecError, match=words):
        read_log(path, spec)


def test_doubled_columns_of_parquet_are_named(tmp_path: Path) -> None:
    names = ["user_id", "type", "ts", "value", "value", "x", "x"]
    arrays = [pa.array(["a"]), pa.array(["visit"]), pa.array([T0]), *[pa.array([1.0])] * 4]
    parquet.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "e.parquet")
    with pytest.raises(SpecError, match="'value' more than once"):
        read_log(tmp_path / "e.parquet", spec_of(2))
    names[4] = "y"
    parquet.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "e.parquet")
    assert customers(read_log(tmp_path / "e.parquet", spec_of(2))) == ["a"]


def test_a_folder_is_all_its_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    written(folder, f"{HEAD}\nb,visit,5,\n", "b.csv")
    written(folder, gzip.compress(f"{HEAD}\na,visit,5,\n".encode()), "a.csv.gz")
    written(folder, '{"user_id":"c","type":"visit","ts":4}\n', "deeper/c.jsonl")
    written(folder, "", "_SUCCESS")
    written(folder, "", ".hidden.csv")
    written(folder, "", "_temporary/part.csv")
    log = read_log(folder, spec_of())
    assert customers(log) == ["a", "b", "c"]
    assert log.events.customers == ["c", "a", "b"]
    assert customers(read_log([folder / "b.csv", folder / "a.csv.gz"], spec_of())) == ["b", "a"]
    assert customers(read_log(folder / "*.csv*", spec_of())) == ["a", "b"]
    written(folder, f"{HEAD}\nd,visit,soon,\n", "d.csv")
    with pytest.raises(SpecError, match=r"4 files: 1 of 4 rows.*line 2 of .*d\.csv: ts"):
        read_log(folder, spec_of())
    written(folder, "", "notes.docx")
    with pytest.raises(SpecError, match=r"notes\.docx: cannot tell its format"):
        read_log(folder, spec_of())
    with pytest.raises(SpecError, match="no file matches"):
        read_log(folder / "x*.csv", spec_of())


@pytest.mark.parametrize("name", ["part.csv", "part.jsonl", "part.parquet"])
def test_hive_partitions_are_columns(tmp_path: Path, name: str) -> None:
    for kind, users in (("visit", "ab"), ("view", "c"), ("__HIVE_DEFAULT_PARTITION__", "d")):
        path = tmp_path / "events" / f"type={kind}" / "dt=2026-01-01" / name
        if name == "part.parquet":
            parquet_of(path, {"user_id": list(users)})
        elif name == "part.csv":
            written(path.parent, "user_id,x\n" + "".join(f"{user},1\n" for user in users), name)
        else:
            written(path.parent, "".join(json.dumps({"user_id": user}) + "\n" for user in users), name)
    log = read_log(tmp_path / "events", spec_of(1, ts="dt"), tolerant=True)
    assert customers(log) == ["c", "a", "b"]
    assert log.events.time.tolist() == [T0] * 3
    assert re.search(r"of .*HIVE.*: type is missing", log.problems.words())


def test_one_error_names_all_columns_of_one_file_among_many(tmp_path: Path) -> None:
    written(tmp_path / "e", f"{HEAD}\na,visit,5,\n", "a.csv")
    written(tmp_path / "e", "user,type,when\na,visit,5\n", "b.csv")
    with pytest.raises(
        SpecError, match=r"b\.csv has no column 'user_id' for user_id, none 'ts' for ts; it has 'user'"
    ):
        read_log(tmp_path / "e", spec_of())


def test_lines_are_right_across_blocks_and_texts_over_lines(tmp_path: Path) -> None:
    """Blocks end in the middle of everything, and a bad row far down is still found where it is."""
    lines, expected = [f"{HEAD},note"], []
    for i in range(30_000):
        if i % 1_009 == 7:
            expected.append(sum(line.count("\n") + 1 for line in lines) + 1)
            lines.append(f"c{i},visit,soon,,")
        elif i % 97 == 0:
            lines.append(f'c{i},visit,5,,"one\n\n{i} two"')
        elif i % 501 == 0:
            lines.append("")
        else:
            lines.append(f"c{i},visit,5,,x")
    for end in ("\n", "\r\n"):
        path = written(tmp_path, end.join("\n".join(lines).split("\n")))
        log = read_log(path, spec_of(), tolerant=True)
        assert [problem.line for problem in log.problems.first] == expected[:20]
        assert log.problems.total == len(expected)
        assert log.rows == sum(bool(line) for line in lines) - 1


def test_the_worker_never_loads_arrow() -> None:
    code = "import sys, ebbtide.featurestore.files.reader, ebbtide.stream.pipeline; assert 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_log_is_an_arrow_table_and_back(tmp_path: Path) -> None:
    kinds, ids = ("visit", "purchase", "purchase"), ("", "e1", "e2", "e3")
    rows = "".join(f"c{i % 7},{kinds[i % 3]},{T0 + i},{i / 3},{ids[i % 4]}\n" for i in range(99))
    log = read_log(written(tmp_path, f"{HEAD},event_id\n{rows}"), spec_of(2))
    table = log.to_arrow()
    assert table.schema.field("time").type == pa.timestamp("ms", "UTC")
    assert table.column("user_id").to_pylist() == customers(log)
    again = EventLog.from_arrow(table)
    for name in ("customer", "kind", "time", "value", "event_id", "position"):
        assert getattr(again.events, name).tobytes() == getattr(log.events, name).tobytes(), name
    assert (again.events.customers, again.ids) == (log.events.customers, log.ids)
    assert again.arrival.tobytes() == log.arrival.tobytes()
    assert EventLog.from_arrow(table.slice(3, 1)).events.customers == ["c3"]
    with pytest.raises(ValueError, match="order of their arrival"):
        EventLog.from_arrow(table.take(pa.array([5, 4])))
    assert len(EventLog.from_arrow(table.slice(0, 0))) == 0
