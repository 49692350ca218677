"""Customers who are a learner and a course: scored and alerted about apart, and forgotten together by the learner.

    ann/math ─▶ events, alerts ─┐
    ann/art  ─▶ events, alerts ─┼─ tombstone of ann ──▶ nothing is left of ann/math and ann/art; all is left of others
    ann2/math, bob/math         ┘         └──▶ nulls under ann, ann/math and ann/art in every output topic

On one partition by hand, with faults; then on a real Kafka and a real Valkey, ids hidden and not.
"""

import asyncio
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import orjson
import pytest
import yaml
from pydantic import SecretStr
from redis.asyncio import Redis

from ebbtide.featurestore.customer import first_of
from ebbtide.featurestore.errors import StoreUnavailable
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, dump_spec, parse_spec
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX, Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.asking.customer import of_first
from ebbtide.ops.cli import run
from ebbtide.ops.config.settings import HttpSettings
from ebbtide.ops.http.customers import Customers
from ebbtide.ops.http.server import HttpServer
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.dlq.replay import replay
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.pipeline import Pipeline, Tools
from ebbtide.stream.turn.due import Due
from ebbtide.stream.turn.work import Piece
from tests.support.seams.answering import answering
from tests.support.seams.scoring import SPEC
from tests.support.seams.streams import ListSink, LogRecord
from tests.support.seams.turns import from_the_beginning, take_over
from tests.support.servers.services import Services
from tests.support.workers.worlds import PARTITIONS, T0, Arithmetic, Kind, World

DAY_MS = 86_400_000
FIELDS = ["learner", "properties.course"]
EVERYBODY = ["ann/math", "ann/art", "ann2/math", "an/nmath", "bob/math", "ann~1math/art"]
OF_ANN = ["ann", "ann/art", "ann/math"]


def kind_of(key: str = "first") -> Kind:
    spec = parse_spec(dump_spec(SPEC) | {"customer": {"fields": FIELDS, "key": key}})
    policy = EpisodePolicy.of(enter=0.4, exit=0.3, cooldown_ms=0)
    return Kind(Layout(spec), Arithmetic(spec, policy, version=1))


BY_LEARNER = kind_of()


def body(customer: str, at_ms: int) -> bytes:
    learner, course = (part.replace("~1", "/").replace("~0", "~") for part in customer.split("/"))
    return orjson.dumps({"learner": learner, "properties": {"course": course}, "type": "visit", "ts": at_ms})


