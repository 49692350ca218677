"""History into the store: what a worker finds is all of it, or is refused."""

import numpy as np
import pytest

from ebbtide.featurestore.errors import LayoutError, StoreUnavailable
from ebbtide.featurestore.store.checkpoint import History, check_checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS
from ebbtide.ops.state.backfill import StateExists, backfill
from ebbtide.ops.state.junction import Junction
from tests.support.oracle.histories import START, columns
from tests.support.oracle.oracle import Event
from tests.support.seams.engines import Pickled
from tests.support.seams.scoring import LAYOUT

PARTITIONS = 3
NOW_MS = START + 40 * DAY_MS


class DyingStore(MemoryStore):
    """Is away after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(LAYOUT.dtype, PARTITIONS)
        self.left = steps

    async def apply(self, commit: Commit) -> None:
        if self.left == 0:
            raise StoreUnavailable("gone")
        self.left -= 1
        await super().apply(commit)


async def test_a_backfill_that_died_is_refused_until_it_is_done_again() -> None:
    """Wherever it dies: some partition is none to begin with, and `reset` makes the whole."""
    log = columns([(f"c{n % 60}", Event(n % 2, START + n * HOUR_MS)) for n in range(400)])
    junctions = dict.fromkeys(range(PARTITIONS), Junction(7, History(NOW_MS, 7)))
    whole = MemoryStore(LAYOUT.dtype, PARTITIONS)
    done = await backfill(log, LAYOUT, whole, junctions, NOW_MS)
    assert done.customers > 30
    for steps in range(2 * PARTITIONS):
        store = DyingStore(steps)
        with pytest.raises(StoreUnavailable):
            await backfill(log, LAYOUT, store, junctions, NOW_MS)
        refused = 0
        for partition in junctions:
            checkpoint = await store.checkpoint(partition)
            if checkpoint is not None and checkpoint.layout != LAYOUT.id:
                refused += 1
                with pytest.raises(LayoutError, match="--reset"):
                    check_checkpoint(checkpoint, LAYOUT.id, PARTITIONS)
        assert refused > 0 or steps == 0
        store.left = 100
        if steps:
            with pytest.raises(StateExists):
                await backfill(log, LAYOUT, store, junctions, NOW_MS)
        await backfill(log, LAYOUT, store, junctions, NOW_MS, reset=True)
        for partition in junctions:
            checkpoint = await store.checkpoint(partition)
            check_checkpoint(checkpoint, LAYOUT.id, PARTITIONS)
            assert checkpoint is not None and checkpoint.offset == 7
            assert checkpoint.hour == (NOW_MS // HOUR_MS, 0)
            assert await store.hours(partition) == await whole.hours(partition)
            async for names, rows in store.scan(partition):
                expected, found = await whole.load(partition, names)
                assert found.all() and np.array_equal(rows, expected)
    # One event every hour, in the partition of its customer; the four weeks before the end are kept.
    hours = [await whole.hours(partition) for partition in range(PARTITIONS)]
    kept = 400 - (40 * 24 - 4 * 168)
    assert sum(map(sum, hours)) == kept and {len(each) for each in hours} == {4 * 168}


async def test_a_backfill_by_parts_stores_the_same_records() -> None:
    """As `--jobs` and `--spark` fold it."""
    log = columns([(f"c{n % 60}", Event(n % 2, START + n * HOUR_MS)) for n in range(400)])
    junctions = dict.fromkeys(range(PARTITIONS), Junction(7, History(NOW_MS, 7)))
    one, other = (MemoryStore(LAYOUT.dtype, PARTITIONS) for _ in range(2))
    assert await backfill(log, LAYOUT, one, junctions, NOW_MS) == await backfill(
        log, LAYOUT, other, junctions, NOW_MS, engine=Pickled(3)
    )
    for partition in junctions:
        async for names, rows in one.scan(partition):
            found, there = await other.load(partition, names)
            assert there.all() and np.array_equal(rows, found)
        assert await one.hours(partition) == await other.hours(partition)
