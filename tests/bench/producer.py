"""The producer, a process of its own: `python -m tests.bench.producer KAFKA TOPIC START_MS FIRST COUNT [RATE [HOT]]`.

Sends events FIRST to FIRST + COUNT - 1 of the stream, as fast as it can or RATE a second, and prints a line of JSON.
Everything is drawn and written as JSON before the first is sent, and records go into batches of our own making rather
than through `send`, which would cost 20 µs each: so it takes little of the cores it shares with whoever is measured.
HOT is 1 where one customer makes half of a partition's events.

A record's Kafka timestamp is the wall time at which it is put into its batch, which is sent in the same tick.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
from aiokafka import AIOKafkaProducer

from ebbtide.stream.kafka.topics import partition_for
from tests.bench.traffic import CUSTOMERS, Clicks, clicks, name_of, records

PARTITIONS = 4
HOT = 0
TICK_S = 0.005
BACKLOG_CHUNK = 20_000  # records between two looks at how many are under way


@dataclass(frozen=True, slots=True)
class Sent:
    """What was done: `late_s_max`: how far the producer once lagged behind its rate."""

    count: int
    seconds: float
    late_s_max: float


class Batches:
    """One batch under way for each partition."""

    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self._producer, self._topic = producer, topic
        self._open = [producer.create_batch() for _ in range(PARTITIONS)]
        self._acks: set[asyncio.Future[object]] = set()

    async def add(self, partition: int, key: bytes, value: bytes, now_ms: int) -> None:
        if self._open[partition].append(timestamp=now_ms, key=key, value=value) is None:  # full
            await self._send(partition)
            self._open[partition].append(timestamp=now_ms, key=key, value=value)

    async def flush(self) -> None:
        for partition in range(PARTITIONS):
            if self._open[partition].record_count():
                await self._send(partition)

    async def acknowledged(self) -> None:
        await asyncio.gather(*self._acks)

    async def _send(self, partition: int) -> None:
        batch, self._open[partition] = self._open[partition], self._producer.create_batch()
        ack = await self._producer.send_batch(batch, self._topic, partition=partition)
        self._acks.add(ack)
        ack.add_done_callback(self._acks.discard)


def heated(made: Clicks, partitions: list[int]) -> Clicks:
    """Every other event of one partition is customer HOT's; the stream is as long, and goes the same ways."""
    beside = np.array(partitions)[made.customer] == partitions[HOT]
    odd = (made.first + np.arange(len(made))) % 2 == 1
    return replace(made, customer=np.where(beside & odd, HOT, made.customer))


async def produce(
    kafka: str, topic: str, start_ms: int, first: int, count: int, rate: float, hot: bool
) -> Sent:
    partitions = [partition_for(name_of(n).encode(), PARTITIONS) for n in range(CUSTOMERS)]
    made = clicks(first, count, start_ms)
    if hot:
        made = heated(made, partitions)
    ready = records(made)
    where = [partitions[customer] for customer in made.customer.tolist()]
    async with AIOKafkaProducer(bootstrap_servers=kafka, acks="all", max_batch_size=256 << 10) as producer:
        batches, done, late_s = Batches(producer, topic), 0, 0.0
        began_s = time.monotonic()
        while done < count:
            if rate:
                due = min(count, int((time.monotonic() - began_s) * rate))
                if due > done:
                    late_s = max(late_s, (due - done) / rate - TICK_S)
            else:
                due = min(count, done + BACKLOG_CHUNK)
            now_ms = time.time_ns() // 1_000_000
            for n in range(done, due):
                await batches.add(where[n], *ready[n], now_ms)
            done = due
            await batches.flush()
            # To the next tick; without a rate only long enough for the network to have its turn.
            await asyncio.sleep(TICK_S - (time.monotonic() - began_s) % TICK_S if rate else 0)
        await batches.acknowledged()
        return Sent(count, time.monotonic() - began_s, late_s)


def main(
    kafka: str, topic: str, start_ms: str, first: str, count: str, rate: str = "0", hot: str = "0"
) -> None:
    sent = asyncio.run(produce(kafka, topic, int(start_ms), int(first), int(count), float(rate), hot == "1"))
    print(json.dumps(asdict(sent)))


if __name__ == "__main__":
    main(*sys.argv[1:])
