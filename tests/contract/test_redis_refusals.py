"""Every way a server of Redis can refuse, and whether an operator has to change something or time will heal it.

Faults here are settings of a real server (users, policy, a paused client), never patches.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis

from ebbtide.featurestore.errors import StoreMisconfigured, StoreUnavailable
from ebbtide.featurestore.store.redis.credentials import Credentials
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.stack.local import LocalValkey
from tests.support.patience import PATIENCE_S
from tests.support.seams.stores import DTYPE, EMPTY, PARTITIONS, state_of, step_of

pytestmark = pytest.mark.redis
RNG = np.random.default_rng(0)
# What `featurestore/store/redis/store.py` asks for, and the reports' right.
ACL = ["+@read", "+@write", "-@dangerous", "+eval", "+evalsha", "+info", "+memory"]
CLOSED_PORT_URL = "redis://127.0.0.1:1/0"


async def test_a_user_with_the_documented_rights_can_do_everything(server: LocalValkey, admin: Any) -> None:
    await admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~t:clicks:*", *ACL)
    url, worker = f"redis://127.0.0.1:{server.port}/0", Credentials("worker", "secret")
    store = RedisStore(url, DTYPE, "clicks", PARTITIONS, credentials=worker, prefix="t:")
    await store.start()
    commit = step_of(None, ["a", "b"], RNG, messages=[(b"1", b"one")])
    await store.apply(commit)
    await store.apply(step_of(commit.checkpoint, [], RNG, forgotten=["a"], acked=[b"1"]))
    assert (await state_of(store)).records.keys() == {"b"}
    assert await store.find("b")
    assert (await store.memory_usage(0, ["b"])).records[0] > DTYPE.itemsize
    await store.reset(0)
    await store.close()


@pytest.mark.parametrize("missing", ["mset", "set", "zadd", "zrem", "hset", "hdel", "unlink"])
async def test_a_missing_right_is_seen_before_anything_is_written(
    server: LocalValkey, admin: Any, missing: str
) -> None:
    """A script has no rollback: were the refusal met half-way, half the step would stay."""
    await admin.execute_command("ACL", "SETUSER", "weak", "reset", "on", ">secret", "~*", *ACL, f"-{missing}")
    store = RedisStore(
        server.url, DTYPE, "clicks", PARTITIONS, credentials=Credentials("weak", "secret"), prefix="t:"
    )
    with pytest.raises(StoreMisconfigured, match=rf"(?i){missing} .*EBBTIDE_REDIS__USERNAME"):
        await store.apply(step_of(None, ["a"], RNG, forgotten=["b"], messages=[(b"1", b"one")], acked=[b"1"]))
    assert await admin.keys() == []
    await store.close()


async def test_foreign_keys_are_refused_without_naming_a_customer(server: LocalValkey, admin: Any) -> None:
    await admin.execute_command("ACL", "SETUSER", "other", "reset", "on", ">secret", "~other:*", *ACL)
    store = RedisStore(
        server.url, DTYPE, "clicks", PARTITIONS, credentials=Credentials("other", "secret"), prefix="t:"
    )
    for question in (
        store.apply(step_of(None, ["jane@example.org"], RNG)),
        store.load(0, ["jane@example.org"]),
        store.find("jane@example.org"),
        store.memory_usage(0, ["jane@example.org"]),
    ):
        with pytest.raises(StoreMisconfigured) as refusal:
            await question
        assert "jane" not in str(refusal.value)
    await store.close()


@pytest.mark.parametrize("who", [(None, None), (None, "wrong@"), ("nobody", "secret")])
async def test_a_wrong_password_names_the_setting_and_not_the_password(
    who: tuple[str | None, str | None],
) -> None:
    with LocalValkey(password="secret") as server:
        store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, credentials=Credentials(*who))
        for question in (
            store.start(),
            store.checkpoint(0),
            store.apply(step_of(None, ["a"], RNG)),
            store.find("a"),
        ):
            with pytest.raises(StoreMisconfigured, match="EBBTIDE_REDIS__PASSWORD") as refusal:
                await question
            assert "secret" not in str(refusal.value)
            assert "wrong@" not in str(refusal.value)
        await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis://h:port:secret",
        "redis://h?secret=secret",
        "redis://h?ssl_ca_certs=secret",
        "rediss://h?ssl_ca_certs=/nonexistent/secret.pem",
        f"rediss://h?ssl_certfile={__file__}",
        "rediss://h?ssl_cert_reqs=secret",
        "redis://h?socket_timeout=secret",
        "redis+cluster://",
        "redis+cluster://h1,,h2",
        "redis+cluster://h1:secret,h2",
        "redis+cluster://h1:99999",
        "redis+cluster://h1/1",
        "redis+cluster://h1/secret",
        "redis+cluster://h1?ssl_ca_certs=secret",
        "redis+other://h1",
        "http+cluster://h1",
        "unix+cluster:///secret",
        "redis+sentinel://h1",
        "redis+sentinel://h1:1/",
        "redis+sentinel://h1:1/name/secret",
        "redis+sentinel://h1:1/name/0/secret",
        "redis+sentinel:///name",
        "redis+sentinel://h/na me/secret/1",
    ],
)
def test_a_url_that_cannot_be_understood_is_not_repeated(url: str) -> None:
    with pytest.raises(StoreMisconfigured, match="EBBTIDE_REDIS_URL") as refusal:
        RedisStore(url, DTYPE, "clicks", PARTITIONS)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://h", "h:6379"),
        ("rediss://h:1/3?ssl_cert_reqs=none", "h:1"),
        ("unix:///run/redis.sock?db=1", "/run/redis.sock"),
        ("redis+cluster://h1:1,h2,[::1]:3", "h1:1,h2:6379,::1:3"),
        ("rediss+cluster://h1:1/0?socket_timeout=3", "h1:1"),
        ("redis+sentinel://h1,h2:2/a%20name", "a name of Sentinels h1:26379,h2:2"),
        ("rediss+sentinel://h1/name/2/", "name of Sentinels h1:26379"),
    ],
)
def test_every_form_of_url_says_where(url: str, where: str) -> None:
    assert RedisStore(url, DTYPE, "clicks", PARTITIONS).where == where


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@h", "redis://u:secret@h/0", "redis://secret@h", "redis://h?password=secret",
        "redis://h/0?db=1&PASSWORD=secret", "rediss://h?ssl_password=secret", "redis://h?username=secret",
        "redis+cluster://u:secret@h1:1,u:secret@h2:2", "redis+sentinel://h1/name?sentinel_password=secret",
        "unix://ann:secret@/run/redis.sock", "unix:///run/redis.sock?password=secret", "redis://:sec/secret@h",
    ],
)  # fmt: skip
def test_a_user_or_password_in_a_url_names_the_settings(url: str) -> None:
    with pytest.raises(StoreMisconfigured, match="EBBTIDE_REDIS_URL holds no credentials") as refusal:
        RedisStore(url, DTYPE, "clicks", PARTITIONS)
    for name in ("EBBTIDE_REDIS__USERNAME", "EBBTIDE_REDIS__PASSWORD", "EBBTIDE_REDIS__SENTINEL__PASSWORD"):
        assert name in refusal.value.hint
    assert "secret" not in str(refusal.value)


def test_credentials_for_sentinels_that_the_url_does_not_name() -> None:
    for url in ("redis://h", "redis+cluster://h", "unix:///run/redis.sock"):
        with pytest.raises(StoreMisconfigured, match="names no Sentinels"):
            RedisStore(url, DTYPE, "clicks", PARTITIONS, credentials=Credentials(sentinel_password="secret"))
    assert "secret" not in repr(Credentials("u", "secret", "u", "secret", "secret"))


def test_braces_would_move_the_hash_tag() -> None:
    with pytest.raises(StoreMisconfigured, match="braces"):
        RedisStore("redis://localhost", DTYPE, "clicks", PARTITIONS, prefix="{a}")


async def test_nobody_there_is_worth_a_retry(server: LocalValkey) -> None:
    for url in (CLOSED_PORT_URL, "redis://no-such-host.invalid:6379", "unix:///nonexistent/redis.sock"):
        store = RedisStore(url, DTYPE, "clicks", PARTITIONS, timeout_s=2)
        for question in (store.start(), store.checkpoint(0), store.find("a")):
            with pytest.raises(StoreUnavailable, match="EBBTIDE_REDIS_URL"):
                await question
        await store.close()


@pytest.mark.parametrize(("scheme", "hint"), [("redis", "of our own"), ("rediss", "TLS")])
async def test_something_that_is_no_redis_is_no_outage(scheme: str, hint: str) -> None:
    """Nor is a server without TLS under a URL that asks for it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    web = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with web:
        port = web.sockets[0].getsockname()[1]
        store = RedisStore(f"{scheme}://127.0.0.1:{port}", DTYPE, "clicks", PARTITIONS, timeout_s=2)
        with pytest.raises(StoreMisconfigured, match=rf"EBBTIDE_REDIS_URL.*{hint}|{hint}.*EBBTIDE_REDIS_URL"):
            await store.checkpoint(0)
        await store.close()


