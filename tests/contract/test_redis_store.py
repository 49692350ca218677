"""What the store in Redis adds to the contract: its keys, its round trips, and what stands in them."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.crc import key_slot

from ebbtide.featurestore.errors import Fenced, LayoutError, StoreUnavailable
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX
from ebbtide.featurestore.store.redis.names import HiddenNames
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.stack.local import LocalValkey
from tests.support.patience import PATIENCE_S
from tests.support.seams.stores import DTYPE, PARTITIONS, state_of, step_of
from tests.support.servers.production import patiently

pytestmark = pytest.mark.redis
SPECS = Path(__file__).resolve().parents[2] / "ops" / "specs"
RNG = np.random.default_rng(0)


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


async def test_a_foreign_name_among_the_due_is_an_answer(store: RedisStore, admin: Any) -> None:
    """No text, so nobody of ours: whoever asked is told, and does not wait for ever; nor do others that were asked
    with it."""
    for partition in range(2):
        await store.apply(step_of(None, ["a"], RNG, partition=partition))
    await admin.zadd("t:clicks:{p0}:due", {b"\xfe": 1})
    asked = store.due_each([(0, 2**53, 9), (1, 2**53, 9)])
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(LayoutError, match="no text"):
            await asked[0]
        assert (await asked[1])[0] == ["a"]


async def test_questions_to_a_hanging_server_are_given_up_in_time(server: LocalValkey, admin: Any) -> None:
    """And what comes later is not taken for the answer to the next question."""
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:", timeout_s=0.2)
    commits = [step_of(None, ["a"], RNG, partition=p) for p in range(PARTITIONS)]
    assert await patiently(lambda: store.checkpoint(0)) is None
    await admin.client_pause(1500)
    assert [type(each) for each in await store.apply_many(commits)] == [StoreUnavailable] * PARTITIONS
    await admin.ping()  # answered when the pause is over
    for commit in commits:
        found = await patiently(lambda p=commit.partition: store.checkpoint(p))  # type: ignore[misc]  # bound now
        assert found in (None, commit.checkpoint)
    await store.close()


async def test_closing_gives_up_what_is_still_asked(server: LocalValkey, admin: Any) -> None:
    store = RedisStore(server.url, DTYPE, "clicks", PARTITIONS, prefix="t:", timeout_s=5)
    await store.checkpoint(0)
    await admin.client_pause(300)
    answers = store.load_each([(p, ["a"]) for p in range(PARTITIONS)])
    await asyncio.sleep(0.05)
    await store.close()
    assert all(answer.cancelled() for answer in answers)


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


async def test_who_is_armed_between_two_questions_is_due_once(server: LocalValkey, admin: Any) -> None:
    """Under a key a page takes two questions; meanwhile somebody of it is armed for its last millisecond."""
    names = HiddenNames("k" * 32)
    store = RedisStore(server.url, DTYPE, "clicks", 1, prefix="t:", names=names)
    who = ["a", "b", "c", "d"]
    await store.apply(step_of(None, who, RNG, due=np.array([1, 5, 5, 9])))
    asked = asyncio.Event()

    async def arm() -> int:
        times = 0
        while not asked.is_set():
            times += 1
            await admin.zadd("t:clicks:{p0}:due", {names.stored("a"): 5 if times % 2 else 1})
        return times

    arming = asyncio.create_task(arm())
    pages = [await store.due(0, 10, 2) for _ in range(500)]
    asked.set()
    assert await arming > len(pages)
    assert [found for found, _ in pages if len(set(found)) < len(found)] == []
    assert {tuple(found) for found, _ in pages} <= {("a", "b"), ("b", "c"), ("a",), ("b",)}
    await store.close()
