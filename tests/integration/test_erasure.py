"""The right to erasure on real servers: after a tombstone nothing of the customer is left, and nothing brings it back.

    ann ──▶ events, bad records ──▶ tombstone ──▶ nothing: record, due time, outbox, list of risks, memory, /v1, logs
                                        └──▶ the last word under her key in every output topic
    and still nothing after: dlq replay · an older state restored · no state at all · a rebuild

What is stored is looked at from outside: every key and value of the server, whoever wrote it.
"""

import asyncio
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from redis.asyncio import Redis

from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.config.settings import HttpSettings
from ebbtide.ops.http.customers import Customers
from ebbtide.ops.http.server import HttpServer
from ebbtide.ops.observe.logs import capture_logs
from ebbtide.ops.state.plan import plan
from ebbtide.ops.state.rebuild import Counts, ForbiddenSink, Rebuild
from ebbtide.stream.dlq.replay import replay
from ebbtide.stream.kafka.committed_log import open_committed_log
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.outputs.message import Message
from tests.support.patience import PATIENCE_S
from tests.support.seams.answering import answering
from tests.support.servers.services import Services
from tests.support.workers.worlds import NEW, OLD, PARTITIONS, T0, Clicks, World, commit

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

ANN = "erased-ann-7f3c"
DAY_MS = 86_400_000
STILL_MS_MAX = 3_000
"""Far above the milliseconds that a snapshot takes, below the worker's patience with a server."""
Raw = dict[bytes, tuple[int, bytes]]
"""Key -> (ms left or 0, its dump)."""


def visit(world: World, day: float, customer: str = ANN) -> Message:
    at_ms = T0 + round(day * DAY_MS)
    event = {"user_id": customer, "type": "visit", "ts": at_ms}
    return Message(world.name, customer.encode(), orjson.dumps(event), (), at_ms)


def bad(world: World, customer: str = ANN) -> Message:
    return Message(world.name, customer.encode(), b"nonsense of " + customer.encode())


def tombstone(world: World) -> Message:
    return Message(world.name, ANN.encode(), None)


def life(world: World) -> list[Message]:
    """Ann visits, keeps away until she is alerted about, and comes back: two alerts. And one record is bad."""
    return [visit(world, day) for day in (0, 1, 2)] + [bad(world), visit(world, 30)]


def outputs(world: World) -> tuple[str, ...]:
    topics = world.settings.topics
    assert topics.scores is not None and topics.audit is not None
    return topics.alerts, topics.dead_letters, topics.scores, topics.audit


async def of_ann(world: World, topic: str) -> list[bytes | None]:
    """What an output topic says under her key, in order: she has one partition."""
    return [record.value for record in await world.read(topic) if record.key == ANN.encode()]


class Server:
    """The store's server, looked at and put back from outside."""

    def __init__(self, redis: Redis, world: World) -> None:
        self._redis, self._match = redis, f"{world.name}:*"
        self._prefix = f"{world.prefix('old')}{world.name}:"

    async def places(self, name: str = ANN) -> list[str]:
        """Every key whose own name or whose content, in whatever type, holds `name`."""
        keys = await self._keys()
        sought = name.encode()
        return sorted([key.decode() for key in keys if sought in key or sought in await self._content(key)])

    async def _content(self, key: bytes) -> bytes:
        kind: object = await self._redis.type(key)
        parts: Any
        if kind == b"string":
            parts = [await self._redis.get(key) or b""]
        elif kind == b"zset":
            parts = await self._redis.zrange(key, 0, -1)
        elif kind == b"hash":
            parts = [part for pair in (await self._redis.hgetall(key)).items() for part in pair]
        else:
            assert kind == b"none", f"{key!r} is a {kind!r}: this test does not know how to look into it"
            parts = []
        return b"\0".join(parts)

    async def _keys(self) -> list[bytes]:
        return [key async for key in self._redis.scan_iter(match=self._match, count=1000)]

    async def has_alert(self, name: str = ANN) -> bool:
        """An alert of hers is in an outbox. Three look-ups, since it may be there for no longer than TIDY_AFTER_S."""
        outboxes: list[Any] = [
            await self._redis.hvals(f"{self._prefix}{{p{number}}}:out") for number in range(PARTITIONS)
        ]
        return any(name.encode() in value for values in outboxes for value in values)

    @asynccontextmanager
    async def standing_still(self) -> AsyncIterator[None]:
        """Nobody changes anything meanwhile: writes wait, as they do in a failover."""
        await self._redis.client_pause(STILL_MS_MAX, all=False)
        try:
            yield
        finally:
            await self._redis.client_unpause()

    async def save(self) -> Raw:
        """All that there is now."""
        dumps = [(key, await self._redis.dump(key)) for key in await self._keys()]
        return {key: (0, dump) for key, dump in dumps if dump is not None}

    async def put_back(self, saved: Raw) -> None:
        """Be as it was then: a restart after the tail of the log was lost, or with nothing at all."""
        if keys := await self._keys():
            await self._redis.delete(*keys)
        for key, (left_ms, dump) in saved.items():
            await self._redis.restore(key, left_ms, dump)


