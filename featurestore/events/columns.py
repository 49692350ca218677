"""Decoded events to columns: the one place where an event's fields become numbers, for the stream and for files.

    rows (decoded JSON, or rows of a file)  ─contract─▶  events  ─kind, time, value─▶  Columns, and why not

It knows the contract, the mapping and the spec's kinds; it refuses to know where the rows came from (Kafka's keys and
timestamps are `parse.py`'s, files and their lines `featurestore/files/reader.py`'s). A batch is validated in one call;
only when that fails are the failing rows looked at. The invariants: what becomes of a row depends on the row alone,
never on its neighbours, and

    len(columns) + len(columns.rejected) + len(columns.ignored) == len(rows)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ebbtide.featurestore.customer import Composite, join
from ebbtide.featurestore.events.attributes import encode_value
from ebbtide.featurestore.events.contract import (
    TIME_MS_MAX,
    TIME_MS_MIN,
    USER_ID_CHARS_MAX,
    VALUE_MAX,
    Event,
    Reason,
    Rejected,
    event_adapter,
    explain,
    field_words,
)
from ebbtide.featurestore.hashing import hash_texts
from ebbtide.featurestore.kinds import Kind, Value
from ebbtide.featurestore.spec import Mapping, Spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import TimeReader


@dataclass(frozen=True, slots=True)
class Columns:
    """The n rows that are events of a known kind, and why the others are not.

    index:    int64[n], which row, ascending
    users:    n customer ids
    kind:     uint8[n], index into the spec's kinds
    time:     int64[n], ms UTC, stamped as the kind says; `stated`: as the event says
    value:    float64[n], NaN where missing, encoded; `more`: float64[n, C - 1], the kinds' further values, or None
    ids:      n event ids, '' where there is none; None when no row has one
    rejected: the refused rows, by index
    ignored:  the rows whose type the spec ignores
    unknown:  types that no kind covers, once a row, whether refused or ignored
    """

    index: NDArray[np.int64]
    users: list[str]
    kind: NDArray[np.uint8]
    time: NDArray[np.int64]
    stated: NDArray[np.int64]
    value: NDArray[np.float64]
    more: NDArray[np.float64] | None
    ids: list[str] | None
    rejected: list[Rejected]
    ignored: list[int]
    unknown: list[str]

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, keep: NDArray[np.int64]) -> "Columns":
        """Some of the events, by index into the columns; what was rejected and ignored stays noted."""
        chosen = keep.tolist()
        return replace(
            self,
            index=self.index[keep],
            users=[self.users[j] for j in chosen],
            kind=self.kind[keep],
            time=self.time[keep],
            stated=self.stated[keep],
            value=self.value[keep],
            more=None if self.more is None else self.more[keep],
            ids=None if self.ids is None else [self.ids[j] for j in chosen],
        )

    def event_ids(self) -> NDArray[np.uint64]:
        """uint64[n], stable hashes, 0 where there is none."""
        return np.zeros(len(self), np.uint64) if self.ids is None else hash_texts(self.ids)


NULL_WORDS = frozenset({"", "\\N", "NULL", "null", "None", "NA", "#N/A"})
"""What exporters write into a text file where there is nothing; said of numbers, dates and event ids, not of texts that
a customer or a category could be called. Not NaN: a number that is none is an error worth seeing."""


class Refusal(Exception):
    """Why one value cannot be read."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class _Outcome:
    """What becomes of the rows that are not events; the first reason counts."""

    def __init__(self, spec: Spec) -> None:
        self._ignores = spec.unknown == "ignore"
        self.refused: dict[int, Rejected] = {}
        self.ignored: list[int] = []
        self.unknown: list[str] = []

    def refuse(self, row: int, reason: Reason, detail: str) -> None:
        self.refused.setdefault(row, Rejected(row, reason, detail))

    def unknown_type(self, row: int, event_type: str) -> None:
        self.unknown.append(event_type)
        if self._ignores:
            self.ignored.append(row)
        else:
            self.refuse(row, Reason.UNKNOWN_TYPE, "no kind of the spec covers this event type")


def time_reader(mapping: Mapping, *, digits: bool) -> TimeReader:
    """The reader of the times that a mapping describes. Raises SpecError."""
    return TimeReader(mapping.ts_format, digits=digits, unit_ms=mapping.ts_unit, origin_ms=mapping.origin_ms)


