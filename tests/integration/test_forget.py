"""One customer in two partitions, after a producer with another partitioner: found, said, erased, or refused.

producer with murmur2      ann ─▶ her own partition
librdkafka's own default   ann ─▶ another one            half of her history each
"""

import asyncio
from collections import Counter
from pathlib import Path

import orjson
import pytest
import yaml

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.spec import dump_spec
from ebbtide.featurestore.store.checkpoint import History
from ebbtide.ops.cli import run
from ebbtide.ops.state.backfill import backfill
from ebbtide.ops.state.forget import forget, holders
from ebbtide.ops.state.junction import Junction
from ebbtide.stream.dlq.replay import letters, replay
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.telemetry import Telemetry, TurnDone
from tests.support.seams.scoring import SPEC
from tests.support.servers.services import Services
from tests.support.workers.worlds import OLD, PARTITIONS, T0, World

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

ANN, BOB = "ann", "bob"
HOME = partition_for(ANN.encode(), PARTITIONS)
ELSEWHERE = (HOME + 1) % PARTITIONS
EMPTY = (HOME + 2) % PARTITIONS


class Heard(Telemetry):
    """What the turns told, added up."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def turn_done(self, turn: TurnDone) -> None:
        for name in ("tombstones", "forgotten", "misplaced"):
            self.counts[name] += getattr(turn, name)


def visit(world: World, n: int, partition: int, customer: str = ANN) -> Message:
    value = orjson.dumps({"user_id": customer, "event_id": f"e{n}", "type": "visit", "ts": T0 + n})
    return Message(world.name, customer.encode(), value, (), T0 + n, partition)


async def in_two_partitions(world: World) -> None:
    await world.create()
    home = partition_for(BOB.encode(), PARTITIONS)
    await world.produce(
        [visit(world, n, (HOME, ELSEWHERE)[n % 2]) for n in range(6)] + [visit(world, 9, home, BOB)]
    )


def config(world: World, tmp_path: Path) -> Path:
    """A file of settings, as an operator has one."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(dump_spec(SPEC), sort_keys=False), encoding="utf-8")
    settings = world.under("old")
    path = tmp_path / "settings.yaml"
    data = {
        "spec": str(spec),
        "kafka": {"url": settings.kafka.url, "topic": world.name, "group": world.name},
        "redis": {"url": settings.redis.url, "prefix": settings.redis.prefix},
        "topics": {"alerts": settings.topics.alerts, "dead_letters": settings.topics.dead_letters},
    }
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


async def test_forget_erases_in_every_partition(stack: Services, unique_name: str, tmp_path: Path) -> None:
    """By the command, with a worker at its work; the nulls are not misplaced, and reach the output topics."""
    world, heard = World(stack, unique_name), Heard()
    await in_two_partitions(world)
    async with world.working("old", OLD, telemetry=heard), world.store("old", OLD) as store:
        await world.until_done()
        assert await holders(store, SPEC, ANN) == sorted([HOME, ELSEWHERE])
        assert heard.counts["misplaced"] == 3
        figures = tmp_path / "out.json"
        asked = ["forget", ANN, "--config", str(config(world, tmp_path)), "--json", str(figures)]
        assert await asyncio.to_thread(run, asked) == 0
        told = orjson.loads(figures.read_bytes())
        assert (told["held"], told["left"]) == (sorted([HOME, ELSEWHERE]), [])
        assert await store.find(ANN) == [] and len(await store.find(BOB)) == 1
        await world.until_done()
        assert heard.counts == {"misplaced": 3, "tombstones": 2, "forgotten": 2}
    for topic in (world.settings.topics.alerts, world.settings.topics.dead_letters):
        nulls = [record for record in await world.read(topic) if record.key == ANN.encode()]
        assert nulls and nulls[-1].value is None


