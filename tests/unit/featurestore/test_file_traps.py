"""Event files that would be read short, twice or at wrong times: each is read whole and once, or refused in words that
say what to do."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.check.events import check
from ebbtide.featurestore.check.history import read_history
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.columns import time_reader
from ebbtide.featurestore.files.reader import read_log
from tests.unit.featurestore.test_file_kinds import HEAD, T0, A, B, customers, parquet_of, spec_of, written

pa = pytest.importorskip("pyarrow")

ROW = f"{HEAD}\n{{}},visit,5,\n"


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    """A folder of links, one a month: `rglob` of Python before 3.13 passes over them."""
    written(tmp_path / "disk", ROW.format("b"), "2026/e.csv")
    written(tmp_path / "events", ROW.format("a"), "2025/e.csv")
    (tmp_path / "events" / "2026").symlink_to(tmp_path / "disk" / "2026")
    for named in ("events", "events/**/*.csv", "events/*", "events/**"):
        assert customers(read_log(tmp_path / named, spec_of())) == ["a", "b"], named


def test_a_link_to_nothing_is_not_passed_over(tmp_path: Path) -> None:
    written(tmp_path, ROW.format("a"))
    (tmp_path / "f.csv").symlink_to(tmp_path / "gone")
    with pytest.raises(SpecError, match=r"f\.csv is a link to nothing .mend it"):
        read_log(tmp_path, spec_of())


def test_a_folder_that_is_not_there_is_not_of_no_format(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read .*exports: there is no such file or folder"):
        read_log(tmp_path / "exports", spec_of())


def test_a_link_into_itself_ends(tmp_path: Path) -> None:
    written(tmp_path, ROW.format("a"), "deep/e.csv")
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    with pytest.raises(SpecError, match=r"deep/up is a link to a folder that it lies in"):
        read_log(tmp_path, spec_of())


def test_a_file_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "packed", ROW.format("a"))
    written(tmp_path / "packed", gzip.compress(ROW.format("a").encode()), "e.csv.gz")
    written(tmp_path / "linked", ROW.format("a"), "2026-01.csv")
    (tmp_path / "linked" / "latest.csv").symlink_to("2026-01.csv")
    for named in ("packed", "packed/*", "linked"):
        with pytest.raises(
            SpecError, match=r"are one file, linked or packed: .*twice .*move one of them away"
        ):
            read_log(tmp_path / named, spec_of())
    alone = tmp_path / "packed" / "e.csv"
    with pytest.raises(SpecError, match="are one file"):
        read_log([alone, alone], spec_of())


def test_what_a_pattern_matches_with_its_folder_counts_once(tmp_path: Path) -> None:
    written(tmp_path, ROW.format("a"), "deep/e.csv")
    assert customers(read_log(tmp_path / "**" / "*", spec_of())) == ["a"]


@pytest.mark.parametrize(
    ("log", "table"),
    [("_delta_log/0.json", "Delta"), (".hoodie/x", "Hudi"), ("metadata/v1.metadata.json", "Iceberg")],
)
def test_a_table_below_a_folder_is_no_folder_of_files(tmp_path: Path, log: str, table: str) -> None:
    written(tmp_path, ROW.format("a"), "lake/orders/e.csv")
    written(tmp_path, "{}", f"lake/orders/{log}")
    with pytest.raises(SpecError, match=rf"lake/orders is a {table} table"):
        read_log(tmp_path / "lake", spec_of())


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16()], ids=str)
def test_times_in_floats_too_short_are_refused(tmp_path: Path, kind: Any) -> None:
    """Seconds since 1970 in 32 bits are two minutes apart: rows came out at one moment."""
    numbers = np.array([T0 / 1000 + 1, T0 / 1000 + 61], np.float64)
    ts = pa.array(
        numbers.astype(np.float32) if kind == pa.float32() else np.array([40_000.0, 50_000.0], np.float16)
    )
    columns = {"user_id": ["a", "b"], "type": ["visit"] * 2, "ts": ts.cast(kind)}
    with pytest.raises(SpecError, match=r"e\.parquet: column 'ts' holds times as .*float.*whole numbers"):
        read_log(parquet_of(tmp_path / "e.parquet", columns), spec_of(ts_format="s"))


def test_a_day_index_in_short_floats_is_read(tmp_path: Path) -> None:
    ts = pa.array(np.array([1.0, np.nan, 2.0], np.float32))
    path = parquet_of(tmp_path / "e.parquet", {"user_id": list("abc"), "type": ["visit"] * 3, "ts": ts})
    log = read_log(path, spec_of(ts_unit="1d", ts_origin="2026-01-01"), tolerant=True)
    assert log.events.time.tolist() == [T0 + 86_400_000, T0 + 2 * 86_400_000]


EVENTS = [json.loads(A), json.loads(B)]
WRAPPED: list[tuple[str, str, str]] = [
    (
        "one object",
        json.dumps({"meta": {"n": 2}, "events": EVENTS}),
        r"under 'events'.*jq -c '\.\[\"events\"\]\[\]'",
    ),
    ("indented", json.dumps({"data": EVENTS}, indent=2), "under 'data'"),
    (
        "behind the columns' names, as ClickHouse has it",
        json.dumps({"meta": [{"name": "ts"}], "data": EVENTS, "rows": 2}, indent=1),
        r"under 'data'.*jq -c '\.\[\"data\"\]\[\]'",
    ),
    (
        "deep, as search engines answer",
        json.dumps({"took": 1, "hits": {"total": {"value": 2}, "hits": EVENTS}}),
        r"under 'hits\.hits'.*'\.\[\"hits\"\]\[\"hits\"\]\[\]'",
    ),
    ("a page a line", 2 * (json.dumps({"data": EVENTS, "next": 3}) + "\n"), "under 'data'"),
    ("a list a line", 2 * (json.dumps(EVENTS) + "\n"), r"arrays of events, several .*jq -c '\.\[\]'"),
    ("lists of values", '[["a","visit",5]]', r"line 1: an event is an object, not an array.*jq -c"),
]


@pytest.mark.parametrize(("_", "text", "words"), WRAPPED, ids=[case[0] for case in WRAPPED])
def test_events_inside_of_an_object_are_named(tmp_path: Path, _: str, text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_log(written(tmp_path, text, "e.json"), spec_of())


TABLES: list[tuple[str, object, str]] = [
    ("a dict a column", {"user_id": {"0": "a"}, "type": {"0": "visit"}, "ts": {"0": 5}}, "orient='records'"),
    ("a list a column", {"user_id": ["a"], "type": ["visit"], "ts": [5]}, "orient='records'"),
    ("a dict a row", {"0": EVENTS[0], "1": EVENTS[1]}, r"names of their own.*jq -c '\.\[\]'"),
]


@pytest.mark.parametrize(("_", "data", "words"), TABLES, ids=[case[0] for case in TABLES])
def test_a_table_written_as_one_object_is_named(tmp_path: Path, _: str, data: object, words: str) -> None:
    """As pandas' to_json writes it unless told."""
    with pytest.raises(SpecError, match=words):
        read_log(written(tmp_path, json.dumps(data), "e.json"), spec_of())


