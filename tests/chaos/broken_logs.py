"""A log that is no longer the one that its state was made from, under a worker: what stops, and what mends it.

    unclean   partition 0 lies on brokers 1 and 2. 2 dies, 1 takes more, 1 dies, 2 comes back and leads: the end is gone
    anew      the topic is deleted and made again

Then the log is filled, past where it was. Of both: whoever lost something stops within seconds and names the remedy,
the others go on; and after that remedy the state is what a replay makes of the log that is there. What was said of what
is lost stays said: alerts are not compared.
"""

import asyncio
import json
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from aiokafka.admin import NewTopic

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.worker.connect import open_store
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.reader import log_ranges
from ebbtide.stream.kafka.topics import ensure_topics
from tests.chaos.command import Operator
from tests.chaos.config import FETCH_BYTES, RUN_RECORDS, proxied, topics
from tests.chaos.feed import Orders
from tests.chaos.operators import read_to_the_end
from tests.chaos.producers import Producers
from tests.chaos.scene import Scene
from tests.chaos.shape import Shape
from tests.chaos.tally import Tally
from tests.chaos.workers import Crew, Forks, until

How = Literal["unclean", "anew"]
HOWS: tuple[How, ...] = ("unclean", "anew")
BROKERS_OF = {0: [1, 2], 1: [2, 3], 2: [3, 1]}
"""By partition, its first leader first. No two of them are without 3 when 1 and 2 are away."""
UNSAFE = {"unclean.leader.election.enable": "true", "min.insync.replicas": "1"}
EVENTS, LOST_EVENTS, CUSTOMERS, FEED_S = 2_400, 600, 400, 2.0
OPEN_S_MAX, STOP_S_MAX, ELECTED_S_MAX, LOOK_S = 60.0, 30.0, 90.0, 0.1
REMEDY = "ebbtide rebuild"
NOTHING_TO_REBUILD = "start a worker with the new redis.prefix"
"""What it says of a group without committed offsets, which Kafka takes away with their topic."""


