"""`ebbtide rebuild` on real servers: a state made again beside a worker that works, the switch to it, and the way back.

    old worker   ━━━━━━━━━━━━━━━━┓ mark 1                 ┏━━━━━▶ again, silent up to mark 2
    rebuild          ▒▒▒▒▒▒▒▒▒▒▒ ┃                        ┃
    new worker                   ┗━━━━━━━━━━━━━━━━━━━━━━━━┛ mark 2
    alerts       the old kind's  │ the new kind's         │ the old kind's

What each kind would say over the whole log, undisturbed, is known (`World.offline`); so are the committed offsets.
"""

import asyncio
import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import yaml
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from click.testing import CliRunner

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.spec import dump_spec
from ebbtide.ops.commands import drop, rebuild
from ebbtide.ops.state.plan import NothingToRebuild, NotOurs, plan
from ebbtide.ops.state.rebuild import Counts, ForbiddenSink, Rebuild, Rebuilt
from ebbtide.stream.errors import CheckpointOutsideLog
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.committed_log import open_committed_log
from ebbtide.stream.outputs.message import Message
from tests.support.seams.models import TINY, publish
from tests.support.servers.proxy import Proxy
from tests.support.servers.services import Services
from tests.support.workers.worlds import NEW, OLD, Clicks, Kind, Said, World, commit, eventually

pytestmark = [pytest.mark.kafka, pytest.mark.redis]
SEED = 41


@contextlib.asynccontextmanager
async def rebuilding(world: World, prefix: str, kind: Kind) -> Any:
    """A rebuild that is ready to run, and the counts it keeps."""
    counts = Counts()
    async with open_committed_log(world.settings.kafka) as settled, world.store(prefix, kind) as store:
        tools = world.tools(kind, store, ForbiddenSink(), counts)
        begun = await plan(settled, store, world.settings.kafka.group, kind.layout.id)
        yield Rebuild(settled, tools, counts, begun, dead_letter_share_max=1.0), counts
        tools.batcher.close()


async def folded(counts: Counts, least: int) -> None:
    await eventually(lambda: sum(counts.records.values()) >= least, f"{least} records folded")


async def rebuilt(world: World, prefix: str, kind: Kind) -> list[Rebuilt]:
    async with rebuilding(world, prefix, kind) as (work, _):
        done: list[Rebuilt] = await work.run()
        return done


@pytest.mark.slow
async def test_beside_a_worker_then_the_switch_then_back(stack: Services, unique_name: str) -> None:
    """No alert is missing or extra over either switch, no dead letter and no tombstone is said twice, and each state
    equals
    its undisturbed offline replay bit for bit."""
    print(f"seed {SEED}")
    world, clicks = World(stack, unique_name), Clicks(SEED, unique_name)
    await world.create()
    await world.produce(clicks.next(1500))
    async with world.working("old", OLD):
        await world.until_done()
        stop = asyncio.Event()

        async def go_on() -> None:
            while not stop.is_set():
                await world.produce(clicks.next(40))
                await asyncio.sleep(0.02)

        going = asyncio.create_task(go_on())
        while sum((await world.committed()).values()) < 1700:  # noqa: ASYNC110 -- Kafka tells it to nobody
            await asyncio.sleep(0.02)
        done = await rebuilt(world, "new", NEW)
        committed = await world.committed()
        checkpoints = await world.checkpoints("new", NEW)
        stop.set()
        await going
        await world.produce(clicks.next(300))
        first = await world.until_done()
    assert sum(one.records for one in done) >= 1700
    for number, checkpoint in checkpoints.items():
        assert checkpoint is not None and done[number].end == checkpoint.offset <= committed[number]
    await world.produce(clicks.next(600))  # nobody has decided these
    assert {one.partition: one.end for one in await rebuilt(world, "new", NEW)} == first
    async with world.working("new", NEW):
        await world.produce(clicks.next(300))
        second = await world.until_done()
    assert await world.records("new", NEW) == (await world.offline(NEW))[0]
    async with world.working("old", OLD):
        await world.produce(clicks.next(600))
        last = await world.until_done()

    old_records, of_old = await world.offline(OLD)
    _, of_new = await world.offline(NEW)
    assert await world.records("old", OLD) == old_records
    expected = [
        *(alert for alert in of_old if not first[alert.partition] <= alert.offset < second[alert.partition]),
        *(alert for alert in of_new if first[alert.partition] <= alert.offset < second[alert.partition]),
    ]
    said = await world.said()
    assert alerts(said) == alerts(expected)
    sequence: dict[bytes, int] = {}
    for one in said:  # what a consumer goes by: no alert of either kind hides one of the other
        number = _read(one).get("sequence", 0)
        assert one.value is None or number > sequence.get(one.customer, 0)
        sequence[one.customer] = number
    assert len({_read(one)["alert_id"] for one in said if one.value is not None}) == len(expected)
    by_kind = Counter(_read(alert)["model_version"] == 2 for alert in expected)
    assert min(by_kind[True], by_kind[False]) > 20
    log = [record for records in (await world.log()).values() for record in records]
    assert sum(last.values()) == len(log)
    tombstones = Counter(record.key for record in log if record.value is None)
    assert Counter(one.customer for one in said if one.value is None) == tombstones
    letters = [r for r in await world.read(world.settings.topics.dead_letters) if r.value is not None]
    assert len(letters) == sum((record.value or b"{").startswith(b"nonsense") for record in log)


