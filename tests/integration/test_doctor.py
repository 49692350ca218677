"""`ebbtide doctor` on real servers: of a sound deployment nothing is to mend; each thing that is wrong is named.

Every test breaks one thing, and sees the finding that names it and what to do.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import yaml
from aiokafka.admin import NewTopic
from pydantic import SecretStr

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.ops.cli import run
from ebbtide.ops.config.settings import DEFAULT_SPEC, HttpSettings, RedisSettings, Settings, TopicSettings
from ebbtide.ops.doctor.examination import examine_deployment
from ebbtide.ops.doctor.finding import Finding, Level
from ebbtide.ops.doctor.serving import examine_http
from ebbtide.ops.doctor.state_server import examine_redis
from ebbtide.ops.stack.local import LocalValkey
from ebbtide.ops.worker.connect import open_store, topic_specs
from ebbtide.stream.clock import Clock, ManualClock, SystemClock
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import ensure_topics, partition_for
from ebbtide.stream.outputs.message import Message
from tests.support.patience import PATIENCE_S
from tests.support.seams.models import publish
from tests.support.servers.kafka import PASSWORD, allow, secure_kafka
from tests.support.servers.redis import admin_of, eventually
from tests.support.servers.services import Services

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

PARTITIONS = 3
LAYOUT = Layout(load_spec(DEFAULT_SPEC))


def settings_of(stack: Services, name: str, **more: object) -> Settings:
    return Settings(
        kafka=KafkaSettings(url=stack.kafka_url, topic=name, group=name),
        redis=RedisSettings(url=stack.redis_url, prefix=f"{name}:"),
        topics=TopicSettings(
            alerts=f"{name}-alerts", dead_letters=f"{name}-dead", scores=f"{name}-scores", partitions=PARTITIONS
        ),
    ).model_copy(update=more)  # fmt: skip


async def examine(settings: Settings, clock: Clock | None = None, *, model: bool = False) -> list[Finding]:
    return await examine_deployment(settings, clock or SystemClock(), model=model)


def wrong(found: list[Finding]) -> dict[str, Finding]:
    """What is not ok, by check."""
    return {each.check: each for each in found if each.level is not Level.OK}


async def made(settings: Settings, *topics: NewTopic) -> None:
    """These topics as they are asked for, then what is missing."""
    if topics:
        async with admin(settings.kafka) as client:
            await client.create_topics(list(topics))
    await ensure_topics(settings.kafka, topic_specs(settings))


@pytest.mark.slow
async def test_a_sound_deployment_has_no_error(stack: Services, unique_name: str, tmp_path: Path) -> None:
    """By the command, with a model: a table, figures, and exit code 0."""
    model = publish(tmp_path / "models", spec=load_spec(DEFAULT_SPEC), sizes=(8,)).parent
    settings = settings_of(stack, unique_name, model=model)
    await made(settings, NewTopic(unique_name, PARTITIONS, 1, topic_configs={"retention.ms": "-1"}))
    path, figures = tmp_path / "settings.yaml", tmp_path / "out.json"
    data = {
        "model": str(model),
        "kafka": {"url": stack.kafka_url, "topic": unique_name, "group": unique_name},
        "redis": {"url": stack.redis_url, "prefix": f"{unique_name}:"},
        "topics": settings.topics.model_dump(),
    }
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    asked = ["doctor", "--config", str(path), "--json", str(figures)]
    assert await asyncio.to_thread(run, asked) == 0
    told = orjson.loads(figures.read_bytes())
    assert told["errors"] == 0
    checks = {each["check"].split()[0] for each in told["checks"]}
    assert checks == {
        "spec",
        "kafka",
        "topic",
        "rights",
        "timestamps",
        "redis",
        "state",
        "customers",
        "model",
        "http",
    }
    (warned,) = [each for each in told["checks"] if each["level"] != "ok"]
    assert "no maxmemory" in warned["found"]  # the suite's own Valkey has no limit


async def test_no_broker_is_one_error(stack: Services, unique_name: str) -> None:
    settings = settings_of(stack, unique_name)
    kafka = settings.kafka.model_copy(update={"url": "127.0.0.1:1", "request_timeout_s": 2.0})
    found = wrong(await examine(settings.model_copy(update={"kafka": kafka})))
    assert found["kafka"].level is Level.ERROR and "nobody listens" in found["kafka"].found
    assert not [check for check in found if check.startswith("topic") or check in ("rights", "state")]


async def test_topics_that_are_missing_are_named(stack: Services, unique_name: str) -> None:
    settings = settings_of(stack, unique_name)
    found = wrong(await examine(settings))
    for name in (unique_name, f"{unique_name}-alerts", f"{unique_name}-dead"):
        assert "does not exist" in found[f"topic {name}"].found
        assert found[f"topic {name}"].level is Level.WARNING
    topics = settings.topics.model_copy(update={"create_input": False})
    found = wrong(await examine(settings.model_copy(update={"topics": topics})))
    assert found[f"topic {unique_name}"].level is Level.ERROR
    assert found[f"topic {unique_name}-alerts"].level is Level.WARNING
    async with admin(settings.kafka) as client:  # and none was made
        assert unique_name not in await client.list_topics()


async def test_too_few_partitions_and_a_short_memory(stack: Services, unique_name: str) -> None:
    settings = settings_of(stack, unique_name)
    async with admin(settings.kafka) as client:
        await client.create_topics([NewTopic(unique_name, 2, 1, topic_configs={"retention.ms": "86400000"})])
    found = [each for each in await examine(settings) if each.check == f"topic {unique_name}"]
    assert [each.level for each in found] == [Level.ERROR, Level.WARNING]
    assert "2 partitions" in found[0].found and "keeps 1d" in found[1].found


async def test_an_input_that_compacts_is_an_error(stack: Services, unique_name: str) -> None:
    settings = settings_of(stack, unique_name)
    config = {"cleanup.policy": "compact", "retention.ms": "-1", "unclean.leader.election.enable": "true"}
    await made(settings, NewTopic(unique_name, PARTITIONS, 1, topic_configs=config))
    found = [each for each in await examine(settings) if each.check == f"topic {unique_name}"]
    assert [each.level for each in found] == [Level.ERROR, Level.WARNING]
    assert "only the last one" in found[0].found and "unclean" in found[1].found


async def test_outputs_that_lose_something_are_named(stack: Services, unique_name: str) -> None:
    settings = settings_of(stack, unique_name)
    names = settings.topics
    await made(settings, NewTopic(unique_name, PARTITIONS, 1, topic_configs={"max.message.bytes": "4000000"}))
    async with admin(settings.kafka) as client:
        await client.delete_topics([names.alerts, names.dead_letters, str(names.scores)])
        async with asyncio.timeout(PATIENCE_S):
            while {names.alerts, names.dead_letters, names.scores} & set(  # noqa: ASYNC110 -- no event tells that a deletion is over
                await client.list_topics()
            ):
                await asyncio.sleep(0.1)  # no event tells that a deletion is done
        await asyncio.sleep(0.5)
        await client.create_topics([
            NewTopic(names.alerts, PARTITIONS, 1, topic_configs={"max.message.bytes": "1000"}),
            NewTopic(names.dead_letters, PARTITIONS, 1, topic_configs={"cleanup.policy": "compact"}),
            NewTopic(str(names.scores), PARTITIONS, 1, topic_configs={"cleanup.policy": "delete"}),
        ])  # fmt: skip
    found = [each for each in await examine(settings) if each.level is not Level.OK]
    said = {(each.check.removeprefix("topic "), each.level): each.found for each in found}
    assert "does not fit" in said[names.alerts, Level.ERROR]
    assert "loses its body" in said[names.dead_letters, Level.WARNING]
    assert "all but the last" in said[names.dead_letters, Level.ERROR]
    assert "goes by retention" in said[str(names.scores), Level.WARNING]


async def test_rights_that_are_lacking_are_named(tmp_path: Path, unique_name: str, stack: Services) -> None:
    """We may see the topics; not read the input, nor the group, nor write."""
    with secure_kafka(tmp_path) as secure:
        base = settings_of(stack, unique_name)
        whole = base.model_copy(update={"kafka": secure.settings("plain", unique_name)})
        await made(whole)
        await allow(
            secure, "alice", *(f"DESCRIBE on topic {name}" for name in (unique_name, base.topics.alerts)),
        )  # fmt: skip
        kafka = secure.settings("sasl", unique_name, sasl={
            "mechanism": "PLAIN", "username": "alice", "password": PASSWORD,
        })  # fmt: skip
        found = wrong(await examine(base.model_copy(update={"kafka": kafka})))
        assert "may not read" in found[f"topic {unique_name}"].found
        assert "may not write" in found[f"topic {base.topics.alerts}"].found
        assert "not even know" in found[f"topic {base.topics.dead_letters}"].found
        assert found["rights"].level is Level.ERROR and "ACL" in found["rights"].remedy
        wrong_password = {"mechanism": "PLAIN", "username": "alice", "password": "nonsense"}
        kafka = secure.settings("sasl", unique_name, sasl=wrong_password)
        found = wrong(await examine(base.model_copy(update={"kafka": kafka})))
        assert "kafka.sasl.password" in found["kafka"].remedy


async def test_records_from_the_future_are_named(stack: Services, unique_name: str) -> None:
    settings = settings_of(stack, unique_name)
    await made(settings)
    later_ms = SystemClock().now_ms() + 1_800_000
    async with KafkaSink(settings.kafka) as sink:
        await sink.send_all([Message(unique_name, b"ann", b"{}", (), later_ms, 2)])
    found = wrong(await examine(settings))
    assert "partitions [2]" in found["timestamps"].found


@asynccontextmanager
async def redis_of(stack: Services, name: str, server: LocalValkey) -> AsyncIterator[Settings]:
    settings = settings_of(stack, name)
    await made(settings)
    redis = settings.redis.model_copy(update={"url": server.url})
    yield settings.model_copy(update={"redis": redis})


async def test_what_is_wrong_with_a_redis_is_named(stack: Services, unique_name: str) -> None:
    """No file, no limit, full, an eviction policy, a replica, another clock: one after the other on one server."""
    with LocalValkey(appendonly=False) as server:
        async with redis_of(stack, unique_name, server) as settings:
            client = admin_of(server)

            async def said() -> list[str]:
                found = await examine(settings)
                return [
                    f"{e.level} {e.found}" for e in found if e.check.startswith("redis") and e.level != "ok"
                ]

            first = await said()
            assert any("warning appendonly is off" in each for each in first)
            assert any("no maxmemory" in each for each in first)
            client.config_set("appendonly", "yes")
            used = int(client.info("memory")["used_memory"])
            client.config_set("maxmemory", used * 10 // 9)
            assert any(("warning" in each and "% " in each) or "%)" in each for each in await said())
            client.config_set("maxmemory", used * 100 // 98)
            assert any(each.startswith("error") and "refuses writes" in each for each in await said())
            client.config_set("maxmemory", 1 << 30)
            assert await said() == []
            async with open_store(settings, LAYOUT, PARTITIONS) as store:
                (late, *_) = [e for e in await examine_redis(store, ManualClock()) if e.level != "ok"]
                assert "clock" in late.found and "NTP" in late.remedy
            client.config_set("maxmemory-policy", "allkeys-lru")
            (evicts,) = await said()
            assert evicts.startswith("error") and "allkeys-lru" in evicts
    (away,) = [e for e in await examine(settings) if e.check == "redis"]
    assert away.level is Level.ERROR


def fail_to_save(client: Any) -> None:
    """A folder lies where the snapshot should."""
    snapshot = Path(client.config_get("dir")["dir"], client.config_get("dbfilename")["dbfilename"])
    snapshot.unlink(missing_ok=True)
    snapshot.mkdir()
    client.bgsave()
    eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")


async def test_a_replica_and_a_failed_save_are_named(stack: Services, unique_name: str) -> None:
    with LocalValkey() as master, LocalValkey() as replica:
        async with redis_of(stack, unique_name, replica) as settings:
            client = admin_of(replica)
            client.config_set("maxmemory", 1 << 30)
            client.replicaof("127.0.0.1", master.port)
            found = [e for e in await examine(settings) if e.check.startswith("redis")]
            assert any("it is a slave" in each.found for each in found)
            client.replicaof("NO", "ONE")
            fail_to_save(client)
            found = [e for e in await examine(settings) if e.check.startswith("redis")]
            assert any("last write to disk failed" in each.found for each in found)


async def test_a_slow_redis_is_named(stack: Services, unique_name: str) -> None:
    class Slow:
        """A clock of a machine on which every question takes 20 ms."""

        def __init__(self) -> None:
            self._at_s = 0.0

        def now_ms(self) -> int:
            return SystemClock().now_ms()

        def monotonic_s(self) -> float:
            self._at_s += 0.02
            return self._at_s

    settings = settings_of(stack, unique_name)
    async with open_store(settings, LAYOUT, PARTITIONS) as store:
        found = wrong(await examine_redis(store, Slow()))
    assert "20.00 ms" in found["redis latency"].found


async def test_state_of_another_spec_or_log_is_named(stack: Services, unique_name: str) -> None:
    settings = settings_of(stack, unique_name)
    await made(settings)
    async with open_store(settings, LAYOUT, PARTITIONS) as store:
        for partition, head in enumerate((
            Checkpoint(0, 1, 0, "fold:00/policy:00", PARTITIONS),
            Checkpoint(99, 1, 0, LAYOUT.id, PARTITIONS),
            Checkpoint(0, 1, 0, LAYOUT.id, PARTITIONS + 1),
        )):  # fmt: skip
            await store.apply(Commit(partition, None, head, [], LAYOUT.empty(0), np.empty(0, np.int64)))
    found = wrong(await examine(settings))
    assert "record layout" in found["state of partition 0"].found
    assert "offset 99" in found["state of partition 1"].found
    assert "4 partitions" in found["state of partition 2"].found


async def test_customers_in_two_partitions_are_named(stack: Services, unique_name: str) -> None:
    settings = settings_of(stack, unique_name)
    await made(settings)
    rows = LAYOUT.empty(1)
    rows["event_time"] = 1
    home = partition_for(b"ann", PARTITIONS)
    head = Checkpoint(0, 1, 0, LAYOUT.id, PARTITIONS)
    async with open_store(settings, LAYOUT, PARTITIONS) as store:
        other = (home + 1) % PARTITIONS
        await store.apply(Commit(other, None, head, ["ann"], rows, np.ones(1, np.int64)))
        assert "1 of 1 looked at" in wrong(await examine(settings))["customers"].found
        await store.apply(Commit(home, None, head, ["ann"], rows, np.ones(1, np.int64)))
    found = wrong(await examine(settings))["customers"]
    assert found.level is Level.ERROR and "two people" in found.found


@pytest.mark.slow
async def test_a_model_that_cannot_serve_is_named(stack: Services, unique_name: str, tmp_path: Path) -> None:
    settings = settings_of(stack, unique_name, model=tmp_path / "none")
    await made(settings)
    assert wrong(await examine(settings, model=True))["model"].level is Level.ERROR


@pytest.mark.parametrize(
    ("http", "level", "word"),
    [
        (HttpSettings(), Level.OK, "this machine"),
        (HttpSettings(host="0.0.0.0"), Level.WARNING, "403"),
        (HttpSettings(host="0.0.0.0", token=SecretStr("short")), Level.WARNING, "guessed"),
        (HttpSettings(host="0.0.0.0", token=SecretStr("0123456789abcdef")), Level.OK, "token"),
    ],
)
def test_an_open_face_is_named(http: HttpSettings, level: Level, word: str) -> None:
    (found,) = examine_http(http)
    assert found.level is level and word in found.found


async def test_a_spec_that_does_not_fit_is_named(stack: Services, unique_name: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("name: [", encoding="utf-8")
    (found,) = await examine(settings_of(stack, unique_name, spec=path))
    assert (found.check, found.level) == ("spec", Level.ERROR)
