"""Dead letters: a bad record as it came (bytes, key, headers), with the reason and the position it came from.

Nothing is ever lost by being bad: the record goes to the dead-letter topic before its partition moves past it, and
`ebbtide dlq replay` sends it back with its own headers restored. After a crash one may lie there twice, with the same
position; a third header tells them apart from a letter that was replayed and failed again.
"""

from collections.abc import Sequence
from typing import NamedTuple

from stream.fetched import Record
from stream.message import Message

PREFIX = "ebbtide-"
REASON, DETAIL, TOPIC, PARTITION, OFFSET, TIMESTAMP = (
    PREFIX + name for name in ("reason", "detail", "topic", "partition", "offset", "timestamp")
)
DETAIL_BYTES_MAX = 512


class Position(NamedTuple):
    """Where a letter's record lay."""

    topic: str
    partition: int
    offset: int


def letter(record: Record, source: Position, reason: str, detail: str, *, topic: str) -> Message:
    """The dead letter of a record. The original timestamp stays the message's own."""
    headers = [
        *((name, value) for name, value in record.headers if not name.startswith(PREFIX)),
        (REASON, reason.encode()),
        (DETAIL, detail.encode(errors="backslashreplace")[:DETAIL_BYTES_MAX]),
        (TOPIC, source.topic.encode()),
        (PARTITION, str(source.partition).encode()),
        (OFFSET, str(source.offset).encode()),
        (TIMESTAMP, str(record.timestamp).encode()),
    ]
    return Message(topic, record.key, record.value, headers, max(record.timestamp, 0))


def read(headers: Sequence[tuple[str, bytes]]) -> tuple[str, str, Position] | None:
    """Reason, detail and position of a letter; None for a message that is not one."""
    ours = {name: value.decode(errors="replace") for name, value in headers if name.startswith(PREFIX)}
    try:
        return (
            ours[REASON], ours.get(DETAIL, ""), Position(ours[TOPIC], int(ours[PARTITION]), int(ours[OFFSET]))
        )  # fmt: skip
    except (KeyError, ValueError):
        return None


def original_headers(headers: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The headers the record had before it became a letter."""
    return [(name, value) for name, value in headers if not name.startswith(PREFIX)]
