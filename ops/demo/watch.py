"""What comes back from the worker while the show runs: its alerts, and what it says of itself on /metrics.

It reads as any consumer and any Prometheus would, from outside, and refuses to know the truth. The invariant: an
alert's latency is wall time from the moment its event was produced to the moment we had the alert.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from ebbtide.featurestore.times.timestamps import epoch_ms
from ebbtide.stream.clock import Clock
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.outputs.alert import Alert
from ebbtide.stream.outputs.versions import read_alert

SCRAPE_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Seen:
    """An alert, and how long its event took to become one."""

    alert: Alert
    latency_s: float

    @property
    def as_of_ms(self) -> int:
        return epoch_ms(self.alert.decision.as_of)


class Alerts:
    """Follows the alert topic. `seen` grows; `first_s` is the monotonic time of the first opened episode."""

    def __init__(
        self, settings: KafkaSettings, topic: str, age_s: Callable[[int, int, float], float], clock: Clock
    ):
        self._settings, self._topic, self._age_s, self._clock = settings, topic, age_s, clock
        self.seen: list[Seen] = []
        self.first_s: float | None = None
        self.ready = asyncio.Event()
        self._known: set[str] = set()

    async def run(self) -> None:
        """For ever, from the topic's end at the start; `ready` is set when it has been found."""
        async for record in read_topic(self._settings, self._topic, follow=True, following=self.ready):
            now_s = self._clock.monotonic_s()
            if record.value is None:  # a tombstone passed on
                continue
            alert = read_alert(record.value)
            if alert.alert_id in self._known:  # at least once means that one may come again
                continue
            self._known.add(alert.alert_id)
            decision = alert.decision
            age_s = math.nan
            if decision.offset is not None and decision.cause not in ("silence", "expired"):
                # What time brought about lies at an event of long ago: its alert answers none.
                age_s = self._age_s(decision.partition, decision.offset, now_s)
            self.seen.append(Seen(alert, age_s))
            if self.first_s is None and alert.state == "opened":
                self.first_s = now_s

    @property
    def opened(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.alert.state == "opened"]

    def latency_ms(self, share: float) -> float:
        """The latency that this share of all alerts stays within; NaN before the first."""
        ordered = sorted(seen.latency_s for seen in self.seen if not math.isnan(seen.latency_s))
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1000 if ordered else math.nan


@dataclass(frozen=True, slots=True)
class Reading:
    """The worker's counters at one moment (monotonic seconds)."""

    at_s: float
    records: float = 0.0
    batches: float = 0.0
    rows: float = 0.0
    dispatches: float = 0.0


class Gauge:
    """Reads /metrics of a worker; its figures compare the last two readings."""

    def __init__(self, address: str, clock: Clock) -> None:
        self._url, self._clock = address + "/metrics", clock
        self._before = self.now = Reading(clock.monotonic_s())

    async def run(self) -> None:
        """For ever; a reading that fails is left out, since whether the worker runs is watched elsewhere."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while True:
                try:
                    async with session.get(self._url) as response:
                        values = samples(await response.text())
                except (aiohttp.ClientError, TimeoutError):
                    values = {}
                if values:
                    self._before, self.now = self.now, _reading(values, self._clock.monotonic_s())
                await asyncio.sleep(SCRAPE_EVERY_S)

    @property
    def events_per_s(self) -> float:
        return _per(self.now.records - self._before.records, self.now.at_s - self._before.at_s)

    @property
    def records_a_batch(self) -> float:
        return _per(self.now.records - self._before.records, self.now.batches - self._before.batches)

    @property
    def rows_a_dispatch(self) -> float:
        return _per(self.now.rows - self._before.rows, self.now.dispatches - self._before.dispatches)


def _per(amount: float, of: float) -> float:
    return amount / of if of > 0 else 0.0


def _reading(values: dict[str, float], at_s: float) -> Reading:
    return Reading(
        at_s,
        records=values.get("ebbtide_records_total", 0.0),
        batches=values.get('ebbtide_stage_seconds_count{stage="parse"}', 0.0),
        rows=values.get("ebbtide_dispatch_rows_sum", 0.0),
        dispatches=values.get("ebbtide_dispatch_rows_count", 0.0),
    )


def samples(exposition: str) -> dict[str, float]:
    """Sample (name with its labels) -> value, of Prometheus' text format."""
    found = {}
    for line in exposition.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found
