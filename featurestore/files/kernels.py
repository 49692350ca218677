"""Times and numbers out of text, a whole column a call; compiled.

They read the common spellings and no other: what is not surely one of them is left at 0 (UNSURE) for the row's own
reader (`events/columns.py`, `times/timestamps.py`), which is the judge of what may be said and gives the same bits
for what is read here. A column comes as Arrow keeps it: UTF-8 bytes, int64 offsets, and which rows are there at all.
"""

from typing import Any

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

UNSURE, ISO, DIGITS = 0, 1, 2
_POWERS = 10.0 ** np.arange(16)


def buffers(column: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.bool_]]:
    """Bytes, offsets (n + 1) and presence of a column of text."""
    column = column.cast(pa.large_string())
    _, offsets, data = column.buffers()
    where = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    text = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    return text, where, np.asarray(column.is_valid().to_numpy(zero_copy_only=False), np.bool_)


def read_times(column: Any) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """int64[n] and what it is: ISO (ms UTC of a date, or date and time), DIGITS (the whole number), UNSURE."""
    data, offsets, present = buffers(column)
    times, state = np.zeros(len(present), np.int64), np.zeros(len(present), np.uint8)
    _times(data, offsets, present, times, state)
    return times, state


def read_decimals(column: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """float64[n] and whether it is surely the number written: at most 15 digits, no exponent."""
    data, offsets, present = buffers(column)
    numbers, sure = np.zeros(len(present), np.float64), np.zeros(len(present), np.bool_)
    _decimals(data, offsets, present, _POWERS, numbers, sure)
    return numbers, sure


@numba.njit(cache=True, nogil=True)
def _number(data, start, end):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
    """The whole number written in ASCII digits, -1 where anything else is."""
    if start >= end:
        return -1
    number = np.int64(0)
    for i in range(start, end):
        digit = np.int64(data[i]) - 48
        if digit < 0 or digit > 9:
            return -1
        number = number * 10 + digit
    return number


@numba.njit(cache=True, nogil=True)
def _days(year, month, day):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
    """Days from 1970-01-01 to a date of the proleptic Gregorian calendar (Howard Hinnant's days_from_civil)."""
    y = year - 1 if month <= 2 else year
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


@numba.njit(cache=True, nogil=True)
def _iso(data, start, end):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
    """(ms, True) of YYYY-MM-DD[(T| )HH:MM[:SS[.f{1,9}]][Z|+HH:MM]], else (0, False)."""
    length = end - start
    if length < 10 or data[start + 4] != 45 or data[start + 7] != 45:
        return 0, False
    year = _number(data, start, start + 4)
    month = _number(data, start + 5, start + 7)
    day = _number(data, start + 8, start + 10)
    if year < 1 or month < 1 or month > 12 or day < 1:
        return 0, False
    long_month = month in (1, 3, 5, 7, 8, 10, 12)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if day > (31 if long_month else (30 if month != 2 else (29 if leap else 28))):
        return 0, False
    ms = _days(year, month, day) * 86_400_000
    if length == 10:
        return ms, True
    if length < 16 or data[start + 10] not in (84, 116, 32) or data[start + 13] != 58:
        return 0, False
    hour = _number(data, start + 11, start + 13)
    minute = _number(data, start + 14, start + 16)
    if hour < 0 or hour > 23 or minute < 0 or minute > 59:
        return 0, False
    ms += hour * 3_600_000 + minute * 60_000
    at = start + 16
    if at < end and data[at] == 58:
        second = _number(data, at + 1, at + 3) if at + 3 <= end else -1
        if second < 0 or second > 59:
            return 0, False
        ms += second * 1000
        at += 3
        if at < end and data[at] == 46:
            first = at + 1
            at = first
            while at < end and 48 <= data[at] <= 57:
                at += 1
            if at == first or at - first > 9:
                return 0, False
            scale = 100
            for i in range(first, min(at, first + 3)):
                ms += (np.int64(data[i]) - 48) * scale
                scale //= 10
    if at == end:
        return ms, True
    if data[at] in (90, 122):
        return ms, at + 1 == end
    if data[at] not in (43, 45) or end - at != 6 or data[at + 3] != 58:
        return 0, False
    hours = _number(data, at + 1, at + 3)
    minutes = _number(data, at + 4, at + 6)
    if hours < 0 or hours > 23 or minutes < 0 or minutes > 59:
        return 0, False
    offset = hours * 3_600_000 + minutes * 60_000
    return (ms - offset if data[at] == 43 else ms + offset), True


@numba.njit(cache=True, nogil=True)
def _times(data, offsets, present, times, state):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
    for row in range(len(present)):
        if not present[row]:
            continue
        start, end = offsets[row], offsets[row + 1]
        if end - start <= 18:
            digits = _number(data, start, end)
            if digits >= 0:
                times[row], state[row] = digits, 2
                continue
        ms, is_time = _iso(data, start, end)
        if is_time:
            times[row], state[row] = ms, 1


@numba.njit(cache=True, nogil=True)
def _decimals(data, offsets, present, powers, numbers, sure):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
    """At most 15 digits are a whole number below 2^53 over a power of ten below 10^16: both are exact doubles, so the
    quotient is the double nearest to what is written (Clinger)."""
    for row in range(len(present)):
        start, end = offsets[row], offsets[row + 1]
        if not present[row] or start == end:
            continue
        minus = data[start] == 45
        at = start + 1 if minus else start
        point = end
        for i in range(at, end):
            if data[i] == 46:
                point = i
                break
        decimals = max(0, end - point - 1)
        if point == at or (point < end and decimals == 0) or point - at + decimals > 15:
            continue
        whole = _number(data, at, point)
        part = _number(data, point + 1, end) if decimals else 0
        if whole < 0 or part < 0:
            continue
        number = (whole * powers[decimals] + part) / powers[decimals]
        numbers[row], sure[row] = (-number if minus else number), True
