"""A time zone as a constant table: its offsets from UTC, and since when each holds.

Both the compiled fold and the model's graph take local time from this table, so they agree whatever zone files the
machine has by then. Between 1970 and 2100; before and after, the nearest offset holds.
"""

import re
from bisect import bisect_right
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS, UNITS_MS

FIRST_YEAR, LAST_YEAR = 1970, 2100
MONDAY_MS = 4 * DAY_MS
"""1970-01-05, the first Monday."""
WEEK_MS = 7 * DAY_MS
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEP = timedelta(days=1)
_FIXED = re.compile(r"([+-])(\d{2}):(\d{2})")


@lru_cache(maxsize=16)
def offsets(zone: str) -> tuple[tuple[int, int], ...]:
    """(since, offset) in ms, ascending: from `since` (UTC) on, local time is UTC + offset. The first one is since ever.

    zone: a name such as Europe/Berlin, UTC, or an offset such as +05:30. Raises ValueError when there is none such."""
    if fixed := _FIXED.fullmatch(zone):
        size = int(fixed[2]) * HOUR_MS + int(fixed[3]) * UNITS_MS["m"]
        return ((0, size if fixed[1] == "+" else -size),)
    if zone == "UTC":
        return ((0, 0),)
    try:
        info = ZoneInfo(zone)
    except (LookupError, ValueError, OSError):
        raise ValueError(f"{zone!r} is no time zone: write a name such as Europe/Berlin, or +01:00") from None

    def offset(moment: datetime) -> int:
        found = moment.astimezone(info).utcoffset() or timedelta()
        return int(found.total_seconds()) * 1000

    moment, end = datetime(FIRST_YEAR, 1, 1, tzinfo=UTC), datetime(LAST_YEAR, 1, 1, tzinfo=UTC)
    table = [(0, offset(moment))]
    while moment < end:
        following = moment + _STEP
        if offset(following) != table[-1][1]:
            table.append(_change(offset, moment, following, table[-1][1]))
        moment = following
    return tuple(table)


def _change(
    offset: Callable[[datetime], int], before: datetime, after: datetime, old: int
) -> tuple[int, int]:
    """The second at which an offset changes, by halving."""
    seconds = range(int((after - before).total_seconds()) + 1)
    at = bisect_right(seconds, False, key=lambda s: offset(before + timedelta(seconds=s)) != old)
    moment = before + timedelta(seconds=at)
    return int((moment - _EPOCH) / timedelta(milliseconds=1)), offset(moment)
