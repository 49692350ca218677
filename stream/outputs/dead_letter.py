"""Dead letters: a bad record as it came (bytes, key, headers), with the reason and the position it came from.

Nothing is ever lost by being bad: the record goes to the dead-letter topic before its partition moves past it, and
`ebbtide dlq replay` sends it back with its own headers restored. After a crash one may lie there twice, with the same
position; a third header tells them apart from a dead letter that was replayed and failed again.

A dead letter always fits its topic. A record that does not is named without its body: how many bytes, which SHA-256,
and the position where it still lies for as long as the input is retained; `ebbtide dlq replay` reads it there.

A tombstone that is passed on says where it lay, too: whoever sends dead letters back can tell which of them it is meant
for by their positions in the input, also when a dead letter came late.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ebbtide.featurestore.events.contract import Reason
from ebbtide.stream.batch import Record
from ebbtide.stream.outputs.message import Message

PREFIX = "ebbtide-"
REASON, DETAIL, TOPIC, PARTITION, OFFSET, TIMESTAMP, NO_VALUE, OMITTED = (
    PREFIX + name
    for name in ("reason", "detail", "topic", "partition", "offset", "timestamp", "no-value", "omitted")
)
FORGOTTEN_TOPIC, FORGOTTEN_PARTITION, FORGOTTEN_OFFSET = (
    PREFIX + "forgotten-" + name for name in ("topic", "partition", "offset")
)
SCHEMA_ID, DIGITS = "urn:ebbtide:schema:dead-letter:1", "^[0-9]+$"
DETAIL_BYTES_MAX = 512
BYTES_MAX = 1_000_000
"""A dead letter, where it is not known what its topic takes: below Kafka's own default of 1,048,588 bytes."""
RECORD_OVERHEAD_BYTES = 128  # of a batch with one record, at most
HEADER_OVERHEAD_BYTES = 10
UNSCORED = "unscored"
"""The one reason that is not the record's fault: the model fails for its customer. The event is folded all the same."""
REASONS = (*(reason.value for reason in Reason if reason is not Reason.BAD_ROW), UNSCORED)
"""Every reason that a dead letter may have."""


class Position(NamedTuple):
    """Where a dead letter's record lay."""

    topic: str
    partition: int
    offset: int


class Omitted(NamedTuple):
    """The value that a dead letter has no room for: its size and SHA-256 (hexadecimal)."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, value: bytes | None) -> "Omitted":
        return cls(len(value or b""), hashlib.sha256(value or b"").hexdigest())


class DeadLetterHeaders(NamedTuple):
    """What a dead letter's headers say. `timestamp`: the record's own, ms UTC, whatever its producer stated;
    `has_value`: false for a record without a value, which the dead letter holds as empty bytes, since a null there
    would be a tombstone; `omitted`: the record's value did not fit, and lies at `source`."""

    reason: str
    detail: str
    source: Position
    timestamp: int
    has_value: bool
    omitted: Omitted | None = None


def _header(field: str) -> str:
    return PREFIX + field.replace("_", "-")


class DeadLetterContract(BaseModel):
    """The headers of a dead letter, each of them text. Its key and value are the bad record's own, as they came, and so
    are its other headers. A record with a null value is no dead letter: a customer is to be forgotten."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=_header, json_schema_extra={"$id": SCHEMA_ID}
    )
    reason: str = Field(description="why, as metrics count it")
    detail: str = Field(default="", description="the same for people")
    topic: str = Field(description="where the record lay")
    partition: str = Field(pattern=DIGITS)
    offset: str = Field(pattern=DIGITS)
    timestamp: str = Field(pattern=r"^-?[0-9]+$", description="the record's own, ms UTC")
    no_value: Literal["true"] | None = Field(
        default=None, description="the record's value was null; that of the letter is empty"
    )
    omitted: str | None = Field(
        default=None,
        pattern=r"^[0-9]+ bytes, sha256 [0-9a-f]{64}$",
        description="the value did not fit: its size and hash; it lies where the record lay",
    )


def dead_letter_schema() -> dict[str, Any]:
    """The published JSON Schema of a dead letter's headers, as an object of texts."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **DeadLetterContract.model_json_schema(),
    }


def dead_letter_of(
    record: Record, source: Position, reason: str, detail: str, *, topic: str, bytes_max: int = BYTES_MAX
) -> Message:
    """The dead letter of a record, of at most `bytes_max` bytes: what does not fit is omitted, the value with the
    record's own headers first, then the key.

    It is dated by its sending: under the record's own timestamp retention would delete an old one at once, and a broker
    refuses one from the future. A record without a value gets empty bytes and says so.
    """
    own = [(name, value) for name, value in record.headers if not name.startswith(PREFIX)]
    said = [
        (REASON, reason.encode()),
        (DETAIL, detail.encode(errors="backslashreplace")[:DETAIL_BYTES_MAX]),
        (TOPIC, source.topic.encode()),
        (PARTITION, str(source.partition).encode()),
        (OFFSET, str(source.offset).encode()),
        (TIMESTAMP, str(record.timestamp).encode()),
        *([(NO_VALUE, b"true")] if record.value is None else []),
    ]
    whole = Message(topic, record.key, b"" if record.value is None else record.value, own + said)
    if size_bytes(whole) <= bytes_max:
        return whole
    omitted = Omitted.of(record.value)
    small = Message(
        topic, record.key, b"", [*said, (OMITTED, f"{omitted[0]} bytes, sha256 {omitted[1]}".encode())]
    )
    return small if size_bytes(small) <= bytes_max else small._replace(key=None)


def size_bytes(message: Message) -> int:
    """How large a message is for Kafka, uncompressed and alone in its batch; rather more than less."""
    headers = sum(len(n.encode()) + len(v or b"") + HEADER_OVERHEAD_BYTES for n, v in message.headers)
    return RECORD_OVERHEAD_BYTES + len(message.key or b"") + len(message.value or b"") + headers


def parse_headers(headers: Sequence[tuple[str, bytes]]) -> DeadLetterHeaders | None:
    """What a dead letter says; None for a message that is not one."""
    ours = _ours(headers)
    try:
        source = Position(ours[TOPIC], int(ours[PARTITION]), int(ours[OFFSET]))
        return DeadLetterHeaders(
            ours[REASON],
            ours.get(DETAIL, ""),
            source,
            int(ours[TIMESTAMP]),
            NO_VALUE not in ours,
            _omitted(ours.get(OMITTED, "")),
        )
    except (KeyError, ValueError):
        return None


def _omitted(said: str) -> Omitted | None:
    found = re.fullmatch(r"(\d+) bytes, sha256 ([0-9a-f]{64})", said)
    return Omitted(int(found[1]), found[2]) if found else None


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
