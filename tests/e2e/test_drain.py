"""SIGTERM under load: fetching stops, what is in hand is finished and committed, the group is left, and the exit is 0.

    backlog ─▶ worker ──SIGTERM──▶ checkpoints = marks, outbox empty ─▶ successor: from exactly there, nothing again

And when what is in hand takes longer than the grace period: the worker ends, and the successor does the rest.
"""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebbtide.featurestore.record.layout import Layout
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.worker.connect import open_store, topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.topics import ensure_topics
from tests.support.seams.models import TINY, publish
from tests.support.workers.outages import (
    PARTITIONS,
    Outage,
    applied,
    inner_worker,
    load_scorer,
    marks_of,
    members_of,
    outage,
    produce,
    same_as_the_log,
    samples,
    sigterm,
    until,
)

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow]

BACKLOG = 60_000
COMMIT_LATENCY_S = 0.2
START_TO_END = 5
"""A start takes so many times as long as an end without work, or more: 14.5 s beside 0.3 s (ops/REPORTS.md)."""
LATENCY_S = 2.5
"""Of a Redis so slow that a step of two round trips takes longer than the grace period of that test."""


@pytest.fixture(autouse=True)
def healed(service: Outage) -> None:
    """What a test that failed has slowed is as fast as ever for the next one."""
    service.kafka_proxy.heal()
    service.redis_proxy.heal()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    with outage(tmp_path_factory.mktemp("drain")) as service:
        yield service


async def slack_of(worker: WorkerProcess, quiet_s: float) -> float:
    """Wait until it is ready; returns seconds for an end without work: `quiet_s`, or more where the start took long,
    since it is what this machine has left for anybody."""
    clock = SystemClock()
    began_s = clock.monotonic_s()
    await asyncio.to_thread(worker.wait_ready)
    return max(quiet_s, (clock.monotonic_s() - began_s) / START_TO_END)


async def finish(settings: Settings, service: Outage, events: int) -> float:
    """A successor takes the topic to its end; returns how many records it has dealt with."""
    direct = service.direct(settings)
    scorer = load_scorer(service)
    async with (
        inner_worker(direct, scorer) as successor,
        open_store(direct, Layout(TINY), PARTITIONS) as store,
    ):

        async def done() -> bool:
            return await applied(direct, store) == events and not successor.worker.not_ready_reasons

        await until(done, "the successor is at the end")
    # Only a drained worker has counted all: a step shows in the checkpoint before its alerts are sent and it is told.
    assert successor.value("ebbtide_partition_reopened_total", reason="Fenced") == 0
    return successor.value("ebbtide_records_total")


async def test_sigterm_under_load(service: Outage, unique_name: str, tmp_path: Path) -> None:
    """Exit 0 within the grace period; what was applied is committed and said; the successor does the rest."""
    settings = service.settings(unique_name, drain_grace_s=30.0)
    # A commit is always under way when the drain is over, and knows nothing of what was marked since it began.
    hasty = settings.kafka.model_copy(update={"commit_interval_s": 0.01})
    settings = settings.model_copy(update={"kafka": hasty})
    direct = service.direct(settings)
    await ensure_topics(direct.kafka, topic_specs(direct))
    await produce(direct, 0, BACKLOG)
    with WorkerProcess(settings, tmp_path) as worker:
        async with open_store(direct, Layout(TINY), PARTITIONS) as store:

            async def under_way() -> bool:
                worker.check()
                return await applied(direct, store) > BACKLOG / 10

            await until(under_way, "a tenth of the backlog")
            done = samples(worker.address)["ebbtide_records_total"]
            await asyncio.to_thread(service.kafka_proxy.slow, COMMIT_LATENCY_S)
            code, seconds = await sigterm(worker)
            await asyncio.to_thread(service.kafka_proxy.heal)
            assert (code, seconds < settings.drain_grace_s) == (0, True)
            checkpoints = [await store.checkpoint(partition) for partition in range(PARTITIONS)]
            offsets = {
                partition: checkpoint.offset for partition, checkpoint in enumerate(checkpoints) if checkpoint
            }
            first = sum(offsets.values())
            assert done <= first < BACKLOG, "the load was over before the drain: raise BACKLOG"
            assert {p: committed.offset for p, committed in (await marks_of(direct)).items()} == offsets
            assert [await store.outbox(partition) for partition in range(PARTITIONS)] == [[]] * PARTITIONS
        assert (await members_of(direct))[1] == set(), "it has not left the group"
    assert await finish(settings, service, BACKLOG) == BACKLOG - first
    assert await same_as_the_log(direct, load_scorer(service)) == 0
    print(f"{first} of {BACKLOG} events before the drain, exit after {seconds:.1f} s")


async def test_steps_longer_than_the_grace_period(service: Outage, unique_name: str, tmp_path: Path) -> None:
    """Exit 0 when the grace is over, whatever is under way; the successor does what was not applied."""
    settings = service.settings(unique_name, drain_grace_s=1.0)
    redis = settings.redis.model_copy(update={"timeout_s": 10 * LATENCY_S})
    settings = settings.model_copy(update={"redis": redis})
    direct = service.direct(settings)
    await ensure_topics(direct.kafka, topic_specs(direct))
    with WorkerProcess(settings, tmp_path) as worker:
        slack_s = await slack_of(worker, 5.0)
        await asyncio.to_thread(service.redis_proxy.slow, LATENCY_S)
        await produce(direct, 0, 8_000)
        await asyncio.sleep(1.0)
        code, seconds = await sigterm(worker)
        await asyncio.to_thread(service.redis_proxy.heal)
    assert code == 0
    assert settings.drain_grace_s < seconds < settings.drain_grace_s + slack_s
    assert await finish(settings, service, 8_000) > 0
    await same_as_the_log(direct, load_scorer(service))
    print(f"exit after {seconds:.1f} s")


def has_patient_threads(pid: int) -> bool:
    """Some of its threads are nice to the others: those that load a model are."""
    stats = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/stat")]
    return any(int(stat.rpartition(")")[2].split()[16]) > 0 for stat in stats)


async def test_a_new_model_keeps_nobody(service: Outage, unique_name: str, tmp_path: Path) -> None:
    """SIGTERM while a new version is compiled, which takes far longer than a drain with nothing in hand."""
    newer = publish(tmp_path / "staged", spec=TINY, version=2)  # of many sizes: seconds to compile
    shutil.copytree(service.folder / "models" / TINY.name / "1", tmp_path / "models" / TINY.name / "1")
    settings = service.settings(unique_name, model_watch_s=0.05, model=tmp_path / "models" / TINY.name)
    await ensure_topics(service.direct(settings).kafka, topic_specs(settings))
    with WorkerProcess(settings, tmp_path) as worker:
        slack_s = await slack_of(worker, 4.0)
        newer.rename(tmp_path / "models" / TINY.name / "2")
        await until(lambda: has_patient_threads(worker.pid), "it is being loaded")
        await asyncio.sleep(1.0)
        code, seconds = await sigterm(worker)
        log = worker.log.read_text()
        assert "model swapped" not in log, "loaded before the drain: nothing is shown"
        assert (code, seconds < slack_s) == (0, True), f"code {code} after {seconds:.1f} s"
    print(f"exit after {seconds:.1f} s")
