"""What the producers of a chaos run say: customers who come and go, and everything that producers do wrong.

    event n ─▶ who (awake at n's time) ─▶ what: an event, late or held back or said twice │ a tombstone │ poison

It knows the contract and how to break it, and says of each record whether it did: that is what the workers' dead
letters are held against. It refuses to know Kafka, and whoever parses what it says. The invariant: who says what
follows from the seed and n alone. Only the event times come from the caller's clock, since the windows of `spec.yaml`
last seconds. Every length of time here is that of the spec as it stands, and shrinks with it.
"""

import heapq
import random
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SLICE_S = 0.5
"""Who is awake is looked at so often."""
LATE_S_MAX = 25.0
"""Longer than the longest window and than `memory`: late events of every sort."""
HELD_EVENTS_MAX = 6_000
RECENT = 64
LARGE = b"x" * 5_000
"""Above the workers' `record_bytes_max`."""

KINDS = ("click", "visit", "purchase", "mail", "goodbye", "plan", "renewal")
SHRINKAGE_GRID = (0.58, 0.24, 0.05, 0.08, 0.01, 0.025, 0.015)
HEADERS: tuple[tuple[tuple[str, bytes | None], ...], ...] = (
    (("trace", b"\xff\x00\xfe"),),  # no text
    (("trace", b"1"), ("trace", b"2"), ("trace", b"1")),  # repeated, in an order
    (("", b""), ("\u00fcn\u00ef", "\u2615".encode()), ("nothing", None)),
)
HEADED = 0.3
"""Share of records that have headers."""
AWAY = 0.1
"""Share of customers who stay away for minutes."""
TOMBSTONES, POISON, TWICE, LATE, HELD = 0.002, 0.01, 0.03, 0.04, 0.02
"""Shares of all that is sent; the shares of kinds are of what remains."""


class Said(NamedTuple):
    """One record to produce. `value` None is a tombstone; `poison`: it has to become a dead letter."""

    partition: int
    key: bytes | None
    value: bytes | None
    poison: bool = False
    headers: tuple[tuple[str, bytes | None], ...] = ()


def names(customers: int) -> list[str]:
    """Customer ids, among them long ones, ones that are not ASCII and ones that look like Redis keys."""
    odd = ["x" * 128, "Ἀθηνᾶ-☕", "a b\tc", '"quoted"', "{p0}:checkpoint", "*", "p:c:1", "\\u0041"]
    return [*odd, *(f"customer-{n}" for n in range(customers - len(odd)))]


