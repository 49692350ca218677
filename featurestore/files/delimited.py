"""CSV and its relatives as blocks: a header, then a row a line; the delimiter is the one under which the header has
the columns that the spec needs.

pyarrow reads a block at a time, of the needed columns only, and the block is taken as read only where it came out as
one row a line: a quote that is not closed swallows lines, and so shows. Any other block is read again by Python's csv
module, row by row with its lines, which also says what is wrong:

    fields that are too many or too few                           a bad row
    the header again, as in files that were put together          a bad row
    a quoted field over lines that are rows by themselves         a bad row that names the lines: a lone quote
    text behind a closing quote in a column that is read          a bad row: its value would be a guess
    a quoted field over LINES_MAX lines                           an error: nothing after it can be trusted
    text that is not UTF-8 in a column that is read               an error with line and column

In a tab-separated file some programs quote and others do not, and a row says which: a field is quoted where it is in
quotes from its first character to its last, with those inside doubled, and the row is then as wide as the header. In a
row that is so wide as it stands quotes are text, unless its last field begins with one that is not closed and the next
line is no row. So no row's reading depends on where in the file it stands.
"""

import csv
import io
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from ebbtide.featurestore.customer import FIELDS
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.columns import NULL_WORDS, time_reader
from ebbtide.featurestore.events.contract import Reason
from ebbtide.featurestore.files.block import BadRow, Block, BlockReader, EventFile, rows_of_columns
from ebbtide.featurestore.files.sources import ByteSource
from ebbtide.featurestore.spec import Spec

BLOCK_BYTES = 256 * 1024
LINES_MAX = 10_000
"""Lines that one quoted field may span."""
_DELIMITERS = ",;\t|\x01\x1f^~"
"""As people and spreadsheets write them; then Hive's (0x01), ASCII's own (0x1F), and two seen in old exports."""
_HEADER_LINES_MAX = 100
"""Lines that a header may span, and that blank lines and remarks before it may take."""
_CR, _LF = 13, 10
_MISSING = ["", "\\N"]
_TAB_QUOTE = re.compile(rb'(?:^|[\t\r\n])"')
_TAB_QUOTED = re.compile(rb'(?<![^\t\r\n])"[^"\t\r\n]*"(?![^\t\r\n])')
"""A field that begins with a quote; one that is quoted, without quotes, tabs or line ends inside."""


