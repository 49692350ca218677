"""A fold by hand: a small spec, events at hours after START, and what came of them, of which the oracle must say the
same. START is a midnight.
"""

import math

from ebbtide.featurestore.record.fold import (
    EVENT,
    EXPIRED,
    RESET,
    RETURNED,
    SILENCE,
    TERMINAL,
    Folder,
)
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS
from tests.support.oracle.histories import columns, one
from tests.support.oracle.oracle import Event, walk
from tests.support.oracle.records import Facts, expected, recorded

START = 20_000 * DAY_MS
VISIT, BUY, MAIL, CLOSE, PLAN, HELP = range(6)
NAMES = {
    EVENT: "event",
    SILENCE: "silence",
    TERMINAL: "terminal",
    RESET: "reset",
    RETURNED: "returned",
    EXPIRED: "expired",
}


def spec_of(**changes: object) -> Spec:
    plain: dict[str, object] = {
        "name": "rules",
        "horizon": "16h",
        "memory": "48h",
        "kinds": [
            {"name": "visit"},
            {"name": "buy", "aggregate": ["sum", "mean", "last"]},
            {"name": "mail", "role": "contact"},
            {"name": "close", "role": "terminal"},
            {"name": "plan", "role": "attribute"},
            {"name": "help", "role": "contact", "score": "always"},
        ],
        "windows": {"6h": 3, "24h": 2},
        "half_lives": ["3h"],
        "days_active": [2, 70],
        "sequence": {"length": 3, "coalesce": "30m"},
        "silence": {"first": "2h", "ratio": 2.0},
        "dedupe": 2,
    }
    return parse_spec({**plain, **changes})


def at(kind: int, hours: float, value: float = math.nan, event_id: int = 0) -> Event:
    return Event(kind, START + round(hours * HOUR_MS), value, event_id)


def points_of(spec: Spec, *events: Event) -> list[tuple[str, float]]:
    """Cause and hour of each point; the oracle's must be the same."""
    layout = Layout(spec)
    _, points = Folder(layout).fold(layout.empty(1), columns(one(*events)))
    told = [(int(cause), int(as_of)) for cause, as_of in zip(points.cause, points.as_of, strict=True)]
    assert told == [(point.cause, point.as_of) for point in walk(spec, list(events))[0]]
    return [(NAMES[cause], (as_of - START) / HOUR_MS) for cause, as_of in told]


def known(spec: Spec, *events: Event, as_of: float | None = None) -> Facts:
    """What the record says after the events, as of an hour (default: its clock)."""
    layout = Layout(spec)
    rows, _ = Folder(layout).fold(layout.empty(1), columns(one(*events)))
    time = int(rows["row_watermark"][0]) if as_of is None else START + round(as_of * HOUR_MS)
    oracle = expected(walk(spec, list(events))[1], time)
    facts = recorded(layout, rows[0], time)
    assert {name: facts[name] for name in ("counts", "sequence", "days")} == {
        name: oracle[name] for name in ("counts", "sequence", "days")
    }
    return facts
