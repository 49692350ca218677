"""What every store promises, held against each of them: dictionaries, Valkey and Debian's Redis."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from ebbtide.featurestore.errors import Fenced, LayoutError, StoreUnavailable
from ebbtide.featurestore.store.checkpoint import Checkpoint, Hour, check_checkpoint, draw_nonce
from ebbtide.featurestore.store.commit import (
    COMMIT_BYTES_MAX,
    CUSTOMERS_MAX,
    DUE_AT_ALL_MS,
    DUE_MS_MAX,
    Commit,
    OutboxEntry,
)
from ebbtide.featurestore.store.memory import MemoryStore
from tests.support.seams.stores import (
    AT_RISK_MAX,
    DTYPE,
    EMPTY,
    LAYOUT,
    PARTITIONS,
    Backend,
    bare_state_of,
    next_head,
    random_step,
    rows_of,
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


async def test_the_fence_holds(backend: Backend) -> None:
    """Whatever else than the stored checkpoint is expected, nothing at all is written."""
    store = backend.owner()
    with pytest.raises(Fenced):
        await store.apply(step_of(next_head(None), ["a"], RNG))
    assert await state_of(store) == EMPTY

    first = step_of(None, ["a"], RNG, messages=[(b"1", b"one")])
    await store.apply(first)
    second = step_of(first.checkpoint, ["a"], RNG)
    await store.apply(second)
    before = await state_of(store)
    wrong: list[Checkpoint | None] = [
        None,
        first.checkpoint,
        second.checkpoint._replace(offset=second.checkpoint.offset + 1),
        second.checkpoint._replace(timer_ms=1),
        second.checkpoint._replace(layout="another"),
        second.checkpoint._replace(partitions=PARTITIONS + 1),
        second.checkpoint._replace(timer_cursor=(1, "a")),
        second.checkpoint._replace(topic_id="another"),
        second.checkpoint._replace(leader_epoch=1),
        second.checkpoint._replace(nonce=draw_nonce()),
        second.checkpoint._replace(hour=Hour(1, 1)),
        second.checkpoint._replace(extra=(("later", "1"),)),
    ]
    for expected in wrong:
        late = replace(
            step_of(
                second.checkpoint,
                ["a", "new"],
                RNG,
                forgotten=["b"],
                messages=[(b"2", b"two")],
                acked=[b"1"],
                hours=(7,),
            ),
            expected=expected,
        )
        with pytest.raises(Fenced):
            await store.apply(late)
        assert await state_of(store) == before


async def test_equal_numbers_of_two_histories_do_not_pass_the_fence(backend: Backend) -> None:
    """
    one  ──commit 1──commit 2 (lost by a failover)────────────────▶ commit 3: Fenced
    two                        └─▶ its own commit 2, same offset, same sequence
    """
    store = backend.owner()
    first = step_of(None, ["a"], RNG)
    await store.apply(first)
    one, two = (
        replace(commit, checkpoint=commit.checkpoint._replace(nonce=draw_nonce()))
        for commit in (step_of(first.checkpoint, ["a"], RNG), step_of(first.checkpoint, ["a"], RNG))
    )
    assert one.checkpoint[:3] == two.checkpoint[:3]
    await store.apply(two)  # one's was lost
    before = await state_of(store)
    with pytest.raises(Fenced):
        await store.apply(step_of(one.checkpoint, ["a"], RNG))
    assert await state_of(store) == before
    await store.apply(step_of(two.checkpoint, ["a"], RNG))


async def test_a_later_releases_keys_are_kept(backend: Backend) -> None:
    """What this release does not know stands in the checkpoint again after its own commits."""
    store = backend.owner()
    begun = Checkpoint.parse(
        f"offset=3 sequence=1 timer_ms=0 layout={LAYOUT} partitions=3 later=x later_still="
    )
    await store.apply(replace(step_of(None, ["a"], RNG), checkpoint=begun))
    found = await store.checkpoint(0)
    assert found == begun
    await store.apply(step_of(found, ["a"], RNG))
    assert (await store.checkpoint(0)) == begun._replace(offset=4, sequence=2)


async def test_a_step_applied_twice_counts_once(backend: Backend) -> None:
    """As after a timeout, when nobody knows whether the first attempt arrived."""
    store = backend.owner()
    commit = step_of(None, ["a"], RNG)
    await store.apply(commit)
    before = await state_of(store)
    with pytest.raises(Fenced):
        await store.apply(commit)
    assert await state_of(store) == before


async def test_of_two_owners_exactly_one_wins_each_step(backend: Backend, rng: np.random.Generator) -> None:
    """Both apply at the same moment; the state is the winner's, without a trace of the loser.

    one ──checkpoint──▶ step A ──apply──▶ done    or Fenced
    two ──checkpoint──▶ step B ──apply──▶ Fenced  or done
    """
    owners = [backend.owner(), backend.owner()]
    checkpoint: Checkpoint | None = None
    for turn in range(40):
        before = await state_of(owners[0])
        steps = [
            step_of(
                checkpoint,
                [f"{who}-{turn}", "both"],
                rng,
                messages=[(f"{who}-{turn}".encode(), b"x")],
                acked=[b"0"],
            )
            for who in ("one", "two")
        ]
        order = rng.permutation(2).tolist()
        outcome = await asyncio.gather(*(owners[i].apply(steps[i]) for i in order), return_exceptions=True)
        assert sorted(type(result).__name__ for result in outcome) == ["Fenced", "NoneType"]
        winner = steps[order[outcome.index(None)]]
        after = await state_of(owners[1])
        assert after.checkpoint == winner.checkpoint
        written = {name: row.tobytes() for name, row in zip(winner.customers, winner.rows, strict=True)}
        assert after.records == dict(sorted({**before.records, **written}.items()))
        assert after.outbox == [*before.outbox, *winner.outbox]
        checkpoint = winner.checkpoint


async def test_two_owners_that_never_talk_lose_no_update(backend: Backend, rng: np.random.Generator) -> None:
    """Each reads, adds one, waits a while and applies, at its own pace. What counts is exactly what was not fenced."""
    applied: list[Commit] = []
    fenced = 0

    async def live(name: str) -> None:
        nonlocal fenced
        store = backend.owner()
        while len(applied) < 60:
            checkpoint = await store.checkpoint(0)
            customers = [f"c{i}" for i in np.unique(rng.integers(0, 10, 4))]
            rows, _ = await store.load(0, customers)
            rows["count"] += 1
            commit = step_of(
                checkpoint, customers, rng, rows=rows, messages=[(f"{name}{len(applied)}".encode(), b"")]
            )
            for _ in range(int(rng.integers(0, 4))):
                await asyncio.sleep(0)
            try:
                await store.apply(commit)
            except Fenced:
                fenced += 1
            else:
                applied.append(commit)

    await asyncio.gather(live("one"), live("two"))
    assert fenced, "they never met: this test shows nothing"
    checkpoints = [
        commit.checkpoint for commit in sorted(applied, key=lambda commit: commit.checkpoint.sequence)
    ]
    assert [checkpoint.sequence for checkpoint in checkpoints] == list(range(1, len(applied) + 1))
    state = await state_of(backend.owner())
    counts = {name: int(np.frombuffer(row, DTYPE)["count"][0]) for name, row in state.records.items()}
    customers = [name for commit in applied for name in commit.customers]
    assert counts == {name: customers.count(name) for name in customers}
    assert state.outbox == [
        entry
        for commit in sorted(applied, key=lambda commit: commit.checkpoint.sequence)
        for entry in commit.outbox
    ]
    assert state.checkpoint == checkpoints[-1]


async def test_a_refused_step_changes_nothing(backend: Backend) -> None:
    """No memory left: it can be retried as it is when there is some again."""
    store = backend.owner()
    first = step_of(None, ["a", "b"], RNG, messages=[(b"1", b"one")])
    await store.apply(first)
    before = await state_of(store)
    second = step_of(
        first.checkpoint, ["a", "c"], RNG, forgotten=["b"], messages=[(b"2", b"two")], acked=[b"1"]
    )
    async with backend.full():
        with pytest.raises(StoreUnavailable):
            await store.apply(second)
        assert await state_of(store) == before
    await store.apply(second)
    assert (await state_of(store)).records.keys() == {"a", "c"}


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


async def test_find_names_every_partition_that_holds_somebody(backend: Backend) -> None:
    store = backend.owner()
    for partition in (2, 1):
        await store.apply(step_of(None, ["a", f"only-{partition}"], RNG, partition=partition))
    assert [partition for partition, _ in await store.find("a")] == [1, 2]
    assert [partition for partition, _ in await store.find("only-2")] == [2]


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


@pytest.mark.parametrize(
    ("problem", "wrong"),
    [
        ("at most", {"customers": [f"c{i}" for i in range(CUSTOMERS_MAX + 1)]}),
        ("at most", {"forgotten": [f"f{i}" for i in range(CUSTOMERS_MAX)]}),
        ("twice", {"customers": ["a", "a"]}),
        ("twice", {"forgotten": ["a"]}),
        ("no valid Unicode", {"forgotten": ["\ud83e"]}),
        ("rows of shape", {"rows": rows_of(2, RNG)}),
        ("another layout", {"rows": np.zeros(1, "<i8")}),
        ("due times of shape", {"due": np.zeros(2, np.int64)}),
        ("not int64", {"due": np.array([np.nan])}),
        ("out of range", {"due": np.array([-1])}),
        ("out of range", {"due": np.array([DUE_MS_MAX + 1])}),
        ("bytes, at most", {"outbox": [OutboxEntry(b"1", 2, b"", bytes(COMMIT_BYTES_MAX))]}),
        ("of another sequence", {"outbox": [OutboxEntry(b"1", 1, b"", b"")]}),
        ("no counts", {"hours": ()}),
        ("no counts", {"hours": (3, -1)}),
        ("sequence must grow", {"checkpoint": Checkpoint(5, 1, 0, LAYOUT, PARTITIONS)}),
        ("nobody could read", {"checkpoint": Checkpoint(5, 9, 0, "two words", PARTITIONS)}),
        ("nobody could read", {"checkpoint": Checkpoint(-1, 9, 0, LAYOUT, PARTITIONS)}),
    ],
)
async def test_a_malformed_step_is_its_makers_fault(
    backend: Backend, problem: str, wrong: dict[str, object]
) -> None:
    store = backend.owner()
    first = step_of(None, ["a"], RNG)
    await store.apply(first)
    before = await state_of(store)
    good = step_of(first.checkpoint, ["a"], RNG)
    columns = {name: getattr(good, name) for name in Commit.__dataclass_fields__}
    if "customers" in wrong:
        n = len(wrong["customers"])  # type: ignore[arg-type]  # always a list under this name
        columns |= {"rows": rows_of(n, RNG), "due": np.zeros(n, np.int64)}
    with pytest.raises(ValueError, match=problem):
        await store.apply(Commit(**{**columns, **wrong}))
    assert await state_of(store) == before


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


async def test_a_full_store_refuses_each_of_many_commits(backend: Backend) -> None:
    store = backend.owner()
    commits = [step_of(None, ["a"], RNG, partition=p) for p in range(PARTITIONS)]
    async with backend.full():
        assert [type(each) for each in await store.apply_many(commits)] == [StoreUnavailable] * PARTITIONS
    assert await bare_state_of(store) == [EMPTY] * PARTITIONS
    assert await store.apply_many(commits) == [None] * PARTITIONS


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


async def test_a_risk_that_is_no_probability_is_refused(backend: Backend) -> None:
    for wrong in (np.array([1.5], np.float32), np.zeros(2, np.float32)):
        with pytest.raises(ValueError, match="risk"):
            await backend.owner().apply(step_of(None, ["a"], RNG, at_risk=wrong))


def test_a_head_reads_back_as_it_was_written() -> None:
    checkpoint = Checkpoint(123, 45, 1_700_000_000_000, LAYOUT, 8)
    assert (
        checkpoint.text()
        == "offset=123 sequence=45 timer_ms=1700000000000 layout=0123456789abcdef partitions=8"
    )
    assert Checkpoint.parse(checkpoint.text()) == checkpoint
    for text in (
        "",
        "resetting",
        "offset=1",
        checkpoint.text() + " ",
        checkpoint.text() + "\n",
        checkpoint.text().replace("123", "١٢٣"),
    ):
        with pytest.raises(LayoutError, match="ebbtide rebuild"):
            Checkpoint.parse(text)


def test_a_foreign_head_is_refused() -> None:
    checkpoint = Checkpoint(1, 1, 0, LAYOUT, 8)
    check_checkpoint(None, LAYOUT, 8)
    check_checkpoint(checkpoint, LAYOUT, 8)
    with pytest.raises(LayoutError, match="ebbtide rebuild"):
        check_checkpoint(checkpoint, "fedcba9876543210", 8)
    with pytest.raises(LayoutError, match="8 partitions, this one has 12"):
        check_checkpoint(checkpoint, LAYOUT, 12)
