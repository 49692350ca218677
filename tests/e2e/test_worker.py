"""The worker as production runs it: a process, real servers, everything that a producer can send, and a restart."""

import json
import signal
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.config.settings import DEFAULT_SPEC, Settings, TimerSettings
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from ebbtide.stream.outputs.alert import Alert
from ebbtide.stream.outputs.dead_letter import parse_headers
from ebbtide.stream.outputs.message import Message
from tests.support.fuzz import NOW_MS, fuzzed
from tests.support.patience import PATIENCE_S
from tests.support.seams.models import publish
from tests.support.servers.services import Services

RECORDS = 8_000
HUGE = b'{"user_id": "c1", "type": "page_view", "ts": 1, "properties": {"x": "' + b"x" * 10_000_000 + b'"}}'


def metrics_of(address: str) -> dict[str, float]:
    """Every sample: name, or name{label=value}, to its value."""
    with urllib.request.urlopen(address + "/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        s.name + ("{" + ",".join(f"{k}={v}" for k, v in s.labels.items()) + "}" if s.labels else ""): s.value
        for family in families
        for s in family.samples
    }


def total(metrics: dict[str, float], name: str) -> float:
    return sum(value for key, value in metrics.items() if key.split("{")[0] == name)


def get(address: str, path: str) -> tuple[int, dict[str, object]]:
    try:
        with urllib.request.urlopen(address + path, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def until_records(worker: WorkerProcess, n: int) -> dict[str, float]:
    clock = SystemClock()
    end_s = clock.monotonic_s() + PATIENCE_S
    while True:
        worker.check()
        found = metrics_of(worker.address)
        if found["ebbtide_records_total"] >= n:
            return found
        assert clock.monotonic_s() < end_s, found
        clock.sleep_s(0.1)


@pytest.mark.kafka
async def test_worker(stack: Services, unique_name: str, tmp_path: Path) -> None:
    """Fuzzed records: each is folded, ignored or in the dead-letter topic, and the counts add up exactly. Alerts
    validate. A drained worker exits 0, and its successor reads nothing again."""
    model = publish(tmp_path / "models", spec=load_spec(DEFAULT_SPEC))
    settings = Settings(
        model=model,
        kafka=KafkaSettings(url=stack.kafka_url, topic=unique_name, group=unique_name),
        alerts_from="start",
        timers=TimerSettings(clock="off"),  # its events are of long ago
        dead_letter_share_max=1.0,  # a fuzzed stream is mostly bad on purpose
    )
    topics = settings.topics.model_copy(
        update={"alerts": f"{unique_name}-alerts", "dead_letters": f"{unique_name}-dead"}
    )
    redis = settings.redis.model_copy(update={"url": stack.redis_url, "prefix": f"{unique_name}:"})
    policy = settings.policy.model_copy(update={"enter": 0.3, "exit": 0.2, "cooldown_ms": 0})
    settings = settings.model_copy(update={"topics": topics, "redis": redis, "policy": policy})
    large = TopicSpec(unique_name, 4, "topics.partitions", {"max.message.bytes": str(16 << 20)})
    await ensure_topics(settings.kafka, [large, *topic_specs(settings)[1:]])

    records = fuzzed(seed=31, n=RECORDS)
    messages = [
        # The client sends neither a negative time nor a record of nothing; the broker takes no time from the future.
        Message(unique_name, r.key, r.value, r.headers, min(max(r.timestamp, 0), NOW_MS + 1000))
        for r in records
        if r.key is not None or r.value is not None
    ]
    messages.append(Message(unique_name, b"c1", HUGE, (), NOW_MS))
    regulars = [
        Message(
            unique_name, f"known-{who}".encode(),
            json.dumps({"user_id": f"known-{who}", "type": "page_view", "ts": NOW_MS + 86_400_000 * n}).encode(),
            (), NOW_MS + 86_400_000 * n,
        )
        for n in range(40)
        for who in range(5)
        if n != 20 + who
    ]  # fmt: skip
    async with KafkaSink(settings.kafka) as sink:
        for first in range(0, len(messages), 1000):
            await sink.send_all(messages[first : first + 1000])
        await sink.send_all(regulars)

    with WorkerProcess(settings, tmp_path) as worker:
        worker.wait_ready()
        expected = len(messages) + len(regulars)
        found = until_records(worker, expected)
        assert found["ebbtide_records_total"] == expected
        folded, ignored = found["ebbtide_events_total"], found["ebbtide_events_ignored_total"]
        rejected = total(found, "ebbtide_dead_letters_total")
        assert folded + ignored + rejected == expected
        assert rejected > RECORDS / 10
        assert found["ebbtide_redis_call_seconds_count{operation=apply}"] > 0
        assert found["ebbtide_kafka_messages_total"] >= rejected
        assert found["ebbtide_server_up{server=Redis}"] == found["ebbtide_server_up{server=Kafka}"] == 1
        # What a timer decided has no record to count from.
        decided = total(found, "ebbtide_alert_decision_age_seconds_count")
        assert (
            0
            < found["ebbtide_alert_latency_seconds_count"]
            <= decided
            == total(found, "ebbtide_alerts_total")
        )
        assert found["ebbtide_partitions_owned"] == 4
        assert total(found, "ebbtide_dispatches_total") > 0

        letters: Counter[str] = Counter()
        places = set()
        async for record in read_topic(settings.kafka, topics.dead_letters):
            letter = parse_headers(record.headers)
            if letter is not None:
                letters[letter.reason] += 1
                places.add(letter.source)
        assert letters.total() == len(places) == rejected
        assert letters["too_large"] >= 1
        by_reason = {reason: found[f"ebbtide_dead_letters_total{{reason={reason}}}"] for reason in letters}
        assert by_reason == dict(letters)

        alerts = [
            Alert.model_validate_json(record.value)
            async for record in read_topic(settings.kafka, topics.alerts)
            if record.value is not None
        ]
        assert (
            len(alerts) == len({alert.alert_id for alert in alerts}) == total(found, "ebbtide_alerts_total")
        )
        assert {alert.state for alert in alerts} >= {"opened"}
        assert all(alert.reasons for alert in alerts if alert.state == "opened")

        status, customer = get(worker.address, "/v1/customers/known-3")
        assert status == 200
        assert customer["state"]["activities"] == 39  # type: ignore[index]  # the value is JSON of that shape
        assert len(customer["features"]) > 20  # type: ignore[arg-type]  # the value is JSON of that shape
        assert get(worker.address, "/v1/customers/nobody")[0] == 404
        assert get(worker.address, "/v1/customers/known-3?as_of=yesterday")[0] == 400
        assert get(worker.address, "/readyz") == (200, {"status": "ready"})
        process = worker._process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0

    log = worker.log.read_text()
    assert "known-3" not in log
    with WorkerProcess(settings, tmp_path) as successor:
        successor.wait_ready()
        async with KafkaSink(settings.kafka) as sink:
            await sink.send_all(regulars[:7])
        again = until_records(successor, 1)
        assert again["ebbtide_records_total"] <= 7
