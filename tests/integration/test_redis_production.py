"""The store where Redis runs in production: a Cluster, a master under Sentinels, TLS, users with few rights.

Valkey makes the Cluster; the distribution's Redis makes the master with its replica, and TLS. Faults are those of real
servers: SIGKILL, SIGSTOP, a slot on the move, a failover that loses its tail, a certificate that nobody signed.
"""

import asyncio
import signal
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from ebbtide.featurestore.errors import EbbtideError, Fenced, StoreMisconfigured, StoreUnavailable
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.featurestore.store.redis.client import RedisClient
from ebbtide.featurestore.store.redis.credentials import Credentials
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.featurestore.store.redis.url import read_url
from ebbtide.ops.stack.local import LocalValkey
from ebbtide.ops.stack.server import Keeper, free_ports
from ebbtide.stream.telemetry import Telemetry, TurnDone
from tests.integration.test_pipeline import T0, World, assert_same_end, clean_run, logs_of
from tests.support.seams.scoring import LAYOUT
from tests.support.seams.stores import DTYPE, State, random_step, state_of, step_of
from tests.support.seams.streams import LogRecord
from tests.support.servers.proxy import Proxy
from tests.support.servers.redis import (
    SERVICE,
    Certificates,
    LocalCluster,
    Move,
    Watched,
    admin_of,
    debian_redis,
    eventually,
    sentinel,
    tls_server,
)

