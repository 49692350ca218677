"""Kafka: does it have us, are the topics what a worker needs, may we do what a worker does, and is its time ours?"""

from collections.abc import Iterator, Sequence

from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import format_duration
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.doctor.finding import Finding, attempt, error, ok, warning
from ebbtide.ops.worker.connect import MESSAGE_BYTES_MIN, open_delivery
from ebbtide.stream.clock import Clock
from ebbtide.stream.kafka.client import check_connection
from ebbtide.stream.kafka.committed_log import open_committed_log
from ebbtide.stream.kafka.protocol.metadata import Operation
from ebbtide.stream.kafka.reader import log_at
from ebbtide.stream.kafka.topics import MESSAGE_BYTES, Examined, examine

CLEANUP, RETENTION, UNCLEAN = "cleanup.policy", "retention.ms", "unclean.leader.election.enable"
CONFIG = (MESSAGE_BYTES, CLEANUP, RETENTION, UNCLEAN)
CONNECT_S_MAX = 1.0
"""To find a broker takes milliseconds; beyond a second every restart and every fail-over of ours is slow."""
AHEAD_MS = 60_000
"""A record from so far in the future is of a clock that is wrong, not of one that drifts."""


async def examine_kafka(settings: Settings, spec: Spec, clock: Clock) -> list[Finding]:
    """All there is to say of it; when it cannot be reached, that alone."""
    began_s = clock.monotonic_s()
    reached = await attempt("kafka", lambda: _reached(settings))
    if reached:
        return reached
    took_s = clock.monotonic_s() - began_s
    found = [
        ok("kafka", f"{settings.kafka.url} answers within {took_s * 1000:.0f} ms")
        if took_s <= CONNECT_S_MAX
        else warning(
            "kafka",
            f"{settings.kafka.url} took {took_s:.1f} s to answer",
            "look at the network between us, and at DNS",
        )
    ]
    found += await attempt("topics", lambda: _topics(settings, spec))
    found += await attempt("rights", lambda: _rights(settings))
    found += await attempt("timestamps", lambda: _timestamps(settings, clock))
    return found


async def _reached(settings: Settings) -> Sequence[Finding]:
    await check_connection(settings.kafka)
    return []


async def _topics(settings: Settings, spec: Spec) -> list[Finding]:
    topics = settings.topics
    outputs = [name for name in (topics.alerts, topics.dead_letters, topics.scores) if name]
    brokers, found = await examine(settings.kafka, [settings.kafka.topic, *outputs], CONFIG)
    findings = list(_input(settings, spec, found[settings.kafka.topic], brokers))
    for name in outputs:
        findings += _output(settings, name, found, brokers)
    return findings


def _input(settings: Settings, spec: Spec, topic: Examined, brokers: int) -> Iterator[Finding]:
    name, config = settings.kafka.topic, topic.config
    check = f"topic {name}"
    if not (topic.described.there or topic.described.forbidden or settings.topics.create_input):
        yield error(
            check, "it does not exist", "is the name right? topics.create_input is off: make it yourself"
        )
        return
    problems = list(_common(check, topic, Operation.READ, settings.topics.partitions, brokers))
    if "compact" in config.get(CLEANUP, ""):
        problems.append(
            error(
                check, f"{CLEANUP}={config[CLEANUP]}: of a customer's events only the last one is kept",
                f"set {CLEANUP}=delete: an event is no state",
            )
        )  # fmt: skip
    kept_ms = int(config.get(RETENTION, -1))
    if 0 <= kept_ms < spec.memory_ms:
        problems.append(
            warning(
                check,
                f"it keeps {format_duration(kept_ms)}, the spec remembers {format_duration(spec.memory_ms)}: a state"
                " that is lost can be made again for that long only",
                f"raise {RETENTION}, or have files to backfill from",
            )
        )
    if config.get(UNCLEAN) == "true":
        problems.append(
            warning(check, f"{UNCLEAN} is on: a failover may lose the end of the log", f"set {UNCLEAN}=false")
        )
    yield from problems
    if not problems:
        yield ok(check, f"{topic.described.partitions} partitions, {topic.described.replicas} copies")


