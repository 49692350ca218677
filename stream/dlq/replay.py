"""Dead letters read again, and sent back where they came from.

    dead-letter topic ─▶ dead letters ─▶ due: not replayed before, not of somebody forgotten since, ─▶ the input topic
                                         not folded already                       └▶ bookmarks, by reason

A dead letter goes back with its own bytes, key, headers and timestamp. What has been sent back is remembered by Kafka
(`stream/kafka/bookmarks.py`), after it was acknowledged: a second replay sends only what came since. One that died
half-way, or two at once, send a few dead letters twice (a chunk at most), which their event ids make harmless. One
whose body was omitted is read at its position in the input, and passed over when it is no longer there. A dead letter
`unscored` stays where it is: its event has been folded, and without an event id would be counted twice. So does one
whose record an earlier state had refused, and the one in service, made again from the log, has folded (`Folded`). It
refuses to mend a dead letter, and to send one to a topic that is not the configured input, whatever its header says.

A dead letter of somebody forgotten since must not go back: it would lie in the input after the word that forgets them.

    dead-letter topic   a tombstone there forgets its customer's dead letters that lie before it, and those that came
                        from before it: a worker that was stopped for long may send a dead letter late
    input topic         a tombstone that the workers have not come to, from the group's committed offset on, forgets
    what came
                        from before it

Both are looked at before anything is sent, and on from there before each chunk, so an erasure while a replay runs
counts. What remains is a tombstone produced in the milliseconds between such a look and the sending: whoever erases
while a replay runs produces it once more when that has ended.
"""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ebbtide.featurestore.events.contract import Reason
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.store.checkpoint import Stretch
from ebbtide.stream.batch import Record
from ebbtide.stream.kafka.bookmarks import Bookmarks, Progress
from ebbtide.stream.kafka.committed_log import CommittedLog, open_committed_log
from ebbtide.stream.kafka.reader import LogRecord, read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import message_bytes_max
from ebbtide.stream.outputs.dead_letter import (
    UNSCORED,
    Omitted,
    Position,
    original_headers,
    parse_headers,
    size_bytes,
    tombstone_origin,
)
from ebbtide.stream.outputs.message import Message, Sink

CHUNK_LETTERS = 500
"""Sent and remembered together: what a crash may send twice."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: the record as it lies in the dead-letter topic, and what its headers say."""

    record: LogRecord
    reason: str
    detail: str
    source: Position
    timestamp: int
    has_value: bool
    omitted: Omitted | None = None


@dataclass(slots=True)
class Replayed:
    """What a replay did: dead letters sent (or, in a dry run, to be sent) by reason, and those passed over.

    forgotten: dead letters older than a tombstone of their customer, which the workers have obeyed or will obey.
    folded_already: dead letters `unscored`, whose events are in the state; only their decisions are missing.
    folded_since: dead letters of an earlier state, whose records the state in service, made from the log, has folded.
    gone: dead letters without their body, whose record is no longer in the input (or is another one by now).
    too_large: records that fit the input when they came, compressed, and that we cannot send.
    """

    sent: Counter[str] = field(default_factory=Counter)
    done_before: int = 0
    forgotten: int = 0
    of_another_topic: int = 0
    empty: int = 0
    folded_already: int = 0
    folded_since: int = 0
    gone: int = 0
    too_large: int = 0


async def letters(
    settings: KafkaSettings, topic: str, reasons: Collection[str] = ()
) -> AsyncIterator[Letter]:
    """The dead letters there are now, of these reasons or of any; in order within a partition."""
    async for record in read_topic(settings, topic):
        said = parse_headers(record.headers)
        if said is not None and (not reasons or said[0] in reasons):
            yield Letter(record, *said)


class _Found(NamedTuple):
    """A record where it lay in the input."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Folded:
    """Which records the state in service has folded though they are dead letters: it was made again from the log by a
    spec, or limits, that take them, and said nothing of what an earlier state had decided.

    silent: by partition, what of the log it folded so (`Checkpoint.silent`). parser: of the spec and limits in service.
    """

    silent: Mapping[int, Stretch]
    parser: Parser

    def has(self, letter: Letter, original: Record) -> bool:
        """`original`: the letter's record, as it lay in the input."""
        if letter.source.offset not in self.silent.get(letter.source.partition, ()):
            return False
        if letter.reason == Reason.MISPLACED:
            return False  # it is in the log where it is somebody else's
        value = original.value if letter.has_value else None
        record = _Found(letter.source.offset, letter.timestamp, original.key, value, original.headers)
        return not self.parser.parse([record]).rejected