def alerts(said: list[Said]) -> Counter[bytes]:
    """The alerts among what was said, by their bytes."""
    return Counter(one.value for one in said if one.value is not None)


def _read(one: Said) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(one.value or b"{}")
    return found


async def test_an_interrupted_rebuild_goes_on_over_gaps(stack: Services, unique_name: str) -> None:
    """Cut off at random moments and stopped in good order, over a log with holes; another that moves the same state
    is noticed. At the end the state is the undisturbed one."""
    print(f"seed {SEED}")
    rng = np.random.default_rng(SEED)
    world, clicks = World(stack, unique_name), Clicks(SEED, unique_name)
    await world.create()
    await world.produce_in_transactions(clicks, rounds=8, records=400)
    async with world.working("old", OLD):
        committed = await world.until_done()
    log = await world.log()
    assert sum(committed.values()) > 2 * sum(map(len, log.values()))  # more than half of it is not to be seen
    done_before = 0
    for n in range(4):
        async with rebuilding(world, "new", NEW) as (work, counts):
            running = asyncio.create_task(work.run())
            await folded(counts, int(rng.integers(50, 250)))
            if n % 2:
                work.stop()
                await running
            else:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            done_before += sum(counts.records.values())
    assert done_before < sum(map(len, log.values())), "nothing was left to be resumed"
    async with rebuilding(world, "new", NEW) as (one, _), rebuilding(world, "new", NEW) as (other, _):
        outcomes = await asyncio.gather(one.run(), other.run(), return_exceptions=True)
    assert any(isinstance(outcome, NotOurs) for outcome in outcomes), outcomes
    done = await rebuilt(world, "new", NEW)
    assert {one.partition: one.end for one in done} == committed
    assert await world.records("new", NEW) == (await world.offline(NEW))[0]
    assert alerts(await world.said()) == alerts((await world.offline(OLD))[1])
    with pytest.raises(NotOurs, match="record layout"):
        await rebuilt(world, "new", OLD)


async def test_a_redis_that_is_away_for_a_while_is_waited_for(stack: Services, unique_name: str) -> None:
    """Cut off in the middle of its steps, twice: some were applied and nobody heard, and the end is the same."""
    world, clicks = World(stack, unique_name), Clicks(SEED, unique_name)
    await world.create()
    await world.produce(clicks.next(1500))
    async with world.working("old", OLD):
        committed = await world.until_done()
    direct = world.settings
    port = urlsplit(stack.redis_url).port
    assert port is not None
    with Proxy(port) as proxy:
        redis = direct.redis.model_copy(update={"url": f"redis://127.0.0.1:{proxy.port}/0"})
        world.settings = direct.model_copy(update={"redis": redis})
        async with rebuilding(world, "new", NEW) as (work, counts):
            proxy.slow(0.01)
            running = asyncio.create_task(work.run())
            for least in (100, 600):
                await folded(counts, least)
                proxy.cut()
                await asyncio.sleep(0.5)
                assert not running.done()
                proxy.slow(0.01)
            assert {one.partition: one.end for one in await running} == committed
    world.settings = direct
    assert await world.records("new", NEW) == (await world.offline(NEW))[0]


async def test_following_stays_at_the_mark_until_told(stack: Services, unique_name: str) -> None:
    world, clicks = World(stack, unique_name), Clicks(SEED, unique_name)
    await world.create()
    await world.produce(clicks.next(200))
    async with world.working("old", OLD):
        await world.until_done()
        await follow(world, clicks)


async def follow(world: World, clicks: Clicks) -> None:
    async with rebuilding(world, "new", NEW) as (work, counts):
        running = asyncio.create_task(work.run(follow=True))
        for total in (200, 300, 400):
            await folded(counts, total)
            assert not running.done()
            await world.produce(clicks.next(100))
            await world.until_done()
        work.stop()
        await running


