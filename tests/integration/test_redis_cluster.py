"""The store on a Redis Cluster.

Valkey makes the Cluster. Faults are those of real servers: SIGKILL, SIGSTOP, a slot on the move, users with few
rights.
"""

import asyncio
import signal
import time
import traceback
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from ebbtide.featurestore.errors import StoreMisconfigured, StoreUnavailable
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.featurestore.store.redis.credentials import Credentials
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.stack.local import LocalValkey
from tests.support.patience import PATIENCE_S, Starved
from tests.support.seams.stores import DTYPE, random_step, state_of, step_of
from tests.support.servers.production import (
    ACL,
    CLUSTER_ACL,
    CUSTOMERS,
    JANE,
    SLACK_S,
    WORKER,
    N,
    exercise,
    opened,
    patiently,
    says_nothing,
    surely,
)
from tests.support.servers.redis import (
    LocalCluster,
    Move,
    admin_of,
    eventually,
)

RISKS = np.array([0.9, np.nan], np.float32)
"""Somebody of two is at risk, so that the list of risks is there: a slot on the move has a new key wait."""

pytestmark = pytest.mark.redis


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
                with Starved() as starved:
                    loads = store.load_each([(p, CUSTOMERS) for p in range(N)])
                    answers = store.apply_each(commits)
                    await asyncio.gather(*(answers[p] for p in others), *(loads[p] for p in others))
                assert starved or time.monotonic() - begun_s < timeout_s / 4
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
        commits = [
            step_of(None, ["a", JANE], rng, partition=p, messages=said, at_risk=RISKS) for p in range(N)
        ]

        def following() -> list[Commit]:
            return [
                step_of(commit.checkpoint, ["a", JANE], rng, partition=p, at_risk=RISKS)
                for p, commit in enumerate(commits)
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
        commit = step_of(None, ["a", JANE], rng, messages=[(b"1", b"one")], at_risk=RISKS)
        await store.apply(commit)
        for back in (False, True):
            if back:
                source, target = target, source
            move = Move(source, target, slot)
            move.begin()
            await store.apply(commit := step_of(commit.checkpoint, ["a", JANE], rng, at_risk=RISKS))
            move.some(2)
            for question in (
                store.apply(step_of(commit.checkpoint, ["a", JANE], rng, at_risk=RISKS)),
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
                    store.apply(commit := step_of(commit.checkpoint, ["a", JANE], rng, at_risk=RISKS)), *asked
                )
            assert [entry.value for entry in await store.outbox(0)] == [b"one"]
            ((_, row),) = await store.find(JANE)
            assert row.tobytes() == commit.rows[1].tobytes()
            move.end()
            await store.apply(
                commit := step_of(
                    commit.checkpoint, [f"new-{back}", "a", JANE], rng, at_risk=np.append(RISKS[1:], RISKS)
                )
            )
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
            until_s = time.monotonic() + PATIENCE_S
            while time.monotonic() < until_s and not (waited and done > 20):
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
