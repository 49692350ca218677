"""What the parts of our service cost alone, one after the other, on the run's own events, model and servers.

    python -m tests.bench.parts KAFKA REDIS DIRECTORY TOPIC ALERTS KNOWN COUNT

    fetch ─▶ parse ─▶ load ─▶ fold ─▶ score ─▶ store           emit

Prints JSON: µs of this process's CPU an event in each part (TensorFlow's threads included, the servers not), over COUNT
events of a topic that come after KNOWN others, which were stored before. Nothing happens beside them: no waiting, no
event loop between them, no second partition's work. Their sum over what a worker really spends an event is its
*efficiency*. Batches are as large as a fetch's; rows are scored at the largest size; `emit` is a share of alerts, each
as costly as one of the run's own. What is not a part, but work of the worker: deciding, reasons, metrics, committing.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.cache import Cache, load_through
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.config.settings import RedisSettings
from ebbtide.ops.tensorflow import load_tensorflow
from ebbtide.stream.batch import Record
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import read_topic, reader
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from ebbtide.stream.outputs.message import Message
from tests.bench.producer import PARTITIONS
from tests.bench.traffic import SPEC, event_number

PARTS = ("fetch", "parse", "load", "fold", "score", "store", "emit")
BATCH = 1_000  # records: as many as a fetch gives
ALERTS_A_BATCH = 20
ALERTS_SENT = 2_000
PREFIX = "parts:"


class Spent:
    """CPU seconds of this process by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """What is spent meanwhile."""
        start = time.process_time()
        yield
        self.seconds[part] += time.process_time() - start


async def fetched(settings: KafkaSettings, count: int) -> tuple[dict[int, list[Record]], float]:
    """The first `count` records of the topic by partition, and the CPU seconds that aiokafka took for each."""
    found: dict[int, list[Record]] = defaultdict(list)
    got, start = 0, time.process_time()
    async with reader(settings, settings.topic) as (consumer, partitions):
        await consumer.seek_to_beginning(*partitions)
        while got < count:
            for tp, records in (await consumer.getmany(timeout_ms=1000, max_records=BATCH)).items():
                found[tp.partition] += records
                got += len(records)
    return found, (time.process_time() - start) / got


class Bench:
    """The parts that need state, a batch after the other, as one owner of every partition."""

    def __init__(self, store: RedisStore, scorer: Any) -> None:
        layout = Layout(SPEC)
        self._parser, self._folder, self._scorer, self._store = Parser(SPEC), Folder(layout), scorer, store
        self._cache = Cache(layout.dtype, RedisSettings().cache_bytes_max)
        self._checkpoints: dict[int, Checkpoint] = {}
        self._layout = layout
        self._rows, self._as_of = layout.empty(0), np.zeros(0, np.int64)
        self.spent, self.events, self.rows = Spent(), 0, 0

    async def take(self, partition: int, records: list[Record]) -> None:
        """A batch through parse, load, fold and store; its points wait for `score`."""
        spent, before = self.spent, self._checkpoints.get(partition)
        with spent.on("parse"):
            events: EventBatch = self._parser.parse(records).events
        with spent.on("load"):
            rows, _ = await load_through(self._cache, self._store, partition, before, events.customers)
        with spent.on("fold"):
            after, points = self._folder.fold(rows, events)
        with spent.on("store"):
            sequence = before.sequence + 1 if before else 1
            checkpoint = Checkpoint(records[-1].offset + 1, sequence, 0, self._layout.id, PARTITIONS)
            due = self._folder.due(after)
            commit = Commit(partition, before, checkpoint, events.customers, after, due)
            await self._store.apply(commit)
            self._cache.put(commit)
        self._checkpoints[partition] = checkpoint
        chosen = np.flatnonzero(points.scored)
        self._rows = np.concatenate([self._rows, points.rows[chosen]])
        self._as_of = np.concatenate([self._as_of, points.as_of[chosen]])
        self.events += len(events)
        self.rows += len(chosen)
        self._score(full=True)

    def start(self) -> None:
        """From here on it counts."""
        self.spent, self.events, self.rows = Spent(), 0, 0

    def finish(self) -> None:
        """Score what is left."""
        self._score(full=False)

    def _score(self, *, full: bool) -> None:
        size = self._scorer.sizes[-1]
        while len(self._rows) >= (size if full else 1):
            with self.spent.on("score"):
                self._scorer.score(self._rows[:size], self._as_of[:size])
            self._rows, self._as_of = self._rows[size:], self._as_of[size:]


async def emit_s(settings: KafkaSettings, alerts: str, topic: str) -> float:
    """CPU seconds an alert, sent in company and waited for."""
    said = [record async for record in read_topic(settings, alerts)][:ALERTS_SENT]
    messages = [
        Message(topic, record.key, record.value, [("emitted_at_ms", b"1700000000000")]) for record in said
    ]
    if not messages:
        return 0.0
    await ensure_topics(settings, [TopicSpec(topic, PARTITIONS, "-")])
    async with KafkaSink(settings) as sink:
        await sink.send_all(messages[:ALERTS_A_BATCH])
        start = time.process_time()
        for at in range(0, len(messages), ALERTS_A_BATCH):
            await sink.send_all(messages[at : at + ALERTS_A_BATCH])
        return (time.process_time() - start) / len(messages)


def in_turn(logs: dict[int, list[Record]], numbers: range) -> Iterator[tuple[int, list[Record]]]:
    """Batches of the events of these numbers, partition after partition."""
    chosen = {
        number: [record for record in log if event_number(record.value or b"") in numbers]
        for number, log in sorted(logs.items())
    }
    for at in range(0, max(map(len, chosen.values()), default=0), BATCH):
        for number, log in chosen.items():
            if log[at : at + BATCH]:
                yield number, log[at : at + BATCH]


async def measure(
    kafka: str, redis: str, directory: Path, topic: str, alerts: str, known: int, count: int
) -> dict[str, float]:
    """µs an event by part, and under `alert` µs an alert, `rows` the rows an event."""
    load_tensorflow()
    from ebbtide.model.serving.runtime import configure
    from ebbtide.model.serving.scorer import Scorer

    configure()
    scorer = Scorer.load(directory / "models" / SPEC.name, Layout(SPEC))
    settings = KafkaSettings(url=kafka, group=f"{topic}-parts", topic=topic)
    logs, fetch_s = await fetched(settings, known + count)
    store = RedisStore(redis, Layout(SPEC).dtype, topic, PARTITIONS, prefix=PREFIX)
    try:
        bench = Bench(store, scorer)
        for number, batch in in_turn(logs, range(known)):
            await bench.take(number, batch)
        bench.start()
        for number, batch in in_turn(logs, range(known, known + count)):
            await bench.take(number, batch)
        bench.finish()
    finally:
        for number in range(PARTITIONS):
            await store.reset(number)
        await store.close()
    found = {part: s / bench.events * 1e6 for part, s in bench.spent.seconds.items()}
    sent = await emit_s(settings, alerts, f"{alerts}-parts")
    return {"fetch": fetch_s * 1e6, **found, "alert": sent * 1e6, "rows": bench.rows / bench.events}


def main(kafka: str, redis: str, directory: str, topic: str, alerts: str, known: str, count: str) -> None:
    told = asyncio.run(measure(kafka, redis, Path(directory), topic, alerts, int(known), int(count)))
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
