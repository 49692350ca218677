"""Who sends what while alerts are tried: customers that come and go, and records that nobody should send."""

import asyncio

import orjson
from aiokafka import AIOKafkaProducer

from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import partition_for
from tests.support.workers.outages import PARTITIONS

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
USUAL = 100
OLD_EVERY_S = 4.0


class Feed:
    """New customers at `per_s`, one visit each; in the block. `old`: few, and each with three weeks of visits, so that
    what is scored is another kind of customer, and not more of them."""

    def __init__(self, kafka: KafkaSettings, per_s: float = 40.0) -> None:
        self._kafka, self._per_s = kafka, per_s
        self._clock = SystemClock()
        self.quiet = self.old = False
        self._n = 0

    async def __aenter__(self) -> "Feed":
        self._producer = AIOKafkaProducer(bootstrap_servers=self._kafka.url, linger_ms=5)
        await self._producer.start()
        self._task = asyncio.create_task(self._run(), name="feed")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._producer.stop()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(OLD_EVERY_S if self.old else 1 / self._per_s)
            if self.quiet:
                continue
            self._n += 1
            now_ms, who = self._clock.now_ms(), f"customer-{self._n}"
            if self.old:
                for days in range(20, 0, -2):
                    await self.send(who, now_ms - days * DAY_MS)
            await self.send(who, now_ms)

    async def send(self, who: str, ts: int, partition: int | None = None) -> None:
        """One visit of a customer, in its partition or in another one."""
        place = partition_for(who.encode(), PARTITIONS) if partition is None else partition
        value = {"user_id": who, "event_id": f"{who}-{ts}", "type": "visit", "ts": ts}
        await self.raw(orjson.dumps(value), who.encode(), place)

    async def raw(self, value: bytes, key: bytes, partition: int) -> None:
        """Any record."""
        await self._producer.send(self._kafka.topic, value, key, partition)


async def open_transaction(kafka: KafkaSettings) -> AIOKafkaProducer:
    """A producer that has sent something in a transaction and keeps it open; whoever gets it aborts and stops it."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka.url, transactional_id="tried")
    await producer.start()
    await producer.begin_transaction()
    who = next(f"open-{n}" for n in range(100) if partition_for(f"open-{n}".encode(), PARTITIONS) == 0)
    value = {"user_id": who, "event_id": "open", "type": "visit", "ts": SystemClock().now_ms()}
    await producer.send_and_wait(kafka.topic, orjson.dumps(value), who.encode(), 0)
    return producer


async def compressed(kafka: KafkaSettings, size: int, partition: int) -> None:
    """A record of so many blanks, kilobytes for the broker."""
    async with AIOKafkaProducer(
        bootstrap_servers=kafka.url, compression_type="zstd", max_request_size=2 * size
    ) as producer:
        await producer.send_and_wait(kafka.topic, b" " * size, b"jane", partition)


async def weeks_of(kafka: KafkaSettings) -> None:
    """Four weeks of which each brought USUAL records a partition in this hour, in the one before and the one after."""
    now_ms = SystemClock().now_ms()
    hours_ms = [
        now_ms - 7 * DAY_MS * week + HOUR_MS * near for week in range(4, 0, -1) for near in (-1, 0, 1)
    ]
    names = [f"usual-{n}" for n in range(1_000)]
    async with AIOKafkaProducer(bootstrap_servers=kafka.url, linger_ms=50) as producer:
        for at_ms in hours_ms:
            for partition in range(PARTITIONS):
                mine = [who for who in names if partition_for(who.encode(), PARTITIONS) == partition]
                for who in mine[:USUAL]:
                    value = {"user_id": who, "event_id": f"{who}-{at_ms}", "type": "visit", "ts": at_ms}
                    await producer.send(kafka.topic, orjson.dumps(value), who.encode(), partition, at_ms)
