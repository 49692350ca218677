"""The table of a zone's offsets beside the zone itself."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from ebbtide.featurestore.times.zones import offsets

ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "UTC",
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("zone", ZONES)
def test_the_table_is_the_zone(zone: str) -> None:
    """At random times, and at each change, the millisecond before it, and an hour to both sides."""
    table = offsets(zone)
    since = np.array([start for start, _ in table])
    assert all(a < b for a, b in pairwise(since.tolist()))
    rng = np.random.default_rng(len(zone))
    times = [int(ms) for ms in rng.integers(0, 4_102_444_800_000, 500)]
    times += [int(start) + beside for start in since[1:] for beside in (-3_600_000, -1, 0, 3_600_000)]
    for ms in times:
        wanted = (EPOCH + timedelta(milliseconds=ms)).astimezone(ZoneInfo(zone)).utcoffset()
        held = table[max(0, int(np.searchsorted(since, ms, "right")) - 1)][1]
        assert wanted is not None
        assert held == wanted.total_seconds() * 1000, (zone, ms)


def test_offsets_may_be_stated() -> None:
    assert offsets("+05:30") == ((0, 19_800_000),)
    assert offsets("-03:00") == ((0, -10_800_000),)
    with pytest.raises(ValueError, match="no time zone"):
        offsets("Berlin")
