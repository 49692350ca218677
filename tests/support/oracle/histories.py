"""Random specs and random histories for the fold, by seed; and columns from lists of events.

The streams are nastier than life: ties, bursts, gaps of years, late events, whole days, resent ids, missing values,
tombstones, all of several customers interleaved. A history is a list of (customer, event) in offset order.
"""

import math
from dataclasses import dataclass

import numpy as np

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.kinds import Value
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS
from tests.support.oracle.oracle import GRACE, TOMBSTONE, Event

History = list[tuple[str, Event]]
START = 1_600_000_000_000


@dataclass(frozen=True)
class Pace:
    """How the times of a stream fall. `gaps_ms`: what a gap may be; `late`: share of events thrown back in time."""

    gaps_ms: tuple[int, ...]
    late: float
    whole: int = 1


PACES = (
    Pace((0, 1, 900, 60_000, HOUR_MS, DAY_MS, 9 * DAY_MS), late=0.0),
    Pace((0, 5_000, 20 * 60_000, 7 * HOUR_MS, 3 * DAY_MS, 40 * DAY_MS), late=0.15),
    Pace((0, DAY_MS, 2 * DAY_MS, 30 * DAY_MS, 500 * DAY_MS), late=0.1, whole=DAY_MS),
    Pace((30_000, 12 * HOUR_MS, 20 * DAY_MS, 200 * DAY_MS, 3 * 365 * DAY_MS), late=0.05),
)


def random_spec(seed: int) -> Spec:
    """A spec that may lack anything a spec may lack."""
    rng = np.random.default_rng(seed)
    kinds: list[dict[str, object]] = [{"name": "visit"}]
    for n in range(int(rng.integers(0, 7))):
        role = str(rng.choice(["activity", "activity", "contact", "terminal", "attribute"]))
        kind: dict[str, object] = {"name": f"{role}_{n}", "role": role, "decay": bool(rng.random() < 0.8)}
        kind["score"] = str(rng.choice(["auto", "auto", "auto", "always", "never"]))
        if role in ("activity", "contact") and rng.random() < 0.6:
            kind["aggregate"] = [a for a in ("sum", "mean", "max", "last") if rng.random() < 0.6]
        elif role in ("activity", "contact"):
            kind |= _several(rng)
        if role == "attribute":
            kind["attribute"] = str(rng.choice(["number", "category", "date"]))
            if kind["attribute"] == "category":
                kind["categories"] = ["free", "plus", "gone"][: int(rng.integers(1, 4))]
        kinds.append(kind)
    rng.shuffle(kinds)
    every = {"1h": (1, 4, 60), "24h": (1, 6), "7d": (7, 1), "30d": (5, 30), "90d": (6, 9)}
    lengths = rng.choice(list(every), int(rng.integers(1, len(every) + 1)), replace=False)
    ordered = [length for length in every if length in lengths]
    lives = rng.choice(["1h", "3d", "21d", "90d"], int(rng.integers(0, 3)), replace=False)
    days = rng.choice([1, 7, 30, 64, 65, 200], int(rng.integers(0, 3)), replace=False)
    return parse_spec(
        {
            "name": f"random_{seed}",
            "horizon": str(rng.choice(["1d", "14d", "60d"])),
            "memory": str(rng.choice(["90d", "180d", "400d"])),
            "kinds": kinds,
            "windows": {str(length): int(rng.choice(every[str(length)])) for length in lengths},
            "trends": [ordered[:2]] if len(ordered) > 1 and rng.random() < 0.7 else [],
            "week": _week(rng),
            "targets": _targets(kinds, rng, np.random.default_rng([seed, 1])),
            "score_after_first": [
                str(after) for after in rng.choice(["1h", "5d", "33d"], int(rng.integers(0, 3)))
            ],
            "half_lives": [str(life) for life in lives],
            "days_active": [int(n) for n in days],
            "sequence": {
                "length": int(rng.choice([1, 2, 5, 32])),
                "coalesce": str(rng.choice(["0s", "30m", "2d"])),
            },
            "silence": {"first": str(rng.choice(["6h", "1d"])), "ratio": float(rng.choice([1.5, 3.0]))},
            "eligibility": {
                "min_events": int(rng.choice([1, 1, 3])),
                "min_tenure": str(rng.choice(["0s", "0s", "5d"])),
                "max_tenure": str(rng.choice(["60d", "300d"])) if rng.random() < 0.3 else None,
                "max_silence": str(rng.choice(["2d", "30d", "90d"])) if rng.random() < 0.5 else None,
            },
            "score_every": str(rng.choice(["0s", "1h", "3d"])),
            "dedupe": int(rng.choice([0, 1, 4, 8])),
        }
    )


def _several(rng: np.random.Generator) -> dict[str, object]:
    """A kind with several values, of every sort, or one that is no feature at all."""
    if rng.random() < 0.2:
        return {"features": False}
    values: list[dict[str, object]] = [
        {"name": "amount", "from": "value", "aggregate": ["sum", "max"]},
        {"name": "items", "aggregate": ["mean", "last"]},
        {"name": "shop", "aggregate": ["distinct"]},
        {"name": "line", "aggregate": ["share"], "categories": ["food", "toys", "books"]},
        {"name": "weight"},
    ]
    chosen = rng.permutation(len(values))[: int(rng.integers(0, 5))]
    return {"values": [values[i] for i in chosen]}


