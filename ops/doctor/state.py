"""What is stored: does each partition's state belong to this spec and this log, and is everybody where they belong?"""

import asyncio
from collections.abc import Mapping

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.hashing import misplaced
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.checkpoint import check_checkpoint
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.doctor.finding import Finding, error, ok, warning
from ebbtide.stream.kafka.client import topic_id
from ebbtide.stream.kafka.reader import log_ranges
from ebbtide.stream.turn.opened import LogState, check_log

SAMPLE_CUSTOMERS = 200
"""Looked at in each partition: a producer with another partitioner misplaces most of its customers."""
TWICE_CUSTOMERS = 60
"""Of them, looked for in every partition."""


async def examine_state(settings: Settings, layout: Layout, store: RedisStore) -> list[Finding]:
    """Checkpoints against spec and log, then a sample of the customers."""
    ranges = await log_ranges(settings.kafka, settings.kafka.topic)
    identity = await topic_id(settings.kafka)
    return [*await _checkpoints(layout, store, ranges, identity), *await _customers(layout, store)]


async def _checkpoints(
    layout: Layout, store: RedisStore, ranges: Mapping[int, tuple[int, int]], identity: str
) -> list[Finding]:
    found, begun = [], 0
    answers = await asyncio.gather(*store.checkpoint_each(range(store.partitions)), return_exceptions=True)
    for partition, answer in enumerate(answers):
        try:
            if isinstance(answer, BaseException):
                raise answer
            begun += answer is not None
            check_checkpoint(answer, layout.id, store.partitions)
            begin, end = ranges[partition]
            check_log(partition, answer, LogState(store.partitions, begin, end, None, identity))
        except EbbtideError as raised:
            found.append(error(f"state of partition {partition}", str(raised.args[0]), raised.hint))
    return found or [
        ok("state", f"{begun} of {store.partitions} partitions have a state, of this spec and this log")
    ]


async def _customers(layout: Layout, store: RedisStore) -> list[Finding]:
    looked, wrong, sample = 0, 0, list[str]()
    for partition in range(store.partitions):
        part = await store.sample(partition, SAMPLE_CUSTOMERS)
        if not part:
            continue
        elsewhere = misplaced(layout.spec.keys_of(part), partition, store.partitions)
        looked, wrong = looked + len(part), wrong + int(elsewhere.sum())
        # If somebody is there twice, it is one of the misplaced.
        sample += [name for name, is_wrong in zip(part, elsewhere, strict=True) if is_wrong]
    twice = 0
    for name in sample[:TWICE_CUSTOMERS]:
        twice += len(await store.find(name)) > 1
    if twice:
        return [
            error(
                "customers", f"{twice} of {len(sample[:TWICE_CUSTOMERS])} looked for lie in two partitions, and are two"
                " people here",
                "set the producers' partitioner to murmur2 (librdkafka: partitioner=murmur2_random), then `ebbtide"
                " rebuild` from a topic with all events by key",
            )
        ]  # fmt: skip
    if wrong:
        return [
            warning(
                "customers",
                f"{wrong} of {looked} looked at lie in another partition than Kafka's default partitioner's",
                "let all producers use one partitioner, best murmur2 (librdkafka: partitioner=murmur2_random)",
            )
        ]
    return [ok("customers", f"{looked} looked at, all where Kafka's default partitioner puts them")]
