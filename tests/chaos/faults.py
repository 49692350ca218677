"""The faults: what each does, from its beginning to its end, and what is counted.

    plan (seeded) ─▶ at its time ─▶ began ─ hurt ─ wait ─ heal ─▶ over: the monitor times the recovery
                          ▲                                   │
                          └── it hurt nobody: once more ─────┘

Faults overlap as they come; only those that hurt the same server wait for each other. Each is logged with its time in
`timeline`. It refuses to know what should come of it all. Invariants: what a fault does to a server or to the network
it undoes itself; a worker that it ends is replaced by the crew; `counts` has only what took effect, `tried` the rest,
too.
"""

import asyncio
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.chaos.monitor import Monitor
from tests.chaos.scene import BROKERS, Scene
from tests.chaos.shape import LOSES_ALL, NETWORK, Shape
from tests.chaos.workers import Crew, Worker, until

MANIFEST = "manifest.json"  # model.serving.manifest says so, and imports TensorFlow
SERVING = 0.7  # of the killed are workers that have partitions; the others as they come, starting or not
TAKE_S_MAX = 30.0  # a deadline: it takes seconds, and far more on a machine that is busy
LOSSES_UNTIL = 0.35
"""Of the run's time: a total loss later than that replays too much to be over by the end."""
SWAPS_FROM, SWAP_BY = LOSSES_UNTIL, 0.6
"""Of the run's time: swaps come after the total losses, for a state that is made again is decided by the version of
then, silently; and one comes early enough that alerts are made both before and after it."""
TRIES, AGAIN_S = 2, 1.0


