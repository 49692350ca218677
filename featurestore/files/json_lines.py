"""JSON as blocks: an event a line, as it would come through Kafka, or one array of events, or objects one after the
other without regard to lines (indented, or joined by a program that writes no line ends).

The decoder is the stream's own, a value at a time, so that a file means what the stream means: what repeats, overflows
or is cut off in a line is judged alike. Only the fields that the spec needs are kept of a row; a row that does not fit
is decoded again to be judged. Ids that are whole numbers are taken as their digits. There is no bound on a line: what
Kafka could not carry can still be learnt from.
"""

import io
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.parse import decode
from ebbtide.featurestore.files.block import ARRIVAL, Block, BlockReader, EventFile
from ebbtide.featurestore.files.sources import ByteSource
from ebbtide.featurestore.spec import Spec

BLOCK_ROWS = 4_096
WRAPPED_MAX = 4
"""Objects in one another that are looked through for events."""
_NO_BOUND = 1 << 62
_TIMES = ("ts", ARRIVAL)
_BETWEEN = " \t\r\n\x1e"
"""What may stand between JSON texts."""
_RECORD_SEPARATOR = b"\x1e"
"""RFC 7464: before each text."""


class JsonBlocks(BlockReader):
    """Objects, one a line or all in an array; fields are found by dotted path."""

    def __init__(self, file: EventFile, spec: Spec) -> None:
        super().__init__(file, spec)
        self.mapping = spec.mapping
        self._source = ByteSource(file.path, text=True)
        self._places: list[int] | None = None  # of the values, where they are not a line each
        self.composite = spec.customer
        others = {name: getattr(spec.mapping, name) for name in ("type", "ts", "event_id", "value")}
        self._paths = {**spec.customer_fields, **others}
        self._ids = (*spec.customer_fields, "event_id")
        if spec.mapping.arrival is not None:
            self._paths[ARRIVAL] = spec.mapping.arrival
        self.columns = self._paths
        self._properties = sorted({value.path for kind in spec.kinds for value in kind.readings} - {"value"})

    def blocks(self) -> Iterator[Block]:
        lines = self._lines()
        numbers = itertools.count(1) if self._places is None else iter(self._places)
        numbered = ((i, line) for i, line in zip(numbers, lines, strict=False) if not line.isspace())
        while taken := list(itertools.islice(numbered, BLOCK_ROWS)):
            texts = [line for _, line in taken]
            try:
                rows, bad, kept = list(map(orjson.loads, texts)), [], texts
                places = np.array([number for number, _ in taken], np.int64)
            except orjson.JSONDecodeError:
                index, rows, rejected = decode(texts, _NO_BOUND)
                bad = [(taken[r.index][0], r.reason, r.detail) for r in rejected]
                kept = [texts[i] for i in index.tolist()]
                places = np.array([taken[i][0] for i in index.tolist()], np.int64)
            yield self._block(rows, kept, places, bad)

    def _lines(self) -> Iterator[bytes]:
        """The file's lines, whatever ends them; of an array, its elements."""
        file = self._source.file
        blank, first = 0, file.readline()
        while first and first.isspace():
            first, blank = file.readline(), blank + 1
        rest: Iterator[bytes] = itertools.chain([first] if first else [], iter(file.readline, b""))
        if first.lstrip().startswith(b"["):
            whole = b"".join(rest)
            elements = _elements(whole)
            if elements is not None:
                return iter(elements)
            rest = itertools.chain(whole.splitlines(keepends=True))
        elif _goes_on(first):
            whole = b"".join(rest)
            values = _values(whole)
            if values is not None:
                self._places = [blank + line for line, _ in values]
                return iter([value for _, value in values])
            rest = iter(io.BytesIO(whole).readline, b"")
        # Ends of lines that readline does not know; no JSON text holds a bare one.
        if b"\r" in first.rstrip():
            rest = itertools.chain.from_iterable(line.splitlines(keepends=True) for line in rest)
        return itertools.chain([b"\n"] * blank, rest)

    def _decoded(self, text: bytes) -> Any:
        """One row for its own reader."""
        row = orjson.loads(text)
        if isinstance(row, dict):
            if self.partition:
                row = {**self.partition, **row}
            for path in [self._paths[name] for name in self._ids]:
                place, found = _place(row, path)
                if type(found) is int:
                    place[path if path in place else path.rpartition(".")[2]] = str(found)
        return row

    def _refuse_wrapped(self, row: Any) -> None:
        """Raises SpecError where a row is no event and holds events: a page of an answer, a list a line."""
        if _holds_objects(row):
            raise SpecError(
                f"{self.path} has arrays of events, several", hint="write one event a line: jq -c '.[]'"
            )
        if type(row) is not dict:
            return
        unread = np.zeros(1, np.bool_)  # whether the row is odd: nobody asks
        if all(type(_dug([row], self._paths[name], unread)[0]) in (dict, list) for name in ("type", "ts")):
            raise SpecError(
                f"{self.path} has a column of events under each name, not an event",
                hint="write one event a line: in pandas to_json(FILE, orient='records', lines=True)",
            )
        heads = {self._paths[name].split(".")[0] for name in ("type", "ts")}
        customer = [_dug([row], path, unread)[0] for path in self.spec.customer_fields.values()]
        if not heads.isdisjoint(row) or any(part is not None for part in customer):
            return
        if len(row) > 1 and all(type(value) is dict and heads <= value.keys() for value in row.values()):
            raise SpecError(
                f"{self.path} has its events under names of their own",
                hint="write one event a line: jq -c '.[]'",
            )
        lists = dict(_lists(row))
        held = next((keys for keys, first in lists.items() if heads <= first.keys()), next(iter(lists), None))
        if held is not None:
            place = "".join(f'["{key}"]' for key in held)
            raise SpecError(
                f"{self.path} has its events under {'.'.join(held)!r} of an object",
                hint=f"write one event a line: jq -c '.{place}[]'",
            )

    def _block(self, rows: list[Any], texts: list[bytes], lines: NDArray[np.int64], bad: list[Any]) -> Block:
        odd = np.array([type(row) is not dict for row in rows], np.bool_)
        if rows:
            self._refuse_wrapped(rows[0])
        if odd.any():
            rows = [row if type(row) is dict else {} for row in rows]
        if self.partition:
            rows = [{**self.partition, **row} for row in rows]
        found = {name: _dug(rows, path, odd) for name, path in self._paths.items()}
        for name in self._ids:
            found[name] = _texts(found[name], odd)
        found["type"] = _texts(found["type"], odd, digits=False)
        properties = _dug(rows, self.mapping.properties, odd)
        odd |= np.array([value is not None and type(value) is not dict for value in properties], np.bool_)
        for path in self._properties:
            found[path] = [_dig(value, path.split(".")[1:]) for value in properties]
        columns = {name: _column(values, whole=name in _TIMES) for name, values in found.items()}

        def judged(chosen: NDArray[np.int64]) -> list[Any]:
            return [self._decoded(texts[i]) for i in chosen.tolist()]

        return Block(columns, judged, lines, self._source.share, odd, bad)


