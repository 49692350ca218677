"""Silence, taken by timers: whatever happens to workers and store, the end is as if the next events had told.

    timers   ●───●─────s────s────────────s─────x            time passes, day by day; nothing else comes
    events   ●───●──────────────────────────────────────●   no timers; one last event of everybody reveals it all

Both make the same records and the same alerts, byte for byte. The wall clock is the test's.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest

from ebbtide.featurestore.errors import LayoutError, StoreUnavailable
from ebbtide.ops.state.rebuild import take_timers
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.decision.suppression import SUPPRESS_ALL, Suppression
from ebbtide.stream.pipeline import Pipeline
from ebbtide.stream.telemetry import Telemetry, TurnDone
from ebbtide.stream.turn.timers import TimerLimits
from ebbtide.stream.worker import Worker
from tests.support.patience import PATIENCE_S
from tests.support.seams.scoring import LAYOUT
from tests.support.seams.streams import LogRecord
from tests.support.seams.turns import from_the_beginning, take_over
from tests.support.seams.world import DAY_MS, LIMITS, PARTITIONS, T0, World, logs_of

LATENESS_MS = 3_600_000
TIMERS = TimerLimits(LATENESS_MS, source_quiet_max_ms=30_000 * DAY_MS, customers_per_s_max=100_000)
Logs = list[list[LogRecord]]


class Wall(SystemClock):
    """The wall clock says what it is told; durations are real."""

    def __init__(self, at_ms: int = T0) -> None:
        self.at_ms = at_ms

    def now_ms(self) -> int:
        return self.at_ms


class Turns(Telemetry):
    """Of each turn: how many records it had, and how many customers who were due."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.late_s: list[float] = []

    def turn_done(self, turn: TurnDone) -> None:
        self.seen.append((turn.records, turn.due))

    def timers(self, hold: bool, low: int, late_s: float) -> None:
        self.late_s.append(late_s)


class Timed:
    """A world whose time passes by hand, with one worker at a time."""

    def __init__(self, seed: int = 0, rate: float = 0.0, *, timers: TimerLimits = TIMERS) -> None:
        self.clock = Wall()
        self.logs: Logs = [[] for _ in range(PARTITIONS)]
        self.world = World(seed, self.logs, rate)
        self.world.source.now_ms = self.clock.now_ms
        self.timers = timers
        self.telemetry = Turns()

    @asynccontextmanager
    async def at_work(self, alerts_from: Any = "start") -> AsyncIterator[Worker]:
        """A worker that owns everything; at the end it dies."""
        limits = replace(LIMITS, timers=self.timers, idle_check_s=5.0)
        worker = self.world.worker(
            alerts_from=alerts_from, limits=limits, telemetry=self.telemetry, clock=self.clock
        )
        async with self.world.at_work(worker):
            yield worker
        self.world.source.revoke()

    def say(self, who: int, at_ms: int, kind: str = "visit", event_id: str = "") -> None:
        """One event more; Kafka's timestamp is its own."""
        log, user = self.logs[who % PARTITIONS], f"customer-{who}"
        value = {"user_id": user, "type": kind, "ts": at_ms, "event_id": event_id or f"{who}-{at_ms}-{kind}"}
        log.append(LogRecord(len(log), at_ms, user.encode(), orjson.dumps(value)))

    async def settled(self, timeout_s: float = PATIENCE_S) -> None:
        """All is applied, sent and marked, and nobody is due any more."""
        async with asyncio.timeout(timeout_s):
            while not (self.world.source.done() and await self.applied() and not await self.due()):  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
            while any([await self.world.store.outbox(p) for p in range(PARTITIONS)]):  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)

    async def applied(self) -> bool:
        """Every event that was said is folded."""
        checkpoints = [await self.world.store.checkpoint(p) for p in range(PARTITIONS)]
        return [checkpoint.offset if checkpoint else 0 for checkpoint in checkpoints] == [
            *map(len, self.logs)
        ]

    async def due(self) -> list[str]:
        """Who is due and was not taken yet."""
        until = self.clock.at_ms - LATENESS_MS
        return [name for p in range(PARTITIONS) for name in (await self.world.store.due(p, until, 9_999))[0]]

    def alerts(self) -> dict[str, bytes]:
        return self.world.alerts()