@asynccontextmanager
async def world_of(stack: Services, name: str) -> AsyncIterator[tuple[World, Server]]:
    world = World(stack, name, scores=True, audit=True)
    await world.create()
    async with Redis.from_url(stack.redis_url) as redis:
        yield world, Server(redis, world)


async def status_of(store: Store, customer: str) -> int:
    """What /v1 answers about a customer."""

    face = HttpServer(
        HttpSettings(port=0), Customers(OLD.layout, store, answering(OLD.model), World.clock).routes()
    )
    address = await face.start()

    def get() -> int:
        try:
            with urllib.request.urlopen(f"{address}/v1/customers/{customer}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    try:
        return await asyncio.to_thread(get)
    finally:
        await face.stop()


async def test_nothing_of_a_forgotten_customer_is_left(stack: Services, unique_name: str) -> None:
    """Record, due time, outbox, memory, /v1 and logs; every output topic hears it last; and a return is a new start."""
    async with world_of(stack, unique_name) as (world, server):
        await world.produce([*Clicks(7, unique_name, tombstones=0.0).next(200), *life(world)])
        with capture_logs() as logged:
            async with world.working("old", OLD) as worker, world.store("old", OLD) as store:
                await world.until_done()
                kinds = {place.rsplit(":", 1)[-1] for place in await server.places()}
                assert {ANN, "due", "risk"} <= kinds  # the search finds what is there
                cache = worker._tools.cache
                assert any(ANN in known.slots for known in cache._partitions.values())
                assert await status_of(store, ANN) == 200

                await world.produce([tombstone(world)])
                await world.until_done()
                assert await server.places() == []
                assert not any(ANN in known.slots for known in cache._partitions.values())
                assert ANN not in cache._customer_of.tolist()
                assert await status_of(store, ANN) == 404
                for topic in outputs(world):
                    *before, last = await of_ann(world, topic)
                    assert last is None and before and None not in before, topic

                await world.produce([visit(world, 40)])
                await world.until_done()
                ((_, row),) = await store.find(ANN)
                assert row["activity_count"] == 1
        assert logged and not any(ANN in str(vars(record)) for record in logged)


async def test_letters_older_than_the_tombstone_are_not_sent_back(stack: Services, unique_name: str) -> None:
    """And those that came after it are, also when one fetch held both: she may have come back."""
    async with world_of(stack, unique_name) as (world, server):
        bob = "bob-who-stays"
        await world.produce([*life(world), bad(world, bob), tombstone(world), bad(world)])
        async with world.working("old", OLD):
            await world.until_done()
        letters = await of_ann(world, world.settings.topics.dead_letters)
        assert [value is None for value in letters] == [False, True, False]
        async with KafkaSink(world.settings.kafka) as sink:
            result = await replay(world.settings.kafka, world.settings.topics.dead_letters, sink)
        assert result.forgotten == 1 and result.sent.total() == 2
        async with world.working("old", OLD):
            await world.until_done()
        assert await server.places() == []


async def test_an_unread_tombstone_counts_for_a_replay(stack: Services, unique_name: str) -> None:
    """It lies in the backlog, above the group's committed offset: her letter would come after it. Somebody else's
    goes back."""
    async with world_of(stack, unique_name) as (world, server):
        await world.produce([*life(world), bad(world, "bob-who-stays")])
        async with world.working("old", OLD):
            await world.until_done()
        await world.produce([tombstone(world)])
        assert None not in await of_ann(world, world.settings.topics.dead_letters)  # not passed on
        async with KafkaSink(world.settings.kafka) as sink:
            result = await replay(world.settings.kafka, world.settings.topics.dead_letters, sink)
        assert result.forgotten == 1 and result.sent.total() == 1
        async with world.working("old", OLD):
            await world.until_done()
        assert await server.places() == []
        assert (await of_ann(world, world.settings.topics.dead_letters))[-1] is None


async def until_in_outbox(server: Server) -> Raw:
    """What the server holds at a moment when an alert of hers is in the outbox."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await server.has_alert():
                async with server.standing_still():
                    # Else the outbox was tidied just before.
                    if await server.has_alert():
                        return await server.save()
            await asyncio.sleep(0.002)


async def counts(world: World) -> Counter[str]:
    return Counter({topic: len(await world.read(topic)) for topic in outputs(world)})


async def test_no_older_state_and_no_lost_one_brings_her_back(stack: Services, unique_name: str) -> None:
    """An outbox from before the tombstone, a store without anything, a rebuild: nobody says a word of her again, and
    nothing of her is stored at the end."""
    async with world_of(stack, unique_name) as (world, server):
        await world.produce(Clicks(8, unique_name, tombstones=0.0).next(200))
        async with world.working("old", OLD):
            await world.until_done()
            watching = asyncio.create_task(until_in_outbox(server))
            await world.produce(life(world))
            saved = await watching
            before = await world.until_done()
            await world.produce([tombstone(world)])
            after = await world.until_done()
        assert await server.places() == []
        said = await counts(world)

        for state in (saved, {}):
            await server.put_back(state)
            async with world.working("old", OLD):
                await eventually_at(world, after)
            assert await counts(world) == said
            assert await server.places() == []

        # As above, but nobody lived to commit that the alert was sent: it comes again, and the tombstone after it.
        await server.put_back(saved)
        await commit(world, {number: at - 5 * (at != after[number]) for number, at in before.items()})
        async with world.working("old", OLD):
            await eventually_at(world, after)
        alerts = await of_ann(world, world.settings.topics.alerts)
        assert alerts[-2] is not None and alerts[-1] is None and alerts.count(None) == 2
        assert await server.places() == []

        said = await counts(world)
        told = Counts()
        async with open_committed_log(world.settings.kafka) as settled, world.store("new", NEW) as store:
            tools = world.tools(NEW, store, ForbiddenSink(), told)
            begun = await plan(settled, store, world.settings.kafka.group, NEW.layout.id)
            await Rebuild(settled, tools, told, begun, dead_letter_share_max=1.0).run()
            tools.batcher.close()
        assert sum(told.records.values()) == sum(after.values())
        assert await counts(world) == said
        assert await server.places() == []

        # A state that is kept for going back hears of no tombstone: it knows her until it goes on, or is dropped.
        await server.put_back(saved)
        assert await server.places() != []
        async with world.store("old", OLD) as store:
            for number in after:
                await store.reset(number)
        assert await server.places() == []


async def eventually_at(world: World, ends: dict[int, int]) -> None:
    """Every checkpoint is at the end of its log, and the outboxes are tidied."""
    async with world.store("old", OLD) as store, asyncio.timeout(PATIENCE_S):
        while True:
            checkpoints = {number: await store.checkpoint(number) for number in ends}
            done = all(
                checkpoint is not None and checkpoint.offset == ends[number]
                for number, checkpoint in checkpoints.items()
            )
            if done and not any([await store.outbox(number) for number in ends]):
                return
            await asyncio.sleep(0.02)
