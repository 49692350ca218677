"""The pipeline under faults: whatever fails, and however the log is cut, the end is the same.

The expected end is a run without faults, whole batches, one partition after the other; records and alerts of that run
are checked against the naive oracle and by hand elsewhere. Here a worker meets lost batches, lost answers of the store
before and after it acted, unacknowledged messages, a failing model, owners that come and go and two at once.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import orjson
import pytest

from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import EPISODE_FIELDS
from ebbtide.featurestore.store.cache import Cache
from ebbtide.ops.observe.logs import capture_logs
from ebbtide.stream.clock import Clock, SystemClock
from ebbtide.stream.errors import TopicRepartitioned
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.outputs.alert import Alert
from ebbtide.stream.outputs.dead_letter import parse_headers
from ebbtide.stream.outputs.pre_commit import Outputs
from ebbtide.stream.pipeline import Tools
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.telemetry import Telemetry, TurnDone
from ebbtide.stream.turn.limits import Limits
from ebbtide.stream.turn.state import Retrying, State, Stopped
from ebbtide.stream.worker import Worker
from tests.support.seams.scoring import LAYOUT, SPEC, ArithmeticModel, FussyModel
from tests.support.seams.streams import Faults, FaultyStore, ListSink, LogRecord, LogSource, MuteSink

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

    async def finish(self, worker: Worker, timeout_s: float = 60.0) -> None:
        """Let a worker own everything until all is applied and sent, then drain it."""
        async with self.at_work(worker) as running, asyncio.timeout(timeout_s):
            while not (self.source.done() and await self.applied()):
                assert not running.done(), running.result()
                await asyncio.sleep(0.002)
            self.faults.calm()
            assert await worker.drain(5.0)

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


async def test_a_clean_run_makes_sense() -> None:
    """Alerts validate, sequences rise by customer, bad records are dead letters, forgotten customers leave nothing."""
    logs = logs_of(seed=11)
    world = await clean_run(logs)
    alerts = [Alert.model_validate_json(value) for value in world.alerts().values()]
    assert {(a.state, a.cause) for a in alerts} >= {
        ("opened", "score"), ("resolved", "score"), ("resolved", "terminal"),
    }  # fmt: skip
    last: dict[str, int] = {}
    for message in world.sink.sent["alerts"]:
        assert message.key is not None
        if message.value is None:
            continue
        alert = Alert.model_validate_json(message.value)
        assert message.key == alert.customer.encode()
        assert alert.sequence > last.get(alert.customer, 0)
        last[alert.customer] = alert.sequence
        if alert.state == "opened":
            assert alert.reasons[0].feature == "silence"
            assert "no activity for" in alert.reasons[0].words
    bad = {
        ("not_json", r.offset)
        for log in logs
        for r in log
        if r.value is not None and not r.value.endswith(b"}")
    }
    assert {(reason, offset) for reason, _, offset in world.letters()} == bad
    tombstones = sum(record.value is None for log in logs for record in log)
    assert sum(m.value is None for m in world.sink.sent["alerts"]) == tombstones
    assert sum(m.value is None for m in world.sink.sent["dead"]) == tombstones


@pytest.mark.parametrize("seed", range(6))
async def test_faults_change_nothing(seed: int) -> None:
    """Five calls in a hundred fail, in every way there is, and the model fails now and then: the same end."""
    print(f"seed {seed}")
    logs = logs_of(seed=100 + seed)
    clean = await clean_run(logs)
    world = World(seed, logs, rate=0.05)
    world.model.fail_next = 2
    await world.finish(world.worker())
    assert world.faults.drawn >= 10
    await assert_same_end(world, clean)


@pytest.mark.parametrize("seed", range(4))
async def test_owners_come_and_go(seed: int) -> None:
    """Workers are killed at random moments (no drain, no goodbye), and twice two of them own everything at once."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    logs = logs_of(seed=200 + seed)
    clean = await clean_run(logs)
    world = World(seed, logs, rate=0.01)
    for _ in range(8):
        zombie = world.worker()
        tasks = [asyncio.create_task(zombie.run()), asyncio.create_task(world.source.pump(zombie.deliver))]
        await asyncio.sleep(0)
        zombie.assigned(world.source.assigned())
        await asyncio.sleep(float(rng.uniform(0.002, 0.03)))
        if rng.random() < 0.3:  # a second owner, while the first still works
            other = world.worker()
            tasks += [asyncio.create_task(other.run()), asyncio.create_task(world.source.pump(other.deliver))]
            await asyncio.sleep(0)
            other.assigned(world.source.assigned())
            await asyncio.sleep(float(rng.uniform(0.002, 0.03)))
            other.revoked(world.source.assigned())
        zombie.revoked(world.source.assigned())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        world.source.revoke()
    await world.finish(world.worker())
    await assert_same_end(world, clean)


