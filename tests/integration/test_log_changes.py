"""What a worker makes of a log that is not what it was: made anew, cut, of an older leader, of more partitions, of
another partitioner, or growing while it opens.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

import orjson
import pytest

from ebbtide.ops.observe.logs import capture_logs
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.errors import TopicRepartitioned
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.telemetry import Telemetry, TurnDone
from ebbtide.stream.turn.state import Stopped
from tests.support.patience import PATIENCE_S
from tests.support.seams.scoring import LAYOUT
from tests.support.seams.streams import LogRecord, LogSource
from tests.support.seams.turns import from_the_beginning, take_over
from tests.support.seams.world import (
    PARTITIONS,
    T0,
    TOPIC,
    World,
    event,
    logs_of,
)


async def test_a_topic_made_anew_is_noticed_by_its_committed_offset() -> None:
    """State lost, topic shorter than the group's committed offset: to go on would suppress what was never said. That
    partition stops and says what to do; the others go on."""
    logs = logs_of(seed=17, events=300)
    world = World(6, logs, rate=0.0)
    world.source.advance_committed(0, len(logs[0]) + 1, "timer_ms=0")
    worker = world.worker()
    async with world.at_work(worker), asyncio.timeout(PATIENCE_S):
        others = {partition: len(logs[partition]) for partition in (1, 2)}
        while any(world.source.offset(partition) < end for partition, end in others.items()):  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
        (reason,) = worker.not_ready_reasons
        assert re.search(r"partition 0: it has stopped.*sent up to offset .*another kafka.group", reason)
        assert isinstance(worker.partitions[0].state, Stopped)
        assert await world.store.checkpoint(0) is None
        assert await worker.drain(1.0)


class Growing(LogSource):
    """Whoever asks it which topic it is does so at a bad moment: `meanwhile` comes in between, once."""

    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def topic_id(self) -> str:
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return await super().topic_id()


async def test_the_owner_before_goes_on_while_the_next_opens() -> None:
    """Put out of the group and not aware of it, it folds what came just now. A log's end that was asked for before that
    lies below the checkpoint then, and the partition would stop for good."""
    logs = [[LogRecord(0, T0, b"ann", event("e0", T0))] for _ in range(PARTITIONS)]
    world = World(0, logs, 0.0)
    world.source = source = Growing(TOPIC, logs, seed=0, faults=world.faults)
    before, opened = world.tools(), from_the_beginning(LAYOUT.id, 0, PARTITIONS)

    async def go_on() -> None:
        start = opened.checkpoint.offset
        logs[0].append(LogRecord(len(logs[0]), T0 + start, b"ann", event(f"e{start}", T0 + start)))
        await take_over(before, opened, FetchedBatch(TOPIC, 0, 0, start, len(logs[0]), logs[0][start:]))

    serving = asyncio.create_task(before.batcher.run())
    await go_on()
    source.meanwhile = go_on
    await world.finish(world.worker())
    serving.cancel()
    assert opened.checkpoint.offset == len(logs[0]) == 3


async def test_a_log_that_lost_its_tail_stops_its_partition() -> None:
    """Partition 1's log was cut and refilled while nobody looked: what lies below the checkpoint now would be skipped.
    A
    topic made anew stops all of them."""
    logs = logs_of(seed=31, events=300)
    world = World(10, logs, rate=0.0)
    world.source.named, world.source.leader_epoch = "topic-a", 4
    await world.finish(world.worker())
    checkpoint = await world.store.checkpoint(1)
    assert checkpoint is not None
    assert (checkpoint.topic_id, checkpoint.leader_epoch) == ("topic-a", 4)
    world.source.revoke()
    world.source.epoch_ends[1, 4] = checkpoint.offset - 1
    worker = world.worker()

    def stopped() -> list[str]:
        return [str(p.state.detail) for p in worker.partitions.values() if isinstance(p.state, Stopped)]

    async with world.at_work(worker), asyncio.timeout(PATIENCE_S):
        while worker.not_ready_reasons == ["the group is forming"] or not stopped():  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
        (detail,) = stopped()
        assert "its tail was lost" in detail
        assert "ebbtide adopt" in detail
    world.source.revoke()
    world.source.named = "topic-b"
    worker = world.worker()
    async with world.at_work(worker), asyncio.timeout(PATIENCE_S):
        while len(stopped()) < PARTITIONS:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
        assert all("deleted and made again" in detail for detail in stopped())
    assert await world.store.checkpoint(1) == checkpoint


async def test_a_batch_of_an_older_leader_asks_which_log_it_is() -> None:
    """The check comes again in service: an unclean election needs no restart to be noticed."""
    logs = logs_of(seed=32, events=300)
    world = World(11, logs, rate=0.0)
    world.source.named, world.source.leader_epoch = "topic-a", 4
    await world.finish(world.worker())
    worker = world.worker()
    world.source.revoke()
    async with world.at_work(worker), asyncio.timeout(PATIENCE_S):
        while worker.not_ready_reasons:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
        world.source.leader_epoch = 3
        world.source.epoch_ends[0, 4] = len(logs[0]) - 5
        logs[0].append(LogRecord(len(logs[0]), T0, b"ann", event("late", T0)))
        while not isinstance(worker.partitions[0].state, Stopped):  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
        assert "its tail was lost" in worker.not_ready_reasons[0]


async def test_another_partitioner_is_counted_and_said_once() -> None:
    """Whose events lie elsewhere than Kafka's default partitioner puts them: folded, counted, and a warning with what
    to
    do; one whose events lie right is not. Tombstones go wherever a customer is, and are no mistake."""
    turns: list[TurnDone] = []

    class Heard(Telemetry):
        def turn_done(self, turn: TurnDone) -> None:
            turns.append(turn)

    logs: list[list[LogRecord]] = [[] for _ in range(PARTITIONS)]
    for n in range(60):
        user = f"customer-{n}"
        value = orjson.dumps({"user_id": user, "event_id": str(n), "type": "visit", "ts": T0 + n})
        log = logs[partition_for(user.encode(), PARTITIONS)]
        log.append(LogRecord(len(log), T0 + n, user.encode(), value))
    right = [list(log) for log in logs]
    for partition, log in enumerate(right):
        other = logs[(partition + 1) % PARTITIONS]
        other.append(LogRecord(len(other), T0 + 99, log[0].key, None))
        other.append(LogRecord(len(other), T0 + 99, log[1].key, log[1].value))
    world = World(13, right, rate=0.0)
    worker = world.worker(telemetry=Heard())
    await world.finish(worker)
    assert (sum(turn.misplaced for turn in turns), worker.warnings) == (0, [])
    turns.clear()
    world = World(13, logs, rate=0.0)
    worker = world.worker(telemetry=Heard())
    with capture_logs(logging.WARNING) as lines:
        await world.finish(worker)
    assert sum(turn.misplaced for turn in turns) == PARTITIONS
    assert sum(turn.events for turn in turns) == 60 + 2 * PARTITIONS
    (warning,) = worker.warnings
    assert "murmur2_random" in warning
    assert sum("another partition" in line.getMessage() for line in lines) == 1


async def test_partitions_that_were_added_end_the_worker() -> None:
    """Customers moved away from their state: one clear error, and nothing is folded."""
    logs = logs_of(seed=33, events=100)
    world = World(12, [*logs, []], rate=0.0)
    with pytest.raises(TopicRepartitioned, match="4 partitions, and had 3"):
        await world.finish(world.worker())
    assert [await world.store.checkpoint(partition) for partition in range(PARTITIONS)] == [None] * PARTITIONS