async def test_what_cannot_be_made_again_is_refused_before_it_begins(
    stack: Services, unique_name: str
) -> None:
    """No mark; a committed offset beyond the log's end or before its begin; a state that is beyond the committed
    offset."""
    world, clicks = World(stack, unique_name), Clicks(SEED, unique_name)
    await world.create()
    await world.produce(clicks.next(300))
    with pytest.raises(NothingToRebuild, match="no worker of it has ever run"):
        await rebuilt(world, "new", NEW)
    await commit(world, {0: 50, 1: 50, 2: 50})
    assert [one.end for one in await rebuilt(world, "new", NEW)] == [50, 50, 50]
    await commit(world, {0: 50, 1: 40, 2: 50})
    with pytest.raises(
        NotOurs, match="partition 1 under this prefix is at offset 50, beyond the committed offset 40"
    ):
        await rebuilt(world, "new", NEW)
    await commit(world, {0: 50, 1: 50, 2: 50_000})
    with pytest.raises(
        CheckpointOutsideLog, match="partition 2 was sent up to offset 50000, the log ends at"
    ):
        await rebuilt(world, "new", NEW)
    await commit(world, {0: 60, 1: 60, 2: 60})
    async with admin(world.settings.kafka) as client:
        await client.delete_records({TopicPartition(unique_name, 0): RecordsToDelete(before_offset=55)})
    with pytest.raises(NotOurs, match="partition 0 is at offset 50, the log holds \\[55, "):
        await rebuilt(world, "new", NEW)
    assert [one.start for one in await rebuilt(world, "newer", NEW)] == [55, 0, 0]
    async with admin(world.settings.kafka) as client:
        await client.delete_records({TopicPartition(unique_name, 0): RecordsToDelete(before_offset=70)})
    with pytest.raises(
        CheckpointOutsideLog, match="partition 0 was sent up to offset 60, the log begins at 70"
    ):
        await rebuilt(world, "newest", NEW)


def run(command: Any, world: World, tmp_path: Path, *arguments: str) -> tuple[str, BaseException | None]:
    """A command as typed, with settings from a file; it has an event loop of its own."""
    config = tmp_path / "config.yaml"
    kafka, topics, redis = world.settings.kafka, world.settings.topics, world.settings.redis
    assert redis.url is not None
    config.write_text(
        yaml.safe_dump(
            {
                "kafka": {"url": kafka.url, "topic": kafka.topic, "group": kafka.group},
                "redis": {"url": redis.url, "prefix": redis.prefix},
                "topics": {"alerts": topics.alerts, "dead_letters": topics.dead_letters, "partitions": 3},
            }
        )
    )
    ran = CliRunner().invoke(command, ["--config", str(config), *arguments])
    return ran.output, ran.exception


async def test_the_commands(stack: Services, unique_name: str, tmp_path: Path) -> None:
    """A real model: the state is made up to the committed offset, the table says so, and `drop` takes away what it is
    told to."""
    world = World(stack, unique_name)
    await world.create()
    await world.produce(
        Message(
            unique_name, f"c{n % 50}".encode(),
            json.dumps({"user_id": f"c{n % 50}", "type": "visit", "ts": 1_700_000_000_000 + n * 3_600_000}).encode(),
            (), 1_700_000_000_000 + n * 3_600_000,
        )
        for n in range(600)
    )  # fmt: skip
    committed = {0: 100, 1: 50, 2: 20}
    await commit(world, committed)
    model, spec, out = (
        publish(tmp_path / "models", spec=TINY, sizes=(8,)),
        tmp_path / "s.yaml",
        tmp_path / "o",
    )
    spec.write_text(yaml.safe_dump(dump_spec(TINY)))
    options = ("--spec", str(spec), "--model", str(model), "--json", str(out))

    said, error = await asyncio.to_thread(
        run, rebuild.command, world, tmp_path, "--prefix", world.settings.redis.prefix, *options
    )
    assert isinstance(error, EbbtideError) and "is the configured redis.prefix" in str(error)
    prefix = world.prefix("new")
    said, error = await asyncio.to_thread(run, rebuild.command, world, tmp_path, "--prefix", prefix, *options)
    assert error is None, (said, error)
    assert f"ebbtide drop --prefix '{world.settings.redis.prefix}'" in said
    figures = json.loads(out.read_text())
    assert {one["partition"]: one["to"] for one in figures["partitions"]} == committed
    assert figures["records"] == sum(committed.values()) and figures["rejected"] == 0
    assert figures["records_per_s"] > 0
    kind = Kind(OLD.layout, OLD.model)
    async with world.store("new", kind) as store:
        assert figures["customers"] == sum([await store.customers(number) for number in range(3)]) > 10

    for arguments, words in (
        (("--prefix", world.settings.redis.prefix, "--yes"), "is the configured redis.prefix"),
        (("--prefix", prefix), "would be deleted"),
        (("--prefix", world.prefix("nothing"), "--yes"), "there is no state"),
    ):
        _, error = await asyncio.to_thread(run, drop.command, world, tmp_path, *arguments)
        assert isinstance(error, EbbtideError) and words in str(error)
    assert await world.checkpoints("new", kind) != dict.fromkeys(range(3))
    said, error = await asyncio.to_thread(run, drop.command, world, tmp_path, "--prefix", prefix, "--yes")
    assert error is None and f"{figures['customers']} customers" in said
    assert await world.checkpoints("new", kind) == dict.fromkeys(range(3))