pytestmark = pytest.mark.redis
N = 12  # partitions: every node of three has some
CUSTOMERS = ["a", "{p1}", "}x{", "é", *(f"c{i}" for i in range(60))]
# What `redis_store` documents, and what it adds for a Cluster.
ACL = ["+@read", "+@write", "-@dangerous", "+eval", "+evalsha", "+info"]
CLUSTER_ACL = [*ACL, "+cluster|slots", "+asking"]
WORKER = Credentials("worker", "secret")
JANE = "jane@example.org"
SLACK_S = 2.0
"""What a busy machine may add to a timeout."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def valkeys() -> Iterator[LocalCluster]:
    with LocalCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(valkeys: LocalCluster) -> LocalCluster:
    """The Cluster, whole and empty."""
    eventually(valkeys.whole)
    valkeys.everywhere("FLUSHALL")
    return valkeys


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
        assert await state_of(store, partition) == (None, {}, [], [])


async def patiently(ask: Callable[[], Any], timeout_s: float = 15.0) -> Any:
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


# Redis Cluster


async def test_the_contract_on_three_nodes(cluster: LocalCluster) -> None:
    """One host in the URL is enough to find the others; scripts that are forgotten are told again, node by node."""
    for hosts in (cluster.hosts, cluster.hosts.split(",")[1]):
        async with opened(f"redis+cluster://{hosts}") as store:
            await exercise(store)
            cluster.everywhere("SCRIPT", "FLUSH")
            for partition in range(N):
                await store.apply(step_of(None, ["a"], np.random.default_rng(1), partition=partition))
            for node in cluster.nodes:
                with admin_of(node) as admin:
                    assert admin.dbsize() > 0
        cluster.everywhere("FLUSHALL")


async def test_connections_to_each_node_are_bounded_and_given_back(cluster: LocalCluster) -> None:
    def clients() -> list[int]:
        counted = []
        for node in cluster.nodes:
            with admin_of(node) as admin:
                counted.append(len([c for c in admin.client_list() if c["lib-name"] != "" and c["cmd"]]))
        return counted

    before = clients()
    async with opened(f"redis+cluster://{cluster.hosts}", connections_max=2) as store:
        await asyncio.gather(*(store.load(i % N, ["a", "b"]) for i in range(300)))
        during = clients()
        assert during != before
        assert all(now - then <= 2 for now, then in zip(during, before, strict=True))
    eventually(lambda: clients() == before)


async def test_any_master_that_evicts_is_refused(cluster: LocalCluster) -> None:
    async with opened(f"redis+cluster://{cluster.hosts}") as store:
        for node in cluster.nodes:
            with admin_of(node) as admin:
                admin.config_set("maxmemory-policy", "allkeys-lru")
                try:
                    with pytest.raises(StoreMisconfigured, match=rf"127.0.0.1:{node.port} .*noeviction"):
                        await store.start()
                finally:
                    admin.config_set("maxmemory-policy", "noeviction")
        await store.start()


@pytest.mark.parametrize("how", ["killed", "hangs"])
async def test_a_node_that_is_away_stops_its_own_partitions_only(cluster: LocalCluster, how: str) -> None:
    """Its partitions say so within the timeout and go on afterwards, each from its checkpoint; the others never
    notice."""
    timeout_s = 2.0
    away = cluster.nodes[0]
    affected = [p for p in range(N) if cluster.node_of(f"{{p{p}}}") == 0]
    others = [p for p in range(N) if p not in affected]
    async with opened(f"redis+cluster://{cluster.hosts}", timeout_s=timeout_s) as store:
        rng = np.random.default_rng(3)
        memory = MemoryStore(DTYPE, N)
        checkpoints: list[Checkpoint | None] = [None] * N

        async def one_step(partition: int, apply: Callable[[Commit], Awaitable[None]] = store.apply) -> None:
            commit = random_step(checkpoints[partition], rng, partition=partition, customers=CUSTOMERS)
            await apply(commit)
            await memory.apply(commit)
            checkpoints[partition] = commit.checkpoint

        async def refused(partition: int) -> None:
            begun = time.monotonic()
            with pytest.raises(StoreUnavailable, match="EBBTIDE_REDIS_URL") as error:
                await store.load(partition, [JANE])
            says_nothing(error.value)
            assert time.monotonic() - begun < timeout_s + SLACK_S

        for partition in range(N):
            await one_step(partition)
        if how == "killed":
            await asyncio.to_thread(away.kill)
        else:
            assert away.server is not None
            away.server.signal(signal.SIGSTOP)
        try:
            for _ in range(2):
                waiting = [asyncio.create_task(refused(p)) for p in affected]
                for _ in range(10):
                    await asyncio.gather(*(one_step(p) for p in others))
                await asyncio.gather(*waiting)
            with pytest.raises(StoreUnavailable):
                await store.find(JANE)
            with pytest.raises(StoreUnavailable):
                await store.start()
        finally:
            if how == "killed":
                await asyncio.to_thread(away.restart)
            elif away.server is not None:
                away.server.signal(signal.SIGCONT)
        for partition in range(N):
            checkpoint = await patiently(lambda p=partition: store.checkpoint(p))  # type: ignore[misc]  # bound now
            assert checkpoint == checkpoints[partition]
            await one_step(partition, lambda commit: surely(store, commit))
        for partition in range(N):
            assert await state_of(store, partition) == await state_of(memory, partition)


@pytest.mark.parametrize("how", ["killed", "hangs"])
async def test_of_many_commits_those_of_a_lost_node_wait_alone(cluster: LocalCluster, how: str) -> None:
    """The answers of the other nodes come as if nothing were; its own say so within the timeout."""
    timeout_s = 2.0
    away = cluster.nodes[0]
    affected = [p for p in range(N) if cluster.node_of(f"{{p{p}}}") == 0]
    others = [p for p in range(N) if p not in affected]
    async with opened(f"redis+cluster://{cluster.hosts}", timeout_s=timeout_s) as store:
        rng = np.random.default_rng(3)
        commits = [step_of(None, CUSTOMERS, rng, partition=p) for p in range(N)]
        assert await store.apply_many(commits) == [None] * N
        assert away.server is not None
        if how == "killed":
            await asyncio.to_thread(away.kill)
        else:
            away.server.signal(signal.SIGSTOP)
        try:
            for _ in range(3):
                commits = [
                    step_of(commit.checkpoint, CUSTOMERS, rng, partition=p)
                    for p, commit in enumerate(commits)
                ]
                begun_s = time.monotonic()
                loads = store.load_each([(p, CUSTOMERS) for p in range(N)])
                answers = store.apply_each(commits)
                await asyncio.gather(*(answers[p] for p in others), *(loads[p] for p in others))
                assert time.monotonic() - begun_s < timeout_s / 4
                for answer in (answers[p] for p in affected):
                    with pytest.raises(StoreUnavailable, match="EBBTIDE_REDIS_URL"):
                        await answer
                assert time.monotonic() - begun_s < timeout_s + SLACK_S
        finally:
            if how == "killed":
                await asyncio.to_thread(away.restart)
            else:
                away.server.signal(signal.SIGCONT)
        for p in others:
            assert await store.checkpoint(p) == commits[p].checkpoint


async def test_many_commits_follow_slots_that_moved(cluster: LocalCluster) -> None:
    """A slot that is half way is worth a retry; one that has gone over is followed, a script that is unknown there
    is told."""
    rng = np.random.default_rng(4)
    slot = key_slot(b"{p0}")
    source = cluster.nodes[cluster.node_of("{p0}")]
    target = cluster.nodes[cluster.node_of("{p0}") - 1]
    async with opened(f"redis+cluster://{cluster.hosts}") as store:
        said = [(b"1", b"one")]  # so that all fixed keys are there: a new one would have to wait
        commits = [step_of(None, ["a", JANE], rng, partition=p, messages=said) for p in range(N)]

        def following() -> list[Commit]:
            return [
                step_of(commit.checkpoint, ["a", JANE], rng, partition=p) for p, commit in enumerate(commits)
            ]

        assert await store.apply_many(commits) == [None] * N
        for back in (False, True):
            if back:
                source, target = target, source
            move = Move(source, target, slot)
            move.begin()
            move.some(2)
            half_way = following()
            refused, *applied = await store.apply_many(half_way)
            assert isinstance(refused, StoreUnavailable)
            says_nothing(refused)
            assert applied == [None] * (N - 1)
            commits[1:] = half_way[1:]
            while move.some(100):
                pass
            with admin_of(target) as admin:
                admin.script_flush()
            for _ in range(2):  # the whole slot lies there, and is not theirs yet: ASK
                commits = following()
                assert await store.apply_many(commits) == [None] * N
                loads = await store.load_many([(p, ["a", JANE]) for p in range(N)])
                assert [load[0].tobytes() for load in loads if not isinstance(load, Exception)] == [
                    commit.rows.tobytes() for commit in commits
                ]
            move.end()
            commits = following()
            assert await store.apply_many(commits) == [None] * N


async def test_a_slot_on_the_move_is_followed_step_by_step(cluster: LocalCluster) -> None:
    """
    keys      all here │ some there │ all there │ slot there
    a step    done     │ wait       │ done: ASK │ done: MOVED           and a customer who is new waits till the end
    """
    rng = np.random.default_rng(4)
    slot = key_slot(b"{p0}")
    source = cluster.nodes[cluster.node_of("{p0}")]
    target = cluster.nodes[cluster.node_of("{p0}") - 1]
    async with opened(f"redis+cluster://{cluster.hosts}") as store:
        await asyncio.gather(*(store.load(p, CUSTOMERS) for p in range(N) for _ in range(8)))  # connections
        commit = step_of(None, ["a", JANE], rng, messages=[(b"1", b"one")])
        await store.apply(commit)
        for back in (False, True):
            if back:
                source, target = target, source
            move = Move(source, target, slot)
            move.begin()
            await store.apply(commit := step_of(commit.checkpoint, ["a", JANE], rng))
            move.some(2)
            for question in (
                store.apply(step_of(commit.checkpoint, ["a", JANE], rng)),
                store.apply(step_of(commit.checkpoint, ["new"], rng)),
            ):
                with pytest.raises(StoreUnavailable) as error:
                    await question
                says_nothing(error.value)
            while move.some(100):
                pass
            assert await store.checkpoint(0) == commit.checkpoint
            with admin_of(target) as admin:
                admin.script_flush()
            for _ in range(5):
                asked = (store.find(JANE) for _ in range(4))
                await asyncio.gather(
                    store.apply(commit := step_of(commit.checkpoint, ["a", JANE], rng)), *asked
                )
            assert [entry.value for entry in await store.outbox(0)] == [b"one"]
            ((_, row),) = await store.find(JANE)
            assert row.tobytes() == commit.rows[1].tobytes()
            move.end()
            await store.apply(commit := step_of(commit.checkpoint, ["a", JANE, f"new-{back}"], rng))
        state = await state_of(store)
        assert state.records.keys() == {"a", JANE, "new-False", "new-True"}
        assert state.checkpoint == commit.checkpoint


async def test_a_slot_that_moves_under_steps_loses_nothing(cluster: LocalCluster) -> None:
    """There and back while steps stream in: at the end the state is what the steps make of it in memory."""
    rng = np.random.default_rng(5)
    memory = MemoryStore(DTYPE, N)
    slot = key_slot(b"{p0}")
    home = cluster.node_of("{p0}")
    waited = done = 0
    moving = True
    async with opened(f"redis+cluster://{cluster.hosts}") as store:

        def move() -> None:
            nonlocal moving
            for there in (home - 1, home):
                here = home if there != home else home - 1
                way = Move(cluster.nodes[here], cluster.nodes[there], slot)
                way.begin()
                while way.some(2):
                    time.sleep(0.01)
                way.end()
                time.sleep(0.2)
            moving = False

        async def apply(commit: Commit) -> None:
            nonlocal waited
            while True:
                try:
                    await store.apply(commit)
                    return
                except StoreUnavailable:
                    waited += 1
                    await asyncio.sleep(0.01)

        checkpoint: Checkpoint | None = None
        for _ in range(40):
            commit = random_step(checkpoint, rng, partition=0, customers=CUSTOMERS)
            await apply(commit)
            await memory.apply(commit)
            checkpoint = commit.checkpoint
        mover = asyncio.create_task(asyncio.to_thread(move))
        while moving:
            commit = random_step(checkpoint, rng, partition=0, customers=CUSTOMERS)
            await apply(commit)
            await memory.apply(commit)
            checkpoint, done = commit.checkpoint, done + 1
        await mover
        print(f"{done} steps while the slot moved, {waited} waits")
        assert done > 20
        assert waited
        assert await state_of(store) == await state_of(memory)


async def test_a_cluster_whose_nodes_are_all_away_is_waited_for(cluster: LocalCluster) -> None:
    async with opened("redis+cluster://127.0.0.1:1,127.0.0.1:2,nowhere.invalid:3", timeout_s=1) as store:
        for question in (store.start(), store.checkpoint(0), store.find(JANE)):
            begun = time.monotonic()
            with pytest.raises(StoreUnavailable, match="EBBTIDE_REDIS_URL") as error:
                await question
            says_nothing(error.value)
            assert time.monotonic() - begun < 1 + SLACK_S


async def test_one_server_under_the_url_of_a_cluster_is_told_apart(stack_redis: LocalValkey) -> None:
    async with opened(f"redis+cluster://127.0.0.1:{stack_redis.port}") as store:
        for question in (store.start(), store.checkpoint(0)):
            with pytest.raises(StoreMisconfigured, match=r"begin with redis://"):
                await question


@pytest.fixture
def stack_redis() -> Iterator[LocalValkey]:
    with LocalValkey(appendonly=False) as server:
        yield server


@pytest.mark.parametrize("who", [("nobody", "secret"), ("worker", "secret2"), (None, "secret")])
async def test_a_wrong_password_is_not_repeated_by_a_cluster(
    cluster: LocalCluster, who: tuple[str | None, str]
) -> None:
    cluster.everywhere("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *CLUSTER_ACL)
    async with opened(f"redis+cluster://{cluster.hosts}", credentials=Credentials(*who)) as store:
        for question in (store.start(), store.checkpoint(0), store.find(JANE)):
            with pytest.raises(StoreMisconfigured, match="EBBTIDE_REDIS__PASSWORD") as error:
                await question
            says_nothing(error.value)


async def test_the_documented_rights_are_enough_and_each_is_needed(cluster: LocalCluster) -> None:
    """Without one of them the error names it, and neither the customer nor the password. They empty no server."""
    url = f"redis+cluster://{cluster.hosts}"
    cluster.everywhere("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *CLUSTER_ACL)
    async with opened(url, credentials=WORKER) as store:
        await exercise(store)
    with Redis(port=cluster.nodes[0].port, username="worker", password="secret", protocol=2) as worker:
        flush = ("EVAL", "redis.call('FLUSHALL')", 0)
        for command in (("FLUSHALL",), ("FLUSHDB",), ("SWAPDB", 0, 1), ("KEYS", "*"), flush):
            with pytest.raises(ResponseError, match="permission"):
                worker.execute_command(*command)
    for right in ("cluster|slots", "info", "evalsha", "eval", "mget", "zrange", "unlink"):
        cluster.everywhere("FLUSHALL")
        cluster.everywhere("SCRIPT", "FLUSH")
        cluster.everywhere(
            "ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *CLUSTER_ACL, f"-{right}"
        )
        async with opened(url, credentials=WORKER) as store:

            async def everything() -> None:
                await store.start()
                await store.apply(step_of(None, [JANE], np.random.default_rng(1)))
                await store.load(0, [JANE])
                await store.due(0, 1, 1)

            with pytest.raises(StoreMisconfigured, match=rf"(?i){right.replace('|', '.')}.*ACL") as error:
                await everything()
            says_nothing(error.value)
    cluster.everywhere("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~other:*", *CLUSTER_ACL)
    async with opened(url, credentials=WORKER) as store:
        for question in (store.load(0, [JANE]), store.find(JANE), store.checkpoint(0)):
            with pytest.raises(StoreMisconfigured, match="ACL") as error:
                await question
            says_nothing(error.value)


async def test_another_database_than_0_takes_one_right_more(stack_redis: LocalValkey) -> None:
    with admin_of(stack_redis) as admin:
        url = f"redis://127.0.0.1:{stack_redis.port}/1"
        admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *ACL)
        async with opened(url, credentials=WORKER) as store:
            with pytest.raises(StoreMisconfigured, match=r"(?i)select.*ACL") as error:
                await store.start()
            says_nothing(error.value)
        admin.execute_command("ACL", "SETUSER", "worker", "+select")
        async with opened(url, credentials=WORKER) as store:
            await exercise(store, steps=10)


async def test_a_user_without_asking_meets_it_as_a_slot_moves(cluster: LocalCluster) -> None:
    rights = [right for right in CLUSTER_ACL if right != "+asking"]
    cluster.everywhere("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *rights)
    home = cluster.node_of("{p0}")
    move = Move(cluster.nodes[home], cluster.nodes[home - 1], key_slot(b"{p0}"))
    async with opened(f"redis+cluster://{cluster.hosts}", credentials=WORKER) as store:
        await store.start()
        move.begin()
        with pytest.raises(StoreMisconfigured, match=r"asking.*ACL"):
            await store.checkpoint(0)
        move.end()
        assert await store.checkpoint(0) is None
        back = Move(cluster.nodes[home - 1], cluster.nodes[home], key_slot(b"{p0}"))
        back.begin()
        back.end()
        assert await store.checkpoint(0) is None


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster", "rediss+sentinel", "unix"])
@pytest.mark.parametrize(
    "password", ["hunter/2", "12345/6789", "hunter?2", "hunter#2", "4711/hunter@2", "[hunter"]
)
def test_a_password_in_the_url_is_refused_with_no_word_of_it(scheme: str, password: str) -> None:
    """Not read as a host or a port: in no message, and in no cause of it, which --debug shows."""
    with pytest.raises(StoreMisconfigured, match="EBBTIDE_REDIS_URL") as refusal:
        RedisStore(f"{scheme}://u:{password}@127.0.0.1:6379/0", DTYPE, "clicks", N)
    assert "EBBTIDE_REDIS__PASSWORD" in refusal.value.hint
    told = "".join(traceback.format_exception_only(refusal.value))
    error: BaseException | None = refusal.value
    while error is not None:
        told += f"{error!r} {error}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    for part in ("hunter", "12345", "6789", "4711"):
        assert part not in told


class ClusterWorld(World):
    """A world whose store is the real one, and may be away for a while."""

    def use(self, url: str, prefix: str) -> None:
        self.store = RedisStore(url, LAYOUT.dtype, "clickstream", len(self.logs), prefix=prefix, timeout_s=1)  # type: ignore[assignment]  # all that a world does with it

    async def applied(self) -> bool:
        try:
            return await super().applied()
        except StoreUnavailable:
            return False


async def test_a_worker_on_a_cluster_ends_as_in_a_clean_run(cluster: LocalCluster) -> None:
    """The pipeline over three nodes, one of which is killed half-way and comes back: same records, same alerts."""
    logs = logs_of(seed=21)
    clean = await clean_run(logs)
    world = ClusterWorld(21, logs, rate=0.0)
    world.use(f"redis+cluster://{cluster.hosts}", "w:")
    node = cluster.nodes[cluster.node_of("{p2}")]

    async def fail() -> None:
        quarter = len(logs[2]) // 4
        while (at := await world.store.checkpoint(2)) is None or at.offset < quarter:  # noqa: ASYNC110 - a look at a server
            await asyncio.sleep(0.001)
        await asyncio.to_thread(node.kill)
        assert not await world.applied()
        await asyncio.to_thread(node.restart)

    failing = asyncio.create_task(fail())
    await world.finish(world.worker())
    await failing
    await assert_same_end(world, clean)
    await world.store.close()


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
            eventually(lambda: old.execute_command("WAIT", 1, 1000) == 1)
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
            with admin_of(watched.master) as admin:
                assert admin.execute_command("WAIT", 1, 2000) == 1
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


# TLS


async def test_tls_with_a_private_ca(certificates: Certificates) -> None:
    with tls_server(certificates, clients=False) as (server, port):
        with admin_of(server) as admin:
            admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *ACL)
        url = f"rediss://127.0.0.1:{port}/0"
        async with opened(f"{url}?ssl_ca_certs={certificates.ca}", credentials=WORKER) as store:
            await exercise(store)
        for untrusted in (url, f"{url}?ssl_ca_certs={certificates.other_ca}"):
            async with opened(untrusted, credentials=WORKER) as store:
                for question in (store.start(), store.checkpoint(0), store.find(JANE)):
                    with pytest.raises(
                        StoreMisconfigured, match=r"(?i)certificate.*ssl_ca_certs=FILE"
                    ) as error:
                        await question
                    says_nothing(error.value)
        # A server without TLS waits for the rest of what it takes for a command, or refuses what it has read.
        no_tls = f"rediss://127.0.0.1:{server.port}?ssl_ca_certs={certificates.ca}"
        async with opened(no_tls, timeout_s=0.5) as store:
            with pytest.raises((StoreUnavailable, StoreMisconfigured), match="TLS port"):
                await store.start()


async def test_a_certificate_of_another_name_is_refused(certificates: Certificates) -> None:
    """It is valid for 127.0.0.1, and we know the server as localhost. A URL may say that names do not matter."""
    with tls_server(certificates, clients=False) as (_, port):
        ca = f"ssl_ca_certs={certificates.ca}"
        for scheme in ("rediss", "rediss+cluster"):
            async with opened(
                f"{scheme}://localhost:{port}?{ca}", credentials=Credentials(password="secret"), timeout_s=2
            ) as store:
                for question in (store.start(), store.checkpoint(0), store.find(JANE)):
                    with pytest.raises(
                        StoreMisconfigured, match=r"not valid for 'localhost'.*as their certificates do"
                    ) as error:
                        await question
                    says_nothing(error.value)
        async with opened(f"rediss://localhost:{port}?{ca}&ssl_check_hostname=no") as store:
            await exercise(store, steps=5)


async def test_tls_where_the_server_asks_for_our_certificate(certificates: Certificates) -> None:
    with tls_server(certificates, clients=True) as (_, port):
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates.ca}"
        ours = certificates.client
        async with opened(f"{url}&ssl_certfile={ours}&ssl_keyfile={ours}") as store:
            await exercise(store)
        async with opened(url) as store:
            for question in (store.start, lambda: store.checkpoint(0), lambda: store.find(JANE)):
                # A server that closes with our question unread resets the connection, and its reason may be lost with
                # it: then it is away, as far as anybody can tell, and the next try hears more.
                with pytest.raises(StoreMisconfigured, match="ssl_certfile=FILE"):
                    await patiently(question)


ALERTS = {40: "handshake_failure", 80: "internal_error", 90: "user_canceled", 112: "unrecognized_name"}
"""What proxies and load balancers say while they restart, or have nothing behind them."""


@pytest.mark.parametrize("alert", ALERTS, ids=ALERTS.get)
async def test_a_tls_alert_after_an_answer_is_an_outage(certificates: Certificates, alert: int) -> None:
    """Before the first answer it is a setting; after it, a proxy that restarts, and worth a wait."""

    async def turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(64)
        writer.write(bytes([21, 3, 3, 0, 2, 2, alert]))
        writer.close()

    with tls_server(certificates, clients=False) as (_, port), Proxy(port) as address:
        turning = await asyncio.start_server(turn_away, "127.0.0.1", 0)
        async with turning:
            away = turning.sockets[0].getsockname()[1]
            url = f"rediss://127.0.0.1:{address.port}?ssl_ca_certs={certificates.ca}"
            async with opened(url, timeout_s=2) as store:
                address.point(away)
                with pytest.raises(StoreMisconfigured, match="TLS"):
                    await store.checkpoint(0)
                address.point(port)
                assert await store.checkpoint(0) is None
                address.cut()
                address.point(away)
                address.heal()
                for _ in range(3):
                    with pytest.raises(StoreUnavailable):
                        await store.checkpoint(0)
                address.point(port)
                assert await patiently(lambda: store.checkpoint(0)) is None


async def test_a_certificate_not_trusted_is_never_an_outage(
    certificates: Certificates, tmp_path: Path
) -> None:
    """Also behind an address that was right a moment ago."""
    other = tmp_path / "other"
    other.mkdir()
    with (
        tls_server(certificates, clients=False) as (_, port),
        tls_server(Certificates(other), clients=False) as (_, stranger),
        Proxy(port) as address,
    ):
        async with opened(f"rediss://127.0.0.1:{address.port}?ssl_ca_certs={certificates.ca}") as store:
            assert await store.checkpoint(0) is None
            address.cut()
            address.point(stranger)
            address.heal()

            async def ask() -> None:
                await store.checkpoint(0)

            with pytest.raises(StoreMisconfigured, match="ssl_ca_certs=FILE"):
                await patiently(ask)


def test_tls_checks_names_unless_the_url_says_otherwise() -> None:
    """Said by us, since not every redis-py that we allow does so by itself."""

    def checked(url: str) -> list[Any]:
        place = read_url(url, Credentials(), {"max_connections": 1, "timeout": 1.0}, {})
        return [options.get("ssl_check_hostname") for options in (place.options, place.sentinel) if options]

    for url in (
        "rediss://h",
        "rediss+cluster://h",
        "rediss://h?ssl_check_hostname=",
        "rediss+sentinel://h/name",
    ):
        assert set(checked(url)) == {True}
    for url in ("rediss://h?ssl_check_hostname=no", "rediss://h?ssl_cert_reqs=none"):
        assert checked(url) == [False]
    assert checked("redis://h") == [None]


async def test_closing_gives_up_on_a_hanging_server(certificates: Certificates) -> None:
    """Over TLS a connection is closed when both sides said so, and this one says nothing."""
    with tls_server(certificates, clients=False) as (server, port):
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificates.ca}"
        store = RedisStore(url, DTYPE, "clicks", N, timeout_s=2)
        await asyncio.gather(
            *(store.checkpoint(p) for p in range(3))
        )  # three connections, one of which meets the silence

        async def ask_and_close() -> None:
            try:
                await store.checkpoint(0)
            finally:
                await store.close()

        with hanging(server):
            begun = time.monotonic()
            with pytest.raises(StoreUnavailable, match="EBBTIDE_REDIS_URL"):
                await ask_and_close()
            assert time.monotonic() - begun < 4 + SLACK_S


async def test_closing_a_cluster_closes_every_node_that_answers(certificates: Certificates) -> None:
    with LocalCluster(binary=debian_redis(), tls=certificates) as cluster:
        cluster.everywhere("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *CLUSTER_ACL)

        def clients(node: LocalValkey) -> int:
            with admin_of(node) as admin:
                return len([client for client in admin.client_list() if client["user"] == "worker"])

        url = f"rediss+cluster://{cluster.hosts}?ssl_ca_certs={certificates.ca}"
        async with opened(url, credentials=WORKER, timeout_s=2) as store:
            for partition in range(N):
                await patiently(lambda p=partition: store.checkpoint(p))  # type: ignore[misc]  # bound now
            assert all(clients(node) for node in cluster.nodes)
            with hanging(cluster.nodes[0]), hanging(cluster.nodes[1]):
                begun = time.monotonic()
                await store.close()
                assert time.monotonic() - begun < 2 + SLACK_S
                eventually(lambda: not clients(cluster.nodes[2]))


@pytest.mark.parametrize("how", ["killed", "hangs"])
async def test_a_cluster_behind_tls_whose_replica_takes_over(certificates: Certificates, how: str) -> None:
    """Every node is reached by TLS, also those that only the Cluster named, and the one that becomes a master. The one
    that it was before is not waited for, not even for its goodbye."""
    rng = np.random.default_rng(8)
    with LocalCluster(binary=debian_redis(), tls=certificates) as cluster, ExitStack() as meanwhile:
        host = cluster.hosts.split(",")[1]
        cluster.add_replica()
        cluster.everywhere("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *CLUSTER_ACL)
        url = f"rediss+cluster://{host}"
        async with opened(f"{url}?ssl_ca_certs={certificates.ca}", credentials=WORKER, timeout_s=2) as store:
            await exercise(store)
            partition = next(p for p in range(N) if cluster.node_of(f"{{p{p}}}") == 0)
            commit = step_of(None, ["a"], rng, partition=partition)
            await store.apply(commit)
            with admin_of(cluster.nodes[0]) as admin:
                assert admin.execute_command("WAIT", 1, 2000) == 1
            if how == "killed":
                await asyncio.to_thread(cluster.nodes[0].kill)
            else:
                await asyncio.gather(
                    *(store.checkpoint(partition) for _ in range(3))
                )  # connections that stay idle
                meanwhile.enter_context(hanging(cluster.nodes[0]))
            with pytest.raises(StoreUnavailable) as refusal:
                await store.checkpoint(partition)
            says_nothing(refusal.value)
            await asyncio.to_thread(eventually, lambda: cluster.taken_over(3))
            assert await store.checkpoint(partition) == commit.checkpoint  # at the first try
            await surely(store, step_of(commit.checkpoint, ["b"], rng, partition=partition))
            await store.start()
        async with opened(f"{url}?ssl_ca_certs={certificates.other_ca}") as store:
            for question in (store.start(), store.checkpoint(0), store.find(JANE)):
                with pytest.raises(StoreMisconfigured, match=r"(?i)certificate.*ssl_ca_certs=FILE") as error:
                    await question
                says_nothing(error.value)


async def test_sentinels_behind_tls_with_a_user_of_their_own(certificates: Certificates) -> None:
    with Keeper() as keeper, tls_server(certificates, clients=False) as (server, port):
        with admin_of(server) as admin:
            admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *ACL)
        lines = [
            f"{name} {value}\n" for name, value in certificates.settings(0).items() if name != "tls-port"
        ]
        (guarded,) = free_ports(1)
        user = "user watcher on >secret2 -@all +sentinel|get-master-addr-by-name\n"
        more = f"tls-port {guarded}\ntls-replication yes\n{''.join(lines)}{user}"
        sentinel(keeper, "sentinel", port, quorum=1, more=more)
        url = f"rediss+sentinel://127.0.0.1:{guarded}/{SERVICE}?ssl_ca_certs={certificates.ca}"
        watching = replace(WORKER, sentinel_username="watcher", sentinel_password="secret2")
        async with opened(url, credentials=watching) as store:
            await exercise(store, steps=10)
        async with opened(url, credentials=replace(watching, sentinel_password="secret")) as store:
            for question in (store.start(), store.checkpoint(0)):
                with pytest.raises(StoreMisconfigured, match="EBBTIDE_REDIS__PASSWORD") as error:
                    await question
                says_nothing(error.value)
        other = url.replace(str(certificates.ca), str(certificates.other_ca))
        async with opened(other, credentials=watching) as store:
            with pytest.raises(StoreMisconfigured, match="ssl_ca_certs=FILE") as error:
                await store.start()
            says_nothing(error.value)


class Applied(Telemetry):
    """When each partition's position was told, by the monotonic clock."""

    def __init__(self) -> None:
        self.at: dict[tuple[int, int], float] = {}

    def turn_done(self, turn: TurnDone) -> None:
        now_s = time.monotonic()
        self.at.update(((piece.partition, piece.position), now_s) for piece in turn.pieces)