async def test_a_server_that_evicts_is_refused(store: RedisStore, admin: Any) -> None:
    await store.start()
    for policy in ("allkeys-lru", "volatile-ttl"):
        await admin.config_set("maxmemory-policy", policy)
        try:
            with pytest.raises(StoreMisconfigured, match=rf"{policy}.*noeviction"):
                await store.start()
        finally:
            await admin.config_set("maxmemory-policy", "noeviction")


async def test_a_replica_is_waited_for(store: RedisStore, admin: Any) -> None:
    """After a failover it may be the primary again; until then nothing is written."""
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(StoreUnavailable):
            await store.apply(step_of(None, ["a"], RNG))
    finally:
        await admin.execute_command("REPLICAOF", "NO", "ONE")
    assert await admin.keys() == []


async def test_a_busy_server_is_waited_for(store: RedisStore, admin: Any) -> None:
    await admin.config_set("busy-reply-threshold", 20)
    stuck = asyncio.create_task(admin.eval("while true do end", 0))

    async def asked_until_it_is_busy() -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await store.checkpoint(0)
                await asyncio.sleep(0.02)

    try:
        with pytest.raises(StoreUnavailable):
            await asked_until_it_is_busy()
        with pytest.raises(StoreUnavailable):
            await store.apply(step_of(None, ["a"], RNG))
    finally:
        await admin.script_kill()
        await asyncio.gather(stuck, return_exceptions=True)
        await admin.config_set("busy-reply-threshold", 5000)
    await store.apply(step_of(None, ["a"], RNG))


