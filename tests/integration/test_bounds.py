"""What is held back, skipped or given up is bounded by a number with a name; most are asserted where their part is.

A backlog behind a slow Redis does not grow a worker: what waits, waits in Kafka. A partition of which most is bad stops
alone and stays stopped; mended, it goes on from there. What waits for the scorer is one step a partition.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from ebbtide.featurestore.record.layout import Layout
from ebbtide.ops.worker.connect import open_store, topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.topics import ensure_topics
from ebbtide.stream.outputs.dead_letter import parse_headers
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.turn.flood import FLOOD_RECORDS
from tests.support.seams.models import TINY
from tests.support.seams.scoring import ArithmeticModel
from tests.support.seams.streams import LogRecord, LogSource
from tests.support.seams.world import LIMITS, T0, World, logs_of
from tests.support.seams.world import PARTITIONS as WORLD_PARTITIONS
from tests.support.workers.outages import (
    PARTITIONS,
    Outage,
    Watch,
    applied,
    event,
    inner_worker,
    load_scorer,
    outage,
    produce,
    rss_bytes,
    samples,
    sigterm,
    until,
)

WARM, BACKLOG = 10_000, 200_000
SLOW_S, SLOW_BYTES_PER_S, SLOW_FOR_S = 1.0, 1e6, 8.0
RSS_GROWTH_BYTES_MAX = 64 << 20
BAD = 7_000
FLOODED = 3


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    with outage(tmp_path_factory.mktemp("bounds")) as service:
        yield service


def large(topic: str, first: int, count: int) -> list[Message]:
    """Events of one partition, of 2 KiB each."""
    found: list[Message] = []
    n = first
    while len(found) < count:
        partition, key, value = event(n)
        if partition == FLOODED:
            padded = {**orjson.loads(value), "properties": {"page": "x" * 2_000}}
            found.append(Message(topic, key, orjson.dumps(padded), (), padded["ts"], partition))
        n += 1
    return found


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
async def test_a_backlog_and_then_a_flood(service: Outage, unique_name: str, tmp_path: Path) -> None:
    """Memory stays where it was through a backlog of 200,000 records and a Redis that takes its time. Then most of one
    partition is bad: it stops, says so everywhere, and takes nobody with it; mended, it loses nothing."""
    settings = service.settings(unique_name, record_bytes_max=1024)
    patient = settings.redis.model_copy(update={"timeout_s": 20 * SLOW_S})
    settings = settings.model_copy(update={"redis": patient})
    direct = service.direct(settings)
    await ensure_topics(direct.kafka, topic_specs(direct))
    await produce(direct, 0, WARM)
    with WorkerProcess(settings, tmp_path) as worker:
        await asyncio.to_thread(worker.wait_ready)
        async with Watch(worker) as watch, open_store(direct, Layout(TINY), PARTITIONS) as store:

            async def at(events: int) -> bool:
                worker.check()
                return await applied(direct, store) >= events

            await until(lambda: at(WARM), "warm")
            before = rss_bytes(worker.pid)
            await asyncio.to_thread(service.redis_proxy.slow, SLOW_S, SLOW_BYTES_PER_S)
            await produce(direct, WARM, BACKLOG)
            await asyncio.sleep(SLOW_FOR_S)
            behind = WARM + BACKLOG - await applied(direct, store)
            assert behind > BACKLOG / 2, "Redis was not slow enough for a backlog"
            await asyncio.to_thread(service.redis_proxy.heal)
            await until(lambda: at(WARM + BACKLOG), "the backlog is done")
            grown = watch.rss_bytes_max - before
            print(f"{behind} records behind, RSS {before >> 20} MiB, grown by {grown >> 20} MiB at most")
            assert grown < RSS_GROWTH_BYTES_MAX

            before_flood = await store.checkpoint(FLOODED)
            assert before_flood is not None
            async with KafkaSink(direct.kafka) as sink:
                bad = large(unique_name, WARM + BACKLOG, BAD)
                for i in range(0, BAD, 500):
                    await sink.send_all(bad[i : i + 500])
            await watch.until(503, f"partition {FLOODED}: it has stopped")
            assert "partition 0" not in watch.reason
            stopped = await store.checkpoint(FLOODED)
            assert stopped is not None
            await produce(direct, WARM + BACKLOG, 1_000)  # all four: three go on
            others = WARM + BACKLOG + stopped.offset - before_flood.offset
            ours = sum(event(n)[0] == FLOODED for n in range(WARM + BACKLOG, WARM + BACKLOG + 1_000))
            await until(lambda: at(others + 1_000 - ours), "the others go on")
            await asyncio.sleep(1.0)
            assert await store.checkpoint(FLOODED) == stopped
            assert samples(worker.address)["ebbtide_partition_stopped_total{reason=DeadLetterFlood}"] == 1
            code, _ = await sigterm(worker)
            assert code == 0
    assert '"partition stopped"' in worker.log.read_text()

    mended = settings.model_copy(update={"record_bytes_max": 64 << 10})
    rest = BAD - (stopped.offset - before_flood.offset)
    async with (
        inner_worker(mended, load_scorer(service)) as successor,
        open_store(direct, Layout(TINY), PARTITIONS) as store,
    ):

        async def done() -> bool:
            return await applied(direct, store) == WARM + BACKLOG + BAD + 1_000

        await until(
            done,
            "the stopped partition goes on",
            instead=lambda: str(successor.worker.not_ready_reasons),
        )
    # Only a drained worker has counted all: a step shows in the checkpoint before its alerts are sent and it is told.
    assert successor.value("ebbtide_records_total") == rest + ours
    assert successor.value("ebbtide_events_total") == rest + ours
    letters = set()
    async for record in read_topic(direct.kafka, settings.topics.dead_letters):
        said = parse_headers(record.headers)
        assert said is not None
        letters.add((said.reason, said.source.partition, said.source.offset))
    assert letters >= {("too_large", FLOODED, o) for o in range(before_flood.offset, stopped.offset)}
    assert len(letters) <= FLOOD_RECORDS
    print(f"{len(letters)} dead letters before it stopped, {rest} folded after it was mended")


async def test_a_turn_is_bounded_however_long_the_queue() -> None:
    """However slow the model: at most `turns_in_flight` requests, of `piece_records_max` a partition."""
    logs = logs_of(seed=21, events=3_000)
    world = World(9, logs, rate=0.0)
    world.model = ArithmeticModel(sizes=(8, 32), seconds=0.01)
    world.source = LogSource("clickstream", logs, seed=4, faults=world.faults, records_max=20)
    limits = replace(LIMITS, queued_batches_max=50)
    worker = world.worker(limits=limits)
    most_records = most_requests = 0
    async with world.at_work(worker):
        for _ in range(300):
            await asyncio.sleep(0.002)
            waiting = worker._tools.batcher._waiting
            most_requests = max(most_requests, len(waiting))
            most_records = max([most_records, *(request.events for request in waiting)])
    assert 0 < most_requests <= limits.turns_in_flight
    assert limits.piece_records_max - 20 < most_records <= WORLD_PARTITIONS * limits.piece_records_max


@pytest.mark.parametrize(("elapsed_s", "most"), [(0.0, 1), (1.0, 2)])
async def test_a_trickle_waits_a_moment_for_the_turn_under_way(elapsed_s: float, most: int) -> None:
    """A second turn of little begins beside one that has lasted for GATHER_S, not beside one that has just begun."""

    class Stepping(SystemClock):
        """Each look at it is `elapsed_s` after the last."""

        now_s = 0.0

        def monotonic_s(self) -> float:
            self.now_s += elapsed_s
            return self.now_s

    logs: list[list[LogRecord]] = [[] for _ in range(WORLD_PARTITIONS)]
    world = World(9, logs, rate=0.0)
    world.model = ArithmeticModel(sizes=(8,), seconds=0.05)
    worker = world.worker(clock=Stepping())
    seen = 0
    async with world.at_work(worker):
        while worker.not_ready_reasons:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
        for partition, key in enumerate((b"ann", b"bob", b"eve")):
            logs[partition].append(one_event(key.decode()))
            if partition == 0:
                while not worker._schedule.turns:  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(0.001)
        while not await world.applied():
            seen = max(seen, len(worker._schedule.turns))
            await asyncio.sleep(0.001)
    assert seen == most


def one_event(user: str) -> LogRecord:
    """The first of its partition."""
    body = {"user_id": user, "event_id": user, "type": "visit", "ts": T0}
    return LogRecord(0, T0, user.encode(), orjson.dumps(body))
