"""A commit in Redis is whole or was never there: with hardly any memory, a server that hangs or is killed, a reset that
died halfway.

Faults here are settings of a real server (memory, a paused client, a SIGKILL), never patches.
"""

import asyncio
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.errors import Fenced, LayoutError, StoreMisconfigured, StoreUnavailable
from ebbtide.featurestore.store.checkpoint import RESETTING, Checkpoint
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.stack.local import LocalValkey
from tests.support.patience import PATIENCE_S
from tests.support.seams.stores import DTYPE, PARTITIONS, State, random_step, state_of, step_of
from tests.support.servers.production import patiently

pytestmark = pytest.mark.redis
RNG = np.random.default_rng(0)


async def test_however_little_memory_a_commit_is_whole(store: RedisStore, admin: Any) -> None:
    """The limit creeps up past what one step needs: at some point it starts being applied, and never in part."""
    checkpoint: Checkpoint | None = None
    outcomes = []
    for spare in range(0, 4_000_000, 200_000):
        before = await state_of(store)
        names = [f"{spare}-{i}" for i in range(CUSTOMERS_MAX)]
        commit = step_of(
            checkpoint,
            names,
            RNG,
            messages=[(b"a%d" % spare, bytes(200_000))],
            acked=[entry.id for entry in before.outbox],
        )
        used = (await admin.info("memory"))["used_memory"]
        await admin.config_set("maxmemory", used + spare)
        try:
            await store.apply(commit)
        except StoreUnavailable:
            outcomes.append("refused")
        else:
            outcomes.append("applied")
            checkpoint = commit.checkpoint
        finally:
            await admin.config_set("maxmemory", 0)
        after = await state_of(store)
        if outcomes[-1] == "refused":
            assert after == before
        else:
            assert after.checkpoint == commit.checkpoint
            assert len(after.records) == len(before.records) + len(names)
            assert after.outbox == commit.outbox
    assert set(outcomes) == {"refused", "applied"}


async def test_foreign_keys_are_seen_before_anything_is_written(store: RedisStore, admin: Any) -> None:
    for key in ("due", "out", "risk", "checkpoint"):
        await admin.flushall()
        await admin.rpush(f"t:clicks:{{p0}}:{key}", "theirs")
        with pytest.raises(StoreMisconfigured, match=r"FOREIGN|WRONGTYPE"):
            await store.apply(step_of(None, ["a"], RNG, messages=[(b"1", b"one")]))
        assert await admin.dbsize() == 1


async def test_a_reset_that_died_locks_everyone_out_until_done(store: RedisStore, admin: Any) -> None:
    first = step_of(None, ["a", "b"], RNG, messages=[(b"1", b"one")])
    await store.apply(first)
    await admin.set("t:clicks:{p0}:checkpoint", RESETTING)
    await admin.delete("t:clicks:{p0}:c:a")
    with pytest.raises(LayoutError, match=r"reset.*ebbtide rebuild"):
        await store.checkpoint(0)
    for expected in (None, first.checkpoint):
        with pytest.raises(Fenced):
            await store.apply(step_of(expected, ["a"], RNG))
    await asyncio.gather(store.reset(0), store.reset(0), return_exceptions=True)
    assert await admin.keys() == []


async def test_a_reset_stops_when_somebody_else_has_finished_it(
    server: LocalValkey, store: RedisStore, admin: Any
) -> None:
    """
    one  ──begin──page──page──────────────page──▶ Fenced
    two        ──begin── … ──end──apply──▶ what it wrote stays
    """
    checkpoint: Checkpoint | None = None
    for i in range(0, 10 * CUSTOMERS_MAX, CUSTOMERS_MAX):
        await store.apply(commit := step_of(checkpoint, [f"c{j}" for j in range(i, i + CUSTOMERS_MAX)], RNG))
        checkpoint = commit.checkpoint
    resetting = asyncio.create_task(store.reset(0))
    while await admin.get("t:clicks:{p0}:checkpoint") != RESETTING.encode():
        pass  # each question gives way
    two = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:")
    await admin.flushall()
    begun = step_of(None, [f"c{i}" for i in range(CUSTOMERS_MAX)], RNG)
    await two.apply(begun)
    with pytest.raises(Fenced):
        await resetting
    state = await state_of(two)
    assert (state.checkpoint, len(state.records)) == (begun.checkpoint, CUSTOMERS_MAX)
    await two.close()


