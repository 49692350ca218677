"""Blocks of columns to events, whole columns at a time.

What is surely an event is read here; every other row goes to its own reader (`events/columns.py`), which is the one
judge of what an event is, for files as for the stream, and says what is wrong. The invariant: nothing is read here
that the judge would refuse, and no bit of it is another than the judge's
(`tests/unit/featurestore/test_fast_path.py` compares them on random tables). A value in no common spelling is judged
once for all the rows that repeat it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ebbtide.featurestore.events.columns import ColumnReader, Refusal
from ebbtide.featurestore.events.contract import (
    TIME_MS_MAX,
    TIME_MS_MIN,
    USER_ID_CHARS_MAX,
    VALUE_MAX,
    Reason,
    Rejected,
)
from ebbtide.featurestore.files import kernels
from ebbtide.featurestore.files.block import Block, BlockReader
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import TimeReader

_EXACT_MAX = 1 << 53
_UNKNOWN, _NO_TYPE = -1, -2

Judge = Callable[[object], float | None]
"""The number that a value is, None where it is missing; raises Refusal."""


@dataclass(frozen=True, slots=True)
class Part:
    """The n events of a block, in the block's order, and what of it is none.

    index: int64[n], which row of the block; users: Arrow text; kind: uint8[n]; time, stated: int64[n], ms UTC, as
    stamped and as the event says; value: float64[n], NaN where missing; ids: Arrow text, '' where there is none, or
    None where no event has one; rejected: by row; ignored: how many; unknown: rows by type that no kind covers."""

    index: NDArray[np.int64]
    users: Any
    kind: NDArray[np.uint8]
    time: NDArray[np.int64]
    stated: NDArray[np.int64]
    value: NDArray[np.float64]
    ids: Any
    rejected: list[Rejected]
    ignored: int
    unknown: Counter[str]

    def __len__(self) -> int:
        return len(self.index)

    def take(self, keep: NDArray[np.int64]) -> "Part":
        """Some of the events, by index into them."""
        chosen = pa.array(keep)
        return Part(
            self.index[keep], self.users.take(chosen), self.kind[keep], self.time[keep], self.stated[keep],
            self.value[keep], None if self.ids is None else self.ids.take(chosen), self.rejected, self.ignored,
            self.unknown,
        )  # fmt: skip


class FastReader:
    """Reads the blocks of one file under one spec."""

    def __init__(self, spec: Spec, source: BlockReader) -> None:
        self._spec, self._text = spec, source.text
        self._judge = ColumnReader(spec, mapping=source.mapping, text=source.text)
        self._times = TimeReader(source.mapping.ts_format, digits=source.text)
        self._kind_of_type = spec.kind_of_type
        self._day_end = np.array([kind.stamp == "day_end" for kind in spec.kinds])

    def read(self, block: Block) -> Part:
        """Every row of the block: as an event, rejected, or ignored."""
        columns, n = block.columns, len(block)
        sure = np.ones(n, np.bool_) if block.odd is None else ~block.odd
        users, users_sure = _texts(columns["user_id"], n)
        length = pc.fill_null(pc.utf8_length(users), 0).to_numpy(zero_copy_only=False)
        sure &= users_sure & (length >= 1) & (length <= USER_ID_CHARS_MAX)
        code, types = self._codes(columns["type"], n)
        stated, times_sure = read_times(columns["ts"], self._times, n)
        sure &= times_sure & (stated >= TIME_MS_MIN) & (stated <= TIME_MS_MAX) & (code >= 0)
        ids, ids_sure = _texts(columns["event_id"], n) if "event_id" in columns else (None, sure)
        value, values_sure = self._values(columns, code, sure & ids_sure)
        sure &= ids_sure & values_sure
        unknown = np.flatnonzero(code == _UNKNOWN)
        index = np.flatnonzero(sure)
        chosen = pa.array(index)
        kind = code[index].astype(np.uint8)
        stated = stated[index]
        part = Part(
            index=index,
            users=users.take(chosen),
            kind=kind,
            time=self._stamped(kind, stated),
            stated=stated,
            value=value[index],
            ids=None if ids is None or ids.null_count == n else pc.fill_null(ids.take(chosen), ""),
            rejected=[],
            ignored=0,
            unknown=Counter(),
        )
        doubtful = np.flatnonzero(~sure & (code != _UNKNOWN))
        if not len(doubtful) and not len(unknown):
            return part
        return self._with_judged(part, block, doubtful, unknown, types)

    def _stamped(self, kind: NDArray[np.uint8], stated: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(self._day_end[kind], stated // DAY_MS * DAY_MS + (DAY_MS - 1), stated)

    def _with_judged(
        self, part: Part, block: Block, doubtful: NDArray[np.int64], unknown: NDArray[np.int64], types: Any
    ) -> Part:
        """The part, and what the judge makes of the rows that are not surely events."""
        judged = self._judge.read(block.rows(doubtful))
        rejected = [Rejected(int(doubtful[r.index]), r.reason, r.detail) for r in judged.rejected]
        ignored = len(judged.ignored)
        if self._spec.unknown == "ignore":
            ignored += len(unknown)
        else:
            detail = "no kind of the spec covers this event type"
            rejected += [Rejected(row, Reason.UNKNOWN_TYPE, detail) for row in unknown.tolist()]
        names = Counter(judged.unknown)
        for count in pc.value_counts(types.take(pa.array(unknown))).to_pylist() if len(unknown) else []:
            names[count["values"]] += count["counts"]
        index = np.concatenate([part.index, doubtful[judged.index]])
        order = np.argsort(index)
        ids = None
        if part.ids is not None or judged.ids is not None:
            own = pa.array([""] * len(part), pa.string()) if part.ids is None else part.ids
            ids = pa.concat_arrays([own, pa.array(judged.ids or [""] * len(judged), pa.string())])
        joined = Part(
            index=index,
            users=pa.concat_arrays([part.users, pa.array(judged.users, pa.string())]),
            kind=np.concatenate([part.kind, judged.kind]),
            time=np.concatenate([part.time, judged.time]),
            stated=np.concatenate([part.stated, judged.stated]),
            value=np.concatenate([part.value, judged.value]),
            ids=ids,
            rejected=rejected,
            ignored=ignored,
            unknown=names,
        )
        return joined.take(order)

    def _codes(self, column: Any, n: int) -> tuple[NDArray[np.int64], Any]:
        """Each row's kind, _UNKNOWN for a type of none, _NO_TYPE where there is no type."""
        types, sure = _texts(column, n)
        encoded = pc.dictionary_encode(types)
        codes = [
            self._kind_of_type.get(name, _UNKNOWN) if name else _NO_TYPE
            for name in encoded.dictionary.to_pylist()
        ]
        of = np.array([*codes, _NO_TYPE], np.int64)
        index = pc.fill_null(encoded.indices, len(codes)).to_numpy(zero_copy_only=False)
        return np.where(sure, of[index], _NO_TYPE), types

    def _values(
        self, columns: dict[str, Any], code: NDArray[np.int64], sure: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """float64[n], and which of the rows that are sure so far still are."""
        value, sure = np.full(len(code), np.nan), sure.copy()
        read = {name: _Values(column, text=self._text) for name, column in columns.items()
                if name == "value" or name.startswith("properties.")}  # fmt: skip
        if "value" in read and not self._text:
            sure &= read["value"].within_contract()
        for number, kind in enumerate(self._spec.kinds):
            own = np.flatnonzero(sure & (code == number))
            if not len(own):
                continue
            if "value" in read and not self._text and kind.attribute not in ("category", "date"):
                sure[own] &= ~read["value"].is_text[own]
            if kind.value is None or kind.value not in read:
                continue
            texts_too = self._text or kind.attribute in ("category", "date")
            judge = partial(self._judge.value_of, number)
            value[own], good = read[kind.value].of_kind(own, judge, kind.attribute, texts_too=texts_too)
            sure[own] &= good
        return value, sure


class _Values:
    """One column of values: numbers, texts, and what is neither."""

    def __init__(self, column: Any, *, text: bool) -> None:
        self.text = text
        n = len(column)
        self.numbers = np.full(n, np.nan)
        self.is_text = self.is_number = self.is_odd = np.zeros(n, np.bool_)
        self.texts = pa.nulls(n, pa.string())
        if isinstance(column, list):
            kinds = [type(value) for value in column]
            self.is_text = np.array([kind is str for kind in kinds], np.bool_)
            self.is_number = np.array([kind is int or kind is float for kind in kinds], np.bool_)
            self.is_odd = np.array([value is not None for value in column]) & ~self.is_text & ~self.is_number
            self.texts = pa.array([value if type(value) is str else None for value in column], pa.string())
            self.numbers[self.is_number] = np.array(
                [v for v, number in zip(column, self.is_number, strict=True) if number], np.float64
            )
            return
        there = column.is_valid().to_numpy(zero_copy_only=False)
        if pa.types.is_string(column.type):
            self.texts, self.is_text = column, there
        elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            self.is_number = there
            self.numbers = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        else:
            self.is_odd = there

    def within_contract(self) -> NDArray[np.bool_]:
        """Whether each is what the contract takes as a value: missing, text, or a bounded number."""
        within: NDArray[np.bool_] = ~self.is_odd & (~self.is_number | (np.abs(self.numbers) <= VALUE_MAX))
        return within

    def of_kind(
        self,
        rows: NDArray[np.int64],
        judge: Judge,
        attribute: str | None,
        *,
        texts_too: bool,
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The values of some rows as a kind keeps them, and which are surely so."""
        numbers = self.numbers[rows]
        good = np.ones(len(rows), np.bool_)
        numeric = self.is_number[rows]
        if attribute == "category":
            good &= ~numeric  # 7 or 7.0: only the row itself tells
        if attribute == "date":
            numbers = np.where(numeric, numbers / DAY_MS, numbers)
        with np.errstate(invalid="ignore"):
            good &= ~numeric | (np.abs(numbers) <= VALUE_MAX)
        good &= ~self.is_odd[rows]
        if not texts_too:
            return numbers, good & ~self.is_text[rows]
        textual = np.flatnonzero(self.is_text[rows])
        if len(textual):
            texts = self.texts.take(pa.array(rows[textual]))
            if attribute in ("category", "date"):
                read, sure = np.zeros(len(textual)), np.zeros(len(textual), np.bool_)
            else:
                read, sure = kernels.read_decimals(texts)
            numbers[textual], good[textual] = _rest(texts, read, sure, _numbers_by(judge))
        return numbers, good


def read_times(column: Any, reader: TimeReader, n: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """int64[n] in ms UTC, and which of them surely are what the reader would say; of a column's Arrow array or list."""
    if isinstance(column, list):
        known = np.array([type(value) in (int, float, str) for value in column], np.bool_)
        times, bad = reader.read(column)
        known[bad] = False
        return times, known
    kind = column.type
    if pa.types.is_string(kind):
        if reader.scale is None:
            times, sure = np.zeros(n, np.int64), np.zeros(n, np.bool_)
        else:
            times, state = kernels.read_times(column)
            sure = (state == kernels.ISO) & reader.reads_iso
            if reader.reads_digits:
                digits = state == kernels.DIGITS
                times, fits = _scaled(times, reader.scale, digits)
                sure |= fits
    elif pa.types.is_integer(kind) and not pa.types.is_uint64(kind) and reader.scale is not None:
        whole = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        times, sure = _scaled(whole, reader.scale, column.is_valid().to_numpy(zero_copy_only=False))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        times, sure = np.zeros(n, np.int64), np.zeros(n, np.bool_)
    else:
        return np.zeros(n, np.int64), np.zeros(n, np.bool_)
    return _rest(column, times, sure, lambda values: _times_by(reader, values))


def _scaled(
    whole: NDArray[np.int64], scale: tuple[int, int], which: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    times, over = scale
    most = _EXACT_MAX // times
    fits = which & (whole <= most) & (whole >= -most) if times > 1 else which
    return np.where(fits, whole * times // over, whole), fits


def _times_by(reader: TimeReader, values: list[object]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    times, bad = reader.read(values)
    good = np.ones(len(values), np.bool_)
    good[bad] = False
    return times, good


def _numbers_by(
    judge: Judge,
) -> Callable[[list[object]], tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    def read(values: list[object]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        numbers, good = np.full(len(values), np.nan), np.zeros(len(values), np.bool_)
        for i, value in enumerate(values):
            try:
                number = judge(value)
            except Refusal:
                continue
            numbers[i], good[i] = np.nan if number is None else number, True
        return numbers, good

    return read


def _rest(
    column: Any, read: Any, sure: Any, judge: Callable[[list[object]], tuple[Any, Any]]
) -> tuple[Any, Any]:
    """What is not sure yet, judged once for each different value."""
    rest = np.flatnonzero(~sure & column.is_valid().to_numpy(zero_copy_only=False))
    if len(rest):
        encoded = pc.dictionary_encode(column.take(pa.array(rest)))
        found, good = judge(encoded.dictionary.to_pylist())
        index = encoded.indices.to_numpy()
        read, sure = read.copy(), sure.copy()
        read[rest], sure[rest] = found[index], good[index]
    return read, sure


def _texts(column: Any, n: int) -> tuple[Any, NDArray[np.bool_]]:
    """The column as text, and which rows hold text or nothing; where it is of another type, no row is sure."""
    if not isinstance(column, list) and pa.types.is_string(column.type):
        return column, np.ones(n, np.bool_)
    return pa.nulls(n, pa.string()), np.zeros(n, np.bool_)
