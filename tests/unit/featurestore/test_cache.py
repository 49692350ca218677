"""The cache of hot records: what it gives out is as of one head, and it never holds more than it may."""

import asyncio
from collections import OrderedDict

import numpy as np
import pytest

from ebbtide.featurestore.errors import Fenced
from ebbtide.featurestore.store.cache import SWEEP_SHARE, Cache, load_through
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX
from ebbtide.featurestore.store.memory import MemoryStore
from tests.support.seams.stores import DTYPE, PARTITIONS, next_head, random_step, step_of

RNG = np.random.default_rng(0)
LEAST = CUSTOMERS_MAX * DTYPE.itemsize


def test_what_was_put_is_given_out_for_its_head() -> None:
    cache = Cache(DTYPE, LEAST)
    commit = step_of(None, ["a", "b"], RNG)
    cache.put(commit)
    rows, found = cache.get(0, commit.checkpoint, ["b", "nobody", "a"])
    assert found.tolist() == [True, False, True]
    assert rows.dtype == DTYPE
    assert rows.tobytes() == commit.rows[1].tobytes() + bytes(DTYPE.itemsize) + commit.rows[0].tobytes()
    rows["count"] = -1  # the caller's own
    assert cache.get(0, commit.checkpoint, ["a"])[0].tobytes() == commit.rows[0].tobytes()
    assert len(cache) == 2


def test_nothing_is_given_out_for_another_head_or_partition() -> None:
    """A partition that was lost and came back elsewhere must be read anew."""
    cache = Cache(DTYPE, LEAST)
    commit = step_of(None, ["a"], RNG)
    cache.put(commit)
    for partition, checkpoint in [(0, None), (0, next_head(commit.checkpoint)), (1, commit.checkpoint)]:
        rows, found = cache.get(partition, checkpoint, ["a"])
        assert not found.any()
        assert rows.tobytes() == bytes(DTYPE.itemsize)


def test_a_step_from_the_known_head_keeps_what_is_known() -> None:
    cache = Cache(DTYPE, LEAST)
    first = step_of(None, ["a", "b", "c"], RNG)
    second = step_of(first.checkpoint, ["b", "d"], RNG, forgotten=["c", "nobody"])
    cache.put(first)
    cache.put(second)
    rows, found = cache.get(0, second.checkpoint, ["a", "b", "c", "d"])
    assert found.tolist() == [True, True, False, True]
    assert rows[0] == first.rows[0]
    assert rows[1] == second.rows[0]
    assert rows[3] == second.rows[1]
    assert len(cache) == 3


def test_a_step_from_another_head_drops_what_was_known() -> None:
    cache = Cache(DTYPE, LEAST)
    cache.put(step_of(None, ["a"], RNG))
    jump = step_of(Checkpoint(50, 7, 0, "l", 1), ["b"], RNG)
    cache.put(jump)
    assert cache.get(0, jump.checkpoint, ["a", "b"])[1].tolist() == [False, True]
    assert len(cache) == 1


def test_clear_is_for_one_partition() -> None:
    cache = Cache(DTYPE, LEAST)
    steps = [step_of(None, ["a", "b"], RNG, partition=partition) for partition in range(2)]
    for commit in steps:
        cache.put(commit)
    cache.clear(0)
    cache.clear(7)
    assert not cache.get(0, steps[0].checkpoint, ["a", "b"])[1].any()
    assert cache.get(1, steps[1].checkpoint, ["a", "b"])[1].all()
    assert len(cache) == 2


def test_who_is_forgotten_is_gone_from_memory() -> None:
    cache = Cache(DTYPE, LEAST)
    rows = np.zeros(1, DTYPE)
    rows["raw"] = np.frombuffer(b"a secret of jane!", np.uint8)
    first = step_of(None, ["jane"], RNG, rows=rows)
    cache.put(first)
    assert b"a secret of jane!" in cache._records.tobytes()
    cache.put(step_of(first.checkpoint, [], RNG, forgotten=["jane"]))
    assert b"a secret of jane!" not in cache._records.tobytes()
    assert "jane" not in cache._customer_of.tolist()


def test_the_longest_untouched_make_room() -> None:
    """In sweeps: a newcomer too many costs a sixteenth of the slots at once."""
    cache = Cache(DTYPE, 2 * LEAST)
    names = [f"c{i}" for i in range(2 * CUSTOMERS_MAX)]
    first = step_of(None, names[:CUSTOMERS_MAX], RNG)
    second = step_of(first.checkpoint, names[CUSTOMERS_MAX:], RNG)
    cache.put(first)
    cache.put(second)
    assert len(cache) == cache.rows_max
    kept = names[:100]
    assert cache.get(0, second.checkpoint, kept)[1].all()  # touched: no longer the oldest
    third = step_of(second.checkpoint, ["newcomer"], RNG)
    cache.put(third)
    assert len(cache) == cache.rows_max - cache.rows_max // SWEEP_SHARE + 1
    assert cache.get(0, third.checkpoint, [*kept, *names[CUSTOMERS_MAX:], "newcomer"])[1].all()
    assert (
        ~cache.get(0, third.checkpoint, names[100:CUSTOMERS_MAX])[1]
    ).sum() == cache.rows_max // SWEEP_SHARE


