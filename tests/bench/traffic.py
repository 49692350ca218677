"""The bench's clickstream: event number n is the same event whenever and by whomever it is made.

Twenty thousand customers are in the shop, some livelier than others (log-normal, so that the busiest tenth makes four
tenths of the traffic). Who comes next is drawn anew for each event: in a batch nearly every event is another
customer's, which is the hard case for a store that pays by the customer. Event time moves on by `EVENT_EVERY_MS` an
event, whatever the rate at which they are sent: a customer comes about every half hour, tiles turn over, decays decay.

It refuses to know Kafka and the wall clock. A function of the event's number alone, so a run can be cut anywhere.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS

CUSTOMERS = 20_000
LIVELINESS = 1.0  # sigma of the logarithm of a customer's rate
EVENT_EVERY_MS = 100
BEGINS_BEFORE_MS = 9 * DAY_MS
"""A stream begins so long before now that it cannot overtake the clock: room for 7.7 million events."""
BEGINS_LATELY_MS = 70 * HOUR_MS
"""A stream for timers by the wall clock begins so long before: room for 2.5 million events, and less than the spec's
first silence, so that nobody is silent yet but who came in its first two hours and never again. In one that began
earlier everybody would be due again after each of their events."""
SHARE = {
    "page_view": 0.55, "search": 0.16, "add_to_cart": 0.10, "wishlist": 0.05, "purchase": 0.05,
    "review": 0.02, "support_ticket": 0.02, "newsletter": 0.05,
}  # fmt: skip
"""Kinds of events, and how many of a hundred they are."""
BLOCK = 8_192  # events drawn at once
SEED = 20_240_501

SPEC: Spec = parse_spec(
    {
        "name": "bench",
        "horizon": "14d",
        "memory": "60d",
        "kinds": [
            {"name": kind, **({"aggregate": ["sum", "mean"]} if kind == "purchase" else {})}
            | ({"role": "contact"} if kind == "newsletter" else {})
            for kind in SHARE
        ],
        "windows": {"1h": 6, "24h": 8, "7d": 7, "30d": 6},
        "half_lives": ["1d"],
        "days_active": [30],
        # Every event is an entry, as in a list that is trimmed: the idiomatic service keeps the same.
        "sequence": {"length": 32, "coalesce": "0s"},
        "silence": {"first": "3d", "ratio": 2.0},
        # About one event in six is a decision point; a service that scores at every click would only measure its model.
        "score_every": "3h",
        "eligibility": {"min_events": 1},
    }
)
KINDS = tuple(SHARE)


@dataclass(frozen=True, slots=True)
class Clicks:
    """Events `first`, `first` + 1, …: customer int64[n], kind int64[n], time int64[n] ms UTC, value float64[n]."""

    first: int
    customer: NDArray[np.int64]
    kind: NDArray[np.int64]
    time: NDArray[np.int64]
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.customer)


_rates = np.cumsum(np.random.default_rng(SEED).lognormal(0.0, LIVELINESS, CUSTOMERS))
_shares = np.cumsum(list(SHARE.values()))


def name_of(customer: int) -> str:
    """A customer's id on the topic."""
    return f"customer-{customer:05}"


def clicks(first: int, count: int, start_ms: int) -> Clicks:
    """Events `first` to `first + count - 1` of the stream whose event 0 happened at `start_ms`."""
    blocks = range(first // BLOCK, (first + count - 1) // BLOCK + 1) if count else range(0)
    drawn = [_block(number) for number in blocks]
    cut = slice(first - blocks.start * BLOCK, first - blocks.start * BLOCK + count) if count else slice(0)
    customer, kind, value = (
        np.concatenate([np.empty(0), *column])[cut] for column in zip(*drawn, strict=True)
    )
    time = start_ms + (first + np.arange(count)) * EVENT_EVERY_MS
    return Clicks(first, customer.astype(np.int64), kind.astype(np.int64), time, value)


def _block(number: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng([SEED, number])
    customer = np.searchsorted(_rates, rng.random(BLOCK) * _rates[-1], side="right")
    kind = np.searchsorted(_shares, rng.random(BLOCK) * _shares[-1], side="right")
    value = np.where(kind == KINDS.index("purchase"), np.round(rng.gamma(2.0, 20.0, BLOCK), 2), np.nan)
    return customer, kind, value


def records(made: Clicks) -> list[tuple[bytes, bytes]]:
    """Key and JSON value of each event. `event_number` reads the number back."""
    out = []
    columns = (made.customer.tolist(), made.kind.tolist(), made.time.tolist(), made.value.tolist())
    for n, (customer, kind, time, value) in enumerate(zip(*columns, strict=True), made.first):
        amount = f',"value":{value}' if value == value else ""  # noqa: PLR0124 -- the cheapest test for NaN
        text = (
            f'{{"event_id":"e{n:012}","user_id":"customer-{customer:05}","type":"{KINDS[kind]}","ts":{time}{amount},'
            f'"properties":{{"path":"/shop/{n % 977}","device":"mobile","session":"s{customer:05}"}}}}'
        )
        out.append((f"customer-{customer:05}".encode(), text.encode()))
    return out


def event_number(value: bytes) -> int:
    """The number of the event in a value that `records` wrote, or of an event id."""
    at = value.index(b"e0") if value.startswith(b"{") else 0
    return int(value[at + 1 : at + 13])


def batch_of(made: Clicks) -> EventBatch:
    """The same events as the parser would make them of the records, with their numbers as positions."""
    names, customer = np.unique(made.customer, return_inverse=True)
    return EventBatch(
        [name_of(n) for n in names.tolist()], customer.astype(np.int32), made.kind.astype(np.uint8), made.time,
        made.value, np.zeros(len(made), np.uint64), made.first + np.arange(len(made), dtype=np.int64),
    )  # fmt: skip
