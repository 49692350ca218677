"""Redis and Kafka go away under a worker: it pauses, says why, stays bounded and in the group, and goes on by itself.

    idle, away ─▶ back ─▶ traffic, away for longer than any time-out ─▶ back ─▶ away, SIGTERM ─▶ back, successor
                                                                                 the log, folded without faults, is it

Away is a black hole (nothing is refused, nothing answers) or a server killed. The times are short here, and so are the
worker's own time-outs. `python -m tests.e2e.test_outages 60` runs the same with outages of a minute, and says what it
measured.
"""

import asyncio
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebbtide.featurestore.record.layout import Layout
from ebbtide.ops.worker.connect import open_store, topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.consumer.commits import COMMIT_S
from ebbtide.stream.consumer.thread import STOP_S
from ebbtide.stream.kafka.producer import FLUSH_S
from ebbtide.stream.kafka.topics import ensure_topics
from tests.support.seams.models import TINY
from tests.support.workers.outages import (
    PARTITIONS,
    Feed,
    Outage,
    Watch,
    applied,
    inner_worker,
    load_scorer,
    members_of,
    outage,
    produce,
    rss_bytes,
    same_as_the_log,
    samples,
    sigterm,
    until,
)

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow]

AWAY_S = 6.5
"""Above session (3 s), poll interval (6 s) and every time-out that `Outage.settings` gives the worker."""
NOTICED_S, RESUMED_S = 9.0, 12.0
RSS_GROWTH_BYTES_MAX = 48 << 20
BURST = 80_000
"""Records that come while Redis is away: held in memory, at a kilobyte of Python each, they would be seen."""

Figures = dict[str, float]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outage]:
    with outage(tmp_path_factory.mktemp("outages")) as service:
        yield service


@pytest.fixture(autouse=True)
def healed(service: Outage) -> None:
    """What a test that failed has cut is whole again for the next one."""
    service.kafka_proxy.heal()
    service.redis_proxy.heal()


async def redis_goes(service: Outage, name: str, folder: Path, away_s: float) -> Figures:
    """The worker's Redis: a black hole while nothing comes, a black hole under traffic, killed before SIGTERM."""
    settings, figures = service.settings(name), Figures()
    direct = service.direct(settings)
    await ensure_topics(direct.kafka, topic_specs(direct))
    with WorkerProcess(settings, folder) as worker:
        await asyncio.to_thread(worker.wait_ready)
        async with Watch(worker) as watch, Feed(direct) as feed:
            await feed.until(500)
            feed.hold()
            await watch.until(200)
            await asyncio.to_thread(service.redis_proxy.hang)
            figures["idle_noticed_s"] = await watch.until(503, "Redis", NOTICED_S)
            await asyncio.to_thread(service.redis_proxy.heal)
            figures["idle_resumed_s"] = await watch.until(200, timeout_s=RESUMED_S)

            feed.go_on()
            await feed.until(1_000)
            members, before = await members_of(direct), rss_bytes(worker.pid)
            await asyncio.to_thread(service.redis_proxy.hang)
            figures["noticed_s"] = await watch.until(503, "Redis", NOTICED_S)
            feed.burst(BURST)
            await asyncio.sleep(away_s)
            assert (watch.status, "Redis" in watch.reason) == (503, True)
            found = samples(worker.address)
            assert {found[f"ebbtide_partition_paused{{partition={p}}}"] for p in range(PARTITIONS)} == {1.0}
            assert await members_of(direct) == members
            await asyncio.to_thread(service.redis_proxy.heal)
            figures["resumed_s"] = await watch.until(200, timeout_s=RESUMED_S)
            figures["caught_up_s"] = await caught_up(service, name, feed)
            assert await members_of(direct) == members
            figures["rss_growth_mib"] = (watch.rss_bytes_max - before) / (1 << 20)
            assert watch.rss_bytes_max - before < RSS_GROWTH_BYTES_MAX

            await asyncio.to_thread(service.valkey.kill)
            await watch.until(503, "Redis", NOTICED_S)
            code, figures["exit_s"] = await sigterm(worker)
            assert (code, figures["exit_s"] < settings.drain_grace_s) == (0, True)
            await asyncio.to_thread(service.valkey.restart)
            await successor_finishes(service, name, feed)
    return figures


