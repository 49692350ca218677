"""What the workers of a chaos run are told: production's settings, with times of seconds and bounds that are reached.

    direct(...)      for whoever checks: the servers themselves
    proxied(...)     for the workers: every server behind its proxy, as JSON
    write_spec(...)  the spec of a run: `spec.yaml`, with every duration shrunk for a short one

The invariant: both name the same topics, keys, model and policy.
"""

import json
import re
from pathlib import Path
from typing import Any

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX
from ebbtide.ops.config.settings import AlertSettings, Settings, TimerSettings
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec
from tests.chaos.scene import Scene
from tests.chaos.shape import Shape
from tests.chaos.traffic import LATE_S_MAX

SPEC = Path(__file__).with_name("spec.yaml")
DURATION = re.compile(r"\b(\d+)(ms|s)\b")
COOLDOWN_MS, DWELL_MS = 3_000, 400
HOLDOUT, HOLDOUT_SALT = 0.1, "chaos"
BANDS_FILE = "bands.json"
"""Of the models: where the policy's bands begin."""
SESSION_S = 3.0
FETCH_RECORDS, FETCH_BYTES = 500, 64 << 10
RUN_RECORDS = 1_600
"""An aborted run of so many records is longer than two fetches, at 100 bytes a record, if its batches are small: a
consumer passes over one aborted batch at a time, and Kafka gives out a batch larger than a fetch as a whole."""
GRACE_S = 8.0
OUTAGE_S_MAX = 90.0
"""How long an event may wait for a broker, or be held back. Later than timers wait, its customer's silence would be
told before it, and what is right would no more follow from the log."""


def write_spec(file: Path, scale: float) -> None:
    """Nothing but the durations differs, so records keep their size and whatever is compiled fits both."""

    def scaled(found: re.Match[str]) -> str:
        return f"{round(int(found[1]) * {'ms': 1, 's': 1_000}[found[2]] * scale)}ms"

    file.write_text(DURATION.sub(scaled, SPEC.read_text()))


def direct(
    scene: Scene,
    spec: Path,
    model: Path,
    bands: Path,
    topic: str,
    shape: Shape,
    *,
    exactly_once: bool,
    timers: bool,
) -> Settings:
    """Settings with the servers' own addresses. `model`: the folder of its versions; `bands`: the file of the
    policy's."""
    lateness_ms = round((LATE_S_MAX * shape.scale + OUTAGE_S_MAX) * 1000)
    settings = Settings(
        spec=spec,
        model=model,
        kafka=KafkaSettings(
            url=scene.kafka_url, topic=topic, group=topic, session_timeout_s=SESSION_S, heartbeat_interval_s=0.5,
            request_timeout_s=6.0, poll_interval_max_s=20.0, commit_interval_s=0.25, fetch_records_max=FETCH_RECORDS,
            fetch_partition_bytes_max=FETCH_BYTES,
        ),
        alerts_from="start",
        timers=TimerSettings(lateness_max=lateness_ms, clock="wall" if timers else "off"),
        record_bytes_max=4_096,
        drain_grace_s=GRACE_S,
        model_watch_s=1.0,
    )  # fmt: skip
    return settings.model_copy(
        update={
            "topics": settings.topics.model_copy(
                update={
                    "alerts": f"{topic}-alerts",
                    "dead_letters": f"{topic}-dead-letters",
                    "scores": f"{topic}-scores",
                    "partitions": shape.partitions,
                }
            ),
            "redis": settings.redis.model_copy(
                update={
                    "url": scene.redis_url,
                    "prefix": "chaos:",
                    "timeout_s": 1.5,
                    # One step's: a worker's partitions hold several times as many customers.
                    "cache_bytes_max": CUSTOMERS_MAX * Layout(load_spec(spec)).itemsize,
                }
            ),
            "alerts": AlertSettings(exactly_once=exactly_once),
            # Thresholds are the models' own; bands are those of all.
            "policy": settings.policy.model_copy(
                update={
                    "bands": json.loads(bands.read_text()),
                    "holdout": HOLDOUT,
                    "holdout_salt": HOLDOUT_SALT,
                    "dwell_ms": round(DWELL_MS * shape.scale),
                    "cooldown_ms": round(COOLDOWN_MS * shape.scale),
                }
            ),
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