class DelimitedBlocks(BlockReader):
    """CSV, TSV and the like: every field is text."""

    text = True

    def __init__(self, file: EventFile, spec: Spec) -> None:
        super().__init__(file, spec)
        self._source = ByteSource(file.path, text=True)
        self._next = self._read_block()
        self._line = 1  # of the next block's first row
        first = self._take_header()
        bare = first.rstrip("\r\n").replace('"', "")
        if bare.startswith("sep=") and len(bare) == len("sep=") + 1:  # as spreadsheets write it
            self._delimiter, first = bare[4], self._take_header()
        else:
            self._delimiter = self._delimiter_of(first)
        if first.lstrip().startswith(("{", "[")) and not self._fit(first, self._delimiter)[0]:
            raise SpecError(f"{self.path} is JSON", hint="let its name end in .jsonl")
        self._header = [name.strip() for name in self._fields(first, self._delimiter)]
        known = [*self._header, *(key for key in self.partition if key not in self._header)]
        self._columns = self.wanted(known, known.__contains__)
        self._times = time_reader(spec.mapping, digits=True)

    def blocks(self) -> Iterator[Block]:
        while self._next:
            data, self._next = self._next, b""
            bad: list[BadRow] = []
            table = self._by_arrow(data)
            if table is not None:
                lines = self._line + _line_numbers(data)
                self._line += _count_lines(data)
            else:
                table, lines, bad = self._by_row(data)
            columns = self._named(table)
            if self._delimiter == "\t" and rb"\\" in data:
                self._refuse_escapes(columns, lines)
            yield Block(
                columns,
                lambda chosen, columns=columns: rows_of_columns(columns, chosen),  # type: ignore[misc]  # mypy knows no default here
                lines,
                self._source.share if not self._next else min(self._source.share, 0.999),
                bad=bad,
            )
            self._next = self._next or self._read_block()

    def _read_block(self) -> bytes:
        data = self._source.file.read(BLOCK_BYTES)
        return data + self._source.file.readline() if data else b""

    def _take_header(self) -> str:
        """The first line that is neither blank nor a remark; more lines where a name in quotes goes over its end."""
        header = self._take_line()
        for _ in range(_HEADER_LINES_MAX):
            remark = header.startswith("#") and not self._fit(header, self._delimiter_of(header))[0]
            if not self._next or (header.strip("\r\n\ufeff ") and not remark):
                break
            header = self._take_line()
        for _ in range(self._lines_of(header) - 1):
            header += self._take_line()
        return header

    def _lines_of(self, header: str) -> int:
        """Over how many lines a header goes, by quotes that are closed; 1 where they are not."""
        if header.count('"') % 2 == 0:
            return 1
        following = io.StringIO(self._next.decode(errors="replace"), newline="")
        lines = [header, *itertools.islice(following, _HEADER_LINES_MAX)]
        reader = csv.reader(lines, delimiter=self._delimiter_of(header), strict=True)
        try:
            next(reader)
        except csv.Error:
            return 1
        return reader.line_num

    def _take_line(self) -> str:
        """The next line of the beginning. Raises SpecError where it is no text."""
        end = min((at for at in (self._next.find(b"\n"), self._next.find(b"\r")) if at >= 0), default=-1)
        end = len(self._next) if end < 0 else end + (2 if self._next[end : end + 2] == b"\r\n" else 1)
        line, self._next = self._next[:end], self._next[end:]
        if not self._next:
            self._next = self._read_block()
        self._line += 1
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise SpecError(
                f"{self.path} is not UTF-8 in its header: {error}",
                hint="write it as UTF-8: iconv -f cp1252 -t utf-8; if it is no text, export it as CSV",
            ) from None

    def _fields(self, line: str, delimiter: str) -> list[str]:
        return next(csv.reader(io.StringIO(line, newline=""), delimiter=delimiter), [])

    def _delimiter_of(self, header: str) -> str:
        """The one under which most of the mapped columns are found; of equals, the most frequent."""
        return max(_DELIMITERS, key=lambda delimiter: self._fit(header, delimiter))

    def _fit(self, header: str, delimiter: str) -> tuple[int, int]:
        mapping = self.spec.mapping
        names = {name.strip() for name in self._fields(header, delimiter)}
        wanted = {*self.spec.customer_fields.values(), mapping.type, mapping.ts}
        return len(wanted & names), header.count(delimiter)

    def _by_arrow(self, data: bytes) -> dict[str, Any] | None:
        """The needed columns of a block by place; None where it is not simply a row a line."""
        names = [str(i) for i in range(len(self._header))]
        quotes = b'"' in data
        if quotes and self._delimiter == "\t":
            quotes = bool(_TAB_QUOTE.search(data))
            if quotes and _TAB_QUOTE.search(_TAB_QUOTED.sub(b"", data)):
                return None  # not all of them are quoted in the simplest way
        try:
            table = arrow_csv.read_csv(
                pa.BufferReader(data),
                arrow_csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=names),
                arrow_csv.ParseOptions(
                    delimiter=self._delimiter,
                    quote_char='"' if quotes else False,
                    newlines_in_values=False,
                ),
                arrow_csv.ConvertOptions(
                    include_columns=[str(i) for i in self._places()],
                    column_types=dict.fromkeys(names, pa.string()),
                    null_values=_MISSING,
                    strings_can_be_null=True,
                    check_utf8=True,
                ),
            )
        except pa.ArrowInvalid:
            return None
        if len(table) != _count_rows(data):
            return None
        ts = self._columns["ts"]
        if ts in self._header:
            again = pa.array([*self._header, f"\ufeff{self._header[0]}"])
            if pc.any(pc.is_in(table.column(str(self._header.index(ts))), value_set=again)).as_py():
                return None  # the header again, maybe
        if quotes and any(pc.any(pc.match_substring(column, '"')).as_py() for column in table.columns):
            return None  # doubled inside of quotes, or quotes that are wrong
        return {name: table.column(name).combine_chunks() for name in table.column_names}

    def _places(self) -> list[int]:
        names = [name for name in self._columns.values() if name in self._header]
        return list(dict.fromkeys(self._header.index(name) for name in names))

    def _by_row(self, data: bytes) -> tuple[dict[str, Any], NDArray[np.int64], list[BadRow]]:
        """The same, row by row; reads on where the block ends inside of a quoted field."""
        width, places = len(self._header), self._places()
        lines: list[int] = []
        bad: list[BadRow] = []
        values: list[list[str | None]] = [[] for _ in places]
        text = _Lines(data, self._read_block)
        first = self._line
        csv.field_size_limit(sys.maxsize)
        reader = (
            self._tab_rows(text) if self._delimiter == "\t" else csv.reader(text, delimiter=self._delimiter)
        )
        while True:
            text.begin_row()
            line = first + text.taken
            try:
                row = next(reader)
            except StopIteration:
                break
            except _TooLong:
                raise SpecError(
                    f"{self.path}, line {line}: a quoted field does not end within {LINES_MAX:,} lines",
                    hint="is a quote not closed? Double a quote that is text",
                ) from None
            last = first + text.taken - 1
            if not row or (width > 1 and len(row) == 1 and not row[0].strip()):
                continue
            if self._swallowed(text.row):
                field = f"a quoted field reaches from line {line} to line {last}, over other rows"
                bad.append((line, Reason.BAD_ROW, f"{field}: is a quote not closed?"))
            elif self._is_header(row):
                again = "the header again: are these several files in one?"
                bad.append((line, Reason.BAD_ROW, f"{again} Leave it out"))
            elif len(row) != width:
                bad.append((line, Reason.BAD_ROW, _width_words(row, width)))
            elif any('"' in row[place] for place in places) and self._unquotable(text.row):
                behind = "text behind a closing quote"
                bad.append((line, Reason.BAD_ROW, f"{behind}: quotes inside of quotes are doubled"))
            else:
                lines.append(line)
                for column, place in zip(values, places, strict=True):
                    column.append(self._decoded(row[place], line, place))
        self._line = first + text.taken
        columns = {str(i): pa.array(column, pa.string()) for i, column in zip(places, values, strict=True)}
        return columns, np.array(lines, np.int64), bad

    def _tab_rows(self, text: "_Lines") -> Iterator[list[str]]:
        """The rows of a tab-separated file, by the rule above."""
        width = len(self._header)
        for line in text:
            as_it_stands = line.rstrip("\r\n").split("\t")
            if not any(field.startswith('"') for field in as_it_stands):
                yield as_it_stands if line.strip("\r\n") else []
                continue
            try:
                quoted = next(csv.reader([line], delimiter="\t", strict=True))
            except csv.Error:  # a quote is not closed, or text stands behind one that is
                quoted = []
            if len(quoted) == width:
                yield quoted
            elif len(as_it_stands) >= width and not self._goes_on(as_it_stands[-1], text.ahead()):
                yield as_it_stands
            else:  # text over lines, or a quote too few
                yield next(csv.reader(itertools.chain([line], text), delimiter="\t"))

    def _is_header(self, row: Sequence[str]) -> bool:
        """Whether a row is a header: this one, or another with these names where type and time should be."""
        names = [name.strip().strip("\ufeff") for name in row]
        places = [self._header.index(c) for c in map(self._columns.get, ("type", "ts")) if c in self._header]
        another = len(places) == 2 and len(row) == len(self._header)
        return names == self._header or (another and all(names[place] in self._header for place in places))

    def _goes_on(self, last: str, following: str) -> bool:
        """Whether the last field of a line is text that goes on in the next line."""
        opened = last.startswith('"') and last.count('"') % 2 == 1
        return opened and following.strip() != "" and len(following.split("\t")) < len(self._header)

    def _swallowed(self, lines: Sequence[str]) -> bool:
        """Whether a row of several lines is held together by quotes that are none: there are rows among its lines,
        or text stands behind the closing quote."""
        if len(lines) == 1:
            return False
        return any(map(self._is_row, lines[1:])) or self._unquotable(lines)

    def _unquotable(self, lines: Sequence[str]) -> bool:
        """Whether text stands behind a closing quote, so that what is quoted is not sure; in a tab-separated file such
        quotes are text."""
        if self._delimiter == "\t" and len(lines) == 1:
            return False
        try:
            next(csv.reader(lines, delimiter=self._delimiter, strict=True))
        except csv.Error:
            return True
        return False

    def _is_row(self, line: str) -> bool:
        """Whether a line inside of a quoted field would be a row: as wide as the header, with a time in its place, or,
        where the folder says the time, a type.

        Where its first quote stands behind text, it is the end of that text: what follows belongs to the row that the
        text is of, and the time must stand before it."""
        fields = self._fields(line.rstrip("\r\n"), self._delimiter)
        name = next((name for name in ("ts", "type") if self._columns[name] in self._header), None)
        if len(fields) != len(self._header) or name is None:
            return False
        place, quote = self._header.index(self._columns[name]), line.find('"')
        closes = quote >= 0 and line[max(0, quote - 1)] != self._delimiter
        if closes and line[:quote].count(self._delimiter) <= place:
            return False
        if name == "type":
            return fields[place] in self.spec.kind_of_type
        return not self._times.read([fields[place]])[1]

    def _decoded(self, text: str, line: int, place: int) -> str | None:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise SpecError(
                f"{self.path}, line {line}, column {self._header[place]!r}: not UTF-8 (Latin-1?)",
                hint="write it as UTF-8, e.g. iconv -f latin1 -t utf-8",
            ) from None
        return None if text in _MISSING else text

    def _refuse_escapes(self, columns: dict[str, Any], lines: NDArray[np.int64]) -> None:
        """Raises SpecError for ids and types with two backslashes: databases write one so, and it would be another
        customer's id."""
        for name in (*FIELDS, "type", "event_id"):
            twice = pc.match_substring(columns[name], r"\\") if name in columns else None
            if twice is not None and pc.any(twice).as_py():
                line = int(lines[pc.index(twice, True).as_py()])
                raise SpecError(
                    f"{self.path}, line {line}, column {self._columns[name]!r}: two backslashes, as COPY and OUTFILE "
                    "write one",
                    hint="export it as CSV: COPY … WITH (FORMAT csv, HEADER), OUTFILE … FIELDS ESCAPED BY ''",
                )

    def _named(self, by_place: dict[str, Any]) -> dict[str, Any]:
        n = len(next(iter(by_place.values()))) if by_place else 0
        columns = {}
        for name, column in self._columns.items():
            if column in self._header:
                columns[name] = by_place[str(self._header.index(column))]
            else:
                columns[name] = pa.array([self.partition[column]] * n, pa.string())
        for name in (*FIELDS, "event_id"):
            if name in columns and pc.any(pc.starts_with(columns[name], '="')).as_py():
                # As spreadsheets are told that digits are text.
                columns[name] = pc.replace_substring_regex(columns[name], r'^="(.*)"$', r"\1")
        if "event_id" in columns:
            ids = columns["event_id"]
            none = pc.is_in(ids, value_set=pa.array(sorted({*NULL_WORDS, "NaN", "nan"})))
            columns["event_id"] = pc.if_else(none, pa.scalar(None, pa.string()), ids)
        return columns


