"""The fence of every store: of two who move a partition one wins, and who is refused changes nothing."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from ebbtide.featurestore.errors import Fenced, LayoutError, StoreUnavailable
from ebbtide.featurestore.store.checkpoint import Checkpoint, Hour, check_checkpoint, draw_nonce
from ebbtide.featurestore.store.commit import (
    COMMIT_BYTES_MAX,
    CUSTOMERS_MAX,
    DUE_MS_MAX,
    Commit,
    OutboxEntry,
)
from tests.support.seams.stores import (
    DTYPE,
    EMPTY,
    LAYOUT,
    PARTITIONS,
    Backend,
    bare_state_of,
    next_head,
    rows_of,
    state_of,
    step_of,
)

RNG = np.random.default_rng(0)


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


async def test_a_full_store_refuses_each_of_many_commits(backend: Backend) -> None:
    store = backend.owner()
    commits = [step_of(None, ["a"], RNG, partition=p) for p in range(PARTITIONS)]
    async with backend.full():
        assert [type(each) for each in await store.apply_many(commits)] == [StoreUnavailable] * PARTITIONS
    assert await bare_state_of(store) == [EMPTY] * PARTITIONS
    assert await store.apply_many(commits) == [None] * PARTITIONS


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
