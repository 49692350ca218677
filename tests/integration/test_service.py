"""How a worker serves its partitions: fairly, bounded, ready when it is, and drained when it says so."""

import asyncio

import orjson
import pytest

from ebbtide.stream.clock import SystemClock
from ebbtide.stream.telemetry import Telemetry, TurnDone
from tests.support.patience import PATIENCE_S
from tests.support.seams.scoring import ArithmeticModel, FussyModel
from tests.support.seams.streams import LogRecord, LogSource
from tests.support.seams.world import (
    DAY_MS,
    PARTITIONS,
    T0,
    TOPIC,
    World,
    assert_same_end,
    attempts,
    clean_run,
    event,
    logs_of,
)


async def test_a_worker_without_partitions_is_ready() -> None:
    """It is a standby: a surge pod that the group gives nothing must not hold up a rolling update."""
    world = World(14, logs_of(seed=34, events=100), rate=0.0)
    worker = world.worker()
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    assert worker.not_ready_reasons == ["the group is forming"]
    worker.assigned(frozenset())
    assert worker.not_ready_reasons == []
    worker.revoked(frozenset())
    assert worker.not_ready_reasons == ["the group is forming"], "until it says what is ours"
    worker.assigned(frozenset())
    assert worker.not_ready_reasons == []
    assert await worker.drain(1.0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_live_partition_does_not_wait_for_backlogs() -> None:
    """
    partition 0  ████████████████████████   a backlog of thousands
    partition 1  ████████████████████████   another
    partition 2          ● comes, and is scored within a few turns; oldest first, it came after both
    """
    turns: list[TurnDone] = []

    class Heard(Telemetry):
        def turn_done(self, turn: TurnDone) -> None:
            turns.append(turn)

    logs: list[list[LogRecord]] = [[], [], []]
    for n in range(6_000):
        user = f"customer-{n % 300}"
        value = orjson.dumps({"user_id": user, "event_id": str(n), "type": "visit", "ts": T0 + n})
        logs[n % 2].append(LogRecord(len(logs[n % 2]), T0 + n, user.encode(), value))
    world = World(15, logs, rate=0.0)
    worker = world.worker(telemetry=Heard())

    async def at(partition: int) -> int:
        checkpoint = await world.store.checkpoint(partition)
        return checkpoint.offset if checkpoint else 0

    async with world.at_work(worker), asyncio.timeout(PATIENCE_S):
        while min(await at(0), await at(1)) < 300:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0)
        before = len(turns)
        logs[2].append(LogRecord(0, T0 + 9_000, b"ann", event("a", T0 + 9_000)))
        while await at(2) < 1:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0)
        waited, left = len(turns) - before, 6_000 - await at(0) - await at(1)
    print(f"{waited} turns, {left} records of the backlog left")
    assert waited <= 5
    assert left > 3_000


async def test_a_record_without_timestamp_has_no_age() -> None:
    """In the figures: a latency of 1.8e9 s was one of these."""
    turns: list[TurnDone] = []

    class Heard(Telemetry):
        def turn_done(self, turn: TurnDone) -> None:
            turns.append(turn)

    logs = [[LogRecord(n, -1, b"ann", event(str(n), T0)) for n in range(5)] for _ in range(PARTITIONS)]
    world = World(16, logs, rate=0.0)
    await world.finish(world.worker(telemetry=Heard()))
    assert world.letters() == {
        ("no_timestamp", partition, n) for partition in range(PARTITIONS) for n in range(5)
    }
    assert {turn.latency_s for turn in turns} == {None}
    for log in logs:
        log.append(LogRecord(5, T0, b"ann", event("5", T0)))
    world.source.revoke()
    await world.finish(world.worker(telemetry=Heard()))
    age_s = (SystemClock().now_ms() - T0) / 1000
    told = [turn.latency_s for turn in turns if turn.latency_s is not None]
    assert told == pytest.approx([age_s] * len(told), abs=60)
    assert told


async def test_not_ready_until_a_step_shows_that_the_trouble_is_over() -> None:
    """Store and Kafka are well, the model is not: to open again and again is no sign of health, not for a moment."""
    logs = [
        [
            LogRecord(n, T0 + n * DAY_MS, b"ann", event(f"{partition}-{n}", T0 + n * DAY_MS))
            for n in range(2_000)
        ]
        for partition in range(PARTITIONS)
    ]
    clean = await clean_run(logs)
    world = World(8, logs, rate=0.0)
    world.model = broken = FussyModel(sizes=(8, 32))
    worker = world.worker()

    def failing() -> int:
        return sum("ScorerUnavailable" in trouble for trouble in worker.not_ready_reasons)

    async with world.at_work(worker), asyncio.timeout(PATIENCE_S):
        while not all([await world.store.checkpoint(partition) for partition in range(PARTITIONS)]):  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0)
        broken.broken = True  # whoever has been scored once is scored with every event: no step gets past it
        while failing() < PARTITIONS:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0)
        while any(attempts(p.state) < 4 for p in worker.partitions.values()):
            assert failing() == PARTITIONS, worker.not_ready_reasons
            await asyncio.sleep(0)
        broken.broken = False
        while worker.not_ready_reasons or not await world.applied():  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
        assert await worker.drain(5.0)
    await assert_same_end(world, clean)


async def test_a_drain_that_gave_up_says_so() -> None:
    """Without a model nothing can be finished: the next owner does it, and nobody is told that all was done."""
    logs = logs_of(seed=20, events=300)
    clean = await clean_run(logs)
    world = World(9, logs, rate=0.0)
    world.model = broken = FussyModel(sizes=(8, 32))
    broken.broken = True
    worker = world.worker()
    async with world.at_work(worker), asyncio.timeout(PATIENCE_S):
        while not all(attempts(p.state) for p in worker.partitions.values()):  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
        assert not await worker.drain(5.0)
    broken.broken = False
    world.source.revoke()
    await world.finish(world.worker())
    await assert_same_end(world, clean)


async def test_queues_are_bounded() -> None:
    """A model that takes its time pauses the fetch: no more than a few batches are ever in memory."""
    logs = logs_of(seed=13, events=600)
    world = World(2, logs, rate=0.0)
    world.model = ArithmeticModel(sizes=(8, 32), seconds=0.01)
    world.source = LogSource(TOPIC, logs, seed=3, faults=world.faults, records_max=5)
    worker = world.worker()
    most = 0
    async with world.at_work(worker):
        for _ in range(100):
            await asyncio.sleep(0.002)
            most = max(most, *(p.queued_records for p in worker.partitions.values()))
    assert 0 < most <= 3 * 5