async def kafka_goes(service: Outage, name: str, folder: Path, away_s: float) -> Figures:
    """The worker's Kafka: a black hole while nothing comes, its only broker killed under traffic, a black hole before
    SIGTERM."""
    settings, figures = service.settings(name), Figures()
    direct = service.direct(settings)
    (broker,) = service.kafka.nodes
    await ensure_topics(direct.kafka, topic_specs(direct))
    with WorkerProcess(settings, folder) as worker:
        await asyncio.to_thread(worker.wait_ready)
        async with Watch(worker) as watch, Feed(direct) as feed:
            await watch.until(200)
            await asyncio.to_thread(service.kafka_proxy.hang)
            figures["idle_noticed_s"] = await watch.until(503, "Kafka", NOTICED_S)
            await asyncio.to_thread(service.kafka_proxy.heal)
            figures["idle_resumed_s"] = await watch.until(200, timeout_s=RESUMED_S)

            await feed.until(500)
            before = rss_bytes(worker.pid)
            await asyncio.to_thread(broker.kill)
            figures["noticed_s"] = await watch.until(503, "Kafka", NOTICED_S)
            await asyncio.sleep(away_s)
            await asyncio.to_thread(broker.restart)
            figures["resumed_s"] = await watch.until(200, timeout_s=RESUMED_S)
            figures["caught_up_s"] = await caught_up(service, name, feed)
            figures["rss_growth_mib"] = (watch.rss_bytes_max - before) / (1 << 20)
            assert watch.rss_bytes_max - before < RSS_GROWTH_BYTES_MAX

            await asyncio.to_thread(service.kafka_proxy.hang)
            await asyncio.sleep(1.0)  # what was on its way is in hand now, and its alerts have nowhere to go
            code, figures["exit_s"] = await sigterm(worker)
            assert code == 0
            # Nothing can be finished: what follows the grace takes all the time that it may.
            assert figures["exit_s"] < settings.drain_grace_s + COMMIT_S + STOP_S + 2 * FLUSH_S
            await asyncio.to_thread(service.kafka_proxy.heal)
            await successor_finishes(service, name, feed)
    return figures


async def caught_up(service: Outage, name: str, feed: Feed) -> float:
    """Until all that was produced before this moment has been applied."""
    direct = service.direct(service.settings(name))
    async with open_store(direct, Layout(TINY), PARTITIONS) as store:
        sent, clock = feed.sent, SystemClock()
        begin_s = clock.monotonic_s()
        while await applied(direct, store) < sent:
            assert clock.monotonic_s() - begin_s < 30.0, "it did not resume"
            await asyncio.sleep(0.02)
        return clock.monotonic_s() - begin_s


async def successor_finishes(service: Outage, name: str, feed: Feed) -> None:
    """Another worker goes on from there: nothing is lost, and nothing but alerts was said twice."""
    settings = service.settings(name)
    direct, scorer = service.direct(settings), load_scorer(service)
    sent = await feed.stop()
    async with (
        inner_worker(settings, scorer) as successor,
        open_store(direct, Layout(TINY), PARTITIONS) as store,
    ):

        async def done() -> bool:
            assert not successor.running.done()
            return await applied(direct, store) == sent and not successor.worker.not_ready_reasons

        await until(
            done,
            "the successor is at the end of the log",
            30.0,
            lambda: f"{sent} events, {successor.described()}",
        )
    again = await same_as_the_log(direct, scorer)
    print(f"{sent} events, {again} alerts twice")


