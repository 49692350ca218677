"""The transactional way out on a real Kafka: whole, once, in order, and nothing of an owner that is none any more."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import CoordinationType
from aiokafka.structs import OffsetAndMetadata

from ebbtide.featurestore.errors import Fenced
from ebbtide.ops.stack.local import LocalKafka
from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.errors import BrokerUnavailable, RecordTooLarge
from ebbtide.stream.kafka.committed_log import open_committed_log
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics, partition_for
from ebbtide.stream.kafka.transactions.link import Link
from ebbtide.stream.kafka.transactions.sink import ExactlyOnce
from ebbtide.stream.outputs.message import Message, Parcel
from tests.support.patience import PATIENCE_S
from tests.support.seams.streams import Faults, LogSource
from tests.support.servers.services import Services
from tests.support.workers.worlds import OLD, Clicks, World

PARTITIONS = 3


def settings_for(kafka_url: str, name: str, **more: object) -> KafkaSettings:
    return KafkaSettings.model_validate({"url": kafka_url, "topic": name, "group": name, **more})


async def make_topics(settings: KafkaSettings) -> str:
    """Returns the output's name."""
    out = f"{settings.topic}-out"
    await ensure_topics(
        settings, [TopicSpec(settings.topic, PARTITIONS, "s"), TopicSpec(out, PARTITIONS, "s")]
    )
    return out


@asynccontextmanager
async def delivery(settings: KafkaSettings) -> AsyncIterator[ExactlyOnce]:
    """A worker's way out, whose ordinary commits are none."""
    async with ExactlyOnce(settings) as sink:
        sink.attach(LogSource(settings.topic, [[]] * PARTITIONS, seed=0, faults=Faults(0, 0.0)))
        yield sink


async def values(settings: KafkaSettings, topic: str) -> list[bytes | None]:
    """As a reader of committed records sees them."""
    return [record.value async for record in read_topic(settings, topic)]


async def committed(settings: KafkaSettings) -> dict[int, CommittedOffset]:
    async with open_committed_log(settings) as log:
        return await log.committed()


async def test_a_parcel_is_there_whole_with_its_offset(stack: Services, unique_name: str) -> None:
    """Every message in order, where the default partitioner puts it, with all it carries, and how far the partition
    is; a parcel without an offset leaves it where it was; one of more than a batch goes in several."""
    settings = settings_for(stack.kafka_url, unique_name)
    out = await make_topics(settings)
    sent = [
        Message(out, f"k{n % 7}".encode(), b"%d " % n + b"." * 500, [("h", b"1")], 1_700_000_000_000 + n)
        for n in range(700)
    ]
    async with delivery(settings) as sink:
        for partition in range(PARTITIONS):
            await sink.take_over(partition)
        assert await sink.send_each([]) == []
        parcels = [Parcel(0, sent[:300], CommittedOffset(300, "m")), Parcel(1, [], CommittedOffset(9, ""))]
        assert await sink.send_each(parcels) == [None, None]
        assert await sink.send_each([Parcel(0, sent[300:]), Parcel(2, [Message(out, b"gone", None)])]) == [
            None,
            None,
        ]
        assert await committed(settings) == {0: CommittedOffset(300, "m")}
    found = [record async for record in read_topic(settings, out)]
    for key in {m.key for m in sent}:
        assert [m.value for m in sent if m.key == key] == [r.value for r in found if r.key == key]
    first = next(r for r in found if r.value == sent[0].value)
    assert (list(first.headers), first.timestamp) == ([("h", b"1")], 1_700_000_000_000)
    assert [r.value for r in found if r.key == b"gone"] == [None]
    assert {partition_for(r.key or b"", PARTITIONS) == r.partition for r in found} == {True}


async def test_an_owner_that_is_none_any_more_is_refused(stack: Services, unique_name: str) -> None:
    """Before it has heard of it, too; and when it takes over again, it is the other one who is refused."""
    settings = settings_for(stack.kafka_url, unique_name)
    out = await make_topics(settings)

    def said(value: bytes, offset: int) -> list[Parcel]:
        return [Parcel(0, [Message(out, b"jane", value)], CommittedOffset(offset, ""))]

    async with delivery(settings) as first, delivery(settings) as second:
        await first.take_over(0)
        assert await first.send_each(said(b"1", 1)) == [None]
        await second.take_over(0)
        assert await second.send_each(said(b"2", 2)) == [None]
        for _ in range(2):  # its first word, and what it tries to say without having asked whether it may
            (refused,) = await first.send_each(said(b"late", 1))
            assert isinstance(refused, Fenced)
        assert await second.send_each(said(b"3", 3)) == [None]
        await first.take_over(0)
        assert await first.send_each(said(b"4", 4)) == [None]
        (refused,) = await second.send_each(said(b"late", 3))
        assert isinstance(refused, Fenced)
    assert await values(settings, out) == [b"1", b"2", b"3", b"4"]
    assert await committed(settings) == {0: CommittedOffset(4, "")}


