"""The customers' events to Kafka, as a clock runs that is faster than ours.

    simulated time = opens_ms + (now - start) x speed;  every tick, what has happened by then is sent

An event carries its own time as its Kafka timestamp, so for the worker this is live traffic of that time. The feed is
the only producer of a fresh topic, so it knows each event's partition and offset before Kafka does, and remembers when
it let the event go: whoever sees an alert can ask how long ago the event that brought it about was produced. It knows
no alert and no truth.
"""

import asyncio

import numpy as np
from numpy.typing import NDArray

from ebbtide.ops.demo.scene import Scene
from ebbtide.ops.demo.shop.events import records
from ebbtide.stream.clock import Clock
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.outputs.message import Message, Sink

TICK_S = 0.02
"""Short against the latencies that are measured, long against what sending costs."""
CHUNK_EVENTS_MAX = 2_000
"""A tick that is late sends in pieces, so that every acknowledgement stays within the producer's patience."""


class Feed:
    """Sends the shown part of a scene. `sent` is how many events have left, `now_ms` how far the customers are."""

    def __init__(
        self, scene: Scene, topic: str, partitions: int, speed: float, sink: Sink, clock: Clock
    ) -> None:
        self._scene, self._topic, self._speed, self._sink, self._clock = scene, topic, speed, sink, clock
        events = scene.live.events[scene.first : scene.end]
        homes = np.array([partition_for(name.encode(), partitions) for name in scene.live.customers])
        self._partition: NDArray[np.int64] = homes[events["customer"]]
        self._by_offset = [np.flatnonzero(self._partition == number) for number in range(partitions)]
        self._times = events["time_ms"]
        self._produced_s = np.full(len(events), np.nan)
        self._customers = events["customer"]
        self.sent = 0
        self.started_s = 0.0

    @property
    def total(self) -> int:
        """Events that there are to send."""
        return len(self._times)

    @property
    def now_ms(self) -> int:
        """The simulated time of the last event sent."""
        return int(self._times[self.sent - 1]) if self.sent else self._scene.opens_ms

    @property
    def customers(self) -> int:
        """How many different customers have sent something."""
        return len(np.unique(self._customers[: self.sent]))

    async def run(self, stop: asyncio.Event) -> None:
        """Send until the last event or `stop`. Raises BrokerUnavailable."""
        self.started_s = self._clock.monotonic_s()
        while self.sent < self.total and not stop.is_set():
            passed_ms = (self._clock.monotonic_s() - self.started_s) * self._speed * 1000
            due = int(np.searchsorted(self._times, self._scene.opens_ms + passed_ms, side="right"))
            if due > self.sent:
                await self._send(min(due, self.sent + CHUNK_EVENTS_MAX))
            else:
                await asyncio.sleep(TICK_S)

    async def _send(self, end: int) -> None:
        first = self._scene.first
        part = slice(first + self.sent, first + end)
        messages = [
            Message(self._topic, key, value, (), time_ms)
            for key, value, time_ms in records(self._scene.live, part)
        ]
        self._produced_s[self.sent : end] = self._clock.monotonic_s()
        self.sent = end
        await self._sink.send_all(messages)
        await asyncio.sleep(TICK_S)

    def age_s(self, partition: int, offset: int, now_s: float) -> float:
        """How long before `now_s` (monotonic) the event at this position was produced."""
        return now_s - float(self._produced_s[self._by_offset[partition][offset]])
