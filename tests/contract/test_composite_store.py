"""Composite customers in every store: who begins with a first part is found, by the same commits that write them."""

from collections.abc import Sequence

import numpy as np
import pytest
from redis.asyncio import Redis

from ebbtide.featurestore.customer import first_of
from ebbtide.featurestore.errors import Fenced, StoreMisconfigured
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.store.redis.names import names_of
from ebbtide.featurestore.store.redis.store import RedisStore
from tests.support.seams.stores import DTYPE, PARTITIONS, Backend, random_step, state_of, step_of

RNG = np.random.default_rng(0)
FIRSTS = ["ann", "an", "ann.", "ann0", "a~1b", "~0", "é", "客", " ", "a\xff"]
CUSTOMERS = [f"{first}/{rest}" for first in FIRSTS for rest in ("math", "é", "~1", "m~0")]


async def of_first(store: Store, first: str, partition: int = 0, customers_max: int = 1_000) -> list[str]:
    (found,) = store.of_first_each([(partition, first, customers_max)])
    return sorted(await found)


def beginning_with(first: str, customers: Sequence[str]) -> list[str]:
    """By comparing parts, not texts."""
    return sorted(name for name in customers if name.split("/")[0] == first)


async def test_who_begins_with_a_first_part_is_found(backend: Backend) -> None:
    """And nobody else: not whose first part goes on, is cut short, or is in another partition."""
    store = backend.composite()
    await store.apply(step_of(None, CUSTOMERS, RNG))
    await store.apply(step_of(None, ["ann/elsewhere"], RNG, partition=1))
    for first in [*FIRSTS, "nobody", "math"]:
        assert await of_first(backend.composite(), first) == beginning_with(first, CUSTOMERS)
    assert await of_first(store, "ann", partition=1) == ["ann/elsewhere"]
    assert await of_first(store, "ann", partition=2) == []
    some = await of_first(store, "ann", customers_max=3)
    assert len(some) == 3 and set(some) <= set(CUSTOMERS)
    asked = store.of_first_each([(0, first, 10) for first in FIRSTS])
    assert [sorted(await each) for each in asked] == [beginning_with(f, CUSTOMERS) for f in FIRSTS]


async def test_who_is_forgotten_is_found_no_more(backend: Backend) -> None:
    store = backend.composite()
    first = step_of(None, CUSTOMERS, RNG)
    await store.apply(first)
    second = step_of(
        first.checkpoint, ["ann/new"], RNG, forgotten=[name for name in CUSTOMERS if first_of(name) == "ann"]
    )
    await store.apply(second)
    assert await of_first(store, "ann") == ["ann/new"]
    with pytest.raises(Fenced):
        await store.apply(step_of(first.checkpoint, ["ann/fenced"], RNG, forgotten=["ann/new"]))
    assert await of_first(store, "ann") == ["ann/new"]
    await store.apply(step_of(second.checkpoint, [], RNG, forgotten=["ann/new"]))
    assert await of_first(store, "ann") == []
    assert await of_first(store, "an") == beginning_with("an", CUSTOMERS)
    await store.reset(0)
    await store.apply(step_of(None, ["é/é"], RNG))
    assert await of_first(store, "é") == ["é/é"]


async def test_random_steps_leave_whom_the_records_name(backend: Backend, rng: np.random.Generator) -> None:
    """What is found follows from the records, and the records are as they were without it."""
    store = backend.composite()
    at: list[Checkpoint | None] = [None] * PARTITIONS
    for _ in range(40):
        partition = int(rng.integers(PARTITIONS))
        commit = random_step(at[partition], rng, partition=partition, customers=CUSTOMERS)
        await store.apply(commit)
        at[partition] = commit.checkpoint
    for partition in range(PARTITIONS):
        there = list((await state_of(store, partition)).records)
        for first in FIRSTS:
            assert await of_first(store, first, partition) == beginning_with(first, there)


@pytest.mark.redis
async def test_hidden_parts_stand_nowhere_in_redis(valkey_url: str, unique_name: str) -> None:
    names = names_of("k" * 32, composite=True)
    store = RedisStore(valkey_url, DTYPE, "clicks", 1, prefix=f"{unique_name}:", names=names)
    commit = step_of(None, ["learner-ann/course-math", "learner-ann/course-art"], RNG)
    await store.apply(commit)
    async with Redis.from_url(valkey_url) as admin:
        keys = [key async for key in admin.scan_iter(f"{unique_name}:*")]
        members = [
            name
            for key in keys
            if await admin.type(key) == b"zset"
            for name in await admin.zrange(key, 0, -1)
        ]
    assert len(keys) == 5 and len(members) == 4
    assert not [text for text in [*keys, *members] if b"learner" in text or b"course" in text]
    assert await of_first(store, "learner-ann") == ["learner-ann/course-art", "learner-ann/course-math"]
    await store.close()


@pytest.mark.redis
async def test_a_foreign_index_is_seen_before_a_write(valkey_url: str, unique_name: str) -> None:
    names = names_of(None, composite=True)
    store = RedisStore(valkey_url, DTYPE, "clicks", 1, prefix=f"{unique_name}:", names=names)
    async with Redis.from_url(valkey_url) as admin:
        await admin.set(f"{unique_name}:clicks:{{p0}}:parts", "theirs")
        with pytest.raises(StoreMisconfigured, match="FOREIGN"):
            await store.apply(step_of(None, ["ann/math"], RNG))
        assert len([key async for key in admin.scan_iter(f"{unique_name}:*")]) == 1
    await store.close()


@pytest.mark.redis
async def test_other_specs_keep_no_index_by_part(valkey_url: str, unique_name: str) -> None:
    store = RedisStore(valkey_url, DTYPE, "clicks", 1, prefix=f"{unique_name}:")
    await store.apply(step_of(None, ["ann/math"], RNG))
    async with Redis.from_url(valkey_url) as admin:
        keys = [key async for key in admin.scan_iter(f"{unique_name}:*")]
    assert not [key for key in keys if key.endswith(b":parts")]
    with pytest.raises(ValueError, match="of one part"):
        await store.of_first_each([(0, "ann", 1)])[0]
    await store.close()
