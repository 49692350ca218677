"""A topic that is deleted and made again under its name, with whole workers on real servers: a new log is never folded
on top of the old one's state for long, and never in silence."""

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from ebbtide.stream.worker import Worker
from tests.support.servers.services import Services
from tests.support.workers.worlds import OLD, PARTITIONS, Clicks, World, eventually

BEFORE, AFTER = 150, 600


async def make_anew(world: World, clicks: Clicks) -> None:
    """Delete the input, make it again and fill it, past where it was."""
    admin = AIOKafkaAdminClient(bootstrap_servers=world.settings.kafka.url)
    await admin.start()
    await admin.delete_topics([world.name])
    while world.name in await admin.list_topics():  # noqa: ASYNC110 -- no event tells it
        await asyncio.sleep(0.05)
    await admin.close()
    await world.create()
    await world.produce(clicks.next(AFTER))


def all_stopped(worker: Worker) -> bool:
    return sum("deleted and made again" in why for why in worker.not_ready_reasons) == PARTITIONS


@pytest.mark.parametrize("at_work", [True, False], ids=["under a worker", "between two"])
async def test_a_topic_made_anew_stops_its_partitions(
    stack: Services, unique_name: str, at_work: bool
) -> None:
    """Loudly, each of them; and between two workers not a record of the new log is folded."""
    world = World(stack, unique_name)
    await world.create()
    clicks = Clicks(7, unique_name, tombstones=0.0)
    await world.produce(clicks.next(BEFORE))
    async with world.working("p", OLD, drain=False) as worker:
        await world.until_done()
        if at_work:
            await make_anew(world, clicks)
            await eventually(lambda: all_stopped(worker), "every partition is stopped")
    if at_work:
        return
    before = await world.records("p", OLD)
    await make_anew(world, clicks)
    async with world.working("p", OLD, drain=False) as worker:
        await eventually(lambda: all_stopped(worker), "every partition is stopped")
    assert await world.records("p", OLD) == before
