"""Event files that went through many hands: packed, joined, remarked upon, under another program's delimiters and
names. Each is read as it is meant, or refused in words that say what to do."""

import bz2
import gzip
import io
import json
import lzma
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ebbtide.featurestore.check.events import check
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.files.reader import read_log
from tests.unit.featurestore.test_file_kinds import (
    HEAD,
    T0,
    A,
    B,
    customers,
    parquet_of,
    spec_of,
    values,
    written,
)

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = "a,visit,5,\nb,purchase,6,1.5\n"
TABLE = f"{HEAD}\n{ROWS}"


def zipped(data: bytes, *names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or ("deep/e.csv", "__MACOSX/deep/._e.csv"):
            archive.writestr(name, data)
    return file.getvalue()


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


PACKINGS: list[tuple[str, str, Callable[[bytes], bytes]]] = [
    ("gzip", ".gz", gzip.compress), ("bzip2", ".bz2", bz2.compress), ("xz", ".xz", lzma.compress),
    ("zstd", ".zst", zstd), ("zip", ".zip", zipped),
]  # fmt: skip


@pytest.mark.parametrize(("name", "ending", "pack"), PACKINGS, ids=[case[0] for case in PACKINGS])
def test_packings_are_told_by_their_first_bytes(
    tmp_path: Path, name: str, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    lines = [f"c{i},visit,{T0 + i * 997}," for i in range(9_000)]
    data = "\n".join([HEAD, *lines]).encode()
    for file in (f"e.csv{ending}", "e.csv"):
        assert len(read_log(written(tmp_path, pack(data), file), spec_of())) == len(lines)
    packed = pack(data)
    with pytest.raises(SpecError, match=rf"e\.csv\{ending} is a damaged {name} file: .*copy it again"):
        read_log(written(tmp_path, packed[: len(packed) // 2], f"e.csv{ending}"), spec_of())
    with pytest.raises(SpecError, match="packed twice"):
        read_log(written(tmp_path, pack(pack(data)), f"e.csv{ending}"), spec_of())
    path = parquet_of(tmp_path / "p" / "e.parquet", {"user_id": ["a"], "type": ["visit"], "ts": [T0]})
    packed = pack(path.read_bytes())
    assert customers(read_log(written(tmp_path, packed, f"e.parquet{ending}"), spec_of())) == ["a"]
    if name != "zip":
        assert (
            len(read_log(written(tmp_path, pack(data + b"\n") + pack(b"z,visit,5,"), "e.csv"), spec_of()))
            == 9_001
        )


READ: list[tuple[str, str, str]] = [
    ("two byte order marks", "e.csv", f"\ufeff\ufeff{TABLE}"),
    ("blank lines first", "e.csv", f"\n \n{TABLE}"),
    ("remarks first", "e.csv", f"# exported by x, 2026\n#\n{TABLE}"),
    ("a header over lines", "e.csv", f'{HEAD},"a\nnote"\n' + ROWS.replace("\n", ",x\n")),
    ("a lone quote in the header", "e.csv", f'{HEAD},size"\n' + ROWS.replace("\n", ',3"\n')),
    ("an open quote in the header", "e.csv", f'{HEAD},"size\n' + ROWS.replace("\n", ",3\n")),
    ("a line of blanks", "e.csv", f"{HEAD}\n   \n{ROWS}  \n"),
    ("Hive's delimiter", "e.txt", TABLE.replace(",", "\x01")),
    ("ASCII's delimiter", "e.txt", TABLE.replace(",", "\x1f")),
    ("carets", "e.txt", TABLE.replace(",", "^")),
    ("sep= a tab", "e.csv", "sep=\t\r\n" + TABLE.replace(",", "\t")),
    ("sep= in quotes", "e.csv", '"sep=;"\n' + TABLE.replace(",", ";")),
    ("two pipes", "e.csv", TABLE.replace(",", "||")),
    ("digits told to be text", "e.csv", TABLE.replace("\na,", '\n="a",').replace("\nb,", '\n"=""b""",')),
    ("CR CR LF", "e.csv", TABLE.replace("\n", "\r\r\n")),
    ("LF CR", "e.csv", TABLE.replace("\n", "\n\r")),
    ("ends of other alphabets", "e.csv", f"{HEAD},note\n" + ROWS.replace("\n", ",x\x0b\x0c\x85\u2028y\n")),
    ("NA for no number", "e.csv", TABLE.replace("5,\n", "5,NA\n")),
    ("BigQuery's times", "e.csv", TABLE.replace("5,\n", "1970-01-01 00:00:00.005 UTC,\n", 1)),
]  # fmt: skip


@pytest.mark.parametrize(("_", "name", "text"), READ, ids=[case[0] for case in READ])
def test_delimited_files_that_went_through_many_hands(tmp_path: Path, _: str, name: str, text: str) -> None:
    log = read_log(written(tmp_path, text, name), spec_of(2))
    assert (customers(log), log.events.time.tolist(), values(log)) == (["a", "b"], [5, 6], [None, 1.5])


def test_lines_count_from_the_top_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, f'\n# x\n{HEAD},"no\nte"\na,visit,5,,\n  \nb,visit,soon,,\n')
    with pytest.raises(SpecError, match=r"1 of 2 rows .*: line 7: ts"):
        read_log(path, spec_of())


INDENTED = "".join(json.dumps(json.loads(one), indent=2) + "\n" for one in (A, B))
JSON: list[tuple[str, str]] = [
    ("indented", INDENTED), ("no line ends", A + B), ("blanks between", f"{A} \t{B}"),
    ("after blanks", f"\n\n{INDENTED}"),
    ("JSON text sequences", f"\x1e{A}\n\x1e{B}\n"), ("CR LF", INDENTED.replace("\n", "\r\n")),
    ("a mark", f"\ufeff{INDENTED}"),
]  # fmt: skip


@pytest.mark.parametrize(("_", "text"), JSON, ids=[case[0] for case in JSON])
def test_json_objects_without_regard_to_lines(tmp_path: Path, _: str, text: str) -> None:
    log = read_log(written(tmp_path, text, "e.json"), spec_of())
    assert (customers(log), log.rows) == (["a", "b"], 2)


def test_an_object_over_lines_is_named_by_its_first(tmp_path: Path) -> None:
    text = INDENTED.replace('"ts": 5', '"ts": NaN') + json.dumps({"type": "visit"}, indent=1)
    path = written(tmp_path, text, "e.json")
    with pytest.raises(
        SpecError, match=r"3 of 3 rows .*: line 1: NaN.*; line 6: NaN.*; line 11: user_id is missing"
    ):
        read_log(path, spec_of())


def test_one_nan_in_an_indented_array_is_one_misfit(tmp_path: Path) -> None:
    """It made the array none, and each of its lines a misfit."""
    rows = [
        {"user_id": "a", "type": "purchase", "ts": 5, "value": value} for value in (1.5, float("nan"), 2.5)
    ]
    path = written(tmp_path, json.dumps(rows, indent=2), "e.json")
    log = read_log(path, spec_of(2), tolerant=True)
    assert (values(log), log.rows) == ([1.5, 2.5], 3)
    assert log.problems.words() == "line 2: NaN and Infinity are not numbers in JSON [not_finite]"


REFUSED: list[tuple[str, str, bytes, str]] = [
    ("UTF-16 LE unmarked", "e.csv", TABLE.encode("utf-16-le"), "UTF-16LE without a byte order mark .*iconv"),
    ("UTF-16 BE unmarked", "e.jsonl", A.encode("utf-16-be"), "UTF-16BE without a byte order mark"),
    ("a spreadsheet as CSV", "e.csv", zipped(b"", "[Content_Types].xml", "xl/workbook.xml"), "spreadsheet.*as CSV"),
    ("an archive of two", "e.csv.zip", zipped(b"", "a.csv", "b.csv"), "archive of 2 files .unpack it"),
    ("Parquet as CSV", "e.csv", b"PAR1\x15\x04", "is Parquet.*end in .parquet"),
    ("Avro as JSON", "e.json", b"Obj\x01\x04", "is Avro.*export it"),
    ("files put together", "e.csv", (TABLE + "\ufeff" + TABLE).encode(), "line 4: the header again.*Leave it out"),
    ("other case", "e.csv", TABLE.replace("user_id", "User_ID").encode(), "did you mean user_id: 'User_ID'"),
    ("nothing", "e.csv", b"", "it has none: is it empty"),
    ("a remark further down", "e.csv", f"{TABLE}(2 rows affected)\n".encode(), "line 4: 1 fields.*leave out remarks"),
    ("half a file, indented", "e.json", INDENTED[:-9].encode(), "not_json.*jq -c"),
    ("two offsets", "e.csv", f"{HEAD}\na,visit,2026-01-01T00:00:00+01:00 UTC,\n".encode(), "line 2: ts.*ts_format"),
]  # fmt: skip


@pytest.mark.parametrize(("_", "name", "data", "words"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_is_refused_says_what_to_do(tmp_path: Path, _: str, name: str, data: bytes, words: str) -> None:
    path, spec = written(tmp_path, data, name), spec_of(2 if b"purchase" in data else 1)
    with pytest.raises(SpecError, match=words) as caught:
        read_log(path, spec)
    assert str(path) in str(caught.value)
    assert any(finding.severity == "error" for finding in check(path, spec))


MISFITS: list[tuple[str, str]] = [
    ("a,purchase,soon,1", r"line 2: ts: .* \(column 'when'\).*mapping.ts_format .* now auto"),
    (
        'a,purchase,5,"1.234,50"',
        r"value: expected a number \(column 'amount'\).*with a point, without thousands",
    ),
    ("a,purchase,5,$12", r"\(column 'amount'\)"),
    ("a,bought,5,1", r"event type \(column 'what'\).*name the type in a kind's types"),
    (",purchase,5,1", r"user_id.* missing .*who.*leave such rows out"),
    ("a,purchase,5,nan", r"\(column 'amount'\).*not_finite.*leave a number that is missing empty"),
]


@pytest.mark.parametrize(("row", "words"), MISFITS)
def test_a_row_that_does_not_fit_names_column_and_remedy(tmp_path: Path, row: str, words: str) -> None:
    path = written(tmp_path, f"who,what,when,amount\n{row}\n")
    with pytest.raises(SpecError, match=words):
        read_log(path, spec_of(2, user_id="who", type="what", ts="when", value="amount"))


def test_folders_name_columns_however_the_file_was_named(tmp_path: Path) -> None:
    folder = tmp_path / "year=2026" / "type=vis%69t"
    path = written(folder / "ts=2026-01-01 00%3A00%3A00", "user_id\nz\n")
    named: list[Any] = [
        tmp_path,
        folder,
        path,
        tmp_path / "year=*" / "*" / "*" / "*.csv",
        tmp_path / "*=2026",
    ]
    for name in named:
        log = read_log(name, spec_of())
        assert (customers(log), log.events.time.tolist()) == (["z"], [T0]), name


@pytest.mark.parametrize(("log", "table"), [("_delta_log", "Delta"), (".hoodie", "Hudi")])
def test_a_table_whose_log_decides_is_no_folder_of_files(tmp_path: Path, log: str, table: str) -> None:
    """Its folder also holds the files of rows that were deleted since."""
    parquet_of(tmp_path / "t" / "a.parquet", {"user_id": ["a"], "type": ["visit"], "ts": [T0]})
    written(tmp_path / "t" / log, "{}", "0.json")
    with pytest.raises(SpecError, match=f"is a {table} table.*export it"):
        read_log(tmp_path / "t", spec_of())


def test_parquet_uuids_are_their_text(tmp_path: Path) -> None:
    """Read as bytes, one that happens to be UTF-8 was a customer of control characters."""
    ids = [uuid.UUID(int=0x01020304 << 96), uuid.UUID(int=2**128 - 1)]
    column = pa.array([one.bytes for one in ids], pa.uuid())
    path = parquet_of(tmp_path / "e.parquet", {"user_id": column, "type": ["visit"] * 2, "ts": [T0] * 2})
    assert customers(read_log(path, spec_of())) == list(map(str, ids))


def test_parquet_files_of_one_folder_may_differ(tmp_path: Path) -> None:
    """Other columns, orders and types; empty row groups, and some of very different sizes."""
    n, schema = 0, pa.schema([("user_id", pa.string()), ("type", pa.string()), ("ts", pa.int64())])
    with parquet.ParquetWriter(tmp_path / "a.parquet", schema) as writer:
        for rows in (0, 1, 0, 30_000, 3):
            users = [f"c{i}" for i in range(n, n + rows)]
            columns = {"user_id": users, "type": ["visit"] * rows, "ts": [T0 + i for i in range(n, n + rows)]}
            writer.write_table(pa.table(columns, schema=schema))
            n += rows
    moment = pa.array([T0 * 1000], pa.timestamp("us", "Asia/Tokyo"))
    parquet_of(tmp_path / "b.parquet", {"ts": moment, "x": [1], "user_id": [7], "type": [b"visit"]})
    texts = {"type": pa.array(["visit"]).dictionary_encode(), "ts": ["2026-01-01"], "user_id": ["q"]}
    parquet_of(tmp_path / "c.parquet", texts)
    log = read_log(tmp_path, spec_of())
    assert customers(log) == [*(f"c{i}" for i in range(n)), "7", "q"]
    assert sorted(log.events.time.tolist()) == sorted([*range(T0, T0 + n), T0, T0])
