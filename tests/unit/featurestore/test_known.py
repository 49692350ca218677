"""The end of what a log knows: no few events ahead of all others move it, and news do."""

import numpy as np

from ebbtide.featurestore.events.known import known_until
from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS

T0 = 1_767_225_600_000  # 2026-01-01


def test_what_is_known_ends_before_outliers_only() -> None:
    rng = np.random.default_rng(3)
    habit = np.sort(T0 + rng.integers(0, 200 * DAY_MS, 5_000))
    last = int(habit[-1])
    assert known_until(habit) == last + 1
    for far in (
        [last + 20 * DAY_MS],
        [last + 20 * DAY_MS, last + 2000 * DAY_MS],
        [1 << 45, 1 << 46, 1 << 47],
    ):
        assert known_until(rng.permutation(np.concatenate([habit, far]))) == last + 1
    # More than a thousandth of all is news; so is what comes after no longer a pause than there has been.
    news = last + 20 * DAY_MS + np.arange(20) * HOUR_MS
    assert known_until(np.concatenate([habit, news])) == int(news[-1]) + 1
    paused = np.concatenate([habit[:4_000], habit[4_000:] + 30 * DAY_MS, [last + 60 * DAY_MS]])
    assert known_until(paused) == last + 60 * DAY_MS + 1
    assert known_until(habit[:50]) == int(habit[49]) + 1
    assert known_until(np.concatenate([habit[:50], [last + 900 * DAY_MS]])) == last + 900 * DAY_MS + 1
    assert known_until(np.zeros(0, np.int64)) == 0
    assert known_until(np.full(1_000, T0)) == T0 + 1


def test_days_without_times_have_no_outliers() -> None:
    days = np.repeat(T0 + np.arange(300) * DAY_MS, 40)
    assert known_until(days) == int(days[-1]) + 1
    assert known_until(np.append(days, int(days[-1]) + 3 * DAY_MS)) == int(days[-1]) + 3 * DAY_MS + 1
    assert known_until(np.append(days, int(days[-1]) + 4 * DAY_MS)) == int(days[-1]) + 1
