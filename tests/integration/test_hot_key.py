"""One customer who makes half of a partition's events, or a hundred thousand: what it costs, and whom.

A hot key is a record like any other. Its events of a turn are folded one after the other, in one row that is loaded and
stored once, so they cost less than as many customers would; its partition goes on in the order of its log, so nobody
waits for a hot customer's events but for those that lie before one's own. What one customer may have at most is what
one partition does alone, since nobody can share it.
"""

import asyncio
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import orjson
import pytest

from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.telemetry import Telemetry, TurnDone
from ebbtide.stream.turn.limits import Limits
from tests.support.seams.scoring import LAYOUT
from tests.support.seams.streams import LogRecord, LogSource
from tests.support.seams.turns import from_the_beginning, take_over
from tests.support.seams.world import TOPIC, World
from tests.support.servers.services import Services
from tests.support.workers import worlds

HOT = "hot"
T0 = 1_700_000_000_000
STEP_MS = 1_000
FETCHED = 1_000
LIMITS = Limits(dead_letter_share_max=1.0, idle_check_s=0.05)


class Heard(Telemetry):
    """Every turn."""

    def __init__(self) -> None:
        self.turns: list[TurnDone] = []

    def turn_done(self, turn: TurnDone) -> None:
        self.turns.append(turn)


def visit(who: str, n: int, partition: int) -> bytes:
    identity = f"{partition}-{n}"
    return orjson.dumps({"user_id": who, "event_id": identity, "type": "visit", "ts": T0 + n * STEP_MS})


def log_of(partition: int, events: int, hot_share: float, others: int = 300) -> list[LogRecord]:
    """Visits, so that any hundred of them hold the share of the one; the others come in turn."""
    log, other = list[LogRecord](), 0
    for n in range(events):
        name = HOT if n * hot_share % 1 < hot_share else f"customer-{partition}-{other % others}"
        other += name != HOT
        log.append(LogRecord(n, T0 + n * STEP_MS, name.encode(), visit(name, n, partition)))
    return log


def world_of(logs: list[list[LogRecord]]) -> World:
    """A world that hands out fetches as large as production's."""
    world = World(0, logs, rate=0.0)
    world.source = LogSource(TOPIC, logs, seed=1, faults=world.faults, records_max=FETCHED)
    return world


@pytest.mark.timeout(200)
async def test_a_hundred_thousand_events_of_one_are_one_record() -> None:
    """Half of 200,000 events are one customer's: each counts once, turns stay bounded, and who shares the worker is
    through with a tenth of that long before."""
    heard = Heard()
    logs = [log_of(0, 200_000, 0.5), log_of(1, 20_000, 0.0), log_of(2, 20_000, 0.0)]
    world = world_of(logs)
    seen_by = dict.fromkeys(range(3), 0)

    await world.finish(world.worker(limits=LIMITS, telemetry=heard), timeout_s=150)

    for number, turn in enumerate(heard.turns):
        assert turn.records <= LIMITS.turn_records_max + FETCHED
        for piece in turn.pieces:
            seen_by[piece.partition] = number if piece.records else seen_by[piece.partition]
    print(f"{len(heard.turns)} turns, the others were through after {seen_by[1]} and {seen_by[2]}")
    assert max(seen_by[1], seen_by[2]) < 0.35 * seen_by[0]
    found = {name: np.frombuffer(record, LAYOUT.dtype)[0] for name, record in (await world.records()).items()}
    assert len(found) == 1 + 300 + 300 + 300
    assert found[HOT]["activity_count"] == 100_000
    assert (found[HOT]["first_seen"], found[HOT]["last_seen"]) == (T0, T0 + 199_998 * STEP_MS)
    assert sum(int(row["activity_count"]) for row in found.values()) == 240_000


async def test_nobody_waits_for_a_hot_customer_elsewhere() -> None:
    """A backlog that is one customer's alone: a live event of another partition is in one of the next turns, and one
    behind the backlog comes when what lies before it is through, not later."""
    heard, backlog = Heard(), 40_000
    logs = [log_of(0, backlog, 1.0), [], []]
    logs[0].append(LogRecord(backlog, T0, b"behind", visit("behind", backlog, 0)))
    world = world_of(logs)
    worker = world.worker(limits=LIMITS, telemetry=heard)

    async def at(partition: int) -> int:
        checkpoint = await world.store.checkpoint(partition)
        return checkpoint.offset if checkpoint else 0

    async with world.at_work(worker), asyncio.timeout(60):
        while await at(0) < 2_000:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0)
        before = len(heard.turns)
        logs[1].append(LogRecord(0, T0, b"ann", visit("ann", 0, 1)))
        while await at(1) < 1:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0)
        waited, left = len(heard.turns) - before, backlog - await at(0)
        while await at(0) <= backlog:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0)
    sizes = [turn.records for turn in heard.turns if turn.records > 1]
    print(f"{waited} turns, {left} records of the backlog left; turns of {np.mean(sizes):.0f} records")
    assert waited <= 5
    assert left > backlog / 2
    assert np.mean(sizes) > FETCHED / 4, "turns of a hot customer are as large as any"


