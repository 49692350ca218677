"""The producers, in a process of their own: `python -m tests.chaos.feed FILE` reads what to do and writes what it did.

    Traffic ─▶ a queue a partition ─▶ idempotent producers ─▶ acknowledged: (partition, offset, bytes)
       └─────▶ runs of one partition ─▶ transactional producer, committed or aborted

It speaks to the brokers directly, not through the proxies: what it is told is acknowledged is what the others are
judged by. It outlives brokers: what is not known to be acknowledged is sent again, as producers do, and then the log
may hold it twice. Each partition's producer has its own codec and its own clock, which is wrong and jitters: records'
timestamps are out of order, too. Invariant: a record counts as acknowledged only when Kafka said at which offset it is,
and one of a transaction only when its commit was confirmed.
"""

import asyncio
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from numpy.typing import NDArray

from ebbtide.stream.kafka.topics import partition_for
from tests.chaos.traffic import Said, Traffic, names

TICK_S = 0.1
"""How long a producer gathers: at 20 ms three brokers took half of two cores, for batches of four records."""
TELL_S = 0.5
BATCH_BYTES = 128 << 10
RUN_BATCH_BYTES = 4 << 10
"""Of a transaction: a run of one large batch would come in one fetch, however long, and be passed over in one step."""
REQUEST_S = 20.0
AGAIN_S = 0.5
RUNS_ABORTED = 0.6  # of all transactions
TRANSACTION_MS = 10_000
"""One that is left open by a producer that broke is over after that: it hides what lies behind it."""
CODECS = (None, "gzip", "lz4", "zstd", "snappy")
SKEW_S, JITTER_S = 2.0, 0.3
"""At most so far, in either direction, is a producer's clock from the time, and a record's from its producer's."""


@dataclass(frozen=True)
class Orders:
    """What to produce. `run_records` long is an aborted run: more bytes than `fetch_bytes`, in batches that are far
    smaller. `scale` is the spec's. `out` gets the list of what was acknowledged."""

    kafka: str
    topic: str
    partitions: int
    customers: int
    events: int
    seconds: float
    seed: int
    runs: int
    run_records: int
    fetch_bytes: int
    scale: float
    out: str
    keyed: bool = False


@dataclass(frozen=True)
class Acknowledged:
    """What Kafka has confirmed, one entry a record: partition int16[n], offset int64[n], checksum uint32[n], poison
    bool[n], whether it was made to be refused, and at_ms int64[n], when it was confirmed."""

    partition: NDArray[np.int16]
    offset: NDArray[np.int64]
    checksum: NDArray[np.uint32]
    poison: NDArray[np.bool_]
    at_ms: NDArray[np.int64]
    counts: dict[str, int]

    @classmethod
    def load(cls, file: Path) -> "Acknowledged":
        with np.load(file) as stored:
            counts = json.loads(str(stored["counts"]))
            names = ("partition", "offset", "checksum", "poison", "at_ms")
            return cls(**{name: stored[name] for name in names}, counts=counts)

    def joined(self, other: "Acknowledged") -> "Acknowledged":
        """Both lists; the counts are ours."""
        return Acknowledged(
            np.concatenate([self.partition, other.partition]),
            np.concatenate([self.offset, other.offset]),
            np.concatenate([self.checksum, other.checksum]),
            np.concatenate([self.poison, other.poison]),
            np.concatenate([self.at_ms, other.at_ms]),
            self.counts,
        )


def checksum(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]] = ()) -> int:
    """Of a record's key, value and headers, None told from empty."""
    named = [part for name, content in headers for part in (name.encode(), content)]
    parts = [b"-" if part is None else b"+%d:%b" % (len(part), part) for part in (key, value, *named)]
    return zlib.crc32(b"|".join(parts))


class Placed(NamedTuple):
    """A batch of a partition, from `offset` on, confirmed at `at_ms`: of each record its checksum, and whether it is
    poison."""

    partition: int
    offset: int
    at_ms: int
    sums: list[int]
    poison: list[bool]


