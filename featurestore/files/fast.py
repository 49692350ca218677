"""Blocks of columns to events, whole columns at a time.

What is surely an event is read here; every other row goes to its own reader (`events/columns.py`), which is the one
judge of what an event is, for files as for the stream, and says what is wrong. The invariant: nothing is read here
that the judge would refuse, and no bit of it is another than the judge's
(`tests/unit/featurestore/test_fast_path.py` compares them on random tables).
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ebbtide.featurestore.customer import SEPARATOR
from ebbtide.featurestore.events.columns import ColumnReader, Columns, time_reader
from ebbtide.featurestore.events.contract import (
    TIME_MS_MAX,
    TIME_MS_MIN,
    USER_ID_CHARS_MAX,
    Reason,
    Rejected,
)
from ebbtide.featurestore.files.block import Block, BlockReader
from ebbtide.featurestore.files.values import Values, read_times, texts
from ebbtide.featurestore.kinds import TEXTUAL
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS

_UNKNOWN, _NO_TYPE = -1, -2


@dataclass(frozen=True, slots=True)
class Part:
    """The n events of a block, in the block's order, and what of it is none.

    index: int64[n], which row of the block; users: Arrow text; kind: uint8[n]; time, stated: int64[n], ms UTC, as
    stamped and as the event says; value: float64[n, C], NaN where missing; ids: Arrow text, '' where there is none, or
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
        self._judge = ColumnReader(spec, mapping=source.mapping, composite=source.composite, text=source.text)
        self._customer = tuple(spec.customer_fields)
        self._times = time_reader(source.mapping, digits=source.text)
        self._kind_of_type = spec.kind_of_type
        self._day_end = np.array([kind.stamp == "day_end" for kind in spec.kinds])

    def read(self, block: Block) -> Part:
        """Every row of the block: as an event, rejected, or ignored."""
        columns, n = block.columns, len(block)
        sure = np.ones(n, np.bool_) if block.odd is None else ~block.odd
        users, users_sure = self._users(columns, n)
        length = pc.fill_null(pc.utf8_length(users), 0).to_numpy(zero_copy_only=False)
        sure &= users_sure & (length >= 1) & (length <= USER_ID_CHARS_MAX)
        code, types = self._codes(columns["type"], n)
        stated, times_sure = read_times(columns["ts"], self._times, n)
        sure &= times_sure & (stated >= TIME_MS_MIN) & (stated <= TIME_MS_MAX) & (code >= 0)
        ids, ids_sure = texts(columns["event_id"], n) if "event_id" in columns else (None, sure)
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

    def _users(self, columns: dict[str, Any], n: int) -> tuple[Any, NDArray[np.bool_]]:
        """Customers, and which of them are surely so."""
        users, sure = texts(columns[self._customer[0]], n)
        if len(self._customer) == 1:
            return users, sure
        parts = []
        for name in self._customer:
            part, known = texts(columns[name], n)
            sure = sure & known & (pc.fill_null(pc.utf8_length(part), 0).to_numpy(zero_copy_only=False) >= 1)
            for plain, written in (("~", "~0"), (SEPARATOR, "~1")):  # as `customer.join`
                if pc.any(pc.match_substring(part, plain)).as_py():
                    part = pc.replace_substring(part, plain, written)
            parts.append(part)
        return pc.binary_join_element_wise(*parts, SEPARATOR), sure

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
            value=np.concatenate([part.value, _values_of(judged)]),
            ids=ids,
            rejected=rejected,
            ignored=ignored,
            unknown=names,
        )
        return joined.take(order)

    def _codes(self, column: Any, n: int) -> tuple[NDArray[np.int64], Any]:
        """Each row's kind, _UNKNOWN for a type of none, _NO_TYPE where there is no type."""
        types, sure = texts(column, n)
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
        """float64[n, C], and which of the rows that are sure so far still are."""
        value, sure = np.full((len(code), self._spec.value_columns), np.nan), sure.copy()
        read = {name: Values(column, text=self._text) for name, column in columns.items()
                if name == "value" or name.startswith("properties.")}  # fmt: skip
        if "value" in read and not self._text:
            sure &= read["value"].within_contract()
        for number, kind in enumerate(self._spec.kinds):
            own = np.flatnonzero(sure & (code == number))
            if not len(own):
                continue
            if "value" in read and not self._text and not kind.takes_text:
                sure[own] &= ~read["value"].is_text[own]
            for c, reading in enumerate(kind.readings):
                if reading.path not in read:
                    continue
                texts_too = self._text or reading.reads in TEXTUAL
                judge = partial(self._judge.value_of, number, c=c)
                value[own, c], good = read[reading.path].of_kind(
                    own, judge, reading.reads, texts_too=texts_too
                )
                sure[own] &= good
        return value, sure


def _values_of(judged: Columns) -> NDArray[np.float64]:
    first = judged.value[:, None]
    return first if judged.more is None else np.concatenate([first, judged.more], axis=1)
