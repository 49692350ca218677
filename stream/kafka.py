"""Kafka apart from the group: settings, errors, topics, and the way out.

The worker's input comes through `stream/transport.py`; a log is read from end to end by `stream/topic_log.py`.

Every client of ours is opened with `KafkaSettings.client()`, so that a security setting has one place to be
added, and every error of the client library leaves as one of `stream/errors.py`, naming the setting that a
person would change.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stream.errors import BrokerMisconfigured, BrokerUnavailable, RecordTooLarge, StreamError
from stream.message import Message

URL_SETTING = "EBBTIDE_KAFKA_URL"
TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
CLOSE_S = 5.0  # what is not acknowledged by then is in the outbox
PRODUCE_BATCH_BYTES = 64 << 10  # far below a broker's megabyte: only a single record can be too large

# What Kafka will say again, however often it is asked. All else may pass: a broker restarts, a coordinator moves.
PERMANENT = (
    kafka_errors.AuthenticationFailedError,
    kafka_errors.AuthenticationMethodNotSupported,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.InconsistentGroupProtocolError,
    kafka_errors.InvalidCommitOffsetSizeError,
    kafka_errors.InvalidGroupIdError,
    kafka_errors.InvalidSessionTimeoutError,
    kafka_errors.OffsetMetadataTooLargeError,
    kafka_errors.SaslAuthenticationFailed,
    kafka_errors.TopicAuthorizationFailedError,
)


class KafkaSettings(BaseModel):
    """Where Kafka is, who we are to it, and how long is too long. Times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(description="kafka://host:port[,host:port…], or without the scheme")
    group: str = Field(default="ebbtide", min_length=1)
    topic: str = Field(default="clickstream", min_length=1)
    client_id: str = Field(default="ebbtide", min_length=1)

    # A worker that dies is noticed after the session timeout, one that hangs after the poll interval.
    session_timeout_s: float = Field(default=10.0, gt=0)
    heartbeat_interval_s: float = Field(default=2.5, gt=0)
    poll_interval_max_s: float = Field(default=300.0, gt=0)
    request_timeout_s: float = Field(default=30.0, gt=0)
    commit_interval_s: float = Field(default=1.0, gt=0)
    # The broker answers as soon as there is one byte; this is how long it may hold a request when there is
    # none. It is also the longest that a partition just opened or resumed waits behind a request that left
    # without it.
    fetch_wait_max_s: float = Field(default=0.1, gt=0)

    fetch_records_max: int = Field(default=1000, ge=1, description="records in one fetched batch")
    fetch_partition_bytes_max: int = Field(default=1 << 20, ge=1024)
    fetched_batches_max: int = Field(default=16, ge=1, description="batches between fetch and pipeline")
    produce_bytes_max: int = Field(
        default=16 << 20, ge=1024, description="one record out; topics may say less"
    )
    records_per_message: int = Field(default=0, ge=0, description="0: a whole batch; 1 is for the benchmark")

    @field_validator("url")
    @classmethod
    def _has_hosts_and_ports(cls, url: str) -> str:
        scheme, found, rest = url.partition("://")
        if found and scheme != "kafka":
            raise ValueError(f"{URL_SETTING} is kafka://host:port[,host:port…], not {url!r}")
        hosts = (rest if found else url).strip("/").split(",")
        for host in hosts:
            name, _, port = host.rpartition(":")
            if not name or not port.isdigit():
                raise ValueError(
                    f"{URL_SETTING} names hosts with ports, like kafka://localhost:9092, not {url!r}"
                )
        return ",".join(hosts)

    @model_validator(mode="after")
    def _times_fit_each_other(self) -> "KafkaSettings":
        wrong = []
        if self.heartbeat_interval_s * 3 > self.session_timeout_s:
            wrong.append("session_timeout_s must be at least three heartbeat_interval_s: one may get lost")
        if self.session_timeout_s > self.poll_interval_max_s:
            wrong.append("poll_interval_max_s must not be below session_timeout_s")
        if self.fetch_wait_max_s >= self.request_timeout_s:
            wrong.append("request_timeout_s must be above fetch_wait_max_s")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def client(self) -> dict[str, Any]:
        """Keyword arguments that every aiokafka client of ours is opened with."""
        return {
            "bootstrap_servers": self.url.split(","),
            "client_id": self.client_id,
            "request_timeout_ms": ms(self.request_timeout_s),
            "retry_backoff_ms": 250,  # aiokafka logs every try: an outage should not be four lines each 0.1 s
        }


def ms(seconds: float) -> int:
    """Milliseconds, at least one: Kafka takes 0 for never."""
    return max(1, round(seconds * 1000))


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it should be. `setting` is what a person would change if it is not."""

    name: str
    partitions: int
    setting: str
    config: Mapping[str, str] = field(default_factory=dict)


def failure(settings: KafkaSettings, what: str, error: BaseException) -> StreamError:
    """The client library's error as one of ours, to be raised from it: to retry, or to stop at."""
    if isinstance(error, PERMANENT):
        return BrokerMisconfigured(f"Kafka at {settings.url} refuses {what}: {error!r}")
    return BrokerUnavailable(f"Kafka at {settings.url} failed {what}: {error!r}")


def no_broker(settings: KafkaSettings, cause: BaseException) -> NoReturn:
    raise BrokerUnavailable(
        f"no Kafka broker answers at {settings.url}: {cause}",
        hint=f"start one with `ebbtide stack up`, or set {URL_SETTING} to one that runs",
    ) from cause


