"""Every door of a real Kafka: who gets in does all that a worker does, and who does not is told why, in seconds.

entrance ─▶ admin: topics made ─▶ sink ─▶ topic ─▶ group ─▶ marks committed, and read back
"""

import asyncio
import logging
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ebbtide.ops.observe.logs import capture_logs
from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.errors import BrokerMisconfigured, BrokerUnavailable, StreamError
from ebbtide.stream.kafka.bookmarks import Bookmarks
from ebbtide.stream.kafka.client import check_connection
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import log_ranges, read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics, message_bytes_max
from ebbtide.stream.kafka.transactions.sink import ExactlyOnce
from ebbtide.stream.outputs.message import Message, Parcel
from tests.support.receiver import MemoryChain, Receiver, until
from tests.support.seams.streams import Faults, LogSource
from tests.support.servers.kafka import ASKED, PASSWORD, SHORT_S, SecureKafka, allow, secure_kafka, token

pytestmark = pytest.mark.kafka
PROMPTLY_S = 8.0
HERE = "tests.support.servers.kafka"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    with secure_kafka(tmp_path_factory.mktemp("certificates")) as kafka:
        yield kafka


@pytest.fixture
def told() -> Iterator[list[logging.LogRecord]]:
    """Whatever anybody logs meanwhile, down to aiokafka's own debugging, holds no secret."""
    with capture_logs(logging.DEBUG) as records:
        yield records
    lines = [logging.Formatter("%(message)s").format(record) + repr(vars(record)) for record in records]
    assert not [line for line in lines if PASSWORD in line or "eyJhbGciOiAibm9uZSJ9" in line]


def login(mechanism: str) -> dict[str, object]:
    return {"sasl": {"mechanism": mechanism, "username": "alice", "password": PASSWORD}}


def bearer(**source: object) -> dict[str, object]:
    return {"sasl": {"mechanism": "OAUTHBEARER", **source}}


def certificate(secure: SecureKafka, name: str) -> dict[str, object]:
    return {
        "tls": {
            "enabled": True,
            "ca_file": secure.folder / "ca.pem",
            "cert_file": secure.folder / f"{name}.pem",
        }
    }


def trusting(authority: Path) -> dict[str, object]:
    return {"tls": {"enabled": True, "ca_file": authority}}


def all_rights(name: str) -> list[str]:
    return [
        f"READ on topic {name}", f"WRITE on topic {name}", f"READ on topic {name}-out", f"WRITE on topic {name}-out",
        "CREATE on cluster", f"READ on group {name}", f"READ on group {name}-done",
    ]  # fmt: skip


def topics(name: str) -> list[TopicSpec]:
    return [TopicSpec(name, 2, "topics.partitions"), TopicSpec(f"{name}-out", 1, "topics.partitions")]


@asynccontextmanager
async def started(settings: KafkaSettings, chain: MemoryChain) -> AsyncIterator[Receiver]:
    """A worker in this process; it leaves, whatever happens."""
    receiver = Receiver(settings, chain)
    try:
        await receiver.app.start()
        yield receiver
    finally:
        await receiver.stop()


async def numbers(chain: MemoryChain) -> list[str]:
    return [
        value for partition in range(2) for _, _, rows in await chain.entries(partition) for _, value in rows
    ]