def test_the_smallest_cache_takes_the_largest_steps() -> None:
    cache = Cache(DTYPE, LEAST)
    checkpoint = None
    for turn in range(5):
        commit = step_of(
            checkpoint, [f"{turn}-{i}" for i in range(CUSTOMERS_MAX - turn)], RNG, partition=turn % 2
        )
        cache.put(commit)
        rows, found = cache.get(turn % 2, commit.checkpoint, commit.customers)
        assert found.all()
        assert rows.tobytes() == commit.rows.tobytes()
        assert len(cache) <= cache.rows_max == CUSTOMERS_MAX


def test_a_cache_of_nothing_is_off() -> None:
    cache = Cache(DTYPE, 0)
    commit = step_of(None, ["a"], RNG)
    cache.put(commit)
    assert not cache.get(0, commit.checkpoint, ["a"])[1].any()
    cache.clear(0)
    with pytest.raises(ValueError, match="at least"):
        Cache(DTYPE, LEAST - 1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_steps_agree_with_a_plain_lru(seed: int) -> None:
    """Beside an ordered dictionary: what the cache has is right, and it has at least the most recently touched."""
    rng = np.random.default_rng(seed)
    cache = Cache(DTYPE, LEAST)
    plain: OrderedDict[tuple[int, str], bytes] = OrderedDict()
    checkpoints: list[Checkpoint | None] = [None] * PARTITIONS
    names = [f"c{i}" for i in range(900)]
    for turn in range(300):
        partition = int(rng.integers(PARTITIONS))
        if rng.random() < 0.03:
            cache.clear(partition)
            checkpoints[partition] = None
            for key in [key for key in plain if key[0] == partition]:
                del plain[key]
            continue
        some = [names[i] for i in rng.integers(0, 900, 300)]
        commit = random_step(checkpoints[partition], rng, partition=partition, customers=some)
        if len({*commit.customers, *commit.forgotten}) < len(commit.customers) + len(commit.forgotten):
            continue  # drawn twice: no valid step
        cache.put(commit)
        checkpoints[partition] = commit.checkpoint
        for name in commit.forgotten:
            plain.pop((partition, name), None)
        for name, row in zip(commit.customers, commit.rows, strict=True):
            plain[partition, name] = row.tobytes()
            plain.move_to_end((partition, name))
        asked = list(dict.fromkeys(names[i] for i in rng.integers(0, 900, 30)))
        rows, found = cache.get(partition, checkpoints[partition], asked)
        for name, row, there in zip(asked, rows, found.tolist(), strict=True):
            if there:
                assert plain[partition, name] == row.tobytes()
                plain.move_to_end((partition, name))
        sure = cache.rows_max - cache.rows_max // SWEEP_SHARE - len(commit.customers)
        recent = [name for part, name in list(plain)[-sure:] if part == partition]
        if turn % 20 == 0:
            assert cache.get(partition, checkpoints[partition], recent)[1].all()
            for name in recent:
                plain.move_to_end((partition, name))
        assert len(cache) <= cache.rows_max


async def test_load_through_asks_the_store_for_the_rest() -> None:
    store, cache = MemoryStore(DTYPE, 1), Cache(DTYPE, LEAST)
    first = step_of(None, ["a", "b"], RNG)
    await store.apply(first)
    second = step_of(first.checkpoint, ["b", "c"], RNG)
    await store.apply(second)
    cache.put(second)
    rows, found = await load_through(cache, store, 0, second.checkpoint, ["a", "c", "nobody", "b"])
    assert found.tolist() == [True, True, False, True]
    expected = [first.rows[0], second.rows[1], np.zeros(1, DTYPE)[0], second.rows[0]]
    assert rows.tobytes() == b"".join(row.tobytes() for row in expected)


async def test_a_stale_cache_cannot_win() -> None:
    """The owner that was overtaken folds on stale rows, and is fenced: what it made of them is not written."""
    store = MemoryStore(DTYPE, 1)
    caches = [Cache(DTYPE, LEAST), Cache(DTYPE, LEAST)]
    checkpoint: Checkpoint | None = None

    async def add_one(cache: Cache, checkpoint: Checkpoint | None) -> Checkpoint:
        rows, _ = await load_through(cache, store, 0, checkpoint, ["a"])
        rows["count"] += 1
        commit = step_of(checkpoint, ["a"], RNG, rows=rows)
        await store.apply(commit)
        cache.put(commit)
        return commit.checkpoint

    first = await add_one(caches[0], checkpoint)
    second = await add_one(caches[1], first)
    with pytest.raises(Fenced):
        await add_one(caches[0], first)
    await asyncio.sleep(0)
    await add_one(caches[0], second)  # opened again at the stored checkpoint: its old rows are not given out
    rows, _ = await store.load(0, ["a"])
    assert rows["count"].tolist() == [3]