async def spent(hot_share: float, turns: int) -> tuple[float, int]:
    """(CPU seconds of a turn of 1,000 events: the median, bytes that one allocates at most), one partition."""

    def batches() -> Iterator[FetchedBatch]:
        log = log_of(0, FETCHED * (turns + 3), hot_share, others=FETCHED)
        for start in range(0, len(log), FETCHED):
            yield FetchedBatch(TOPIC, 0, 0, start, start + FETCHED, log[start : start + FETCHED])

    world = World(0, [[], [], []], rate=0.0)
    tools = world.tools()
    scoring = asyncio.create_task(tools.batcher.run())
    opened, seconds, peak = from_the_beginning(LAYOUT.id, 0, 3), list[float](), 0
    for number, batch in enumerate(batches()):
        measured = number == turns + 2
        if measured:
            tracemalloc.start()
        began_s = time.process_time()
        await take_over(tools, opened, batch)
        if measured:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        elif number >= 2:
            seconds.append(time.process_time() - began_s)
    scoring.cancel()
    await asyncio.gather(scoring, return_exceptions=True)
    tools.batcher.close()
    return float(np.median(seconds)), peak


async def test_a_turn_of_one_customer_costs_no_more_than_of_many() -> None:
    """1,000 events of one, of one and others, and of as many customers: CPU and memory of the turn."""
    found = {share: await spent(share, turns=15) for share in (0.0, 0.5, 1.0)}
    for share, (seconds, peak) in found.items():
        print(f"share {share}: {seconds * 1000:.1f} ms of CPU, {peak / 1024:.0f} KiB")
    for share in (0.5, 1.0):
        assert found[share][0] <= 1.2 * found[0.0][0]
        assert found[share][1] <= 1.1 * found[0.0][1]


@pytest.mark.kafka
@pytest.mark.redis
async def test_half_of_a_live_partition_is_one_customers(stack: Services, unique_name: str) -> None:
    """By real servers, at a rate: all is told in time, and Redis holds of the hot one what it holds of others."""
    world, heard = worlds.World(stack, unique_name), Heard()
    await world.create()
    home = partition_for(HOT.encode(), worlds.PARTITIONS)
    names = [f"customer-{n}" for n in range(400)]
    beside = [name for name in names if partition_for(name.encode(), worlds.PARTITIONS) == home]
    others = [name for name in names if name not in beside]
    async with world.working("hot", worlds.OLD, telemetry=heard) as worker:
        await worlds.eventually(lambda: worker.partitions != {} and not worker.not_ready_reasons, "ready")
        for tick in range(60):
            now_ms = world.clock.now_ms()
            made = []
            for n in range(tick * 50, tick * 50 + 50):
                two = others[n % len(others)], others[(n + 7) % len(others)]
                for who in (HOT, beside[n % len(beside)], *two):
                    event = {"user_id": who, "event_id": f"{who}-{n}", "type": "visit", "ts": now_ms}
                    made.append(Message(unique_name, who.encode(), orjson.dumps(event), (), now_ms))
            await world.produce(made)
            await asyncio.sleep(0.02)
        await world.until_done()
    late = sorted(turn.latency_s for turn in heard.turns if turn.latency_s is not None)
    print(
        f"{len(late)} turns, latency p50 {late[len(late) // 2] * 1000:.0f} ms, worst {late[-1] * 1000:.0f} ms"
    )
    assert late[len(late) // 2] < 1.0
    assert late[-1] < 5.0
    records = await world.records("hot", worlds.OLD)
    counts = {
        n: int(np.frombuffer(r, worlds.OLD.layout.dtype)[0]["activity_count"]) for n, r in records.items()
    }
    assert counts[HOT] == 3_000
    assert sum(counts.values()) == 12_000
    async with world.store("hot", worlds.OLD) as store:
        used = (await store.memory_usage(home, [HOT, *beside[:20]])).records
    assert used[0] <= 1.25 * used[1:].max()