async def test_a_full_server_can_be_reset(store: RedisStore, admin: Any) -> None:
    await store.apply(step_of(None, [f"c{i}" for i in range(CUSTOMERS_MAX)], RNG))
    await admin.config_set("maxmemory", 1)
    try:
        await store.reset(0)
    finally:
        await admin.config_set("maxmemory", 0)
    assert await admin.keys() == []


async def test_after_a_timeout_the_same_step_can_be_applied_again(server: LocalValkey, admin: Any) -> None:
    """Nobody knows whether the first attempt will count. It does, once, or the second does."""
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:", timeout_s=0.2)
    commit = step_of(None, ["a", "b"], RNG, messages=[(b"1", b"one")])
    assert await patiently(lambda: store.checkpoint(0)) is None
    await admin.client_pause(1500)
    with pytest.raises(StoreUnavailable):
        await store.apply(commit)
    while True:
        try:
            await store.apply(commit)
        except StoreUnavailable:
            continue
        except Fenced:
            pass
        break
    state = await patiently(lambda: state_of(store))
    assert state.checkpoint == commit.checkpoint
    assert state.outbox == commit.outbox
    await store.close()


async def loaded(store: RedisStore) -> State:
    """The state, once the server has read its file: until then it says LOADING, which is worth a retry."""
    found: State = await patiently(lambda: state_of(store))
    return found


async def test_a_killed_server_comes_back_with_whole_steps_only(server: LocalValkey, admin: Any) -> None:
    """SIGKILL while steps stream in, three times. What was confirmed is there, and what is there is a whole step."""
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:", timeout_s=2)
    rng = np.random.default_rng(5)
    customers = [f"c{i}" for i in range(200)]
    states: dict[Checkpoint | None, State] = {None: await state_of(store)}
    mirror = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="mirror:")
    checkpoint: Checkpoint | None = None
    for _ in range(3):
        confirmed = checkpoint

        async def stream() -> None:
            nonlocal checkpoint, confirmed
            while True:
                commit = random_step(checkpoint, rng, partition=0, customers=customers)
                await mirror.apply(commit)  # first there, so that we know what the step makes of the state
                states[commit.checkpoint] = await state_of(mirror)
                await store.apply(commit)
                checkpoint = confirmed = commit.checkpoint

        streaming, before = asyncio.create_task(stream()), len(states)
        await asyncio.sleep(0.3)
        async with asyncio.timeout(PATIENCE_S):
            while len(states) < before + 4:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
        await asyncio.to_thread(server.kill)
        with pytest.raises(StoreUnavailable):
            await streaming
        await asyncio.to_thread(server.restart)
        state = await loaded(store)
        assert state == states[state.checkpoint]
        assert (state.checkpoint.sequence if state.checkpoint else 0) >= (
            confirmed.sequence if confirmed else 0
        )
        # Both go on from what is stored.
        await mirror.reset(0)
        await store.reset(0)
        checkpoint = None
    assert len(states) > 10
    await store.close()
    await mirror.close()


async def test_a_server_restarted_without_its_file_has_forgotten_all(server: LocalValkey, admin: Any) -> None:
    """And with it again it is as it was before that: an owner meets both faults, and sees them by the checkpoint."""
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:", timeout_s=2)
    commit = step_of(None, ["a"], RNG)
    # By default a write to the file waits up to two seconds for a slow disk, and who asked is answered meanwhile.
    await admin.config_set("appendfsync", "always")
    await store.apply(commit)
    try:
        for appendonly, checkpoint in ((False, None), (True, commit.checkpoint)):
            await asyncio.to_thread(server.kill)
            server.appendonly = appendonly
            await asyncio.to_thread(server.restart)
            assert (await loaded(store)).checkpoint == checkpoint
            with pytest.raises(Fenced):
                await store.apply(step_of(commit.checkpoint._replace(sequence=9), ["b"], RNG))
    finally:
        server.appendonly = True
    await store.close()
