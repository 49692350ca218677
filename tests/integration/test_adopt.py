"""A topic that is deleted and made again on a real Kafka: noticed by its id, and adopted on purpose."""

import asyncio

import pytest

from ebbtide.ops.state.adopt import adopt
from ebbtide.stream.errors import CheckpointOutsideLog
from ebbtide.stream.kafka.client import admin, topic_id
from ebbtide.stream.kafka.reader import log_ranges
from ebbtide.stream.turn.state import Stopped
from tests.support.patience import PATIENCE_S
from tests.support.servers.services import Services
from tests.support.workers.worlds import OLD, PARTITIONS, Clicks, World, eventually

pytestmark = [pytest.mark.kafka, pytest.mark.redis]


async def made_anew(world: World) -> None:
    """Delete the input topic and make it again under its name."""
    async with admin(world.settings.kafka) as client:
        before = await topic_id(world.settings.kafka)
        await client.delete_topics([world.name])
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await world.create()
                if await topic_id(world.settings.kafka) not in ("", before):
                    return
            except Exception:  # noqa: BLE001 -- the deletion is still under way; bounded above
                await asyncio.sleep(0.1)


async def test_a_topic_made_anew_is_refused_until_it_is_adopted(stack: Services, unique_name: str) -> None:
    """It is longer, so offsets alone say nothing; Kafka took the group's offsets away with the topic."""
    world = World(stack, unique_name)
    await world.create()
    clicks = Clicks(51, world.name)
    await world.produce(clicks.next(200))
    async with world.working("old", OLD):
        await world.until_done()
    before = await world.checkpoints("old", OLD)
    old_id = await topic_id(world.settings.kafka)
    assert {c.topic_id for c in before.values() if c is not None} == {old_id}
    await made_anew(world)
    await world.produce(clicks.next(400))
    async with world.working("old", OLD) as worker:
        await eventually(
            lambda: (
                len(worker.partitions) == PARTITIONS
                and all(isinstance(p.state, Stopped) for p in worker.partitions.values())
            ),
            "all partitions stop",
        )
        assert all("ebbtide adopt" in reason for reason in worker.not_ready_reasons)
    assert await world.checkpoints("old", OLD) == before
    ranges = await log_ranges(world.settings.kafka, world.name)
    new_id = await topic_id(world.settings.kafka)
    async with world.store("old", OLD) as store:
        with pytest.raises(CheckpointOutsideLog, match="another one"):
            await adopt(store, OLD.layout, dict.fromkeys(ranges, (0, 1)), new_id)
        adopted = await adopt(store, OLD.layout, ranges, new_id)
    assert {each.before for each in adopted} == {old_id}
    async with world.working("old", OLD):
        await world.until_done()
    after = await world.checkpoints("old", OLD)
    assert {n: c.offset for n, c in after.items() if c is not None} == {
        n: end for n, (_, end) in ranges.items()
    }
