"""What the workers of a chaos run are told: production's settings, with times of seconds and bounds that are reached.

    direct(...)    for whoever checks: the servers themselves
    proxied(...)   for the workers: every server behind its proxy, as JSON

The invariant: both name the same topics, keys, model and policy.
"""

from pathlib import Path
from typing import Any

from pydantic import SecretStr

from ops.connect import topic_specs
from ops.settings import Settings
from stream.kafka import TopicSpec
from stream.kafka_settings import KafkaSettings
from tests.chaos.scene import Scene

SPEC = Path(__file__).with_name("spec.yaml")
SESSION_S = 3.0
FETCH_RECORDS, FETCH_BYTES = 500, 64 << 10
RUN_RECORDS = 800
"""An aborted run of so many records is longer than one fetch: by count, and at 100 bytes a record by bytes."""
GRACE_S = 8.0


def direct(scene: Scene, models: Path, topic: str, partitions: int) -> Settings:
    """Settings with the servers' own addresses."""
    settings = Settings(
        spec=SPEC,
        model=models / "chaos",
        kafka=KafkaSettings(
            url=scene.kafka_url, topic=topic, group=topic, session_timeout_s=SESSION_S, heartbeat_interval_s=0.5,
            request_timeout_s=6.0, poll_interval_max_s=20.0, commit_interval_s=0.25, fetch_records_max=FETCH_RECORDS,
            fetch_partition_bytes_max=FETCH_BYTES,
        ),
        alerts_from="start",
        record_bytes_max=4_096,
        drain_grace_s=GRACE_S,
        model_watch_s=2.0,
    )  # fmt: skip
    return settings.model_copy(
        update={
            "topics": settings.topics.model_copy(
                update={
                    "alerts": f"{topic}-alerts",
                    "dead_letters": f"{topic}-dead-letters",
                    "partitions": partitions,
                }
            ),
            "redis": settings.redis.model_copy(
                update={"url": SecretStr(scene.redis_url), "prefix": "chaos:", "timeout_s": 1.5}
            ),
            "policy": settings.policy.model_copy(update={"enter": 0.5, "exit": 0.4, "cooldown_ms": 3_000}),
            "http": settings.http.model_copy(update={"port": 0}),
        }
    )


def proxied(settings: Settings, scene: Scene, **kafka: Any) -> dict[str, Any]:
    """The same, through the proxies, as a worker's file; `kafka` are more settings of that group."""
    data = settings.model_dump(mode="json")
    data["kafka"] |= {"url": scene.proxied_url, **kafka}
    data["redis"]["url"] = scene.proxied_redis_url
    return data


def static_member(name: str) -> dict[str, Any]:
    """Settings of a worker that keeps its place in the group while it is away."""
    return {"instance": name}


def topics(settings: Settings, **config: str) -> list[TopicSpec]:
    """The topics of a run; `config` is the input's."""
    first, *others = topic_specs(settings)
    return [TopicSpec(first.name, first.partitions, first.setting, {**first.config, **config}), *others]
