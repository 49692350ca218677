"""A move to another prefix by the commands, while workers and commands die: rebuild, switch, dead letters sent again.

    workers of the old prefix   ━━━ ✝ ━━━ ✝ ━━━━━━━━━┓ SIGTERM
    `ebbtide rebuild`               ✝     ✝  ━━━━━━  ┃
    `ebbtide dlq replay`                             ┃  ✝  ━━━
    workers of the new prefix                        ┃         ━━━ ✝ ━━━━▶ all is compared, of the new prefix

Nothing may be said twice over the switch, and nothing be left out. What was sent again lies in the log, so the replay
of it makes dead letters of it once more; that it is what it should be is counted here, from the two topics alone.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.worker.connect import open_store
from ebbtide.stream.kafka.reader import log_ranges, read_topic
from ebbtide.stream.kafka.topics import ensure_topics
from ebbtide.stream.outputs.dead_letter import original_headers, parse_headers
from tests.chaos.command import COMMAND_S_MAX, Operator
from tests.chaos.config import FETCH_BYTES, RUN_RECORDS, proxied, topics
from tests.chaos.feed import Acknowledged, Orders, checksum
from tests.chaos.monitor import Monitor
from tests.chaos.producers import Producers
from tests.chaos.scene import Scene
from tests.chaos.shape import Shape
from tests.chaos.tally import Tally
from tests.chaos.workers import Crew, Forks, Worker

PREFIX = "chaos-moved:"
SLOTS, CUSTOMERS, FETCH_RECORDS = 2, 2_000, 50
FEED_S, MORE_S, MORE_EVENTS = 6.0, 2.0, 1_500
OPEN_S_MAX = 60.0
REBUILT_MIN = 6_000
"""Records that a rebuild has to fold, at least: half of what there is."""
KILLS = 2
"""Of the rebuild, each with something left to fold."""
REDIS_S, KAFKA_S, KAFKA_BYTES_A_S = 0.03, 0.05, 30e3
"""How slow the ways are while something is to be killed half-way."""
LOOK_S = 0.02

Identity = tuple[int, int]
"""Of a record: its partition, and the checksum of its key, value and headers."""


@dataclass
class Operators:
    """`run`, then read `moved` (the settings of the new prefix), `tally` and `crews`."""

    shape: Shape
    scene: Scene
    settings: Settings
    forks: Forks
    folder: Path
    tally: Tally = field(default_factory=Tally)
    crews: list[Crew] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        redis = self.settings.redis.model_copy(update={"prefix": PREFIX})
        self.moved = self.settings.model_copy(update={"redis": redis})
        self._draw = random.Random(self.shape.seed + 31)
        self._layout = Layout(load_spec(self.settings.spec))
        self.tally.figures |= {"rebuild_kills": 0, "dlq_replay_kills": 0}

    async def run(self) -> Acknowledged:
        """Everything, to the end of the last worker. Raises TimeoutError when something does not come to an end."""
        await ensure_topics(self.settings.kafka, topics(self.settings))
        first, more = self._feed("first", 40, FEED_S), self._feed("more", 41, MORE_S)
        before, after = self._crew("before", self.settings), self._crew("after", self.moved)
        operator = Operator(self.forks, self.folder / "commands", self._proxied(self.settings))
        mover = Operator(self.forks, self.folder / "commands-moved", self._proxied(self.moved))
        try:
            before.man(SLOTS)
            await before.ready(self.shape.partitions, OPEN_S_MAX)
            await first.start()
            await self._rebuild(operator, before)
            acknowledged = await first.finished()
            await before.disband()
            await self._send_again(mover)
            await more.start()
            await self._go_on(after)
            acknowledged = acknowledged.joined(await more.finished())
            await self._to_the_end()
            await after.disband()
        finally:
            self.scene.heal()
            for feed in (first, more):
                feed.kill()
            for crew in self.crews:
                crew.kill_all()
        self.tally.count("commands_failed", operator.failed + mover.failed)
        return acknowledged

    def _feed(self, name: str, seed: int, seconds: float) -> Producers:
        s = self.settings
        events = MORE_EVENTS if name == "more" else max(12_000, self.shape.events // 60)
        orders = Orders(
            s.kafka.url, s.kafka.topic, self.shape.partitions, CUSTOMERS, events, seconds, self.shape.seed + seed, 2,
            RUN_RECORDS, FETCH_BYTES, self.shape.scale, str(self.folder / f"operated-{name}.npz"),
        )  # fmt: skip
        return Producers(orders, self.folder)

    def _proxied(self, settings: Settings) -> dict[str, Any]:
        return proxied(settings, self.scene, fetch_records_max=FETCH_RECORDS, fetch_partition_bytes_max=4_096)

    def _crew(self, name: str, settings: Settings) -> Crew:
        crew = Crew(
            self.forks, self.folder / name, dict.fromkeys(range(SLOTS), self._proxied(settings)), self._draw
        )
        self.crews.append(crew)
        return crew

    async def _rebuild(self, operator: Operator, crew: Crew) -> None:
        """Killed when it has moved, with a worker each time; then until it is done."""
        words = ("rebuild", "--prefix", PREFIX)
        partitions = self.shape.partitions
        async with (
            open_store(self.settings, self._layout, partitions) as old,
            open_store(self.moved, self._layout, partitions) as store,
        ):
            # Else a rebuild is over before it can be killed.
            await self._until_beyond(old, REBUILT_MIN, lambda: False)
            for way in self.scene.proxies("redis"):
                way.slow(REDIS_S)
            for _ in range(KILLS):
                await self._kill_when_moved(store, await operator.call(*words))
                worker = await crew.pick(serving=True)
                if worker is not None:
                    worker.kill()
            self.scene.heal()
            await operator.done(await operator.call(*words))

    async def _kill_when_moved(self, store: Store, command: Worker) -> None:
        await self._until_beyond(store, await self._folded(store), lambda: not command.alive)
        self.tally.figures["rebuild_kills"] += command.kill()

    async def _folded(self, store: Store) -> int:
        """Records so far, of all partitions."""
        found = [await store.checkpoint(p) for p in range(self.shape.partitions)]
        return sum(checkpoint.offset for checkpoint in found if checkpoint is not None)

    async def _until_beyond(self, store: Store, records: int, over: Callable[[], bool]) -> None:
        async def beyond() -> bool:
            return await self._folded(store) > records

        await _until(beyond, over)

    async def _send_again(self, operator: Operator) -> None:
        """Every dead letter that there is, with nobody at work; killed while they are on their way, and begun again."""
        ends = await self._ends()
        due = await self._due_letters()

        async def moved() -> bool:
            return await self._ends() != ends

        for way in self.scene.proxies("kafka"):
            way.slow(KAFKA_S, KAFKA_BYTES_A_S)
        command = await operator.call("dlq", "replay")
        await _until(moved, lambda: not command.alive)
        self.tally.figures["dlq_replay_kills"] += command.kill()
        self.scene.heal()
        await operator.done(await operator.call("dlq", "replay"))
        sent = Counter[Identity]()
        async for record in read_topic(self.settings.kafka, self.settings.kafka.topic):
            if record.offset >= ends[record.partition]:
                sent[record.partition, checksum(record.key, record.value, record.headers)] += 1
        self.tally.figures |= {
            "letters_sent_again": sum(due.values()),
            "letters_sent_twice": sum((sent - due).values()),
        }
        self.tally.count("letters_not_sent_again", sorted((due - sent).keys()))
        self.tally.count("letters_sent_thrice", sorted((sent - due - due).keys()))
        self.tally.count("letters_made_up", sorted(sent.keys() - due.keys()))

    async def _due_letters(self) -> Counter[Identity]:
        """The dead letters of customers whom no tombstone behind them forgets, as the records that they were."""
        forgotten: dict[tuple[int, bytes | None], int] = {}
        async for record in read_topic(self.settings.kafka, self.settings.kafka.topic):
            if record.value is None:
                forgotten[record.partition, record.key] = record.offset
        due = Counter[Identity]()
        async for record in read_topic(self.settings.kafka, self.settings.topics.dead_letters):
            if (letter := parse_headers(record.headers)) is None:
                continue
            _, partition, offset = letter.source
            if forgotten.get((partition, record.key), -1) < offset:
                value = record.value if letter.has_value else None
                due[partition, checksum(record.key, value, original_headers(record.headers))] += 1
        return due

    async def _ends(self) -> dict[int, int]:
        ranges = await log_ranges(self.settings.kafka, self.settings.kafka.topic)
        return {partition: end for partition, (_, end) in ranges.items()}

    async def _go_on(self, crew: Crew) -> None:
        """With the workers of the new prefix, of whom one dies as soon as it has begun."""
        crew.man(SLOTS)
        worker = await crew.pick(serving=True, timeout_s=OPEN_S_MAX)
        if worker is not None:
            worker.kill()

    async def _to_the_end(self) -> None:
        async with open_store(self.moved, self._layout, self.shape.partitions) as store:
            await read_to_the_end(store, self.moved, self.shape)


async def read_to_the_end(store: Store, settings: Settings, shape: Shape) -> None:
    """Wait until nothing of a topic lags. Raises TimeoutError."""
    kafka = settings.kafka
    monitor = Monitor(store, kafka.url, kafka.topic, kafka.group, shape.partitions)
    await monitor.start()
    try:
        if not await monitor.caught_up(shape.drain_s_max):
            raise TimeoutError(f"{kafka.topic} is not read to its end: {monitor.stuck}, {monitor.committed}")
    finally:
        await monitor.stop()


async def _until(enough: Callable[[], Coroutine[Any, Any, bool]], over: Callable[[], bool]) -> None:
    """Ask until it is enough, or it is over, or for far too long."""
    until_s = time.monotonic() + COMMAND_S_MAX
    while not over() and time.monotonic() < until_s and not await enough():  # noqa: ASYNC110 -- no event tells it
        await asyncio.sleep(LOOK_S)
