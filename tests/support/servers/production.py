"""What the tests of a Redis in production share: the store under its documented rights, and every question to it."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.errors import EbbtideError, Fenced, StoreUnavailable
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.featurestore.store.redis.credentials import Credentials
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.stack.local import LocalValkey
from tests.support.patience import PATIENCE_S
from tests.support.seams.stores import DTYPE, EMPTY, random_step, state_of

N = 12  # partitions: every node of three has some
CUSTOMERS = ["a", "{p1}", "}x{", "é", *(f"c{i}" for i in range(60))]
# What `redis_store` documents, and what it adds for a Cluster.
ACL = ["+@read", "+@write", "-@dangerous", "+eval", "+evalsha", "+info"]
CLUSTER_ACL = [*ACL, "+cluster|slots", "+asking"]
WORKER = Credentials("worker", "secret")
JANE = "jane@example.org"
SLACK_S = 2.0
"""What a busy machine may add to a timeout."""


@asynccontextmanager
async def opened(url: str, **more: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, DTYPE, "clicks", N, prefix="t:", **more)
    try:
        yield store
    finally:
        await store.close()


async def exercise(store: RedisStore, steps: int = 60) -> None:
    """All that a store can be asked, held against the one in memory."""
    rng = np.random.default_rng(7)
    memory = MemoryStore(DTYPE, N)
    checkpoints: list[Checkpoint | None] = [None] * N
    await store.start()
    for _ in range(steps):
        partition = int(rng.integers(N))
        commit = random_step(checkpoints[partition], rng, partition=partition, customers=CUSTOMERS)
        await store.apply(commit)
        await memory.apply(commit)
        with pytest.raises(Fenced):
            await store.apply(commit)
        checkpoints[partition] = commit.checkpoint
    for partition in range(N):
        assert await state_of(store, partition) == await state_of(memory, partition)
        rows, found = await store.load(partition, CUSTOMERS)
        expected, there = await memory.load(partition, CUSTOMERS)
        assert rows.tobytes() == expected.tobytes()
        assert found.tolist() == there.tolist()
    for customer in ["nobody", *CUSTOMERS[:8]]:
        answer, wanted = await store.find(customer), await memory.find(customer)
        assert [(p, row.tobytes()) for p, row in answer] == [(p, row.tobytes()) for p, row in wanted]
    for partition in range(N):
        await store.reset(partition)
        assert await state_of(store, partition) == EMPTY


async def patiently(ask: Callable[[], Any], timeout_s: float = PATIENCE_S) -> Any:
    """The answer, as an owner gets it who backs off."""
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                return await ask()
            except StoreUnavailable:
                await asyncio.sleep(0.02)


async def surely(store: RedisStore, commit: Commit) -> None:
    """A step, tried until it is known to be done: one whose answer was lost shows as a checkpoint that moved."""

    async def once() -> None:
        if await store.checkpoint(commit.partition) != commit.checkpoint:
            await store.apply(commit)

    await patiently(once)


@contextmanager
def hanging(server: LocalValkey) -> Iterator[None]:
    """The server takes no more notice of anybody, but its connections stay."""
    assert server.server is not None
    server.server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.server.signal(signal.SIGCONT)


def says_nothing(error: BaseException) -> None:
    """No password, no customer."""
    assert isinstance(error, EbbtideError)
    for secret in ("secret", JANE, "jane", "}:c:"):
        assert secret not in str(error)
