"""Kafka records to a batch of events, and every other record with its reason.

    records ─size─▶ ─JSON─▶ rows ─columns.py─▶ events ─key, future─▶ EventBatch
       │ null value: a tombstone                                     in offset order, tombstones among the events
       └─▶ Rejected(index, reason, detail): what the dead-letter topic gets

It knows what only Kafka can tell: the key that has to be the customer, the timestamp that says when a record arrived,
the null value that forgets a customer. It refuses to know topics, a clock, and who deals with what it rejects. The
invariants: whether a record is bad depends on that record alone, and none is lost:

    len(events) + len(rejected) + ignored == len(records)

Each value is decoded by itself: joined into one text, a record could end inside of its neighbour.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ebbtide.featurestore.events.columns import ColumnReader, Columns
from ebbtide.featurestore.events.contract import USER_ID_CHARS_MAX, Reason, Rejected
from ebbtide.featurestore.events.event import TOMBSTONE, EventBatch
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import format_duration

VALUE_BYTES_MAX = 64 * 1024
"""An event is a few hundred bytes; what is a hundred times that is no event, and 1,024 of them still fit in memory."""
# Numbers that Python's json writes and JSON does not have. Only looked for in what is not JSON.
_NO_NUMBER = re.compile(rb"(?<=[:\[,\s])-?(?:NaN|Infinity)(?=[,\]}\s])")


class KafkaRecord(Protocol):
    """What is read of a record; aiokafka's `ConsumerRecord` has it."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...  # ms UTC, negative where the record has none
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...  # None is a tombstone


class ParseLimits(BaseModel):
    """Bounds of what one record may be."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    value_bytes_max: int = Field(default=VALUE_BYTES_MAX, ge=64)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a batch of records is. Indices are into the records.

    events:     the good ones and the tombstones, in the records' order; `position` is the offset
    number:     int64[n], the record of each event
    rejected:   by index
    ignored:    how many were of types that the spec ignores
    tombstones: indices of the records that forget a customer (kind TOMBSTONE in `events`)
    """

    events: EventBatch
    number: NDArray[np.int64]
    rejected: list[Rejected]
    ignored: int
    tombstones: list[int]


class Parser:
    """Parses under one spec; a batch knows nothing of the one before. Not for two threads at once."""

    def __init__(self, spec: Spec, limits: ParseLimits | None = None) -> None:
        """Raises SpecError when the spec's mapping does not make sense."""
        self._limits = limits or ParseLimits()
        self._future_max_ms, self._past_max_ms = spec.future_max_ms, spec.oldest_ms
        self._columns = ColumnReader(spec)
        self._spec = spec

    def parse(self, records: Sequence[KafkaRecord]) -> Parsed:
        """Parse records, of each partition in offset order. Nothing that a producer can send raises."""
        rejected: list[Rejected] = []
        forgotten: dict[int, str] = {}  # record number of each tombstone -> its customer
        present, values = self._with_values(records, forgotten, rejected)
        decoded, rows, bad = decode(values, self._limits.value_bytes_max)
        rejected += _renumbered(bad, present)
        columns = self._columns.read(rows)
        rejected += _renumbered(columns.rejected, present[decoded])
        number = present[decoded][columns.index]
        columns, number = self._admitted(records, columns, number, rejected)
        rejected.sort(key=lambda bad: bad.index)
        events, number = _in_order(records, columns, number, forgotten)
        return Parsed(events, number, rejected, len(columns.ignored), list(forgotten))

    def _admitted(
        self,
        records: Sequence[KafkaRecord],
        columns: Columns,
        number: NDArray[np.int64],
        rejected: list[Rejected],
    ) -> tuple[Columns, NDArray[np.int64]]:
        """The events whose key is their customer and whose time is neither later nor earlier than their arrival
        allows. That depends on the record alone: a record without a timestamp of its own is refused, since nothing else
        could tell its time from a wrong one."""
        own = [records[i] for i in number.tolist()]
        arrived = np.array([record.timestamp for record in own], np.int64)
        future = columns.stated - self._future_max_ms > arrived
        past = columns.stated + self._past_max_ms < arrived
        keys = self._spec.keys_of(columns.users)
        if [record.key for record in own] == keys and not (future | past | (arrived < 0)).any():
            return columns, number
        keep = []
        for j, (record, key) in enumerate(zip(own, keys, strict=True)):
            if record.key != key:
                detail = self._mismatch if record.key else "the record has no key"
                rejected.append(Rejected(int(number[j]), Reason.KEY_MISMATCH, detail))
            elif arrived[j] < 0:
                detail = "the record has no timestamp, by which ts could be judged"
                rejected.append(Rejected(int(number[j]), Reason.NO_TIMESTAMP, detail))
            elif past[j]:
                detail = (
                    f"ts is more than {format_duration(self._past_max_ms)} before the record's own timestamp"
                )
                rejected.append(Rejected(int(number[j]), Reason.TOO_OLD, detail))
            elif future[j]:
                detail = (
                    f"ts is more than {format_duration(self._future_max_ms)} after the record's own timestamp"
                )
                rejected.append(Rejected(int(number[j]), Reason.FUTURE, detail))
            else:
                keep.append(j)
        kept = np.array(keep, np.int64)
        return columns.take(kept), number[kept]

    @property
    def _mismatch(self) -> str:
        if self._spec.customer is None:
            return "the record's key is not its user_id"
        fields, written = self._spec.customer.fields, "with ~ written ~0 and / written ~1"
        wanted = fields[0] if self._spec.customer.key == "first" else "/".join(fields)
        return f"the record's key is not its customer's {wanted}, {written}"

    def _with_values(
        self, records: Sequence[KafkaRecord], forgotten: dict[int, str], rejected: list[Rejected]
    ) -> tuple[NDArray[np.int64], list[bytes]]:
        values = [record.value for record in records]
        if None in values:
            for i, record in enumerate(records):
                if record.value is None:
                    try:
                        forgotten[i] = self._forgotten(record.key)
                    except ValueError as error:
                        rejected.append(Rejected(i, Reason.KEY_MISMATCH, str(error)))
        index = [i for i, value in enumerate(values) if value is not None]
        return np.array(index, np.int64), [value for value in values if value is not None]

    def _forgotten(self, key: bytes | None) -> str:
        """Whom a tombstone with this key forgets: a customer, or all of a first part. Raises ValueError."""
        says = "a null value forgets the customer in its key, and this key is none"
        try:
            customer = (key or b"").decode()
        except UnicodeDecodeError:
            raise ValueError(says) from None
        if not 1 <= len(customer) <= USER_ID_CHARS_MAX:
            raise ValueError(says)
        try:
            self._spec.names_first(customer)
        except ValueError as error:
            raise ValueError(f"{says}: {error}") from None
        return customer