@pytest.mark.parametrize(
    ("listener", "who"),
    [
        ("mutual", "certificate"),
        ("sasl", "PLAIN"),
        ("sasl_tls", "PLAIN"),
        ("sasl_tls", "SCRAM-SHA-256"),
        ("sasl_tls", "SCRAM-SHA-512"),
        ("token", "OAUTHBEARER"),
    ],
)
async def test_who_gets_in_does_all_that_a_worker_does(
    secure: SecureKafka, unique_name: str, told: list[logging.LogRecord], listener: str, who: str
) -> None:
    """Admin, sink, group, marks, the topic reader and the bookmarks: every client of ours is opened alike."""
    identity = certificate(secure, "alice") if who == "certificate" else login(who)
    settings = secure.settings(
        listener, unique_name, **bearer(token_callback=f"{HERE}:token") if who == "OAUTHBEARER" else identity
    )
    await allow(secure, "alice", *all_rights(unique_name))
    await check_connection(settings)
    assert await ensure_topics(settings, topics(unique_name)) == {unique_name: 2, f"{unique_name}-out": 1}
    assert await message_bytes_max(settings, [unique_name]) == {}, "it takes a right that no worker needs"
    async with KafkaSink(settings) as sink:
        await sink.send_all([Message(unique_name, f"k{n}".encode(), f"{n}".encode()) for n in range(100)])
        await sink.send_all([Message(f"{unique_name}-out", b"k", b"alert")])
    ends = {partition: end for partition, (_, end) in (await log_ranges(settings, unique_name)).items()}
    chain = MemoryChain()
    async with started(settings, chain):
        await until(lambda: _as_many(chain, 100), "all folded")
    async with started(settings, chain) as again:
        await until(lambda: len(again.partitions) == 2, "assigned again")
        committed = {partition: await again.source.committed(partition) for partition in range(2)}
        assert await again.source.topic_id() and await again.source.epoch_end(0, 0) is not None
    assert {partition: committed and committed.offset for partition, committed in committed.items()} == ends
    assert sorted(await numbers(chain), key=int) == [str(n) for n in range(100)]
    assert [record.value async for record in read_topic(settings, f"{unique_name}-out")] == [b"alert"]
    async with Bookmarks(settings, f"{unique_name}-done", unique_name) as bookmarks:
        await bookmarks.write({0: {"a": 7}}, await bookmarks.read(2))
        assert await bookmarks.read(2) == {0: {"a": 7}}
    assert any("SaslHandShake" in record.getMessage() for record in told) == bool(settings.sasl.mechanism), (
        "aiokafka's debugging was not looked at"
    )


async def _as_many(chain: MemoryChain, count: int) -> bool:
    return len(await numbers(chain)) >= count


@pytest.mark.parametrize("source", ["callback", "file"])
async def test_a_token_that_expires_is_asked_for_again(
    secure: SecureKafka, unique_name: str, told: list[logging.LogRecord], tmp_path: Path, source: str
) -> None:
    """By the consumer's thread as by the loop: both live longer than any token, and nothing is lost or refused."""
    file = tmp_path / "token"
    file.write_text(token(life_s=SHORT_S) + "\n")
    ours = {"token_callback": f"{HERE}:short_lived"} if source == "callback" else {"token_file": file}
    settings = secure.settings("token", unique_name, **bearer(**ours))
    await allow(secure, "alice", *all_rights(unique_name))
    await ensure_topics(secure.settings("plain", unique_name), topics(unique_name))
    ASKED.clear()
    chain = MemoryChain()

    async def renew() -> None:
        """As Kubernetes does: in time, and never half a token."""
        while True:
            (fresh := file.with_suffix(".new")).write_text(token(life_s=SHORT_S) + "\n")
            fresh.rename(file)
            await asyncio.sleep(0.1)

    renewing = asyncio.create_task(renew())
    try:
        async with started(settings, chain), KafkaSink(settings) as sink:
            for n in range(20):
                await sink.send_all([Message(unique_name, f"k{n}".encode(), f"{n}".encode())])
                await asyncio.sleep(0.2)
            await until(lambda: _as_many(chain, 20), "all folded")
    finally:
        renewing.cancel()
    assert sorted(await numbers(chain), key=int) == [str(n) for n in range(20)]
    if source == "callback":
        loops = {id(loop): ASKED.count(loop) for loop in ASKED}
        assert len(loops) == 2, "asked in the loop of the client that wants it"
        assert min(loops.values()) >= 2, loops


