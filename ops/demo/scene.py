"""Who is on stage: the customers of history, from whom the model learns, and others, whom it has never seen.

    history customers   ├────────── training log ──────────┤
    live customers               ├──── what the state is filled with ────┼──── shown, accelerated ────┼─ truth only ─┤
                                                                     opens_ms                     closes_ms   + horizon

Both live in the same year under the same laws; only the seeds differ. It knows the spans and draws the lives, and
refuses to know Kafka. The invariant: what is simulated beyond `closes_ms` is never sent to anyone; it is there so that
the last alert, too, can be judged.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.hashing import hash_texts
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import epoch_ms
from ebbtide.ops.demo.shop.behaviour import Scenario, simulate
from ebbtide.ops.demo.shop.events import PLAN_CHANGED, TYPES, Simulated, write_jsonl

OPENS_MS = epoch_ms(datetime(2025, 3, 3, tzinfo=UTC))
"""A Monday in the past: a broker refuses records whose time is an hour ahead of its own clock."""
MAILING_DAYS = 7.0
"""Everyone gets the newsletter at an hour of their own, so alerts come evenly instead of once a week."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. Days are simulated days, seconds are yours."""

    seed: int = 1
    seconds: float = 120.0
    history_customers: int = 2_500
    history_days: float = 130.0
    live_customers: int = 2_000
    filled_days: float = 90.0
    shown_days_max: float = 75.0
    days_a_second_max: float = 2.0
    """A short demo shows fewer days rather than a flood: 2,000 customers send some 2,500 events a day."""

    @property
    def shown_days(self) -> float:
        return min(self.shown_days_max, self.seconds * self.days_a_second_max)

    @property
    def speed(self) -> float:
        """Simulated seconds a second."""
        return self.shown_days * 86_400 / self.seconds


@dataclass(frozen=True, slots=True)
class Scene:
    """The live customers. `first` and `end` are the indices of the shown events in `live.events`."""

    live: Simulated
    opens_ms: int
    closes_ms: int
    first: int
    end: int


def write_history(plan: Plan, path: Path) -> Simulated:
    """Simulate the customers of history and write their events as JSON Lines."""
    history = simulate(
        Scenario(
            plan.seed * 2, plan.history_customers, OPENS_MS - round(plan.history_days * DAY_MS), plan.history_days,
            prefix="h", mailing_days=MAILING_DAYS,
        )
    )  # fmt: skip
    write_jsonl(history, path)
    return history


def build_scene(plan: Plan, horizon_ms: int) -> Scene:
    """Simulate the live customers, a horizon further than they are shown."""
    closes_ms = OPENS_MS + round(plan.shown_days * DAY_MS)
    days = plan.filled_days + (closes_ms - OPENS_MS + horizon_ms) / DAY_MS + 1
    live = simulate(
        Scenario(
            plan.seed * 2 + 1, plan.live_customers, OPENS_MS - round(plan.filled_days * DAY_MS), days,
            prefix="c", mailing_days=MAILING_DAYS,
        )
    )  # fmt: skip
    first, end = np.searchsorted(live.events["time_ms"], [OPENS_MS, closes_ms]).tolist()
    return Scene(live, OPENS_MS, closes_ms, first, end)


def columns(sim: Simulated, spec: Spec) -> EventBatch:
    """The simulated events as the columns that parsing their records would give; `position` is the index."""
    events = sim.events
    kinds = np.array([spec.kind_of_type[name] for name in TYPES], np.uint8)
    return EventBatch(
        customers=list(sim.customers),
        customer=np.ascontiguousarray(events["customer"]),
        kind=kinds[events["type"]],
        time=np.ascontiguousarray(events["time_ms"]),
        # A category's code in a record is its place in the spec's list, from 1 on.
        value=np.where(events["type"] == PLAN_CHANGED, events["value"] + 1, events["value"]),
        event_id=hash_texts([f"{sim.name}-{number}" for number in range(len(events))]),
        position=np.arange(len(events)),
    )
