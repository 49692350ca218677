"""Kafka apart from the group, against a real one: topics checked or made, the way out, a log read to its end."""

import asyncio
import logging
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from aiokafka.partitioner import DefaultPartitioner
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from ebbtide.ops.observe.logs import capture_logs
from ebbtide.ops.stack.local import LocalKafka
from ebbtide.ops.stack.server import free_ports
from ebbtide.stream.errors import BrokerMisconfigured, BrokerUnavailable, RecordTooLarge
from ebbtide.stream.kafka.client import check_connection
from ebbtide.stream.kafka.producer import PRODUCE_BATCH_BYTES, KafkaSink
from ebbtide.stream.kafka.reader import log_ranges, read_topic
from ebbtide.stream.kafka.security import _warn_of_plaintext
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics, partition_for
from ebbtide.stream.outputs.message import Message, Parcel
from tests.support.patience import PATIENCE_S
from tests.support.receiver import until
from tests.support.servers.listener import proxied_listener
from tests.support.servers.proxy import Proxy
from tests.support.servers.services import Services

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


async def test_a_mistyped_input_is_warned_of_or_refused(stack: Services, unique_name: str) -> None:
    """And what is there under a name like it is said."""
    await ensure_topics(settings_for(stack, unique_name), [TopicSpec(unique_name, 1, "topics.partitions")])
    mistyped = settings_for(stack, unique_name + "s")
    spec = TopicSpec(mistyped.topic, 1, "topics.partitions", create=False)
    with pytest.raises(
        BrokerMisconfigured, match=f"'{mistyped.topic}' is not there; .*'{unique_name}'"
    ) as refused:
        await ensure_topics(mistyped, [spec, TopicSpec(f"{unique_name}-alerts", 1, "topics.partitions")])
    assert "topics.create_input" in refused.value.hint
    with pytest.raises(BrokerMisconfigured):  # still not there, nor is any other
        await ensure_topics(mistyped, [spec])
    with capture_logs() as logs:
        counts = await ensure_topics(mistyped, [replace(spec, create=True)])
    assert counts == {mistyped.topic: 1}
    (warned,) = [vars(line) for line in logs if "is its name right" in line.getMessage()]
    assert (warned["topic"], unique_name in warned["alike"]) == (mistyped.topic, True)
    with capture_logs() as logs:
        assert await ensure_topics(mistyped, [spec]) == counts
    assert not [line for line in logs if line.levelno >= logging.WARNING]


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


async def test_a_refused_record_is_its_own_partitions_affair(stack: Services, unique_name: str) -> None:
    """Partitions send together, and only that whose record no topic takes hears of it: the others would stop, too."""
    settings = settings_for(stack, unique_name)
    await ensure_topics(settings, [TopicSpec(unique_name, 1, "s")])
    async with KafkaSink(settings) as sink:
        large, fine = (Message(unique_name, b"k", b"v" * size) for size in (2_000_000, 5))
        refused, *others = await sink.send_each([Parcel(0, [large]), Parcel(1, [fine]), Parcel(2, [])])
    assert isinstance(refused, RecordTooLarge) and others == [None, None]
    assert set(await values(settings, unique_name)) == {b"vvvvv"}


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
        assert (await asyncio.wait_for(first, PATIENCE_S)).value == b"new"
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
        ({"instance": "two words"}, "instance"),
        ({"url": "kafka://alice:hidden@localhost:9092"}, r"no credentials.*kafka\.sasl\.password"),
        ({"tls": {"ca_file": "/ca.pem"}}, r"tls\.ca_file is set, but tls\.enabled is false"),
        ({"tls": {"enabled": True, "key_file": "/k"}}, r"tls\.key_file needs tls\.cert_file"),
        (
            {"sasl": {"username": "a", "password": "hidden"}},
            r"sasl\.password is set, but sasl\.mechanism is not",
        ),
        ({"sasl": {"mechanism": "PLAIN"}}, r"PLAIN needs sasl\.username; PLAIN needs sasl\.password"),
        ({"sasl": {"mechanism": "MD5", "password": "hidden"}}, r"sasl\.mechanism"),
        ({"sasl": {"mechanism": "OAUTHBEARER"}}, r"exactly one of sasl\.token_callback and sasl\.token_file"),
        (
            {"sasl": {"mechanism": "OAUTHBEARER", "token_file": "/t", "token_callback": "m:f"}},
            r"exactly one of sasl\.token_callback and sasl\.token_file",
        ),
        ({"sasl": {"mechanism": "OAUTHBEARER", "token_callback": "f"}}, r"sasl\.token_callback"),
        (
            {"sasl": {"mechanism": "PLAIN", "username": "a", "password": "hidden", "token_file": "/t"}},
            r"sasl\.token_file is for OAUTHBEARER",
        ),
        # Whatever is wrong, at once.
        (
            {"sasl": {"username": "a"}, "tls": {"cert_file": "/c"}, "session_timeout_s": 2.0},
            r"tls\.cert_file.*sasl\.username.*three heartbeat_interval_s",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], says: str) -> None:
    """By name, and before anything connects; and no secret is shown."""
    with pytest.raises(ValidationError, match=says) as refused:
        KafkaSettings.model_validate({"url": "localhost:9092", **changes})
    assert "hidden" not in str(refused.value)