class Client:
    """A producer that is made anew when it is broken."""

    def __init__(self, make: Callable[[], AIOKafkaProducer]) -> None:
        self._make, self._producer = make, make()
        self._lock = asyncio.Lock()

    async def start(self) -> AIOKafkaProducer:
        await self._producer.start()
        return self._producer

    @property
    def current(self) -> AIOKafkaProducer:
        return self._producer

    async def renew(self, broken: AIOKafkaProducer) -> None:
        async with self._lock:
            if self._producer is not broken:
                return
            await self._stop(broken)
            while True:
                fresh = self._make()
                try:
                    await fresh.start()
                except (KafkaError, OSError, TimeoutError):
                    await self._stop(fresh)
                    await asyncio.sleep(AGAIN_S)
                else:
                    self._producer = fresh
                    return

    async def stop(self) -> None:
        await self._stop(self._producer)

    @staticmethod
    async def _stop(producer: AIOKafkaProducer) -> None:
        with suppress(KafkaError, TimeoutError, OSError):
            async with asyncio.timeout(2.0):
                await producer.stop()


class Feed:
    """`run` produces all that was ordered and returns when all of it is acknowledged."""

    def __init__(self, orders: Orders) -> None:
        self.counts: Counter[str] = Counter()
        who = names(orders.customers)
        homes = [partition_for(name.encode(), orders.partitions) for name in who]
        self._orders = orders
        rate = orders.events / orders.seconds
        self._traffic = Traffic(who, homes, rate, orders.seed, scale=orders.scale, keyed=orders.keyed)
        self._draw = Random(orders.seed + 1)
        self._waiting: list[list[Said]] = [[] for _ in range(orders.partitions)]
        self._arrived = [asyncio.Event() for _ in range(orders.partitions)]
        self._acked: list[Placed] = []
        self._over = False
        common = {
            "bootstrap_servers": orders.kafka, "request_timeout_ms": round(REQUEST_S * 1000), "retry_backoff_ms": 50,
        }  # fmt: skip
        self._plain = [
            Client(
                partial(
                    AIOKafkaProducer,
                    **common,
                    max_batch_size=BATCH_BYTES,
                    acks="all",
                    enable_idempotence=True,
                    compression_type=codec,
                )
            )
            for codec in CODECS
        ]
        self._bound = Client(
            partial(
                AIOKafkaProducer,
                **common,
                max_batch_size=RUN_BATCH_BYTES,
                transactional_id=f"{orders.topic}-{orders.seed}",
                transaction_timeout_ms=TRANSACTION_MS,
            )
        )
        self._skew_ms = [
            round(self._draw.uniform(-SKEW_S, SKEW_S) * orders.scale * 1000) for _ in range(orders.partitions)
        ]

    async def run(self) -> None:
        orders = self._orders
        for client in (*self._plain, self._bound):
            await client.start()
        senders = [asyncio.create_task(self._send(p)) for p in range(orders.partitions)]
        transacting = asyncio.create_task(self._transact())
        telling = asyncio.create_task(self._tell())
        began_s, done = time.monotonic(), 0
        while done < orders.events:
            due = min(orders.events, int((time.monotonic() - began_s) / orders.seconds * orders.events))
            for said in self._traffic.next(due - done, now_ms()):
                self._queue(said)
            done = due
            await asyncio.sleep(TICK_S)
        for said in self._traffic.left():
            self._queue(said)
        self._over = True
        for event in self._arrived:
            event.set()
        await asyncio.gather(*senders, transacting)
        telling.cancel()
        for client in (*self._plain, self._bound):
            await client.stop()

    def save(self) -> None:
        """Write what was acknowledged to `orders.out`."""
        batches = self._acked
        lengths = [len(batch.sums) for batch in batches]
        np.savez(
            self._orders.out,
            partition=np.repeat(np.array([batch.partition for batch in batches], np.int16), lengths),
            offset=np.concatenate(
                [np.arange(n) + batch.offset for n, batch in zip(lengths, batches, strict=True)]
            ),
            checksum=np.concatenate([np.array(batch.sums, np.uint32) for batch in batches]),
            poison=np.concatenate([np.array(batch.poison, np.bool_) for batch in batches]),
            at_ms=np.repeat(np.array([batch.at_ms for batch in batches], np.int64), lengths),
            counts=json.dumps(self.counts),
        )

    def _queue(self, said: Said) -> None:
        self._waiting[said.partition].append(said)
        self._arrived[said.partition].set()

    async def _send(self, partition: int) -> None:
        """Send what waits for one partition, batch after batch, each until it is acknowledged."""
        waiting, client = self._waiting[partition], self._plain[partition % len(CODECS)]
        while waiting or not self._over:
            if not waiting:
                self._arrived[partition].clear()
                await self._arrived[partition].wait()
                continue
            producer = client.current
            batch, sums, poison = self._filled(producer, partition, waiting)
            try:
                ack = await producer.send_batch(batch, self._orders.topic, partition=partition)
                sent = await ack
            except KafkaError as error:
                self._note(f"again: {type(error).__name__}")
                await client.renew(producer)
                continue
            del waiting[: len(sums)]
            self._acked.append(Placed(partition, sent.offset, now_ms(), sums, poison))
            self.counts["acknowledged"] += len(sums)

    async def _transact(self) -> None:
        """Runs in one partition, spread over the time; most of them are aborted, and one at least as it should be."""
        orders, every_s = self._orders, self._orders.seconds / (self._orders.runs + 1)
        run = 0
        while run < orders.runs or (run and not self.counts["aborted runs"]):
            run += 1
            await asyncio.sleep(every_s)
            aborted = not self.counts["aborted runs"] or self._draw.random() < RUNS_ABORTED
            records = orders.run_records if aborted else self._draw.randrange(1, orders.run_records)
            partition = self._draw.randrange(orders.partitions)
            said = self._traffic.run_of(partition, records, now_ms())
            producer = self._bound.current
            assert not aborted or _bytes(said) > orders.fetch_bytes, "an aborted run that one fetch holds"
            placed: list[Placed] = []
            try:
                await producer.begin_transaction()
                await self._write(producer, partition, said, placed)
                await (producer.abort_transaction() if aborted else producer.commit_transaction())
            except KafkaError as error:
                # Committed or not, nobody told us. The next one with our name aborts it if it is still open.
                self._note(f"transaction unknown: {type(error).__name__}")
                await self._bound.renew(producer)
                continue
            self.counts["aborted runs" if aborted else "committed runs"] += 1
            self.counts["aborted records" if aborted else "committed records"] += records
            if not aborted:
                self._acked += [batch._replace(at_ms=now_ms()) for batch in placed]
                self.counts["acknowledged"] += records

    async def _write(
        self,
        producer: AIOKafkaProducer,
        partition: int,
        run: Sequence[Said],
        placed: list[Placed],
    ) -> None:
        acks: list[tuple[Awaitable[Any], list[int], list[bool]]] = []
        at = 0
        while at < len(run):
            batch, sums, poison = self._filled(producer, partition, run[at:])
            at += len(sums)
            ack = await producer.send_batch(batch, self._orders.topic, partition=partition)
            acks.append((ack, sums, poison))
        for ack, sums, poison in acks:
            placed.append(Placed(partition, (await ack).offset, 0, sums, poison))

    def _filled(
        self, producer: AIOKafkaProducer, partition: int, waiting: Sequence[Said]
    ) -> tuple[Any, list[int], list[bool]]:
        """A batch of as many as fit; of each its checksum, and whether it is poison."""
        batch, clock_ms = producer.create_batch(), now_ms() + self._skew_ms[partition]
        jitter_ms = JITTER_S * self._orders.scale * 1000
        sums: list[int] = []
        for said in waiting:
            stamp_ms = clock_ms + round(self._draw.uniform(-jitter_ms, jitter_ms))
            added = batch.append(
                key=said.key, value=said.value, timestamp=stamp_ms, headers=list(said.headers)
            )
            if added is None:
                break
            sums.append(checksum(said.key, said.value, said.headers))
        return batch, sums, [said.poison for said in waiting[: len(sums)]]

    def _note(self, what: str) -> None:
        self.counts[what] += 1
        print(f"feed: {what}", file=sys.stderr, flush=True)

    async def _tell(self) -> None:
        while True:
            print(json.dumps(self.counts), flush=True)
            await asyncio.sleep(TELL_S)


def now_ms() -> int:
    """By this machine's clock."""
    return time.time_ns() // 1_000_000


def _bytes(run: Sequence[Said]) -> int:
    """At least so many bytes of the log."""
    return sum(len(said.key or b"") + len(said.value or b"") for said in run)


async def _main(orders: Orders) -> None:
    feed = Feed(orders)
    await feed.run()
    feed.save()
    print(json.dumps(feed.counts), flush=True)


def write_orders(orders: Orders, file: Path) -> None:
    """For `python -m tests.chaos.feed FILE`."""
    file.write_text(json.dumps(asdict(orders)))


if __name__ == "__main__":
    asyncio.run(_main(Orders(**json.loads(Path(sys.argv[1]).read_text()))))
