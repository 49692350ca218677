"""What every store promises, held against each of them: dictionaries, Valkey and Debian's Redis."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from ebbtide.featurestore.errors import Fenced
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import (
    CUSTOMERS_MAX,
)
from ebbtide.featurestore.store.memory import MemoryStore
from tests.support.seams.stores import (
    AT_RISK_MAX,
    DTYPE,
    EMPTY,
    PARTITIONS,
    Backend,
    bare_state_of,
    next_head,
    random_step,
    state_of,
    step_of,
)

RNG = np.random.default_rng(0)
ODD_CUSTOMERS = [
    "plain",
    "with space",
    "{p1}",
    "}{",
    "a:b:c",
    "per%cent*glob?[x]",
    "new\nline\r\n",
    "nul\0byte",
    "Ünïcødé-客户-🦊",
    "e\u0301",
    "é",
    "x" * 128,
    "客" * 128,
    "checkpoint",
    "-1",
    "",
]


async def test_a_partition_that_never_began_is_empty(backend: Backend) -> None:
    store = backend.owner()
    await store.start()
    rows, found = await store.load(1, ["a", "b"])
    assert rows.dtype == DTYPE
    assert rows.tobytes() == bytes(2 * DTYPE.itemsize)
    assert found.tolist() == [False, False]
    assert await state_of(store, 1) == EMPTY
    assert await store.find("a") == []
    assert len((await store.load(1, []))[0]) == 0


async def test_what_was_applied_is_read_back(backend: Backend) -> None:
    """By another owner, in the order asked, absent customers as zeros between the others."""
    commit = step_of(
        None, ["a", "b", "c"], RNG, due=np.array([30, 10, 20]), messages=[(b"id", b"\x00\xff\r\n")]
    )
    await backend.owner().apply(commit)
    store = backend.owner()
    rows, found = await store.load(0, ["c", "nobody", "a"])
    assert found.tolist() == [True, False, True]
    assert rows.tobytes() == commit.rows[2].tobytes() + bytes(DTYPE.itemsize) + commit.rows[0].tobytes()
    rows["count"] += 1  # the caller's own
    state = await state_of(store)
    assert state.checkpoint == commit.checkpoint
    assert state.records == {name: row.tobytes() for name, row in zip("abc", commit.rows, strict=True)}
    assert state.due == [("b", 10), ("c", 20), ("a", 30)]
    assert state.outbox == commit.outbox


async def test_partitions_are_apart(backend: Backend) -> None:
    store = backend.owner()
    steps = [step_of(None, ["same"], RNG, partition=partition) for partition in range(PARTITIONS)]
    await asyncio.gather(*(store.apply(commit) for commit in steps))
    for commit, state in zip(steps, await bare_state_of(store), strict=True):
        assert state.records == {"same": commit.rows[0].tobytes()}


async def test_the_outbox_keeps_messages_until_they_are_acknowledged(backend: Backend) -> None:
    store = backend.owner()
    first = step_of(None, [], RNG, messages=[(b"1", b"one"), (b"2", b"two"), (b"3", b"")])
    await store.apply(first)
    assert await store.outbox(0) == first.outbox
    second = step_of(
        first.checkpoint, [], RNG, messages=[(b"4", b"four"), (b"5", b"five")], acked=[b"1", b"4", b"none"]
    )
    await store.apply(second)
    assert await store.outbox(0) == [*first.outbox[1:], second.outbox[1]]
    await store.apply(step_of(second.checkpoint, [], RNG, acked=[b"2", b"3", b"5"]))
    assert await store.outbox(0) == []
    assert await store.outbox(1) == []


async def test_the_forgotten_leave_nothing(backend: Backend) -> None:
    store = backend.owner()
    first = step_of(None, ["stays", *ODD_CUSTOMERS], RNG, messages=[(b"1", b"about plain")])
    await store.apply(first)
    second = step_of(first.checkpoint, [], RNG, forgotten=[*ODD_CUSTOMERS, "never seen"], acked=[b"1"])
    await store.apply(second)
    state = await state_of(store)
    assert state.records == {"stays": first.rows[0].tobytes()}
    assert state.outbox == []
    assert await store.find("plain") == []
    assert not (await store.load(0, ODD_CUSTOMERS))[1].any()


async def test_odd_customer_ids(backend: Backend) -> None:
    store = backend.owner()
    commit = step_of(None, ODD_CUSTOMERS, RNG, partition=2)
    await store.apply(commit)
    rows, found = await store.load(2, ODD_CUSTOMERS)
    assert found.all()
    assert rows.tobytes() == commit.rows.tobytes()
    assert (await state_of(store, 2)).records.keys() == set(ODD_CUSTOMERS)
    for customer, row in zip(ODD_CUSTOMERS, commit.rows, strict=True):
        ((partition, found_there),) = await store.find(customer)
        assert (partition, found_there.tobytes()) == (2, row.tobytes())


async def test_records_are_binary(backend: Backend) -> None:
    """Every byte, at every end, comes back; a record of zeros is there, an absent one is not."""
    raw = np.arange(256 * DTYPE.itemsize, dtype=np.uint32).astype(np.uint8).reshape(256, -1)
    raw[0] = 0
    rows = raw.copy().view(DTYPE).reshape(-1)
    store = backend.owner()
    names = [f"c{i}" for i in range(256)]
    await store.apply(step_of(None, names, RNG, rows=rows))
    loaded, found = await store.load(0, names)
    assert found.all()
    assert loaded.tobytes() == rows.tobytes()


async def test_the_largest_step(backend: Backend) -> None:
    """As many customers as a step may have, and messages far beyond what Lua unpacks at once."""
    store = backend.owner()
    half = CUSTOMERS_MAX // 2
    messages = [(f"{i}".encode(), f"alert {i}".encode()) for i in range(9_001)]
    first = step_of(None, [f"c{i}" for i in range(CUSTOMERS_MAX)], RNG, messages=messages)
    await store.apply(first)
    state = await state_of(store)
    assert len(state.records) == CUSTOMERS_MAX
    assert state.outbox == first.outbox
    second = step_of(
        first.checkpoint,
        [f"c{i}" for i in range(half)],
        RNG,
        forgotten=[f"c{i}" for i in range(half, CUSTOMERS_MAX)],
        acked=[key for key, _ in messages[1:]],
    )
    await store.apply(second)
    state = await state_of(store)
    assert state.records == dict(
        sorted((name, row.tobytes()) for name, row in zip(second.customers, second.rows, strict=True))
    )
    assert state.outbox == first.outbox[:1]


async def test_reset_leaves_an_empty_partition_and_fences_its_owner(backend: Backend) -> None:
    store = backend.owner()
    await store.reset(0)  # of a partition that never began
    checkpoint: Checkpoint | None = None
    for names in ([f"c{i}" for i in range(1_000)], [f"c{i}" for i in range(500, 1_500)]):
        await store.apply(commit := step_of(checkpoint, names, RNG, messages=[(b"1", b"one")], hours=(3, 5)))
        checkpoint = commit.checkpoint
    other = step_of(None, ["elsewhere"], RNG, partition=1)
    await store.apply(other)
    await backend.owner().reset(0)
    assert await state_of(store) == EMPTY
    assert (await state_of(store, 1)).records.keys() == {"elsewhere"}
    with pytest.raises(Fenced):
        await store.apply(step_of(checkpoint, ["c1"], RNG))
    await store.apply(step_of(None, ["again"], RNG))


async def test_no_more_customers_are_loaded_at_once_than_fit_in_a_step(backend: Backend) -> None:
    with pytest.raises(ValueError, match="at most"):
        await backend.owner().load(0, ["c"] * (CUSTOMERS_MAX + 1))


async def test_many_commits_stand_or_fall_each_by_itself(backend: Backend) -> None:
    """One is fenced, one is malformed, one is applied, in whatever order; and each answer stands in its place."""
    store = backend.owner()
    begun = [step_of(None, ["a"], RNG, partition=partition) for partition in range(PARTITIONS)]
    assert await store.apply_many(begun) == [None] * PARTITIONS
    after = [commit.checkpoint for commit in begun]
    good, fenced, malformed = (
        step_of(after[0], ["a", "b"], RNG, partition=0, messages=[(b"1", b"one")]),
        step_of(next_head(after[1]), ["b"], RNG, partition=1),
        step_of(after[2], ["b", "b"], RNG, partition=2),
    )
    outcomes = await store.apply_many([malformed, fenced, good])
    assert [type(outcome) for outcome in outcomes] == [ValueError, Fenced, type(None)]
    first, second, third = await bare_state_of(store)
    assert [state.checkpoint for state in (first, second, third)] == [good.checkpoint, *after[1:]]
    assert [[*state.records] for state in (first, second, third)] == [["a", "b"], ["a"], ["a"]]
    assert first.outbox == good.outbox
    assert await store.apply_many([]) == []


async def test_many_loads_are_answered_in_the_order_asked(backend: Backend) -> None:
    store = backend.owner()
    commits = [step_of(None, [f"c{i}" for i in range(50)], RNG, partition=p) for p in range(PARTITIONS)]
    await store.apply_many(commits)
    too_many = ["c"] * (CUSTOMERS_MAX + 1)
    requests = [(2, ["c3", "nobody", "c1"]), (0, too_many), (1, []), (0, ["c7"]), (2, ["c9"])]
    found = await store.load_many(requests)
    assert isinstance(found[1], ValueError)
    for (partition, customers), answer in zip(requests, found, strict=True):
        if isinstance(answer, Exception):
            continue
        rows, there = await store.load(partition, customers)
        assert answer[0].tobytes() == rows.tobytes()
        assert answer[1].tolist() == there.tolist()
        assert answer[0].flags.writeable


async def test_answers_can_be_awaited_one_by_one_or_given_up(backend: Backend) -> None:
    store = backend.owner()
    one, two, three = store.apply_each([step_of(None, ["a"], RNG, partition=p) for p in range(PARTITIONS)])
    two.cancel()
    await asyncio.gather(one, three)
    (loaded,) = store.load_each([(2, ["a"])])
    assert (await loaded)[1].all()
    for answer in store.load_each([(p, ["a"]) for p in range(PARTITIONS)]):
        answer.cancel()
    assert (await store.load(0, ["a"]))[1].all()


async def test_random_steps_leave_the_same_state_everywhere(
    backend: Backend, rng: np.random.Generator
) -> None:
    """Beside the memory store, step by step; now and then an owner expects the wrong checkpoint, or resets."""
    store, reference = backend.owner(), MemoryStore(DTYPE, PARTITIONS, at_risk_max=AT_RISK_MAX)
    customers = [*ODD_CUSTOMERS, *(f"c{i}" for i in range(100))]
    checkpoints: list[Checkpoint | None] = [None] * PARTITIONS
    for turn in range(120):
        partition = int(rng.integers(PARTITIONS))
        checkpoint = checkpoints[partition]
        commit = random_step(checkpoint, rng, partition=partition, customers=customers)
        kind = rng.random()
        if kind < 0.1:
            stale = replace(
                commit,
                expected=None if checkpoint else next_head(next_head(None)),
                checkpoint=commit.checkpoint._replace(sequence=9999),
                outbox=[entry._replace(sequence=9999) for entry in commit.outbox],
            )
            for each in (store, reference):
                with pytest.raises(Fenced):
                    await each.apply(stale)
        elif kind < 0.13:
            await asyncio.gather(store.reset(partition), reference.reset(partition))
            checkpoints[partition] = None
        else:
            await asyncio.gather(store.apply(commit), reference.apply(commit))
            checkpoints[partition] = commit.checkpoint
        if turn % 10 == 0:
            assert await store.at_risk(0.3, 7) == await reference.at_risk(0.3, 7)
            assert await bare_state_of(store) == await bare_state_of(reference)
        asked = [customers[i] for i in rng.integers(0, len(customers), 20)]
        for (rows, found), (rows_there, found_there) in [
            (await store.load(partition, asked), await reference.load(partition, asked))
        ]:
            assert rows.tobytes() == rows_there.tobytes()
            assert found.tolist() == found_there.tolist()
    assert await bare_state_of(store) == await bare_state_of(reference)