@dataclass
class BrokenLog:
    """`run`, then read `mended` (the settings to compare by), `tally` and `crews`."""

    how: How
    shape: Shape
    scene: Scene
    settings: Settings
    forks: Forks
    folder: Path
    tally: Tally = field(default_factory=Tally)
    crews: list[Crew] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prefix = f"chaos-{self.how}:"
        redis = self.settings.redis.model_copy(update={"prefix": self.prefix})
        self.mended = self.settings.model_copy(update={"redis": redis})
        self.lost = {0} if self.how == "unclean" else set(BROKERS_OF)
        self._fed = 0

    async def run(self) -> None:
        """Everything, to the end of the last worker. Raises TimeoutError when something does not come to an end."""
        await self._make()
        try:
            crew = await self._at_work(self.settings)
            await self._feed(EVENTS)
            await self._read(self.settings)
            await (self._lose_an_end() if self.how == "unclean" else self._make_anew())
            await self._feed(EVENTS)
            await self._judge(crew)
            await crew.disband()
            await self._rebuild()
            crew = await self._at_work(self.mended)
            await self._feed(LOST_EVENTS)
            await self._read(self.mended)
            await crew.disband()
        finally:
            for each in self.crews:
                each.kill_all()

    async def _make(self) -> None:
        """The topics; the input on chosen brokers, where its end is to be lost."""
        kafka = self.settings.kafka
        if self.how == "unclean":
            async with admin(kafka) as client:
                await client.create_topics([NewTopic(kafka.topic, -1, -1, BROKERS_OF, UNSAFE)])
        await ensure_topics(kafka, topics(self.settings))

    async def _at_work(self, settings: Settings) -> Crew:
        folder = self.folder / f"{self.how}-{len(self.crews) + 1}"
        crew = Crew(
            self.forks, folder, {0: proxied(settings, self.scene)}, random.Random(self.shape.seed + 60)
        )
        self.crews.append(crew)
        crew.man(1)
        await crew.ready(len(BROKERS_OF), OPEN_S_MAX)
        return crew

    async def _feed(self, events: int) -> None:
        self._fed += 1
        kafka = self.settings.kafka
        orders = Orders(
            kafka.url, kafka.topic, len(BROKERS_OF), CUSTOMERS, events, FEED_S, self.shape.seed + 60 + self._fed, 0,
            RUN_RECORDS, FETCH_BYTES, self.shape.scale, str(self.folder / f"{self.how}-{self._fed}.npz"),
        )  # fmt: skip
        producers = Producers(orders, self.folder)
        try:
            await producers.start()
            await producers.finished()
        finally:
            producers.kill()

    async def _read(self, settings: Settings) -> None:
        layout = Layout(load_spec(settings.spec))
        async with open_store(settings, layout, len(BROKERS_OF)) as store:
            await read_to_the_end(store, settings, self.shape)

    async def _lose_an_end(self) -> None:
        """Of partition 0, after the worker has read it."""
        first, second = (number - 1 for number in BROKERS_OF[0])
        await asyncio.to_thread(self.scene.kill_broker, second)
        await self._feed(LOST_EVENTS)
        await self._read(self.settings)
        end = (await log_ranges(self.settings.kafka, self.settings.kafka.topic))[0][1]
        await asyncio.to_thread(self.scene.kill_broker, first)
        await asyncio.to_thread(self.scene.restart_broker, second)
        until_s = time.monotonic() + ELECTED_S_MAX
        while True:
            with suppress(EbbtideError, TimeoutError):
                if (await log_ranges(self.settings.kafka, self.settings.kafka.topic))[0][1] < end:
                    break
            if time.monotonic() > until_s:
                raise TimeoutError("the replica that was behind does not lead")
            await asyncio.sleep(LOOK_S)
        await asyncio.to_thread(self.scene.restart_broker, first)

    async def _make_anew(self) -> None:
        topic = self.settings.kafka.topic
        async with admin(self.settings.kafka) as client:
            await client.delete_topics([topic])
            while topic in await client.list_topics():  # noqa: ASYNC110 -- no event tells it
                await asyncio.sleep(LOOK_S)
        await ensure_topics(self.settings.kafka, topics(self.settings))

    async def _judge(self, crew: Crew) -> None:
        """Who lost something stops, and says what to do; who did not, goes on."""
        await until(lambda: _stopped(crew).keys() >= self.lost, STOP_S_MAX)
        others = set(BROKERS_OF) - self.lost
        layout = Layout(load_spec(self.settings.spec))
        async with open_store(self.settings, layout, len(BROKERS_OF)) as store:
            until_s = time.monotonic() + self.shape.drain_s_max
            behind = others
            while behind and time.monotonic() < until_s:
                ranges = await log_ranges(self.settings.kafka, self.settings.kafka.topic)
                at = {p: await store.checkpoint(p) for p in others}
                behind = {p for p, one in at.items() if one is None or one.offset < ranges[p][1]}
                await asyncio.sleep(LOOK_S)
        stopped = _stopped(crew)
        told = {partition for partition, why in stopped.items() if REMEDY in why}
        self.tally.count("broken_logs_unnoticed", sorted(self.lost - told))
        self.tally.count("whole_logs_stopped", sorted((stopped.keys() | behind) - self.lost))
        self.tally.figures["broken_logs"] = len(told & self.lost)

    async def _rebuild(self) -> None:
        """As they said. Kafka took a deleted topic's committed offsets away: then the next start makes the state."""
        settings = proxied(self.settings, self.scene)
        operator = Operator(self.forks, self.folder / f"{self.how}-commands", settings)
        said = await operator.done(await operator.call("rebuild", "--prefix", self.prefix))
        self.tally.count("commands_failed", [] if NOTHING_TO_REBUILD in said else operator.failed)


def _stopped(crew: Crew) -> dict[int, str]:
    """Partitions that a worker of it has stopped, and why, by their logs."""
    lines = [line for worker in crew.all for line in worker.log.read_text(errors="replace").splitlines()]
    found = [json.loads(line) for line in lines if '"message": "partition stopped"' in line]
    return {said["partition"]: said["error"] for said in found}
