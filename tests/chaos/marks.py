"""How a group's committed offsets moved, from the topic in which Kafka keeps them: none of them ever moves back.

What a transaction committed and what the group committed lie there in the order in which Kafka took them, and of two
for the same partition the later one counts. So a commit that arrives too late shows here even if the next one covered
it up; in the end, only a state that is lost meanwhile would show it, by alerts that are said twice.
"""

import struct
from typing import NamedTuple

from ebbtide.featurestore.store.checkpoint import TimerCursor
from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.decision.suppression import Suppression
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings

OFFSETS_TOPIC = "__consumer_offsets"
OFFSET_KEYS = (0, 1)
"""Versions of a key that is an offset's; others are of members."""
LEADER_EPOCH_SINCE, COMPACT_SINCE = 3, 4
"""Versions of a value."""


class Mark(NamedTuple):
    """A committed offset: none of the three may be lower than in the mark before."""

    offset: int
    sequence: int
    timers: TimerCursor

    def behind(self, other: "Mark") -> bool:
        """Something of it is lower."""
        return self.offset < other.offset or self.sequence < other.sequence or self.timers < other.timers


async def moved_back(settings: KafkaSettings) -> list[tuple[int, int, Mark, Mark]]:
    """(partition, ms UTC, from, to) of each time that a committed offset of the group in its topic moved back."""
    last: dict[int, Mark] = {}
    wrong = []
    async for record in read_topic(settings, OFFSETS_TOPIC):
        if record.key is None or (place := _place(record.key)) is None or record.value is None:
            continue
        group, topic, partition = place
        if (group, topic) != (settings.group, settings.topic):
            continue
        said = Suppression.by(committed := _committed(record.value))
        mark = Mark(committed.offset, said.sequence, said.timers_from)
        if partition in last and mark.behind(last[partition]):
            wrong.append((partition, record.timestamp, last[partition], mark))
        last[partition] = mark
    return wrong


def _place(key: bytes) -> tuple[str, str, int] | None:
    """Group, topic and partition; None of a record that is no offset."""
    (version,) = struct.unpack_from(">h", key)
    if version not in OFFSET_KEYS:
        return None
    group, at = _string(key, 2)
    topic, at = _string(key, at)
    return group, topic, struct.unpack_from(">i", key, at)[0]


def _committed(value: bytes) -> CommittedOffset:
    version, offset = struct.unpack_from(">hq", value)
    at = 10 + 4 * (version >= LEADER_EPOCH_SINCE)
    metadata = _compact_string(value, at) if version >= COMPACT_SINCE else _string(value, at)[0]
    return CommittedOffset(offset, metadata)


def _compact_string(raw: bytes, at: int) -> str:
    """Its length and one more comes before it, seven bits a byte, the lowest first."""
    size = shift = 0
    while True:
        size, shift, at = size | (raw[at] & 0x7F) << shift, shift + 7, at + 1
        if raw[at - 1] < 0x80:
            return raw[at : at + size - 1].decode()


def _string(raw: bytes, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from(">h", raw, at)
    return raw[at + 2 : at + 2 + size].decode(), at + 2 + size
