"""A worker's whole world in memory: logs, store, sink and model that outlive workers, as servers do; and what a run
without faults makes of them.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import numpy as np
import orjson

from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.store.cache import Cache
from ebbtide.stream.clock import Clock, SystemClock
from ebbtide.stream.outputs.dead_letter import parse_headers
from ebbtide.stream.outputs.pre_commit import Outputs
from ebbtide.stream.pipeline import Tools
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.telemetry import Telemetry
from ebbtide.stream.turn.limits import Limits
from ebbtide.stream.turn.state import Retrying, State
from ebbtide.stream.worker import Worker
from tests.support.patience import PATIENCE_S
from tests.support.seams.scoring import LAYOUT, SPEC, ArithmeticModel
from tests.support.seams.streams import Faults, FaultyStore, ListSink, LogRecord, LogSource

TOPIC, PARTITIONS = "clickstream", 3
DAY_MS = 86_400_000
T0 = 1_700_000_000_000
LIMITS = Limits(queued_batches_max=2, piece_records_max=60, dead_letter_share_max=1.0, idle_check_s=0.05)


def logs_of(seed: int, events: int = 1_500, customers: int = 40) -> list[list[LogRecord]]:
    """A log a partition: visits, purchases, mails, goodbyes, duplicates, bad records and tombstones."""
    rng = np.random.default_rng(seed)
    logs: list[list[LogRecord]] = [[] for _ in range(PARTITIONS)]
    ts = T0
    sent: list[tuple[int, bytes, bytes]] = []
    for n in range(events):
        ts += int(rng.exponential(6 * 3_600_000))
        who = int(rng.integers(customers))
        partition, key = who % PARTITIONS, f"customer-{who}".encode()
        draw = rng.random()
        value: bytes | None
        if draw < 0.02:
            value = b'{"user_id": "customer-'  # not JSON
        elif draw < 0.04:
            value = None
        elif draw < 0.10 and sent:
            partition, key, value = sent[int(rng.integers(max(0, len(sent) - 5), len(sent)))]
        else:
            kind = str(rng.choice(["visit", "purchase", "mail", "goodbye"], p=[0.55, 0.2, 0.22, 0.03]))
            event = {
                "user_id": key.decode(),
                "event_id": f"e{n}",
                "type": kind,
                "ts": ts,
                "value": float(n % 7),
            }
            value = orjson.dumps(event)
            sent.append((partition, key, value))
        logs[partition].append(LogRecord(len(logs[partition]), ts, key, value))
    return logs


def attempts(state: State) -> int:
    """How often in a row it failed."""
    return state.attempts if isinstance(state, Retrying) else 0


def event(event_id: str, ts: int) -> bytes:
    return orjson.dumps({"user_id": "ann", "event_id": event_id, "type": "visit", "ts": ts})


class World:
    """Store, sink and model that outlive workers, as servers do."""

    def __init__(self, seed: int, logs: list[list[LogRecord]], rate: float) -> None:
        self.faults = Faults(seed, rate)
        self.store = FaultyStore(LAYOUT.dtype, PARTITIONS, self.faults)
        self.sink = ListSink(self.faults)
        self.model: ArithmeticModel = ArithmeticModel(sizes=(8, 32))
        self.source = LogSource(TOPIC, logs, seed=seed, faults=self.faults, records_max=20)
        self.logs = logs

    def worker(
        self,
        alerts_from: Literal["now", "start"] = "start",
        limits: Limits = LIMITS,
        telemetry: Telemetry | None = None,
        clock: Clock | None = None,
    ) -> Worker:
        """A new process, as it were: its own cache, batcher and partitions."""
        worker = Worker(self.tools(telemetry, clock), alerts_from=alerts_from, limits=limits)
        worker.attach(self.source)
        return worker

    def tools(self, telemetry: Telemetry | None = None, clock: Clock | None = None) -> Tools:
        """What its turns share; the batcher is to be run."""
        batcher = Batcher(lambda: self.model, SystemClock(), Telemetry(), deadline_s=0.05, linger_s=0.0)
        return Tools(
            TOPIC, Outputs("alerts", "dead"), LAYOUT, Folder(LAYOUT), Parser(SPEC), self.store,
            Cache(LAYOUT.dtype, 2048 * LAYOUT.itemsize), self.sink, batcher,
            clock or SystemClock(), telemetry or Telemetry(),
        )  # fmt: skip

    @asynccontextmanager
    async def at_work(self, worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
        """A worker that owns everything, as the task that it runs in; it dies at the end of the block."""
        running = asyncio.create_task(worker.run())
        pumping = asyncio.create_task(self.source.pump(worker.deliver))
        await asyncio.sleep(0)
        worker.assigned(self.source.assigned())
        try:
            yield running
        finally:
            for task in (running, pumping):
                task.cancel()
            await asyncio.gather(running, pumping, return_exceptions=True)

    async def finish(self, worker: Worker, timeout_s: float = PATIENCE_S) -> None:
        """Let a worker own everything until all is applied and sent, then drain it."""
        async with self.at_work(worker) as running, asyncio.timeout(timeout_s):
            while not (self.source.done() and await self.applied()):
                assert not running.done(), running.result()
                await asyncio.sleep(0.002)
            self.faults.calm()
            assert await worker.drain(PATIENCE_S)

    async def applied(self) -> bool:
        """Every partition's checkpoint is at the end of its log."""
        checkpoints = [await self.store.checkpoint(partition) for partition in range(PARTITIONS)]
        return all(
            h is not None and h.offset == len(log) for h, log in zip(checkpoints, self.logs, strict=True)
        )

    async def records(self) -> dict[str, bytes]:
        """Every stored customer's record."""
        found: dict[str, bytes] = {}
        for partition in range(PARTITIONS):
            async for customers, rows in self.store.scan(partition):
                found |= {name: rows[i].tobytes() for i, name in enumerate(customers)}
        return found

    def alerts(self) -> dict[str, bytes]:
        """Alert id to bytes; one id with two different contents is a failure."""
        found: dict[str, bytes] = {}
        for message in self.sink.sent.get("alerts", []):
            if message.value is not None:
                identity = str(orjson.loads(message.value)["alert_id"])
                assert found.setdefault(identity, message.value) == message.value
        return found

    def letters(self) -> set[tuple[str, int, int]]:
        """Positions of dead letters, with their reasons."""
        found = set()
        for message in self.sink.sent.get("dead", []):
            if message.value is not None and message.headers:
                letter = parse_headers(message.headers)
                assert letter is not None
                found.add((letter.reason, letter.source.partition, letter.source.offset))
        return found


async def clean_run(logs: list[list[LogRecord]]) -> World:
    world = World(0, logs, rate=0.0)
    await world.finish(world.worker())
    return world


async def assert_same_end(world: World, clean: World) -> None:
    assert await world.records() == await clean.records()
    assert world.alerts() == clean.alerts()
    assert world.letters() == clean.letters()
    for partition in range(PARTITIONS):
        checkpoint = await world.store.checkpoint(partition)
        assert checkpoint is not None
        assert checkpoint.offset == len(world.logs[partition])
        assert await world.store.outbox(partition) == []
