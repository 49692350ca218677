"""A state that fell back, was lost, or was never there: it is made again from the log, and nothing is said twice."""

import asyncio
import logging

import numpy as np
import pytest

from ebbtide.ops.observe.logs import capture_logs
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.telemetry import Telemetry
from tests.support.patience import PATIENCE_S
from tests.support.seams.streams import FaultyStore, ListSink, MuteSink
from tests.support.seams.world import (
    PARTITIONS,
    World,
    assert_same_end,
    clean_run,
    logs_of,
)


async def test_first_start_on_an_old_topic_alerts_from_now() -> None:
    """What lies in the log before the first start is state, not news; the committed offset says so to whoever
    replays."""
    logs = logs_of(seed=12)
    clean = await clean_run(logs)
    world = World(1, logs, rate=0.0)
    await world.finish(world.worker(alerts_from="now"))
    assert clean.alerts()
    assert world.alerts() == {}
    assert await world.records() == await clean.records()


@pytest.mark.parametrize("seed", range(4))
async def test_the_store_falls_back_while_a_worker_works(seed: int) -> None:
    """Nine times it is lost altogether or found as it was a while ago, under a worker that lives on."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    logs = logs_of(seed=300 + seed, events=3_000)
    clean = await clean_run(logs)
    world = World(seed, logs, rate=0.01)

    async def fail() -> None:
        saved = [world.store.saved()]
        for n in range(9):
            await asyncio.sleep(float(rng.uniform(0.0, 0.06)))
            world.store.fall_back(None if n % 3 == 0 else saved[int(rng.integers(len(saved)))])
            saved.append(world.store.saved())

    failing = asyncio.create_task(fail())
    async with world.at_work(world.worker()):
        await failing
    world.source.revoke()
    await world.finish(world.worker())
    await assert_same_end(world, clean)


async def test_a_state_made_again_says_nothing_again() -> None:
    """All was sent; the store is lost; the whole log is folded once more: not one message, and the same state."""
    logs = logs_of(seed=15)
    world = World(4, logs, rate=0.0)
    await world.finish(world.worker())
    said = {topic: len(messages) for topic, messages in world.sink.sent.items()}
    assert min(said["alerts"], said["dead"]) > 10
    records = await world.records()
    world.store.fall_back(None)
    world.source.revoke()
    await world.finish(world.worker())
    assert {topic: len(messages) for topic, messages in world.sink.sent.items()} == said
    assert await world.records() == records


class Rebuilds(Telemetry):
    """What is said of states made again: partition to the records that remained, one after the other."""

    def __init__(self) -> None:
        self.remaining: dict[int, list[int]] = {partition: [] for partition in range(PARTITIONS)}

    def rebuilding(self, partition: int, remaining: int) -> None:
        self.remaining[partition].append(remaining)


class Hasty(SystemClock):
    """A minute a millisecond: what is said every ten seconds is said all the time."""

    def monotonic_s(self) -> float:
        return super().monotonic_s() * 60_000


async def test_a_state_that_is_lost_while_nothing_comes_is_made_again() -> None:
    """No event tells, and nobody has to: it is noticed, made again in silence, and said how far it is, to the end."""
    logs = logs_of(seed=22)
    clean = await clean_run(logs)
    world, heard = World(4, logs, rate=0.0), Rebuilds()
    worker = world.worker(telemetry=heard, clock=Hasty())
    troubles: set[str] = set()
    async with world.at_work(worker), asyncio.timeout(PATIENCE_S):
        while worker.not_ready_reasons or not await world.applied():  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
        said = {topic: len(messages) for topic, messages in world.sink.sent.items()}
        with capture_logs(logging.INFO) as lines:
            world.store.fall_back(None)
            while not worker.not_ready_reasons:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0)
            while worker.not_ready_reasons or not await world.applied():
                troubles.update(worker.not_ready_reasons)
                await asyncio.sleep(0)
        assert await worker.drain(5.0)
    assert {topic: len(messages) for topic, messages in world.sink.sent.items()} == said
    await assert_same_end(world, clean)
    told = [line.getMessage() for line in lines]
    for partition, log in enumerate(logs):
        again = heard.remaining[partition][1:]  # the first was of its first opening: nothing remained
        assert len(log) > again[0] > again[-1] == 0
        assert again == sorted(again, reverse=True)
        words = f"partition {partition}: its state is being made again from the log: at offset"
        assert any(trouble.startswith(words) for trouble in troubles)
    assert told.count("state is made from the log") == told.count("state is made again") == PARTITIONS
    assert "rebuilding" in told


async def test_a_store_lost_before_its_outbox_loses_no_alert() -> None:
    """The alerts that nobody sent were in the outbox alone: the checkpoint that was read with it must not become a
    committed offset."""
    logs = logs_of(seed=23)
    clean = await clean_run(logs)
    world = World(5, logs, rate=0.0)
    world.sink = MuteSink("alerts")
    async with world.at_work(world.worker()), asyncio.timeout(PATIENCE_S):
        while not all([await world.store.outbox(partition) for partition in range(PARTITIONS)]):  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
    world.source.revoke()
    letters = world.sink.sent.get("dead", [])
    world.sink = ListSink()
    world.sink.sent["dead"] = letters
    world.store.lost_before_outbox = True
    await world.finish(world.worker())
    assert not world.store.lost_before_outbox
    await assert_same_end(world, clean)


async def test_an_old_topic_is_read_once_for_its_bad_records() -> None:
    """A first start alerts from now on, but a bad record of the past becomes a dead letter all the same, and only
    once."""
    logs = logs_of(seed=12)
    clean = await clean_run(logs)
    world = World(1, logs, rate=0.0)
    await world.finish(world.worker(alerts_from="now"))
    assert world.letters() == clean.letters() != set()
    letters = len(world.sink.sent["dead"])
    world.store.fall_back(None)
    world.source.revoke()
    await world.finish(world.worker(alerts_from="now"))
    assert world.alerts() == {}
    assert len(world.sink.sent["dead"]) == letters


async def test_an_old_outbox_does_not_bring_back_who_was_forgotten() -> None:
    """An alert in a store that fell back was sent before its customer's tombstone was: it is not sent after it."""
    logs = logs_of(seed=16)
    world = World(5, logs, rate=0.0)
    saved: list[FaultyStore] = []

    async def watch() -> None:
        seen = 0
        while True:
            await asyncio.sleep(0)
            if world.store.applied >= seen + 10 and any(state.out for state in world.store._partitions):
                seen = world.store.applied
                saved.append(world.store.saved())

    watching = asyncio.create_task(watch())
    await world.finish(world.worker())
    watching.cancel()
    said = {topic: len(messages) for topic, messages in world.sink.sent.items()}
    assert len(saved) > 3
    for store in saved[:: len(saved) // 3]:
        world.store.fall_back(store)
        world.source.revoke()
        await world.finish(world.worker())
        assert {topic: len(messages) for topic, messages in world.sink.sent.items()} == said