async def test_a_cluster_node_behind_a_plain_url_is_told_apart(tmp_path: Path, server: LocalValkey) -> None:
    """Every key is declared and lies in the partition's slot, or the node would refuse the scripts.

    A unix socket is tried on the way.
    """
    socket = tmp_path / "redis.sock"
    settings = {"cluster-enabled": "yes", "unixsocket": str(socket)}
    with LocalValkey(
        binary=Path(server._command()[0]), name="node", appendonly=False, settings=settings
    ) as node:
        admin: Any
        async with Redis.from_url(node.url) as admin:
            await admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            async with asyncio.timeout(PATIENCE_S):  # it takes two seconds to trust itself
                while (await admin.execute_command("CLUSTER INFO"))["cluster_state"] != "ok":  # noqa: ASYNC110 -- no event
                    await asyncio.sleep(0.1)
        store = RedisStore(f"unix://{socket}", DTYPE, "clicks", PARTITIONS)
        with pytest.raises(StoreMisconfigured, match=r"EBBTIDE_REDIS_URL begin with redis\+cluster://"):
            await store.start()
        first = step_of(None, ["a", "{p1}", "}x{"], RNG, messages=[(b"1", b"one")])
        await store.apply(first)
        await store.apply(step_of(first.checkpoint, ["a"], RNG, forgotten=["{p1}"], acked=[b"1"]))
        assert (await state_of(store)).records.keys() == {"a", "}x{"}
        assert await store.find("}x{")
        await store.reset(0)
        assert await state_of(store) == EMPTY
        await store.close()
