"""A file and the topic that goes on after it: every event is folded once, whichever of the two held it.

    events   0 ······················ end of file ··················· now
    file     ═════════════════════════╗
    topic           ══════════════════╬═════════════════════════════
                    begin (retention) ╚ the stream goes on here

Each test counts the visits of every customer: 16 happened, 16 must be known. The records' timestamps are their times.
"""

from pathlib import Path

import numpy as np
import orjson
import pytest
import yaml
from aiokafka.admin import RecordsToDelete
from aiokafka.structs import TopicPartition

from ebbtide.featurestore.spec import dump_spec
from ebbtide.ops.commands.backfill import run as run_backfill
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.console import steps
from ebbtide.ops.errors import OpsError
from ebbtide.ops.state.junction import FilePart, Gap
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.reader import log_ranges
from ebbtide.stream.outputs.message import Message
from tests.support.seams.scoring import SPEC
from tests.support.servers.services import Services
from tests.support.workers.worlds import OLD, PARTITIONS, T0, World

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

CUSTOMERS, VISITS = 30, 16
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
Visit = tuple[int, str]
"""(ms UTC, customer)."""


def visits(seed: int) -> list[Visit]:
    """Everybody comes once a day, at an hour of their own."""
    rng = np.random.default_rng(seed)
    hours = rng.integers(0, 23 * HOUR_MS, CUSTOMERS)
    return sorted(
        (T0 + day * DAY_MS + int(hours[customer]), f"customer-{customer}")
        for day in range(VISITS)
        for customer in range(CUSTOMERS)
    )


def record(world: World, visit: Visit, arrived_ms: int | None = None) -> Message:
    at_ms, customer = visit
    value = orjson.dumps({"user_id": customer, "type": "visit", "ts": at_ms})
    return Message(world.name, customer.encode(), value, (), arrived_ms or at_ms)


async def world_of(stack: Services, name: str, tmp_path: Path) -> World:
    world = World(stack, name)
    await world.create()
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(dump_spec(SPEC), sort_keys=False), encoding="utf-8")
    world.settings = world.settings.model_copy(update={"spec": spec})
    return world


def file_of(tmp_path: Path, happened: list[Visit]) -> Path:
    path = tmp_path / "events.csv"
    lines = [f"{customer},visit,{at_ms}," for at_ms, customer in happened]
    path.write_text("\n".join(["user_id,type,ts,value", *lines]) + "\n", encoding="utf-8")
    return path


async def fill(
    settings: Settings, path: Path, until_ms: int | None = None, *, accept_gap: bool = False
) -> tuple[FilePart, list[Gap]]:
    with steps() as progress:
        part, gaps, _ = await run_backfill(settings, path, until_ms, False, accept_gap, progress)
    return part, gaps


async def counted(world: World) -> dict[str, int]:
    """Visits known of each customer, once a worker has read all there is."""
    async with world.working("old", OLD) as worker:
        await world.until_done()
        assert not worker.not_ready_reasons
    async with world.store("old", OLD) as store:
        found: dict[str, int] = {}
        for partition in range(PARTITIONS):
            async for names, rows in store.scan(partition):
                found |= dict(zip(names, rows["activity_count"].tolist(), strict=True))
    return found


ALL = {f"customer-{customer}": VISITS for customer in range(CUSTOMERS)}


async def test_what_came_after_the_file_is_folded(stack: Services, unique_name: str, tmp_path: Path) -> None:
    """The file ends on day 10, the topic holds all of it and goes on to day 16."""
    world = await world_of(stack, unique_name, tmp_path)
    happened = visits(1)
    await world.produce(record(world, visit) for visit in happened)
    end_ms = T0 + 10 * DAY_MS
    _, gaps = await fill(world.under("old"), file_of(tmp_path, [v for v in happened if v[0] < end_ms]))
    assert not gaps
    assert await counted(world) == ALL


