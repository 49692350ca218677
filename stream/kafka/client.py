"""Kafka apart from the group: topics, made or checked; and the names that others import.

The way out is `stream/kafka/producer.py`. The worker's input comes through `stream/consumer/transport.py`; a log is
read from end to end by `stream/kafka/reader.py`.

Every client of ours is opened with `KafkaSettings.client()`, so that a security setting has one place to be
added, and every error of the client library leaves as one of `stream/errors.py`, naming the setting that a
person would change.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from ebbtide.stream.errors import BrokerMisconfigured
from ebbtide.stream.kafka.diagnose import require_metadata, unreachable
from ebbtide.stream.kafka.errors import RIGHTS, failure, forbidden
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.protocol import Described, Operation, describe
from ebbtide.stream.kafka.settings import URL_SETTING, KafkaSettings, ms

__all__ = [
    "URL_SETTING", "KafkaSettings", "KafkaSink", "TopicSpec", "admin", "check_connection", "ensure_topics",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it should be. `setting` is what a person would change if it is not."""

    name: str
    partitions: int
    setting: str
    config: Mapping[str, str] = field(default_factory=dict)


@asynccontextmanager
async def admin(settings: KafkaSettings, timeout_s: float = 10.0) -> AsyncIterator[AIOKafkaAdminClient]:
    """An admin client that has found a broker, within `timeout_s`."""
    client = AIOKafkaAdminClient(**settings.client())
    try:
        try:
            async with asyncio.timeout(timeout_s):
                await client.start()
            require_metadata(client._client)  # noqa: SLF001 -- its cluster is private
        except (KafkaError, OSError, TimeoutError) as error:
            raise await unreachable(settings, error) from error
        yield client
    finally:
        await client.close()


async def topic_id(settings: KafkaSettings) -> str:
    """Which topic of its name the input is, as its deletion and re-creation would change; "" when Kafka cannot say."""
    async with admin(settings) as client:
        try:
            described = await describe(client._client, [settings.topic])  # noqa: SLF001 -- it has no public way to ask
        except KafkaError as error:
            raise failure(settings, "to describe the topic", error) from error
    return described[settings.topic].topic_id


async def check_connection(settings: KafkaSettings, timeout_s: float = 10.0) -> None:
    """Return when a broker answered. Raises BrokerUnavailable or BrokerMisconfigured, with what to do about it."""
    async with admin(settings, timeout_s):
        return


async def ensure_topics(settings: KafkaSettings, topics: Iterable[TopicSpec]) -> dict[str, int]:
    """Create the topics that are missing, check those that are not. Returns each one's number of partitions.

    More partitions than asked for are accepted: their number never changes in place. What a worker does with them has
    to be allowed: to read `settings.topic`, to write the others. Every problem is reported at once, in one
    BrokerMisconfigured.
    """
    wanted = {topic.name: topic for topic in topics}
    async with admin(settings) as client:
        try:
            found = await _described(settings, client, list(wanted))
            missing = [wanted[name] for name in wanted if name not in found]
            if missing:
                await _create(settings, client, missing)
                for _ in range(100):  # the controller has made them; the brokers hear of it a moment later
                    found = await _described(settings, client, list(wanted))
                    if len(found) == len(wanted):
                        break
                    await asyncio.sleep(0.05)
        except (KafkaError, TimeoutError) as error:
            raise await unreachable(settings, error) from error
    counts = {name: topic.partitions for name, topic in found.items()}
    wrong = [
        f"topic {spec.name!r} has {counts.get(name, 0)} partitions, {spec.setting} asks for {spec.partitions}"
        for name, spec in wanted.items()
        if counts.get(name, 0) < spec.partitions
    ]
    if wrong:
        names = ", ".join(sorted({spec.setting for spec in wanted.values()}))
        raise BrokerMisconfigured("; ".join(wrong), hint=f"set {names} to what is there, or use a new topic")
    return counts


async def _described(
    settings: KafkaSettings, client: AIOKafkaAdminClient, names: list[str]
) -> dict[str, Described]:
    """The topics that are there. Raises BrokerMisconfigured when we may not do with one what a worker does."""
    found = await describe(client._client, names)  # noqa: SLF001 -- the admin client has no request for it
    needed = {name: Operation.READ if name == settings.topic else Operation.WRITE for name in found}
    lacking = [
        f"{needed[name].name} on topic {name!r}"
        for name, topic in found.items()
        if topic.forbidden or (topic.there and not topic.allows(needed[name]))
    ]
    if lacking:
        raise forbidden(settings, "what a worker does", lacking)
    return {name: topic for name, topic in found.items() if topic.there}


async def _create(settings: KafkaSettings, client: AIOKafkaAdminClient, topics: Sequence[TopicSpec]) -> None:
    new = [NewTopic(t.name, t.partitions, 1, topic_configs=dict(t.config)) for t in topics]
    for topic in new:
        # The cluster's own default: a laptop has one broker, production says three. The constructor refuses it.
        topic.replication_factor = -1
    response = await client.create_topics(new, timeout_ms=ms(settings.request_timeout_s))
    refused = []
    for name, code, reason in response.topic_errors:
        error = kafka_errors.for_code(code)
        if issubclass(error, RIGHTS):
            refused.append(name)
        elif (
            code and error is not kafka_errors.TopicAlreadyExistsError
        ):  # another worker may have been faster
            raise BrokerMisconfigured(
                f"Kafka would not create topic {name!r}: {error.__name__}: {reason or ''}"
            )
    if refused:
        rights = [f"CREATE on topic {name!r}" for name in refused]
        raise forbidden(settings, "to create topics that are missing", rights, "create them yourself")
