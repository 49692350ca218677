"""A dead-letter topic as a platform team makes it, with Kafka's own 1 MB, and an input that takes four: case 34."""

from pathlib import Path

import orjson
import pytest
import yaml

from ebbtide.featurestore.spec import dump_spec
from ebbtide.ops.config.settings import Settings, TimerSettings
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from ebbtide.stream.outputs.dead_letter import Omitted, parse_headers
from ebbtide.stream.outputs.message import Message
from tests.e2e.test_worker import total, until_records
from tests.support.seams.models import TINY, publish
from tests.support.servers.services import Services

T0 = 1_700_000_000_000
BAD = b"{" * (2 << 20)


def visit(n: int) -> bytes:
    return orjson.dumps({"user_id": "ann", "event_id": f"e{n}", "type": "visit", "ts": T0 + n})


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
async def test_a_letter_larger_than_its_topic_ends_no_worker(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    """The bad record's letter says how much it leaves out and where that lies; what follows it is folded, and the next
    worker does not come to it again."""
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(dump_spec(TINY)))
    base = Settings(
        spec=tmp_path / "spec.yaml", model=publish(tmp_path / "models", spec=TINY, sizes=(8,)), alerts_from="start",
        kafka=KafkaSettings(url=stack.kafka_url, topic=unique_name, group=unique_name),
        timers=TimerSettings(clock="off"), dead_letter_share_max=1.0,
    )  # fmt: skip
    dead = f"{unique_name}-dead"
    topics = {"alerts": f"{unique_name}-alerts", "dead_letters": dead, "partitions": 1}
    redis = {"url": stack.redis_url, "prefix": f"{unique_name}:"}
    settings = base.model_copy(
        update={
            "topics": base.topics.model_copy(update=topics),
            "redis": base.redis.model_copy(update=redis),
        }
    )
    large = TopicSpec(unique_name, 1, "topics.partitions", {"max.message.bytes": str(4 << 20)})
    await ensure_topics(settings.kafka, [large, TopicSpec(dead, 1, "topics.partitions")])
    async with KafkaSink(settings.kafka) as sink:
        for n, value in enumerate((visit(0), BAD, visit(1))):
            await sink.send_all([Message(unique_name, b"ann", value, (), T0 + n)])

    with WorkerProcess(settings, tmp_path) as worker:
        worker.wait_ready()
        found = until_records(worker, 3)
        assert (found["ebbtide_events_total"], total(found, "ebbtide_dead_letters_total")) == (2, 1)
    (record,) = [record async for record in read_topic(settings.kafka, dead)]
    letter = parse_headers(record.headers)
    assert letter is not None
    assert (record.key, record.value, letter.source) == (b"ann", b"", (unique_name, 0, 1))
    assert letter.omitted == Omitted.of(BAD)

    async with KafkaSink(settings.kafka) as sink:
        await sink.send_all([Message(unique_name, b"ann", visit(2), (), T0 + 3)])
    with WorkerProcess(settings, tmp_path) as worker:
        worker.wait_ready()
        found = until_records(worker, 1)
        assert (found["ebbtide_events_total"], total(found, "ebbtide_dead_letters_total")) == (1, 0)