@asynccontextmanager
async def admin(settings: KafkaSettings, timeout_s: float = 10.0) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client that has found a broker, within `timeout_s`."""
    client = AIOKafkaAdminClient(**settings.client())
    try:
        try:
            async with asyncio.timeout(timeout_s):
                await client.start()
        except (KafkaError, OSError, TimeoutError) as error:
            no_broker(settings, error)
        yield client
    finally:
        await client.close()


async def check_connection(settings: KafkaSettings, timeout_s: float = 10.0) -> None:
    """Return when a broker answered. Raises BrokerUnavailable, with what to do about it."""
    async with admin(settings, timeout_s):
        return


async def ensure_topics(settings: KafkaSettings, topics: Iterable[TopicSpec]) -> dict[str, int]:
    """Create the topics that are missing, check those that are not. Returns each one's number of partitions.

    More partitions than asked for are accepted: their number never changes in place. Every problem is
    reported at once, in one BrokerMisconfigured.
    """
    wanted = {topic.name: topic for topic in topics}
    async with admin(settings) as client:
        try:
            found = await _partition_counts(client, list(wanted))
            missing = [wanted[name] for name in wanted if name not in found]
            if missing:
                await _create(client, missing, ms(settings.request_timeout_s))
                for _ in range(100):  # the controller has made them; the brokers hear of it a moment later
                    found = await _partition_counts(client, list(wanted))
                    if len(found) == len(wanted):
                        break
                    await asyncio.sleep(0.05)
        except (KafkaError, TimeoutError) as error:
            raise failure(settings, "to describe or create topics", error) from error
    wrong = [
        f"topic {spec.name!r} has {found.get(name, 0)} partitions, {spec.setting} asks for {spec.partitions}"
        for name, spec in wanted.items()
        if found.get(name, 0) < spec.partitions
    ]
    if wrong:
        names = ", ".join(sorted({spec.setting for spec in wanted.values()}))
        raise BrokerMisconfigured("; ".join(wrong), hint=f"set {names} to what is there, or use a new topic")
    return found


async def _partition_counts(client: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, int]:
    described = await client.describe_topics(list(names))
    counts = {}
    for topic in described:
        if topic["error_code"] == 0:
            counts[topic["topic"]] = len(topic["partitions"])
    return counts


async def _create(client: AIOKafkaAdminClient, topics: Sequence[TopicSpec], timeout_ms: int) -> None:
    new = [NewTopic(t.name, t.partitions, 1, topic_configs=dict(t.config)) for t in topics]
    for topic in new:
        # The cluster's own default: a laptop has one broker, production says three. The constructor refuses it.
        topic.replication_factor = -1
    response = await client.create_topics(new, timeout_ms=timeout_ms)
    for name, code, reason in response.topic_errors:
        error = kafka_errors.for_code(code)
        if code and error is not kafka_errors.TopicAlreadyExistsError:  # another worker may have been faster
            raise BrokerMisconfigured(
                f"Kafka would not create topic {name!r}: {error.__name__}: {reason or ''}"
            )


class KafkaSink:
    """What goes out: acknowledged by all replicas, each message once whatever the network does. A context manager.

    Bounded by aiokafka: one unsent batch a partition, and whoever has more to send waits.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer, CLOSE_S)

    async def send_all(self, messages: Sequence[Message]) -> None:
        """Return when all of `messages` are acknowledged.

        Raises RecordTooLarge when one of them never can be, and BrokerUnavailable when it is not known of some:
        sending them all again is safe, since nobody reads an alert or a letter by its offset.
        """
        producer = await self._connected()
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                acks = [await _send(producer, message) for message in messages]
                outcomes = await asyncio.gather(*acks, return_exceptions=True)
        except (KafkaError, TimeoutError) as error:
            outcomes = [error]
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if not errors:
            return
        if not isinstance(errors[0], TimeoutError):
            await self._renew(producer)  # a refusal leaves a gap in its sequence numbers
        first = next((error for error in errors if isinstance(error, TOO_LARGE)), errors[0])
        if isinstance(first, TOO_LARGE):
            raise RecordTooLarge(
                f"a record exceeds what its topic accepts: {first!r}",
                hint="raise max.message.bytes of the topic and kafka.produce_bytes_max to what the input's topic takes",
            ) from first
        raise failure(self._settings, "to take what we sent", first) from first

    async def _connected(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **self._settings.client(),
                    acks="all",
                    enable_idempotence=True,
                    max_request_size=self._settings.produce_bytes_max,
                    max_batch_size=PRODUCE_BATCH_BYTES,
                )
                try:
                    await producer.start()
                except (KafkaError, OSError, TimeoutError) as error:
                    await producer.stop()
                    no_broker(self._settings, error)
                self._producer = producer
            return self._producer

    async def _renew(self, broken: AIOKafkaProducer) -> None:
        if self._producer is broken:
            self._producer = None
            await _stop(broken, 1.0)


async def _send(producer: AIOKafkaProducer, message: Message) -> Awaitable[object]:
    topic, key, value, headers, timestamp_ms, partition = message
    ack: Awaitable[object] = await producer.send(topic, value, key, partition, timestamp_ms, list(headers))
    return ack


async def _stop(producer: AIOKafkaProducer, timeout_s: float) -> None:
    with suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(timeout_s):
            await producer.stop()