async def test_somebody_else_seeks_under_an_owner() -> None:
    """A position that moves without its owner (a task that outlived its assignment) is noticed and sought back."""
    logs = logs_of(seed=14)
    clean = await clean_run(logs)
    world = World(3, logs, rate=0.0)

    async def meddle() -> None:
        for n in range(20):
            await asyncio.sleep(0.01)
            await world.source.seek(n % PARTITIONS, len(logs[n % PARTITIONS]) // (1 + n % 4))

    meddling = asyncio.create_task(meddle())
    await world.finish(world.worker())
    await meddling
    await assert_same_end(world, clean)


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
    async with world.at_work(worker), asyncio.timeout(30):
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
    async with world.at_work(world.worker()), asyncio.timeout(20):
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


async def test_a_topic_made_anew_is_noticed_by_its_committed_offset() -> None:
    """State lost, topic shorter than the group's committed offset: to go on would suppress what was never said. That
    partition stops and says what to do; the others go on."""
    logs = logs_of(seed=17, events=300)
    world = World(6, logs, rate=0.0)
    world.source.advance_committed(0, len(logs[0]) + 1, "timer_ms=0")
    worker = world.worker()
    async with world.at_work(worker), asyncio.timeout(20):
        others = {partition: len(logs[partition]) for partition in (1, 2)}
        while any(world.source.offset(partition) < end for partition, end in others.items()):  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
        (reason,) = worker.not_ready_reasons
        assert re.search(r"partition 0: it has stopped.*sent up to offset .*another kafka.group", reason)
        assert isinstance(worker.partitions[0].state, Stopped)
        assert await world.store.checkpoint(0) is None
        assert await worker.drain(1.0)


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

    async with world.at_work(worker), asyncio.timeout(20):
        while worker.not_ready_reasons == ["the group is forming"] or not stopped():  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.002)
        (detail,) = stopped()
        assert "its tail was lost" in detail
        assert "ebbtide adopt" in detail
    world.source.revoke()
    world.source.named = "topic-b"
    worker = world.worker()
    async with world.at_work(worker), asyncio.timeout(20):
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
    async with world.at_work(worker), asyncio.timeout(20):
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


async def test_a_worker_without_partitions_is_ready() -> None:
    """It is a standby: a surge pod that the group gives nothing must not hold up a rolling update."""
    world = World(14, logs_of(seed=34, events=100), rate=0.0)
    worker = world.worker()
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    assert worker.not_ready_reasons == ["the group is forming"]
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

    async with world.at_work(worker), asyncio.timeout(30):
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


async def test_partitions_that_were_added_end_the_worker() -> None:
    """Customers moved away from their state: one clear error, and nothing is folded."""
    logs = logs_of(seed=33, events=100)
    world = World(12, [*logs, []], rate=0.0)
    with pytest.raises(TopicRepartitioned, match="4 partitions, and had 3"):
        await world.finish(world.worker())
    assert [await world.store.checkpoint(partition) for partition in range(PARTITIONS)] == [None] * PARTITIONS


async def test_a_partition_of_bad_records_stops_alone() -> None:
    """A flood in one partition: it says why and stays; the others go on, and a drain still ends in good order."""
    logs = logs_of(seed=18, events=600)
    logs[1] = [LogRecord(n, T0 + n, b"x", b"nonsense") for n in range(2_000)]
    world = World(7, logs, rate=0.0)
    worker = world.worker(limits=replace(LIMITS, dead_letter_share_max=0.5))

    async def at(partition: int) -> int:
        checkpoint = await world.store.checkpoint(partition)
        return checkpoint.offset if checkpoint else 0

    async with world.at_work(worker), asyncio.timeout(20):
        while await at(0) < len(logs[0]) or await at(2) < len(logs[2]) or not worker.not_ready_reasons:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        (trouble,) = worker.not_ready_reasons
        assert trouble.startswith("partition 1: it has stopped")
        assert "ebbtide dlq list" in trouble
        assert 0 < await at(1) < 1_000
        assert await worker.drain(1.0)


@pytest.mark.parametrize("seed", range(2))
async def test_a_row_that_no_model_can_score_loses_its_decision_only(seed: int) -> None:
    """Every thirteenth activity of anybody breaks the model: its event is folded, and a dead letter says so, once."""
    print(f"seed {seed}")
    logs = logs_of(seed=400 + seed)
    clean = await clean_run(logs)
    world = World(seed, logs, rate=0.02)
    world.model = FussyModel(raises=[13], sizes=(8, 32))
    await world.finish(world.worker())
    broken, whole = await world.records(), await clean.records()
    assert broken.keys() == whole.keys()
    for customer, record in whole.items():
        ours, theirs = (np.frombuffer(bytearray(r), LAYOUT.dtype) for r in (broken[customer], record))
        for name in LAYOUT.dtype.names or ():
            if name not in EPISODE_FIELDS:
                assert ours[name].tobytes() == theirs[name].tobytes(), name
    lost = {letter for letter in world.letters() if letter[0] == "unscored"}
    assert world.letters() - lost == clean.letters()
    points: set[tuple[str, int, int]] = set()
    for partition, log in enumerate(logs):
        events = Parser(SPEC).parse(log).events
        _, found = Folder(LAYOUT).fold(LAYOUT.empty(len(events.customers)), events)
        bad = found.scored & (found.rows["activity_count"] == 13)
        points |= {("unscored", partition, int(at)) for at in events.position[found.event[bad]]}
    assert lost == points != set()


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

    async with world.at_work(worker), asyncio.timeout(20):
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
    async with world.at_work(worker), asyncio.timeout(20):
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