def decode(
    values: Sequence[bytes], value_bytes_max: int
) -> tuple[NDArray[np.int64], list[Any], list[Rejected]]:
    """JSON values one by one: int64[n] which of `values` can be read, what they hold, and why the others can't."""
    if max(map(len, values), default=0) <= value_bytes_max:
        try:
            return np.arange(len(values)), [orjson.loads(value) for value in values], []
        except orjson.JSONDecodeError:
            pass  # at least one; which ones is found below
    index, rows, bad = [], [], []
    for i, value in enumerate(values):
        if len(value) > value_bytes_max:
            bad.append(Rejected(i, Reason.TOO_LARGE, f"more than {value_bytes_max} bytes"))
            continue
        try:
            rows.append(orjson.loads(value))
            index.append(i)
        except orjson.JSONDecodeError as error:
            bad.append(_not_json(i, value, error))
    return np.array(index, np.int64), rows, bad


def _not_json(i: int, value: bytes, error: orjson.JSONDecodeError) -> Rejected:
    """Numbers that JSON cannot write are told from what is no JSON at all."""
    if "infinity" in error.msg:
        return Rejected(i, Reason.NOT_FINITE, "a number is too large for 64 bits")
    try:
        orjson.loads(_NO_NUMBER.sub(b"0", value))
    except orjson.JSONDecodeError:
        return Rejected(i, Reason.NOT_JSON, f"{error.msg} at byte {error.pos}")
    return Rejected(i, Reason.NOT_FINITE, "NaN and Infinity are not numbers in JSON")


def batch_of(columns: Columns, position: NDArray[np.int64]) -> EventBatch:
    """The columns as a batch: customers numbered in order of first appearance, `position` as given."""
    customers, customer = _numbered(columns.users)
    return EventBatch(
        customers,
        customer,
        columns.kind,
        columns.time,
        columns.value,
        columns.event_ids(),
        position,
        columns.more,
    )


def _in_order(
    records: Sequence[KafkaRecord], columns: Columns, number: NDArray[np.int64], forgotten: dict[int, str]
) -> tuple[EventBatch, NDArray[np.int64]]:
    """Events and tombstones as one batch, in the records' order, and the record of each.

    A tombstone's time is its record's."""
    position = np.array([records[i].offset for i in number.tolist()], np.int64)
    if not forgotten:
        return batch_of(columns, position), number
    lost = list(forgotten)
    numbers = np.concatenate([number, np.array(lost, np.int64)])
    order = np.argsort(numbers, kind="stable")
    users = [*columns.users, *forgotten.values()]
    customers, customer = _numbered([users[i] for i in order.tolist()])
    times = np.array([max(1, records[i].timestamp) for i in lost], np.int64)

    def column(events: NDArray[Any], tombstones: object) -> NDArray[Any]:
        return np.concatenate([events, np.broadcast_to(np.asarray(tombstones, events.dtype), len(lost))])[
            order
        ]

    events = EventBatch(
        customers=customers,
        customer=customer,
        kind=column(columns.kind, TOMBSTONE),
        time=column(columns.time, times),
        value=column(columns.value, np.nan),
        event_id=column(columns.event_ids(), 0),
        position=column(position, [records[i].offset for i in lost]),
        more=_with_none(columns.more, len(lost), order),
    )
    return events, numbers[order]


def _with_none(
    more: NDArray[np.float64] | None, lost: int, order: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    """Further values, and none of them for tombstones."""
    return None if more is None else np.concatenate([more, np.full((lost, more.shape[1]), np.nan)])[order]


def _numbered(users: Sequence[str]) -> tuple[list[str], NDArray[np.int32]]:
    number: dict[str, int] = {}
    customer = np.array([number.setdefault(user, len(number)) for user in users], np.int32)
    return list(number), customer


def _renumbered(rejected: Iterable[Rejected], index: NDArray[np.int64]) -> list[Rejected]:
    return [replace(bad, index=int(index[bad.index])) for bad in rejected]