class Traffic:
    """`partition[i]` is customer i's. `rate` is events a second, by which n becomes a time. `scale` is the spec's.
    `keyed`: no record is without a key, which a compacted topic refuses."""

    def __init__(
        self,
        customers: list[str],
        partition: list[int],
        rate: float,
        seed: int,
        *,
        scale: float = 1.0,
        keyed: bool = False,
    ) -> None:
        draw = np.random.default_rng([seed, 1])
        n = len(customers)
        self._customers, self._partition, self._rate, self._scale = customers, partition, rate, scale
        self._keyed = keyed
        self._keys = [name.encode() for name in customers]
        self._json = [_quoted(name) for name in customers]
        # From bursts with pauses of seconds to customers who stay away for longer than `memory`, and some whom timers
        # tell to be silent before they come back, if they do.
        period_s = np.exp(draw.uniform(np.log(3.0), np.log(60.0), n))
        away = draw.random(n) < AWAY
        self._period_s = np.where(away, draw.uniform(150.0, 400.0, n), period_s) * scale
        self._phase_s = draw.uniform(0.0, 1.0, n) * np.where(away, self._period_s, 60.0 * scale)
        self._weight = draw.pareto(1.5, n) + 0.2
        self._draw = random.Random(seed)
        self._n = 0
        self._slice, self._awake, self._odds = -1, np.arange(n), np.ones(n)
        self._recent: dict[int, deque[Said]] = {}
        self._held: list[tuple[int, int, Said]] = []

    def next(self, count: int, now_ms: int) -> Iterator[Said]:
        """The next `count` events and whatever was held back until now."""
        for _ in range(count):
            self._n += 1
            while self._held and self._held[0][0] <= self._n:
                yield heapq.heappop(self._held)[2]
            said = self._one(now_ms)
            if self._draw.random() < HEADED:
                said = said._replace(headers=self._draw.choice(HEADERS))
            if said.value is not None and self._draw.random() < HELD:
                until = self._n + self._draw.randrange(1, max(2, round(HELD_EVENTS_MAX * self._scale)))
                heapq.heappush(self._held, (until, self._n, said))
            else:
                yield said

    def left(self) -> Iterator[Said]:
        """All that is held back still."""
        while self._held:
            yield heapq.heappop(self._held)[2]

    def run_of(self, partition: int, count: int, now_ms: int) -> list[Said]:
        """`count` good events of one partition's customers: what a transaction holds."""
        mine = [i for i, p in enumerate(self._partition) if p == partition]
        return [self._event(self._draw.choice(mine), now_ms) for _ in range(count)]

    def _one(self, now_ms: int) -> Said:
        i, u = self._who(), self._draw.random()
        recent = self._recent.setdefault(self._partition[i], deque(maxlen=RECENT))
        if u < TOMBSTONES:
            return Said(self._partition[i], self._keys[i], None)
        u -= TOMBSTONES
        if u < POISON:
            return self._poison(i, now_ms)._replace(poison=True)
        u -= POISON
        if u < TWICE and recent:
            return self._draw.choice(recent)
        late_ms = 0
        if self._draw.random() < LATE:
            late_ms = round(self._draw.random() * LATE_S_MAX * self._scale * 1000)
        said = self._event(i, now_ms - late_ms)
        recent.append(said)
        return said

    def _who(self) -> int:
        time_s = self._n / self._rate
        if (number := int(time_s / (SLICE_S * self._scale))) != self._slice:
            self._slice = number
            at = (time_s + self._phase_s) % self._period_s
            self._awake = np.flatnonzero(at < 0.3 * self._period_s)
            if not len(self._awake):
                self._awake = np.arange(len(self._customers))
            self._odds = np.cumsum(self._weight[self._awake])
        return int(self._awake[_drawn(self._odds, self._draw.random())])

    def _event(self, i: int, ts: int) -> Said:
        kind = self._draw.choices(KINDS, SHRINKAGE_GRID)[0]
        value = b"null"
        if kind == "purchase":
            value = b"%.2f" % self._draw.lognormvariate(3.0, 1.0)
        elif kind == "plan":
            value = self._draw.choice(
                [b'"plus"', b'"free"', b'"gold"']
            )  # gold: no category of the spec, and no sin
        elif kind == "renewal":
            value = b'"2026-%02d-01"' % self._draw.randrange(1, 13)
        return self._record(i, kind.encode(), b"%d" % ts, value)

    def _record(self, i: int, kind: bytes, ts: bytes, value: bytes, more: bytes = b"") -> Said:
        identity = b"%x" % self._draw.getrandbits(64)
        text = b'{"user_id":%b,"event_id":"%b","type":"%b","ts":%b,"value":%b%b}'
        return Said(
            self._partition[i], self._keys[i], text % (self._json[i], identity, kind, ts, value, more)
        )

    def _poison(self, i: int, now_ms: int) -> Said:
        ts = b"%d" % now_ms
        good = self._record(i, b"visit", ts, b"null")
        assert good.value is not None
        return self._draw.choice(
            [
                good._replace(value=good.value[:-3]),  # not JSON
                good._replace(value=b""),
                good._replace(value=b"\xff\xfe" + good.value),  # not UTF-8
                good._replace(value=b"[1, 2]"),
                good._replace(value=b'{"type":"visit","ts":%b}' % ts),  # nobody's
                good._replace(key=b"somebody else"),
                good._replace(key=b"" if self._keyed else None),
                self._record(i, b"purchase", ts, b"NaN"),
                self._record(i, b"purchase", ts, b"1e400"),
                self._record(i, b"purchase", ts, b'"much"'),
                self._record(i, b"yawn", ts, b"null"),  # no kind of the spec
                self._record(i, b"visit", b"-5", b"null"),
                self._record(i, b"visit", b'"yesterday"', b"null"),
                self._record(i, b"visit", b"%d" % (now_ms + 3_600_000), b"null"),  # an hour ahead
                self._record(i, b"visit", ts, b"null", b',"properties":{"x":"%b"}' % LARGE),
            ]
        )


def _drawn(odds: NDArray[np.float64], u: float) -> int:
    return int(np.searchsorted(odds, u * odds[-1], side="right"))


def _quoted(name: str) -> bytes:
    return b'"%b"' % name.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t").encode()
