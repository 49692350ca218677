"""Kafka apart from the group, against a real one: topics checked or made, the way out, a log read to its end."""

import asyncio

import pytest
from aiokafka.partitioner import DefaultPartitioner
from pydantic import ValidationError

from ops.local_stack import LocalKafka
from ops.stack_keeper import free_ports
from stream.errors import BrokerMisconfigured, BrokerUnavailable, RecordTooLarge
from stream.kafka import KafkaSettings, KafkaSink, TopicSpec, check_connection, ensure_topics
from stream.message import Message
from stream.topic_log import log_ranges, partition_for, read_topic
from tests.support.services import Services

pytestmark = pytest.mark.kafka


def settings_for(stack: Services, name: str, **changes: object) -> KafkaSettings:
    return KafkaSettings.model_validate({"url": stack.kafka_url, "topic": name, "group": name, **changes})


async def values(settings: KafkaSettings, topic: str) -> list[bytes | None]:
    return [record.value async for record in read_topic(settings, topic)]


async def test_no_broker_is_one_error_that_names_the_setting() -> None:
    """And it comes within the time given, not after a client's own idea of patience."""
    nowhere = KafkaSettings(url="kafka://127.0.0.1:1", request_timeout_s=2.0)
    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:1.*EBBTIDE_KAFKA_URL"):
        await asyncio.wait_for(check_connection(nowhere), 5.0)
    with pytest.raises(BrokerUnavailable, match="EBBTIDE_KAFKA_URL"):
        async with KafkaSink(nowhere):
            pass


async def test_topics_are_made_or_checked(stack: Services, unique_name: str) -> None:
    """Missing ones are made with their configuration; too few partitions name the setting, more are fine."""
    settings = settings_for(stack, unique_name)
    await check_connection(settings)
    topics = [
        TopicSpec(unique_name, 3, "topics.partitions"),
        TopicSpec(f"{unique_name}-letters", 2, "topics.partitions", {"max.message.bytes": "3000000"}),
    ]
    assert await ensure_topics(settings, topics) == {unique_name: 3, f"{unique_name}-letters": 2}
    assert await ensure_topics(settings, [TopicSpec(unique_name, 2, "s")]) == {unique_name: 3}
    with pytest.raises(BrokerMisconfigured, match=r"3 partitions.*topics\.partitions.*asks for 4"):
        await ensure_topics(settings, [TopicSpec(unique_name, 4, "topics.partitions")])
    async with KafkaSink(settings) as sink:
        await sink.send_all([Message(f"{unique_name}-letters", b"k", b"v" * 2_500_000)])


async def test_two_workers_make_the_topics_at_once(stack: Services, unique_name: str) -> None:
    """Whoever is slower finds them there."""
    settings, topics = settings_for(stack, unique_name), [TopicSpec(unique_name, 3, "s")]
    counts = await asyncio.gather(*(ensure_topics(settings, topics) for _ in range(4)))
    assert counts == [{unique_name: 3}] * 4


async def test_what_is_sent_is_there_in_order_with_all_it_carries(stack: Services, unique_name: str) -> None:
    """Key, value, headers and timestamp; a key's messages keep their order; a null value is a tombstone."""
    settings = settings_for(stack, unique_name)
    await ensure_topics(settings, [TopicSpec(unique_name, 4, "s")])
    sent = [
        Message(unique_name, f"k{n % 7}".encode(), f"{n}".encode(), [("h", b"1")], 1_700_000_000_000 + n)
        for n in range(700)
    ]
    async with KafkaSink(settings) as sink:
        await sink.send_all([])
        await sink.send_all(sent)
        await sink.send_all([Message(unique_name, b"gone", None)])
    found = [record async for record in read_topic(settings, unique_name)]
    for key in {m.key for m in sent}:
        assert [m.value for m in sent if m.key == key] == [r.value for r in found if r.key == key]
    first = next(r for r in found if r.value == b"0")
    assert (list(first.headers), first.timestamp) == ([("h", b"1")], 1_700_000_000_000)
    assert [r.value for r in found if r.key == b"gone"] == [None]
    ranges = await log_ranges(settings, unique_name)
    assert sum(end - begin for begin, end in ranges.values()) == 701
    assert {partition_for(r.key or b"", 4) == r.partition for r in found} == {True}


