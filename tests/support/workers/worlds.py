"""A topic of clicks, its outputs and its state on the real servers, and workers in this process that come and go.

    produce ─▶ topic ─▶ working(prefix, kind) ─▶ records under the prefix · alerts · dead letters · scores
                   └──▶ offline(kind): one pipeline over the whole log, in memory, undisturbed: what must come out

A *kind* is a spec with a model that is arithmetic. Everything but the model is what production runs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, OffsetAndMetadata, TopicPartition
from numpy.typing import NDArray

from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import Spec, dump_spec, parse_spec
from ebbtide.featurestore.store.cache import Cache
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.model.explaining.explained import Explained
from ebbtide.ops.config.settings import RedisSettings, Settings, TopicSettings
from ebbtide.ops.worker.connect import open_store, topic_specs
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.consumer.app import build_app
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.kafka.committed_log import open_committed_log
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import LogRecord, read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import ensure_topics
from ebbtide.stream.kafka.transactions.sink import ExactlyOnce
from ebbtide.stream.outputs.message import Delivery, Message
from ebbtide.stream.outputs.pre_commit import Outputs
from ebbtide.stream.pipeline import Tools
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.telemetry import Telemetry
from ebbtide.stream.turn.limits import Limits
from ebbtide.stream.worker import Worker
from tests.support.patience import PATIENCE_S
from tests.support.seams.scoring import SPEC, ArithmeticModel
from tests.support.seams.streams import ListSink
from tests.support.seams.turns import from_the_beginning, take_over
from tests.support.servers.services import Services

T0 = 1_700_000_000_000
CUSTOMERS = 60
PARTITIONS = 3


class Arithmetic(ArithmeticModel):
    """The formula of `ArithmeticModel` under any spec."""

    def __init__(self, spec: Spec, policy: EpisodePolicy, version: int) -> None:
        super().__init__(sizes=(8, 64), policy=policy)
        self.version, self._features = version, len(features(spec))

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        values = np.zeros((len(rows), self._features), np.float32)
        values[:, 0] = (as_of - rows["last_seen"]) / 86_400_000
        return Explained.by(values, values.copy())


@dataclass(frozen=True)
class Kind:
    """What decides: a layout and a model."""

    layout: Layout
    model: Arithmetic


OLD = Kind(Layout(SPEC), Arithmetic(SPEC, EpisodePolicy.of(enter=0.4, exit=0.3, cooldown_ms=0), version=1))
_NEW_SPEC = parse_spec(
    dump_spec(SPEC)
    | {"name": "shop2", "windows": {"3d": 6, "30d": 6}, "silence": {"first": "12h", "ratio": 1.7}}
)
NEW = Kind(
    Layout(_NEW_SPEC), Arithmetic(_NEW_SPEC, EpisodePolicy.of(enter=0.5, exit=0.2, cooldown_ms=0), version=2)
)


@dataclass(frozen=True)
class Said:
    """A record of the alert topic: of `customer`, None where it passes a tombstone on; decided at `offset`."""

    customer: bytes
    value: bytes | None
    partition: int = -1
    offset: int = -1


class Clicks:
    """An endless seeded stream of visits, purchases, mails, goodbyes, tombstones and records that are no JSON."""

    def __init__(self, seed: int, topic: str, tombstones: float = 0.02) -> None:
        self._rng, self._topic, self._tombstones = np.random.default_rng(seed), topic, tombstones
        self._ts, self._made = T0, 0

    def next(self, count: int) -> list[Message]:
        """The next records."""
        return [self._one() for _ in range(count)]

    def _one(self) -> Message:
        rng = self._rng
        self._made += 1
        self._ts += int(rng.exponential(4 * 3_600_000))
        key = f"customer-{int(rng.integers(CUSTOMERS))}".encode()
        draw = rng.random()
        if draw < 0.02:
            return Message(self._topic, key, b"nonsense of " + key, (), self._ts)
        if draw < 0.02 + self._tombstones:
            return Message(self._topic, key, None, (), self._ts)
        kind = str(rng.choice(["visit", "purchase", "mail", "goodbye"], p=[0.55, 0.2, 0.22, 0.03]))
        event = {"user_id": key.decode(), "event_id": f"e{self._made}", "type": kind, "ts": self._ts}
        value = orjson.dumps({**event, "value": float(self._made % 7)})
        return Message(self._topic, key, value, (), self._ts)


class World:
    """One input topic with outputs of its own. `settings` name them; prefixes and kinds are said where they matter."""

    clock = SystemClock()

    def __init__(self, stack: Services, name: str, *, scores: bool = False, audit: bool = False) -> None:
        self.name = name
        self.settings = Settings(
            kafka=KafkaSettings(
                url=stack.kafka_url, topic=name, group=name, session_timeout_s=6.0, heartbeat_interval_s=0.3,
                commit_interval_s=0.2, fetch_records_max=100, fetch_partition_bytes_max=16 << 10,
            ),
            redis=RedisSettings(url=stack.redis_url, prefix=f"{name}:old:"),
            topics=TopicSettings(
                alerts=f"{name}-alerts", dead_letters=f"{name}-dead", scores=f"{name}-scores" if scores else None,
                audit=f"{name}-audit" if audit else None, partitions=PARTITIONS,
            ),
        )  # fmt: skip

    async def create(self) -> None:
        """Make the topics."""
        await ensure_topics(self.settings.kafka, topic_specs(self.settings))

    def prefix(self, name: str) -> str:
        """A redis.prefix of this world."""
        return f"{self.name}:{name}:"

    def under(self, name: str) -> Settings:
        """The settings with another prefix."""
        redis = self.settings.redis.model_copy(update={"prefix": self.prefix(name)})
        return self.settings.model_copy(update={"redis": redis})

    def tools(self, kind: Kind, store: Store, sink: Delivery, telemetry: Telemetry | None = None) -> Tools:
        """What a pipeline works with."""
        topics, said = self.settings.topics, telemetry or Telemetry()
        batcher = Batcher(lambda: kind.model, self.clock, said, deadline_s=0.05, linger_s=0.0)
        cache = Cache(kind.layout.dtype, 4096 * kind.layout.itemsize)
        return Tools(
            self.settings.kafka.topic, Outputs(
                topics.alerts, topics.dead_letters, topics.scores, topics.audit,
                composite=kind.layout.spec.customer is not None,
            ),
            kind.layout, Folder(kind.layout), Parser(kind.layout.spec), store, cache, sink, batcher, self.clock, said,
            at_risk_from=0.0,  # everybody is listed, so that there is a place more where somebody may be left
        )  # fmt: skip

    @asynccontextmanager
    async def store(self, prefix: str, kind: Kind) -> AsyncIterator[RedisStore]:
        async with open_store(self.under(prefix), kind.layout, PARTITIONS) as store:
            yield store

    @asynccontextmanager
    async def working(
        self,
        prefix: str,
        kind: Kind,
        *,
        drain: bool = True,
        telemetry: Telemetry | None = None,
        delivery: KafkaSink | ExactlyOnce | None = None,
    ) -> AsyncIterator[Worker]:
        """A worker in the group. At the end it drains and leaves; without `drain` its work is cut off, as by a kill
        that somehow still says goodbye to the group. `delivery`: its way out, if not at least once."""
        kafka = self.settings.kafka
        async with self.store(prefix, kind) as store, delivery or KafkaSink(kafka) as sink:
            tools = self.tools(kind, store, sink, telemetry)
            worker = Worker(
                tools, alerts_from="start", limits=Limits(piece_records_max=300, dead_letter_share_max=1.0)
            )
            app = build_app(kafka, worker.deliver, worker.assigned, worker.revoked)
            worker.attach(app.source)
            running = asyncio.create_task(worker.run())
            await app.start()
            try:
                yield worker
                if drain:
                    assert await worker.drain(10.0)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await app.stop()
                tools.batcher.close()

    async def produce(self, messages: Iterable[Message]) -> None:
        """Send, in this order."""
        async with KafkaSink(self.settings.kafka) as sink:
            await sink.send_all(list(messages))

    async def produce_in_transactions(self, clicks: Clicks, rounds: int, records: int) -> None:
        """Every other transaction is aborted; its records are longer than a fetch and are not to be seen."""
        producer = AIOKafkaProducer(
            bootstrap_servers=self.settings.kafka.url, transactional_id=self.name, max_batch_size=4096
        )
        await producer.start()
        for n in range(rounds):
            await producer.begin_transaction()
            for message in clicks.next(records):
                value = message.value if n % 2 == 0 or message.value is None else message.value + b" " * 200
                await producer.send(message.topic, value, message.key, timestamp_ms=message.timestamp_ms)
            await (producer.commit_transaction() if n % 2 == 0 else producer.abort_transaction())
        await producer.stop()

    async def committed(self) -> dict[int, int]:
        """The group's marks, as Kafka has them."""
        async with open_committed_log(self.settings.kafka) as settled:
            return {number: committed.offset for number, committed in (await settled.committed()).items()}

    async def until_done(self) -> dict[int, int]:
        """Wait until the group's committed offsets are at the ends of the log; returns them."""
        async with open_committed_log(self.settings.kafka) as settled:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    committed, ranges = await settled.committed(), await settled.ranges()
                    found = {number: committed.offset for number, committed in committed.items()}
                    if all(found.get(number, begin) == end for number, (begin, end) in ranges.items()):
                        return found
                    await asyncio.sleep(0.05)

    async def log(self) -> dict[int, list[LogRecord]]:
        """The input as it lies there, by partition."""
        found: dict[int, list[LogRecord]] = {number: [] for number in range(PARTITIONS)}
        async for record in read_topic(self.settings.kafka, self.settings.kafka.topic):
            found[record.partition].append(record)
        return found

    async def records(self, prefix: str, kind: Kind) -> dict[str, bytes]:
        """Every customer's record under a prefix."""
        async with self.store(prefix, kind) as store:
            return await records_of(store)

    async def checkpoints(self, prefix: str, kind: Kind) -> dict[int, Checkpoint | None]:
        """Every partition's checkpoint under a prefix."""
        async with self.store(prefix, kind) as store:
            return {number: await store.checkpoint(number) for number in range(PARTITIONS)}

    async def read(self, topic: str | None) -> list[LogRecord]:
        """All of an output topic."""
        assert topic is not None
        return [record async for record in read_topic(self.settings.kafka, topic)]

    async def said(self) -> list[Said]:
        """All of the alert topic."""
        return [
            said_of(record.key or b"", record.value)
            for record in await self.read(self.settings.topics.alerts)
        ]

    async def offline(self, kind: Kind) -> tuple[dict[str, bytes], list[Said]]:
        """Records and alerts (no tombstones) of one undisturbed pipeline over the whole log as it is now.

        A record at a time, since where an alert was decided stands nowhere in it: a silence's own offset is that of the
        last activity, far before the event that tells it.
        """
        store, sink = MemoryStore(kind.layout.dtype, PARTITIONS), ListSink()
        tools = self.tools(kind, store, sink)
        alerts: list[Said] = []
        scoring = asyncio.create_task(tools.batcher.run())
        for number, log in (await self.log()).items():
            if not log:
                continue
            opened = from_the_beginning(kind.layout.id, number, PARTITIONS)
            for record in log:
                start, end, n = opened.checkpoint.offset, record.offset + 1, len(alerts)
                batch = FetchedBatch(self.settings.kafka.topic, number, 0, start, end, [record])
                await take_over(tools, opened, batch)
                decided = sink.sent.get(self.settings.topics.alerts, [])[n:]
                alerts += [Said(m.key or b"", m.value, number, record.offset) for m in decided]
        scoring.cancel()
        await asyncio.gather(scoring, return_exceptions=True)
        tools.batcher.close()
        return await records_of(store), [alert for alert in alerts if alert.value is not None]


async def records_of(store: Store) -> dict[str, bytes]:
    """Every stored customer's record."""
    found: dict[str, bytes] = {}
    for partition in range(PARTITIONS):
        async for customers, rows in store.scan(partition):
            found |= {name: rows[i].tobytes() for i, name in enumerate(customers)}
    return found


def said_of(key: bytes, value: bytes | None) -> Said:
    """A record of the alert topic, read."""
    decision: dict[str, Any] = orjson.loads(value)["decision"] if value is not None else {}
    return Said(key, value, decision.get("partition", -1), decision.get("offset", -1))


async def commit(world: World, offsets: dict[int, int]) -> None:
    """Move the group's committed offsets, as a tool of Kafka's would."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=world.settings.kafka.url,
        group_id=world.settings.kafka.group,
        enable_auto_commit=False,
    )
    await consumer.start()
    tps = {TopicPartition(world.name, number): at for number, at in offsets.items()}
    consumer.assign(list(tps))
    await consumer.commit({tp: OffsetAndMetadata(at, "") for tp, at in tps.items()})
    await consumer.stop()


async def eventually(happened: Callable[[], bool], what: str) -> None:
    """Wait until it has happened, and not for ever."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():  # noqa: ASYNC110 -- what happens is told by no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None
