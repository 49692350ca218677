"""How long what was said of somebody who is forgotten lies in the output topics: no longer than the settings say."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ebbtide.ops.config.settings import Settings, TopicSettings
from ebbtide.ops.stack.local import LocalKafka
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from ebbtide.stream.outputs.message import Message

RETENTION_S = 6.0
LOOK_S, BUSY_S = 0.5, 3.0
OFTEN = {
    "log.retention.check.interval.ms": "200",
    "log.segment.delete.delay.ms": "100",
    "log.initial.task.delay.ms": "100",
}
"""How often the broker looks for what is over; five minutes by default, which come on top."""


@asynccontextmanager
async def hasty(name: str) -> AsyncIterator[Settings]:
    """A broker of its own, and settings with a short retention."""
    kafka = LocalKafka(settings=lambda _number, _port: OFTEN)
    url = await asyncio.to_thread(kafka.start)
    try:
        yield Settings(
            kafka=KafkaSettings(url=url, topic=name),
            topics=TopicSettings(
                alerts=f"{name}-alerts", dead_letters=f"{name}-letters", partitions=1,
                alerts_retention=20_000, dead_letters_retention=round(RETENTION_S * 1000),
            ),
        )  # fmt: skip
    finally:
        await asyncio.to_thread(kafka.stop)


async def test_a_letter_is_gone_when_its_retention_is_over(unique_name: str) -> None:
    """Also where others follow it all the time, so that the log's last segment is never old."""
    async with hasty(unique_name) as settings, KafkaSink(settings.kafka) as sink:
        await ensure_topics(settings.kafka, topic_specs(settings))
        letters, alerts = settings.topics.dead_letters, settings.topics.alerts
        await sink.send_all([Message(topic, b"jane", b"555-1234") for topic in (letters, alerts)])
        began_s, left_s = time.monotonic(), 0.0
        found: list[bytes | None] = [b"jane"]
        while b"jane" in found and left_s < 2 * RETENTION_S:
            await sink.send_all([Message(topic, b"joe", b"hello") for topic in (letters, alerts)])
            found = [record.key async for record in read_topic(settings.kafka, letters)]
            assert b"joe" in found
            left_s = time.monotonic() - began_s
            await asyncio.sleep(LOOK_S)
        print(f"the letter was there for {left_s:.1f} s of {RETENTION_S:.1f} s")
        assert RETENTION_S / 2 < left_s < RETENTION_S + BUSY_S
        assert b"jane" in [record.key async for record in read_topic(settings.kafka, alerts)]


async def test_a_topic_that_keeps_for_longer_is_told_of(
    unique_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Once at the start, with the command that mends it; who keeps for a shorter time is not."""
    async with hasty(unique_name) as settings:
        topics = settings.topics
        await ensure_topics(
            settings.kafka,
            [
                TopicSpec(topics.alerts, 1, "s", {"retention.ms": "-1", "segment.ms": "1000"}),
                TopicSpec(topics.dead_letters, 1, "s", {"retention.ms": "1000", "segment.ms": "1000"}),
            ],
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            await ensure_topics(settings.kafka, topic_specs(settings))
    (told,) = [record for record in caplog.records if "forgotten" in record.message]
    assert vars(told)["found"] == "retention.ms=-1"
    assert f"--entity-name {topics.alerts} --add-config retention.ms=15000" in vars(told)["command"]
