"""Kafka apart from the group: settings, topics, reading a log from one end to the other.

The worker's input comes through `stream/transport.py` and its output leaves through `stream/sink.py`; all
that an operator's command needs besides (is there a broker, are the topics as they should be, what lies in
this one) is here.

Every client of ours is opened with `KafkaSettings.client()`, so that a security setting has one place to be
added, and every error of the client library leaves as one of `stream/errors.py`, naming the setting that a
person would change.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.partitioner import DefaultPartitioner
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stream.errors import BrokerMisconfigured, BrokerUnavailable
from stream.fetched import Record

URL_SETTING = "EBBTIDE_KAFKA_URL"


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
            raise BrokerUnavailable(
                f"Kafka at {settings.url} did not finish its answer: {error!r}"
            ) from error
    wrong = [
        f"topic {spec.name!r} has {found.get(name, 0)} partitions, {spec.setting} asks for {spec.partitions}"
        for name, spec in wanted.items()
        if found.get(name, 0) < spec.partitions
    ]
    if wrong:
        settings_named = ", ".join(sorted({spec.setting for spec in wanted.values()}))
        raise BrokerMisconfigured(
            "; ".join(wrong), hint=f"set {settings_named} to what is there, or use a new topic"
        )
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
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:  # another worker may have been faster
            raise BrokerMisconfigured(
                f"Kafka would not create topic {name!r}: {error.__name__}: {reason or ''}"
            )


@asynccontextmanager
async def reader(
    settings: KafkaSettings, topic: str
) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
    """A consumer outside of any group on all partitions of `topic`; reads only what was committed."""
    consumer = AIOKafkaConsumer(
        **settings.client(),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_wait_ms=ms(settings.fetch_wait_max_s),
    )
    try:
        try:
            await consumer.start()
        except (KafkaError, OSError, TimeoutError) as error:
            no_broker(settings, error)
        # Asked by name without a subscription, a topic is not created by being asked for.
        numbers = (await consumer._client.fetch_all_metadata()).partitions_for_topic(topic)  # noqa: SLF001 -- consumer.topics() returns names only
        if not numbers:
            raise BrokerMisconfigured(f"there is no topic {topic!r} at {settings.url}")
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(partitions)
        yield consumer, partitions
    finally:
        await consumer.stop()


async def log_ranges(settings: KafkaSettings, topic: str) -> dict[int, tuple[int, int]]:
    """By partition: the first retained offset, and the one after the last record that may be read."""
    async with reader(settings, topic) as (consumer, partitions):
        try:
            begin = await consumer.beginning_offsets(partitions)
            end = await consumer.end_offsets(partitions)
        except KafkaError as error:
            raise BrokerUnavailable(f"Kafka at {settings.url} did not tell the offsets: {error!r}") from error
    return {tp.partition: (begin[tp], end[tp]) for tp in partitions}


async def read_topic(settings: KafkaSettings, topic: str, *, follow: bool = False) -> AsyncIterator[Record]:
    """Every record of `topic`, in order within a partition: up to what is there now, or for ever with
    `follow`.

    Records of ours have `.topic` and `.partition`, too. With `follow` it begins at the log's end as of now.
    """
    async with reader(settings, topic) as (consumer, partitions):
        try:
            end = await consumer.end_offsets(partitions)
            if follow:
                for tp in partitions:
                    consumer.seek(tp, end[tp])
            else:
                await consumer.seek_to_beginning(*partitions)
            left = set(partitions)
            while follow or left:
                fetched = await consumer.getmany(timeout_ms=100, max_records=1000)
                for tp, records in fetched.items():
                    for record in records:
                        if follow or record.offset < end[tp]:
                            yield record
                if not follow:
                    # By position, not by the last record: transaction markers have none.
                    left = {tp for tp in left if await consumer.position(tp) < end[tp]}
        except KafkaError as error:
            raise BrokerUnavailable(f"reading {topic!r} at {settings.url} failed: {error!r}") from error


def partition_for(key: bytes, partitions: int) -> int:
    """The partition that a producer with Kafka's default partitioner (murmur2) gives this key."""
    number: int = DefaultPartitioner()(key, list(range(partitions)), [])
    return number
