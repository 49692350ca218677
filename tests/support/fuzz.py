"""Kafka records as nobody should send them: seeded, so that a failing one comes back.

Each recipe makes one record; `fuzzed` draws recipes at random. A recipe knows a good event and spoils it in one way,
or in none: what is spoilt, and what merely looks odd, is for the parser to say.
"""

import json
import random
from collections.abc import Callable
from typing import Any

from tests.support.streams import LogRecord

NOW_MS = 1_767_225_600_000
"""2026-01-01: the Kafka timestamp around which the records arrive."""
TYPES = ("page_view", "search", "add_to_cart", "purchase", "newsletter", "account_closed", "plan")
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3.5, 1e300, -1e30, 2**53, 2**63, 2**64, -(2**70), 10**300, "", " ",
    "x", "0", "NaN", "1e5", "ünïcödé",
    "\u0000", "a" * 128, "a" * 129, "😀" * 128, [], [1], [[]], {}, {"user_id": "u1"}, {"a": {"b": [None]}},
    "2026-01-01", "2026-01-01T00:00:00Z", "2025-12-31 23:59:59.999999+01:00", "9999-12-31T23:59:59.999Z",
    "1900-01-01T00:00:00Z", "1969-12-31T23:59:59.999Z", "1970-01-01T00:00:00.001Z", "0001-01-01", "2026-02-30",
    "20260101", "1767225600000", 253_402_300_799_999, 253_402_300_800_000, 1_767_225_600, 1_767_225_600_000.0, 0.5,
)  # fmt: skip


def good(rng: random.Random) -> dict[str, Any]:
    """An event that nothing is wrong with."""
    kind = rng.choice(TYPES)
    event: dict[str, Any] = {
        "user_id": f"c{rng.randrange(50)}",
        "type": kind,
        "ts": NOW_MS - rng.randrange(10**9),
    }
    if kind == "purchase" and rng.random() < 0.8:
        event["value"] = rng.choice([rng.randrange(1000), rng.uniform(0, 500), -3, None])
    if kind == "plan":
        event["value"] = rng.choice(["free", "plus", "gold"])
    if rng.random() < 0.6:
        event["event_id"] = f"{rng.getrandbits(64):x}"
    if rng.random() < 0.3:
        event["properties"] = {"page": "/", "n": rng.randrange(9)}
    return event


def _record(rng: random.Random, value: bytes | None, key: bytes | None) -> LogRecord:
    return LogRecord(0, NOW_MS + rng.randrange(-1000, 1000), key, value)


def _sent(rng: random.Random, event: dict[str, Any]) -> LogRecord:
    user = event.get("user_id")
    return _record(rng, _json(event), user.encode() if isinstance(user, str) else b"c1")


def _json(event: Any) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _good(rng: random.Random) -> LogRecord:
    return _sent(rng, good(rng))


def _random_bytes(rng: random.Random) -> LogRecord:
    return _record(
        rng, rng.randbytes(rng.choice([0, 1, 7, 200])), rng.choice([b"c1", None, rng.randbytes(5)])
    )


def _mutated(rng: random.Random) -> LogRecord:
    event = good(rng)
    data = bytearray(_json(event))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(4)] = rng.choice(
            [b"", rng.randbytes(1), b'"', b"}", b"{", b",", b"NaN", b"\\u"]
        )
    return _record(rng, bytes(data), event["user_id"].encode())


def _odd_field(rng: random.Random) -> LogRecord:
    event = good(rng)
    event[rng.choice(["user_id", "type", "ts", "value", "event_id", "properties", "more"])] = rng.choice(ODD)
    return _sent(rng, event)


def _missing_field(rng: random.Random) -> LogRecord:
    event = good(rng)
    event.pop(rng.choice(list(event)))
    return _sent(rng, event)


def _not_a_number(rng: random.Random) -> LogRecord:
    event = good(rng)
    event[rng.choice(["value", "ts", "more"])] = rng.choice([float("nan"), float("inf"), float("-inf")])
    return _sent(rng, event)


def _odd_text(rng: random.Random) -> LogRecord:
    event = good(rng)
    own = _json(event).decode()
    text = rng.choice(
        [
            "null", "[]", '"text"', "1e999", "[" * 3000, '{"a":' * 3000, '{"user_id":"c1"', '"\\ud800"', "\ufeff{}",
            "{}{}", f"{own} {{}}", f"[{own}]", own + "\n" * 9, f'{{"user_id":"c9",{own[1:]}', "9" * 500,
            f'{{"value":1e400,"x":{own}}}',
        ]
    )  # fmt: skip
    return _record(rng, text.encode(), event["user_id"].encode())


def _odd_key(rng: random.Random) -> LogRecord:
    event = good(rng)
    key = rng.choice(
        [None, b"", b"c", b"c1", b"\xff\xfe", b'"c1"', event["user_id"].encode() + b" ", b"c" * 200]
    )
    return _record(rng, _json(event), key)


def _tombstone(rng: random.Random) -> LogRecord:
    return _record(
        rng, None, rng.choice([b"c1", b"c2", b"c3", None, b"", b"\xff", b"c" * 129, "é".encode() * 128])
    )


def _odd_arrival(rng: random.Random) -> LogRecord:
    record = _good(rng)
    return LogRecord(0, rng.choice([-1, 0, 1, NOW_MS - 10**10, 2**62]), record.key, record.value)


def _large(rng: random.Random) -> LogRecord:
    event = {**good(rng), "properties": {"blob": "x" * rng.choice([60_000, 65_300, 65_536, 80_000])}}
    return _sent(rng, event)


RECIPES: dict[Callable[[random.Random], LogRecord], int] = {
    _good: 300, _random_bytes: 80, _mutated: 200, _odd_field: 250, _missing_field: 60, _not_a_number: 40, _odd_text: 60,
    _odd_key: 60, _tombstone: 30, _odd_arrival: 30, _large: 5,
}  # fmt: skip


def fuzzed(seed: int, n: int) -> list[LogRecord]:
    """n records in offset order."""
    rng = random.Random(seed)
    made = [recipe(rng) for recipe in rng.choices(list(RECIPES), list(RECIPES.values()), k=n)]
    return [LogRecord(i, record.timestamp, record.key, record.value) for i, record in enumerate(made)]