def _week(rng: np.random.Generator) -> dict[str, object] | None:
    zones = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]
    return (
        {"zone": str(rng.choice(zones)), "buckets": int(rng.choice([2, 7, 14]))}
        if rng.random() < 0.5
        else None
    )


def _targets(
    kinds: list[dict[str, object]], rng: np.random.Generator, more: np.random.Generator
) -> list[dict[str, object]]:
    """None, or some kinds; with a condition where it can be said of one. `more` draws those beside the first."""
    if rng.random() < 0.5:
        return []
    return [
        _target("goal", kinds, rng),
        *(_target(f"also_{n}", kinds, more) for n in range(more.integers(4))),
    ]


def _target(name: str, kinds: list[dict[str, object]], rng: np.random.Generator) -> dict[str, object]:
    chosen = [str(kind["name"]) for kind in kinds if rng.random() < 0.5] or ["visit"]
    target: dict[str, object] = {"name": name, "kinds": chosen}
    plain = [str(k["name"]) for k in kinds if k.get("aggregate") or k.get("attribute") == "number"]
    if plain and rng.random() < 0.6:
        where = {"above": 15.0} if rng.random() < 0.5 else {"above": 0.0, "below": 40.0}
        target |= {"kinds": plain[:1], "where": where}
    if rng.random() < 0.2:
        target["churn_when"] = "present"
    return target


def random_history(spec: Spec, seed: int, n: int, customers: int = 3, *, resent: float = 0.1) -> History:
    """`n` events; about `resent` of those with an id are an earlier event of that customer over again."""
    rng = np.random.default_rng(seed)
    pace = PACES[int(rng.integers(len(PACES)))]
    clocks = dict.fromkeys((f"c{i}" for i in range(customers)), START)
    history: History = []
    for _ in range(n):
        customer = f"c{rng.integers(customers)}"
        before = [event for name, event in history if name == customer and event.id]
        if before and rng.random() < resent:
            again = before[-int(rng.integers(1, min(12, len(before)) + 1))]
            history.append((customer, again._replace(offset=len(history))))
            continue
        clocks[customer] += int(rng.choice(pace.gaps_ms)) * int(rng.integers(1, 4))
        if rng.random() < 0.045:  # back within the grace after `memory`
            clocks[customer] += spec.memory_ms + int(rng.integers(1, GRACE))
        time = clocks[customer]
        if rng.random() < pace.late:
            time -= int(rng.choice([1, HOUR_MS, 2 * DAY_MS, 50 * DAY_MS, 300 * DAY_MS]))
        time -= time % pace.whole
        kind = TOMBSTONE if rng.random() < 0.025 else int(rng.integers(len(spec.kinds)))
        event_id = int(rng.integers(1, 2**64, dtype=np.uint64)) if rng.random() < 0.7 else 0
        value, *more = _values(spec, kind, rng)
        history.append((customer, Event(kind, time, value, event_id, tuple(more), len(history))))
    return history


def columns(history: History) -> EventBatch:
    """The same events as a batch."""
    names = list(dict.fromkeys(customer for customer, _ in history))
    index = {name: i for i, name in enumerate(names)}
    events = [event for _, event in history]
    further = max((len(event.more) for event in events), default=0)
    more = [[*event.more, *[math.nan] * (further - len(event.more))] for event in events]
    return EventBatch(
        names,
        np.array([index[customer] for customer, _ in history], np.int32),
        np.array([event.kind for event in events], np.uint8),
        np.array([event.time for event in events], np.int64),
        np.array([event.value for event in events], np.float64),
        np.array([event.id for event in events], np.uint64),
        np.array([event.offset for event in events], np.int64),
        np.array(more, np.float64).reshape(len(events), further) if further else None,
    )


def placed(history: History) -> History:
    """The same, each event at its place in the history."""
    return [(customer, event._replace(offset=n)) for n, (customer, event) in enumerate(history)]


def of(history: History, customer: str) -> list[Event]:
    return [event for name, event in history if name == customer]


def one(*events: Event) -> History:
    """The history of a single customer."""
    return [("c", event) for event in events]


class State:
    """Records by customer, as a store keeps them between batches."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.rows: dict[str, np.void] = {}

    def load(self, customers: list[str]) -> Rows:
        rows = self.layout.empty(len(customers))
        for i, customer in enumerate(customers):
            if customer in self.rows:
                rows[i] = self.rows[customer]
        return rows

    def store(self, customers: list[str], rows: Rows) -> None:
        self.rows.update((customer, rows[i].copy()) for i, customer in enumerate(customers))


def _values(spec: Spec, kind: int, rng: np.random.Generator) -> list[float]:
    """As many as any kind has; NaN where this one has none."""
    values = [math.nan] * spec.value_columns
    if kind != TOMBSTONE:
        for c, reading in enumerate(spec.kinds[kind].readings):
            values[c] = _value(reading, rng)
    return values


def _value(reading: Value, rng: np.random.Generator) -> float:
    if rng.random() < 0.2:
        return math.nan
    if reading.reads == "category":
        return float(rng.integers(0, len(reading.categories) + 1))
    if reading.reads == "text":
        return float(rng.integers(0, 200) * 7_919_777_777_777 % 2**53)
    if reading.reads == "date":
        return START / DAY_MS + float(rng.integers(-400, 400))
    return float(np.round(rng.normal(20, 30), 2))
