"""Where events lie: the files behind what a user names, and their bytes as UTF-8.

A user names a file, a folder, a pattern, or several of them. A folder stands for all the event files in it and below
it, in the order of their paths; what begins with `.` or `_` is an engine's own (`_SUCCESS`, checksums) and is left
out, and `key=value` in a folder's name is a column of the files below (Hive's partitions), however they were named. A
folder whose own log says which of its files count (Delta, Hudi) is refused: to read them all would read what was
deleted. How bytes are packed is told by the first of them, whatever the name says; what is packed twice, or is
another kind of file under a text file's name, is refused in words that name it.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.files.block import EventFile

ENDINGS = {
    ".csv": "csv", ".tsv": "csv", ".psv": "csv", ".txt": "csv",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_PATTERN = set("*?[")
_TABLES = {"_delta_log": "Delta", ".hoodie": "Hudi"}

PACKED = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd", ".zip")
DAMAGES = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What reading a damaged file raises, in whatever packing."""
_MAGIC = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip",
}  # fmt: skip
_OTHERS = {
    b"PAR1": "Parquet",
    b"Obj\x01": "Avro",
    b"SQLite format 3\x00": "an SQLite database",
    b"%PDF": "PDF",
}


def format_of(path: Path) -> str:
    """csv, json or parquet, by the file's name. Raises SpecError."""
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in PACKED]
    found = ENDINGS.get(endings[-1]) if endings else None
    if found is None:
        hint = f"let its name end in one of {' '.join(ENDINGS)}, then {' '.join(PACKED)} if it is packed"
        raise SpecError(f"{path}: cannot tell its format", hint=hint)
    return found


def event_files(paths: Path | str | Sequence[Path | str]) -> list[EventFile]:
    """Every file behind what was named, in order. Raises SpecError when there is none or one of no known format."""
    named = [paths] if isinstance(paths, Path | str) else list(paths)
    files = [file for path in named for file in _files(Path(path))]
    if not files:
        raise SpecError("no event file was named", hint="give --events FILE")
    for file in files:
        format_of(file.path)
    return files


def _files(path: Path) -> Iterator[EventFile]:
    if path.is_dir():
        for log, table in _TABLES.items():
            if (path / log).is_dir():
                raise SpecError(
                    f"{path} is a {table} table, whose log says which of its files count",
                    hint="export it, e.g. as plain Parquet, and name that folder",
                )
        below = sorted(found for found in path.rglob("*") if not _hidden(found.relative_to(path)))
        files = [EventFile(found, _partition(found)) for found in below if found.is_file()]
        if not files:
            raise SpecError(f"{path} is a directory without event files")
        yield from files
    elif not path.exists() and _PATTERN & set(str(path)):
        first = next(i for i, part in enumerate(path.parts) if _PATTERN & set(part))
        base, pattern = Path(*path.parts[:first]), str(Path(*path.parts[first:]))
        found = sorted(one for one in base.glob(pattern) if not _hidden(one.relative_to(base)))
        if not found:
            raise SpecError(f"no file matches {path}")
        for one in found:
            yield from _files(one)
    else:
        yield EventFile(path, _partition(path))


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) and "=" not in part for part in path.parts)


def _partition(path: Path) -> dict[str, str | None]:
    pairs = [part.split("=", 1) for part in path.parts[:-1] if "=" in part]
    return {unquote(key): None if value == _NO_VALUE else unquote(value) for key, value in pairs}


