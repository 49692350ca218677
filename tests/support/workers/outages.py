"""A whole service whose servers can be taken away: Kafka and Valkey of its own, each behind a proxy, and its producers.

    feed ──────────────────────────────▶ Kafka ◀── proxy ──┐
    log, offsets, group  ◀── direct ────┘                  worker (a process, or in this one)
    what is stored       ◀── direct ──── Valkey ◀─ proxy ──┘

The worker knows its servers by the proxies' ports only; the test asks them directly, so it can see what the worker
cannot. `same_as_the_log` is the verdict: whatever happened, records and alerts are those of a run in memory, without
faults, over the log as Kafka holds it.
"""

import asyncio
import json
import resource
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client.parser import text_string_to_metric_families

from ebbtide.featurestore.events.parse import ParseLimits, Parser
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import dump_spec, load_spec
from ebbtide.featurestore.store.cache import Cache
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.model.serving.scorer import Scorer
from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.config.settings import Settings, TimerSettings
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.ops.stack.local import LocalKafka, LocalValkey
from ebbtide.ops.stack.server import free_ports
from ebbtide.ops.worker.compose import serving
from ebbtide.ops.worker.connect import open_store
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.batch import CommittedOffset, Source
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.consumer.app import build_app
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.outputs.message import Delivery
from ebbtide.stream.outputs.pre_commit import Outputs
from ebbtide.stream.pipeline import Tools
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.turn.limits import Limits
from ebbtide.stream.worker import Worker
from tests.support.patience import PATIENCE_S
from tests.support.seams.models import TINY, publish
from tests.support.seams.streams import Faults, ListSink, LogRecord, LogSource
from tests.support.servers.listener import proxied_listener
from tests.support.servers.proxy import Proxy

PARTITIONS = 4
CUSTOMERS = 200
T0_MS = 1_700_000_000_000
EVENT_EVERY_MS = 240_000
SHIFT_EVENTS = 250
"""Ten shifts: who is not on is silent for six days of event time, so that episodes open and close all the time."""
POLICY = PolicySettings(enter=0.38, exit=0.38, cooldown=0)
"""Between what the tiny model says of the silent and of the active."""


@dataclass(frozen=True)
class Outage:
    """Servers, the proxies before them, and a model. Its methods are blocking."""

    kafka: LocalKafka
    valkey: LocalValkey
    kafka_proxy: Proxy
    redis_proxy: Proxy
    folder: Path

    def settings(self, name: str, *, topic: str | None = None, **more: Any) -> Settings:
        """Of a worker whose group and keys are called `name`; everything times out in seconds. `more`: its fields."""
        topic = topic or name
        base = Settings(
            spec=self.folder / "spec.yaml", model=self.folder / "models" / TINY.name, policy=POLICY,
            alerts_from="start", drain_grace_s=10.0, timers=TimerSettings(clock="off"),
            kafka=KafkaSettings(
                url=f"127.0.0.1:{self.kafka_proxy.port}", topic=topic, group=name, session_timeout_s=3.0,
                heartbeat_interval_s=0.5, poll_interval_max_s=6.0, request_timeout_s=5.0, commit_interval_s=0.2,
            ),
        )  # fmt: skip
        redis = base.redis.model_copy(
            update={
                "url": f"redis://127.0.0.1:{self.redis_proxy.port}/0",
                "prefix": f"{name}:",
                "timeout_s": 2.0,
            }
        )
        topics = base.topics.model_copy(
            update={"alerts": f"{name}-alerts", "dead_letters": f"{name}-dead", "partitions": PARTITIONS}
        )
        return base.model_copy(update={"redis": redis, "topics": topics, **more})

    def direct(self, settings: Settings) -> Settings:
        """The same, past the proxies: for the test itself."""
        redis = settings.redis.model_copy(update={"url": self.valkey.url})
        kafka = settings.kafka.model_copy(
            update={"url": self.kafka.url.split(",")[0], "request_timeout_s": 60.0}
        )
        return settings.model_copy(update={"redis": redis, "kafka": kafka})


@contextmanager
def outage(folder: Path, sizes: tuple[int, ...] = (8, 64)) -> Iterator[Outage]:
    """Everything up and passing; all of it ends with the block."""
    (folder / "spec.yaml").write_text(yaml.safe_dump(dump_spec(TINY)))
    publish(folder / "models", spec=TINY, sizes=sizes)
    (inner,) = free_ports(1)
    with (
        Proxy(inner) as kafka_proxy,
        LocalValkey() as valkey,
        Proxy(valkey.port) as redis_proxy,
        LocalKafka(settings=proxied_listener(inner, kafka_proxy)) as kafka,
    ):
        yield Outage(kafka, valkey, kafka_proxy, redis_proxy, folder)


