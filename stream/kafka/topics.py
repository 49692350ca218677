"""Topics: made or checked, and which partition of one a key belongs to.

More than a name is checked: how many partitions, what we may do with it, how large a record it takes. It knows what a
topic should be and refuses to change one that is there.
"""

import asyncio
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2

from ebbtide.stream.errors import BrokerMisconfigured
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.diagnose import unreachable
from ebbtide.stream.kafka.errors import RIGHTS, forbidden
from ebbtide.stream.kafka.protocol.metadata import Described, Operation, describe
from ebbtide.stream.kafka.settings import KafkaSettings, ms

MESSAGE_BYTES = "max.message.bytes"
NEAR = 0.75
"""Of 1: a letter or two of a name are wrong."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as it should be. `setting` is what a person would change if it is not; `message_bytes_min`: what it has
    to take at least in one message (its `max.message.bytes`), if that is known; `at_most`: of its configuration, what
    should not be above this; `create`: make it when it is missing."""

    name: str
    partitions: int
    setting: str
    config: Mapping[str, str] = field(default_factory=dict)
    message_bytes_min: int = 0
    at_most: Mapping[str, str] = field(default_factory=dict)
    create: bool = True


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
                await _check_names(settings, client, missing)
                await _create(settings, client, missing)
                for _ in range(100):  # the controller has made them; the brokers hear of it a moment later
                    found = await _described(settings, client, list(wanted))
                    if len(found) == len(wanted):
                        break
                    await asyncio.sleep(0.05)
        except (KafkaError, TimeoutError) as error:
            raise await unreachable(settings, error) from error
        configs = await _configs(client, {t.name: [MESSAGE_BYTES, *t.at_most] for t in wanted.values()})
    counts = {name: topic.partitions for name, topic in found.items()}
    wrong = [
        f"topic {spec.name!r} has {counts.get(name, 0)} partitions, {spec.setting} asks for {spec.partitions}"
        for name, spec in wanted.items()
        if counts.get(name, 0) < spec.partitions
    ]
    small = [
        f"topic {name!r} takes messages of {taken:,} bytes, it has to take {wanted[name].message_bytes_min:,}"
        for name, config in configs.items()
        if (taken := int(config.get(MESSAGE_BYTES, sys.maxsize))) < wanted[name].message_bytes_min
    ]
    if small:
        raise BrokerMisconfigured("; ".join(wrong + small), hint="raise max.message.bytes of these topics")
    if wrong:
        names = ", ".join(sorted({spec.setting for spec in wanted.values()}))
        raise BrokerMisconfigured("; ".join(wrong), hint=f"set {names} to what is there, or use a new topic")
    for name, config in configs.items():
        _warn_of_longer(wanted[name], config)
    return counts


async def _check_names(
    settings: KafkaSettings, client: AIOKafkaAdminClient, missing: Sequence[TopicSpec]
) -> None:
    """A mistyped name of the input is an empty topic, which stays, and a worker that waits for ever. Raises
    BrokerMisconfigured for what is not to be made."""
    if not any(topic.name == settings.topic or not topic.create for topic in missing):
        return
    there = [name for name in await client.list_topics() if not name.startswith("__")]
    for topic in missing:
        near = get_close_matches(topic.name, there, cutoff=NEAR)
        like = f"; there is {', '.join(map(repr, near))}" if near else ""
        if not topic.create:
            raise BrokerMisconfigured(
                f"topic {topic.name!r} is not there{like}",
                hint="correct the setting that names it, make the topic, or allow it by topics.create_input",
            )
        if topic.name == settings.topic:
            log.warning(
                "the input topic was not there and is made: is its name right?",
                extra={"topic": topic.name, "partitions": topic.partitions, "alike": near},
            )


def _warn_of_longer(topic: TopicSpec, config: Mapping[str, str]) -> None:
    """A person may have set it on purpose, so nobody is kept from working; but an erasure takes that long."""
    longer = {
        name: most
        for name, most in topic.at_most.items()
        if name in config and not 0 <= int(config[name]) <= int(most)
    }
    if longer:
        wanted = ",".join(f"{name}={most}" for name, most in longer.items())
        found = ",".join(f"{name}={config[name]}" for name in longer)
        command = (
            f"kafka-configs.sh --alter --entity-type topics --entity-name {topic.name} --add-config {wanted}"
        )
        log.warning(
            "a topic keeps what was forgotten for longer than the settings say: change them, or the topic",
            extra={"topic": topic.name, "found": found, "command": command},
        )


async def message_bytes_max(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, int]:
    """How large a message each topic takes (its `max.message.bytes`); one that Kafka does not tell us is missing: the
    right DESCRIBE_CONFIGS is asked for, not demanded."""
    async with admin(settings) as client:
        found = await _configs(client, {name: [MESSAGE_BYTES] for name in topics})
    return {name: int(config[MESSAGE_BYTES]) for name, config in found.items() if MESSAGE_BYTES in config}


async def _configs(
    client: AIOKafkaAdminClient, asked: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, str]]:
    """The configuration of topics, by the names that are `asked` of each; what Kafka does not tell us is missing."""
    if not asked:
        return {}
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(names))
        for topic, names in asked.items()
    ]
    try:
        answers = await client.describe_configs(resources)
    except KafkaError:
        return {}
    return {
        topic: {key: value for key, value, *_ in config if key in asked[topic]}
        for answer in answers
        for _, _, _, topic, config in answer.resources
    }


@dataclass(frozen=True, slots=True)
class Examined:
    """What Kafka says of a topic that is not changed: `described`, and `config`, its settings as text, of those asked
    for that it tells us."""

    described: Described
    config: Mapping[str, str]


async def examine(
    settings: KafkaSettings, topics: Sequence[str], keys: Sequence[str]
) -> tuple[int, dict[str, Examined]]:
    """How many brokers there are, and each topic as it is; none is made. Raises BrokerUnavailable,
    BrokerMisconfigured."""
    async with admin(settings) as client:
        try:
            found = await describe(client._client, list(topics))  # noqa: SLF001 -- the admin client has no request for it
            there = [name for name, topic in found.items() if topic.there]
            configs = await _configs(client, dict.fromkeys(there, keys))
            brokers = len(client._client.cluster.brokers())  # noqa: SLF001 -- its cluster is private
        except (KafkaError, TimeoutError) as error:
            raise await unreachable(settings, error) from error
    return brokers, {name: Examined(found[name], configs.get(name, {})) for name in topics}


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
        # Another worker may have been faster.
        elif code and error is not kafka_errors.TopicAlreadyExistsError:
            raise BrokerMisconfigured(
                f"Kafka would not create topic {name!r}: {error.__name__}: {reason or ''}"
            )
    if refused:
        rights = [f"CREATE on topic {name!r}" for name in refused]
        raise forbidden(settings, "to create topics that are missing", rights, "create them yourself")


def partition_for(key: bytes, partitions: int) -> int:
    """The partition that a producer with Kafka's default partitioner (murmur2) gives this key."""
    positive: int = murmur2(key) & 0x7FFFFFFF
    return positive % partitions
