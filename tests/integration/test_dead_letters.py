"""`ebbtide dlq` on a real Kafka: what is listed, what goes back, and what does not a second time."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
import yaml
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from click.testing import CliRunner

from ebbtide.featurestore.events.parse import ParseLimits, Parser
from ebbtide.featurestore.spec import dump_spec
from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.commands.dlq import command
from ebbtide.ops.state.plan import plan
from ebbtide.ops.state.rebuild import Counts, ForbiddenSink, Rebuild
from ebbtide.stream.batch import Record
from ebbtide.stream.dlq.replay import CHUNK_LETTERS, replay
from ebbtide.stream.errors import BrokerMisconfigured
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.committed_log import open_committed_log
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import LogRecord, read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics, message_bytes_max
from ebbtide.stream.outputs.dead_letter import Position, dead_letter_of, propagated_tombstone
from ebbtide.stream.outputs.message import Delivery, Message
from ebbtide.stream.pipeline import Tools
from ebbtide.stream.telemetry import Telemetry
from tests.support.servers.services import Services
from tests.support.workers.worlds import OLD, T0, Kind, World

pytestmark = pytest.mark.kafka


class RawRecord(NamedTuple):
    """A record."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Bad:
    """A record that could not be folded."""

    def __init__(self, offset: int, key: bytes | None, value: bytes) -> None:
        self.offset, self.timestamp, self.key, self.value = offset, 1_700_000_000_000 + offset, key, value
        self.headers = (("trace", b"\x01"),)


def settings_of(stack: Services, name: str) -> KafkaSettings:
    return KafkaSettings(url=stack.kafka_url, group=name, topic=name)


async def bury(settings: KafkaSettings, *messages: Message) -> None:
    specs = [
        TopicSpec(settings.topic, 2, "topics.partitions"),
        TopicSpec(dead(settings), 2, "topics.partitions"),
    ]
    await ensure_topics(settings, specs)
    async with KafkaSink(settings) as sink:
        for message in messages:  # one by one: the order is part of the case
            await sink.send_all([message])


def dead(settings: KafkaSettings) -> str:
    return f"{settings.topic}-dead-letters"


def a_letter(
    settings: KafkaSettings, offset: int, key: bytes | None, reason: str, topic: str = ""
) -> Message:
    position = Position(topic or settings.topic, 0, offset)
    return dead_letter_of(
        Bad(offset, key, b"{%d" % offset), position, reason, "because", topic=dead(settings)
    )


async def everything_in(settings: KafkaSettings) -> list[LogRecord]:
    return [record async for record in read_topic(settings, settings.topic)]