async def test_a_refused_record_does_not_spoil_the_sink(stack: Services, unique_name: str) -> None:
    """Too large for the topic, or for the producer: one error each, and the next messages go their way."""
    settings = settings_for(stack, unique_name, produce_bytes_max=4_000_000)
    await ensure_topics(settings, [TopicSpec(unique_name, 1, "s")])
    async with KafkaSink(settings) as sink:
        for size in (2_000_000, 5_000_000):
            with pytest.raises(RecordTooLarge, match=r"max\.message\.bytes"):
                await sink.send_all([Message(unique_name, b"k", b"v" * size)])
            await sink.send_all([Message(unique_name, b"k", f"after {size}".encode())])
    assert await values(settings, unique_name) == [b"after 2000000", b"after 5000000"]


async def test_a_log_is_followed_as_it_grows(stack: Services, unique_name: str) -> None:
    """From now on, not from the start."""
    settings = settings_for(stack, unique_name)
    await ensure_topics(settings, [TopicSpec(unique_name, 1, "s")])
    async with KafkaSink(settings) as sink:
        await sink.send_all([Message(unique_name, b"k", b"old")])
        following = read_topic(settings, unique_name, follow=True)
        first = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0.5)
        await sink.send_all([Message(unique_name, b"k", b"new")])
        assert (await asyncio.wait_for(first, 10)).value == b"new"
        await following.aclose()


async def test_a_topic_that_is_not_there(stack: Services, unique_name: str) -> None:
    """Is said to be missing, and is not made by being asked for."""
    settings = settings_for(stack, unique_name)
    for _ in range(2):
        with pytest.raises(BrokerMisconfigured, match=unique_name):
            await values(settings, unique_name)


def test_partitions_are_those_of_kafkas_default_partitioner() -> None:
    """A re-implementation in one line is checked against the client's own."""
    ask = DefaultPartitioner()
    for n in range(200):
        assert partition_for(f"u{n}".encode(), 12) == ask(f"u{n}".encode(), list(range(12)), [])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"url": "localhost"}, "hosts with ports"),
        ({"url": "redis://localhost:6379"}, "EBBTIDE_KAFKA_URL"),
        ({"session_timeout_s": 2.0}, "three heartbeat_interval_s"),
        ({"poll_interval_max_s": 5.0}, "poll_interval_max_s"),
        ({"request_timeout_s": 0.05}, "request_timeout_s"),
        ({"sesion_timeout_s": 5.0}, "sesion_timeout_s"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], says: str) -> None:
    """By name, and before anything connects."""
    with pytest.raises(ValidationError, match=says):
        KafkaSettings.model_validate({"url": "localhost:9092", **changes})


def test_urls_as_people_write_them() -> None:
    """With the scheme or without, one host or several."""
    assert KafkaSettings(url="kafka://a:1,b:2").url == "a:1,b:2"
    assert KafkaSettings(url="kafka://a:1/").url == "a:1"
    assert KafkaSettings(url="a:1").client()["bootstrap_servers"] == ["a:1"]


async def test_a_local_broker_with_a_second_listener_behind_a_relay() -> None:
    """Each node's settings come from a function; its other listener may be advertised as somewhere else: a relay.

    client ─▶ direct (bootstrap) ─▶ "I am at `relayed`" ─▶ relay ─▶ direct
    """
    (direct, relayed), asked, relays = free_ports(2), [], []

    def settings(number: int, client_port: int) -> dict[str, str]:
        asked.append((number, client_port))
        return {
            "listeners": f"RELAYED://127.0.0.1:{direct}",
            "advertised.listeners": f"RELAYED://127.0.0.1:{relayed}",
            "listener.security.protocol.map": "RELAYED:PLAINTEXT",
        }

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            target.write(data)
        target.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_broker, to_broker = await asyncio.open_connection("127.0.0.1", direct)
        relays.append(asyncio.gather(copy(reader, to_broker), copy(from_broker, writer)))

    kafka = LocalKafka(settings=settings, record=False)
    url = await asyncio.to_thread(kafka.start)
    server = await asyncio.start_server(relay, "127.0.0.1", relayed)
    try:
        assert asked == [(1, kafka.nodes[0].port)]
        assert url == f"127.0.0.1:{kafka.nodes[0].port}"
        through = KafkaSettings(url=f"127.0.0.1:{direct}")
        await ensure_topics(KafkaSettings(url=url), [TopicSpec("t", 1, "s")])
        for value in (b"1", b"2"):
            before = len(relays)
            async with KafkaSink(through) as sink:
                await sink.send_all([Message("t", b"k", value)])
            assert len(relays) > before, "the client went past the relay"
            if value == b"1":
                await asyncio.to_thread(kafka.nodes[0].kill)
                await asyncio.to_thread(kafka.nodes[0].restart)
        assert await values(KafkaSettings(url=url), "t") == [b"1", b"2"]
    finally:
        server.close()
        await asyncio.to_thread(kafka.stop)
        await asyncio.gather(*relays, return_exceptions=True)
