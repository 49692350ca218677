"""Dead letters read again, and sent back where they came from.

    dead-letter topic ─▶ letters ─▶ due: not replayed before, not of somebody forgotten since, ─▶ the input topic
                                         not folded already                       └▶ bookmarks, by reason

A letter goes back with its own bytes, key, headers and timestamp. What has been sent back is remembered by Kafka
(`stream/bookmarks.py`), after it was acknowledged: a second replay sends only what came since, and a replay that died
half-way sends a few letters twice, which their event ids make harmless. A tombstone in the dead-letter topic forgets
the letters of its customer that lie before it. A letter `unscored` stays where it is: its event has been folded, and
without an event id would be counted twice. It refuses to mend a letter, and to send one to a topic that is not the
configured input, whatever its header says.
"""

from collections import Counter
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field

from stream.bookmarks import Bookmarks, Marks
from stream.dead_letter import UNSCORED, Position, original_headers, read
from stream.kafka import KafkaSettings
from stream.message import Message, Sink
from stream.topic_log import LogRecord, log_ranges, read_topic

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


@dataclass(slots=True)
class Replayed:
    """What a replay did: letters sent (or, in a dry run, to be sent) by reason, and those passed over.

    folded_already: letters `unscored`, whose events are in the state; only their decisions are missing.
    """

    sent: Counter[str] = field(default_factory=Counter)
    done_before: int = 0
    forgotten: int = 0
    of_another_topic: int = 0
    empty: int = 0
    folded_already: int = 0


async def letters(
    settings: KafkaSettings, topic: str, reasons: Collection[str] = ()
) -> AsyncIterator[Letter]:
    """The letters there are now, of these reasons or of any; in order within a partition."""
    async for record in read_topic(settings, topic):
        said = read(record.headers)
        if said is not None and (not reasons or said[0] in reasons):
            yield Letter(record, *said)


async def replay(
    settings: KafkaSettings,
    topic: str,
    sink: Sink,
    *,
    reasons: Collection[str] = (),
    dry_run: bool = False,
) -> Replayed:
    """Send the letters of `topic` that are due back to `settings.topic`. Raises StreamError."""
    result = Replayed()
    partitions = len(await log_ranges(settings, topic))
    forgotten_at = await _tombstones(settings, topic)
    async with Bookmarks(settings, f"{settings.group}-dlq-replay", topic) as bookmarks:
        marks = await bookmarks.read(partitions)
        chunk: list[Letter] = []
        async for letter in letters(settings, topic, reasons):
            if _is_due(letter, settings.topic, marks, forgotten_at, result):
                result.sent[letter.reason] += 1
                if not dry_run:
                    chunk.append(letter)
            if len(chunk) >= CHUNK_LETTERS:
                await _send(chunk, sink, bookmarks, marks)
                chunk.clear()
        if chunk:
            await _send(chunk, sink, bookmarks, marks)
    return result


def _is_due(
    letter: Letter, topic: str, marks: Marks, forgotten_at: dict[tuple[int, bytes], int], result: Replayed
) -> bool:
    partition, offset, key = letter.record.partition, letter.record.offset, letter.record.key
    if letter.source.topic != topic:
        result.of_another_topic += 1
    elif letter.reason == UNSCORED:
        result.folded_already += 1
    elif not letter.has_value:
        result.empty += 1  # neither key nor value: the client cannot send it, and there is nothing to mend
    elif key is not None and offset < forgotten_at.get((partition, key), -1):
        result.forgotten += 1
    elif offset < marks.get(partition, {}).get(letter.reason, 0):
        result.done_before += 1
    else:
        return True
    return False


async def _send(chunk: list[Letter], sink: Sink, bookmarks: Bookmarks, marks: Marks) -> None:
    await sink.send_all(
        [
            Message(
                letter.source.topic,
                letter.record.key,
                letter.record.value,
                original_headers(letter.record.headers),
                max(letter.timestamp, 0),
                letter.source.partition,  # whatever partitioner its producer has, its customer's state is there
            )
            for letter in chunk
        ]
    )
    done: Marks = {}
    for letter in chunk:  # ascending within a partition, so the last one stands
        done.setdefault(letter.record.partition, {})[letter.reason] = letter.record.offset + 1
    await bookmarks.write(done, marks)


async def _tombstones(settings: KafkaSettings, topic: str) -> dict[tuple[int, bytes], int]:
    """(partition, key) -> offset of the last record that forgets this key."""
    found = {}
    async for record in read_topic(settings, topic):
        if record.value is None and record.key is not None and read(record.headers) is None:
            found[record.partition, record.key] = record.offset
    return found
