"""Kafka apart from the group: topics made or checked, and the way out.

The worker's input comes through `stream/transport.py`; a log is read from end to end by `stream/topic_log.py`.

Every client of ours is opened with `KafkaSettings.client()`, so that a security setting has one place to be
added, and every error of the client library leaves as one of `stream/errors.py`, naming the setting that a
person would change.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Self

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError, KafkaError

from stream.errors import BrokerMisconfigured, RecordTooLarge
from stream.kafka_errors import RIGHTS, failure, forbidden
from stream.kafka_knock import check_admitted, unreachable
from stream.kafka_rights import Described, Operation, describe
from stream.kafka_settings import URL_SETTING, KafkaSettings, ms
from stream.message import Message

__all__ = [
    "URL_SETTING", "KafkaSettings", "KafkaSink", "TopicSpec", "admin", "check_connection", "ensure_topics",
]  # fmt: skip

TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
CLOSE_S = 5.0  # what is not acknowledged by then is in the outbox
FLUSH_S = 1.0  # what a producer that is given up may still get out before its successor sends
PRODUCE_BATCH_BYTES = 64 << 10  # far below a broker's megabyte: only a single record can be too large


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
            check_admitted(client._client)  # noqa: SLF001 -- its cluster is private
        except (KafkaError, OSError, TimeoutError) as error:
            raise await unreachable(settings, error) from error
        yield client
    finally:
        await client.close()


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


class KafkaSink:
    """What goes out: acknowledged by all replicas, each message once whatever the network does. A context manager.

    Bounded by aiokafka: one unsent batch a partition, and whoever has more to send waits.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._given_up: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(self, *error: object) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _flush(producer, CLOSE_S)
            self._give_up(producer)
        if self._given_up:
            _, late = await asyncio.wait(self._given_up, timeout=CLOSE_S)
            for task in late:
                task.cancel()

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
        raise failure(self._settings, "to take what we sent", first, "WRITE") from first

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
                    # Bounded by us: for the number that makes its sends idempotent, a producer waits without end.
                    async with asyncio.timeout(self._settings.request_timeout_s):
                        await producer.client.bootstrap()
                        check_admitted(producer.client)
                        await producer.start()
                except (KafkaError, OSError, TimeoutError) as error:
                    await producer.stop()
                    raise await unreachable(self._settings, error) from error
                self._producer = producer
            return self._producer

    async def _renew(self, broken: AIOKafkaProducer) -> None:
        if self._producer is broken:
            self._producer = None
            await _flush(broken, FLUSH_S)
            self._give_up(broken)

    def _give_up(self, producer: AIOKafkaProducer) -> None:
        """In the background: a request to a broker that hangs ends with its timeout, and nobody has to wait for it."""
        task = asyncio.create_task(_end(producer))
        self._given_up.add(task)
        task.add_done_callback(self._given_up.discard)


async def _send(producer: AIOKafkaProducer, message: Message) -> Awaitable[object]:
    topic, key, value, headers, timestamp_ms, partition = message
    ack: Awaitable[object] = await producer.send(topic, value, key, partition, timestamp_ms, list(headers))
    return ack


async def _flush(producer: AIOKafkaProducer, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await producer.flush()


async def _end(producer: AIOKafkaProducer) -> None:
    """Stop a producer, whatever it has not sent: its own `stop` would wait for that, and cut short it would leave
    its sender and its connections behind, trying for ever."""
    try:
        await producer._sender.close()  # noqa: SLF001 -- see above
    finally:
        producer._closed = True  # noqa: SLF001 -- it is, and need not warn that it was not
        # Whoever waits for an acknowledgement need not wait for a timeout to hear that none comes.
        producer._message_accumulator.fail_all(KafkaConnectionError("the producer was given up"))  # noqa: SLF001 -- see above
        await producer.client.close()