class ColumnReader:
    """Reads rows under one spec. `text`: every field is text, as in a CSV file, so numbers are read from text."""

    def __init__(
        self,
        spec: Spec,
        *,
        mapping: Mapping | None = None,
        composite: Composite | None = None,
        text: bool = False,
    ) -> None:
        """`mapping`, `composite`: in place of the spec's own. Raises SpecError when its time format is none."""
        self.mapping, self._composite = mapping or spec.mapping, composite or spec.customer
        self._names = tuple(spec.customer_fields)
        self._spec, self._text = spec, text
        self._adapter = event_adapter(self.mapping, self._composite)
        self._times = time_reader(self.mapping, digits=text)
        self._kind_of_type = spec.kind_of_type
        kinds = spec.kinds
        self._readings = [kind.readings for kind in kinds]
        first = [readings[0] if readings else None for readings in self._readings]
        self._paths = [[tuple(value.path.split(".")) for value in readings] for readings in self._readings]
        self._textual = np.array([kind.takes_text for kind in kinds])
        # Kinds whose value is not simply the number in the field `value`: these are read one by one.
        self._apart = np.array(
            [
                (value is not None and (value.attribute is not None or value.reads != "number"))
                or (bool(paths) and (len(paths[0]) > 1 or text))
                for value, paths in zip(first, self._paths, strict=True)
            ]
        )
        self._valued = np.array([value is not None for value in first])
        self._further = spec.value_columns - 1
        self._several = np.array([len(readings) > 1 for readings in self._readings])
        self._day_end = np.array([kind.stamp == "day_end" for kind in kinds])

    def read(self, rows: Sequence[Any]) -> Columns:
        """Columns of the rows that fit; every other row is in `rejected` or in `ignored`."""
        out = _Outcome(self._spec)
        index, events = self._validated(rows, out)
        index, events, codes = self._of_known_kinds(index, events, out)
        kind = np.array(codes, np.uint8)
        stated = self._stated(index, events, out)
        value = self._values(index, events, kind, out)
        more = self._more(index, events, kind, out) if self._further else None
        users = self._users(index, events, out)
        position = np.fromiter(index, np.int64, len(index))
        if out.refused:
            keep = [j for j, row in enumerate(index) if row not in out.refused]
            events, users = [events[j] for j in keep], [users[j] for j in keep]
            position, kind, stated, value = position[keep], kind[keep], stated[keep], value[keep]
            more = None if more is None else more[keep]
        ids = [event.get("event_id") or "" for event in events]
        return Columns(
            index=position,
            users=users,
            kind=kind,
            time=np.where(self._day_end[kind], stated // DAY_MS * DAY_MS + (DAY_MS - 1), stated),
            stated=stated,
            value=value,
            more=more,
            ids=ids if any(ids) else None,
            rejected=[out.refused[row] for row in sorted(out.refused)],
            ignored=sorted(out.ignored),
            unknown=out.unknown,
        )

    def _validated(self, rows: Sequence[Any], out: _Outcome) -> tuple[Sequence[int], list[Event]]:
        """The rows within the contract: one call; a second one for the others' neighbours if there are any."""
        try:
            return range(len(rows)), self._adapter.validate_python(rows)
        except ValidationError as error:
            for problem in explain(error, self.mapping, self._composite):
                event_type = self._type_of(rows[problem.index])
                if event_type and event_type not in self._kind_of_type:
                    out.unknown_type(
                        problem.index, event_type
                    )  # of an unknown type nothing else is our concern
                else:
                    out.refuse(problem.index, problem.reason, problem.detail)
        bad = {*out.refused, *out.ignored}
        index = [row for row in range(len(rows)) if row not in bad]
        return index, self._adapter.validate_python([rows[row] for row in index])

    def _type_of(self, row: object) -> str:
        path = self.mapping.type
        found = row.get(path, _dig(row, path.split("."))) if isinstance(row, dict) else None
        return found if isinstance(found, str) else ""

    def _of_known_kinds(
        self, index: Sequence[int], events: list[Event], out: _Outcome
    ) -> tuple[Sequence[int], list[Event], list[int]]:
        codes = [self._kind_of_type.get(event["type"], -1) for event in events]
        if -1 not in codes:
            return index, events, codes
        for row, event, code in zip(index, events, codes, strict=True):
            if code < 0:
                out.unknown_type(row, event["type"])
        known = [j for j, code in enumerate(codes) if code >= 0]
        return [index[j] for j in known], [events[j] for j in known], [codes[j] for j in known]

    def _users(self, index: Sequence[int], events: list[Event], out: _Outcome) -> list[str]:
        if self._composite is None:
            return [event["user_id"] for event in events]
        names = self._names
        users = [join([event[name] for name in names]) for event in events]  # type: ignore[literal-required]  # the spec's
        for j in [j for j, user in enumerate(users) if len(user) > USER_ID_CHARS_MAX]:
            detail = (
                f"{', '.join(names)}: together more than {USER_ID_CHARS_MAX} characters as the customer's id"
            )
            out.refuse(index[j], Reason.WRONG_TYPE, detail)
        return users

    def _stated(self, index: Sequence[int], events: list[Event], out: _Outcome) -> NDArray[np.int64]:
        stated, unreadable = self._times.read([event["ts"] for event in events])
        for j in unreadable:
            name = field_words("ts", self.mapping)
            out.refuse(index[j], Reason.WRONG_TYPE, f"{name}: expected {self._times.words}")
        for j in np.flatnonzero((stated < TIME_MS_MIN) | (stated > TIME_MS_MAX)).tolist():
            out.refuse(index[j], Reason.TIMESTAMP_RANGE, "ts is not between 1970 and 9999")
        return stated

    def _values(
        self, index: Sequence[int], events: list[Event], kind: NDArray[np.uint8], out: _Outcome
    ) -> NDArray[np.float64]:
        raw: list[Any] = [event.get("value") for event in events]
        if not self._text and str in set(map(type, raw)):
            name = field_words("value", self.mapping)
            for j in [j for j, value in enumerate(raw) if type(value) is str]:
                raw[j] = None  # read again below, where it may be text
                if not self._textual[kind[j]]:
                    out.refuse(index[j], Reason.WRONG_TYPE, f"{name}: expected a number, got text")
        for j in np.flatnonzero(self._apart[kind]).tolist():
            try:
                code = int(kind[j])
                raw[j] = self.value_of(code, _dig(events[j], self._paths[code][0]))
            except Refusal as refusal:
                raw[j] = None
                out.refuse(index[j], refusal.reason, refusal.detail)
        if self._text:
            raw = [value if type(value) is float else None for value in raw]  # texts that no kind reads
        values = np.array(raw, np.float64)
        values[~self._valued[kind]] = np.nan
        return values

    def _more(
        self, index: Sequence[int], events: list[Event], kind: NDArray[np.uint8], out: _Outcome
    ) -> NDArray[np.float64]:
        """The values behind the first of kinds that have several."""
        more = np.full((len(events), self._further), np.nan)
        for j in np.flatnonzero(self._several[kind]).tolist():
            code = int(kind[j])
            for c, path in enumerate(self._paths[code][1:], 1):
                try:
                    number = self.value_of(code, _dig(events[j], path), c)
                except Refusal as refusal:
                    out.refuse(index[j], refusal.reason, refusal.detail)
                    continue
                if number is not None:
                    more[j, c - 1] = number
        return more

    def value_of(self, code: int, raw: object, c: int = 0) -> float | None:
        """The number that a kind keeps of its value `c`, None where that is missing. Raises Refusal."""
        kind, value = self._spec.kinds[code], self._readings[code][c]
        texts = value.reads in ("category", "text")
        if raw is None or (self._text and raw in (("", "\\N") if texts else NULL_WORDS)):
            return None
        if value.attribute is not None or texts:
            return _encoded(kind, value, raw, text=self._text)
        if self._text and type(raw) is str:
            try:
                raw = float(raw)
            except ValueError:
                raise Refusal(Reason.WRONG_TYPE, f"{kind.name}: {value.path}: expected a number") from None
        if type(raw) is not float and type(raw) is not int:
            raise Refusal(Reason.WRONG_TYPE, f"{kind.name}: {value.path}: expected a number")
        return _bounded(kind, value, raw)


def _encoded(kind: Kind, value: Value, raw: object, *, text: bool) -> float:
    refusal = Refusal(Reason.BAD_ATTRIBUTE, f"{kind.name}: {value.path}: expected a {value.reads}")
    as_text = text or value.reads != "number"
    if type(raw) is not int and type(raw) is not float and not (as_text and type(raw) is str):
        raise refusal  # true is an int to isinstance, and no number to us
    try:
        return _bounded(kind, value, encode_value(value, raw))
    except (ValueError, OverflowError):
        raise refusal from None


def _bounded(kind: Kind, value: Value, number: float) -> float:
    if not isfinite(number) or abs(number) > VALUE_MAX:
        words = f"expected a finite number within ±{VALUE_MAX:g}"
        raise Refusal(Reason.NOT_FINITE, f"{kind.name}: {value.path}: {words}")
    return float(number)


def _dig(found: Any, path: Sequence[str]) -> Any:
    """What lies at a path of keys; None where the way ends early."""
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found
