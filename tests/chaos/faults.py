"""The faults: what each does, from its beginning to its end, and what is counted.

    plan (seeded) ─▶ at its time ─▶ began ─ hurt ─ wait ─ heal ─▶ over: the monitor times the recovery

Faults overlap as they come; only those that hurt the same server wait for each other. Each is logged with its time in
`timeline`. It refuses to know what should come of it all. Invariant: what a fault does to a server or to the network it
undoes itself; a worker that it ends is replaced by the crew.
"""

import asyncio
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.chaos.monitor import Monitor
from tests.chaos.scene import BROKERS, Scene
from tests.chaos.shape import LOSES_ALL, Shape
from tests.chaos.workers import Crew, Worker, until

MANIFEST = "manifest.json"  # model.manifest says so, and imports TensorFlow
SERVING = 0.7  # of the killed are workers that have partitions; the others as they come, starting or not
TAKE_S_MAX = 20.0
LOSSES_UNTIL = 0.35
"""Of the run's time: a total loss later than that replays too much to be over by the end."""


class Faults:
    """`run` lasts until the last fault is over. `on`: those that are on now."""

    def __init__(
        self, shape: Shape, scene: Scene, crew: Crew, monitor: Monitor, models: Path, session_s: float
    ) -> None:
        self._shape, self._scene, self._crew, self._monitor = shape, scene, crew, monitor
        self._models, self._session_s = models, session_s
        self._draw = random.Random(shape.seed + 2)
        self._locks = {name: asyncio.Lock() for name in ("redis", "kafka", "static", "model")}
        self._began_s = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.timeline: list[str] = []
        self.on: list[str] = []
        self._what: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
            "kill": self._kill, "kill young": self._kill_young, "kill burst": self._kill_burst,
            "leave": self._leave, "guest": self._guest, "static": self._static, "zombie": self._zombie,
            "broker": self._broker, "redis": self._redis, "redis torn": self._redis, "redis lost": self._redis,
            "redis flushed": self._flush, "redis cut": self._cut, "redis hangs": self._hang,
            "redis slow": self._slow, "kafka cut": self._cut, "kafka hangs": self._hang, "kafka slow": self._slow,
            "broker cut": self._cut, "swap": self._swap,
        }  # fmt: skip

    def plan(self) -> list[tuple[float, str]]:
        """When each fault begins, in seconds from the start: evenly, jittered, in an order drawn from the seed."""
        kinds = [kind for kind, n in self._shape.faults.items() for _ in range(n)]
        self._draw.shuffle(kinds)
        step_s = self._shape.seconds / len(kinds)
        early = round(len(kinds) * LOSSES_UNTIL)
        for late in [i for i, kind in enumerate(kinds) if kind in LOSES_ALL and i >= early]:
            other = self._draw.choice([i for i in range(early) if kinds[i] not in LOSES_ALL])
            kinds[late], kinds[other] = kinds[other], kinds[late]
        return [((i + self._draw.random()) * step_s, kind) for i, kind in enumerate(kinds)]

    async def run(self) -> None:
        self._began_s = time.monotonic()
        running: list[asyncio.Task[None]] = []
        for at_s, kind in self.plan():
            await asyncio.sleep(max(0.0, self._began_s + at_s - time.monotonic()))
            running.append(asyncio.create_task(self._what[kind](kind)))
        await asyncio.gather(*running)

    def note(self, what: str) -> None:
        """A line of the timeline."""
        wall = time.strftime("%H:%M:%S") + f".{time.time_ns() // 1_000_000 % 1000:03d}"
        self.timeline.append(f"{wall} {time.monotonic() - self._began_s:7.2f} s  {what}")

    @asynccontextmanager
    async def _fault(self, kind: str, what: str = "") -> AsyncIterator[None]:
        self._monitor.began()
        self.on.append(kind)
        self.note(f"{kind}: begins {what}".rstrip())
        try:
            yield
        finally:
            self.on.remove(kind)
            self.counts[kind] += 1
            self._monitor.over(kind)
            self.note(f"{kind}: over")

    # -- workers

    def _killed(self, worker: Worker) -> bool:
        killed = worker.kill()
        self.counts["worker kills"] += killed
        return killed

    async def _kill(self, kind: str) -> None:
        worker = await self._crew.pick(serving=self._draw.random() < SERVING)
        if worker is not None:
            async with self._fault(kind, worker.log.name):
                self._killed(worker)

    async def _kill_young(self, kind: str) -> None:
        worker = await self._crew.pick()
        if worker is None:
            return
        async with self._fault(kind, f"slot {worker.slot}"):
            self._killed(worker)
            for _ in range(200):
                successor = self._crew.manned[worker.slot]
                if successor is not worker and successor.alive:
                    await asyncio.sleep(max(0.0, self._draw.random() - successor.age_s))
                    self._killed(successor)
                    break
                await asyncio.sleep(0.02)

    async def _kill_burst(self, kind: str) -> None:
        async with self._fault(kind):
            for _ in range(3):
                worker = await self._crew.pick()
                if worker is not None:
                    self._killed(worker)
                await asyncio.sleep(self._draw.uniform(0.0, 0.8))

    async def _leave(self, kind: str) -> None:
        worker = await self._crew.pick(serving=True)
        if worker is not None:
            async with self._fault(kind, worker.log.name):
                self.counts["rebalances"] += await self._crew.dismiss(worker) == 0

    async def _guest(self, kind: str) -> None:
        async with self._fault(kind):
            guest = await self._crew.start(0)
            await until(lambda: guest.opened or not guest.alive, TAKE_S_MAX)
            await asyncio.sleep(self._draw.uniform(0.0, 2.0))
            self.counts["rebalances"] += bool(guest.opened)  # it joined
            self.counts["rebalances"] += await self._crew.dismiss(guest) == 0 and bool(guest.opened)

    async def _static(self, kind: str) -> None:
        async with self._locks["static"]:
            slot = self._shape.slots - 1
            await until(lambda: self._crew.manned[slot].opened, TAKE_S_MAX)
            worker = self._crew.manned[slot]
            async with self._fault(kind, worker.log.name):
                self.counts["rebalances"] += await self._crew.dismiss(worker) == 0

    async def _zombie(self, kind: str) -> None:
        worker = await self._crew.pick(serving=True)
        if worker is None:
            return
        async with self._fault(kind, worker.log.name):
            owned, logs = worker.opened, self._crew.log_sizes()
            worker.stop()
            await asyncio.sleep(self._session_s + self._draw.uniform(0.0, 2.0))
            # It counts when others have opened whatever it had, and it wakes up to that.
            taken_over = await until(lambda: self._crew.opened_since(logs) >= owned, TAKE_S_MAX)
            await asyncio.sleep(self._draw.uniform(0.0, 1.5))
            self.counts["zombies"] += worker.resume() and taken_over

    # -- servers

    async def _broker(self, kind: str) -> None:
        async with self._locks["kafka"]:
            number = self._draw.randrange(BROKERS)
            async with self._fault(kind, f"{number + 1}"):
                await asyncio.to_thread(self._scene.kill_broker, number)
                await asyncio.sleep(self._draw.uniform(0.0, 4.0))
                await asyncio.to_thread(self._scene.restart_broker, number)
                self.counts["broker kills"] += 1

    async def _redis(self, kind: str) -> None:
        left = {"redis": "all", "redis torn": "torn", "redis lost": "nothing"}[kind]
        async with self._locks["redis"], self._fault(kind):
            await asyncio.to_thread(self._scene.kill_redis)
            await asyncio.sleep(self._draw.uniform(0.0, 2.0))
            await asyncio.to_thread(self._scene.restart_redis, left, self._draw)
            self.counts["redis kills"] += 1

    async def _flush(self, kind: str) -> None:
        async with self._locks["redis"], self._fault(kind):
            await asyncio.to_thread(self._scene.flush_redis)

    # -- the network

    async def _cut(self, kind: str) -> None:
        await self._network(kind, "cut", self._draw.uniform(0.3, 4.0))

    async def _hang(self, kind: str) -> None:
        await self._network(kind, "hang", self._draw.uniform(1.0, self._session_s + 3.0))

    async def _slow(self, kind: str) -> None:
        await self._network(kind, "slow", self._draw.uniform(1.0, 5.0))

    async def _network(self, kind: str, how: str, seconds: float) -> None:
        server = kind.split(maxsplit=1)[0]
        way = f"broker-{self._draw.randrange(BROKERS) + 1}" if server == "broker" else server
        lock = self._locks["redis" if server == "redis" else "kafka"]
        async with lock, self._fault(kind, f"{way} for {seconds:.1f} s"):
            proxies = self._scene.proxies(way)
            for proxy in proxies:
                if how == "slow":
                    proxy.slow(self._draw.uniform(0.02, 0.2), self._draw.uniform(50e3, 500e3))
                else:
                    getattr(proxy, how)()
            await asyncio.sleep(seconds)
            for proxy in proxies:
                proxy.heal()

    # -- the model

    async def _swap(self, kind: str) -> None:
        async with self._locks["model"], self._fault(kind):
            await asyncio.to_thread(publish_again, self._models)
            self.counts["model swaps"] += 1


def publish_again(model: Path) -> None:
    """The latest version once more, under the next number: the same graph and weights, and it says its new name."""
    latest = max(int(path.name) for path in model.iterdir() if path.name.isdigit())
    staging = model / f".publishing-{latest + 1}"
    shutil.copytree(model / str(latest), staging)
    manifest = json.loads((staging / MANIFEST).read_text())
    manifest["version"] = latest + 1
    (staging / MANIFEST).write_text(json.dumps(manifest))
    staging.rename(model / str(latest + 1))