class Drill:
    """One partition by hand: records are taken from where the state is, as by a new owner each time."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore(BY_LEARNER.layout.dtype, 1)
        self.sink, self.log = ListSink(), list[LogRecord]()

    def add(self, customers: Sequence[str], day: float = 0.0) -> None:
        """An event of each."""
        at_ms = T0 + round(day * DAY_MS)
        for name in customers:
            self.log.append(LogRecord(len(self.log), at_ms, first_of(name).encode(), body(name, at_ms)))

    def forget(self, name: str) -> None:
        self.log.append(LogRecord(len(self.log), T0, name.encode(), None))

    def tools(self) -> Tools:
        world = World(Services("127.0.0.1:1", "redis://127.0.0.1:1/0"), "drill", scores=True)
        return world.tools(BY_LEARNER, self.store, self.sink)

    async def take(self) -> None:
        """All that is left of the log, in pieces of a fetch."""
        tools = self.tools()
        scoring = asyncio.create_task(tools.batcher.run())
        opened = from_the_beginning(BY_LEARNER.layout.id, 0, 1)
        if (stored := await self.store.checkpoint(0)) is not None:
            opened.stored = opened.checkpoint = stored
        try:
            for at in range(opened.checkpoint.offset, len(self.log), 1_000):
                part = self.log[at : at + 1_000]
                await take_over(tools, opened, FetchedBatch("drill", 0, 0, at, at + len(part), part))
        finally:
            scoring.cancel()
            await asyncio.gather(scoring, return_exceptions=True)
            tools.batcher.close()

    async def records(self) -> dict[str, bytes]:
        return {
            name: row.tobytes()
            async for names, rows in self.store.scan(0)
            for name, row in zip(names, rows, strict=True)
        }

    def said(self, topic: str, name: str) -> list[bytes | None]:
        """What a topic says under a key, in order."""
        return [m.value for m in self.sink.sent.get(f"drill-{topic}", []) if m.key == name.encode()]


class FailsAt(MemoryStore):
    """The n-th commit that forgets somebody is refused, once."""

    def __init__(self, n: int) -> None:
        super().__init__(BY_LEARNER.layout.dtype, 1)
        self._left = n

    async def apply(self, commit: Commit) -> None:
        self._left -= bool(commit.forgotten)
        if commit.forgotten and self._left == 0:
            raise StoreUnavailable("refused on purpose")
        await super().apply(commit)


async def test_a_first_part_takes_all_who_begin_with_it() -> None:
    drill, others = Drill(), Drill()
    drill.add(EVERYBODY)
    others.add(EVERYBODY)
    drill.forget("ann")
    await drill.take()
    await others.take()
    left = await others.records()
    assert await drill.records() == {name: left[name] for name in EVERYBODY if not name.startswith("ann/")}
    for name in OF_ANN:
        assert drill.said("scores", name)[-1] is None and drill.said("alerts", name) == [None]
    for name in set(EVERYBODY) - set(OF_ANN):
        assert None not in drill.said("scores", name)


async def test_a_whole_customer_goes_alone() -> None:
    drill = Drill()
    drill.add(EVERYBODY)
    drill.forget("ann/math")
    await drill.take()
    assert set(await drill.records()) == set(EVERYBODY) - {"ann/math"}
    assert drill.said("alerts", "ann/math") == [None]
    assert drill.said("alerts", "ann") == drill.said("alerts", "ann/art") == []


@pytest.mark.parametrize("piece", [1, 3, 1_000])
async def test_who_comes_back_behind_the_tombstone_is_new(piece: int) -> None:
    """However the log is cut; also where the tombstone is of the one, and the event before it of the other."""
    drill, anew = Drill(), Drill()
    drill.add(["ann/math", "ann/art"])
    drill.forget("ann")
    drill.add(["ann/math", "bob/math"], day=3)
    drill.forget("ann/art")
    drill.add(["ann/art"], day=4)
    for at in range(0, len(drill.log), piece):
        whole, drill.log = drill.log, drill.log[: at + piece]
        await drill.take()
        drill.log = whole
    kept = drill.log[3:5] + drill.log[6:]
    anew.log = [LogRecord(i, each.timestamp, each.key, each.value) for i, each in enumerate(kept)]
    await anew.take()
    assert without_offsets(await drill.records()) == without_offsets(await anew.records())


def without_offsets(records: dict[str, bytes]) -> dict[str, bytes]:
    rows = {
        name: np.frombuffer(bytearray(record), BY_LEARNER.layout.dtype) for name, record in records.items()
    }
    for row in rows.values():
        row["last_seen_offset"] = 0
    return {name: row.tobytes() for name, row in rows.items()}


@pytest.mark.parametrize("fails", [0, 1, 2, 3, 4])
async def test_more_than_a_commit_holds_are_forgotten(fails: int) -> None:
    """Page by page; a page that is refused leaves the tombstone ahead, and the next owner finds who is left. Nobody is
    forgotten of whom the output topics have not been told."""
    customers = [f"ann/c{n}" for n in range(2 * CUSTOMERS_MAX + 7)]
    drill = Drill(FailsAt(fails))
    drill.add([*customers, *EVERYBODY])
    drill.forget("ann")
    drill.forget("nobody")
    drill.add(["bob/math"], day=1)
    if fails:
        with pytest.raises(StoreUnavailable):
            await drill.take()
        left = await drill.records()
        gone = [name for name in customers if name not in left]
        assert bool(gone) == (fails > 1)
        assert all(drill.said("alerts", name) == [None] for name in gone)
    await drill.take()
    assert set(await drill.records()) == {name for name in EVERYBODY if not name.startswith("ann/")}
    assert all(drill.said("alerts", name)[-1] is None for name in [*customers, *OF_ANN])
    assert (await drill.store.checkpoint(0) or from_the_beginning("", 0, 1).checkpoint).offset == len(
        drill.log
    )


async def test_the_score_of_who_expired_is_deleted() -> None:
    """No tombstone of the first part would reach it: the store does not know whom it names any more."""
    drill = Drill()
    drill.add(["ann/math"])
    await drill.take()
    tools, stored = drill.tools(), await drill.store.checkpoint(0)
    assert stored is not None and drill.said("scores", "ann/math")
    opened = from_the_beginning(BY_LEARNER.layout.id, 0, 1)
    opened.stored = opened.checkpoint = stored
    scoring = asyncio.create_task(tools.batcher.run())
    due = Due(["ann/math"], (T0 + 100 * DAY_MS, "ann/math"))
    assert await Pipeline(tools).turn([Piece(opened, None, due)]) == {0: None}
    scoring.cancel()
    await asyncio.gather(scoring, return_exceptions=True)
    tools.batcher.close()
    assert await drill.records() == {}
    assert drill.said("scores", "ann/math")[-1] is None


def visit(world: World, day: float, customer: str, key: bytes | None = None) -> Message:
    at_ms = T0 + round(day * DAY_MS)
    return Message(world.name, key or first_of(customer).encode(), body(customer, at_ms), (), at_ms)


def lives(world: World) -> list[Message]:
    """Everybody comes, keeps away until they are alerted about, and comes back; a record of each learner is bad."""
    days = [visit(world, day, name) for day in (0, 1, 30) for name in EVERYBODY]
    return days + [Message(world.name, name.encode(), b"no JSON", (), T0) for name in ("ann", "bob")]


def config(world: World, spec: Spec, tmp_path: Path, secret: str | None) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(dump_spec(spec)), encoding="utf-8")
    settings = world.under("old")
    data = {
        "spec": str(path),
        "kafka": {"url": settings.kafka.url, "topic": world.name, "group": world.name},
        "redis": {"url": settings.redis.url, "prefix": settings.redis.prefix, "customer_key": secret},
        "topics": {"alerts": settings.topics.alerts, "dead_letters": settings.topics.dead_letters},
    }
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


async def customers_of(store: Store) -> set[str]:
    return {
        name for partition in range(PARTITIONS) async for names, _ in store.scan(partition) for name in names
    }


def get(url: str) -> tuple[int, object]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, orjson.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, None


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.parametrize("secret", [None, "k" * 32], ids=["plain", "hidden"])
async def test_the_tombstone_of_a_learner_erases_every_course(
    stack: Services, unique_name: str, tmp_path: Path, secret: str | None
) -> None:
    world = World(stack, unique_name, scores=True, audit=True)
    key = None if secret is None else SecretStr(secret)
    redis = world.settings.redis.model_copy(update={"customer_key": key})
    world.settings = world.settings.model_copy(update={"redis": redis})
    await world.create()
    await world.produce(lives(world))
    kafka, topics, spec = world.settings.kafka, world.settings.topics, BY_LEARNER.layout.spec
    async with (
        world.working("old", BY_LEARNER),
        world.store("old", BY_LEARNER) as store,
        KafkaSink(kafka) as sink,
        AsyncExitStack() as leaving,
    ):
        answers = Customers(BY_LEARNER.layout, store, answering(BY_LEARNER.model), world.clock)
        face = HttpServer(HttpSettings(port=0), answers.routes())
        leaving.push_async_callback(face.stop)
        url = f"{await face.start()}/v1/customers/"
        await world.until_done()
        expected, alerts = await world.offline(BY_LEARNER)
        assert await world.records("old", BY_LEARNER) == expected and set(expected) == set(EVERYBODY)
        assert {alert.customer.decode() for alert in alerts} == set(EVERYBODY)
        assert {each.value for each in await world.said()} == {alert.value for alert in alerts}
        for name in EVERYBODY:
            ((partition, _),) = await store.find(name)
            assert partition == partition_for(first_of(name).encode(), PARTITIONS)
        # Who asks names the whole, or lists who begins with a first part.
        assert await of_first(store, "ann") == ["ann/art", "ann/math"]
        status, told = await asyncio.to_thread(get, url + urllib.parse.quote("ann/math", safe=""))
        assert status == 200 and isinstance(told, dict) and told["customer"] == "ann/math"
        assert await asyncio.to_thread(get, url + "ann") == (
            200, {"first_part": "ann", "customers": ["ann/art", "ann/math"]},
        )  # fmt: skip
        assert (await asyncio.to_thread(get, url + "a%2Fb%2Fc"))[0] == 400
        at_risk = await store.at_risk(0.0, 100)
        assert {name for _, _, name in at_risk.entries} == set(EVERYBODY)

        asked = ["forget", "ann", "--config", str(config(world, spec, tmp_path, secret))]
        assert await asyncio.to_thread(run, asked) == 0
        await world.until_done()
        rest = {name for name in EVERYBODY if not name.startswith("ann/")}
        assert await customers_of(store) == rest
        assert await world.records("old", BY_LEARNER) == {name: expected[name] for name in rest}
        assert {name for _, _, name in (await store.at_risk(0.0, 100)).entries} == rest
        assert (await asyncio.to_thread(get, url + "ann"))[0] == 404
        assert (await asyncio.to_thread(get, url + "ann%2Fmath"))[0] == 404
        result = await replay(kafka, topics.dead_letters, sink, composite=True)
        assert (result.sent, result.forgotten) == ({"not_json": 1}, 1)
        await world.until_done()
    for topic in (topics.alerts, topics.scores, topics.audit, topics.dead_letters):
        last = {(record.key or b"").decode(): record.value for record in await world.read(topic)}
        assert [last[name] for name in OF_ANN] == [None] * 3
        assert None not in [value for name, value in last.items() if name not in OF_ANN]
    async with Redis.from_url(stack.redis_url) as server:
        found = [name async for name in server.scan_iter(f"{world.name}:*")]
        parts = [name for name in found if name.endswith(b":parts")]
        members = [member for name in parts for member in await server.zrange(name, 0, -1)]
    assert len(members) == len(rest)
    assert bool([m for m in members if b"bob" in m]) == (secret is None)


@pytest.mark.kafka
@pytest.mark.redis
async def test_keyed_by_the_whole_a_learner_is_everywhere(
    stack: Services, unique_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Courses lie in partitions of their own: `forget` sends the learner's tombstone into each."""
    world, kind = World(stack, unique_name), kind_of("whole")
    await world.create()
    customers = [f"{learner}/c{n}" for learner in ("ann", "bob") for n in range(8)]
    await world.produce([visit(world, day, name, name.encode()) for day in (0, 1) for name in customers])
    async with world.working("old", kind), world.store("old", kind) as store:
        await world.until_done()
        homes = {name: partition for name in customers for partition, _ in await store.find(name)}
        assert homes == {name: partition_for(name.encode(), PARTITIONS) for name in customers}
        assert len({homes[name] for name in customers if name.startswith("ann/")}) > 1
        path = str(config(world, kind.layout.spec, tmp_path, None))
        assert await asyncio.to_thread(run, ["forget", "bob/c3", "--config", path]) == 0
        assert await customers_of(store) == set(customers) - {"bob/c3"}
        assert await asyncio.to_thread(run, ["forget", "ann", "--config", path]) == 0
        assert await customers_of(store) == {f"bob/c{n}" for n in range(8) if n != 3}
        assert await asyncio.to_thread(run, ["forget", "a/b/c", "--config", path]) == 1
        assert (
            "a customer is learner/properties.course, and its first part learner" in capsys.readouterr().err
        )