class StoppingLink(Link):
    """Stops for good, or until it is woken, at a request: before it is sent, or when its answer is on its way. `at`:
    its name, the first of its kind, or its number."""

    def __init__(self, settings: KafkaSettings, at: str | int, *, answered: bool) -> None:
        super().__init__(settings)
        self._at, self._answered, self._asked = at, answered, 0
        self.stopped, self.wake = asyncio.Event(), asyncio.Event()

    async def to_leader(self, leader: int, request: Any, lane: int) -> Any:
        async with self._stopping(request):
            return await super().to_leader(leader, request, lane)

    async def to_coordinator(self, kind: CoordinationType, key: str, request: Any, lane: int) -> Any:
        async with self._stopping(request):
            return await super().to_coordinator(kind, key, request, lane)

    @asynccontextmanager
    async def _stopping(self, request: Any) -> AsyncIterator[None]:
        self._asked += 1
        here = not self.stopped.is_set() and self._at in (self._asked, type(request).__name__)
        if here and not self._answered:
            self.stopped.set()
            await self.wake.wait()
        yield
        if here and self._answered:
            self.stopped.set()
            await self.wake.wait()


REQUESTS = ("AddPartitionsToTxn", "AddOffsetsToTxn", "Produce", "TxnOffsetCommit", "EndTxn")


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("request_name", REQUESTS)
async def test_wherever_an_owner_stops_each_alert_is_there_once(
    stack: Services, unique_name: str, request_name: str, answered: bool
) -> None:
    """Killed there or asleep, the next one asks how far it is and says what was not said; and the sleeper, who wakes
    in the middle of its transaction, says nothing."""
    settings = settings_for(stack.kafka_url, unique_name)
    out = await make_topics(settings)
    alerts = [Message(out, b"jane", b"1"), Message(out, b"joe", b"2"), Message(out, b"jane", b"3")]
    parcel = Parcel(0, alerts, CommittedOffset(7, "m"))
    link = StoppingLink(settings, f"{request_name}Request", answered=answered)
    async with ExactlyOnce(settings, link) as sleeper, delivery(settings) as owner:
        sleeper.attach(LogSource(unique_name, [[]] * PARTITIONS, seed=0, faults=Faults(0, 0.0)))
        await sleeper.take_over(0)
        sending = asyncio.create_task(sleeper.send_each([parcel]))
        await link.stopped.wait()
        await owner.take_over(0)
        known = (await committed(settings)).get(0)
        said = known is not None
        assert said == (request_name == "EndTxn" and answered)
        if not said:
            assert await owner.send_each([parcel]) == [None]
        link.wake.set()
        (outcome,) = await sending
        assert (outcome is None) == said
        assert await owner.send_each([Parcel(0, [Message(out, b"jane", b"4")], CommittedOffset(8, ""))]) == [
            None
        ]
    found = await values(settings, out)
    assert sorted(found, key=str) == [b"1", b"2", b"3", b"4"]
    assert [value for value in found if value != b"2"] == [b"1", b"3", b"4"]
    assert (await committed(settings))[0] == CommittedOffset(8, "")