def test_a_file_without_a_header_is_named(tmp_path: Path) -> None:
    """As COPY, OUTFILE and Hive write them: the first row is not read as names in silence."""
    with pytest.raises(SpecError, match=r"is that a row.*line with the columns' names"):
        read_log(written(tmp_path, "a\tvisit\t2026-01-01 00:00:00+00\n", "e.tsv"), spec_of())


QUOTES: list[tuple[str, str]] = [
    ("escaped by a backslash", 'a,visit,5,x\n"b\\"c",visit,6,x\n'),
    ("text behind a quote", 'a,visit,5,x\n"b"c"",visit,6,x\n'),
]


@pytest.mark.parametrize(("_", "rows"), QUOTES, ids=[case[0] for case in QUOTES])
def test_an_id_whose_quotes_are_wrong_is_refused(tmp_path: Path, _: str, rows: str) -> None:
    r"""Spark writes "b\"c" unless told: `b\c"` was read, another customer than the stream's."""
    with pytest.raises(SpecError, match=r"line 3: text behind a closing quote.*doubled"):
        read_log(written(tmp_path, f"user_id,type,ts,note\n{rows}"), spec_of())
    ok = read_log(written(tmp_path, 'user_id,type,ts,note\na,visit,5,"x\\"y"\n'), spec_of())
    assert customers(ok) == ["a"], "what is not read may hold anything"