@pytest.mark.parametrize("seed", range(3))
async def test_timestamps_out_of_order_count_once(
    stack: Services, unique_name: str, tmp_path: Path, seed: int
) -> None:
    """Producers' clocks differ: records of before the file's end lie behind later ones, and others before it."""
    world = await world_of(stack, unique_name, tmp_path)
    happened = visits(seed)
    rng = np.random.default_rng(seed)
    print(f"seed {seed}")
    moved = np.array([at_ms for at_ms, _ in happened]) + rng.normal(0, 18 * HOUR_MS, len(happened))
    await world.produce(record(world, happened[i]) for i in np.argsort(moved).tolist())
    end_ms = T0 + 10 * DAY_MS
    await fill(world.under("old"), file_of(tmp_path, [v for v in happened if v[0] < end_ms]))
    # What is sent after the backfill cannot be in the file, however old it says it is.
    await world.produce([record(world, (end_ms - HOUR_MS, "customer-0"))])
    found = await counted(world)
    assert found == ALL | {"customer-0": VISITS + 1}


async def test_until_leaves_the_rest_to_the_topic(stack: Services, unique_name: str, tmp_path: Path) -> None:
    world = await world_of(stack, unique_name, tmp_path)
    happened = visits(2)
    await world.produce(record(world, visit) for visit in happened)
    part, _ = await fill(world.under("old"), file_of(tmp_path, happened), T0 + 5 * DAY_MS)
    assert part.until_ms == T0 + 5 * DAY_MS
    assert await counted(world) == ALL


async def test_one_wrong_date_does_not_move_the_file_s_end(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    """Two years ahead of all others: as the end it would pass over the whole topic."""
    world = await world_of(stack, unique_name, tmp_path)
    happened = visits(3)
    await world.produce(record(world, visit) for visit in happened)
    known = [v for v in happened if v[0] < T0 + 10 * DAY_MS]
    part, _ = await fill(world.under("old"), file_of(tmp_path, [*known, (T0 + 740 * DAY_MS, "customer-1")]))
    assert part.outliers == 1 and part.known_ms == part.until_ms == known[-1][0] + 1
    assert await counted(world) == ALL


async def test_a_gap_is_refused_unless_it_is_accepted(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    """Retention has passed the file's end in one partition: two days are lost there, and that is said."""
    world = await world_of(stack, unique_name, tmp_path)
    happened = visits(4)
    await world.produce(record(world, visit) for visit in happened)
    end_ms = T0 + 10 * DAY_MS
    log = await world.log()
    kept = next(each for each in log[1] if each.timestamp >= end_ms + 2 * DAY_MS)
    async with admin(world.settings.kafka) as client:
        await client.delete_records({TopicPartition(world.name, 1): RecordsToDelete(kept.offset)})
    assert (await log_ranges(world.settings.kafka, world.name))[1][0] == kept.offset
    path = file_of(tmp_path, [v for v in happened if v[0] < end_ms])
    with pytest.raises(OpsError, match="partition 1: ") as refused:
        await fill(world.under("old"), path)
    assert "--accept-gap" in refused.value.hint
    async with world.store("old", OLD) as store:
        assert await store.checkpoint(0) is None  # nothing was begun
    part, gaps = await fill(world.under("old"), path, accept_gap=True)
    assert gaps == [Gap(1, part.until_ms, kept.timestamp)]
    found = await counted(world)
    lost = [r for r in log[1] if part.until_ms <= r.timestamp and r.offset < kept.offset]
    assert sum(found.values()) == CUSTOMERS * VISITS - len(lost) and lost


async def test_an_emptied_partition_is_a_gap_until_now(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    world = await world_of(stack, unique_name, tmp_path)
    happened = visits(5)
    await world.produce(record(world, visit) for visit in happened)
    _, end = (await log_ranges(world.settings.kafka, world.name))[0]
    async with admin(world.settings.kafka) as client:
        await client.delete_records({TopicPartition(world.name, 0): RecordsToDelete(end)})
    with pytest.raises(OpsError, match=r"partition 0: .* to now"):
        await fill(world.under("old"), file_of(tmp_path, happened[:300]))


async def test_a_tombstone_is_obeyed_however_old(stack: Services, unique_name: str, tmp_path: Path) -> None:
    """Its timestamp is of before the file's end, as a late one's is; the file still holds its customer."""
    world = await world_of(stack, unique_name, tmp_path)
    happened = visits(6)
    end_ms = T0 + 10 * DAY_MS
    await world.produce(record(world, visit) for visit in happened)
    await world.produce([Message(world.name, b"customer-3", None, (), end_ms - DAY_MS)])
    await fill(world.under("old"), file_of(tmp_path, [v for v in happened if v[0] < end_ms]))
    found = await counted(world)
    assert "customer-3" not in found and found == {k: n for k, n in ALL.items() if k != "customer-3"}