class Forgotten:
    """Who has been forgotten, as far as the last look saw. `dead`, `events`: the dead-letter and the input topic.

    Its memory is that of the tombstones that are retained, some 250 bytes each (a million of them: a quarter of a
    GiB). A bound would have to forget who was forgotten, or read both topics again for each chunk; it is a command's.

    composite: customers are (`featurestore/customer.py`). Then a tombstone of a first part forgets the dead letters of
    all who begin with it; and one of a whole customer those under its key, and those under its first part alone, which
    do not say whose of them they are.
    """

    def __init__(
        self, dead: CommittedLog, events: CommittedLog, topic: str, *, composite: bool = False
    ) -> None:
        self._dead, self._events, self._topic, self._composite = dead, events, topic, composite
        self._dead_at: dict[int, int] = {}
        self._events_at: dict[int, int] | None = None
        # (partition, key) -> offset of the last tombstone: where it lies among the dead letters, where it lay in the
        # input.
        self._tombstone_in_dlq: dict[tuple[int, bytes], int] = {}
        self._tombstone_in_input: dict[tuple[int, bytes], int] = {}
        self._unread: set[bytes] = set()  # of tombstones that the workers had not come to

    async def look(self) -> None:
        """Read both topics from where the last look ended to where they end now. Raises StreamError."""
        if self._events_at is None:
            # Before the dead letters: a tombstone below the committed offset has been passed on, so it is found there.
            committed = await self._events.committed()
            self._events_at = {partition: each.offset for partition, each in committed.items()}
        async for partition, record in _news(self._dead, self._dead_at):
            if record.value is None and record.key is not None and parse_headers(record.headers) is None:
                for name in self._remembered(record.key):
                    self._tombstone_in_dlq[partition, name] = record.offset
                source = tombstone_origin(record.headers)
                if source is not None and source.topic == self._topic:
                    self._forget(source.partition, record.key, source.offset)
        async for partition, record in _news(self._events, self._events_at):
            if record.value is None and record.key is not None:
                self._forget(partition, record.key, record.offset)
                self._unread.update(self._remembered(record.key))

    def __contains__(self, letter: Letter) -> bool:
        record, source = letter.record, letter.source
        if record.key is None:
            return False
        asked = self._asked(record.key)
        if letter.reason == Reason.MISPLACED and not self._unread.isdisjoint(asked):
            return True  # it would come behind a tombstone of another partition, whose offsets say nothing of its own
        lies = max(self._tombstone_in_dlq.get((record.partition, name), -1) for name in asked)
        return record.offset < lies or self.since(source, record.key)

    def since(self, source: Position, key: bytes | None) -> bool:
        """A tombstone of `key` lies in the input behind `source`."""
        return key is not None and any(
            source.offset < self._tombstone_in_input.get((source.partition, name), -1)
            for name in self._asked(key)
        )

    def _forget(self, partition: int, key: bytes, offset: int) -> None:
        for name in self._remembered(key):
            self._tombstone_in_input[partition, name] = max(
                offset, self._tombstone_in_input.get((partition, name), -1)
            )

    def _remembered(self, key: bytes) -> tuple[bytes, ...]:
        """Under what a tombstone is remembered. No customer ends in "/": so ends what stands for some of a first
        part."""
        first, separator, _ = key.partition(b"/")
        return (key, first + b"/") if self._composite and separator else (key,)

    def _asked(self, key: bytes) -> tuple[bytes, ...]:
        """Under what the tombstones are remembered that forget a dead letter with this key."""
        first, separator, _ = key.partition(b"/")
        return (key, first if separator else first + b"/") if self._composite else (key,)


async def _news(log: CommittedLog, positions: dict[int, int]) -> AsyncIterator[tuple[int, Record]]:
    """(partition, record) from `positions`, or the log's begin, up to its end as of now; moves `positions` there."""
    for partition, (begin, end) in (await log.ranges()).items():
        position = positions.get(partition, begin)
        # Outside of the log it is of no use: retention has passed it, or the topic was made anew.
        log.seek(partition, position if begin <= position <= end else begin)
        while (batch := await log.next(partition, end)) is not None:
            for record in batch.records:
                yield partition, record
        positions[partition] = end


