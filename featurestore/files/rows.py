"""Event files as chunks of rows: CSV, JSON Lines and Parquet, gzipped or not.

    format        a row is                           a field is found by
    CSV           a line under a header, all text    column name
    JSON Lines    an event as on the stream          dotted path into the object
    Parquet       a row, typed                       column name, or dotted path into a struct

It knows how each format spells a row, and which columns a spec needs of it; it refuses to know what a row means: that
is `featurestore/events/columns.py`'s, the same for files and for the stream. What a kind reads as `properties.<field>`
is, in a file with columns, the column `properties.<field>` or just `<field>`. The invariants: every row comes with the
line (or row) number under which its user finds it again, and text stays text: a `user_id` of 00001 keeps its zeros.

pyarrow is needed for Parquet only, and comes with the extra `train`.
"""

import csv
import gzip
import io
import itertools
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.contract import Reason
from ebbtide.featurestore.events.parse import VALUE_BYTES_MAX, decode
from ebbtide.featurestore.spec import Mapping, Spec

CHUNK_ROWS = 1_024
"""Rows held as Python objects at once, as in a batch of the stream: few enough to die young for the garbage collector,
which took half of the time at 32,768."""
_GZIP_MAGIC = b"\x1f\x8b"
_DELIMITERS = ",;\t|"