async def test_a_tombstone_that_finds_nothing_is_not_obeyed(stack: Services, unique_name: str) -> None:
    """Produced into a partition that does not hold her, as it was before: nothing is deleted, and none is counted."""
    world, heard = World(stack, unique_name), Heard()
    await in_two_partitions(world)
    await world.produce([Message(world.name, ANN.encode(), None, partition=EMPTY)])
    async with world.working("old", OLD, telemetry=heard), world.store("old", OLD) as store:
        await world.until_done()
        assert await holders(store, SPEC, ANN) == sorted([HOME, ELSEWHERE])
        assert (heard.counts["tombstones"], heard.counts["forgotten"]) == (1, 0)
        async with KafkaSink(world.settings.kafka) as sink:
            assert await forget(store, SPEC, sink, world.name, ANN, everywhere=True) == range(PARTITIONS)
        await world.until_done()
        assert await holders(store, SPEC, ANN) == []
        assert (heard.counts["tombstones"], heard.counts["forgotten"]) == (1 + PARTITIONS, 2)


async def test_without_a_worker_forget_says_that_it_waits(
    stack: Services, unique_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and the tombstone is obeyed by whoever comes; one of whom nothing is known gets one, too."""
    world = World(stack, unique_name)
    await in_two_partitions(world)
    async with world.working("old", OLD):
        await world.until_done()
    asked = ["forget", ANN, "--wait", "1s", "--config", str(config(world, tmp_path))]
    assert await asyncio.to_thread(run, asked) == 1
    assert "not yet obeyed" in capsys.readouterr().out
    assert await asyncio.to_thread(run, [*asked[:1], "nobody", *asked[2:]]) == 0
    assert "nothing was known" in capsys.readouterr().out
    async with world.working("old", OLD), world.store("old", OLD) as store:
        await world.until_done()
        assert await store.find(ANN) == []


async def test_where_history_was_stored_the_misplaced_are_letters(stack: Services, unique_name: str) -> None:
    """Folded they would begin a second Ann without her history; a replay sends them to where she is."""
    world, heard = World(stack, unique_name), Heard()
    await world.create()
    async with world.store("old", OLD) as store:
        junctions = dict.fromkeys(range(PARTITIONS), Junction(0, History(T0, 0)))
        await backfill(EventBatch.empty(), OLD.layout, store, junctions, T0)
    await world.produce([visit(world, n, (HOME, ELSEWHERE)[n % 2]) for n in range(6)])
    dead = world.settings.topics.dead_letters
    async with world.working("old", OLD, telemetry=heard) as worker, world.store("old", OLD) as store:
        await world.until_done()
        ((partition, row),) = await store.find(ANN)
        assert (partition, row["activity_count"]) == (HOME, 3)
        assert heard.counts["misplaced"] == 3 and worker.warnings
        assert [letter.reason async for letter in letters(world.settings.kafka, dead)] == ["misplaced"] * 3
        async with KafkaSink(world.settings.kafka) as sink:
            assert (await replay(world.settings.kafka, dead, sink)).sent == {"misplaced": 3}
        await world.until_done()
        ((partition, row),) = await store.find(ANN)
        assert (partition, row["activity_count"]) == (HOME, 6)


async def test_a_misplaced_letter_comes_behind_no_tombstone(stack: Services, unique_name: str) -> None:
    """Her tombstone lies unread in her own partition: a letter that is sent there would bring her back."""
    world = World(stack, unique_name)
    await world.create()
    async with world.store("old", OLD) as store:
        junctions = dict.fromkeys(range(PARTITIONS), Junction(0, History(T0, 0)))
        await backfill(EventBatch.empty(), OLD.layout, store, junctions, T0)
    await world.produce([visit(world, 1, ELSEWHERE)])
    async with world.working("old", OLD):
        await world.until_done()
    await world.produce([Message(world.name, ANN.encode(), None)])
    async with KafkaSink(world.settings.kafka) as sink:
        result = await replay(world.settings.kafka, world.settings.topics.dead_letters, sink)
    assert (result.sent.total(), result.forgotten) == (0, 1)
