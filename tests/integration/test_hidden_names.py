"""A service whose ids are hidden in Redis: switched to by a rebuild, it says and knows the same, and forgets."""

import asyncio
from collections import Counter

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from ebbtide.featurestore.errors import LayoutError
from ebbtide.ops.state.plan import plan
from ebbtide.ops.state.rebuild import Counts, ForbiddenSink, Rebuild
from ebbtide.ops.worker.connect import check_state
from ebbtide.stream.kafka.committed_log import open_committed_log
from tests.support.servers.services import Services
from tests.support.workers.worlds import OLD, Clicks, World

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
SEED = 7
CLEAR, HIDDEN = "clear", "hidden"


def use_key(world: World, key: str | None) -> None:
    """From here on the world's workers hide ids by this key."""
    redis = world.settings.redis.model_copy(update={"customer_key": SecretStr(key) if key else None})
    world.settings = world.settings.model_copy(update={"redis": redis})


async def kept(world: World, prefix: str) -> bytes:
    """All keys under a prefix with all that lies there, as an append-only file would hold it."""
    assert world.settings.redis.url is not None
    async with Redis.from_url(world.settings.redis.url) as server:
        keys = [key async for key in server.scan_iter(f"{world.prefix(prefix)}*", count=1_000)]
        return b"".join([key + (await server.dump(key) or b"") for key in keys])


async def test_hidden_ids_change_nothing_but_what_redis_shows(stack: Services, unique_name: str) -> None:
    print(f"seed {SEED}")
    world, clicks = World(stack, unique_name), Clicks(SEED, unique_name, tombstones=0.05)
    await world.create()
    await world.produce(clicks.next(800))
    async with world.working(CLEAR, OLD):
        await world.until_done()
    assert b"customer-" in await kept(world, CLEAR)

    use_key(world, "k" * 64)
    async with open_committed_log(world.settings.kafka) as settled, world.store(HIDDEN, OLD) as store:
        tools = world.tools(OLD, store, ForbiddenSink(), Counts())
        begun = await plan(settled, store, world.settings.kafka.group, OLD.layout.id)
        await Rebuild(settled, tools, Counts(), begun, dead_letter_share_max=1.0).run()
        tools.batcher.close()
    # A worker that dies in the middle leaves an outbox to the next one.
    async with world.working(HIDDEN, OLD, drain=False):
        await world.produce(clicks.next(400))
        await asyncio.sleep(0.3)
    async with world.working(HIDDEN, OLD):
        await world.produce(clicks.next(400))
        await world.until_done()

    records, alerts = await world.offline(OLD)
    assert await world.records(HIDDEN, OLD) == records
    said = {one.value for one in await world.said() if one.value is not None}
    assert said == {alert.value for alert in alerts}
    assert len(said) > 50
    log = [record for part in (await world.log()).values() for record in part]
    assert Counter(record.value is None for record in log)[True] > 40, "nobody was forgotten"
    assert b"customer-" not in await kept(world, HIDDEN)
    async with world.store(HIDDEN, OLD) as store:
        for customer in list(records)[:20]:
            assert [row.tobytes() for _, row in await store.find(customer)] == [records[customer]]

    for key in (None, "l" * 64):
        use_key(world, key)
        async with world.store(HIDDEN, OLD) as store:
            with pytest.raises(LayoutError, match="hidden by key"):
                await check_state(store, OLD.layout)