async def test_redis_goes_away(service: Outage, unique_name: str, tmp_path: Path) -> None:
    """Longer than max_poll_interval: partitions pause, memory and group stay, /readyz names Redis, all resumes. SIGTERM
    without Redis exits 0 in time, and the successor loses nothing."""
    print(await redis_goes(service, unique_name, tmp_path, AWAY_S))


async def test_kafka_goes_away(service: Outage, unique_name: str, tmp_path: Path) -> None:
    """Longer than the session, idle and under traffic: /readyz names Kafka, all resumes, SIGTERM without it exits 0."""
    print(await kafka_goes(service, unique_name, tmp_path, AWAY_S))


async def test_a_worker_joins_while_redis_is_away(service: Outage, unique_name: str) -> None:
    """Nothing in a rebalance waits for Redis: the group is whole again in seconds, and both serve when it is back."""
    settings = service.settings(unique_name)
    direct, scorer = service.direct(settings), load_scorer(service)
    await ensure_topics(direct.kafka, topic_specs(direct))
    async with inner_worker(settings, scorer) as first, open_store(direct, Layout(TINY), PARTITIONS) as store:
        await produce(direct, 0, 3_000)
        await until(lambda: not first.worker.not_ready_reasons, "the first worker serves")
        await asyncio.to_thread(service.redis_proxy.hang)
        await produce(direct, 3_000, 1_000)
        async with inner_worker(settings, scorer) as second:
            both = [first, second]

            async def whole() -> bool:
                state, members = await members_of(direct)
                return (state, len(members)) == ("Stable", 2)

            joined_s = await until(whole, "a group of two", 15.0)
            await until(
                lambda: [len(w.source.assigned()) for w in both] == [2, 2], "two partitions each", 5.0
            )
            assert joined_s < 8.0
            await until(
                lambda: all("Redis" in "; ".join(w.worker.not_ready_reasons) for w in both),
                "both say why",
                10.0,
            )
            await asyncio.to_thread(service.redis_proxy.heal)
            await until(lambda: not any(w.worker.not_ready_reasons for w in both), "both serve", RESUMED_S)
            await produce(direct, 4_000, 1_000)

            async def done() -> bool:
                return await applied(direct, store) == 5_000

            await until(done, "all applied")
            await until(lambda: min(w.value("ebbtide_records_total") for w in both) > 0, "both did some", 5.0)
            await until(whole, "still a group of two", 1.0)
        print(f"joined in {joined_s:.1f} s")
    await same_as_the_log(direct, scorer)


async def test_an_idle_worker_names_who_does_not_answer(service: Outage, unique_name: str) -> None:
    """Also when the time-out of a request is longer than anybody's patience: the pulse has its own."""
    settings = service.settings(unique_name)
    patient = settings.redis.model_copy(update={"timeout_s": 60.0})
    settings = settings.model_copy(update={"redis": patient})
    await ensure_topics(service.direct(settings).kafka, topic_specs(settings))
    async with inner_worker(settings, load_scorer(service)) as idle:
        worker = idle.worker
        await until(lambda: not worker.not_ready_reasons, "it serves")
        await asyncio.to_thread(service.redis_proxy.hang)
        await until(lambda: worker.not_ready_reasons, "it has noticed", NOTICED_S)
        (trouble,) = worker.not_ready_reasons
        assert trouble.startswith("Redis: no answer within")
        await asyncio.to_thread(service.redis_proxy.heal)
        await until(lambda: not worker.not_ready_reasons, "it serves again", RESUMED_S)


def main(away_s: float) -> None:
    """Both outages at this length, with figures."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, outage(Path(folder)) as service:
        for run in (redis_goes, kafka_goes):
            own = Path(folder) / run.__name__
            own.mkdir()
            figures = asyncio.run(run(service, run.__name__, own, away_s))
            print(run.__name__, {name: round(value, 1) for name, value in figures.items()})


if __name__ == "__main__":
    main(float(sys.argv[1]))