class Faults:
    """`run` lasts until the last fault is over. `on`: those that are on now."""

    def __init__(
        self,
        shape: Shape,
        scene: Scene,
        crew: Crew,
        monitor: Monitor,
        models: Path,
        staged: Sequence[Path],
        session_s: float,
    ) -> None:
        self._shape, self._scene, self._crew, self._monitor = shape, scene, crew, monitor
        self._models, self._staged, self._session_s = models, staged, session_s
        self._draw = random.Random(shape.seed + 2)
        self._locks = {name: asyncio.Lock() for name in ("redis", "kafka", "static", "model")}
        self._began_s = time.monotonic()
        self._broker_before = -1
        self._losses = sum(n for kind, n in shape.faults.items() if kind in LOSES_ALL)
        self.swapped_s = self._began_s
        self.counts: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.timeline: list[str] = []
        self.on: list[str] = []
        self._what: dict[str, Callable[[str], Coroutine[Any, Any, bool]]] = {
            "kill": self._kill, "kill young": self._kill_young, "kill burst": self._kill_burst,
            "leave": self._leave, "guest": self._guest, "static": self._static, "static long": self._static_long,
            "zombie": self._zombie,
            "broker": self._broker, "redis": self._redis, "redis torn": self._redis, "redis lost": self._redis,
            "redis flushed": self._flush, "redis failover": self._fail_over, "redis cut": self._cut,
            "redis hangs": self._hang, "redis slow": self._slow, "kafka cut": self._cut,
            "kafka hangs": self._hang, "kafka slow": self._slow, "broker cut": self._cut, "swap": self._swap,
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
        first, by = (round(len(kinds) * share) for share in (SWAPS_FROM, SWAP_BY))
        for at in [i for i in range(first) if kinds[i] == "swap"]:
            _exchange(kinds, at, self._draw.choice(_places(kinds, range(first, len(kinds)))))
        if "swap" not in kinds[first:by]:
            _exchange(kinds, kinds.index("swap"), self._draw.choice(_places(kinds, range(first, by))))
        return [((i + self._draw.random()) * step_s, kind) for i, kind in enumerate(kinds)]

    @property
    def network(self) -> int:
        """How many hurt the network."""
        return sum(self.counts[kind] for kind in self._shape.faults if kind.split()[-1] in NETWORK)

    async def run(self) -> None:
        self._began_s = time.monotonic()
        running: list[asyncio.Task[None]] = []
        for at_s, kind in self.plan():
            await asyncio.sleep(max(0.0, self._began_s + at_s - time.monotonic()))
            running.append(asyncio.create_task(self._do(kind)))
        await asyncio.gather(*running)

    async def _do(self, kind: str) -> None:
        await self._try(kind)
        self._losses -= kind in LOSES_ALL

    async def _try(self, kind: str) -> None:
        for _ in range(TRIES):
            self.tried[kind] += 1
            if await self._what[kind](kind):
                self.counts[kind] += 1
                return
            self.note(f"{kind}: without effect")
            await asyncio.sleep(AGAIN_S)

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
            self._monitor.over(kind)
            self.note(f"{kind}: over")

    # Each returns whether it took effect.

    # -- workers

    def _killed(self, worker: Worker) -> bool:
        killed = worker.kill()
        self.counts["worker kills"] += killed
        return killed

    async def _kill(self, kind: str) -> bool:
        worker = await self._crew.pick(serving=self._draw.random() < SERVING)
        if worker is None:
            return False
        async with self._fault(kind, worker.log.name):
            return self._killed(worker)

    async def _kill_young(self, kind: str) -> bool:
        worker = await self._crew.pick()
        if worker is None:
            return False
        async with self._fault(kind, f"slot {worker.slot}"):
            self._killed(worker)
            if not await until(lambda: self._follows(worker), TAKE_S_MAX):
                return False
            successor = self._crew.manned[worker.slot]
            await asyncio.sleep(max(0.0, self._draw.random() - successor.age_s))
            return self._killed(successor)

    def _follows(self, worker: Worker) -> bool:
        successor = self._crew.manned[worker.slot]
        return successor is not worker and successor.alive

    async def _kill_burst(self, kind: str) -> bool:
        killed = 0
        async with self._fault(kind):
            for _ in range(3):
                worker = await self._crew.pick()
                killed += worker is not None and self._killed(worker)
                await asyncio.sleep(self._draw.uniform(0.0, 0.8))
        return killed > 1

    async def _leave(self, kind: str) -> bool:
        worker = await self._crew.pick(serving=True, static=False)
        if worker is None:
            return False
        async with self._fault(kind, worker.log.name):
            left = await self._crew.dismiss(worker) == 0
            self.counts["rebalances"] += left
        return left

    async def _guest(self, kind: str) -> bool:
        async with self._fault(kind):
            guest = await self._crew.start(0)
            await until(lambda: guest.opened or not guest.alive, TAKE_S_MAX)
            await asyncio.sleep(self._draw.uniform(0.0, 2.0))
            joined = bool(guest.opened)
            left = await self._crew.dismiss(guest) == 0
            self._crew.judge(guest)
            self.counts["rebalances"] += joined + (joined and left)
        return joined

    async def _static(self, kind: str) -> bool:
        """Kafka keeps its place, so this is no rebalance: unless its successor is slow to start."""
        async with self._locks["static"]:
            worker = await self._crew.pick(serving=True, static=True)
            if worker is None:
                return False
            async with self._fault(kind, worker.log.name):
                worker.rest_s = 0.0
                return await self._crew.dismiss(worker) == 0

    async def _static_long(self, kind: str) -> bool:
        """Nobody is told that it left, so the others get its partitions when its session is over."""
        async with self._locks["static"]:
            worker = await self._crew.pick(serving=True, static=True)
            if worker is None:
                return False
            async with self._fault(kind, worker.log.name):
                owned, logs = worker.opened, self._crew.log_sizes()
                worker.rest_s = self._session_s + self._draw.uniform(1.0, 3.0)
                if await self._crew.dismiss(worker) != 0:
                    return False
                taken_over = await until(lambda: self._crew.opened_since(logs) >= owned, TAKE_S_MAX)
                self.counts["rebalances"] += taken_over
                return taken_over

    async def _zombie(self, kind: str) -> bool:
        worker = await self._crew.pick(serving=True)
        if worker is None:
            return False
        async with self._fault(kind, worker.log.name):
            owned, logs = worker.opened, self._crew.log_sizes()
            worker.stop()
            await asyncio.sleep(self._session_s + self._draw.uniform(0.0, 2.0))
            # It counts when others have opened whatever it had, and it wakes up to that.
            taken_over = await until(lambda: self._crew.opened_since(logs) >= owned, TAKE_S_MAX)
            await asyncio.sleep(self._draw.uniform(0.0, 1.5))
            killed = worker.asked is not None  # meanwhile: then nobody wakes up
            woken = worker.resume() and taken_over and not killed
            self.counts["zombies"] += woken
        return woken

    # -- servers

    async def _broker(self, kind: str) -> bool:
        async with self._locks["kafka"]:
            # Not the one before: it has come back without a leadership, and would hardly be missed.
            number = self._draw.choice([n for n in range(BROKERS) if n != self._broker_before])
            self._broker_before = number
            async with self._fault(kind, f"{number + 1}"):
                await asyncio.to_thread(self._scene.kill_broker, number)
                await asyncio.sleep(self._draw.uniform(0.0, 4.0))
                await asyncio.to_thread(self._scene.restart_broker, number)
                self.counts["broker kills"] += 1
        return True

    async def _redis(self, kind: str) -> bool:
        left = {"redis": "all", "redis torn": "torn", "redis lost": "nothing"}[kind]
        async with self._locks["redis"]:
            there = await self._something_there()
            async with self._fault(kind):
                pieces = self._monitor.about_to_lose(everything=left == "nothing") if left != "all" else []
                await asyncio.to_thread(self._scene.kill_redis)
                await asyncio.sleep(self._draw.uniform(0.0, 2.0))
                as_told = await asyncio.to_thread(self._scene.restart_redis, left, self._draw)
                self._monitor.losses.lost(pieces, time.monotonic())
                self.counts["redis kills"] += 1
        return as_told and there

    async def _flush(self, kind: str) -> bool:
        async with self._locks["redis"]:
            there = await self._something_there()
            async with self._fault(kind):
                pieces = self._monitor.about_to_lose(everything=True)
                await asyncio.to_thread(self._scene.flush_redis)
                self._monitor.losses.lost(pieces, time.monotonic())
        return there

    async def _fail_over(self, kind: str) -> bool:
        """Half of the time the replica has heard all, else it lacks what the master took in its last moments."""
        async with self._locks["redis"]:
            there = await self._something_there()
            async with self._fault(kind):
                alone_s = self._draw.choice([0.0, self._draw.uniform(0.1, 1.0)])
                pieces = self._monitor.about_to_lose(everything=False)
                promoted = await asyncio.to_thread(self._scene.fail_over, alone_s)
                self._monitor.losses.lost(pieces, time.monotonic())
                self.counts["redis kills"] += promoted
        return promoted and there

    async def _something_there(self) -> bool:
        """Until there is a state to lose; not for ever. Under the server's lock, so that no other fault is waited for
        and then comes first."""
        return await until(lambda: self._monitor.checkpoints.any(), TAKE_S_MAX)  # noqa: PLW0108 - each look brings new ones

    # -- the network

    async def _cut(self, kind: str) -> bool:
        return await self._network(kind, "cut", self._draw.uniform(0.3, 4.0))

    async def _hang(self, kind: str) -> bool:
        return await self._network(kind, "hang", self._draw.uniform(1.0, self._session_s + 3.0))

    async def _slow(self, kind: str) -> bool:
        return await self._network(kind, "slow", self._draw.uniform(1.0, 5.0))

    async def _network(self, kind: str, how: str, seconds: float) -> bool:
        """It takes effect when a worker is there to feel it: waits for one."""
        server = kind.split(maxsplit=1)[0]
        way = f"broker-{self._draw.randrange(BROKERS) + 1}" if server == "broker" else server
        lock = self._locks["redis" if server == "redis" else "kafka"]
        async with lock:
            felt = await until(lambda: self._crew.serving, TAKE_S_MAX)
            async with self._fault(kind, f"{way} for {seconds:.1f} s"):
                proxies = self._scene.proxies(way)
                for proxy in proxies:
                    if how == "slow":
                        proxy.slow(self._draw.uniform(0.02, 0.2), self._draw.uniform(50e3, 500e3))
                    else:
                        getattr(proxy, how)()
                await asyncio.sleep(seconds)
                for proxy in proxies:
                    proxy.heal()
        return felt

    # -- the model

    async def _swap(self, kind: str) -> bool:
        """Not before the workers have got to work, for they would all begin with the new version; nor before the total
        losses, which on a busy machine come late."""
        await self._something_there()
        await until(lambda: not self._losses, 2 * TAKE_S_MAX)
        async with self._locks["model"], self._fault(kind):
            self.counts["model swaps"] += 1
            variant = self._staged[self.counts["model swaps"] % len(self._staged)]
            number = await asyncio.to_thread(publish_next, self._models, variant)
            self.swapped_s = time.monotonic()
            self._monitor.published = number
            self._monitor.versions = self._monitor.versions | {number}
        return True


def publish_next(model: Path, variant: Path) -> int:
    """`variant`, a version's folder, becomes the next version of `model`, and says its new name. Returns its number."""
    number = max((int(path.name) for path in model.iterdir() if path.name.isdigit()), default=0) + 1
    staging = model / f".publishing-{number}"
    shutil.copytree(variant, staging)
    manifest = json.loads((staging / MANIFEST).read_text())
    manifest["version"] = number
    (staging / MANIFEST).write_text(json.dumps(manifest))
    staging.rename(model / str(number))
    return number


def _places(kinds: Sequence[str], within: range) -> list[int]:
    """Where something else may be put: neither a total loss nor a swap is there."""
    return [i for i in within if kinds[i] not in LOSES_ALL and kinds[i] != "swap"]


def _exchange(kinds: list[str], i: int, j: int) -> None:
    kinds[i], kinds[j] = kinds[j], kinds[i]
