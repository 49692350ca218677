"""The volume of a partition's log: counted by hour, however it was cut, and held against that hour of other weeks."""

import random
from collections import Counter
from statistics import median

import numpy as np
import pytest

from ebbtide.featurestore.store.checkpoint import Hour
from ebbtide.featurestore.times.durations import HOUR_MS
from ebbtide.stream.turn.volume import RECORDS_MIN, WEEK_HOURS, WEEKS_MAX, Volume

NOW_MS = 2_000_000 * HOUR_MS


def steady(weeks: float, records: int) -> Volume:
    """So many records every hour for so many weeks, and an hour that has just begun."""
    return Volume(Hour(1_000_000, 0), (records,) * int(weeks * WEEK_HOURS))


@pytest.mark.parametrize("cut", range(4))
def test_counts_are_of_the_log_however_it_was_cut(cut: int) -> None:
    """By a naive count: each record lies in the latest hour seen with it."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw, at = random.Random(seed), 1_000_000 * HOUR_MS
    times, hours, latest = [], Counter[int](), -1
    for _ in range(3_000):
        at += int(draw.expovariate(1 / HOUR_MS)) * draw.choice([0, 1, 1, 30])
        times.append(draw.choice([at, at, at, at - 2 * HOUR_MS, -1]))
        latest = max(latest, times[-1] // HOUR_MS)
        hours[latest] += latest >= 0
    volume, left = Volume(), list(times)
    while left:
        n = 3_000 if cut == 0 else draw.randrange(1, 2 + 100 * cut)
        volume, left = volume.counted(left[:n], NOW_MS), left[n:]
    first = max(min(h for h in hours if h >= 0), latest - WEEKS_MAX * WEEK_HOURS)
    assert volume.hour == (latest, hours[latest])
    assert volume.ended == tuple(hours[h] for h in range(first, latest))


def test_a_record_of_the_future_is_one_of_now() -> None:
    volume = Volume().counted([NOW_MS - HOUR_MS, NOW_MS + 900 * HOUR_MS], NOW_MS)
    assert volume == (Hour(NOW_MS // HOUR_MS, 1), (1,))
    assert Volume().counted([-1, -1], NOW_MS) == Volume()
    assert Volume().counted([], NOW_MS) == Volume()


def test_a_files_history_counts_as_its_log_would() -> None:
    draw = random.Random(5)
    times = sorted(NOW_MS - draw.randrange(1, 6 * WEEK_HOURS * HOUR_MS) for _ in range(5_000))
    log = Volume().counted([*times, NOW_MS], NOW_MS)
    assert log.hour is not None
    shuffled = np.array([*draw.sample(times, len(times)), NOW_MS, NOW_MS + 5])
    file = Volume.of_history(shuffled, NOW_MS)
    assert file == (log.hour._replace(records=0), log.ended)
    assert Volume.of_history(np.array([NOW_MS]), NOW_MS) == Volume()


def test_nobody_knows_what_is_usual_before_two_weeks() -> None:
    at_ms = 1_000_000 * HOUR_MS + HOUR_MS // 2
    assert steady(1.9, 100).share(at_ms) is None
    assert Volume().share(at_ms) is None
    assert steady(2.1, 100).share(at_ms) == pytest.approx(0.5)
    assert steady(2.1, RECORDS_MIN - 1).share(at_ms) is None, "too few to tell"


def test_a_fall_to_a_tenth_shows_within_the_hour() -> None:
    volume, at_ms = steady(3, 120), 1_000_000 * HOUR_MS
    shares = []
    for minute in range(0, 121, 10):
        share = volume.share(at_ms + minute * 60_000)
        assert share is not None
        shares.append(share)
        volume = volume.counted([at_ms + minute * 60_000 + n for n in range(2)], NOW_MS)  # 12 an hour
    assert shares[0] == 1.0 and shares[:7] == sorted(shares[:7], reverse=True)
    assert shares[6] < 0.2 < shares[4]
    for minute in range(120, 180, 10):
        volume = volume.counted([at_ms + minute * 60_000 + n for n in range(20)], NOW_MS)
    share = volume.share(at_ms + 180 * 60_000)
    assert share is not None and share > 0.9, "and is over within an hour"
    silent = volume.share(at_ms + 5 * HOUR_MS)
    assert silent == 0.0, "a log that ends brings nothing"


def test_a_night_is_held_against_other_nights() -> None:
    """And one bad week in four changes nothing."""
    hours = range(1_000_000 - WEEKS_MAX * WEEK_HOURS, 1_000_000)
    usual = [300 if 8 <= h % 24 < 20 else 30 for h in hours]
    bad = [0 if h < hours[0] + WEEK_HOURS else n for h, n in zip(hours, usual, strict=True)]
    for counts in (usual, bad):
        volume = Volume(Hour(1_000_000, 0), tuple(counts))
        for day_hour in range(24):
            at = next(h for h in range(1_000_000, 1_000_024) if h % 24 == day_hour)
            values = [n for h, n in zip(hours, counts, strict=True) if (at - h) % WEEK_HOURS == 0]
            came = Volume(Hour(at, int(median(values))), (*counts, *usual[-WEEK_HOURS:][: at - 1_000_000]))
            assert came.share((at + 1) * HOUR_MS - 1) == pytest.approx(1.0, abs=0.01)
        assert volume.hour == (1_000_000, 0)
