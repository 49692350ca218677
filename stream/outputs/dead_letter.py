"""Dead dead letters: a bad record as it came (bytes, key, headers), with the reason and the position it came from.

Nothing is ever lost by being bad: the record goes to the dead-letter topic before its partition moves past it, and
`ebbtide dlq replay` sends it back with its own headers restored. After a crash one may lie there twice, with the same
position; a third header tells them apart from a dead letter that was replayed and failed again.

A tombstone that is passed on says where it lay, too: whoever sends dead letters back can tell which of them it is meant
for by their positions in the input, also when a dead letter came late.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from ebbtide.stream.batch import Record
from ebbtide.stream.errors import DeadLetterFlood
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.sliding_share import SlidingShare

PREFIX = "ebbtide-"
REASON, DETAIL, TOPIC, PARTITION, OFFSET, TIMESTAMP, NO_VALUE = (
    PREFIX + name for name in ("reason", "detail", "topic", "partition", "offset", "timestamp", "no-value")
)
FORGOTTEN_TOPIC, FORGOTTEN_PARTITION, FORGOTTEN_OFFSET = (
    PREFIX + "forgotten-" + name for name in ("topic", "partition", "offset")
)
DETAIL_BYTES_MAX = 512
UNSCORED = "unscored"
"""The one reason that is not the record's fault: the model fails for its customer. The event is folded all the same."""
FLOOD_RECORDS, FLOOD_RECORDS_MIN = 10_000, 1_000
"""A share is judged over the last 10,000 records: a bad deploy shows in seconds. Below 1,000 it is noise."""


class FloodGuard:
    """Stops a partition of which most is bad: a wrong mapping would bury the stream in its own dead letters.

    `share_max` in (0, 1]: more than this share of the last FLOOD_RECORDS records, or of FLOOD_RECORDS_MIN at least, is
    a flood. What was sent on before stays in the dead-letter topic.
    """

    def __init__(self, share_max: float) -> None:
        self._share_max = share_max
        self._recent = SlidingShare(FLOOD_RECORDS)
        self._counted = 0  # the offset after the last one

    def admit(self, records: Sequence[Record], bad: Sequence[int]) -> None:
        """Count the records of a batch, those at the indexes `bad` as bad. Raises DeadLetterFlood.

        Each offset counts once: a batch that is tried again and again through an outage is no flood.
        """
        known = bisect_left(records, self._counted, key=lambda record: record.offset)
        if known == len(records):
            return
        self._counted = records[-1].offset + 1
        recent = self._recent
        recent.add(len(records) - known, sum(index >= known for index in bad))
        if recent.of >= FLOOD_RECORDS_MIN and recent.bad > self._share_max * recent.of:
            raise DeadLetterFlood(
                f"{recent.bad:,} of the last {recent.of:,} records are bad",
                hint="see `ebbtide dlq list` for why; mend the mapping or the producer, or raise dead_letter_share_max",
            )


class Position(NamedTuple):
    """Where a dead letter's record lay."""

    topic: str
    partition: int
    offset: int


class DeadLetterHeaders(NamedTuple):
    """What a dead letter's headers say. `timestamp`: the record's own, ms UTC, whatever its producer stated;
    `has_value`:
    false for a record that had neither key nor value, which the dead letter holds as empty bytes."""

    reason: str
    detail: str
    source: Position
    timestamp: int
    has_value: bool


def dead_letter_of(record: Record, source: Position, reason: str, detail: str, *, topic: str) -> Message:
    """The dead letter of a record.

    It is dated by its sending: under the record's own timestamp retention would delete an old one at once, and a broker
    refuses one from the future. The client sends nothing that has neither key nor value, so such a record gets empty
    bytes and says so.
    """
    nothing = record.key is None and record.value is None
    headers = [
        *((name, value) for name, value in record.headers if not name.startswith(PREFIX)),
        (REASON, reason.encode()),
        (DETAIL, detail.encode(errors="backslashreplace")[:DETAIL_BYTES_MAX]),
        (TOPIC, source.topic.encode()),
        (PARTITION, str(source.partition).encode()),
        (OFFSET, str(source.offset).encode()),
        (TIMESTAMP, str(record.timestamp).encode()),
        *([(NO_VALUE, b"true")] if nothing else []),
    ]
    return Message(topic, record.key, b"" if nothing else record.value, headers)


def parse_headers(headers: Sequence[tuple[str, bytes]]) -> DeadLetterHeaders | None:
    """What a dead letter says; None for a message that is not one."""
    ours = _ours(headers)
    try:
        source = Position(ours[TOPIC], int(ours[PARTITION]), int(ours[OFFSET]))
        return DeadLetterHeaders(
            ours[REASON], ours.get(DETAIL, ""), source, int(ours[TIMESTAMP]), NO_VALUE not in ours
        )
    except (KeyError, ValueError):
        return None


def propagated_tombstone(key: bytes, source: Position, *, topic: str) -> Message:
    """The tombstone of `key` that lies at `source`, for an output topic."""
    headers = [
        (FORGOTTEN_TOPIC, source.topic.encode()),
        (FORGOTTEN_PARTITION, str(source.partition).encode()),
        (FORGOTTEN_OFFSET, str(source.offset).encode()),
    ]
    return Message(topic, key, None, headers)


def tombstone_origin(headers: Sequence[tuple[str, bytes]]) -> Position | None:
    """Where the tombstone lay that this one passes on; None when it does not say."""
    ours = _ours(headers)
    try:
        return Position(ours[FORGOTTEN_TOPIC], int(ours[FORGOTTEN_PARTITION]), int(ours[FORGOTTEN_OFFSET]))
    except (KeyError, ValueError):
        return None


def _ours(headers: Sequence[tuple[str, bytes]]) -> dict[str, str]:
    # A header may lack its value: then it is none of ours.
    return {
        name: value.decode(errors="replace") for name, value in headers if name.startswith(PREFIX) and value
    }


def original_headers(headers: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The headers the record had before it became a dead letter."""
    return [(name, value) for name, value in headers if not name.startswith(PREFIX)]