class ByteSource:
    """A file's bytes, unpacked and as UTF-8 without a byte order mark; `share`: how much has been read, 0 to 1."""

    def __init__(self, path: Path, *, text: bool) -> None:
        """`text`: marks are understood and taken off. Raises OSError, SpecError."""
        self.path = path
        self._size = max(1, path.stat().st_size)
        self._raw = path.open("rb")
        self.file: IO[bytes] = unpacked(path, self._raw)
        if text:
            self._take_mark()

    def _take_mark(self) -> None:
        mark = self._peek()
        while mark.startswith(codecs.BOM_UTF8):  # a second one comes of marking a marked file
            self.file.read(3)
            mark = self._peek()
        if mark.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
            self._recode("utf-32")
        elif mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            self._recode("utf-16")
        else:
            refuse_other_kinds(self.path, mark)

    def _peek(self) -> bytes:
        return bytes(self.file.peek(16)[:16])  # type: ignore[attr-defined]  # all kinds are buffered readers

    def _recode(self, encoding: str) -> None:
        """UTF-16 comes out of spreadsheets, which are small: such a file is held whole."""
        try:
            text = self.file.read().decode(encoding)
        except UnicodeDecodeError as error:
            raise SpecError(
                f"{self.path} begins as {encoding.upper()} and is not: {error}", hint="write it as UTF-8"
            ) from None
        self.file = io.BytesIO(text.encode())

    @property
    def share(self) -> float:
        return min(1.0, self._raw.tell() / self._size)

    def close(self) -> None:
        self._raw.close()


def packing_of(start: bytes) -> str | None:
    """gzip, bzip2, xz, zstd or zip; None for bytes of none of them."""
    name = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    # A text file may well begin with BZh; a bzip2 file goes on with its level and pi.
    return None if name == "bzip2" and start[4:10] not in (b"1AY&SY", b"\x17rE8P\x90") else name


def unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    """A buffered reader of what is in an opened file. Raises SpecError, and on reading one of DAMAGES."""
    start = raw.read(16)
    raw.seek(0)
    match packing_of(start):
        case None:
            return raw
        case "gzip":
            opened: Any = gzip.GzipFile(fileobj=raw)
        case "bzip2":
            opened = bz2.BZ2File(raw)
        case "xz":
            opened = lzma.LZMAFile(raw)  # noqa: SIM115 - ByteSource closes what lies beneath
        case "zstd":
            import pyarrow as pa  # noqa: PLC0415 - a worker imports this package and reads no file

            opened = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
        case _:
            return _only_member(path, raw)
    return io.BufferedReader(opened)


def _only_member(path: Path, raw: IO[bytes]) -> IO[bytes]:
    archive = zipfile.ZipFile(raw)
    names = [
        one.filename
        for one in archive.infolist()
        if not one.is_dir() and not one.filename.startswith("__MACOSX")
    ]
    if "[Content_Types].xml" in names:
        raise SpecError(f"{path} is a spreadsheet or another office file", hint="save it as CSV in UTF-8")
    if len(names) != 1:
        raise SpecError(f"{path} is an archive of {len(names)} files", hint="unpack it and name the folder")
    try:
        return archive.open(names[0])
    except (RuntimeError, NotImplementedError) as error:
        raise SpecError(f"{path} cannot be unpacked: {error}", hint="unpack it") from None


def refuse_other_kinds(path: Path, start: bytes) -> None:
    """Raises SpecError where text was promised and the unpacked bytes begin as something else."""
    packing = packing_of(start)
    if packing is not None:
        raise SpecError(
            f"{path} is {packing} inside of its packing: it is packed twice", hint="unpack it once"
        )
    for magic, name in _OTHERS.items():
        if start.startswith(magic):
            hint = (
                "let its name end in .parquet"
                if name == "Parquet"
                else "export it as CSV, JSON lines or Parquet"
            )
            raise SpecError(f"{path} is {name}, whatever its name says", hint=hint)
    order = {(True, False): "LE", (False, True): "BE"}.get((_zeros(start[1:8:2]), _zeros(start[0:8:2])))
    if order is not None and any(start[:8]):
        raise SpecError(
            f"{path} looks like UTF-16{order} without a byte order mark",
            hint=f"write it as UTF-8: iconv -f utf-16{order.lower()} -t utf-8",
        )


def _zeros(some: bytes) -> bool:
    return len(some) > 1 and not any(some)