# -- producers


def event(n: int) -> tuple[int, bytes, bytes]:
    """Partition, key and value of the n-th event: a visit by one of the 20 whose shift it is; the others are silent."""
    who = (n // SHIFT_EVENTS * 20 + n * 7 % 20) % CUSTOMERS
    key = f"customer-{who}"
    value = {"user_id": key, "event_id": f"e{n}", "type": "visit", "ts": T0_MS + n * EVENT_EVERY_MS}
    return who % PARTITIONS, key.encode(), orjson.dumps(value)


class Feed:
    """Events at `per_s` in the block, until `stop`. `sent`: how many were handed over."""

    def __init__(self, settings: Settings, per_s: float = 500.0) -> None:
        self._settings, self._per_s = settings, per_s
        self.sent = 0
        self._more = 0
        self._over = False
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def _run(self) -> None:
        async with AIOKafkaProducer(
            bootstrap_servers=self._settings.kafka.url, enable_idempotence=True, request_timeout_ms=180_000,
            linger_ms=5, max_batch_size=1 << 20,
        ) as producer:  # fmt: skip
            acks: list[Any] = []
            while not self._over:
                await self._flowing.wait()
                count, self._more = max(1, round(self._per_s / 20)) + self._more, 0
                for _ in range(count):
                    partition, key, value = event(self.sent)
                    at_ms = orjson.loads(value)["ts"]
                    acks.append(await producer.send(self._settings.kafka.topic, value, key, partition, at_ms))
                    self.sent += 1
                await asyncio.sleep(0.05)
            await asyncio.gather(*acks)

    def burst(self, count: int) -> None:
        """So many more, as fast as it goes."""
        self._more += count

    def hold(self) -> None:
        """Send nothing until `go_on`."""
        self._flowing.clear()

    def go_on(self) -> None:
        self._flowing.set()

    async def until(self, sent: int) -> None:
        await until(lambda: self.sent >= sent, f"{sent} events produced")

    async def stop(self) -> int:
        """Returns how many are in the log; waits for a Kafka that is away.

        They may be more than were sent. Kafka forgets a producer by the times of its records, and ours are years old
        (`producer.id.expiration.ms` is 24 days at most): what a killed broker wrote and did not answer is taken twice.
        """
        self._over = True
        self._flowing.set()
        await self._task
        topic = self._settings.kafka.topic
        async with AIOKafkaConsumer(bootstrap_servers=self._settings.kafka.url) as consumer:
            ends = await consumer.end_offsets([TopicPartition(topic, n) for n in range(PARTITIONS)])
        written: int = sum(ends.values())
        assert written >= self.sent, f"{self.sent} acknowledged, {written} in the log"
        return written

    async def __aenter__(self) -> "Feed":
        self._task = asyncio.create_task(self._run(), name="feed")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def produce(settings: Settings, first: int, count: int) -> None:
    """Events `first` to `first + count` as fast as it goes."""
    async with AIOKafkaProducer(
        bootstrap_servers=settings.kafka.url, enable_idempotence=True, linger_ms=5, max_batch_size=1 << 18
    ) as producer:
        acks = []
        for n in range(first, first + count):
            partition, key, value = event(n)
            # Arrived when it happened: an event that is years older than its arrival is a dead letter.
            at_ms = orjson.loads(value)["ts"]
            acks.append(await producer.send(settings.kafka.topic, value, key, partition, at_ms))
        await asyncio.gather(*acks)


# -- a worker in this process


@dataclass
class Inner:
    """A worker without a process: real Faust, Kafka and Redis, this process's model."""

    worker: Worker
    source: Source
    metrics: Metrics
    tools: Tools
    running: asyncio.Task[None]

    def described(self) -> str:
        """Where its partitions stand: for the message of a wait that was in vain."""
        positions, lags = self.source.positions(), self.worker.lags()
        found = [
            f"{n}: {p.state}, {positions.get(n)}, {lags.get(n)}" for n, p in self.worker.partitions.items()
        ]
        return "; ".join(found + self.worker.not_ready_reasons)

    def value(self, name: str, **labels: str) -> float:
        """A sample of its metrics, 0 when there is none."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def tools_of(settings: Settings, scorer: Any, store: Store, sink: Delivery, metrics: Metrics) -> Tools:
    """What all partitions share, as `ops/worker/run.py` puts it together."""
    spec = load_spec(settings.spec)
    layout, clock = Layout(spec), SystemClock()
    now_serving = serving(scorer, settings.policy)
    return Tools(
        topic=settings.kafka.topic,
        outputs=Outputs(settings.topics.alerts, settings.topics.dead_letters, settings.topics.scores),
        layout=layout, folder=Folder(layout),
        parser=Parser(spec, ParseLimits(value_bytes_max=settings.record_bytes_max)),
        store=store, cache=Cache(layout.dtype, settings.redis.cache_bytes_max), sink=sink,
        batcher=Batcher(
            lambda: now_serving, clock, metrics,
            deadline_s=settings.batching.deadline_s, linger_s=settings.batching.linger_s,
        ),
        clock=clock, telemetry=metrics,
    )  # fmt: skip


@asynccontextmanager
async def inner_worker(settings: Settings, scorer: Any) -> AsyncIterator[Inner]:
    """Joins the group in the block and leaves it, drained, at its end. It asks no server anything before."""
    layout, metrics = Layout(load_spec(settings.spec)), Metrics()
    assert settings.redis.url is not None
    store = RedisStore(
        settings.redis.url, layout.dtype, settings.kafka.topic, PARTITIONS,
        prefix=settings.redis.prefix, timeout_s=settings.redis.timeout_s,
    )  # fmt: skip
    async with KafkaSink(settings.kafka) as sink:
        tools = tools_of(settings, scorer, store, sink, metrics)
        worker = Worker(
            tools, alerts_from=settings.alerts_from,
            limits=Limits(
                queued_batches_max=settings.batching.queued_batches_max,
                dead_letter_share_max=settings.dead_letter_share_max,
            ),
        )  # fmt: skip
        app = build_app(settings.kafka, worker.deliver, worker.assigned, worker.revoked)
        worker.attach(app.source)
        running = asyncio.create_task(worker.run())
        await app.start()
        try:
            yield Inner(worker, app.source, metrics, tools, running)
        finally:
            await worker.drain(settings.drain_grace_s)
            await app.stop()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            tools.batcher.close()
            await store.close()


def load_scorer(outage: Outage) -> Scorer:
    return Scorer.load(outage.folder / "models" / TINY.name, Layout(TINY))


# -- the verdict


async def log_of(settings: Settings) -> list[list[LogRecord]]:
    """The input topic as Kafka holds it, a list a partition."""
    logs: list[list[LogRecord]] = [[] for _ in range(PARTITIONS)]
    async for r in read_topic(settings.kafka, settings.kafka.topic):
        assert r.offset == len(logs[r.partition]), "this log has no gaps"
        logs[r.partition].append(LogRecord(r.offset, r.timestamp, r.key, r.value, r.headers))
    return logs


async def marks_of(settings: Settings) -> dict[int, CommittedOffset]:
    """The group's committed offsets."""
    client = AIOKafkaAdminClient(bootstrap_servers=settings.kafka.url)
    await client.start()
    try:
        found = await client.list_consumer_group_offsets(settings.kafka.group)
    finally:
        await client.close()
    return {tp.partition: CommittedOffset(o.offset, o.metadata) for tp, o in found.items()}


async def members_of(settings: Settings) -> tuple[str, set[str]]:
    """The group's state and the ids of its members, as its coordinator knows them."""
    client = AIOKafkaAdminClient(bootstrap_servers=settings.kafka.url)
    await client.start()
    try:
        (described,) = await client.describe_consumer_groups([settings.kafka.group])
    finally:
        await client.close()
    _, _, state, _, _, members, *_ = described.groups[0]
    return state, {member[0] for member in members}


async def records_in(store: Store) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for partition in range(PARTITIONS):
        async for customers, rows in store.scan(partition):
            found |= {name: rows[i].tobytes() for i, name in enumerate(customers)}
    return found


async def ids_in(settings: Settings) -> list[str]:
    """Ids of all alerts in the topic, in no order."""
    return [
        str(json.loads(r.value)["alert_id"])
        async for r in read_topic(settings.kafka, settings.topics.alerts)
        if r.value is not None
    ]


async def replayed(settings: Settings, scorer: Any, logs: list[list[LogRecord]]) -> tuple[Any, set[str]]:
    """Records and alert ids of a faultless run in memory over `logs`."""
    layout = Layout(load_spec(settings.spec))
    store, sink = MemoryStore(layout.dtype, PARTITIONS), ListSink()
    source = LogSource(settings.kafka.topic, logs, seed=0, faults=Faults(0, 0.0), records_max=900)
    worker = Worker(tools_of(settings, scorer, store, sink, Metrics()), alerts_from="start")
    worker.attach(source)
    tasks = [asyncio.create_task(worker.run()), asyncio.create_task(source.pump(worker.deliver))]
    await asyncio.sleep(0)
    worker.assigned(source.assigned())
    await until(source.done, "the replay in memory")
    assert await worker.drain(PATIENCE_S)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    sent = sink.sent.get(settings.topics.alerts, [])
    return await records_in(store), {str(json.loads(m.value)["alert_id"]) for m in sent if m.value}


async def applied(settings: Settings, store: Store) -> int:
    """How many offsets of the topic are behind the checkpoints, in all."""
    checkpoints = [await store.checkpoint(partition) for partition in range(PARTITIONS)]
    return sum(checkpoint.offset for checkpoint in checkpoints if checkpoint is not None)


async def same_as_the_log(settings: Settings, scorer: Any, *, twice: int | None = None) -> int:
    """Assert that records and alerts are the log's, and that marks, checkpoints and log end agree. Returns alerts sent
    twice;
    `twice`: at most so many."""
    logs = await log_of(settings)
    records, alerts = await replayed(settings, scorer, logs)
    async with open_store(settings, Layout(load_spec(settings.spec)), PARTITIONS) as store:
        ends = {partition: len(log) for partition, log in enumerate(logs)}
        checkpoints = [await store.checkpoint(partition) for partition in range(PARTITIONS)]
        assert {n: checkpoint.offset for n, checkpoint in enumerate(checkpoints) if checkpoint} == ends
        assert {n: committed.offset for n, committed in (await marks_of(settings)).items()} == ends
        assert await records_in(store) == records
        assert [await store.outbox(partition) for partition in range(PARTITIONS)] == [[]] * PARTITIONS
    sent = await ids_in(settings)
    assert set(sent) == alerts
    assert len(alerts) > 10, "a log without alerts proves little"
    again = len(sent) - len(alerts)
    assert twice is None or again <= twice, f"{again} alerts were sent twice"
    return again


async def until(
    condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S, instead: Callable[[], str] = str
) -> float:
    """Wait for a condition (it may be a coroutine function); returns how long it took, seconds. `instead` says what
    there was when it did not come."""
    clock = SystemClock()
    begin_s = clock.monotonic_s()
    while True:
        answer = condition()
        if await answer if asyncio.iscoroutine(answer) else answer:
            return clock.monotonic_s() - begin_s
        assert clock.monotonic_s() - begin_s < timeout_s, f"not within {timeout_s} s: {what}, {instead()}"
        await asyncio.sleep(0.02)


def rss_bytes(pid: int) -> int:
    """What a process has resident now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Watch:
    """What a worker process says of itself, ten times a second: /readyz and what it has resident."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker, self._clock = worker, SystemClock()
        self.status, self.reason = 0, ""
        self.rss_bytes_max = 0

    async def _run(self) -> None:
        while True:
            self.status, self.reason = await asyncio.to_thread(readiness, self._worker.address)
            self.rss_bytes_max = max(self.rss_bytes_max, rss_bytes(self._worker.pid))
            await asyncio.sleep(0.1)

    async def until(self, status: int, words: str = "", timeout_s: float = PATIENCE_S) -> float:
        """Wait for this status and a reason that contains `words`; returns how long it took, seconds."""
        return await until(
            lambda: self.status == status and words in self.reason,
            f"/readyz {status} {words!r}", timeout_s, lambda: f"{self.status} {self.reason}",
        )  # fmt: skip

    async def __aenter__(self) -> "Watch":
        self._task = asyncio.create_task(self._run(), name="watch")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def readiness(address: str) -> tuple[int, str]:
    """Status of /readyz and its reason; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(address + "/readyz", timeout=10) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, str(json.loads(error.read())["reason"])
    except OSError as error:
        return 0, str(error)


def samples(address: str) -> dict[str, float]:
    """Every sample of /metrics: name, or name{label=value}, to its value."""
    with urllib.request.urlopen(address + "/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        s.name + ("{" + ",".join(f"{k}={v}" for k, v in s.labels.items()) + "}" if s.labels else ""): s.value
        for family in families
        for s in family.samples
    }


async def sigterm(worker: WorkerProcess, timeout_s: float = PATIENCE_S) -> tuple[int, float]:
    """Tell it to end; returns its exit code and how long that took, seconds."""
    process, clock = worker._process, SystemClock()
    assert process is not None
    begin_s = clock.monotonic_s()
    process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(process.wait, timeout_s)
    return code, clock.monotonic_s() - begin_s