async def told_by_events(logs: Logs) -> World:
    """The same log without timers, to its end."""
    world = World(0, logs, 0.0)
    await world.finish(world.worker())
    return world


async def assert_told_alike(timed: Timed) -> dict[str, bytes]:
    wanted = await told_by_events(timed.logs)
    assert await timed.world.records() == await wanted.records()
    assert timed.alerts() == wanted.alerts()
    return wanted.alerts()


def without_tombstones(logs: Logs) -> Logs:
    """A tombstone forgets whom a timer would have alerted about before: there the two may differ."""
    kept = [[record for record in log if record.value is not None] for log in logs]
    return [[replace(record, offset=n) for n, record in enumerate(log)] for log in kept]


async def test_who_says_no_more_is_alerted_and_in_the_end_forgotten() -> None:
    """Opened by a silence, resolved when the record expires, nothing left of them; then the next event tells the
    same."""
    timed = Timed()
    for who in range(9):
        timed.say(who, T0 + who)
    async with timed.at_work():
        for days in (1, 9, 30, 70):
            timed.clock.at_ms = T0 + days * DAY_MS
            await timed.settled()
        assert await timed.world.records() == {}
        assert len(timed.alerts()) == 18
        for who in range(9):
            timed.say(who, T0 + 70 * DAY_MS)
        await timed.settled()
    told = [orjson.loads(alert) for alert in (await assert_told_alike(timed)).values()]
    assert {(a["state"], a["decision"]["cause"], a["probability"] is None) for a in told} == {
        ("opened", "silence", False),
        ("resolved", "expired", True),
    }
    assert {(a["customer"], a["decision"]["offset"]) for a in told} == {
        (f"customer-{who}", who // PARTITIONS) for who in range(9)
    }


async def live(timed: Timed, records: list[tuple[int, LogRecord]], draw: random.Random, chaos: float) -> None:
    """The records as they come, the clock with them; between, workers die and stores are lost as it is drawn."""
    at, saved = 0, timed.world.store.saved()
    while at < len(records):
        async with timed.at_work():
            for _ in range(draw.randrange(1, 5)):
                n = draw.randrange(1, 1 + len(records) // 6)
                for partition, record in records[at : at + n]:
                    timed.logs[partition].append(record)
                    timed.clock.at_ms = max(timed.clock.at_ms, record.timestamp)
                at += n
                if draw.random() < chaos:
                    await asyncio.sleep(draw.uniform(0.0, 0.3))
                    timed.clock.at_ms += draw.randrange(LATENESS_MS)
                    break
                await timed.settled()
        if draw.random() < chaos / 2:
            timed.world.store.fall_back(draw.choice([None, saved]))
        elif draw.random() < chaos:
            saved = timed.world.store.saved()


async def live_to_the_end(timed: Timed, seed: int, chaos: float) -> None:
    """A long log as it comes, then a hundred days of nothing, until nobody is known; then one last event of
    everybody."""
    draw = random.Random(seed)
    logs = without_tombstones(logs_of(seed=seed, events=600))
    records = sorted(
        ((p, record) for p, log in enumerate(logs) for record in log), key=lambda each: each[1].timestamp
    )
    await live(timed, records, draw, chaos)
    timed.world.faults.calm()
    end_ms = timed.clock.at_ms
    async with timed.at_work():
        for days in (3, 20, 100):
            timed.clock.at_ms = end_ms + days * DAY_MS
            await timed.settled()
        assert await timed.world.records() == {}
        for who in range(40):
            timed.say(who, timed.clock.at_ms)
        await timed.settled()


@pytest.mark.parametrize("chaos", [0.0, 0.4, 0.8])
async def test_timers_and_events_tell_the_same(chaos: float) -> None:
    """A long log as it comes, then a hundred days of nothing, then one last event of everybody. With chaos the workers
    die in the middle of it, and the store is lost or falls back, answers with it."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    timed = Timed(seed, 0.01 if chaos else 0.0)
    await live_to_the_end(timed, seed, chaos)
    told = [orjson.loads(alert) for alert in (await assert_told_alike(timed)).values()]
    causes = {alert["decision"]["cause"] for alert in told}
    assert {"silence", "expired"} <= causes


async def test_many_due_in_one_millisecond_survive_their_worker() -> None:
    """Pages, pieces and cursors within one millisecond; the worker dies again and again on the way."""
    timed = Timed(timers=replace(TIMERS, customers_per_s_max=3_000))
    for who in range(900):
        timed.say(who, T0)
    async with timed.at_work():
        await timed.settled()
    timed.clock.at_ms = T0 + 9 * DAY_MS
    cursors = set()
    while before := len(await timed.due()):
        async with timed.at_work(), asyncio.timeout(PATIENCE_S):
            while len(await timed.due()) == before:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
        for p in range(PARTITIONS):
            checkpoint = await timed.world.store.checkpoint(p)
            cursors.add(checkpoint.timer_cursor if checkpoint else None)
    assert len(cursors) > 2, cursors
    async with timed.at_work():
        for who in range(900):
            timed.say(who, timed.clock.at_ms)
        await timed.settled()
    assert len(await assert_told_alike(timed)) > 900


async def assert_tells_only_what_comes(timed: Timed) -> None:
    """Who is due is taken without a word; in two days customers 6 to 8 fall silent, and the next owner tells it."""
    async with timed.at_work("now"):
        await timed.settled()
        assert timed.alerts() == {}
    async with timed.at_work("now"):
        timed.clock.at_ms += 2 * DAY_MS
        await timed.settled()
    assert {orjson.loads(alert)["customer"] for alert in timed.alerts().values()} == {
        "customer-6",
        "customer-7",
        "customer-8",
    }


async def test_a_first_start_tells_nothing_of_what_was_due_before() -> None:
    """An old topic: who was silent already is taken without a word, whoever owns it next; who falls silent now is
    told."""
    timed = Timed()
    for who in range(6):
        timed.say(who, T0)
    timed.clock.at_ms = T0 + 10 * DAY_MS
    for who in range(6, 9):
        timed.say(who, timed.clock.at_ms - 7 * DAY_MS)
    await assert_tells_only_what_comes(timed)


async def test_timers_that_were_off_tell_nothing_of_that_time() -> None:
    """Turned on they take who fell silent meanwhile without a word, whoever owns it next; who falls silent now is
    told."""
    timed = Timed(timers=replace(TIMERS, clock="off"))
    for who in range(6):
        timed.say(who, T0)
    async with timed.at_work("now"), asyncio.timeout(PATIENCE_S):
        while not await timed.applied():  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.01)
        timed.clock.at_ms = T0 + 10 * DAY_MS
        for who in range(6, 9):
            timed.say(who, timed.clock.at_ms - 7 * DAY_MS)
        while not (timed.world.source.done() and await timed.applied()):  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.01)
    timed.timers = TIMERS
    await assert_tells_only_what_comes(timed)


@pytest.mark.parametrize("why", ["backlog", "transaction", "quiet"])
async def test_nothing_fires_while_it_could_be_disproved(why: str) -> None:
    """Somebody's next event lies in what is not fetched, in an open transaction, or the producers are gone."""
    timed = Timed()
    if why == "quiet":
        timed.timers = replace(TIMERS, source_quiet_max_ms=3_600_000)
    timed.say(0, T0)
    async with timed.at_work() as worker:
        await timed.settled()
        await asyncio.sleep(0.3)
        if why == "backlog":
            timed.world.source.pause(0)
            timed.say(0, T0 + 8 * DAY_MS)
        elif why == "transaction":
            timed.world.source.open_records[0] = 1
        timed.clock.at_ms = T0 + 9 * DAY_MS
        await asyncio.sleep(0.7)
        checkpoint = await timed.world.store.checkpoint(0)
        assert checkpoint is not None and checkpoint.timer_ms == 0
        assert timed.alerts() == {}
        if why == "quiet":
            assert any("timers hold" in warning for warning in worker.warnings)
            timed.say(1, timed.clock.at_ms)  # anybody's event shows that the producers are there
        elif why == "backlog":
            timed.world.source.resume(0)
        else:
            timed.world.source.open_records.clear()
        await timed.settled()
    silences = [orjson.loads(alert)["state"] for alert in timed.alerts().values()]
    assert silences == ([] if why == "backlog" else ["opened"])


HOUR_MS = 3_600_000
DAY_RATE, NIGHT_RATE = 120, 24
"""Records an hour of partition 0: from 8 to 12, and from 19 to 21."""


def bring(timed: Timed, hour: int, records: int) -> None:
    """So many records of partition 0 within an hour, of twenty customers in turn."""
    first_ms = T0 // HOUR_MS * HOUR_MS + hour * HOUR_MS
    for n in range(records):
        timed.say(3 * (1 + n % 20), first_ms + n * HOUR_MS // records)


@pytest.mark.parametrize("case", ["a tenth", "a usual night", "no two weeks yet"])
async def test_a_source_that_falls_to_a_tenth_holds_timers(case: str) -> None:
    """
    week 0, 1   ·8══12·····19══21·      the hours of earlier weeks
    week 2      ·8══1─▲           the source falls to a tenth at 10, somebody's silence comes up at 9:45: it is held,
                                  also by the next worker, and after the state was made again
    """
    timed, end = Timed(), 19 if case == "a usual night" else 10
    base_ms, weeks = T0 // HOUR_MS * HOUR_MS, range(1 if case == "no two weeks yet" else 0, 3)
    for week in weeks:
        if week == 2:
            timed.say(0, base_ms + (2 * 168 + end - 24) * HOUR_MS - HOUR_MS // 4)
        for hour, rate in [(h, DAY_RATE) for h in range(8, 12)] + [(h, NIGHT_RATE) for h in range(19, 21)]:
            if week < 2 or hour < end:
                bring(timed, week * 168 + hour, rate)

    def to(hour: float) -> None:
        timed.clock.at_ms = base_ms + int((2 * 168 + hour) * HOUR_MS)

    def warned(worker: Worker) -> bool:
        return any("partition 0: timers hold: its log brought" in warning for warning in worker.warnings)

    async def held(worker: Worker) -> bool:
        while not await timed.applied() or worker.not_ready_reasons:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.01)
        async with asyncio.timeout(PATIENCE_S):
            while warned(worker) != ("customer-0" in await timed.due()):  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.7)
        assert warned(worker) == ("customer-0" in await timed.due())
        return warned(worker)

    to(end)
    async with timed.at_work() as worker:
        await timed.settled()
        assert not warned(worker)
        bring(timed, 2 * 168 + end, NIGHT_RATE if case == "a usual night" else DAY_RATE // 10)
        to(end + 0.99)
        assert await held(worker) == (case == "a tenth")
    counted = await timed.world.store.hours(0)
    assert len(counted) == (weeks.stop - weeks.start - 1) * 168 + end - 8
    if case != "a tenth":
        return
    async with timed.at_work() as worker:
        assert await held(worker), "the next worker knows it, too"
    timed.world.store.fall_back(None)
    async with timed.at_work() as worker:
        assert await held(worker), "and a state that was made again from the log"
        assert await timed.world.store.hours(0) == counted
        bring(timed, 2 * 168 + 11, DAY_RATE)
        to(12)
        await timed.settled()
        assert not warned(worker)


async def test_a_question_for_the_due_that_fails_loses_nobody() -> None:
    """A connection that breaks once: whom a commit armed before is asked for again, though nothing more is said."""
    timed = Timed()
    async with timed.at_work() as worker:
        while not all(p.opened and p.opened.due.next_ms for p in worker.partitions.values()):  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.01)
        timed.say(0, T0)
        while not await timed.applied():  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.01)
        timed.world.store.due_refusals.append(StoreUnavailable("lost on the way"))
        timed.clock.at_ms = T0 + 9 * DAY_MS
        async with asyncio.timeout(20.0):
            while timed.world.store.due_refusals:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
        await timed.settled(20.0)
    assert [orjson.loads(alert)["state"] for alert in timed.alerts().values()] == ["opened"]


async def test_a_refused_question_for_the_due_stops_its_partition() -> None:
    """What no second question mends: its timers would stand, and it would be called ready."""
    timed = Timed()
    timed.say(0, T0)
    async with timed.at_work() as worker:
        timed.world.store.due_refusals += [LayoutError("a customer's name there is no text")]
        async with asyncio.timeout(20.0):
            while not (stopped := [why for why in worker.not_ready_reasons if "it has stopped" in why]):  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
    assert len(stopped) == 1 and "there is no text" in stopped[0]


async def test_how_late_timers_are_shows_during_a_turn() -> None:
    """A partition that is always in one would seem to be never late."""
    timed = Timed()
    timed.say(0, T0)
    async with timed.at_work() as worker:
        await timed.settled()
        worker.partitions[0].in_turn = True
        timed.clock.at_ms = T0 + 9 * DAY_MS
        before = len(timed.telemetry.late_s)
        while len(timed.telemetry.late_s) < before + 2:  # noqa: ASYNC110 -- no event
            await asyncio.sleep(0.01)
        assert timed.telemetry.late_s[-1] == (8 * DAY_MS - LATENESS_MS) / 1000
        worker.partitions[0].in_turn = False
        await timed.settled()


async def test_a_transaction_that_is_always_open_holds_no_timers() -> None:
    """One ends and the next has begun: the log's end is never reached. What was folded shows how late it is, as in a
    backlog, and how long somebody has been due shows, too."""
    timed = Timed()
    timed.world.source.open_records[0] = 1
    timed.say(0, T0)
    async with timed.at_work():
        for days in (1, 9):
            timed.clock.at_ms = T0 + days * DAY_MS
            timed.say(3, timed.clock.at_ms)
        await timed.settled(20.0)
    told = [orjson.loads(alert) for alert in timed.alerts().values()]
    assert {(alert["customer"], alert["decision"]["cause"]) for alert in told} >= {("customer-0", "silence")}


async def test_who_comes_back_is_armed_anew() -> None:
    timed = Timed()
    timed.say(0, T0)
    async with timed.at_work():
        timed.clock.at_ms = T0 + 9 * DAY_MS
        await timed.settled()
        timed.say(0, timed.clock.at_ms)
        await timed.settled()
        assert (await timed.world.store.due(0, 2**53, 9))[1].tolist() == [timed.clock.at_ms + DAY_MS]
        timed.clock.at_ms += 9 * DAY_MS
        await timed.settled()
    told = [orjson.loads(alert)["state"] for alert in timed.alerts().values()]
    assert told == ["opened", "resolved", "opened"]


async def test_a_late_event_is_no_loose_end() -> None:
    """It comes behind what timers took: its customer's silences up to there are taken with it, at once."""
    timed = Timed()
    timed.say(0, T0)
    async with timed.at_work():
        timed.clock.at_ms = T0 + 9 * DAY_MS
        await timed.settled()
        timed.say(3, T0 + DAY_MS)
        await timed.settled()
        checkpoint = await timed.world.store.checkpoint(0)
        assert checkpoint is not None
        names, due = await timed.world.store.due(0, 2**53, 9)
        assert sorted(names) == ["customer-0", "customer-3"]
        assert (due > checkpoint.timer_ms).all()


async def test_a_backlog_of_the_due_delays_no_event() -> None:
    """Three hundred a second are allowed: events go through meanwhile, in turns of their own that hold none of the due
    and their alerts, and so many are taken and no more."""
    timed = Timed(timers=replace(TIMERS, customers_per_s_max=300))
    for who in range(1_500):
        timed.say(who, T0)
    async with timed.at_work():
        await timed.settled()
        timed.clock.at_ms = T0 + 3 * DAY_MS // 2
        loop = asyncio.get_running_loop()
        began_s, waits = loop.time(), []
        for n in range(40):
            timed.say(n, timed.clock.at_ms + n)
            said_s = loop.time()
            while not await timed.applied():  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.001)
            waits.append(loop.time() - said_s)
            await asyncio.sleep(0.02)
        taken = 1_500 - len(await timed.due())
        seconds = loop.time() - began_s
        assert 100 < taken < 300 * (seconds + 1)
        assert sorted(waits)[20] < 0.1, waits
    assert not [turn for turn in timed.telemetry.seen if all(turn)]
    portions = [due for _, due in timed.telemetry.seen if due]
    assert max(portions) <= 2 * 300 // 50, "what is due at once goes in portions"