@pytest.mark.parametrize("offset", [" +0100", " +01:00", "+0100", "+01"])
def test_a_blank_before_an_offset_is_read(tmp_path: Path, offset: str) -> None:
    """As Snowflake and Shopify write it."""
    log = read_log(
        written(tmp_path, ROW.format("a").replace(",5,", f",2026-01-01 01:00:00{offset},")), spec_of()
    )
    assert log.events.time.tolist() == [T0]


UNITS: list[tuple[str, int, str]] = [
    ("auto", 1, "seconds, read as milliseconds.*ts_format: s}"),
    ("us", 1_000, "milliseconds, read as microseconds.*ts_format: ms}"),
    ("ns", 1_000_000, "microseconds, read as nanoseconds.*ts_format: us}"),
    ("ns", 1_000, "milliseconds, read as nanoseconds.*ts_format: ms}"),
]


@pytest.mark.parametrize(("ts_format", "per_s", "words"), UNITS)
def test_times_of_another_unit_are_no_history(tmp_path: Path, ts_format: str, per_s: int, words: str) -> None:
    """Backfilled, they were customers of 1970; the row after them in the topic would have begun them anew."""
    spec = spec_of(ts_format=ts_format)
    rows = "".join(f"a,visit,{(T0 // 1000 + i) * per_s},\n" for i in range(30))
    file = written(tmp_path, f"{HEAD}\n{rows}")
    assert len(read_log(file, spec)) == 30, "whoever only looks sees them"
    with pytest.raises(SpecError, match=f"lie in 1970: {words}"):
        read_history(file, spec)
    good = written(tmp_path, ROW.format("a").replace(",5,", ",2026-01-01,"))
    assert read_history(good, spec_of()).events.time.tolist() == [T0]


def test_ids_in_scientific_notation_are_named(tmp_path: Path) -> None:
    """A spreadsheet has rounded them: two customers are one, and nothing else shows it."""
    path = written(tmp_path, f"{HEAD}\n1.23457E+15,visit,5,\n1e+05,visit,5,\n12e4f,visit,5,\n")
    (found,) = [each for each in check(path, spec_of()) if each.code == "rounded_ids"]
    assert found.severity == "warning" and "2, such as" in found.text


def test_an_event_that_holds_a_list_is_an_event(tmp_path: Path) -> None:
    text = json.dumps({**EVENTS[0], "items": [{"sku": 1}]})
    assert customers(read_log(written(tmp_path, text, "e.json"), spec_of())) == ["a"]
    unmapped = json.dumps({"user_id": "a", "event": "visit", "at": 5, "params": [{"key": "x"}]})
    with pytest.raises(SpecError, match="line 1: type is missing"):
        read_log(written(tmp_path, unmapped, "e.json"), spec_of())


