"""A replay's own topic on a real Kafka: it takes a log of any time, and still holds all of it at the end."""

import asyncio

import pytest

from ebbtide.ops.replay.run import replay_topics
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import log_ranges
from ebbtide.stream.kafka.topics import ensure_topics, examine
from ebbtide.stream.outputs.message import Message
from tests.support.servers.services import Services
from tests.support.workers.worlds import World

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

DAY_MS = 86_400_000


async def test_events_of_long_ago_and_of_the_future_stream(stack: Services, unique_name: str) -> None:
    """Of 2009, and of ten months ahead, which a topic of Kafka's defaults refuses."""
    world = World(stack, unique_name)
    await ensure_topics(world.settings.kafka, replay_topics(world.settings))
    now_ms = SystemClock().now_ms()
    times = [1_240_000_000_000, now_ms, now_ms + 300 * DAY_MS]
    async with KafkaSink(world.settings.kafka) as sink:
        await sink.send_all([Message(unique_name, b"ann", b"{}", (), at_ms, 0) for at_ms in times])
    await asyncio.sleep(0.2)
    assert (await log_ranges(world.settings.kafka, unique_name))[0] == (0, len(times))
    _, topics = await examine(world.settings.kafka, [unique_name], ["retention.ms"])
    assert topics[unique_name].config["retention.ms"] == "-1"


async def test_a_topic_of_defaults_refuses_the_future(stack: Services, unique_name: str) -> None:
    """Which is why a replay asks for another one."""
    world = World(stack, unique_name)
    await world.create()
    at_ms = SystemClock().now_ms() + 300 * DAY_MS
    async with KafkaSink(world.settings.kafka) as sink:
        with pytest.raises(Exception, match="InvalidTimestamp"):
            await sink.send_all([Message(unique_name, b"ann", b"{}", (), at_ms, 0)])
