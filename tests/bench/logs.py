"""What the topics say afterwards: when each event was sent, when each alert was there, how fast the work went.

Nothing is measured by watching a service at work. An input record's timestamp is the wall time it was sent at; the
alert topics carry the broker's append time, and when a transaction was over (`visible.py`); an alert names the event
that brought it about. So the two logs, read when all is over, hold both latency and progress: an alert from offset o
of a partition says that the partition was worked off up to o by then. The same yardstick for every service, one clock
(the machine's), one millisecond fine.
"""

import time
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from ebbtide.stream.kafka.reader import read_topic, reader
from ebbtide.stream.kafka.settings import KafkaSettings
from tests.bench.traffic import event_number
from tests.bench.visible import markers

STEADY_FROM, STEADY_TO = 0.2, 0.8
"""Shares of a backlog between which a service is neither starting nor running out of work. Of the whole: librdkafka may
work off one partition after the other, where others take all of them in turn."""

BY_TIME = {"silence", "expired", "returned"}
"""Causes of alerts that name a customer's last activity."""


@dataclass(frozen=True, slots=True)
class Input:
    """n events of an input topic in no order: number, partition, offset, sent_ms int64[n]; `fetch_us`: what reading one
    took aiokafka, which is all of a worker's fetch that is not waiting."""

    number: NDArray[np.int64]
    partition: NDArray[np.int64]
    offset: NDArray[np.int64]
    sent_ms: NDArray[np.int64]
    fetch_us: float


@dataclass(frozen=True, slots=True)
class Alerts:
    """m alerts by the time they were there for a reader of committed records: index of their event in the input,
    appended_ms (or the end of its transaction), int64[m]."""

    event: NDArray[np.int64]
    appended_ms: NDArray[np.int64]


async def read_input(settings: KafkaSettings, topic: str) -> Input:
    """All of an input topic."""
    rows: list[tuple[int, int, int, int]] = []
    spent_s = 0.0
    async with reader(settings, topic) as (consumer, partitions):
        end = await consumer.end_offsets(partitions)
        await consumer.seek_to_beginning(*partitions)
        left = set(partitions)
        while left:
            before_s = time.thread_time()
            fetched = await consumer.getmany(timeout_ms=100, max_records=5000)
            spent_s += time.thread_time() - before_s
            for tp, records in fetched.items():
                rows += [(event_number(r.value), tp.partition, r.offset, r.timestamp) for r in records]
            left = {tp for tp in left if await consumer.position(tp) < end[tp]}
    columns = np.array(rows, np.int64).reshape(-1, 4)
    columns = columns[np.argsort(columns[:, 0])]
    number, partition, offset, sent_ms = np.ascontiguousarray(columns.T)
    return Input(number, partition, offset, sent_ms, spent_s / max(1, len(rows)) * 1e6)


async def read_alerts(settings: KafkaSettings, topic: str, source: Input) -> Alerts:
    """All alerts of a topic; ours name their event by position, the idiomatic service's by its id."""
    at = {
        (partition, offset): i
        for i, (partition, offset) in enumerate(
            zip(source.partition.tolist(), source.offset.tolist(), strict=True)
        )
    }
    of_number = {number: i for i, number in enumerate(source.number.tolist())}
    rows, over = [], await markers(settings, topic)
    async for record in read_topic(settings, topic):
        alert = orjson.loads(record.value or b"{}")
        if "decision" in alert:
            if alert["decision"]["cause"] in BY_TIME:
                continue  # no event brought it about, so none was waited for
            event = at[alert["decision"]["partition"], alert["decision"]["offset"]]
        else:
            event = of_number[event_number(alert["event_id"].encode())]
        rows.append((event, max(record.timestamp, over.at_ms(record.partition, record.offset))))
    columns = np.array(rows, np.int64).reshape(-1, 2)
    columns = columns[np.argsort(columns[:, 1], kind="stable")]
    return Alerts(*np.ascontiguousarray(columns.T))


@dataclass(frozen=True, slots=True)
class Steady:
    """The steady part of a backlog's way through a service."""

    events_per_s: float
    from_ms: int
    to_ms: int
    events: int


def throughput(source: Input, alerts: Alerts, first: int, count: int) -> Steady:
    """How fast events `first` to `first + count - 1`, a backlog, were worked off."""
    chosen = (source.number >= first) & (source.number < first + count)
    partitions = np.unique(source.partition[chosen])
    begin = {int(p): int(source.offset[chosen & (source.partition == p)].min()) for p in partitions}
    done = dict.fromkeys(begin, 0)
    started: tuple[int, int] | None = None
    last = (0, 0)
    for event, now_ms in zip(alerts.event.tolist(), alerts.appended_ms.tolist(), strict=True):
        if not chosen[event]:
            continue
        p = int(source.partition[event])
        done[p] = max(done[p], int(source.offset[event]) - begin[p] + 1)
        total = sum(done.values())
        if started is None and total >= STEADY_FROM * count:
            started = (now_ms, total)
        last = (now_ms, total)
        if total >= STEADY_TO * count:
            break
    if started is None or last[0] <= started[0]:
        raise RuntimeError("too few alerts in the backlog to say how fast it went")
    events, spent_ms = last[1] - started[1], last[0] - started[0]
    return Steady(events / spent_ms * 1000, started[0], last[0], events)


def latencies(source: Input, alerts: Alerts, first: int, count: int) -> NDArray[np.int64]:
    """ms from an event's sending to its alert, int64[k], of events `first` to `first + count - 1`."""
    number = source.number[alerts.event]
    chosen = (number >= first) & (number < first + count)
    spent: NDArray[np.int64] = (alerts.appended_ms - source.sent_ms[alerts.event])[chosen]
    return spent
