"""Golden vectors: events, the records that the fold makes of them, and the features that are read from those.

They hold the bytes that lie in installed stores. A change of them with the layout's id unchanged would have an upgraded
worker read old bytes as something else; so the tests fail until FOLD_VERSION (or POLICY_VERSION) is raised and
`python -m tests.golden` has written `golden.json` anew.
"""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ebbtide.featurestore.kinds import Value
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import Folder, Points
from ebbtide.featurestore.record.layout import FOLD_VERSION, POLICY_VERSION, Layout, Rows
from ebbtide.featurestore.spec import Spec, load_spec, parse_spec
from tests.support.oracle.histories import History, columns
from tests.support.oracle.oracle import TOMBSTONE, Event

FILE = Path(__file__).with_name("golden.json")
SPECS = Path(__file__).resolve().parents[2] / "ops" / "specs"
SHIPPED = ("demo", "cdnow", "complete_journey")
SMALL = {
    "name": "small", "horizon": "2d", "memory": "10d", "windows": {"6h": 3, "7d": 7}, "half_lives": ["12h"],
    "kinds": [
        {"name": "visit"},
        {"name": "buy", "aggregate": ["sum", "mean", "last"]},
        {"name": "mail", "role": "contact"},
        {"name": "close", "role": "terminal"},
        {"name": "tier", "role": "attribute", "attribute": "category", "categories": ["free", "plus"]},
    ],
    "days_active": [2, 70], "sequence": {"length": 4, "coalesce": "10m"}, "dedupe": 2, "silence": {"first": "3h"},
}  # fmt: skip
RICH = {
    "name": "rich", "horizon": "2d", "memory": "20d", "windows": {"6h": 3, "7d": 7}, "half_lives": ["12h"],
    "kinds": [
        {"name": "visit", "features": False},
        {"name": "buy", "values": [
            {"name": "amount", "from": "value", "aggregate": ["sum", "max", "last"]},
            {"name": "items", "aggregate": ["mean"]},
            {"name": "shop", "aggregate": ["distinct"]},
            {"name": "line", "aggregate": ["share"], "categories": ["food", "toys"]},
        ]},
        {"name": "mail", "role": "contact"},
        {"name": "close", "role": "terminal"},
    ],
    "trends": [["6h", "7d"]], "week": {"zone": "Europe/Berlin", "buckets": 7}, "score_after_first": ["1d"],
    "targets": [{"name": "sale", "kinds": ["buy"], "where": {"value": "amount", "above": 100}}],
    "days_active": [2], "sequence": {"length": 4, "coalesce": "10m"}, "dedupe": 2, "silence": {"first": "3h"},
    "eligibility": {"max_tenure": "30d"},
}  # fmt: skip
SEVERAL = {
    **SMALL,
    "name": "several",
    "targets": [
        {"name": "sale", "kinds": ["buy"], "where": {"above": 50}},
        {"name": "look", "kinds": ["visit"]},
        {"name": "leave", "kinds": ["close"], "churn_when": "present"},
    ],
}
MADE = {"small": SMALL, "rich": RICH, "several": SEVERAL}
"""Specs of our own: what existed first, and what came later."""
EVENTS = 80
START_MS = 1_700_000_000_000
AS_OF_LATER_MS = 26 * 3_600_000
"""Features are read so long after the last event."""


def spec_of(name: str) -> Spec:
    return parse_spec(MADE[name]) if name in MADE else load_spec(SPECS / f"{name}.yaml")


def events_of(spec: Spec) -> list[list[Any]]:
    """[customer, kind, ms, value or null, event id, further values …]: bursts, gaps, late, duplicates, a tombstone,
    of a generator that is spelt out here, so that no library changes it."""
    state = 7
    time = START_MS
    made: list[list[Any]] = []

    def draw(n: int) -> int:
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % n

    for i in range(EVENTS):
        time += (1_000, 400_000, 9_000_000, 100_000_000, 500_000_000)[draw(5)]
        late = (0, 0, 0, 0, 5_000_000, 900_000_000)[draw(6)]
        kind = spec.kinds[draw(len(spec.kinds))]
        if made and draw(12) == 0:
            made.append(list(made[-1]))
        elif i == EVENTS // 2:
            made.append(["b", TOMBSTONE, time, None, 0])
        else:
            values = [_value(reading, draw) for reading in kind.readings]
            if not values:
                draw(5_000)  # the place in the generator's stream that a value would take
                values = [None]
            made.append(
                ["ab"[draw(2)], spec.kinds.index(kind), time - late, values[0], draw(2**31), *values[1:]]
            )
    return made


def _value(reading: Value, draw: Callable[[int], int]) -> float | None:
    code = draw(len(reading.categories) + 1) if reading.categories else draw(5_000) / 8
    return None if draw(6) == 0 else float(code)


def folded(spec: Spec, events: list[list[Any]]) -> tuple[list[str], Rows, Points]:
    history: History = [
        (customer, Event(kind, time, _number(value), event_id, more=tuple(map(_number, more))))
        for customer, kind, time, value, event_id, *more in events
    ]
    batch = columns(history)
    layout = Layout(spec)
    rows, points = Folder(layout).fold(layout.empty(len(batch.customers)), batch)
    return batch.customers, rows, points


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def vector(spec: Spec, events: list[list[Any]]) -> dict[str, Any]:
    """What is kept of a spec's fold, without the features."""
    customers, rows, points = folded(spec, events)
    told = [
        points.rows.tobytes(),
        *(np.asarray(c).tobytes() for c in (points.customer, points.as_of, points.cause)),
    ]
    return {
        "id": Layout(spec).id,
        "records": {name: row.tobytes().hex() for name, row in zip(customers, rows, strict=True)},
        "points": hashlib.blake2b(b"".join(told), digest_size=16).hexdigest(),
    }


def features_of(spec: Spec, events: list[list[Any]]) -> dict[str, dict[str, float]]:
    """By customer and name, to six digits: what the graph computes of the record. Imports TensorFlow."""
    from ebbtide.model.graph.features import FeatureLayer

    customers, rows, _ = folded(spec, events)
    record = {name: np.ascontiguousarray(rows[name]) for name in Layout(spec).model_fields}
    as_of = rows["row_watermark"] + AS_OF_LATER_MS
    names = [feature.name for feature in features(spec)]
    computed = np.asarray(FeatureLayer(Layout(spec))(record, as_of)["features"])
    return {
        customer: {name: float(f"{float(value):.6g}") for name, value in zip(names, values, strict=True)}
        for customer, values in zip(customers, computed, strict=True)
    }


def read() -> dict[str, Any]:
    golden: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return golden


def problem_of(name: str, kept: dict[str, Any]) -> str:
    """Why a kept vector no longer holds, and what to do; empty when it does."""
    now = vector(spec_of(name), kept["events"])
    if all(now[key] == kept[key] for key in now):
        return ""
    if now["id"] == kept["id"]:
        return f"{name}: other bytes under the same layout id: raise FOLD_VERSION and run `python -m tests.golden`"
    return f"{name}: another layout ({kept['id']} is now {now['id']}): run `python -m tests.golden`"


def versions() -> dict[str, int]:
    return {"fold": FOLD_VERSION, "policy": POLICY_VERSION}