def dlq(
    stack: Services, settings: KafkaSettings, tmp_path: Path, *arguments: str
) -> tuple[str, dict[str, Any]]:
    out = tmp_path / "out.json"
    environment = {
        "EBBTIDE_KAFKA_URL": stack.kafka_url, "EBBTIDE_KAFKA__TOPIC": settings.topic,
        "EBBTIDE_KAFKA__GROUP": settings.group, "EBBTIDE_TOPICS__DEAD_LETTERS": dead(settings),
    }  # fmt: skip
    ran = CliRunner(env=environment).invoke(command, [*arguments, "--json", str(out)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.stdout, json.loads(out.read_text())


async def in_thread(call: Any, *arguments: Any) -> Any:
    """A command has an event loop of its own."""
    return await asyncio.to_thread(call, *arguments)


async def test_letters_go_back_as_they_came_and_only_once(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    """Bytes, key, headers and timestamp are the record's own; a second replay sends only what came since."""
    settings = settings_of(stack, unique_name)
    await bury(
        settings, a_letter(settings, 7, b"ann", "not_json"), a_letter(settings, 8, None, "not_json"),
        a_letter(settings, 9, b"bob", "future"),
    )  # fmt: skip
    said, first = await in_thread(dlq, stack, settings, tmp_path, "replay", "--reason", "not_json")
    assert first["sent"] == 2 and "2 dead letters sent" in said
    back = sorted(await everything_in(settings), key=lambda record: record.timestamp)
    assert [(r.key, r.value, r.timestamp) for r in back] == [
        (b"ann", b"{7", 1_700_000_000_007), (None, b"{8", 1_700_000_000_008)
    ]  # fmt: skip
    assert all(tuple(r.headers) == (("trace", b"\x01"),) for r in back)

    await bury(settings, a_letter(settings, 10, b"ann", "not_json"))
    _, dry = await in_thread(dlq, stack, settings, tmp_path, "replay", "--dry-run")
    assert dry["reasons"] == {"not_json": 1, "future": 1} and len(await everything_in(settings)) == 2
    _, second = await in_thread(dlq, stack, settings, tmp_path, "replay")
    assert second["reasons"] == {"not_json": 1, "future": 1} and second["replayed_before"] == 2
    _, third = await in_thread(dlq, stack, settings, tmp_path, "replay")
    assert third["sent"] == 0 and len(await everything_in(settings)) == 4


async def test_a_letter_without_its_body_goes_back_from_where_it_lies(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    """A dead-letter topic as Kafka makes it, an input that takes four times as much: the letter fits, and the record
    goes back whole. Of one that retention took, and of one that is another by now, the command says that it is gone."""
    settings = settings_of(stack, unique_name)
    large = TopicSpec(unique_name, 2, "topics.partitions", {"max.message.bytes": str(4 << 20)})
    await ensure_topics(settings, [large, TopicSpec(dead(settings), 2, "topics.partitions")])
    async with KafkaSink(settings) as sink:
        for value in (b"gone", b"{" * (2 << 20), b"another"):
            await sink.send_all([Message(unique_name, b"ann", value, (("trace", b"1"),), partition=0)])
        taken = await message_bytes_max(settings, [dead(settings), unique_name])
        assert taken == {dead(settings): 1_048_588, unique_name: 4 << 20}
        records = [record async for record in read_topic(settings, unique_name)]
        stated: list[Record] = [records[0], records[1], RawRecord(2, 0, b"ann", b"{" * (2 << 20))]
        for record in stated:
            made = dead_letter_of(
                record, Position(unique_name, 0, record.offset), "too_large", "", topic=dead(settings),
                bytes_max=taken[dead(settings)] if record.offset else 0,
            )  # fmt: skip
            assert made.value == b""
            await sink.send_all([made])
    async with admin(settings) as client:
        await client.delete_records({TopicPartition(unique_name, 0): RecordsToDelete(before_offset=1)})
    _, listed = await in_thread(dlq, stack, settings, tmp_path, "list")
    assert sorted(row["bytes"] for row in listed["latest"]) == [4, 2 << 20, 2 << 20]
    _, result = await in_thread(dlq, stack, settings, tmp_path, "replay")
    assert (result["sent"], result["gone"], result["too_large"]) == (1, 2, 0)
    back = (await everything_in(settings))[-1]
    assert (back.key, back.value, tuple(back.headers)) == (b"ann", b"{" * (2 << 20), (("trace", b"1"),))


async def test_an_output_topic_that_takes_too_little_is_named(stack: Services, unique_name: str) -> None:
    """At the start, not at the first alert that does not fit."""
    settings = settings_of(stack, unique_name)
    spec = TopicSpec(unique_name, 1, "s", {"max.message.bytes": "60000"}, message_bytes_min=100_000)
    with pytest.raises(BrokerMisconfigured, match=r"takes messages of 60,000 bytes, it has to take 100,000"):
        await ensure_topics(settings, [spec])
    assert await ensure_topics(settings, [replace(spec, message_bytes_min=60_000)]) == {unique_name: 1}


async def test_somebody_forgotten_stays_forgotten(stack: Services, unique_name: str, tmp_path: Path) -> None:
    """Letters before a customer's tombstone are passed over, later ones are not; a foreign topic gets nothing."""
    settings = settings_of(stack, unique_name)
    await bury(
        settings, a_letter(settings, 1, b"ann", "future"), a_letter(settings, 2, b"bob", "future"),
        Message(dead(settings), b"ann", None), a_letter(settings, 3, b"ann", "future"),
        a_letter(settings, 4, b"bob", "future", topic="elsewhere"),
    )  # fmt: skip
    _, result = await in_thread(dlq, stack, settings, tmp_path, "replay")
    assert result == {
        "sent": 2, "dry_run": False, "reasons": {"future": 2}, "replayed_before": 0, "forgotten": 1,
        "of_another_topic": 1, "empty": 0, "folded_already": 0, "folded_since": 0, "gone": 0, "too_large": 0,
    }  # fmt: skip
    assert sorted(r.value or b"" for r in await everything_in(settings)) == [b"{2", b"{3"]


async def test_a_late_letter_of_somebody_forgotten_stays(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    """A worker that woke up late sent it after the tombstone, but its record came before; a return came after both."""
    settings = settings_of(stack, unique_name)
    erased = Position(settings.topic, 0, 10)
    await bury(
        settings, propagated_tombstone(b"ann", erased, topic=dead(settings)),
        propagated_tombstone(b"bob", Position("elsewhere", 0, 10), topic=dead(settings)),
        propagated_tombstone(b"eve", Position(settings.topic, 1, 10), topic=dead(settings)),
        *(a_letter(settings, 4 + n, key, "future") for n, key in enumerate((b"ann", b"bob", b"eve"))),
        a_letter(settings, 11, b"ann", "future"),
    )  # fmt: skip
    _, result = await in_thread(dlq, stack, settings, tmp_path, "replay")
    assert (result["sent"], result["forgotten"]) == (3, 1)
    # Offsets of another topic or partition say nothing of when it was.
    assert sorted(r.value or b"" for r in await everything_in(settings)) == [b"{11", b"{5", b"{6"]


async def test_an_erasure_that_the_workers_have_not_come_to_counts(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    """A group that has no committed offset yet has read nothing: the whole input is looked at, each partition by
    itself."""
    settings = settings_of(stack, unique_name)
    await bury(
        settings, *(a_letter(settings, offset, b"ann", "future") for offset in (1, 3)),
        a_letter(settings, 1, b"bob", "future"),
        *(Message(settings.topic, b"filler", b"{}", partition=0) for _ in range(2)),
        Message(settings.topic, b"ann", None, partition=0),
        *(Message(settings.topic, b"filler", b"{}", partition=1) for _ in range(2)),
        Message(settings.topic, b"bob", None, partition=1),  # not his partition: it erases nothing
    )  # fmt: skip
    _, dry = await in_thread(dlq, stack, settings, tmp_path, "replay", "--dry-run")
    _, result = await in_thread(dlq, stack, settings, tmp_path, "replay")
    assert (dry["sent"], dry["forgotten"]) == (result["sent"], result["forgotten"]) == (2, 1)
    back = [record for record in await everything_in(settings) if record.value not in (None, b"{}")]
    assert sorted(record.value or b"" for record in back) == [b"{1", b"{3"]


class Meanwhile:
    """A sink, and what happens right after the first messages have gone out."""

    def __init__(self, sink: KafkaSink, then: Message) -> None:
        self._sink, self._then = sink, [then]

    async def send_all(self, messages: Sequence[Message]) -> None:
        await self._sink.send_all(messages)
        if self._then:
            await self._sink.send_all([self._then.pop()])

    def abandon(self) -> None:
        self._sink.abandon()


async def test_two_replays_at_once_do_not_send_all_twice(stack: Services, unique_name: str) -> None:
    """While one sends its first chunk another does all of it: what the first finds done, it passes over."""
    settings = settings_of(stack, unique_name)
    await bury(settings)

    class Other:
        """A sink that lets a whole second replay happen within its first call."""

        def __init__(self, sink: KafkaSink) -> None:
            self._sink, self.other = sink, 0

        async def send_all(self, messages: Sequence[Message]) -> None:
            if not self.other:
                self.other = (await replay(settings, dead(settings), self._sink)).sent.total()
            await self._sink.send_all(messages)

        def abandon(self) -> None:
            self._sink.abandon()

    async with KafkaSink(settings) as sink:
        letters = [a_letter(settings, n, b"ann", "future") for n in range(CHUNK_LETTERS * 3)]
        await sink.send_all([letter._replace(partition=0) for letter in letters])
        both = Other(sink)
        result = await replay(settings, dead(settings), both)
        again = await replay(settings, dead(settings), sink)
    assert both.other == CHUNK_LETTERS * 3
    assert (result.sent.total(), result.done_before) == (CHUNK_LETTERS, CHUNK_LETTERS * 2)
    assert (again.sent.total(), again.done_before) == (0, CHUNK_LETTERS * 3), (
        "what is remembered never goes back"
    )
    assert len(await everything_in(settings)) == CHUNK_LETTERS * 4, "no more than one chunk twice"


@pytest.mark.parametrize("where", ["input", "letters"])
async def test_an_erasure_while_a_replay_runs_counts(stack: Services, unique_name: str, where: str) -> None:
    """Ann is erased after the first chunk: what of her is in the second one stays, whoever says so first."""
    settings = settings_of(stack, unique_name)
    await bury(settings, *(Message(settings.topic, b"filler", b"{}", partition=0) for _ in range(3)))
    keys = [b"ann"] * (CHUNK_LETTERS + 1) + [b"bob"]
    if where == "input":
        tombstone = Message(settings.topic, b"ann", None, partition=0)
    else:
        tombstone = propagated_tombstone(b"ann", Position(settings.topic, 0, 3), topic=dead(settings))
    async with KafkaSink(settings) as sink:
        # All in one partition, so in this order; and from before the tombstone, wherever it comes to lie.
        await sink.send_all([a_letter(settings, 0, key, "future")._replace(partition=0) for key in keys])
        result = await replay(settings, dead(settings), Meanwhile(sink, tombstone))
    assert (result.forgotten, result.sent) == (1, {"future": CHUNK_LETTERS + 1})
    back = Counter(record.key for record in await everything_in(settings) if record.value == b"{0")
    assert back == {b"ann": CHUNK_LETTERS, b"bob": 1}


async def test_the_list_shows_why_and_where_and_no_customer(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    settings = settings_of(stack, unique_name)
    await bury(settings, *(a_letter(settings, n, b"ann-onymous", "future") for n in range(5)))
    await bury(settings, a_letter(settings, 5, b"ann-onymous", "not_json"))
    said, data = await in_thread(dlq, stack, settings, tmp_path, "list", "--limit", "2")
    assert data["letters"] == 6 and data["reasons"] == {"future": 5, "not_json": 1}
    assert [row["offset"] for row in data["latest"]] == [4, 5]
    assert f"{settings.topic}/0@5" in said and "because" in said and "onymous" not in said
    keys = {row["key_hash"] for row in data["latest"]}
    _, again = await in_thread(dlq, stack, settings, tmp_path, "list", "--limit", "2")
    assert len(keys) == 1 and keys.isdisjoint({row["key_hash"] for row in again["latest"]}), (
        "no id can be tried out"
    )
    await bury(settings, a_letter(settings, 6, b"bob", "future"))
    _, bobs = await in_thread(dlq, stack, settings, tmp_path, "list", "--customer", "bob")
    assert (bobs["letters"], [row["offset"] for row in bobs["latest"]]) == (1, [6])


@pytest.mark.parametrize("words", ["list", "replay"])
def test_a_reason_that_there_is_not_is_refused(words: str) -> None:
    """`0 dead letters` would be taken for an answer; the reasons that there are are named. No Kafka is asked."""
    ran = CliRunner().invoke(command, [words, "--reason", "to_old"])
    assert ran.exit_code == 2 and "'too_old'" in ran.output and "'unscored'" in ran.output


async def test_what_is_folded_already_is_not_sent_again(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    """An `unscored` letter's event is in the state: it is listed, counted, and stays, also when asked for by name."""
    settings = settings_of(stack, unique_name)
    await bury(
        settings, a_letter(settings, 1, b"ann", "unscored"), a_letter(settings, 2, b"bob", "not_json"),
        a_letter(settings, 3, b"ann", "unscored"), a_letter(settings, 4, b"ann", "unscored", topic="elsewhere"),
    )  # fmt: skip
    _, listed = await in_thread(dlq, stack, settings, tmp_path, "list")
    assert listed["reasons"] == {"unscored": 3, "not_json": 1}
    said, dry = await in_thread(dlq, stack, settings, tmp_path, "replay", "--dry-run")
    assert (dry["sent"], dry["folded_already"]) == (1, 2) and "2 unscored, whose events are folded" in said
    said, named = await in_thread(dlq, stack, settings, tmp_path, "replay", "--reason", "unscored")
    assert (named["sent"], named["folded_already"], named["of_another_topic"]) == (0, 2, 1)
    assert await everything_in(settings) == []
    _, result = await in_thread(dlq, stack, settings, tmp_path, "replay")
    assert (result["reasons"], result["folded_already"]) == ({"not_json": 1}, 2)
    assert [r.value for r in await everything_in(settings)] == [b"{2"]


class Narrow(World):
    """A world whose workers refuse records of more than `limit` bytes."""

    limit = 150

    def tools(self, kind: Kind, store: Store, sink: Delivery, telemetry: Telemetry | None = None) -> Tools:
        limits = ParseLimits(value_bytes_max=self.limit)
        return replace(super().tools(kind, store, sink, telemetry), parser=Parser(kind.layout.spec, limits))


@pytest.mark.redis
async def test_what_a_rebuild_has_folded_is_not_sent_again(
    stack: Services, unique_name: str, tmp_path: Path
) -> None:
    """Records too large for the old worker, and not for the rebuild: they count once. What neither can read goes back,
    and so does what a worker that did not rebuild had refused."""
    world = Narrow(stack, unique_name)
    await world.create()
    visits: list[dict[str, Any]] = [
        {
            "user_id": f"customer-{n % 5}",
            "type": "visit",
            "ts": T0 + n * 3_600_000,
            "page": "x" * (n % 2) * 300,
        }
        for n in range(40)
    ]
    good = [Message(world.name, v["user_id"].encode(), orjson.dumps(v), (), v["ts"]) for v in visits]
    bad = [Message(world.name, b"customer-1", b"nonsense", (), T0) for _ in range(3)]
    await world.produce([*good, *bad])
    async with world.working("old", OLD):
        await world.until_done()

    def replayed(prefix: str) -> dict[str, Any]:
        settings = world.under(prefix)
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(dump_spec(OLD.layout.spec)))
        environment = {
            "EBBTIDE_KAFKA_URL": stack.kafka_url, "EBBTIDE_REDIS_URL": stack.redis_url,
            "EBBTIDE_REDIS__PREFIX": settings.redis.prefix, "EBBTIDE_SPEC": str(tmp_path / "spec.yaml"),
            "EBBTIDE_KAFKA__TOPIC": world.name, "EBBTIDE_KAFKA__GROUP": world.name,
            "EBBTIDE_TOPICS__DEAD_LETTERS": str(settings.topics.dead_letters),
        }  # fmt: skip
        out = tmp_path / "out.json"
        ran = CliRunner(env=environment).invoke(
            command, ["replay", "--dry-run", "--json", str(out)], catch_exceptions=False
        )
        assert ran.exit_code == 0, ran.output
        found: dict[str, Any] = json.loads(out.read_text())
        return found

    before = await in_thread(replayed, "old")
    assert (before["sent"], before["folded_since"]) == (23, 0)
    world.limit = 65_536
    async with open_committed_log(world.settings.kafka) as settled, world.store("new", OLD) as store:
        tools = world.tools(OLD, store, ForbiddenSink(), Counts())
        begun = await plan(settled, store, world.name, OLD.layout.id)
        await Rebuild(settled, tools, Counts(), begun, dead_letter_share_max=1.0).run()
        tools.batcher.close()
    after = await in_thread(replayed, "new")
    assert (after["sent"], after["reasons"], after["folded_since"]) == (3, {"not_json": 3}, 20)
    # What the new worker refuses itself, behind what was folded silently, goes back as ever.
    world.limit = 150
    async with world.working("new", OLD):
        await world.produce(good[:4])
        await world.until_done()
    assert (await in_thread(replayed, "new"))["sent"] == 3 + 2
    assert (await in_thread(replayed, "old"))["sent"] == 23 + 2