def _holds_objects(value: Any) -> bool:
    return type(value) is list and bool(value) and type(value[0]) is dict


def _lists(
    found: dict[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The lists of objects in an object, each by its keys and with its first one."""
    for key, value in found.items():
        if _holds_objects(value):
            yield (*above, key), value[0]
        elif type(value) is dict and len(above) < WRAPPED_MAX:
            yield from _lists(value, (*above, key))


def _elements(whole: bytes) -> list[bytes] | None:
    """The elements of an array; None where it is none."""
    try:
        found = orjson.loads(whole)
        return [orjson.dumps(element) for element in found] if type(found) is list else None
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass
    try:  # Python's decoder takes NaN and what is too large: then each element is judged by itself.
        found = json.loads(whole)
    except (ValueError, RecursionError):
        return None
    return [json.dumps(element).encode() for element in found] if type(found) is list else None


def _goes_on(line: bytes) -> bool:
    """Whether a line is the beginning of an indented object, or an object with another right behind it."""
    text = line.decode(errors="replace").strip(_BETWEEN)
    if line.lstrip().startswith(_RECORD_SEPARATOR):
        return True
    if not text.startswith("{"):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except RecursionError:
        return False
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    return text[end:].lstrip(_BETWEEN).startswith("{")


def _values(whole: bytes) -> list[tuple[int, bytes]] | None:
    """The values of JSON texts one after the other, each with its line; None where they are not just that.

    Their ends are found by Python's decoder; what they say is left to the stream's."""
    try:
        text = whole.decode()
    except UnicodeDecodeError:
        return None
    scan, found, at, line = json.JSONDecoder().raw_decode, [], 0, 1
    while at < len(text):
        if text[at] in _BETWEEN:
            line += text[at] == "\n"
            at += 1
            continue
        try:
            _, end = scan(text, at)
        except (ValueError, RecursionError):
            return None
        value = text[at:end]
        found.append((line, value.encode()))
        line += value.count("\n")
        at = end
    return found


def _dug(rows: Sequence[dict[str, Any]], path: str, odd: NDArray[np.bool_]) -> list[Any]:
    """What each row holds at a path. A name that has dots itself comes first; where that or an array may matter, the
    row is odd."""
    if "." not in path:
        return [row.get(path) for row in rows]
    keys = path.split(".")
    if any(key.isdigit() for key in keys):
        odd[:] = True
    return [row[path] if path in row else _dig(row, keys) for row in rows]


def _dig(found: Any, path: Sequence[str]) -> Any:
    for key in path:
        found = found.get(key) if type(found) is dict else None
    return found


def _texts(values: list[Any], odd: NDArray[np.bool_], *, digits: bool = True) -> list[str | None]:
    """Text or nothing; whole numbers as their digits; a row with anything else is odd."""
    if set(map(type, values)) <= {str, type(None)}:
        return values
    texts: list[str | None] = []
    for i, value in enumerate(values):
        known = type(value) is str or value is None
        number = digits and type(value) is int
        odd[i] |= not (known or number)
        texts.append(value if known else str(value) if number else None)
    return texts


def _column(values: list[Any], *, whole: bool) -> Any:
    """An Arrow array where all values are text, or all whole numbers, or (unless `whole`) all numbers; the list itself
    where not."""
    types = set(map(type, values)) - {type(None)}
    if types <= {str}:
        return pa.array(values, pa.string())
    try:
        if types <= {int}:
            return pa.array(values, pa.int64())
        if types <= {int, float} and not whole:
            numbers = np.array([np.nan if value is None else value for value in values], np.float64)
            return pa.array(numbers, mask=np.isnan(numbers))
    except (OverflowError, pa.ArrowInvalid):
        pass
    return values


def _place(row: Any, name: str) -> tuple[dict[str, Any], Any]:
    """The object in which a field lies, under the last part of its name, and what it holds."""
    if isinstance(row, dict) and name not in row and "." in name:
        first, rest = name.split(".", 1)
        return _place(row.get(first), rest)
    return (row, row.get(name)) if isinstance(row, dict) else ({}, None)