async def test_a_hanging_shard_holds_up_nobody_else(cluster: LocalCluster) -> None:
    """One of three masters is stopped by SIGSTOP under a trickle of events: its partitions leave their turn after a
    quarter of a second, and the others go on as before, every one of them."""
    world, heard = ClusterWorld(22, [[] for _ in range(N)], rate=0.0), Applied()
    world.use(f"redis+cluster://{cluster.hosts}", "hang:")
    affected = {partition for partition in range(N) if cluster.node_of(f"{{p{partition}}}") == 0}
    others = sorted(set(range(N)) - affected)
    assert affected
    assert others
    sent: dict[tuple[int, int], float] = {}

    async def trickle(seconds: float) -> list[tuple[int, int]]:
        """An event a partition every 20 ms; those of the partitions that nothing happened to."""
        mine = []
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            for partition, log in enumerate(world.logs):
                at_ms = T0 + len(log)
                key = f"customer-{partition}".encode()
                value = orjson.dumps({"user_id": key.decode(), "type": "visit", "ts": at_ms})
                log.append(LogRecord(len(log), at_ms, key, value))
                sent[partition, len(log)] = time.monotonic()
                if partition in others:
                    mine.append((partition, len(log)))
            await asyncio.sleep(0.02)
        return mine

    async def latencies_s(asked: list[tuple[int, int]]) -> list[float]:
        """From the event to the first commit that holds it."""
        async with asyncio.timeout(20):
            while any(world.source.offset(partition) < end for partition, end in asked):  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.01)
        told = sorted(heard.at)
        return sorted(
            min(heard.at[n, end] for n, end in told if n == partition and end >= position)
            - sent[partition, position]
            for partition, position in asked
        )

    worker = world.worker(telemetry=heard)
    node = cluster.nodes[0]
    assert node.server is not None
    async with world.at_work(worker):
        await trickle(0.5)
        before = await latencies_s(await trickle(2.0))
        node.server.signal(signal.SIGSTOP)
        try:
            during = await latencies_s(await trickle(4.0))
        finally:
            node.server.signal(signal.SIGCONT)
    middle, p99 = (
        [found[round(share * (len(found) - 1))] for found in (before, during)] for share in (0.5, 0.99)
    )
    print(
        f"seconds, before and while it hangs: median {middle}, p99 {p99}, longest {before[-1]}, {during[-1]}"
    )
    assert middle[1] <= 2 * middle[0] + 0.02
    late = sum(latency > 2 * p99[0] + 0.05 for latency in during) * 4.0 / len(during)
    assert late < 0.5, (
        "one turn waits a quarter of a second for the shard: what came meanwhile is late, and no more"
    )
    assert during[-1] < 1.0