OTHERS: list[tuple[str, bytes, str]] = [
    ("e.csv", b"ORC\x0a\x0b", "is ORC.*export it"),
    ("e.parquet", b"ARROW1\x00\x00abcd", "is an Arrow file.*export it"),
    ("e.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", r"old office file .\.xls.*save it as CSV"),
    ("e.csv.gz", gzip.compress(b"X\n\x00\x00\x00\x03"), "is data of R .saveRDS.*export it"),
    ("e.csv", b"\x00" * 12 + b"\xc2\xea\x81\x60\xb3", "is a data set of SAS.*export it"),
    ("e.csv", b"<stata_dta><header>", "is a data set of Stata.*export it"),
    ("e.csv", b"$FL2@(#) SPSS DATA FILE", "is a data set of SPSS.*export it"),
    ("e.csv", b"\x80\x04\x95\x00", "is a Python pickle.*export it"),
    ("e.csv", b"PGCOPY\n\xff\r\n\x00", r"is PostgreSQL's binary COPY.*FORMAT csv"),
    ("e.csv.gz", gzip.compress(b"e.csv".ljust(257, b"\x00") + b"ustar\x0000"), "is a tar archive.*unpack it"),
    ("e.csv", b"<!DOCTYPE html><html>", "is a web page.*downloaded"),
    ("e.json", b'<?xml version="1.0"?><Error/>', "is XML.*downloaded"),
    ("e.parquet", b"version https://git-lfs.github.com/spec/v1\n", "pointer of a Git LFS file.*git lfs pull"),
    ("e.csv", b"\x04\x22\x4d\x18abcd", "packed by lz4.*unlz4"),
    ("e.parquet", b"PAR1" + b"\x00" * 99, "Parquet cut off.*copy it again"),
    ("e.parquet", b"user_id,type\n", "is not Parquet.*name end as what it is"),
    ("e.parquet", b"", "is empty.*copy it again"),
    ("e.avro", b"Obj\x01\x04", "is Avro.*export it"),
    ("e.feather", b"ARROW1\x00\x00abcd", "is an Arrow file.*export it"),
    ("e.arrows", b"\xff\xff\xff\xffabcd", "is an Arrow stream.*export it"),
    ("e.tgz", gzip.compress(b"e.csv".ljust(257, b"\x00") + b"ustar\x0000"), "is a tar archive.*unpack it"),
    ("part-0.snappy", b"PAR1\x15\x04", "is Parquet.*end in .parquet"),
    ("e.log.gz", b"\x1f\x8b damaged", "cannot tell its format"),
    ("e.txt", A.encode(), "is JSON.*end in .jsonl"),
    ("e.csv", b"[\n {\n", "is JSON.*end in .jsonl"),
    ("e.csv", f"Orders of 2026\n{HEAD}\n".encode(), "has 'Orders of 2026'.*is that a title"),
]


