"""One column of a block as times, numbers or text: what is surely read, and which rows are.

The common spellings are read whole columns at a time (`kernels.py`). Any other value is judged once for all the rows
that repeat it, by the very function that would judge it in a row. What is not sure then is the row's own business.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ebbtide.featurestore.aggregations import Reads
from ebbtide.featurestore.events.columns import Refusal
from ebbtide.featurestore.events.contract import VALUE_MAX
from ebbtide.featurestore.files import kernels
from ebbtide.featurestore.kinds import TEXTUAL
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import TimeReader

_EXACT_MAX = 1 << 53

Judge = Callable[[object], float | None]
"""The number that a value is, None where it is missing; raises Refusal."""


class Values:
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
        reads: Reads,
        *,
        texts_too: bool,
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The values of some rows as a kind keeps them, and which are surely so."""
        numbers = self.numbers[rows]
        good = np.ones(len(rows), np.bool_)
        numeric = self.is_number[rows]
        if reads in ("category", "text"):
            good &= ~numeric  # 7 or 7.0: only the row itself tells
        if reads == "date":
            numbers = np.where(numeric, numbers / DAY_MS, numbers)
        with np.errstate(invalid="ignore"):
            good &= ~numeric | (np.abs(numbers) <= VALUE_MAX)
        good &= ~self.is_odd[rows]
        if not texts_too:
            return numbers, good & ~self.is_text[rows]
        textual = np.flatnonzero(self.is_text[rows])
        if len(textual):
            texts = self.texts.take(pa.array(rows[textual]))
            if reads in TEXTUAL:
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
                times, fits = _scaled(times, reader, digits)
                sure |= fits
    elif pa.types.is_integer(kind) and not pa.types.is_uint64(kind) and reader.scale is not None:
        whole = pc.fill_null(column, 0).to_numpy(zero_copy_only=False)
        times, sure = _scaled(whole, reader, column.is_valid().to_numpy(zero_copy_only=False))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        times, sure = np.zeros(n, np.int64), np.zeros(n, np.bool_)
    else:
        return np.zeros(n, np.int64), np.zeros(n, np.bool_)
    return _rest(column, times, sure, lambda values: _times_by(reader, values))


def _scaled(
    whole: NDArray[np.int64], reader: TimeReader, which: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    assert reader.scale is not None
    times, over = reader.scale
    most = _EXACT_MAX // times
    fits = which & (whole <= most) & (whole >= -most) if times > 1 else which
    return np.where(fits, whole * times // over + reader.origin_ms, whole), fits


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


def texts(column: Any, n: int) -> tuple[Any, NDArray[np.bool_]]:
    """The column as text, and which rows hold text or nothing; where it is of another type, no row is sure."""
    if not isinstance(column, list) and pa.types.is_string(column.type):
        return column, np.ones(n, np.bool_)
    return pa.nulls(n, pa.string()), np.zeros(n, np.bool_)
