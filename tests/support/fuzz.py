"""Kafka records as nobody should send them: seeded, so that a failing one comes back.

Each recipe makes one record; `fuzzed` draws recipes at random. A recipe knows a good event and spoils it in one way,
or in none: what is spoilt, and what merely looks odd, is for the parser to say. A good event is one of our own contract
(`good`), or one that a given spec and its mapping take (`Dialect`).
"""

import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from ebbtide.featurestore.kinds import Value
from ebbtide.featurestore.spec import Spec
from tests.support.seams.streams import LogRecord

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


def user_of(event: Any) -> bytes:
    """The key that goes with an event of `good`."""
    user = event.get("user_id")
    return user.encode("utf-8", "surrogatepass") if isinstance(user, str) else b"c1"


class Dialect:
    """Good events of any spec: its types, values and times, each where the spec's mapping looks for it."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._kinds = [(event_type, kind) for kind in spec.kinds for event_type in kind.types]

    def good(self, rng: random.Random) -> dict[str, Any]:
        """An event that nothing is wrong with."""
        event_type, kind = rng.choice(self._kinds)
        mapping = self._spec.mapping
        event: dict[str, Any] = {}
        _put(event, mapping.user_id, f"c{rng.randrange(50)}")
        _put(event, mapping.type, event_type)
        _put(event, mapping.ts, self._time(rng))
        if rng.random() < 0.5:
            _put(event, mapping.event_id, f"{rng.getrandbits(64):x}")
        for reading in kind.readings:
            path = reading.path.replace("properties", mapping.properties, 1)
            _put(event, mapping.value if reading.path == "value" else path, _value(rng, reading))
        return event

    def user(self, event: Any) -> bytes:
        """The key that goes with it."""
        for name in self._spec.mapping.user_id.split("."):
            event = event.get(name) if isinstance(event, dict) else None
        return event.encode("utf-8", "surrogatepass") if isinstance(event, str) else b"c1"

    def _time(self, rng: random.Random) -> int | float | str:
        ms, ts_format = NOW_MS - rng.randrange(10**9), self._spec.mapping.ts_format
        moment = datetime.fromtimestamp(ms // 1000, UTC)
        match ts_format:
            case "auto":
                return ms if rng.random() < 0.5 else moment.isoformat()
            case "s":
                return ms // 1000
            case "ms":
                return ms
            case "us":
                return ms * 1000
        return moment.strftime(ts_format)


def _value(rng: random.Random, kind: Value) -> Any:
    match kind.attribute:
        case "category":
            return rng.choice([*kind.categories, "another", None])
        case "date":
            return rng.choice(["2027-01-01", "2026-06-30T00:00:00Z", None])
    return rng.choice([rng.randrange(1000), rng.uniform(0, 500), -3, None])


def _put(event: dict[str, Any], path: str, value: Any) -> None:
    *groups, last = path.split(".")
    for name in groups:
        event = event.setdefault(name, {})
    event[last] = value


class _Made:
    """What a recipe works with: randomness, good events, and records made of what became of them."""

    def __init__(
        self,
        rng: random.Random,
        make: Callable[[random.Random], dict[str, Any]],
        user: Callable[[Any], bytes],
    ) -> None:
        self.rng, self._make, self._user = rng, make, user

    def good(self) -> tuple[dict[str, Any], bytes]:
        """A good event, and its key."""
        event = self._make(self.rng)
        return event, self._user(event)

    def sent(self, event: dict[str, Any]) -> LogRecord:
        return self.record(_json(event), self._user(event))

    def record(self, value: bytes | None, key: bytes | None, headers: Any = ()) -> LogRecord:
        return LogRecord(0, NOW_MS + self.rng.randrange(-1000, 1000), key, value, headers)


def _json(event: Any) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _good(made: _Made) -> LogRecord:
    return made.sent(made.good()[0])


def _random_bytes(made: _Made) -> LogRecord:
    rng = made.rng
    return made.record(rng.randbytes(rng.choice([0, 1, 7, 200])), rng.choice([b"c1", None, rng.randbytes(5)]))


def _mutated(made: _Made) -> LogRecord:
    rng = made.rng
    event, key = made.good()
    data = bytearray(_json(event))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        data[at : at + rng.randrange(4)] = rng.choice(
            [b"", rng.randbytes(1), b'"', b"}", b"{", b",", b"NaN", b"\\u"]
        )
    return made.record(bytes(data), key)


def _flipped(made: _Made) -> LogRecord:
    """Single bits, as a bad line or disk flips them."""
    event, key = made.good()
    data = bytearray(_json(event))
    for _ in range(made.rng.randrange(1, 9)):
        data[made.rng.randrange(len(data))] ^= 1 << made.rng.randrange(8)
    return made.record(bytes(data), key)


def _truncated(made: _Made) -> LogRecord:
    event, key = made.good()
    data = _json(event)
    cut = made.rng.randrange(len(data))
    return made.record(data[:cut] if made.rng.random() < 0.7 else data[cut:], key)


def _places(event: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for name, value in event.items():
        yield event, name
        if isinstance(value, dict):
            yield from _places(value)


def _odd_field(made: _Made) -> LogRecord:
    rng = made.rng
    event, _ = made.good()
    group, name = rng.choice(
        [*_places(event), (event, "value"), (event, "event_id"), (event, "properties"), (event, "x")]
    )
    group[name] = rng.choice(ODD)
    return made.sent(event)


def _missing_field(made: _Made) -> LogRecord:
    event, _ = made.good()
    group, name = made.rng.choice(list(_places(event)))
    del group[name]
    return made.sent(event)


def _not_a_number(made: _Made) -> LogRecord:
    event, _ = made.good()
    group, name = made.rng.choice([*_places(event), (event, "value"), (event, "ts"), (event, "more")])
    group[name] = made.rng.choice([float("nan"), float("inf"), float("-inf")])
    return made.sent(event)


def _huge_number(made: _Made) -> LogRecord:
    """Digits without end, exponents without bound, in a field that is read and in one that is not."""
    rng = made.rng
    event, key = made.good()
    number = rng.choice(
        [
            "9" * rng.choice([20, 400, 5000]),
            "1e400",
            "-1e-400",
            "0." + "0" * 500 + "1",
            "1" + "0" * 308 + ".5",
        ]
    )
    name = rng.choice(["value", "ts", "more", "amount", "date"])
    return made.record(_json(event)[:-1] + f',"{name}":{number}}}'.encode(), key)


def _odd_text(made: _Made) -> LogRecord:
    event, key = made.good()
    own = _json(event).decode()
    text = made.rng.choice(
        [
            "null", "[]", '"text"', "1e999", "[" * 3000, '{"a":' * 3000, '{"user_id":"c1"', '"\\ud800"', "\ufeff{}",
            "{}{}", f"{own} {{}}", f"[{own}]", own + "\n" * 9, f'{{"user_id":"c9",{own[1:]}', "9" * 500,
            f'{{"value":1e400,"x":{own}}}', "\ufeff" + own, own + "\0", own.replace('"', "'"), f"/* */{own}",
            own[:-1] + ",}",
        ]
    )  # fmt: skip
    return made.record(text.encode(), key)


def _nested(made: _Made) -> LogRecord:
    """Deep, within and beyond what a reader of JSON takes."""
    event, key = made.good()
    depth = made.rng.choice([10, 200, 900, 1100, 5000])
    inside = made.rng.choice([("[", "]"), ('{"a":', "}")])
    text = inside[0] * depth + "1" + inside[1] * depth
    return made.record(_json(event)[:-1] + b',"properties":' + text.encode() + b"}", key)


def _duplicated(made: _Made) -> LogRecord:
    """Names twice: the last one counts, as everywhere."""
    event, key = made.good()
    other, _ = made.good()
    return made.record(
        _json(event)[:-1] + b"," + _json(other)[1:], made.rng.choice([key, made.sent(other).key])
    )


def _unicode(made: _Made) -> LogRecord:
    rng = made.rng
    event, _ = made.good()
    text = rng.choice(
        [
            "\u202e",
            "e\u0301" * 64,
            "\uffff",
            "\U0010ffff" * 128,
            "\x7f",
            "ﷺ" * 128,
            "İ",
            "\ud800",
            "\udc00x",
            "Ａ",
        ]
    )
    group, name = rng.choice(list(_places(event)))
    group[name] = text
    if rng.random() < 0.3:  # escaped, half a surrogate pair is still text to some
        return made.record(json.dumps(event).encode(), text.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.2:  # overlong and cut sequences
        return made.record(_json(event).replace(b'"', b"\xc0\xa2", 1), b"c1")
    return made.sent(event)


def _headers(made: _Made) -> LogRecord:
    """Headers, also such as only our own dead letters have."""
    rng = made.rng
    names = ("trace", "", "ü", "ebbtide-reason", "ebbtide-offset", "ebbtide-no-value", "ebbtide-" + "x" * 200)
    headers = [
        (rng.choice(names), rng.choice([b"", b"\xff\x00", b"x" * 300, b"7"]))
        for _ in range(rng.randrange(1, 20))
    ]
    record = _mutated(made) if rng.random() < 0.7 else _good(made)
    return LogRecord(0, record.timestamp, record.key, record.value, headers)


def _odd_key(made: _Made) -> LogRecord:
    event, own = made.good()
    keys = [None, b"", b"c", b"c1", b"\xff\xfe", b'"c1"', own + b" ", b"c" * 200, own.upper(), b"\0" + own]
    return made.record(_json(event), made.rng.choice(keys))


def _tombstone(made: _Made) -> LogRecord:
    return made.record(
        None, made.rng.choice([b"c1", b"c2", b"c3", None, b"", b"\xff", b"c" * 129, "é".encode() * 128])
    )


def _odd_arrival(made: _Made) -> LogRecord:
    record = _good(made)
    return LogRecord(
        0, made.rng.choice([-1, 0, 1, NOW_MS - 10**10, 2**62, 2**63 - 1]), record.key, record.value
    )


def _large(made: _Made) -> LogRecord:
    event, _ = made.good()
    blob = "x" * made.rng.choice([60_000, 65_300, 65_536, 80_000])
    return made.sent({**event, "properties": {"blob": blob}})


RECIPES: dict[Callable[[_Made], LogRecord], int] = {
    _good: 300, _random_bytes: 60, _mutated: 200, _flipped: 80, _truncated: 60, _odd_field: 250, _missing_field: 60,
    _not_a_number: 40, _huge_number: 30, _odd_text: 60, _nested: 15, _duplicated: 40, _unicode: 60, _headers: 60,
    _odd_key: 60, _tombstone: 30, _odd_arrival: 30, _large: 5,
}  # fmt: skip


def fuzzed(seed: int, n: int, spec: Spec | None = None, first: int = 0) -> list[LogRecord]:
    """n records in offset order from `first`, of our own contract or of what `spec` takes."""
    rng = random.Random(seed)
    dialect = None if spec is None else Dialect(spec)
    made = _Made(rng, dialect.good if dialect else good, dialect.user if dialect else user_of)
    records = [recipe(made) for recipe in rng.choices(list(RECIPES), list(RECIPES.values()), k=n)]
    return [LogRecord(first + i, r.timestamp, r.key, r.value, r.headers) for i, r in enumerate(records)]