async def test_a_backlog_elsewhere_starves_nobody_who_is_due() -> None:
    """Two partitions always have something to take; the third has nothing but customers who are due."""
    timed = Timed()
    for who in range(2, 300, PARTITIONS):
        timed.say(who, T0)
    async with timed.at_work():
        await timed.settled()
        timed.clock.at_ms = T0 + 2 * DAY_MS
        for n in range(12_000):
            timed.say(n % 2, timed.clock.at_ms + n, event_id=str(n))
        async with asyncio.timeout(20.0):
            while await timed.due():  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
        assert not await timed.applied(), "the backlog was over by then"


async def test_a_backlog_of_its_own_starves_nobody_who_is_due() -> None:
    """A partition that always has events is nearly always in a turn: who is due is asked for all the same."""
    timed = Timed()
    for who in range(0, 900, PARTITIONS):
        timed.say(who, T0)
    async with timed.at_work():
        await timed.settled()
        timed.clock.at_ms = T0 + 2 * DAY_MS
        for n in range(30_000):
            timed.say(0, timed.clock.at_ms + n, event_id=str(n))
        looked = len(timed.telemetry.late_s)
        async with asyncio.timeout(PATIENCE_S):
            while await timed.due():  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
        assert len(timed.telemetry.late_s) - looked < 15, "it was looked so often who is due"