async def replay(
    settings: KafkaSettings,
    topic: str,
    sink: Sink,
    folded: "Folded | None" = None,
    *,
    reasons: Collection[str] = (),
    composite: bool = False,
    dry_run: bool = False,
) -> Replayed:
    """Send the dead letters of `topic` that are due back to `settings.topic`. `folded`: what the state in service has
    folded, None where nobody can say. `composite`: customers are. Raises StreamError."""
    result = Replayed()
    async with (
        open_committed_log(settings.model_copy(update={"topic": topic})) as dead,
        open_committed_log(settings) as events,
        Bookmarks(settings, f"{settings.group}-dlq-replay", topic) as bookmarks,
    ):
        takes = await message_bytes_max(settings, [settings.topic])
        bytes_max = min(takes.get(settings.topic, settings.produce_bytes_max), settings.produce_bytes_max)
        forgotten = Forgotten(dead, events, settings.topic, composite=composite)
        await forgotten.look()
        progress = await bookmarks.read(dead.partitions)

        async def take(chunk: list[Letter]) -> None:
            await forgotten.look()  # it may be long since the last one
            await bookmarks.refresh(progress, dead.partitions)  # another replay may be at work
            fresh = [letter for letter in chunk if not _is_done(letter, progress)]
            result.done_before += len(chunk) - len(fresh)
            due = [letter for letter in fresh if letter not in forgotten]
            result.forgotten += len(fresh) - len(due)
            sendable = list[tuple[Letter, Message]]()
            for letter in due:
                original = await _original(letter, events)
                if original is None:
                    result.gone += 1
                elif forgotten.since(letter.source, original.key):  # its key was omitted, too
                    result.forgotten += 1
                elif folded is not None and folded.has(letter, original):
                    result.folded_since += 1
                elif size_bytes(message := _message(letter, original)) > bytes_max:
                    result.too_large += 1
                else:
                    sendable.append((letter, message))
            result.sent.update(letter.reason for letter, _ in sendable)
            if due and not dry_run:
                await sink.send_all([message for _, message in sendable])
                await _remember(due, bookmarks, progress)

        chunk: list[Letter] = []
        async for letter in letters(settings, topic, reasons):
            if _is_due(letter, settings.topic, progress, forgotten, result):
                chunk.append(letter)
            if len(chunk) >= CHUNK_LETTERS:
                await take(chunk)
                chunk = []
        if chunk:
            await take(chunk)
    return result


def _is_due(letter: Letter, topic: str, progress: Progress, forgotten: Forgotten, result: Replayed) -> bool:
    if letter.source.topic != topic:
        result.of_another_topic += 1
    elif letter.reason == UNSCORED:
        result.folded_already += 1
    elif not letter.has_value and letter.record.key is None:
        result.empty += 1  # neither key nor value: the client cannot send it, and there is nothing to mend
    elif letter in forgotten:
        result.forgotten += 1
    elif _is_done(letter, progress):
        result.done_before += 1
    else:
        return True
    return False


def _is_done(letter: Letter, progress: Progress) -> bool:
    return letter.record.offset < progress.get(letter.record.partition, {}).get(letter.reason, 0)


async def _original(letter: Letter, events: CommittedLog) -> Record | None:
    """The record as it came: the dead letter's own, or, of one whose body was omitted, what lies at its position in the
    input. None when that is gone, or is another record by now (the topic was made anew)."""
    if letter.omitted is None:
        return letter.record
    _, partition, offset = letter.source
    begin, end = (await events.ranges()).get(partition, (0, 0))
    if not begin <= offset < end:
        return None
    events.seek(partition, offset)
    fetched = await events.next(partition, offset + 1)
    found = next((record for record in fetched.records if record.offset == offset), None) if fetched else None
    return found if found is not None and Omitted.of(found.value) == letter.omitted else None


def _message(letter: Letter, original: Record) -> Message:
    return Message(
        letter.source.topic,
        original.key,
        original.value if letter.has_value else None,
        original_headers(original.headers),
        max(letter.timestamp, 0),
        # Whatever partitioner its producer has, its customer's state is there; unless that is what was wrong with it.
        None if letter.reason == Reason.MISPLACED else letter.source.partition,
    )


async def _remember(chunk: list[Letter], bookmarks: Bookmarks, progress: Progress) -> None:
    done: Progress = {}
    for letter in chunk:  # ascending within a partition, so the last one stands
        done.setdefault(letter.record.partition, {})[letter.reason] = letter.record.offset + 1
    await bookmarks.write(done, progress)
