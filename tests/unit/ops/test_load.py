"""The load: seeded, at its rate, in order, plausible; and percentiles that no waiting hides."""

import math

import numpy as np
import pytest

from ebbtide.ops.load.latency import latency
from ebbtide.ops.load.sessions import KINDS, sessions


def test_the_same_seed_gives_the_same_load() -> None:
    one, two, other = (
        sessions(7, 200.0, 20.0, 500),
        sessions(7, 200.0, 20.0, 500),
        sessions(8, 200.0, 20.0, 500),
    )
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one.at_s, other.at_s)


@pytest.mark.parametrize(
    ("rate", "seconds", "customers"), [(50.0, 60.0, 10), (2_000.0, 10.0, 50_000), (3.0, 100.0, 1)]
)
def test_events_come_in_order_at_their_rate(rate: float, seconds: float, customers: int) -> None:
    """In full flow from the first second to the last: no ramp, no tail."""
    load = sessions(1, rate, seconds, customers)
    assert np.all(np.diff(load.at_s) >= 0) and load.at_s[0] >= 0 and load.at_s[-1] < seconds
    expected = rate * seconds
    assert abs(len(load.at_s) - expected) < 8 * math.sqrt(expected * 6)
    half = np.count_nonzero(load.at_s < seconds / 2)
    assert abs(half - len(load.at_s) / 2) < 8 * math.sqrt(expected * 6)
    assert load.customer.min() >= 0 and load.customer.max() < customers


def test_sessions_look_like_a_shops() -> None:
    """Views most, purchases least and alone with an amount; a few customers come often."""
    load = sessions(3, 5_000.0, 10.0, 1_000)
    counts = np.bincount(load.kind, minlength=len(KINDS))
    assert counts[0] > counts[1] > counts[3] > 0 and counts[2] > counts[3]
    assert np.array_equal(~np.isnan(load.value), load.kind == KINDS.index("purchase"))
    by_customer = np.sort(np.bincount(load.customer, minlength=1_000))[::-1]
    assert by_customer[0] > 20 * np.median(by_customer)
    assert np.count_nonzero(by_customer) > 900


def test_a_percentile_is_a_latency_that_was() -> None:
    found = latency([0.001 * n for n in range(1_000, 0, -1)])
    assert found == (1_000, 500.0, 900.0, 990.0, 999.0, 1_000.0)
    assert latency([0.25]) == (1, 250.0, 250.0, 250.0, 250.0, 250.0)
    assert latency([]).n == 0 and math.isnan(latency([]).p99_ms)


def test_a_stall_counts_for_everyone_who_waited() -> None:
    """A service that stands still for ten of a hundred seconds: a generator that waits would see one slow answer."""
    due = np.arange(0, 100, 0.01)
    answered = np.where((due >= 40) & (due < 50), 50.0, due) + 0.002
    honest = latency((answered - due).tolist())
    assert honest.p50_ms == pytest.approx(2.0)
    assert honest.p99_ms > 8_000
