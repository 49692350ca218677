"""The store where the master moves: behind an address, and under Sentinels.

The distribution's Redis makes the master with its replica. A failover may lose its tail, never half of a commit.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from ebbtide.featurestore.errors import Fenced, StoreMisconfigured, StoreUnavailable
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.featurestore.store.redis.client import RedisClient
from ebbtide.ops.stack.local import LocalValkey
from ebbtide.ops.stack.server import Keeper
from tests.support.seams.stores import DTYPE, State, random_step, state_of, step_of
from tests.support.servers.production import (
    ACL,
    CUSTOMERS,
    JANE,
    WORKER,
    N,
    exercise,
    opened,
    patiently,
    says_nothing,
    surely,
)
from tests.support.servers.proxy import Proxy
from tests.support.servers.redis import (
    SERVICE,
    Watched,
    admin_of,
    copied,
    debian_redis,
    eventually,
    sentinel,
)

pytestmark = pytest.mark.redis


# One server behind an address that moves


async def test_a_moved_address_leads_to_the_new_master() -> None:
    """
    worker ──▶ address ──▶ master      1  roles exchanged: READONLY on every connection
                   └─────▶ replica     2  the address moves, old connections stay: the next try writes to the new one
    """
    rng = np.random.default_rng(11)
    with (
        LocalValkey(binary=debian_redis(), name="one") as one,
        LocalValkey(
            binary=debian_redis(), name="two", settings={"replicaof": f"127.0.0.1 {one.port}"}
        ) as two,
        Proxy(one.port) as address,
        admin_of(one) as old,
        admin_of(two) as new,
    ):
        eventually(lambda: new.info("replication").get("master_link_status") == "up")
        async with opened(f"redis://127.0.0.1:{address.port}", timeout_s=2) as store:
            commit = step_of(None, ["a"], rng)
            await store.apply(commit)
            await asyncio.gather(
                *(store.load(p, CUSTOMERS) for p in range(N) for _ in range(4))
            )  # connections
            eventually(lambda: copied(one))
            address.point(two.port)
            new.replicaof("NO", "ONE")
            old.replicaof("127.0.0.1", two.port)
            following = step_of(commit.checkpoint, ["b"], rng)
            with pytest.raises(StoreUnavailable, match="read only"):
                await store.apply(following)
            await store.apply(following)  # at the first try after the refusal
            assert await store.checkpoint(0) == following.checkpoint
            await asyncio.gather(*(store.load(p, CUSTOMERS) for p in range(N) for _ in range(4)))
            ours = [client for client in old.client_list() if client["cmd"] in ("evalsha", "mget", "get")]
            assert not ours, "a connection stayed with the old master"


@pytest.mark.parametrize("word", ["LOADING data", "MASTERDOWN link is down", "READONLY replica"])
async def test_a_server_that_is_no_master_now_is_left(word: str) -> None:
    """A server that says so on each connection, once: a second connection meets a server that serves."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        first = connections == 1
        while asked := (await reader.read(4096)).count(b"*"):  # commands
            writer.write((f"-{word}\r\n".encode() if first else b"$-1\r\n") * asked)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = RedisClient(f"redis://127.0.0.1:{port}", timeout_s=2, connections_max=1)
        with pytest.raises(StoreUnavailable):
            await client.ask("GET", "x")
        assert await client.ask("GET", "x") is None
        await client.close()
        connections = 0
        client = RedisClient(f"redis://127.0.0.1:{port}", timeout_s=2, connections_max=1)
        with pytest.raises(StoreUnavailable):
            await client.ask_all([("GET", "x"), ("GET", "y")])
        assert await client.ask_all([("GET", "x"), ("GET", "y")]) == [None, None]
        await client.close()


# Sentinel