def test_secrets_are_not_shown() -> None:
    """By whatever prints the settings."""
    sasl = {"mechanism": "PLAIN", "username": "a", "password": "hidden"}
    tls = {"enabled": True, "cert_file": "/c", "key_password": "hidden"}
    settings = KafkaSettings.model_validate({"url": "a:1", "sasl": sasl, "tls": tls})
    assert "hidden" not in f"{settings!r} {settings} {settings.model_dump_json()} {settings.model_dump()}"


def test_plaintext_passwords_are_warned_of_once() -> None:
    """It is allowed, inside a network of one's own; it is said, and not at every connection."""
    sasl = {"mechanism": "SCRAM-SHA-256", "username": "a", "password": "p"}
    settings = KafkaSettings.model_validate({"url": "a:1", "sasl": sasl})
    with capture_logs(logging.WARNING) as records:
        for _ in range(3):
            settings.client()
    assert len([record for record in records if "kafka.sasl without kafka.tls" in record.getMessage()]) <= 1
    _warn_of_plaintext.cache_clear()
    with capture_logs(logging.WARNING) as records:
        for _ in range(3):
            settings.client()
    assert [record.getMessage()[:28] for record in records] == ["kafka.sasl without kafka.tls"]


@pytest.mark.parametrize("broken", ["key", "password", "ca"])
def test_files_that_do_not_fit_name_their_setting(tmp_path: Path, broken: str) -> None:
    """Before anything connects, and without a question on the terminal."""
    authority = trustme.CA()
    issued, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"opens"))
    (tmp_path / "key.pem").write_bytes(other.private_key_pem.bytes() if broken == "key" else locked)
    (tmp_path / "text").write_text("no certificate")
    tls = {"enabled": True, "ca_file": tmp_path / ("text" if broken == "ca" else "ca.pem"),
           "cert_file": tmp_path / "cert.pem", "key_file": tmp_path / "key.pem"}  # fmt: skip
    says = r"kafka\.tls\.ca_file" if broken == "ca" else r"kafka\.tls\.cert_file.*tls\.key_password"
    with pytest.raises(BrokerMisconfigured, match=says):
        KafkaSettings.model_validate({"url": "a:1", "tls": tls}).client()
    if broken == "password":
        opened = KafkaSettings.model_validate({"url": "a:1", "tls": tls | {"key_password": "opens"}})
        assert opened.client()["security_protocol"] == "SSL"


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

    kafka = LocalKafka(settings=settings)
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


def held_bytes(sink: KafkaSink) -> int:
    """What the producer holds that is not acknowledged."""
    if sink._producer is None:
        return 0
    accumulator = sink._producer._message_accumulator
    waiting = [batch for batches in accumulator._batches.values() for batch in batches]
    return sum(batch._builder.size() for batch in {*waiting, *accumulator._pending_batches})