@pytest.mark.parametrize(
    ("name", "data", "words"), OTHERS, ids=[f"{case[0]} {case[2][:12]}" for case in OTHERS]
)
def test_another_kind_of_file_is_named(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        read_log(written(tmp_path, data, name), spec_of())


def test_zstd_that_begins_with_a_frame_to_skip(tmp_path: Path) -> None:
    """As pzstd writes it."""
    packed = bytes(pa.compress(ROW.format("a").encode(), codec="zstd", asbytes=True))
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    for name in ("e.csv.zst", "e.csv"):
        assert customers(read_log(written(tmp_path, skipped + packed, name), spec_of())) == ["a"]


@pytest.mark.parametrize(("ts_format", "hint"), [("auto", "%Y%m%d"), ("s", "%Y%m%d"), ("ms", "%Y%m%d")])
def test_dates_read_as_numbers_are_told_apart_from_seconds(tmp_path: Path, ts_format: str, hint: str) -> None:
    rows = "".join(f"a,visit,202601{day:02},\n" for day in range(1, 31))
    found = check(written(tmp_path, f"{HEAD}\n{rows}"), spec_of(ts_format=ts_format))
    assert [f.code for f in found if f.severity == "error"] == ["unit"]
    assert any(hint in f.text for f in found)
    rows = "".join(f"a,visit,{T0 // 1000 + i},\n" for i in range(30))
    assert any("ts_format: s" in f.text for f in check(written(tmp_path, f"{HEAD}\n{rows}"), spec_of()))


FORMATS: list[tuple[str, str]] = [
    ("%m/%d/%Y %H:%M %p", "stand together.*%I:%M %p"), ("%m/%d/%Y %I:%M", "stand together"),
    ("%d/%m/%Y %d", "same part twice"), ("%-d.%m.%Y", "bad directive.*1 and 01 alike"),
    ("%s", "bad directive.*ts_format: s"), ("%Y%", "stray %"), ("%F %Z", "bad directive"),
]  # fmt: skip


@pytest.mark.parametrize(("ts_format", "words"), FORMATS, ids=[case[0] for case in FORMATS])
def test_a_time_format_that_would_read_wrongly(ts_format: str, words: str) -> None:
    """8 PM under %H and %p was 8 in the morning, in silence; a part twice ended in a trace."""
    with pytest.raises(SpecError, match=words):
        time_reader(spec_of(ts_format=ts_format).mapping, digits=True)


def test_an_id_of_blanks_is_nobody(tmp_path: Path) -> None:
    found = check(written(tmp_path, ROW.format("  ")), spec_of())
    assert any(f.code == "nobody" for f in found)


@pytest.mark.parametrize("n", [1, 9_000])
def test_a_tsv_row_is_read_alike_wherever_it_stands(tmp_path: Path, n: int) -> None:
    """One line is read the same as the first of a file and behind megabytes without a quote."""
    plain, quoted = "ann\tvisit\t5\tx\n", '"b ""o"" b"\tvisit\t5\t"y"\n'
    head = "user_id\ttype\tts\tnote\n"
    late = read_log(written(tmp_path, head + plain * n + quoted, "late.tsv"), spec_of())
    early = read_log(written(tmp_path, head + quoted + plain * n, "early.tsv"), spec_of())
    assert sorted(late.events.customers) == sorted(early.events.customers) == ["ann", 'b "o" b']
    assert len(late.events) == len(early.events) == n + 1


@pytest.mark.parametrize(
    "text", ["2026-01-01+01:00", "2026-01-01-05:00", "2026-01-01 -0500", "2026-01-01 +01:00"]
)
def test_a_date_with_an_offset_is_no_time_of_day(tmp_path: Path, text: str) -> None:
    """As XML has dates; to Python 3.11 the offset is the time, five in the morning."""
    with pytest.raises(SpecError, match="line 2: ts: expected RFC 3339"):
        read_log(written(tmp_path, ROW.format("a").replace(",5,", f",{text},")), spec_of())


@pytest.mark.parametrize("digits", ["123", "1234567", "123456789"])
def test_fractions_are_read_however_many_digits_they_have(tmp_path: Path, digits: str) -> None:
    """Oracle writes nine, SQL Server seven; Python's %f takes six."""
    text = f"01-JAN-26 12.00.00.{digits} AM"
    log = read_log(
        written(tmp_path, ROW.format("a").replace(",5,", f",{text},")),
        spec_of(ts_format="%d-%b-%y %I.%M.%S.%f %p"),
    )
    assert log.events.time.tolist() == [T0 + 123]


def test_one_file_in_another_unit_is_no_history(tmp_path: Path) -> None:
    """Seconds among milliseconds were a warning of spec check alone: train and backfill took them for 1970."""
    days = [T0 + i * 86_400_000 for i in range(30)]
    for name, per in (("a.csv", 1), ("b.csv", 1000)):
        written(
            tmp_path / "e",
            f"{HEAD}\n" + "".join(f"c{i},visit,{t // per},\n" for i, t in enumerate(days)),
            name,
        )
    words = r"30 events of 1970 \(row 1 of .*b\.csv: customer 'c0'.* as seconds: write the times of all in one unit"
    with pytest.raises(SpecError, match=words):
        read_history(tmp_path / "e", spec_of())
    assert any(f.severity == "error" and f.code == "unit" for f in check(tmp_path / "e", spec_of()))
    written(tmp_path / "e", f"{HEAD}\nnobody,visit,1970-01-01 01:00:00,\n", "b.csv")
    assert len(read_history(tmp_path / "e", spec_of())) == 31, "a stand-in for an unknown time is a warning"


HEADERS = ["user_id,type,ts,value", "type,user_id,ts,value", "ts,user_id,type,value"]


@pytest.mark.parametrize("again", HEADERS)
def test_a_header_further_down_is_named_under_any_order(tmp_path: Path, again: str) -> None:
    """Under `unknown: ignore` it was an unknown type, and the rows below it, read under the wrong names, too."""
    row = {"user_id": "b", "type": "visit", "ts": "6", "value": ""}
    below = ",".join(row[name] for name in again.split(","))
    spec = spec_of().model_copy(update={"unknown": "ignore"})
    with pytest.raises(SpecError, match="line 3: the header again"):
        read_log(written(tmp_path, f"{ROW.format('a')}{again}\n{below}\n"), spec)
    wide = f"{HEAD},2026-01-01\na,visit,2026-01-01,,1\n"
    assert customers(read_log(written(tmp_path, wide), spec)) == ["a"], "a column may be called by a date"


def test_ids_that_a_database_has_escaped_are_refused(tmp_path: Path) -> None:
    r"""COPY and OUTFILE write CORP\\ann for CORP\ann in tab-separated text: another customer than the stream's."""
    head, rest = "user_id\ttype\tts\tnote\n", "\tvisit\t5\tx\n"
    with pytest.raises(SpecError, match=r"line 3, column 'user_id': two backslashes.*as CSV"):
        read_log(written(tmp_path, f"{head}a{rest}corp\\\\ann{rest}", "e.tsv"), spec_of())
    ok = read_log(written(tmp_path, f"{head}corp\\ann\tvisit\t5\tx\\\\y\n", "e.tsv"), spec_of())
    assert customers(ok) == ["corp\\ann"], "one is text, and what is not read may hold anything"


def test_properties_that_are_a_list_get_the_right_remedy(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({**EVENTS[0], "properties": []}), "e.json")
    with pytest.raises(SpecError, match=r"line 1: properties: expected an object.*PHP writes \[\]"):
        read_log(path, spec_of())


SWALLOWED: list[tuple[str, str, str]] = [
    ("inches at both ends", f"{HEAD},size", 'a,visit,5,,"24\nb,visit,6,,3"\n'),
    ("a column behind", "user_id,type,ts,size,value", 'a,visit,5,"24,1\nb,visit,6,3",2\n'),
]


@pytest.mark.parametrize(("_", "head", "rows"), SWALLOWED, ids=[case[0] for case in SWALLOWED])
def test_a_row_that_ends_in_the_quote_that_swallowed_it_is_named(
    tmp_path: Path, _: str, head: str, rows: str
) -> None:
    """The second row was text of the first one, in silence."""
    with pytest.raises(SpecError, match="from line 2 to line 3, over other rows"):
        read_log(written(tmp_path, f"{head}\n{rows}"), spec_of())
    folder = tmp_path / "ts=2026-01-01"
    with pytest.raises(SpecError, match="from line 2 to line 3, over other rows"):
        read_log(written(folder, 'user_id,type,size\na,visit,"24\nb,visit,3"\n'), spec_of())
    text = 'note,user_id,type,ts\n"one\ntwo",a,visit,5\n'
    assert customers(read_log(written(tmp_path, text), spec_of())) == ["a"], "the end of a text in front"


RUN_TOGETHER: list[tuple[str, str, str]] = [
    ("%d%m%Y", "02012026", "2012026"), ("%Y%m%d%H%M", "202601020000", "20260102000"),
    ("%Y%m%d %H:%M", "20260102 0:00", "2026012 00:00"), ("%Y-%m-%d %H%M", "2026-01-02 0000", "2026-01-02 000"),
    ("%Y%m%d%H%M%S%f", "20260102000000000", "2026010200000"),
]  # fmt: skip


@pytest.mark.parametrize(("ts_format", "good", "short"), RUN_TOGETHER)
def test_dates_that_lost_their_leading_zero_are_refused(
    tmp_path: Path, ts_format: str, good: str, short: str
) -> None:
    """2 January as the number 2012026 was read as the 20th."""
    spec = spec_of(ts_format=ts_format)
    log = read_log(written(tmp_path, ROW.format("a").replace(",5,", f",{good},")), spec)
    assert log.events.time.tolist() == [T0 + 86_400_000]
    with pytest.raises(SpecError, match="line 2: ts: expected a date in the form"):
        read_log(written(tmp_path, ROW.format("a").replace(",5,", f",{short},")), spec)


@pytest.mark.parametrize("text", ["2026-01-01-05:00", "1612120112345", "01/02/2026"])
def test_what_is_no_date_of_an_attribute_is_refused(tmp_path: Path, text: str) -> None:
    """An offset was the time of day, and some milliseconds of 2021 a day of the year 1612."""
    with pytest.raises(SpecError, match=r"line 2: renewal: .*expected a date .*write a date as"):
        read_log(written(tmp_path, f"{HEAD},due\na,renewal,5,,{text}\n"), spec_of(3))
