"""Room in Redis: a second state is refused where there is none, and stops before workers are; what is stored shows."""

import asyncio
from typing import Any, ClassVar

import numpy as np
import pytest

from ebbtide.featurestore.errors import StoreUnavailable
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.ops.stack.local import LocalValkey
from ebbtide.ops.state.room import NoRoom, Room, check_room, room_of, state_bytes, watch_room
from ebbtide.ops.worker.connect import open_store
from ebbtide.ops.worker.run import watch_redis
from tests.support.patience import PATIENCE_S
from tests.support.seams.stores import step_of
from tests.support.servers.redis import admin_of
from tests.support.servers.services import Services
from tests.support.workers.worlds import NEW, OLD, World

pytestmark = [pytest.mark.redis]

CUSTOMERS = 3_000
MIB = 1 << 20


async def filled(world: World, prefix: str) -> None:
    rng = np.random.default_rng(5)
    async with world.store(prefix, OLD) as store:
        for partition in range(store.partitions):
            names = [f"customer-{partition}-{n}" for n in range(CUSTOMERS // 3)]
            rows = rng.integers(1, 255, (len(names), OLD.layout.itemsize), np.uint8).view(OLD.layout.dtype)[
                :, 0
            ]
            await store.apply(step_of(None, names, rng, partition=partition, rows=rows))


def world_on(server: LocalValkey, name: str) -> World:
    """Its Kafka is not asked for anything."""
    return World(Services("127.0.0.1:1", server.url), name)


async def test_a_rebuild_without_room_is_refused(unique_name: str) -> None:
    """The estimate is near what the state costs in truth, also for a spec with other records."""
    with LocalValkey() as server:
        world, client = world_on(server, unique_name), admin_of(server)
        empty = int(client.info("memory")["used_memory"])
        await filled(world, "old")
        used = int(client.info("memory")["used_memory"])
        async with world.store("old", OLD) as old, open_store(world.under("new"), NEW.layout, 3) as new:
            estimated = await state_bytes(old)
            assert 0.8 < estimated / (used - empty) < 1.2
            await check_room(new, old)  # no limit, no refusal
            client.config_set("maxmemory", used + MIB)
            with pytest.raises(NoRoom, match="needs about"):
                await check_room(new, old)
            client.config_set("maxmemory", int(2.2 * used / 0.8))
            await check_room(new, old)
            client.config_set("maxmemory", used + MIB)
            await check_room(old, old)  # one that is there already needs no more


async def test_a_rebuild_stops_at_the_high_water_mark(unique_name: str) -> None:
    """It is told to stop while there is room, and says how to go on."""
    with LocalValkey() as server:
        world, client = world_on(server, unique_name), admin_of(server)
        client.config_set("maxmemory", 64 * MIB)
        stopped: list[bool] = []
        async with world.store("new", OLD) as store:
            watching = asyncio.create_task(watch_room(store, lambda: stopped.append(True), every_s=0.01))
            await asyncio.sleep(0.1)
            assert not stopped and not watching.done()
            client.config_set("maxmemory", int(client.info("memory")["used_memory"] / 0.92))
            with pytest.raises(NoRoom, match="stopped at") as refused:
                await asyncio.wait_for(watching, PATIENCE_S)
            assert stopped == [True] and "goes on" in refused.value.hint


async def test_what_is_stored_shows_in_the_metrics(unique_name: str) -> None:
    with LocalValkey() as server:
        world, client, metrics = world_on(server, unique_name), admin_of(server), Metrics()
        client.config_set("maxmemory", 64 * MIB)
        await filled(world, "old")
        metrics.at_scrape.states = lambda: {0: ("live", ""), 2: ("live", "")}
        async with world.store("old", OLD) as store:
            watching = asyncio.create_task(watch_redis(store, metrics, every_s=0.01))
            async with asyncio.timeout(PATIENCE_S):
                while "ebbtide_customers 2000.0" not in (text := metrics.render()[0].decode()):  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(0.02)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        assert "ebbtide_redis_memory_max_bytes{server=" in text and "6.7108864e+07" in text


async def test_a_server_that_is_master_no_more_is_left_out() -> None:
    """A Cluster's nodes come and go: what one said last would stand for as long as the worker lives, and at 85 % of its
    memory an alert with it. While nobody answers, what was said stands."""

    class Moving(RedisStore):
        told: ClassVar = [("r:1", 90), None, ("r:2", 10), None]

        async def infos(self) -> list[tuple[str, dict[str, Any]]]:
            if (said := self.told.pop(0) if len(self.told) > 1 else self.told[0]) is None:
                raise StoreUnavailable("away")
            return [(said[0], {"used_memory": said[1], "maxmemory": 100})]

    metrics, seen = Metrics(), list[set[str]]()
    watching = asyncio.create_task(
        watch_redis(Moving("redis://127.0.0.1:1", OLD.layout.dtype, "t", 1), metrics, every_s=0.0)
    )
    while len(Moving.told) > 1 or len(seen) < 9:
        await asyncio.sleep(0)
        assert metrics.at_scrape.memory is not None
        seen.append(set(metrics.at_scrape.memory()))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert {"r:1"} in seen and seen[-1] == {"r:2"}


def test_no_limit_is_never_high() -> None:
    room = room_of({"used_memory": 5 * MIB, "maxmemory": 0})
    assert room == Room(5 * MIB, None) and not room.is_high and room.holds(1e15)
    assert "no maxmemory" in room.words()
    assert Room(90, 100).is_high and not Room(90, 100).is_full and Room(95, 100).is_full
