"""What every store lists: who is due, who is at risk, who is there, and the hours of a log."""

import asyncio

import numpy as np

from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import (
    CUSTOMERS_MAX,
    DUE_AT_ALL_MS,
    DUE_MS_MAX,
)
from tests.support.seams.stores import (
    Backend,
    state_of,
    step_of,
)

RNG = np.random.default_rng(0)


async def test_due_comes_by_time_then_by_name(backend: Backend) -> None:
    """Half-open: due at `until` is not due yet. Ties in the order of UTF-8 bytes. At most as many as asked for."""
    store = backend.owner()
    due = np.array([50, 20, 20, 20, 0, DUE_MS_MAX])
    await store.apply(step_of(None, ["late", "b", "é", "a", "first", "far"], RNG, due=due))
    names, times = await store.due(0, 50, 10)
    assert names == ["first", "a", "b", "é"]
    assert times.dtype == np.int64
    assert times.tolist() == [0, 20, 20, 20]
    assert (await store.due(0, 50, 2))[0] == ["first", "a"]
    assert (await store.due(0, 0, 10))[0] == []
    assert (await store.due(0, DUE_MS_MAX, 10))[0][-1] == "late"
    assert (await store.due(1, 50, 10))[0] == []
    both = await asyncio.gather(*store.due_each([(0, 50, 2), (1, 50, 10), (0, DUE_AT_ALL_MS, 9)]))
    assert [names for names, _ in both] == [["first", "a"], [], ["first", "a", "b", "é", "late", "far"]]
    assert both[2][1].tolist() == [0, 20, 20, 20, 50, DUE_MS_MAX]


async def test_find_names_every_partition_that_holds_somebody(backend: Backend) -> None:
    store = backend.owner()
    for partition in (2, 1):
        await store.apply(step_of(None, ["a", f"only-{partition}"], RNG, partition=partition))
    assert [partition for partition, _ in await store.find("a")] == [1, 2]
    assert [partition for partition, _ in await store.find("only-2")] == [2]


async def test_scan_finds_each_customer_once_while_others_write(backend: Backend) -> None:
    store, other = backend.owner(), backend.owner()
    names = [f"customer-{i}" for i in range(3_000)]
    checkpoint: Checkpoint | None = None
    for i in range(0, len(names), 1_000):
        await store.apply(commit := step_of(checkpoint, names[i : i + 1_000], RNG))
        checkpoint = commit.checkpoint
    seen: list[str] = []
    async for customers, rows in store.scan(0):
        assert 0 < len(customers) == len(rows) <= CUSTOMERS_MAX
        seen += customers
        await other.apply(
            commit := step_of(checkpoint, [*names[:500], f"new-{len(seen)}"], RNG, forgotten=["nobody"])
        )
        checkpoint = commit.checkpoint
    assert len(seen) == len(set(seen))
    assert set(names) <= set(seen)


async def test_the_hours_of_a_log_stay_until_another_one_ends(backend: Backend) -> None:
    store = backend.owner()
    assert await store.hours(1) == ()
    checkpoint: Checkpoint | None = None
    for hours, expected in (((0, 2**40), (0, 2**40)), (None, (0, 2**40)), ((7,), (7,))):
        await store.apply(commit := step_of(checkpoint, ["a"], RNG, partition=1, hours=hours))
        checkpoint = commit.checkpoint
        assert await backend.owner().hours(1) == expected
    assert await store.hours(0) == ()


async def test_who_is_at_risk_is_listed_by_p_until_decided_otherwise(backend: Backend) -> None:
    store = backend.owner()
    p = np.array([0.5, np.nan, 0.9], np.float32)
    first = step_of(None, ["a", "b", "c"], RNG, at_risk=p)
    await store.apply(first)
    other = step_of(None, ["d", "e"], RNG, partition=2, at_risk=np.array([0.75, 1.0], np.float32))
    await store.apply(other)
    found = await store.at_risk(0.0, 10)
    assert [(partition, name) for _, partition, name in found.entries] == [
        (2, "e"),
        (0, "c"),
        (2, "d"),
        (0, "a"),
    ]
    assert found.entries[1][0] == float(p[2]) and (found.listed, found.floor) == (4, 0.0)
    top = await store.at_risk(0.6, 2)
    assert [name for _, _, name in top.entries] == ["e", "c"] and top.listed == 3
    second = step_of(
        first.checkpoint, ["a", "c"], RNG, forgotten=["b"], at_risk=np.array([np.nan, 0.25], np.float32)
    )
    await store.apply(second)
    assert (await state_of(store)).risk == {"c": 0.25}
    await store.apply(step_of(second.checkpoint, ["a"], RNG, forgotten=["c"]))
    assert (await state_of(store)).risk == {}
    await store.reset(2)
    assert await store.at_risk(0.0, 10) == ([], 0, 0.0)


async def test_a_full_list_of_risks_turns_away_the_lowest_and_says_so(backend: Backend) -> None:
    """
    room for 20   p  .00 .01 … .24    5 find no room: from .04 on all are there, and below nobody is taken,
                                      until only half of the list is left
    """
    store = backend.owner()
    names = [f"c{i:02}" for i in range(25)]
    commit = step_of(None, names, RNG, at_risk=np.arange(25, dtype=np.float32) / 100)
    await store.apply(commit)
    found = await store.at_risk(0.0, 100)
    assert [name for _, _, name in found.entries] == names[:4:-1]
    assert (found.listed, found.floor) == (20, float(np.float32(0.04)))
    commit = step_of(commit.checkpoint, ["low", "c24"], RNG, at_risk=np.array([0.03, np.nan], np.float32))
    await store.apply(commit)
    assert (
        len((await store.at_risk(0.0, 100)).entries) == 19
        and found.floor == (await store.at_risk(0, 1)).floor
    )
    commit = step_of(commit.checkpoint, [], RNG, forgotten=names[15:24])
    await store.apply(commit)
    assert (await store.at_risk(0.0, 100)).floor == 0.0
    await store.apply(step_of(commit.checkpoint, ["low"], RNG, at_risk=np.array([0.03], np.float32)))
    found = await store.at_risk(0.0, 100)
    assert found.entries[-1] == (float(np.float32(0.03)), 0, "low") and found.listed == 11