def _output(settings: Settings, name: str, found: dict[str, Examined], brokers: int) -> Iterator[Finding]:
    topic, check = found[name], f"topic {name}"
    config = topic.config
    problems = list(_common(check, topic, Operation.WRITE, settings.topics.partitions, brokers))
    takes = int(config.get(MESSAGE_BYTES, MESSAGE_BYTES_MIN))
    input_takes = int(found[settings.kafka.topic].config.get(MESSAGE_BYTES, takes))
    if takes < MESSAGE_BYTES_MIN:
        problems.append(
            error(
                check, f"{MESSAGE_BYTES}={takes:,}: a batch of ours does not fit", f"raise it to {MESSAGE_BYTES_MIN:,}"
            )
        )  # fmt: skip
    elif name == settings.topics.dead_letters and takes < input_takes:
        problems.append(
            warning(
                check,
                f"{MESSAGE_BYTES}={takes:,}, the input takes {input_takes:,}: a dead letter in between loses its body",
                f"raise {MESSAGE_BYTES} above the input's, or read such a record in the input",
            )
        )
    compacted = "compact" in config.get(CLEANUP, "compact" if name == settings.topics.scores else "")
    if name == settings.topics.scores and not compacted:
        problems.append(
            warning(
                check, f"{CLEANUP}={config[CLEANUP]}: the latest score of a quiet customer goes by retention",
                f"set {CLEANUP}=compact",
            )
        )  # fmt: skip
    if name != settings.topics.scores and compacted:
        problems.append(
            error(
                check, f"{CLEANUP}={config[CLEANUP]}: all but the last message of a key would be lost",
                f"set {CLEANUP}=delete",
            )
        )  # fmt: skip
    yield from problems
    if not problems:
        kept_ms = int(config.get(RETENTION, -1))
        kept = "for ever" if kept_ms < 0 else format_duration(kept_ms)
        yield ok(check, f"{topic.described.partitions} partitions, takes {takes:,} bytes, keeps them {kept}")


def _common(
    check: str, topic: Examined, operation: Operation, partitions_min: int, brokers: int
) -> Iterator[Finding]:
    """Of any topic: is it there, may we use it, is it served, and how safe is what it holds."""
    described = topic.described
    if described.forbidden:
        yield error(
            check, "we may not even know whether it is there", f"grant our principal {operation.name} on it"
        )
        return
    if not described.there:
        yield warning(
            check, "it does not exist", f"is the name right? A worker creates it, with {partitions_min} partitions"
        )  # fmt: skip
        return
    if not described.allows(operation):
        yield error(
            check, f"we may not {operation.name.lower()} it", f"grant our principal {operation.name} on it"
        )
    if described.leaderless:
        yield error(
            check, f"{described.leaderless} of its partitions have no leader", "bring their brokers back"
        )
    if described.partitions < partitions_min:
        yield error(
            check, f"it has {described.partitions} partitions, topics.partitions asks for {partitions_min}",
            f"set topics.partitions to {described.partitions}, or use a new topic: their number cannot change in place",
        )  # fmt: skip
    if described.replicas == 1 and brokers > 1:
        yield warning(
            check, f"one copy, though there are {brokers} brokers", "raise its replication factor to 3"
        )


async def _rights(settings: Settings) -> list[Finding]:
    """What only trying tells: the group, and to write as an idempotent producer, or in transactions."""
    kafka, found = settings.kafka, []
    _, topics = await examine(kafka, [kafka.topic], ())
    if topics[kafka.topic].described.there:
        async with open_committed_log(kafka) as log:
            committed = await log.committed()
        found.append(
            ok("rights", f"group {kafka.group!r} has {len(committed)} committed offsets")
            if committed
            else ok(
                "rights",
                f"group {kafka.group!r} may be read; it has no committed offset: no worker has taken a record yet",
            )
        )
    async with open_delivery(settings):  # opens a producer, and sends nothing
        kind = "a transactional" if settings.alerts.exactly_once else "an idempotent"
    return [*found, ok("rights", f"{kind} producer may be opened")]


async def _timestamps(settings: Settings, clock: Clock) -> list[Finding]:
    """Is a producer's clock, or ours, wrong? Whether an event is too old or from the future is judged by these."""
    kafka = settings.kafka
    _, topics = await examine(kafka, [kafka.topic], ())
    if not topics[kafka.topic].described.there:
        return []
    logs = await log_at(kafka, kafka.topic, clock.now_ms() + AHEAD_MS)
    ahead = [partition for partition, at in sorted(logs.items()) if at.offset < at.end]
    if ahead:
        return [
            warning(
                "timestamps",
                f"records of partitions {ahead} are dated more than {format_duration(AHEAD_MS)} after our clock",
                "set the clocks of producers and of this machine (NTP)",
            )
        ]
    return [ok("timestamps", "no record of the input is dated after our clock")]
