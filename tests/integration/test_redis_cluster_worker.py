"""A whole worker on a Redis Cluster whose nodes die or hang under it."""

import asyncio
import signal
import time

import orjson
import pytest

from ebbtide.featurestore.errors import StoreUnavailable
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.stream.telemetry import Telemetry, TurnDone
from tests.support.patience import PATIENCE_S, Starved
from tests.support.seams.scoring import LAYOUT
from tests.support.seams.streams import LogRecord
from tests.support.seams.world import T0, World, assert_same_end, clean_run, logs_of
from tests.support.servers.production import N
from tests.support.servers.redis import LocalCluster

pytestmark = pytest.mark.redis

ATTEMPTS = 3
"""One that was starved and went wrong shows nothing: its lateness may be the neighbours'. The last one counts."""


class ClusterWorld(World):
    """A world whose store is the real one, and may be away for a while."""

    def use(self, url: str, prefix: str) -> None:
        self.store = RedisStore(url, LAYOUT.dtype, "clickstream", len(self.logs), prefix=prefix, timeout_s=1)  # type: ignore[assignment]  # all that a world does with it

    async def applied(self) -> bool:
        try:
            return await super().applied()
        except StoreUnavailable:
            return False


async def test_a_worker_on_a_cluster_ends_as_in_a_clean_run(cluster: LocalCluster) -> None:
    """The pipeline over three nodes, one of which is killed half-way and comes back: same records, same alerts."""
    logs = logs_of(seed=21)
    clean = await clean_run(logs)
    world = ClusterWorld(21, logs, rate=0.0)
    world.use(f"redis+cluster://{cluster.hosts}", "w:")
    node = cluster.nodes[cluster.node_of("{p2}")]

    async def fail() -> None:
        quarter = len(logs[2]) // 4
        while (at := await world.store.checkpoint(2)) is None or at.offset < quarter:  # noqa: ASYNC110 - a look at a server
            await asyncio.sleep(0.001)
        await asyncio.to_thread(node.kill)
        assert not await world.applied()
        await asyncio.to_thread(node.restart)

    failing = asyncio.create_task(fail())
    await world.finish(world.worker())
    await failing
    await assert_same_end(world, clean)
    await world.store.close()


class Applied(Telemetry):
    """When each partition's position was told, by the monotonic clock."""

    def __init__(self) -> None:
        self.at: dict[tuple[int, int], float] = {}

    def turn_done(self, turn: TurnDone) -> None:
        now_s = time.monotonic()
        self.at.update(((piece.partition, piece.position), now_s) for piece in turn.pieces)


async def test_a_hanging_shard_holds_up_nobody_else(cluster: LocalCluster) -> None:
    """One of three masters is stopped by SIGSTOP under a trickle of events: its partitions leave their turn after a
    quarter of a second, and the others go on as before, every one of them."""
    world, heard = ClusterWorld(22, [[] for _ in range(N)], rate=0.0), Applied()
    world.use(f"redis+cluster://{cluster.hosts}", "hang:")
    affected = {partition for partition in range(N) if cluster.node_of(f"{{p{partition}}}") == 0}
    others = sorted(set(range(N)) - affected)
    assert affected
    assert others
    sent: dict[tuple[int, int], float] = {}

    async def trickle(seconds: float) -> list[tuple[int, int]]:
        """An event a partition every 20 ms; those of the partitions that nothing happened to."""
        mine = []
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            for partition, log in enumerate(world.logs):
                at_ms = T0 + len(log)
                key = f"customer-{partition}".encode()
                value = orjson.dumps({"user_id": key.decode(), "type": "visit", "ts": at_ms})
                log.append(LogRecord(len(log), at_ms, key, value))
                sent[partition, len(log)] = time.monotonic()
                if partition in others:
                    mine.append((partition, len(log)))
            await asyncio.sleep(0.02)
        return mine

    async def latencies_s(asked: list[tuple[int, int]]) -> list[float]:
        """From the event to the first commit that holds it."""
        async with asyncio.timeout(PATIENCE_S):
            while any(world.source.offset(partition) < end for partition, end in asked):  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
        told = sorted(heard.at)
        return sorted(
            min(heard.at[n, end] for n, end in told if n == partition and end >= position)
            - sent[partition, position]
            for partition, position in asked
        )

    worker = world.worker(telemetry=heard)
    node = cluster.nodes[0]
    assert node.server is not None
    wrong = [""]
    async with world.at_work(worker):
        await trickle(0.5)
        for _ in range(ATTEMPTS):
            with Starved() as starved:
                before = await latencies_s(await trickle(2.0))
                node.server.signal(signal.SIGSTOP)
                try:
                    during = await latencies_s(await trickle(4.0))
                finally:
                    node.server.signal(signal.SIGCONT)
            if not (wrong := held_up(before, during, 4.0)) or not starved:
                break
            await latencies_s([(partition, len(log)) for partition, log in enumerate(world.logs)])
    assert wrong == []


def held_up(before: list[float], during: list[float], seconds: float) -> list[str]:
    """What of the latencies says that the others waited: one turn waits a quarter of a second for the shard, so what
    came meanwhile is late, and no more."""
    middle, p99 = (
        [found[round(share * (len(found) - 1))] for found in (before, during)] for share in (0.5, 0.99)
    )
    print(
        f"seconds, before and while it hangs: median {middle}, p99 {p99}, longest {before[-1]}, {during[-1]}"
    )
    late_s = sum(latency > 2 * p99[0] + 0.05 for latency in during) * seconds / len(during)
    bounds = {
        f"the median is {middle[1]:.3f} s": middle[1] <= 2 * middle[0] + 0.02,
        f"{late_s:.2f} s are late": late_s < 0.5,
        f"the longest is {during[-1]:.2f} s": during[-1] < 1.0,
    }
    return [what for what, holds in bounds.items() if not holds]