def words(error: BaseException | None) -> str:
    """All that an error and its causes say, as a traceback would show them."""
    said, seen = [], set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        said.append(f"{error!r} {error}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(said)


async def refusal(doing: Awaitable[Any]) -> BrokerMisconfigured:
    """The error it ends with; promptly, and without a secret in it."""
    with pytest.raises(StreamError) as caught:
        await asyncio.wait_for(doing, PROMPTLY_S)
    assert isinstance(caught.value, BrokerMisconfigured), caught.value
    assert PASSWORD not in words(caught.value)
    assert caught.value.hint
    return caught.value


WRONG: dict[str, tuple[str, Callable[[SecureKafka], dict[str, object]], str]] = {
    "password, PLAIN": (
        "sasl_tls", lambda _: {"sasl": {"mechanism": "PLAIN", "username": "alice", "password": "x"}},
        r"Authentication failed.*kafka\.sasl\.password",
    ),
    "password, SCRAM": (
        "sasl_tls", lambda _: {"sasl": {"mechanism": "SCRAM-SHA-512", "username": "alice", "password": "x"}},
        r"invalid credentials.*kafka\.sasl\.password",
    ),
    "mechanism": ("sasl", lambda _: login("SCRAM-SHA-256"), r"set kafka\.sasl\.mechanism to one"),
    "no login": ("sasl_tls", lambda _: {}, r"hangs up.*set kafka\.sasl\.mechanism"),
    "a login nobody asks for": ("tls", lambda _: login("PLAIN"), r"asks for no SASL: unset kafka\.sasl\.mechanism"),
    "no TLS": ("sasl_tls", lambda _: login("PLAIN") | {"tls": {}}, r"speaks TLS, and we do not.*kafka\.tls\.enabled"),
    "TLS": ("sasl", lambda _: login("PLAIN") | {"tls": {"enabled": True}}, r"not speak TLS.*kafka\.tls\.enabled"),
    "authority": ("tls", lambda s: trusting(s.folder / "stranger.pem"), r"set kafka\.tls\.ca_file to the authority"),
    "name": (
        "tls", lambda s: {"url": f"localhost:{s.ports['tls']}"},
        r"not valid for 'localhost'.*name the brokers as their certificates do",
    ),
    "no certificate": ("mutual", lambda _: {}, r"kafka\.tls\.cert_file"),
    "certificate": ("mutual", lambda s: certificate(s, "mallory"), r"kafka\.tls\.cert_file"),
    "token": ("token", lambda _: bearer(token_callback=f"{HERE}:expired"), r"does not accept our token"),
    "token file": ("token", lambda s: bearer(token_file=s.folder / "none"), r"kafka\.sasl\.token_file: cannot read"),
    "CA file": ("tls", lambda s: trusting(s.folder / "none"), r"kafka\.tls\.ca_file: cannot read"),
    "callback": ("token", lambda _: bearer(token_callback="nowhere:token"), r"token_callback.*cannot be imported"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_key_is_said_to_be_wrong(
    secure: SecureKafka, unique_name: str, told: list[logging.LogRecord], wrong: str
) -> None:
    """By each way in: whichever client comes first says which setting it is, and none tries for ever."""
    listener, more, says = WRONG[wrong]
    settings = secure.settings(listener, unique_name, **more(secure))

    errors = await asyncio.gather(*(refusal(way(settings)) for way in WAYS))
    for way, error in zip(WAYS, errors, strict=True):
        assert re.search(says, str(error)), f"{way.__name__}: {error}"


async def connect(settings: KafkaSettings) -> None:
    await check_connection(settings)


async def consume(settings: KafkaSettings) -> None:
    """Until a record is folded."""
    chain = MemoryChain()
    async with started(settings, chain) as receiver:
        folding = asyncio.create_task(until(lambda: _as_many(chain, 1), "a record is folded"))
        failing = asyncio.create_task(receiver.app.failed())
        try:
            done, _ = await asyncio.wait((folding, failing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (folding, failing):
                task.cancel()
        for task in done:
            await task


async def send(settings: KafkaSettings) -> None:
    async with KafkaSink(settings) as sink:
        await sink.send_all([Message(f"{settings.topic}-out", b"k", b"v")])


async def send_once(settings: KafkaSettings) -> None:
    """With an offset, in a transaction."""
    async with ExactlyOnce(settings) as sink:
        sink.attach(LogSource(settings.topic, [[]], seed=0, faults=Faults(0, 0.0)))
        await sink.take_over(0)
        parcel = Parcel(0, [Message(f"{settings.topic}-out", b"k", b"v")], CommittedOffset(1, ""))
        (refused,) = await sink.send_each([parcel])
        if refused is not None:
            raise refused


async def read(settings: KafkaSettings) -> None:
    await anext(read_topic(settings, settings.topic))


async def remember(settings: KafkaSettings) -> None:
    async with Bookmarks(settings, f"{settings.group}-done", settings.topic) as bookmarks:
        await bookmarks.write({0: {"a": 1}}, await bookmarks.read(1))


async def start(settings: KafkaSettings) -> None:
    await ensure_topics(settings, topics(settings.topic))


WAYS = (connect, consume, send, read, remember)


async def test_a_failing_token_function_is_waited_for(
    secure: SecureKafka, unique_name: str, told: list[logging.LogRecord]
) -> None:
    """It asks somebody who may be away; what it says when it fails may hold what it asked with."""
    settings = secure.settings("token", unique_name, **bearer(token_callback=f"{HERE}:broken"))
    for way in WAYS:
        with pytest.raises(
            BrokerUnavailable, match=f"{HERE}:broken gave no token: ConnectionError"
        ) as caught:
            await asyncio.wait_for(way(settings), PROMPTLY_S)
        assert PASSWORD not in words(caught.value)


@dataclass(frozen=True)
class Forbidden:
    """A worker with all rights but `lacks` does something; the error's hint names `says`."""

    doing: Callable[[KafkaSettings], Awaitable[None]]
    lacks: tuple[str, ...]
    says: str


FORBIDDEN = {
    "to read the input, at start": Forbidden(start, ("READ on topic {}",), "READ on topic '{}'"),
    "to read the input": Forbidden(consume, ("READ on topic {}",), "READ on topic '{}'"),
    "to know of the input": Forbidden(
        start, ("READ on topic {}", "WRITE on topic {}"), "READ on topic '{}'"
    ),
    "the group": Forbidden(consume, ("READ on group {}",), "READ on group '{}'"),
    "to write, at start": Forbidden(start, ("WRITE on topic {}-out",), "WRITE on topic '{}-out'"),
    "to write": Forbidden(send, ("WRITE on topic {}-out",), "WRITE on topic '{}-out'"),
    "to create": Forbidden(start, ("CREATE on cluster",), "CREATE on topic '{}'"),
    "idempotence": Forbidden(send, ("WRITE on topic {}", "WRITE on topic {}-out"), "IDEMPOTENT_WRITE on the cluster"),
    "transactions": Forbidden(send_once, (), "WRITE on transactional-id '{0}-{0}-'"),
    "to write in one": Forbidden(
        send_once, ("WRITE on topic {}-out", "READ on group {}"), "WRITE on transactional-id '{0}-{0}-'"
    ),
    "to read a topic": Forbidden(read, ("READ on topic {}",), "READ on topic '{}'"),
    "to know of a topic": Forbidden(read, ("READ on topic {}", "WRITE on topic {}"), "READ on topic '{}'"),
    "the bookmarks' group": Forbidden(remember, ("READ on group {}-done",), "READ on group '{}-done'"),
    "the bookmarks' topic": Forbidden(remember, ("READ on topic {}", "WRITE on topic {}"), "READ on topic '{}'"),
}  # fmt: skip


def granted_by(hint: str) -> list[str]:
    """The rights that a hint says to grant, as `allow` takes them."""
    named = re.findall(r"([A-Z_]+) on (topic|group|transactional-id) '([^']+)'", hint)
    rights = [f"{operation} on {kind} {name}" for operation, kind, name in named]
    return rights + ["IDEMPOTENT_WRITE on cluster"] * ("IDEMPOTENT_WRITE on the cluster" in hint)


@pytest.mark.parametrize("case", FORBIDDEN)
async def test_a_right_that_is_missing_is_named(secure: SecureKafka, unique_name: str, case: str) -> None:
    """Its hint is the ACL to grant: granted, the same thing works, or names the next right that it takes."""
    forbidden, user = FORBIDDEN[case], f"u{unique_name}"
    lacks = {right.format(unique_name) for right in forbidden.lacks}
    settings = secure.settings("token", unique_name, **bearer(token_callback=f"{HERE}:{user}"))
    setattr(sys.modules[HERE], user, lambda: token(user))
    await allow(secure, user, *(right for right in all_rights(unique_name) if right not in lacks))
    if case != "to create":
        admin = secure.settings("plain", unique_name)
        await ensure_topics(admin, topics(unique_name))
        async with KafkaSink(admin) as sink:
            await sink.send_all([Message(unique_name, b"k", b"1")])
    error = await refusal(forbidden.doing(settings))
    says = forbidden.says.format(unique_name)
    assert says in error.hint, error
    assert "ACL" in error.hint
    assert says in error.args[0]

    granted: list[str] = []
    while True:
        news = [right for right in granted_by(error.hint) if right not in granted]
        assert news, f"with {granted}: {error}"
        await allow(secure, user, *news)
        granted += news
        try:
            await asyncio.wait_for(forbidden.doing(settings), PROMPTLY_S)
            return
        except BrokerMisconfigured as next_one:
            error = next_one
