"""A whole log of events as columns, what of its files did not fit, and where what is known ends.

A log is in arrival order: the order in which a stream would have brought the same events.

Rows are judged in the contract's words (`events/columns.py`), which know no file. Here they get the file's column and a
remedy; values are not shown, since messages end up in logs: the line says where they are.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.customer import FIELDS
from ebbtide.featurestore.events.contract import Reason, Rejected
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.known import known_until
from ebbtide.featurestore.hashing import hash_texts
from ebbtide.featurestore.spec import Spec

PROBLEMS_SHOWN_MAX = 20
"""Rows that are kept as examples; the others are counted by reason."""
UNKNOWN_TYPES_MAX = 1_000
"""Distinct unknown event types that are counted by name; a column of ids, mapped as the type, has millions."""
REMEDIES_MAX = 3
_FIELD = re.compile(
    r"^(?:[^:]{1,64}: )?(user_id|customer_[2-4]|type|ts|event_id|value|arrival|properties(?:\.[^\s:]+)?)\b"
)
_CHECK = "ebbtide spec check says more about the file"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A row that does not fit, by its line (or row) number, and by its file where there are several."""

    line: int
    reason: Reason
    detail: str
    file: str = ""


@dataclass(slots=True)
class Problems:
    """Every row that does not fit: all counted, the first ones shown. `unit`: what `line` numbers, 'line' or 'row'.

    `unknown_types`: rows by event type that no kind covers, whether that is a problem or ignored."""

    unit: str = "line"
    counts: Counter[Reason] = field(default_factory=Counter)
    first: list[Problem] = field(default_factory=list)
    unknown_types: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.counts[problem.reason] += 1
            if len(self.first) < PROBLEMS_SHOWN_MAX:
                self.first.append(problem)

    def add_unknown(self, types: Counter[str]) -> None:
        for event_type, count in types.items():
            if event_type in self.unknown_types or len(self.unknown_types) < UNKNOWN_TYPES_MAX:
                self.unknown_types[event_type] += count

    def join(self, other: "Problems") -> None:
        """Those of the file that comes next."""
        self.unit = other.unit
        self.counts += other.counts
        self.first = [*self.first, *other.first][:PROBLEMS_SHOWN_MAX]
        self.add_unknown(other.unknown_types)

    def place(self, problem: Problem) -> str:
        """'line 7', or 'line 7 of may.csv' where the log is of several files."""
        return f"{self.unit} {problem.line}" + (f" of {problem.file}" if problem.file else "")

    def words(self, shown: int = 5) -> str:
        """The first ones, each with its place: `line 7: ts: expected ... [wrong_type]; ...`."""
        examples = [f"{self.place(p)}: {p.detail} [{p.reason}]" for p in self.first[:shown]]
        return "; ".join([*examples, "..."] if self.total > len(examples) else examples)


def with_column(rejected: Rejected, columns: dict[str, str]) -> str:
    """A refused row's detail, with the file's column where it goes by another name than the field."""
    field = field_of(rejected.reason, rejected.detail)
    column = columns.get(field, field)
    named = column in (field, field.removeprefix("properties.")) or f"from {column})" in rejected.detail
    return rejected.detail if named else f"{rejected.detail} (column {column!r})"


def field_of(reason: Reason, detail: str) -> str:
    """The contract's field that a detail is about, '' where it is about the whole row."""
    found = _FIELD.match(detail)
    return found[1] if found else "type" if reason == Reason.UNKNOWN_TYPE else ""