async def test_a_failover_leaves_a_whole_older_state() -> None:
    """
    1  by hand, under steps     master ◀──roles──▶ replica       no connection is left at the old one
    2  master cut off, more steps, SIGKILL ──▶ replica promoted  steps go on from the older checkpoint that it has
    """
    rng = np.random.default_rng(6)
    with Watched(binary=debian_redis()) as watched:
        for server in (watched.master, watched.replica):
            with admin_of(server) as admin:
                admin.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~t:clicks:*", *ACL)
        url = f"redis+sentinel://{watched.hosts}/{SERVICE}"
        async with opened(url, credentials=WORKER, timeout_s=1) as store:
            await exercise(store, steps=20)
            memory = MemoryStore(DTYPE, N)
            states: dict[Checkpoint | None, State] = {None: await state_of(memory)}
            checkpoint: Checkpoint | None = None

            async def one_step(apply: Callable[[Commit], Awaitable[None]] = store.apply) -> None:
                nonlocal checkpoint
                commit = random_step(checkpoint, rng, partition=0, customers=CUSTOMERS)
                await memory.apply(commit)
                states[commit.checkpoint] = await state_of(memory)
                await apply(commit)
                checkpoint = commit.checkpoint

            await one_step()
            failing_over = asyncio.create_task(asyncio.to_thread(watched.fail_over))
            lost = 0
            while not failing_over.done():
                try:
                    await one_step()
                except (StoreUnavailable, Fenced) as error:
                    # As a worker does: what is stored is where it goes on, and it is whole.
                    says_nothing(error)
                    lost += 1
                    state = await patiently(lambda: state_of(store))
                    assert state == states[state.checkpoint]
                    await patiently(lambda: store.reset(0))
                    memory, checkpoint = MemoryStore(DTYPE, N), None
            await failing_over
            assert lost
            await one_step(lambda commit: surely(store, commit))
            with admin_of(watched.master) as admin:
                assert any(client["user"] == "worker" for client in admin.client_list())
            with admin_of(watched.replica) as admin:
                assert not any(client["user"] == "worker" for client in admin.client_list())

            await store.reset(0)
            memory, checkpoint = MemoryStore(DTYPE, N), None
            for _ in range(20):
                await one_step()
            kept = await store.checkpoint(0)
            eventually(lambda: copied(watched.master))
            watched.cut_replica()
            for _ in range(5):
                await one_step()
            newest = await store.checkpoint(0)
            begun = time.monotonic()
            await asyncio.to_thread(watched.master.kill)
            with pytest.raises(StoreUnavailable, match="EBBTIDE_REDIS_URL") as refusal:
                await store.apply(step_of(newest, [JANE], rng))
            says_nothing(refusal.value)
            state = await patiently(lambda: state_of(store))
            print(f"a new master after {time.monotonic() - begun:.1f} s")
            assert state.checkpoint == kept != newest
            assert state == states[kept]
            with pytest.raises(Fenced):
                await store.apply(step_of(newest, ["a"], rng))
            await store.apply(step_of(kept, ["a"], rng))
            await store.start()


async def test_sentinels_that_do_not_know_the_master_say_so(stack_redis: LocalValkey) -> None:
    """An unknown name is no outage; Sentinels that are away are one. A Sentinel is no server of ours."""
    with Keeper() as keeper:
        port = sentinel(keeper, "sentinel", stack_redis.port, quorum=1)
        async with opened(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/{SERVICE}") as store:
            await exercise(store, steps=5)
        async with opened(f"redis+sentinel://127.0.0.1:{port}/other") as store:
            for question in (store.start(), store.checkpoint(0), store.find(JANE)):
                with pytest.raises(StoreMisconfigured, match="know no master of that name"):
                    await question
        async with opened("redis+sentinel://127.0.0.1:1,127.0.0.1:2/other", timeout_s=1) as store:
            for question in (store.start(), store.checkpoint(0), store.find(JANE)):
                with pytest.raises(StoreUnavailable, match="EBBTIDE_REDIS_URL"):
                    await question
        async with opened(f"redis://127.0.0.1:{port}") as store:
            with pytest.raises(StoreMisconfigured, match=r"is a Sentinel.*redis\+sentinel://"):
                await store.start()


async def test_connections_to_a_watched_master_are_bounded(stack_redis: LocalValkey) -> None:
    with Keeper() as keeper:
        port = sentinel(keeper, "sentinel", stack_redis.port, quorum=1)
        with admin_of(stack_redis) as admin:
            before = len(admin.client_list())
            async with opened(f"redis+sentinel://127.0.0.1:{port}/{SERVICE}", connections_max=2) as store:
                await asyncio.gather(*(store.load(i % N, ["a", "b"]) for i in range(200)))
                assert len(admin.client_list()) - before <= 2
