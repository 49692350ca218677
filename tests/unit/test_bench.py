"""What the bench says of a log: how fast a backlog was worked off, whatever order its partitions were taken in."""

import numpy as np
import pytest

from tests.bench.logs import Alerts, Input, throughput
from tests.bench.producer import HOT, heated
from tests.bench.traffic import CUSTOMERS, clicks

EVENTS, PARTITIONS = 8_000, 4


def in_order(partition_after_partition: bool) -> tuple[Input, Alerts]:
    """A backlog worked off at 2 events/ms, with an alert for every seventh event; partition is number modulo 4."""
    number = np.arange(EVENTS)
    source = Input(number, number % PARTITIONS, number // PARTITIONS, np.zeros(EVENTS, np.int64), 0.0)
    key = (number // PARTITIONS, number % PARTITIONS)
    done = np.lexsort(key if partition_after_partition else key[::-1])
    place = np.empty(EVENTS, np.int64)
    place[done] = np.arange(EVENTS)
    alerting = done[place[done] % 7 == 6]
    return source, Alerts(alerting, 1_000 + place[alerting] // 2)


@pytest.mark.parametrize("partition_after_partition", [False, True])
def test_throughput_knows_every_order_of_partitions(partition_after_partition: bool) -> None:
    source, alerts = in_order(partition_after_partition)
    found = throughput(source, alerts, 0, EVENTS)
    assert found.events_per_s == pytest.approx(2_000, rel=0.02)
    assert found.events == pytest.approx(0.6 * EVENTS, rel=0.02)


def test_a_hot_customer_makes_half_of_one_partition() -> None:
    """The others of it make the other half, and the other partitions' events are what they were."""
    made, partitions = clicks(0, EVENTS, 0), [n % PARTITIONS for n in range(CUSTOMERS)]
    hot = heated(made, partitions)
    beside = made.customer % PARTITIONS == partitions[HOT]
    assert np.mean(hot.customer[beside] == HOT) == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(hot.customer[~beside], made.customer[~beside])
    np.testing.assert_array_equal(hot.time, made.time)