@dataclass(slots=True)
class Chunk:
    """Consecutive rows. `lines`: where each stands; `arrivals`: when each arrived, as written, if that is mapped;
    `bad`: line, reason and detail of what is no row; `share`: how much of the file has been read, 0 to 1."""

    rows: list[Any]
    lines: Sequence[int]
    arrivals: list[Any] | None
    share: float
    bad: list[tuple[int, Reason, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which column of a file holds what: contract fields, properties that kinds read, and the arrival."""

    fields: dict[str, str]
    properties: dict[str, str]
    arrival: str | None

    @property
    def columns(self) -> list[str]:
        """Names without repeats, fields first, the arrival last."""
        names = [*self.fields.values(), *self.properties.values(), *([self.arrival] if self.arrival else [])]
        return list(dict.fromkeys(names))

    def rows(self, columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
        """One dict a row with the contract's names, from whole columns by name."""
        rows = [
            dict(zip(self.fields, values, strict=True))
            for values in zip(*(columns[name] for name in self.fields.values()), strict=True)
        ]
        for path, name in self.properties.items():
            *outer, last = path.split(".")
            for row, value in zip(rows, columns[name], strict=True):
                place = row.setdefault("properties", {})
                for key in outer:
                    place = place.setdefault(key, {})
                place[last] = value
        return rows


class RowFile(ABC):
    """An event file under a spec; iterate over its chunks once.

    `unit`: what its rows are numbered in. `text`: every field is text, so numbers are read from text. `mapping`: where
    its rows hold the contract's fields. `arrival_format`: how arrivals are written."""

    unit: ClassVar[str] = "line"
    text: ClassVar[bool] = False

    def __init__(self, path: Path, spec: Spec) -> None:
        """Raises SpecError when the file lacks a column that the spec needs, OSError when it cannot be read."""
        self.path, self.spec = path, spec
        self.mapping = Mapping(
            ts_format=spec.mapping.ts_format
        )  # rows of columns carry the contract's own names
        self.arrival_format = spec.mapping.ts_format
        self._size = max(1, path.stat().st_size)
        self._raw = path.open("rb")
        self._gzipped = self._raw.read(2) == _GZIP_MAGIC
        self._raw.seek(0)
        self._file: IO[bytes] = gzip.GzipFile(fileobj=self._raw) if self._gzipped else self._raw  # type: ignore[assignment]  # it reads bytes

    def __iter__(self) -> Iterator[Chunk]:
        with self._raw:
            try:
                yield from self._chunks()
            except (EOFError, zlib.error) as error:
                raise SpecError(f"{self.path} is a damaged gzip file: {error}") from None
            except OSError as error:
                raise SpecError(f"cannot read {self.path}: {error.strerror or error}") from None

    @abstractmethod
    def _chunks(self) -> Iterator[Chunk]: ...

    def _share(self) -> float:
        return min(1.0, self._raw.tell() / self._size)

    def _wanted(self, has: Callable[[str], bool], found: Sequence[str]) -> Wanted:
        """Raises SpecError naming every column that the spec needs and the file lacks."""
        mapping, missing = self.spec.mapping, []
        reads = {kind.value for kind in self.spec.kinds if kind.value}
        fields, properties = {}, {}
        for name in ("user_id", "type", "ts", "event_id", "value"):
            column = getattr(mapping, name)
            if has(column):
                fields[name] = column
            elif name in ("user_id", "type", "ts") or column != name or name in reads:
                missing.append(f"{column!r} for {name}")
        for value in sorted(reads - {"value"}):
            path = value.removeprefix("properties.")
            columns = [column for column in (f"{mapping.properties}.{path}", path) if has(column)]
            if columns:
                properties[path] = columns[0]
            else:
                missing.append(f"{path!r} for {value}")
        if mapping.arrival is not None and not has(mapping.arrival):
            missing.append(f"{mapping.arrival!r} for arrival")
        if missing:
            raise SpecError(
                f"{self.path} has no column {', none '.join(missing)}; it has {', '.join(map(repr, found)) or 'none'}",
                hint="the spec's mapping says which column holds what",
            )
        return Wanted(fields, properties, mapping.arrival)


class CsvRows(RowFile):
    """A header line, then a row a line; the delimiter is the one that the header has most of."""

    text = True

    def __init__(self, path: Path, spec: Spec) -> None:
        super().__init__(path, spec)
        self._lines = io.TextIOWrapper(self._file, encoding="utf-8-sig", newline="")
        first = self._lines.readline()
        delimiter = max(_DELIMITERS, key=first.count)
        self._header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
        self._columns = self._wanted(self._header.__contains__, self._header)
        self._reader = csv.reader(self._lines, delimiter=delimiter)

    def _chunks(self) -> Iterator[Chunk]:
        wanted, width = self._columns, len(self._header)
        place = {name: self._header.index(name) for name in wanted.columns}
        numbered = ((self._reader.line_num + 1, row) for row in self._reader if row)
        while taken := self._take(numbered):
            bad = [
                (line, Reason.BAD_ROW, f"{len(row)} fields under a header of {width}")
                for line, row in taken
                if len(row) != width
            ]
            if bad:
                taken = [(line, row) for line, row in taken if len(row) == width]
            by_place = list(zip(*(row for _, row in taken), strict=True)) or [()] * width
            columns = {name: [text or None for text in by_place[i]] for name, i in place.items()}
            arrivals = columns[wanted.arrival] if wanted.arrival else None
            yield Chunk(wanted.rows(columns), [line for line, _ in taken], arrivals, self._share(), bad)

    def _take(self, numbered: Iterator[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
        try:
            return list(itertools.islice(numbered, CHUNK_ROWS))
        except csv.Error as error:
            line = self._reader.line_num + 1
            raise SpecError(f"{self.path}, line {line}: {error}", hint="is a quote not closed?") from None
        except UnicodeDecodeError as error:
            raise SpecError(
                f"{self.path} is not UTF-8 after line {self._reader.line_num + 1}: {error}"
            ) from None


class JsonRows(RowFile):
    """An event a line, as it would come through Kafka. Ids that are whole numbers are taken as their digits."""

    def __init__(self, path: Path, spec: Spec) -> None:
        super().__init__(path, spec)
        self.mapping = spec.mapping

    def _chunks(self) -> Iterator[Chunk]:
        numbered = ((i, line) for i, line in enumerate(self._file, 1) if not line.isspace())
        while taken := list(itertools.islice(numbered, CHUNK_ROWS)):
            index, rows, rejected = decode([line for _, line in taken], VALUE_BYTES_MAX)
            for name in (self.mapping.user_id, self.mapping.event_id):
                _digits_to_text(rows, name)
            arrivals = None
            if self.mapping.arrival:
                arrivals = [_place(row, self.mapping.arrival)[1] for row in rows]
            bad = [(taken[r.index][0], r.reason, r.detail) for r in rejected]
            yield Chunk(rows, [taken[i][0] for i in index], arrivals, self._share(), bad)


def _place(row: Any, name: str) -> tuple[dict[str, Any], Any]:
    """The object in which a field lies, under the last part of its name, and what it holds."""
    if isinstance(row, dict) and name not in row and "." in name:
        first, rest = name.split(".", 1)
        return _place(row.get(first), rest)
    return (row, row.get(name)) if isinstance(row, dict) else ({}, None)


def _digits_to_text(rows: list[Any], name: str) -> None:
    last = name.rpartition(".")[2]
    for row in rows:
        place, found = _place(row, name)
        if type(found) is int:
            place[name if name in place else last] = str(found)