class Remedies:
    """What to do about the misfits seen, in the order they came in, REMEDIES_MAX at most."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self.found: dict[str, None] = {}

    def look(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            if len(self.found) >= REMEDIES_MAX:
                return
            remedy = self._remedy(problem.reason, field_of(problem.reason, problem.detail))
            if remedy:
                self.found.setdefault(remedy)

    def join(self, other: "Remedies") -> None:
        """Those of the file that comes next."""
        self.found = dict.fromkeys([*self.found, *other.found][:REMEDIES_MAX])

    def words(self) -> str:
        return "; ".join([*self.found, _CHECK])

    def _remedy(self, reason: Reason, field: str) -> str:
        mapping = self._spec.mapping
        match reason, field:
            case ((Reason.WRONG_TYPE | Reason.TIMESTAMP_RANGE), ("ts" | "arrival")):
                form = mapping.ts_format if mapping.ts_unit is None else "numbers of ts_unit"
                return (
                    f"mapping.ts_format says how times are written, now {form}: s, ms, us, ns, %d/%m/%Y, ..."
                )
            case Reason.WRONG_TYPE, field if field in (*FIELDS, "event_id", "type"):
                return "write it as text"
            case Reason.WRONG_TYPE, "properties":
                return f"write {mapping.properties} as an object, {{}} or null where there is nothing (PHP writes [])"
            case Reason.WRONG_TYPE, "":
                return "write one event a line, an object: jq -c '.[]' for arrays of them"
            case Reason.WRONG_TYPE, field if field:
                return "write numbers with a point, without thousands and units (1234.5), in typed files not as text"
            case Reason.BAD_ATTRIBUTE, _:
                return "write a date as 2026-01-31 or RFC 3339, a number with a point (1234.5)"
            case Reason.UNKNOWN_TYPE, _:
                return "name the type in a kind's types, or say `unknown: ignore`"
            case Reason.NOT_JSON, _:
                return "write one object a line in UTF-8, nothing between them, e.g. jq -c ."
            case Reason.BAD_ROW, _:
                return "quote text that holds delimiters, double its quotes, and leave out remarks and totals"
            case Reason.NOT_FINITE, _:
                return "leave a number that is missing empty, in JSON null"
            case Reason.MISSING_FIELD, _:
                return "leave such rows out, or map the column that has it"
        return ""


@dataclass(frozen=True, slots=True)
class EventLog:
    """A whole log in arrival order.

    events:   its columns; `position` is the row's number, from 0, over all files in their order
    ids:      the producers' event ids, '' where there is none; None when the log has none
    arrival:  int64[n], ms UTC, never decreasing: when each event arrived; its time where no arrival is mapped
    rows:     how many rows the file has; len(log) + ignored + problems.total of them
    ignored:  how many were of types that the spec ignores
    problems: the rows that did not fit
    starts:   each file's name and how many rows stand in those before it, where there are several
    """

    events: EventBatch
    ids: list[str] | None
    arrival: NDArray[np.int64]
    rows: int
    ignored: int
    problems: Problems
    starts: Sequence[tuple[str, int]] = ()

    def __len__(self) -> int:
        return len(self.events)

    def place(self, position: int) -> str:
        """'row 7' of a position, or 'row 7 of may.csv' where the log is of several files."""
        file, before = next((one for one in reversed(self.starts) if one[1] <= position), ("", 0))
        return f"row {position - before + 1:,}" + (f" of {file}" if file else "")

    @property
    def known_until(self) -> int:
        """ms UTC: the log is complete up to, not including, this time; outliers lie `beyond` (`events/known.py`)."""
        return known_until(self.events.time)

    @property
    def beyond(self) -> NDArray[np.int64]:
        """int64, indices of the events dated after all that is known, in time's order."""
        late = np.flatnonzero(self.events.time >= self.known_until)
        return late[np.argsort(self.events.time[late], kind="stable")]

    def to_arrow(self) -> Any:
        """The events as a pyarrow.Table, a row an event in arrival order: `user_id` (text, a dictionary), `kind`
        (uint8, index into the spec's kinds), `time` and `arrival` (timestamps in ms, UTC), `value` (double, null where
        missing) and `value_2`, … where a kind has several, `event_id` (text, null where there is none), `position`
        (int64). Needs pyarrow."""
        import pyarrow as pa  # noqa: PLC0415 - a worker imports this module and never loads Arrow

        events, utc = self.events, pa.timestamp("ms", "UTC")
        customers = pa.DictionaryArray.from_arrays(
            pa.array(events.customer), pa.array(events.customers, pa.string())
        )
        return pa.table({
            "user_id": customers,
            "kind": events.kind,
            "time": pa.array(events.time).cast(utc),
            "arrival": pa.array(self.arrival).cast(utc),
            **{name: pa.array(column, mask=np.isnan(column)) for name, column in _value_columns(events)},
            "event_id": pa.array([event_id or None for event_id in self.ids or [""] * len(self)], pa.string()),
            "position": events.position,
        })  # fmt: skip

    @classmethod
    def from_arrow(cls, table: Any) -> "EventLog":
        """The log of a table such as `to_arrow` gives, whose rows may be any part of one in any order that keeps
        `arrival` ascending; what did not fit is not part of a table. Raises ValueError where `arrival` descends."""
        import pyarrow as pa  # noqa: PLC0415 - see above

        def numbers(name: str, kind: Any) -> NDArray[Any]:
            return np.asarray(table.column(name).cast(kind).to_numpy())

        further = [name for name in table.column_names if name.startswith("value_")]
        arrival = numbers("arrival", pa.int64())
        if (np.diff(arrival) < 0).any():
            raise ValueError("the rows are not in the order of their arrival")
        users = table.column("user_id").cast(pa.string()).combine_chunks().dictionary_encode()
        ids = [event_id or "" for event_id in table.column("event_id").to_pylist()]
        events = EventBatch(
            customers=users.dictionary.to_pylist(),
            customer=users.indices.to_numpy().astype(np.int32),
            kind=numbers("kind", pa.uint8()),
            time=numbers("time", pa.int64()),
            value=numbers("value", pa.float64()),
            more=np.stack([numbers(name, pa.float64()) for name in further], axis=1) if further else None,
            event_id=hash_texts(ids),
            position=numbers("position", pa.int64()),
        )
        return cls(events, ids if any(ids) else None, arrival, len(arrival), 0, Problems())


def _value_columns(events: EventBatch) -> Iterator[tuple[str, NDArray[np.float64]]]:
    for c, column in enumerate(events.values.T):
        yield f"value_{c + 1}" if c else "value", np.ascontiguousarray(column)
