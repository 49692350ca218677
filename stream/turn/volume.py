"""How much a partition's log brings, by hour, and whether that is too little for a silence to be its customer's own.

    week -2   ·│  310  │  290  │·       the same hours of earlier weeks: what is usual there, their median
    week -1   ·│  330  │  270  │·
    this      ·│  300  │ 31 ·······     the hour that has begun is in the checkpoint, those that ended beside it
                   └───────┘ at         what came within the last hour, beside what usually does

Hours are of Kafka's timestamps, UTC, and each commit that goes on to a later one writes the counts of those that ended.
So a state that is made again from the log counts the same. A timestamp never moves the hour back, and none moves it
beyond the wall: else one record of the future would end all hours until then.

Pure, told the time. A night is low by the median of its own hours, so it is not low here; a topic that falls to a tenth
shows within the hour. After some weeks what came is what is usual.
"""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.store.checkpoint import Hour
from ebbtide.featurestore.store.commit import HourCounts
from ebbtide.featurestore.times.durations import HOUR_MS

WEEK_HOURS = 168
WEEKS_MAX = 4
"""A public holiday, or a day of outage, is one of four."""
WEEKS_MIN = 2
"""With fewer nobody knows what is usual."""
RECORDS_MIN = 20
"""Where fewer are usual in an hour, chance alone may bring a fifth of them: 3 or fewer of 20 come once in 300,000
hours, 1 or fewer of 10 once in 2,000."""


class Volume(NamedTuple):
    """Of one partition's log. hour: the one that has begun, None before the first record. ended: those before it."""

    hour: Hour | None = None
    ended: HourCounts = ()

    @classmethod
    def of_history(cls, times_ms: NDArray[np.int64], until_ms: int) -> "Volume":
        """Of a file's events at these times (ms UTC, int64[n], in any order), up to `until_ms`."""
        last = until_ms // HOUR_MS
        hours = times_ms[times_ms < until_ms] // HOUR_MS
        if not len(hours):
            return cls()
        first = max(int(hours.min()), last - WEEKS_MAX * WEEK_HOURS)
        *ended, begun = np.bincount(hours[hours >= first] - first, minlength=last - first + 1).tolist()
        return cls(Hour(last, begun), tuple(ended))

    def counted(self, times_ms: Sequence[int], now_ms: int) -> "Volume":
        """With the records of these Kafka timestamps (ms UTC; negative: none), in their order, as of the wall time."""
        hour = self.hour
        if hour is not None and max(times_ms, default=0) < (hour.number + 1) * HOUR_MS:
            return self._replace(hour=Hour(hour.number, hour.records + len(times_ms)))
        return self._counted(min(each, now_ms) // HOUR_MS for each in times_ms)

    def _counted(self, hours: Iterable[int]) -> "Volume":
        number, records = self.hour or (-1, 0)
        ended: list[int] = []
        for at in hours:
            if at > number >= 0:
                ended += [records] + [0] * min(at - number - 1, WEEKS_MAX * WEEK_HOURS)
                records = 0
            number = max(number, at)
            records += number >= 0
        kept = (*self.ended, *ended)[-WEEKS_MAX * WEEK_HOURS :] if ended else self.ended
        return Volume(Hour(number, records) if number >= 0 else None, kept)

    def share(self, at_ms: int) -> float | None:
        """What came within the hour before `at_ms` (ms UTC, up to when the log is counted) as a share of what usually
        does; None where that is too little to tell, or nobody knows yet.

        Of the hour that `at_ms` lies in all that came is taken, of the one before as much as is left of a whole hour.
        """
        number, within = divmod(at_ms, HOUR_MS)
        left = 1.0 - within / HOUR_MS
        usual, before = self._usual(number), self._usual(number - 1)
        if usual is None or before is None:
            return None
        expected = (1.0 - left) * usual + left * before
        came = (self._records(number) or 0) + left * (self._records(number - 1) or 0)
        return came / expected if expected >= RECORDS_MIN else None

    def _records(self, number: int) -> int | None:
        """Of an hour; None of one before the first."""
        if self.hour is None:
            return None
        back = self.hour.number - number
        if back <= 0:
            return self.hour.records if back == 0 else 0
        return self.ended[-back] if back <= len(self.ended) else None

    def _usual(self, number: int) -> float | None:
        """The median of the same hour of earlier weeks, the last WEEKS_MAX; None when there are not WEEKS_MIN."""
        weeks = (self._records(number - week * WEEK_HOURS) for week in range(1, WEEKS_MAX + 1))
        known = [records for records in weeks if records is not None]
        return median(known) if len(known) >= WEEKS_MIN else None