async def test_a_lone_partition_goes_on_when_nobody_is_due() -> None:
    """After three turns of events it is its timers' turn; when nobody is due by then, events go on at once."""
    timed = Timed()
    timed.say(0, T0)
    async with timed.at_work():
        await timed.settled()
        for n in range(6_000):
            timed.say(3, T0 + 2 * DAY_MS + n)
        timed.clock.at_ms = T0 + 2 * DAY_MS + 6_000
        await timed.settled(10.0)


async def test_a_rebuild_ends_where_the_timers_were() -> None:
    """Beside the worker, in silence: the same records at the committed offset and its cursor."""
    timed = Timed()
    for who in range(300):
        timed.say(who, T0 + who // 7)
    async with timed.at_work():
        await timed.settled()
        timed.clock.at_ms = T0 + 9 * DAY_MS
        await timed.settled()
    rebuilt = World(0, timed.logs, 0.0)
    tools = rebuilt.tools(clock=timed.clock)
    serving = asyncio.create_task(tools.batcher.run())
    for p, log in enumerate(timed.logs):
        opened = from_the_beginning(LAYOUT.id, p, PARTITIONS)
        opened.suppression = SUPPRESS_ALL
        await take_over(tools, opened, FetchedBatch("clickstream", p, 0, 0, len(log), log))
        await take_timers(
            Pipeline(tools), tools.store, opened, Suppression.by(timed.world.source.marks[p]).timers_from
        )
        checkpoint = await timed.world.store.checkpoint(p)
        assert checkpoint is not None and opened.checkpoint.timers == checkpoint.timers > (T0, "")
    serving.cancel()
    assert rebuilt.sink.sent == {}
    assert await rebuilt.records() == await timed.world.records()
