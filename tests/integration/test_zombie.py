"""A worker that was stopped and wakes up: what it still has in hand of somebody who has been forgotten meanwhile.

    A   load, fold, score ·········· stopped ·········· decide, look at the checkpoint: Fenced, and not a word
    B                      the same records, apply, Ann's tombstone: her last word in every output topic

The outputs are kept for good (scores are compacted by customer), so what comes after a tombstone there stays. And what
a worker remembers in memory goes, too, when the answer to the step that forgot somebody was lost.
"""

import asyncio
import threading

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.errors import Fenced, StoreUnavailable
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Rows
from ebbtide.featurestore.store.cache import Cache
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.outputs.dead_letter import Position, parse_headers, tombstone_origin
from ebbtide.stream.outputs.pre_commit import Outputs
from ebbtide.stream.pipeline import Tools
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.telemetry import Telemetry
from ebbtide.stream.worker import Worker
from tests.support.seams.scoring import LAYOUT, SPEC, ArithmeticModel
from tests.support.seams.streams import Faults, ListSink, LogRecord, LogSource
from tests.support.seams.turns import from_the_beginning, take_over
from tests.support.workers.worlds import eventually

TOPIC, ANN = "clickstream", b"ann"
OUTPUTS = Outputs("alerts", "dead", "scores")
DAY_MS = 86_400_000
T0 = 1_700_000_000_000


def visit(offset: int, day: float) -> LogRecord:
    ts = T0 + round(day * DAY_MS)
    return LogRecord(offset, ts, ANN, orjson.dumps({"user_id": ANN.decode(), "type": "visit", "ts": ts}))


LIFE = [
    *(visit(offset, day) for offset, day in enumerate((0, 1, 2))),
    LogRecord(3, T0 + 3 * DAY_MS, ANN, b"nonsense of ann"),
    visit(4, 30),
]
"""Scores, two alerts and a dead letter."""
TOMBSTONE = LogRecord(5, T0 + 31 * DAY_MS, ANN, None)


class StoppedModel(ArithmeticModel):
    """A score takes until `wake` is set."""

    def __init__(self) -> None:
        super().__init__(sizes=(8,))
        self.asked, self.wake = threading.Event(), threading.Event()

    def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        self.asked.set()
        assert self.wake.wait(30)
        return super().score(rows, as_of)


class ForgetfulStore(MemoryStore):
    """Forgets customers as it is told, and the first time its answer is lost."""

    lost = False

    async def apply(self, commit: Commit) -> None:
        await super().apply(commit)
        if commit.forgotten and not self.lost:
            self.lost = True
            raise StoreUnavailable("lost on the way back")


def tools_of(store: MemoryStore, sink: ListSink, model: ArithmeticModel) -> Tools:
    """What a process of its own works with."""
    batcher = Batcher(lambda: model, SystemClock(), Telemetry(), deadline_s=0.05, linger_s=0.0)
    return Tools(
        TOPIC, OUTPUTS, LAYOUT, Folder(LAYOUT), Parser(SPEC), store, Cache(LAYOUT.dtype, 2048 * LAYOUT.itemsize),
        sink, batcher, SystemClock(), Telemetry(),
    )  # fmt: skip


async def follow(tools: Tools, log: list[LogRecord]) -> None:
    """One owner, from the partition's beginning through all of `log`."""
    scoring = asyncio.create_task(tools.batcher.run())
    try:
        await take_over(
            tools, from_the_beginning(LAYOUT.id, 0, 1), FetchedBatch(TOPIC, 0, 1, 0, len(log), log)
        )
    finally:
        scoring.cancel()
        await asyncio.gather(scoring, return_exceptions=True)
        tools.batcher.close()


async def test_who_wakes_late_says_nothing_of_who_was_forgotten() -> None:
    store, sink, stopped = MemoryStore(LAYOUT.dtype, 1), ListSink(), StoppedModel()
    zombie = asyncio.create_task(follow(tools_of(store, sink, stopped), LIFE))
    await eventually(stopped.asked.is_set, "it is stopped while it scores")
    await follow(tools_of(store, sink, ArithmeticModel(sizes=(8,))), [*LIFE, TOMBSTONE])
    stopped.wake.set()
    with pytest.raises(Fenced):
        await zombie
    for topic in OUTPUTS.all:
        *before, last = sink.sent[topic]
        assert last.key == ANN and last.value is None, topic
        assert before and all(message.value is not None for message in before), topic
        # It says whom it forgets since when, and is no dead letter.
        assert tombstone_origin(last.headers) == Position(TOPIC, 0, TOMBSTONE.offset)
        assert parse_headers(last.headers) is None
    assert await store.find(ANN.decode()) == []


async def test_a_tombstones_lost_answer_leaves_nothing_in_memory() -> None:
    """The checkpoint has moved, the worker goes on from there and hears of nothing more: no later step tidies up."""
    store = ForgetfulStore(LAYOUT.dtype, 1)
    tools = tools_of(store, ListSink(), ArithmeticModel(sizes=(8,)))
    log = [*LIFE, TOMBSTONE]
    source = LogSource(TOPIC, [log], seed=0, faults=Faults(0, 0.0))
    worker = Worker(tools, alerts_from="start")
    worker.attach(source)
    running = asyncio.create_task(worker.run())
    pumping = asyncio.create_task(source.pump(worker.deliver))
    await asyncio.sleep(0)
    worker.assigned(source.assigned())
    await eventually(lambda: store.lost and source.done() and not worker.not_ready_reasons, "all is done")
    assert len(tools.cache) == 0
    assert ANN.decode() not in tools.cache._customer_of.tolist()
    worker.revoked(source.assigned())
    for task in (running, pumping):
        task.cancel()
    await asyncio.gather(running, pumping, return_exceptions=True)
    tools.batcher.close()
