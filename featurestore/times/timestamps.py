"""Instants: read as producers and operators write them, written for people; milliseconds since 1970 UTC inside.

    auto             RFC 3339 text (UTC where it has no offset), or whole milliseconds as a number
    s, ms, us, ns    seconds, milliseconds, ... since 1970, as a number or as digits
    else             a strptime format such as %Y%m%d; UTC unless the format reads an offset; %I and %p together only,
                     since %H beside %p would read 8 PM as 8 in the morning
    unit, origin     numbers (or digits) of some unit since some time, such as days since 2016-01-01

Fractions of a millisecond are cut off, so that an event never moves into the next millisecond. This module knows no
range: a date of 1900 is a negative number here, and whoever asked decides whether it may be one. No reading depends
on the machine: of the names that %Z reads, only those of UTC are taken, since Python's %Z takes the names of the zone
that the machine happens to be in.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.times.durations import DAY_MS, format_duration

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS_PER_UNIT = {  # numerator, denominator
    "auto": (1, 1), "ms": (1, 1), "s": (1000, 1), "us": (1, 1000), "ns": (1, 1_000_000),
}  # fmt: skip
_FAR_MS = 1 << 62
"""Stands for every time too far away for 64 bits: outside of any range, and still a number."""
DISTINCT_MAX = 1 << 16
"""strptime takes 5 µs a text; dates repeat, so the last 65,536 different ones are remembered."""
_UTC_NAMES = ("UTC", "GMT", "Z")
_DIGITS = {"Y": 4, "j": 3, **dict.fromkeys("ymdHIMS", 2)}
_RUN = re.compile(rf"(?:%[{''.join(_DIGITS)}]){{2,}}")
"""Parts of a time that are digits, without anything between them."""
_FINER = re.compile(r"([.,]\d{6})\d+")
"""Databases write up to nine digits of a second, %f reads six."""
_ZONE_NAME = re.compile(r"(?<!%)((?:%%)*)%Z")


class TimeReader:
    """Reads the times of one field. Instances keep a bounded memory of texts, nothing else.

    `scale`: milliseconds a unit as (numerator, denominator), None for a strptime format; `origin_ms`: since when.
    `reads_digits`: digits in text are a number. `reads_iso`: RFC 3339 text is a time."""

    def __init__(
        self, ts_format: str, *, digits: bool = False, unit_ms: int | None = None, origin_ms: int = 0
    ) -> None:
        """`digits`: digits in text are a number in every format, as in a CSV file, where all is text. `unit_ms`: times
        are numbers of so many ms since `origin_ms`, and `ts_format` is not looked at.

        Raises SpecError for a format that is none."""
        if ts_format not in _MS_PER_UNIT and "%" not in ts_format:
            raise SpecError(
                f"mapping.ts_format {ts_format!r} is not a time format",
                hint="write auto, s, ms, us, ns, or a strptime format such as %Y%m%d",
            )
        if ts_format not in _MS_PER_UNIT:
            _refuse_format(ts_format)
        self._format, self._unit_ms, self.origin_ms = ts_format, unit_ms, origin_ms
        self.reads_digits = digits or ts_format != "auto" or unit_ms is not None
        self.reads_iso = ts_format == "auto" and unit_ms is None
        self.scale = _MS_PER_UNIT.get(ts_format) if unit_ms is None else (unit_ms, 1)
        self._run_together = _run_together(ts_format)
        self._strptime = lru_cache(maxsize=DISTINCT_MAX)(self._strptime_ms)

    @property
    def words(self) -> str:
        """What this reader takes, for messages."""
        if self._unit_ms is not None:
            return f"a number of {format_duration(self._unit_ms)} since {format_date(self.origin_ms)}"
        if self.scale is None:
            zone = ", its zone as UTC, GMT or Z (%z reads offsets)" if _ZONE_NAME.search(self._format) else ""
            return f"a date in the form {self._format}{zone}"
        return {
            "auto": "RFC 3339 text or a whole number of milliseconds since 1970",
            "s": "seconds since 1970", "ms": "milliseconds since 1970", "us": "microseconds since 1970",
            "ns": "nanoseconds since 1970",
        }[self._format]  # fmt: skip

    def read(self, raw: Sequence[object]) -> tuple[NDArray[np.int64], list[int]]:
        """int64[n] in ms UTC, and the indices of what is no time in this format (0 there)."""
        try:
            if self.scale == (1, 1) and not self.origin_ms and set(map(type, raw)) == {int}:
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
        if self.scale is None:
            return self._strptime(str(value))
        if type(value) is str:
            if self.reads_digits and value.replace(".", "", 1).isdecimal():
                value = float(value) if "." in value else int(value[:400])
            elif self.reads_iso:
                return iso_ms(value)
        times, over = self.scale
        if type(value) is int:
            return max(-_FAR_MS, min(value * times // over + self.origin_ms, _FAR_MS))
        if type(value) is float:
            if times == over and not value.is_integer():
                raise ValueError(value)
            # round() first: 1.001 s is 1000.9999999999999 in binary and still means 1001 ms.
            ms = round(max(-_FAR_MS, min(value * times / over, _FAR_MS)), 3) // 1
            return max(-_FAR_MS, min(int(ms) + self.origin_ms, _FAR_MS))
        raise ValueError(value)

    def _strptime_ms(self, text: str) -> int:
        if not self._run_together.fullmatch(text):
            raise ValueError(text)
        try:
            return epoch_ms(_strptime(text, self._format))
        except ValueError:
            if "%f" not in self._format:
                raise
            return epoch_ms(_strptime(_FINER.sub(r"\1", text), self._format))


def iso_ms(text: str) -> int:
    """Milliseconds of RFC 3339 text: a date, or date and time, with dashes; UTC where it has no offset,
    or ends in ` UTC` (BigQuery's exports). A blank may stand before the offset (Snowflake's and Shopify's).

    Raises ValueError, also for a date with an offset, as XML has it: to Python its offset would be the time of day."""
    if text[4:5] != "-":
        raise ValueError(text)  # 20240101 would be a date to Python, and is more likely a number
    text = text if text.isupper() else text.upper()
    before, blank, offset = text.rpartition(" ")
    if blank and offset[:1] in ("+", "-"):
        text = before + offset
    if text[10:11] in ("+", "-"):
        raise ValueError(text)
    moment = datetime.fromisoformat(text.removesuffix(" UTC"))
    if text.endswith(" UTC") and moment.utcoffset():
        raise ValueError(text)  # two offsets
    return epoch_ms(moment)


def iso_days(text: str) -> float:
    """Days since 1970 of ISO 8601 text, to the microsecond; UTC where it has no offset. Raises ValueError, also where
    Python would take an offset for the time of day, or the digits of a number for a date of another century."""
    if (text[4:5] == "-" and text[10:11] in ("+", "-")) or (
        text.isdecimal() and len(text) != len("20260131")
    ):
        raise ValueError(text)
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.timestamp() * 1000 / DAY_MS


def instant(ms: int) -> datetime:
    """Milliseconds since 1970 as a datetime in UTC. Raises OverflowError before the year 1 and beyond 9999."""
    return _EPOCH + timedelta(milliseconds=ms)


def format_time(ms: int) -> str:
    """The instant to the second: '2026-03-01T12:00:00+00:00'."""
    return instant(ms).isoformat(timespec="seconds")


def format_date(ms: int) -> str:
    """The UTC date of an instant: '2026-03-01'."""
    return instant(ms).date().isoformat()


def _refuse_format(ts_format: str) -> None:
    """Raises SpecError for a strptime format that no text fits, or whose hours would be read half a day off."""
    try:
        datetime.strptime("", _ZONE_NAME.sub(r"\g<1>UTC", ts_format))  # noqa: DTZ007 - nothing is read
    except re.error:
        raise SpecError(
            f"mapping.ts_format {ts_format!r} has the same part twice",
            hint="each of %Y, %m, %d, ... stands once",
        ) from None
    except ValueError as error:
        if "directive" in str(error) or "stray" in str(error):
            raise SpecError(
                f"mapping.ts_format {ts_format!r}: {error}",
                hint="it is Python's strptime that reads: %d takes 1 and 01 alike; seconds since 1970 are ts_format: s",
            ) from None
    parts = set(re.findall("%(.)", ts_format))
    if ("p" in parts) != ("I" in parts):
        raise SpecError(
            f"mapping.ts_format {ts_format!r}: %I (hours to 12) and %p (AM or PM) stand together or not at all: "
            "read with %H, PM says nothing",
            hint="write %I:%M %p, or %H:%M for hours to 24",
        )


def _run_together(ts_format: str) -> re.Pattern[str]:
    """What a text must look like where digits stand without anything between: 02012026 that went through a number is
    2012026, and strptime, which takes a digit for two, reads the 20th."""
    runs = [sum(_DIGITS[directive] for directive in run[1::2]) for run in _RUN.findall(ts_format)]
    between = [".+" if part else "" for part in _RUN.split(ts_format)]
    pattern = "".join(f"{part}[0-9]{{{digits}}}" for part, digits in zip(between, runs, strict=False))
    return re.compile(pattern + between[-1], re.DOTALL)


def _strptime(text: str, ts_format: str) -> datetime:
    """strptime whose %Z takes the names of UTC alone, on every machine. Raises ValueError."""
    if not _ZONE_NAME.search(ts_format):
        return datetime.strptime(text, ts_format)  # noqa: DTZ007 - `epoch_ms` takes a time without offset as UTC
    for name in _UTC_NAMES:
        try:
            return datetime.strptime(text, _ZONE_NAME.sub(rf"\g<1>{name}", ts_format))  # noqa: DTZ007 - UTC, it says
        except ValueError:
            continue
    raise ValueError(text)


def epoch_ms(moment: datetime) -> int:
    """Milliseconds since 1970 of a datetime, fractions cut off; UTC where it has no offset."""
    passed = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return passed.days * DAY_MS + passed.seconds * 1000 + passed.microseconds // 1000
