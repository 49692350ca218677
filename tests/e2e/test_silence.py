"""Silence by the wall clock: a worker process, real servers, and customers of whom nothing comes any more.

One is at the end of the schedule, one at the end of what a record remembers, each some seconds after its only event.
The worker that saw that event is killed before either is due; the next one has nobody's event to tell it.
"""

import asyncio
import time
from pathlib import Path

import orjson
import pytest
import yaml

from ebbtide.featurestore.record.fold import EXPIRY_GRACE_MS
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import dump_spec
from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.config.settings import Settings, TimerSettings
from ebbtide.ops.worker.connect import open_store
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.outputs.alert import Alert
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.outputs.scores import ScoreRecord, read_score
from tests.support.seams.models import TINY, publish
from tests.support.servers.services import Services
from tests.support.workers.outages import until

LATENESS_MS = 1_000
DUE_IN_MS = 25_000
"""Longer than two workers take to start."""
TOLD_MS_MAX = 15_000
"""After it was due, and the worker that tells it was ready: a timer itself is a matter of milliseconds."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def visit(topic: str, who: str, ts: int, nonce: int = 0) -> Message:
    value = {"user_id": who, "event_id": f"{who}-{nonce}", "type": "visit", "ts": ts}
    return Message(topic, who.encode(), orjson.dumps(value), (), ts)


async def alerts_of(settings: Settings, who: str) -> dict[str, tuple[Alert, int]]:
    """By id: the alert and when it came first, ms UTC."""
    found: dict[str, tuple[Alert, int]] = {}
    async for record in read_topic(settings.kafka, settings.topics.alerts):
        if record.key == who.encode() and record.value is not None:
            alert = Alert.model_validate_json(record.value)
            found.setdefault(alert.alert_id, (alert, record.timestamp))
    return found


async def scores_of(settings: Settings, who: str) -> list[tuple[ScoreRecord, int]]:
    assert settings.topics.scores is not None
    return [
        (read_score(record.value), record.timestamp)
        async for record in read_topic(settings.kafka, settings.topics.scores)
        if record.key == who.encode() and record.value is not None
    ]


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
async def test_silence_is_told_although_a_worker_was_killed(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    """Not before it is due and certain, and once; who has expired is resolved, and nothing is left of them."""
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(dump_spec(TINY)))
    settings = Settings(
        spec=tmp_path / "spec.yaml", model=publish(tmp_path / "models", spec=TINY, sizes=(8, 32)),
        kafka=KafkaSettings(
            url=stack.kafka_url, topic=unique_name, group=unique_name, commit_interval_s=0.2,
            session_timeout_s=6.0, heartbeat_interval_s=0.5,
        ),
        policy=PolicySettings(enter=0.01, exit=0.01, cooldown=0), alerts_from="start",
        timers=TimerSettings(lateness_max=LATENESS_MS),
    )  # fmt: skip
    topics = settings.topics.model_copy(
        update={
            "alerts": f"{unique_name}-alerts", "dead_letters": f"{unique_name}-dead",
            "scores": f"{unique_name}-scores", "partitions": 2,
        }
    )  # fmt: skip
    redis = settings.redis.model_copy(update={"url": stack.redis_url, "prefix": f"{unique_name}:"})
    settings = settings.model_copy(update={"topics": topics, "redis": redis})

    async def keep_alive(sink: KafkaSink) -> None:
        """The producers are there: somebody else's events come all the time."""
        for n in range(10_000):
            await sink.send_all([visit(unique_name, f"regular-{n % 4}", now_ms(), n)])
            await asyncio.sleep(0.2)

    with WorkerProcess(settings, tmp_path) as first:
        await asyncio.to_thread(first.wait_ready)
        async with KafkaSink(settings.kafka) as sink:
            alive = asyncio.create_task(keep_alive(sink))
            last_silence_at = now_ms() + DUE_IN_MS
            expiry_at = last_silence_at + 1_000
            quiet_since = last_silence_at - TINY.silences_ms[-1]
            gone_since = expiry_at - TINY.memory_ms - EXPIRY_GRACE_MS
            await sink.send_all(
                [visit(unique_name, "quiet", quiet_since), visit(unique_name, "gone", gone_since)]
            )

            async def opened() -> bool:
                return all([await alerts_of(settings, who) for who in ("quiet", "gone")])

            await until(opened, "their events are scored")
            await asyncio.to_thread(first.kill)
            assert now_ms() < last_silence_at, "too slow to show anything"
            with WorkerProcess(settings, tmp_path) as second:
                await asyncio.to_thread(second.wait_ready)
                ready_at = now_ms()

                async def told() -> bool:
                    second.check()
                    words = [alert for alert, _ in (await alerts_of(settings, "gone")).values()]
                    last = [score for score, _ in await scores_of(settings, "quiet")]
                    return words[-1].decision.cause == "expired" and last[-1].as_of == last_silence_at

                await until(told, "the last silence and the expiry")
                async with open_store(settings, Layout(TINY), 2) as store:
                    assert await store.find("gone") == []
                    assert len(await store.find("quiet")) == 1
                alive.cancel()
                await asyncio.gather(alive, return_exceptions=True)

    scores = await scores_of(settings, "quiet")
    assert {score.as_of for score, _ in scores} == {
        quiet_since,
        *(quiet_since + silence for silence in TINY.silences_ms),
    }
    told_at = min(at for score, at in scores if score.as_of == last_silence_at)
    assert told_at - (last_silence_at + LATENESS_MS) >= 0
    assert told_at <= max(last_silence_at + LATENESS_MS, ready_at) + TOLD_MS_MAX
    words = sorted((await alerts_of(settings, "gone")).values(), key=lambda word: word[0].sequence)
    assert [word.state for word, _ in words] == ["opened", "resolved"]
    expired, at = words[-1]
    assert expired.probability is None and expired.decision.offset is not None
    assert expiry_at + LATENESS_MS <= at <= max(expiry_at + LATENESS_MS, ready_at) + TOLD_MS_MAX
    assert round(expired.decision.as_of.timestamp() * 1000) == expiry_at
