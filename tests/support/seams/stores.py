"""Stores to hold against the contract: three backends, a way to see all of a partition, and steps by the dozen.

A backend is where state lives; `owner()` opens one more store on that same state, as a second worker would.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from redis.asyncio import Redis

from ebbtide.featurestore.record.layout import Rows
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX, Commit, HourCounts, OutboxEntry
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.store.redis.names import names_of
from ebbtide.featurestore.store.redis.store import RedisStore

# Not the layout of any spec: a store must not care. 49 bytes, so that nothing is aligned by luck.
DTYPE = np.dtype([("count", "<i8"), ("sums", "<f8", (3,)), ("raw", "u1", (17,))])
PARTITIONS = 3
AT_RISK_MAX = 20
"""So few that random steps fill the list."""
LAYOUT = "0123456789abcdef"


@dataclass(frozen=True)
class Backend:
    """`owner` opens a store on the shared state, `composite` one for composite customers. Inside `full`, no memory is
    left there for another step."""

    owner: Callable[[], Store]
    composite: Callable[[], Store]
    full: Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def memory_backend() -> AsyncIterator[Backend]:
    store = MemoryStore(DTYPE, PARTITIONS, at_risk_max=AT_RISK_MAX)

    @asynccontextmanager
    async def full() -> AsyncIterator[None]:
        store.bytes_max, before = 0, store.bytes_max
        try:
            yield
        finally:
            store.bytes_max = before

    yield Backend(lambda: store, lambda: store, full)


@asynccontextmanager
async def redis_backend(url: str, prefix: str, secret: str | None = None) -> AsyncIterator[Backend]:
    opened: list[RedisStore] = []

    def owner(composite: bool = False) -> Store:
        opened.append(
            RedisStore(
                url,
                DTYPE,
                "clicks",
                PARTITIONS,
                prefix=prefix,
                names=names_of(secret, composite=composite),
                at_risk_max=AT_RISK_MAX,
            )
        )
        return opened[-1]

    @asynccontextmanager
    async def full() -> AsyncIterator[None]:
        async with Redis.from_url(url) as admin:
            await admin.config_set("maxmemory", 1)
            try:
                yield
            finally:
                await admin.config_set("maxmemory", 0)

    try:
        yield Backend(owner, partial(owner, True), full)
    finally:
        for store in opened:
            await store.close()


class State(NamedTuple):
    """Everything that a store shows of one partition, in an order of its own, so that `==` compares states."""

    checkpoint: Checkpoint | None
    records: dict[str, bytes]
    due: list[tuple[str, int]]
    outbox: list[OutboxEntry]
    risk: dict[str, float]
    hours: HourCounts = ()


EMPTY = State(None, {}, [], [], {})


async def state_of(store: Store, partition: int = 0) -> State:
    records: dict[str, bytes] = {}
    async for customers, rows in store.scan(partition):
        assert len(customers) == len(rows) <= CUSTOMERS_MAX
        assert not records.keys() & set(customers), "a customer came twice"
        records |= {name: row.tobytes() for name, row in zip(customers, rows, strict=True)}
    names, times = await store.due(partition, 2**53, 10**6)
    due = list(zip(names, times.tolist(), strict=True))
    assert {name for name, _ in due} == set(records), "every record has a due time, and nobody else has"
    risk = {name: p for p, home, name in (await store.at_risk(0.0, 10**6)).entries if home == partition}
    assert set(risk) <= set(records), "who is at risk has a record"
    return State(
        await store.checkpoint(partition),
        dict(sorted(records.items())),
        due,
        await store.outbox(partition),
        risk,
        await store.hours(partition),
    )


async def bare_state_of(store: Store) -> list[State]:
    return [await state_of(store, partition) for partition in range(PARTITIONS)]


def rows_of(n: int, rng: np.random.Generator) -> Rows:
    """n records of random bytes."""
    return np.frombuffer(bytearray(rng.bytes(n * DTYPE.itemsize)), DTYPE)


def next_head(checkpoint: Checkpoint | None, *, offset: int = 1) -> Checkpoint:
    """The checkpoint one step on."""
    if checkpoint is None:
        return Checkpoint(offset, 1, 0, LAYOUT, PARTITIONS)
    return checkpoint._replace(offset=checkpoint.offset + offset, sequence=checkpoint.sequence + 1)


def step_of(
    checkpoint: Checkpoint | None,
    customers: Sequence[str],
    rng: np.random.Generator,
    *,
    partition: int = 0,
    messages: Sequence[tuple[bytes, bytes]] = (),
    **more: Any,
) -> Commit:
    """A commit on from `checkpoint` that writes random records for `customers`, and (id, value) of `messages` into the
    outbox; `more` are the other fields of a Commit."""
    after = next_head(checkpoint)
    columns = {
        "rows": rows_of(len(customers), rng),
        "due": rng.integers(0, 2_000_000_000_000, len(customers)),
        "outbox": [
            OutboxEntry(identity, after.sequence, b"key of " + identity, value)
            for at, (identity, value) in enumerate(messages)
        ],
    }
    return Commit(partition, checkpoint, after, list(customers), **{**columns, **more})


def random_step(
    checkpoint: Checkpoint | None, rng: np.random.Generator, *, partition: int, customers: Sequence[str]
) -> Commit:
    """Any step: few or many customers, some of them forgotten, alerts that come, come again and are acknowledged."""
    chosen = rng.permutation(len(customers))[: int(rng.choice([0, 1, 3, 40]))].tolist()
    split = int(rng.integers(0, len(chosen) + 1)) if rng.random() < 0.5 else len(chosen)
    ids = [f"alert-{i}".encode() for i in range(12)]
    return step_of(
        checkpoint,
        [customers[i] for i in chosen[:split]],
        rng,
        partition=partition,
        due=rng.integers(0, 30, split),  # few values, so that ties are common
        forgotten=[customers[i] for i in chosen[split:]],
        messages=[
            (ids[i], rng.bytes(int(rng.integers(0, 60))))
            for i in rng.integers(0, 12, int(rng.integers(0, 5)))
        ],
        acked=[ids[i] for i in rng.integers(0, 12, int(rng.integers(0, 5)))],
        at_risk=np.where(rng.random(split) < 0.5, rng.random(split), np.nan).astype(np.float32),
        hours=tuple(rng.integers(0, 999, 3).tolist()) if rng.random() < 0.2 else None,
    )
