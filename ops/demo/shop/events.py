"""What a simulation returns: events as columns, the customers' names, and apart from them the truth.

It knows the public event contract (how an event looks on the topic and in a file) and what can be counted once the
future is known: who fell silent, and when. It draws no random number and reads no clock; `behaviour.py` fills it.
The invariant: nothing of the truth is in an event, so whoever reads the events must find out.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TYPES = (
    "page_view",
    "search",
    "add_to_cart",
    "purchase",
    "support_ticket",
    "newsletter",
    "plan_changed",
    "account_closed",
)
"""Event types by code. The order of the first five is the order within a visit."""
PAGE_VIEW, SEARCH, ADD_TO_CART, PURCHASE, SUPPORT_TICKET, NEWSLETTER, PLAN_CHANGED, ACCOUNT_CLOSED = range(8)
ACTIVITY_TYPES = 5
"""Codes below this are what customers do; the rest is done to them, about them, or their leave."""
PLANS = ("free", "plus", "premium")

EVENT = np.dtype([("time_ms", "i8"), ("customer", "i4"), ("type", "u1"), ("value", "f8")])
"""One event: epoch ms UTC, index into the names, code into TYPES, amount or plan code (NaN: none)."""
LIFE = np.dtype(
    [
        ("customer", "i4"),
        ("joined_ms", "i8"),
        ("fading_ms", "i8"),
        ("recovered_ms", "i8"),
        ("left_ms", "i8"),
        ("closed", "?"),
    ]
)
"""One stretch with us: 0 where it has not happened in the span. fading_ms: the interest begins to go."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """n events of m customers.

    name:      prefix of the event ids, one for each scenario
    start_ms:  first millisecond of the span, end_ms the first after it
    events:    EVENT[n], sorted by time, then customer; event number i has the id `<name>-<i>`
    customers: m names; a customer's index never changes
    truth:     LIFE[k], sorted by customer and joined_ms; a customer who came back has several
    """

    name: str
    start_ms: int
    end_ms: int
    events: NDArray[np.void]
    customers: tuple[str, ...]
    truth: NDArray[np.void]

    def __len__(self) -> int:
        return len(self.events)


def records(sim: Simulated, part: slice | None = None) -> Iterator[tuple[bytes, bytes, int]]:
    """(key, value, time_ms) of events in order, as a producer sends them: JSON by the public contract.

    The text is formatted here rather than by a JSON library since every field is known to need no escape; that
    makes a million a second, so the producer is never what a measurement measures.
    """
    part = slice(None) if part is None else part
    first = part.indices(len(sim))[0]
    step = part.indices(len(sim))[2]
    names = sim.customers
    columns = (sim.events[field][part].tolist() for field in ("time_ms", "customer", "type", "value"))
    for number, (time_ms, customer, kind, value) in enumerate(zip(*columns, strict=True)):
        user = names[customer]
        text = (
            f'{{"user_id":"{user}","event_id":"{sim.name}-{first + number * step}",'
            f'"type":"{TYPES[kind]}","ts":{time_ms}'
        )
        if kind == PLAN_CHANGED:
            text += f',"properties":{{"plan":"{PLANS[int(value)]}"}}'
        elif value == value:  # noqa: PLR0124 - the cheapest test for NaN
            text += f',"value":{value}'
        yield user.encode(), (text + "}").encode(), time_ms


def _opened(path: Path) -> gzip.GzipFile | BufferedWriter:
    if path.suffix == ".gz":
        return gzip.GzipFile(path, "wb", compresslevel=1, mtime=0)  # no time inside: same events, same bytes
    return path.open("wb")


def write_jsonl(sim: Simulated, path: Path, part: slice | None = None) -> None:
    """One event a line, as `records` has them; a name that ends in .gz is compressed."""
    with _opened(path) as file:
        file.writelines(value + b"\n" for _, value, _ in records(sim, part))


def write_csv(sim: Simulated, path: Path, part: slice | None = None) -> None:
    """The same as a table: user_id, event_id, type, ts, value, properties.plan; empty where there is none."""
    first, _, step = (slice(None) if part is None else part).indices(len(sim))
    events = sim.events if part is None else sim.events[part]
    columns = (events[field].tolist() for field in ("time_ms", "customer", "type", "value"))
    with _opened(path) as file:
        file.write(b"user_id,event_id,type,ts,value,properties.plan\n")
        for number, (time_ms, customer, kind, value) in enumerate(zip(*columns, strict=True)):
            plan = PLANS[int(value)] if kind == PLAN_CHANGED else ""
            amount = "" if plan or value != value else value  # noqa: PLR0124 - the cheapest test for NaN
            row = f"{sim.customers[customer]},{sim.name}-{first + number * step},{TYPES[kind]},{time_ms}"
            file.write(f"{row},{amount},{plan}\n".encode())


@dataclass(frozen=True, slots=True)
class Activity:
    """All activity by customer, to ask afterwards what a customer did next. Built once, asked in bulk."""

    customer: NDArray[np.int32]
    """int32[a], ascending."""
    time_ms: NDArray[np.int64]
    """int64[a], ascending within a customer."""
    end_ms: int

    @classmethod
    def of(cls, sim: Simulated) -> "Activity":
        chosen = sim.events[sim.events["type"] < ACTIVITY_TYPES]
        order = np.argsort(chosen["customer"], kind="stable")  # events are sorted by time already
        return cls(chosen["customer"][order].copy(), chosen["time_ms"][order].copy(), sim.end_ms)

    def _after(self, customer: NDArray[np.int32], as_of_ms: NDArray[np.int64]) -> NDArray[np.intp]:
        """Index of the first activity of anyone after (customer, as_of), in (customer, time) order."""
        # One sortable number for (customer, time): times of one span lie far below 2^42 ms of each other.
        base = self.time_ms.min(initial=0)
        mine = (self.customer.astype(np.int64) << 42) + (self.time_ms - base)
        asked = (np.asarray(customer, np.int64) << 42) + (np.asarray(as_of_ms, np.int64) - base)
        return np.asarray(np.searchsorted(mine, asked, side="right"))

    def next_ms(self, customer: NDArray[np.int32], as_of_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64: time of the customer's first activity after `as_of_ms`, 0 where there is none."""
        at = self._after(customer, as_of_ms)
        inside = np.minimum(at, len(self.customer) - 1)
        found = (at < len(self.customer)) & (self.customer[inside] == customer)
        return np.where(found, self.time_ms[inside], 0)

    def last_ms(self, customer: NDArray[np.int32], as_of_ms: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64: time of the customer's last activity at or before `as_of_ms`, 0 where there is none."""
        at = self._after(customer, as_of_ms) - 1
        inside = np.maximum(at, 0)
        found = (at >= 0) & (self.customer[inside] == customer)
        return np.where(found, self.time_ms[inside], 0)

    def went_silent(
        self, customer: NDArray[np.int32], as_of_ms: NDArray[np.int64], horizon_ms: int
    ) -> NDArray[np.int8]:
        """int8: 1 when no activity lies in (as_of, as_of + horizon], 0 when one does, -1 when the log ends before."""
        following = self.next_ms(customer, as_of_ms)
        until = np.asarray(as_of_ms, np.int64) + horizon_ms
        silent = (following == 0) | (following > until)
        return np.where(until > self.end_ms, -1, silent).astype(np.int8)

    def silences(self, horizon_ms: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Every churn by silence: (customer, time of the last activity before at least `horizon_ms` of none)."""
        silent = self.went_silent(self.customer, self.time_ms, horizon_ms) == 1
        return self.customer[silent], self.time_ms[silent]
