"""A log with holes: a compacted topic, read by workers that are killed, without a loss of Redis.

    produce ─▶ the cleaner makes gaps ─▶ it has nothing left to clean ─▶ workers, kills ─▶ the same end as a replay

What the workers read must be what is there in the end, or there would be nothing to compare with: so they start when
the log has stopped changing. A slow way to Redis keeps them at it for long enough to be killed.
"""

import asyncio
import random
import time
from dataclasses import dataclass
from pathlib import Path

from ebbtide.ops.config.settings import Settings
from ebbtide.stream.kafka.reader import log_ranges, read_topic
from ebbtide.stream.kafka.topics import ensure_topics
from tests.chaos.config import FETCH_BYTES, RUN_RECORDS, proxied, topics
from tests.chaos.feed import Acknowledged, Orders
from tests.chaos.monitor import Monitor
from tests.chaos.producers import Producers
from tests.chaos.scene import Scene
from tests.chaos.shape import Shape
from tests.chaos.workers import Crew, Forks

CLEANED = {
    "cleanup.policy": "compact",
    "segment.ms": "400",
    "min.cleanable.dirty.ratio": "0.01",
    "min.compaction.lag.ms": "0",
    "max.compaction.lag.ms": "500",
}
FEED_S, CUSTOMERS, SLOTS = 5.0, 5_000, 2
FETCH_RECORDS = 50
"""Small steps, many of them: so many chances to be killed between two."""
CLEAN_S_MAX = 90.0
SETTLED_S = 1.5
LATENCY_S, FIRST_LATENCY_S = 0.03, 0.1
"""Until the first kill the way is slower still: at 0.2 s a round trip and some twenty steps a partition, nobody can
have read it all between the first partition's opening and the kill that follows at once."""


@dataclass
class Holes:
    """The scenario, in its two halves: `produce` at once, `read` when nobody else needs the machine."""

    shape: Shape
    scene: Scene
    settings: Settings
    forks: Forks
    folder: Path
    kills: int = 0  # with something left to read
    gaps: int = 0

    def __post_init__(self) -> None:
        s = self.settings
        orders = Orders(
            s.kafka.url, s.kafka.topic, s.topics.partitions, CUSTOMERS, max(12_000, self.shape.events // 20), FEED_S,
            self.shape.seed + 10, 3, RUN_RECORDS, FETCH_BYTES, self.shape.scale, str(self.folder / "compacted.npz"),
            keyed=True,
        )  # fmt: skip
        self.producers = Producers(orders, self.folder)

    async def produce(self) -> Acknowledged:
        """All of the topic's records, acknowledged."""
        await ensure_topics(self.settings.kafka, topics(self.settings, **CLEANED))
        await self.producers.start()
        return await self.producers.finished()

    async def read(self, monitor: Monitor) -> Crew:
        """Have it folded by workers that die; returns them, ended. Raises TimeoutError when they do not finish."""
        await self._settled()
        draw = random.Random(self.shape.seed + 11)
        kafka = {"fetch_records_max": FETCH_RECORDS, "fetch_partition_bytes_max": 4_096}
        settings = {slot: proxied(self.settings, self.scene, **kafka) for slot in range(SLOTS)}
        crew = Crew(self.forks, self.folder / "compacted", settings, draw)
        wanted = max(3, round(self.shape.faults["kill"] / 4))
        (way,) = self.scene.proxies("redis")
        try:
            way.slow(FIRST_LATENCY_S)
            crew.man(SLOTS)
            while self.kills < wanted and monitor.lag:
                worker = await crew.pick(serving=True)
                if worker is not None:
                    await asyncio.sleep(draw.uniform(0.0, 0.5) if self.kills else 0.0)
                    self.kills += monitor.lag > 0 and worker.kill()
                    way.slow(LATENCY_S)
            way.heal()
            if not await monitor.caught_up(self.shape.drain_s_max):
                raise TimeoutError(f"the compacted topic is not read to its end: {monitor.stuck}")
            await crew.disband()
        finally:
            crew.kill_all()
            way.heal()
        return crew

    async def _settled(self) -> None:
        """Until the cleaner has made gaps in every partition and makes no more."""
        until_s, before = time.monotonic() + CLEAN_S_MAX, -1
        while True:
            ranges = await log_ranges(self.settings.kafka, self.settings.kafka.topic)
            there = dict.fromkeys(ranges, 0)
            async for record in read_topic(self.settings.kafka, self.settings.kafka.topic):
                there[record.partition] += 1
            gaps = [end - begin - there[p] for p, (begin, end) in ranges.items()]
            if min(gaps) > 0 and sum(gaps) == before:
                self.gaps = before
                return
            if time.monotonic() > until_s:
                raise TimeoutError(f"Kafka's cleaner made these gaps, by partition: {gaps}")
            before = sum(gaps)
            await asyncio.sleep(SETTLED_S)
