"""Event times as producers write them, to milliseconds since 1970 UTC.

    auto        RFC 3339 text (UTC where it has no offset), or whole milliseconds as a number
    s, ms, us   seconds, milliseconds, microseconds since 1970, as a number or as digits
    else        a strptime format such as %Y%m%d; UTC unless the format reads an offset

Fractions of a millisecond are cut off, so that an event never moves into the next millisecond. This module knows no
range: a date of 1900 is a negative number here, and whoever asked decides whether it may be one.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.times.durations import DAY_MS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS_PER_UNIT = {"auto": (1, 1), "ms": (1, 1), "s": (1000, 1), "us": (1, 1000)}  # numerator, denominator
_FAR_MS = 1 << 62
"""Stands for every time too far away for 64 bits: outside of any range, and still a number."""
DISTINCT_MAX = 1 << 16
"""strptime takes 5 µs a text; dates repeat, so the last 65,536 different ones are remembered."""


class TimeReader:
    """Reads the times of one field. Instances keep a bounded memory of texts, nothing else.

    `digits`: digits in text are a number in every format, as in a CSV file, where all is text."""

    def __init__(self, ts_format: str, *, digits: bool = False) -> None:
        """Raises SpecError for a format that is none."""
        if ts_format not in _MS_PER_UNIT and "%" not in ts_format:
            raise SpecError(
                f"mapping.ts_format {ts_format!r} is not a time format",
                hint="write auto, s, ms, us, or a strptime format such as %Y%m%d",
            )
        self._format = ts_format
        self._digits = digits or ts_format != "auto"
        self._ms_per_unit = _MS_PER_UNIT.get(ts_format)
        self._strptime = lru_cache(maxsize=DISTINCT_MAX)(self._strptime_ms)

    @property
    def words(self) -> str:
        """What this reader takes, for messages."""
        if self._ms_per_unit is None:
            return f"a date in the form {self._format}"
        return {
            "auto": "RFC 3339 text or a whole number of milliseconds since 1970",
            "s": "seconds since 1970", "ms": "milliseconds since 1970", "us": "microseconds since 1970",
        }[self._format]  # fmt: skip

    def read(self, raw: Sequence[object]) -> tuple[NDArray[np.int64], list[int]]:
        """int64[n] in ms UTC, and the indices of what is no time in this format (0 there)."""
        try:
            if self._ms_per_unit == (1, 1) and set(map(type, raw)) == {int}:
                return np.array(raw, np.int64), []
            return np.array([self._one(value) for value in raw], np.int64), []
        except (ValueError, OverflowError):
            return self._one_by_one(raw)

    def _one_by_one(self, raw: Sequence[object]) -> tuple[NDArray[np.int64], list[int]]:
        times, bad = np.zeros(len(raw), np.int64), []
        for i, value in enumerate(raw):
            try:
                times[i] = self._one(value)
            except ValueError:
                bad.append(i)
        return times, bad

    def _one(self, value: object) -> int:
        """Milliseconds. Raises ValueError."""
        if self._ms_per_unit is None:
            return self._strptime(str(value))
        if type(value) is str:
            if self._digits and value.replace(".", "", 1).isdecimal():
                value = float(value) if "." in value else int(value[:400])
            elif self._format == "auto":
                return iso_ms(value)
        times, over = self._ms_per_unit
        if type(value) is int:
            return max(-_FAR_MS, min(value * times // over, _FAR_MS))
        if type(value) is float:
            if times == over and not value.is_integer():
                raise ValueError(value)
            # round() first: 1.001 s is 1000.9999999999999 in binary and still means 1001 ms.
            return int(round(max(-_FAR_MS, min(value * times / over, _FAR_MS)), 3) // 1)
        raise ValueError(value)

    def _strptime_ms(self, text: str) -> int:
        return _ms(datetime.strptime(text, self._format))  # noqa: DTZ007 - _ms takes a time without offset as UTC


def iso_ms(text: str) -> int:
    """Milliseconds of RFC 3339 text: a date, or date and time, with dashes. Raises ValueError."""
    if text[4:5] != "-":
        raise ValueError(text)  # 20240101 would be a date to Python, and is more likely a number
    return _ms(datetime.fromisoformat(text if text.isupper() else text.upper()))


def _ms(moment: datetime) -> int:
    passed = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return passed.days * DAY_MS + passed.seconds * 1000 + passed.microseconds // 1000
