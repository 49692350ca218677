"""The example consumer, by a client that is not ours, believes in the end what the service's records say."""

import asyncio
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from ebbtide.ops.config.settings import Settings, TopicSettings
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.stream.decision.episodes import OPEN, EpisodePolicy
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import ensure_topics
from ebbtide.stream.outputs.message import Message
from tests.consumer.campaign import Campaign, Whom, connect, records
from tests.support.seams.scoring import ArithmeticModel
from tests.support.seams.world import DAY_MS, PARTITIONS, World, logs_of
from tests.support.servers.services import Services

PUBLISHED = json.loads((Path(__file__).parents[2] / "ops/schemas/alert.json").read_text(encoding="utf-8"))
POLICY = EpisodePolicy.of(
    enter=0.3, exit=0.25, dwell_ms=DAY_MS, bands=({"name": "critical", "enter": 0.5},)
)  # fmt: skip


def campaign() -> Campaign:
    return Campaign(Draft202012Validator(PUBLISHED, format_checker=FormatChecker()).validate)


def listen(stack: Services, topic: str, group: str, heard: Campaign) -> int:
    """To the topic's end; how many records there were."""
    consumer, n = connect(stack.kafka_url, group), 0
    try:
        for n, message in enumerate(records(consumer, topic, idle_s=6.0), 1):  # noqa: B007  # n is asked for
            heard.hear(message.key() or b"", message.value())
    finally:
        consumer.close()
    return n


@pytest.mark.kafka
async def test_a_foreign_client_believes_what_the_records_say(stack: Services, unique_name: str) -> None:
    """Alerts of a long log with goodbyes and tombstones, a tail of it sent twice as after a crash, and records of
    releases before and after this one between them."""
    world = World(0, logs_of(seed=21), rate=0.0)
    world.model = ArithmeticModel(sizes=(8, 32), policy=POLICY)
    await world.finish(world.worker())
    sent = world.sink.sent["alerts"]
    settings = Settings(
        kafka=KafkaSettings(url=stack.kafka_url, topic=unique_name),
        topics=TopicSettings(
            alerts=f"{unique_name}-alerts", dead_letters=f"{unique_name}-dead", partitions=1
        ),
    )
    await ensure_topics(settings.kafka, topic_specs(settings))
    alerts = [Message(settings.topics.alerts, m.key, m.value) for m in sent]
    half = next(i for i in range(len(alerts) // 2, len(alerts)) if all(m.value for m in alerts[i - 3 : i]))
    value = next(m.value for m in alerts if m.value is not None)
    assert value is not None
    old = Message(settings.topics.alerts, b"zoe", orjson.dumps({"schema_version": 1, "customer": "zoe"}))
    later: dict[str, Any] = {**orjson.loads(value), "customer": "yan", "mood": "good"}
    async with KafkaSink(settings.kafka) as sink:
        await sink.send_all(
            [*alerts[:half], old, Message(settings.topics.alerts, b"yan", orjson.dumps(later))]
        )
        await sink.send_all(alerts[half - 3 : half])
        await sink.send_all(alerts[half:])
    heard = campaign()
    n = await asyncio.to_thread(listen, stack, settings.topics.alerts, unique_name, heard)
    assert n == len(alerts) + 5
    open_now = set()
    for partition in range(PARTITIONS):
        async for customers, rows in world.store.scan(partition):
            chosen = rows["episode_state"][:, 0] == OPEN
            open_now |= {name for name, is_open in zip(customers, chosen.tolist(), strict=True) if is_open}
    assert {whom.customer for whom in heard.episodes} - {"yan"} == open_now
    assert heard.episodes[Whom("yan", "activity")] == later["band"]
    assert {what for what, _ in heard.done} >= {"call", "stop", "forget"}
    assert "zoe" not in {whom.customer for whom in heard.last}
    again = campaign()
    assert await asyncio.to_thread(listen, stack, settings.topics.alerts, unique_name, again) == 0, (
        "the group's position is where it stopped"
    )


def alert(state: str, sequence: int, **changes: Any) -> bytes:
    said = {
        "schema_version": 2, "alert_id": f"{sequence:032x}", "customer": "ann", "target": "activity",
        "sequence": sequence, "state": state, "cause": "score", "band": "high", "probability": 0.9, "logit": 2.197,
        "threshold": 0.8, "horizon_days": 14.0, "reasons": [], "model": "m", "model_version": 1, "layout": "l",
        "decision": {"as_of": "2026-01-01T00:00:00Z", "cause": "silence", "topic": "t", "partition": 0,
                     "offset": None},
    }  # fmt: skip
    return orjson.dumps({**said, **changes})


def test_sequences_nulls_and_targets_are_obeyed() -> None:
    ann, sale = Whom("ann", "activity"), Whom("ann", "sale")
    heard = campaign()
    for value in (
        alert("opened", 5), alert("opened", 5), alert("resolved", 4), alert("escalated", 6, band="critical"),
        alert("opened", 3, target="sale"), alert("corrected", 8, cause="late_event"), alert("opened", 7),
    ):  # fmt: skip
        heard.hear(b"ann", value)
    assert heard.episodes == {sale: "high"}
    assert [what for what, _ in heard.done] == ["call", "call", "call", "apologise"]
    heard.hear(b"ann", None)
    assert (heard.episodes, heard.last) == ({}, {})
    heard.hear(b"ann", alert("opened", 2))
    assert heard.episodes == {ann: "high"}, "whoever was forgotten begins anew"
