"""Where events lie: the files behind what a user names, and their bytes as UTF-8.

A user names a file, a folder, a pattern, or several of them. A folder stands for all the event files in it and below
it, in the order of their paths; what begins with `.` or `_` is an engine's own (`_SUCCESS`, checksums) and is left
out, and `key=value` in a folder's name is a column of the files below (Hive's partitions).
"""

import codecs
import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.files.block import EventFile

ENDINGS = {
    ".csv": "csv", ".tsv": "csv", ".psv": "csv", ".txt": "csv",
    ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_GZIP = (".gz", ".gzip")
_GZIP_MAGIC = b"\x1f\x8b"
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_PATTERN = set("*?[")


def format_of(path: Path) -> str:
    """csv, json or parquet, by the file's name. Raises SpecError."""
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _GZIP]
    found = ENDINGS.get(endings[-1]) if endings else None
    if found is None:
        hint = f"let its name end in one of {' '.join(ENDINGS)}, then .gz if it is gzipped"
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
        below = sorted(found for found in path.rglob("*") if not _hidden(found.relative_to(path)))
        files = [EventFile(found, _partition(found.relative_to(path))) for found in below if found.is_file()]
        if not files:
            raise SpecError(f"{path} is a directory without event files")
        yield from files
    elif not path.exists() and _PATTERN & set(path.name):
        found = sorted(one for one in path.parent.glob(path.name) if not _hidden(Path(one.name)))
        if not found:
            raise SpecError(f"no file matches {path}")
        for one in found:
            yield from _files(one)
    else:
        yield EventFile(path)


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
        gzipped = self._raw.read(2) == _GZIP_MAGIC
        self._raw.seek(0)
        self.file: IO[bytes] = io.BufferedReader(gzip.GzipFile(fileobj=self._raw)) if gzipped else self._raw
        if text:
            self._take_mark()

    def _take_mark(self) -> None:
        mark = self.file.peek(4)[:4]  # type: ignore[attr-defined]  # both kinds are buffered readers
        if mark.startswith(codecs.BOM_UTF8):
            self.file.read(3)
        elif mark.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
            self._recode("utf-32")
        elif mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            self._recode("utf-16")

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