class _TooLong(Exception):
    """A row of more lines than any has."""


@dataclass(slots=True)
class _Lines:
    """The lines of a block for csv.reader, and of the blocks after it while a row is not complete."""

    data: bytes
    more: Any
    taken: int = 0
    row: list[str] = field(default_factory=list)
    _text: Any = None
    _ahead: str = ""

    def __post_init__(self) -> None:
        self._open(self.data)

    def _open(self, data: bytes) -> None:
        self._text = io.TextIOWrapper(io.BytesIO(data), "utf-8", errors="surrogateescape", newline="")

    def begin_row(self) -> None:
        self.row = []

    def __iter__(self) -> "_Lines":
        return self

    def ahead(self) -> str:
        """The line after the one that was taken last, which it leaves; empty at the file's end."""
        self._ahead = self._ahead or self._text.readline()
        if not self._ahead:
            self._open(self.more())
            self._ahead = self._text.readline()
        return self._ahead

    def __next__(self) -> str:
        line = self.ahead() if self.row else self._ahead or self._text.readline()
        self._ahead = ""
        if not line:
            raise StopIteration
        if len(self.row) >= LINES_MAX:
            raise _TooLong
        self.taken += 1
        self.row.append(line)
        return str(line)


def _width_words(row: Sequence[str], width: int) -> str:
    words = f"{len(row)} fields under a header of {width}"
    return f"{words}: a delimiter at the line's end?" if len(row) == width + 1 and not row[-1] else words


def _ends(data: bytes) -> NDArray[np.int64]:
    """Where each line of a block ends: the index behind its last character, before LF, CR LF or CR."""
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw == _LF)
    if b"\r" in data:
        alone = np.flatnonzero(raw == _CR)
        after = np.append(raw, 0)[alone + 1]
        ends = np.sort(np.concatenate([ends, alone[after != _LF]]))
    return ends if data.endswith((b"\n", b"\r")) else np.append(ends, len(data))


def _line_numbers(data: bytes) -> NDArray[np.int64]:
    """int64, from 0: which lines of a block are not empty."""
    ends = _ends(data)
    length = np.diff(ends, prepend=-1) - 1
    if b"\r" in data:
        raw = np.frombuffer(data, np.uint8)
        length = length - ((length > 0) & (ends < len(data)) & (raw[np.minimum(ends, len(data) - 1)] == _LF)
                           & (raw[np.maximum(ends - 1, 0)] == _CR))  # fmt: skip
    return np.flatnonzero(length > 0)


def _count_lines(data: bytes) -> int:
    return len(_ends(data))


def _count_rows(data: bytes) -> int:
    return len(_line_numbers(data))
