"""Dead dead letters: a bad record as it came (bytes, key, headers), with the reason and the position it came from.

Nothing is ever lost by being bad: the record goes to the dead-letter topic before its partition moves past it, and
`ebbtide dlq replay` sends it back with its own headers restored. After a crash one may lie there twice, with the same
position; a third header tells them apart from a dead letter that was replayed and failed again.

A tombstone that is passed on says where it lay, too: whoever sends dead letters back can tell which of them it is meant
for by their positions in the input, also when a dead letter came late.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ebbtide.stream.batch import Record
from ebbtide.stream.outputs.message import Message

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