async def test_workers_that_are_cut_off_say_each_alert_once(stack: Services, unique_name: str) -> None:
    """Whole workers on real servers, each cut off at a random request of its way out, and one that ends its work: who
    reads committed records sees what one undisturbed pipeline says, the same bytes, once, and in order a customer."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    world = World(stack, unique_name, scores=True)
    await world.create()
    clicks = Clicks(seed, unique_name, tombstones=0.005)
    for _ in range(5):
        await world.produce(clicks.next(150))
        link = StoppingLink(world.settings.kafka, rng.randint(2, 40), answered=rng.random() < 0.5)
        with suppress(BrokerUnavailable, TimeoutError):
            async with (
                asyncio.timeout(6.0),
                world.working("p", OLD, drain=False, delivery=ExactlyOnce(world.settings.kafka, link)),
            ):
                await link.stopped.wait()
    async with world.working("p", OLD, delivery=ExactlyOnce(world.settings.kafka)):
        await world.until_done()
    records, alerts = await world.offline(OLD)
    said = [(each.customer, each.value) for each in await world.said() if each.value is not None]
    expected = [(alert.customer, alert.value) for alert in alerts]
    assert expected and await world.records("p", OLD) == records
    assert sorted(said) == sorted(expected)
    for customer in {customer for customer, _ in expected}:
        assert [a for a in said if a[0] == customer] == [a for a in expected if a[0] == customer]


async def test_what_no_topic_takes_is_not_half_there(stack: Services, unique_name: str) -> None:
    """One record too large, and nothing of its parcel is there; the others' are; and who reads does not wait."""
    settings = settings_for(stack.kafka_url, unique_name)
    out = await make_topics(settings)
    large = [Message(out, b"a", b"first"), Message(out, b"k", b"v" * 2_000_000)]
    async with delivery(settings) as sink:
        await sink.take_over(0)
        await sink.take_over(1)
        refused, fine = await sink.send_each([Parcel(0, large), Parcel(1, [Message(out, b"a", b"fine")])])
        assert isinstance(refused, RecordTooLarge)
        assert fine is None
        async with asyncio.timeout(PATIENCE_S):
            while await values(settings, out) != [b"fine"]:  # noqa: ASYNC110 -- what a reader sees is told by no event
                await asyncio.sleep(0.1)
        await sink.take_over(0)
        assert await sink.send_each([Parcel(0, [Message(out, b"a", b"next")])]) == [None]
    assert await values(settings, out) == [b"fine", b"next"]


async def test_an_id_that_expired_is_taken_over_anew(tmp_path: Path, unique_name: str) -> None:
    """Kafka forgets one that is silent for a week: the partition is told, takes it over, and goes on."""
    hasty = {
        "transactional.id.expiration.ms": "1500",
        "transaction.remove.expired.transaction.cleanup.interval.ms": "200",
    }
    with LocalKafka(settings=lambda _number, _port: hasty) as kafka:
        settings = settings_for(kafka.url, unique_name)
        out = await make_topics(settings)
        parcel = Parcel(0, [Message(out, b"k", b"v")], CommittedOffset(1, ""))
        async with delivery(settings) as sink:
            await sink.take_over(0)
            assert await sink.send_each([parcel]) == [None]
            await asyncio.sleep(3.5)
            (refused,) = await sink.send_each([parcel])
            assert isinstance(refused, Fenced)
            await sink.take_over(0)
            assert await sink.send_each([parcel]) == [None]
        assert await values(settings, out) == [b"v", b"v"]


async def test_an_open_transaction_does_not_stop_our_reading(stack: Services, unique_name: str) -> None:
    """One that an owner left behind, with an offset: the input is read on, and the committed offset is told."""
    settings = settings_for(stack.kafka_url, unique_name)
    out = await make_topics(settings)
    tp = TopicPartition(unique_name, 0)
    left = AIOKafkaProducer(bootstrap_servers=settings.url, transactional_id=f"{unique_name}-{unique_name}-0")
    await left.start()
    await left.begin_transaction()
    await left.send_and_wait(out, b"never", partition=0)
    await left.send_offsets_to_transaction({tp: OffsetAndMetadata(5, "")}, settings.group)
    async with (
        AIOKafkaProducer(bootstrap_servers=settings.url) as plain,
        AIOKafkaConsumer(
            unique_name, bootstrap_servers=settings.url, group_id=settings.group, enable_auto_commit=False,
            isolation_level="read_committed", auto_offset_reset="earliest",
        ) as member,
    ):  # fmt: skip
        await plain.send_and_wait(unique_name, b"event", partition=0)
        async with asyncio.timeout(30.0):  # the transaction's own end comes after a minute
            assert (await member.getone()).value == b"event"
            await member.commit({tp: OffsetAndMetadata(1, "")})
            assert await member.committed(tp) == 1
    async with delivery(settings) as sink:
        await sink.take_over(0)
        assert (await committed(settings))[0].offset == 1
    assert await values(settings, out) == []
    await left.stop()


async def test_without_a_broker_there_is_one_error(unique_name: str) -> None:
    with pytest.raises(BrokerUnavailable):
        async with ExactlyOnce(settings_for("127.0.0.1:1", unique_name, request_timeout_s=1.0)):
            raise AssertionError("nobody is there")