def senders() -> list[str]:
    """aiokafka's tasks that send and that keep metadata, one of each a producer that lives."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return sorted(
        name for name in names if name.endswith(("_sender_routine", "_md_synchronizer", "_send_produce_req"))
    )


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_sink_outlives_an_outage_and_holds_no_more_than_it_may(unique_name: str, how: str) -> None:
    """Brokers away for longer than a request may take: every try ends in time, what is held stays bounded, the first
    send after it works, and no producer that was given up lives on."""
    kafka, partitions, each = LocalKafka(), 4, 10_000
    url = await asyncio.to_thread(kafka.start)
    settings = KafkaSettings(url=url, topic=unique_name, request_timeout_s=1.5, produce_bytes_max=100_000)
    (node,) = kafka.nodes
    messages = [
        Message(unique_name, f"k{n}".encode(), b"v" * each, partition=n % partitions) for n in range(100)
    ]
    loop = asyncio.get_running_loop()
    try:
        await ensure_topics(settings, [TopicSpec(unique_name, partitions, "s")])
        async with KafkaSink(settings) as sink:
            await sink.send_all(messages)
            before = senders()
            if how == "killed":
                await asyncio.to_thread(node.kill)
            else:
                node.server.signal(signal.SIGSTOP)
            for attempt in range(6):
                began = loop.time()
                tries = [sink.send_all(messages[n::partitions]) for n in range(partitions)]
                if attempt == 3:  # a refusal, which gives the producer up with all it holds
                    tries.append(sink.send_all([Message(unique_name, b"k", b"v" * 200_000)]))
                outcomes = await asyncio.gather(*tries, return_exceptions=True)
                assert all(isinstance(o, BrokerUnavailable | RecordTooLarge) for o in outcomes), outcomes
                assert loop.time() - began < 8.0
                assert held_bytes(sink) <= partitions * 2 * (PRODUCE_BATCH_BYTES + each)
            if how == "killed":
                await asyncio.to_thread(node.restart)
            else:
                node.server.signal(signal.SIGCONT)
            await asyncio.wait_for(sink.send_all(messages), 5.0)
            await until(lambda: senders() == before, f"only {before} live on")
            await until(lambda: held_bytes(sink) == 0, "nothing is held")
        assert senders() == []
        keys = {record.key async for record in read_topic(settings, unique_name)}
        assert keys == {message.key for message in messages}
    finally:
        node.server.signal(signal.SIGCONT)
        await asyncio.to_thread(kafka.stop)


@pytest.mark.parametrize("how", ["timed out", "cancelled", "revoked"])
async def test_what_was_not_acknowledged_is_not_delivered_later(unique_name: str, how: str) -> None:
    """The way to the broker hangs, with a score of jane's in it. Her partition is another's, who passes her tombstone
    on. Then the network heals: the tombstone stays her last word."""
    (inner,) = free_ports(1)
    with Proxy(inner) as proxy:
        kafka = LocalKafka(settings=proxied_listener(inner, proxy))
        url = await asyncio.to_thread(kafka.start)
        there = KafkaSettings(url=url, topic=unique_name)
        behind = KafkaSettings(url=f"127.0.0.1:{proxy.port}", topic=unique_name, request_timeout_s=2.0)
        try:
            await ensure_topics(there, [TopicSpec(unique_name, 1, "s")])
            async with KafkaSink(behind) as mine, KafkaSink(there) as theirs:
                await mine.send_all([Message(unique_name, b"jane", b"0.90")])
                proxy.hang()
                sending = asyncio.create_task(
                    mine.send_all([Message(unique_name, b"jane", b"%d" % n) for n in range(20)])
                )
                await asyncio.sleep(0.5)
                if how == "cancelled":
                    sending.cancel()
                elif how == "revoked":
                    mine.abandon()
                (outcome,) = await asyncio.gather(sending, return_exceptions=True)
                assert isinstance(
                    outcome, asyncio.CancelledError if how == "cancelled" else BrokerUnavailable
                )
                await theirs.send_all([Message(unique_name, b"jane", None)])
                proxy.heal()
                await asyncio.sleep(3.0)  # a producer that held it would have sent it by now
                await mine.send_all([Message(unique_name, b"joe", b"0.10")])
            said = [(record.key, record.value) async for record in read_topic(there, unique_name)]
            assert said == [(b"jane", b"0.90"), (b"jane", None), (b"joe", b"0.10")]
        finally:
            await asyncio.to_thread(kafka.stop)
        assert senders() == []
