"""A client that has found a broker, for whoever asks Kafka something apart from the group.

Every client of ours is opened with `KafkaSettings.client()`, so that a security setting has one place to be
added, and every error of the client library leaves as one of `stream/errors.py`, naming the setting that a
person would change. Topics are `stream/kafka/topics.py`'s, the way out is `stream/kafka/producer.py`'s.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from ebbtide.stream.ending import closed
from ebbtide.stream.kafka.diagnose import require_metadata, unreachable
from ebbtide.stream.kafka.errors import failure
from ebbtide.stream.kafka.protocol.metadata import describe
from ebbtide.stream.kafka.settings import KafkaSettings


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
        await closed(client.close(), "the admin client")


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
