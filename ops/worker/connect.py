"""The way to a worker's topics and store, for whoever works on them: the worker itself, and commands beside it.

It knows settings and addresses, and no model: a command that only reads or fills need not wait for TensorFlow.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.checkpoint import Checkpoint, check_checkpoint
from ebbtide.featurestore.store.outcomes import outcomes
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.store.redis.names import names_of
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.errors import OpsError, SettingsError
from ebbtide.stream.kafka.client import check_connection
from ebbtide.stream.kafka.producer import PRODUCE_BATCH_BYTES, KafkaSink
from ebbtide.stream.kafka.topics import TopicSpec
from ebbtide.stream.kafka.transactions.sink import ExactlyOnce

PARTITIONS_SOUGHT = 1_024
"""Where nobody says how many a state has; the first one that has begun does."""
MESSAGE_BYTES_MIN = 2 * PRODUCE_BATCH_BYTES
"""What an output topic has to take: a batch of ours. An alert, a score, a dead letter without its body are far less."""


def topic_specs(settings: Settings) -> list[TopicSpec]:
    """The topics a worker needs; the score topic is compacted, since it holds the latest score of everyone."""
    topics = settings.topics
    # Made by us it takes whatever the input takes, with headers on top; else what does not fit is omitted.
    letters = {"max.message.bytes": str(settings.kafka.produce_bytes_max)}
    specs = [
        TopicSpec(settings.kafka.topic, topics.partitions, "topics.partitions", create=topics.create_input),
        _output(topics.alerts, topics.partitions, gone_by(topics.alerts_retention_ms)),
        _output(topics.dead_letters, topics.partitions, gone_by(topics.dead_letters_retention_ms), **letters),
    ]
    if topics.scores is not None:
        gone = gone_by(topics.alerts_retention_ms, "max.compaction.lag.ms")
        specs.append(_output(topics.scores, topics.partitions, gone, "compact"))
    if topics.audit is not None:
        specs.append(_output(topics.audit, topics.partitions, gone_by(topics.audit_retention_ms)))
    return specs


def _output(
    name: str, partitions: int, gone: dict[str, str], cleanup: str = "delete", **more: str
) -> TopicSpec:
    """A topic that a worker writes, with when what lies there is gone."""
    return TopicSpec(
        name,
        partitions,
        "topics.partitions",
        {"cleanup.policy": cleanup, **gone, **more},
        message_bytes_min=MESSAGE_BYTES_MIN,
        at_most=gone,
    )


def gone_by(retention_ms: int, name: str = "retention.ms") -> dict[str, str]:
    """A topic's configuration by which a record is gone after `retention_ms`. Kafka drops a log by whole segments, so
    in one that still grows a record stays for as long as its segment is open on top."""
    segment_ms = retention_ms // 4
    return {name: str(retention_ms - segment_ms), "segment.ms": str(segment_ms)}


def open_delivery(settings: Settings) -> KafkaSink | ExactlyOnce:
    """The way out of a worker's partitions, to be entered: exactly once or at least once, as the settings say."""
    return ExactlyOnce(settings.kafka) if settings.alerts.exactly_once else KafkaSink(settings.kafka)


@asynccontextmanager
async def open_store(
    settings: Settings,
    layout: Layout,
    partitions: int,
    kind: Callable[..., RedisStore] = RedisStore,
) -> AsyncIterator[RedisStore]:
    """The store, checked: it answers, and is not set up to lose state. kind: makes it of a RedisStore's arguments."""
    if settings.redis.url is None:
        raise ValueError("no Redis URL: start the local stack first")
    key = settings.redis.customer_key
    store = kind(
        settings.redis.url,
        layout.dtype,
        settings.kafka.topic,
        partitions,
        credentials=settings.redis.credentials(),
        prefix=settings.redis.prefix,
        timeout_s=settings.redis.timeout_s,
        connections_max=settings.redis.connections_max,
        names=names_of(key.get_secret_value() if key else None, composite=layout.spec.customer is not None),
    )
    try:
        await store.start()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def open_state(settings: Settings, layout: Layout) -> AsyncIterator[RedisStore]:
    """The store of a state that is there, by Redis alone: its checkpoints say how many partitions it has. Raises
    SettingsError where no Redis is configured, OpsError where no state is, LayoutError for one of another layout."""
    if settings.redis.url is None:
        raise SettingsError(
            "there is no Redis to ask: none is configured, and one started now would be empty",
            hint="set EBBTIDE_REDIS_URL",
        )
    async with open_store(settings, layout, PARTITIONS_SOUGHT) as store:
        found = await outcomes(store.checkpoint_each(range(store.partitions)))
    begun = next((each for each in found if isinstance(each, Checkpoint)), None)
    if begun is None:
        for error in found:
            if isinstance(error, Exception):
                raise error
        raise OpsError(
            f"there is no state of {settings.kafka.topic!r} under {settings.redis.prefix!r}",
            hint="set kafka.topic and redis.prefix to a worker's",
        )
    async with open_store(settings, layout, begun.partitions) as store:
        check_checkpoint(begun, layout.id, store.partitions)
        yield store


async def check_servers(settings: Settings, layout: Layout) -> None:
    """Return when Kafka and Redis answer and will have us; raises what a worker would raise, in a moment."""
    await check_connection(settings.kafka)
    async with open_store(settings, layout, settings.topics.partitions):
        return


async def check_state(store: Store, layout: Layout) -> None:
    """Read every checkpoint before the group is joined.

    A worker with a wrong spec would take partitions away from those that serve them, only to find out. Raises
    LayoutError.
    """
    partitions = range(store.partitions)
    for found in await asyncio.gather(*store.checkpoint_each(partitions)):
        check_checkpoint(found, layout.id, store.partitions)
