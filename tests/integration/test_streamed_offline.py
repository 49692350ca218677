"""One spec with everything in it, one log: as records of a stream in pieces, as a file, and as the oracle reads it.

raw events ─┬─ CSV ─read_log─▶ replay ────────────▶ rows ─┐
            ├─ JSON ─parse─▶ fold, piece by piece ▶ rows ─┼─ the same fields, and of these the graph's features
            └─ the oracle's own reading ──────────────────┘  are the oracle's
"""

import csv
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import state_at
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS
from ebbtide.model.graph.features import FeatureLayer
from tests.support.oracle.figures import features as oracle_features
from tests.support.oracle.histories import START, State
from tests.support.oracle.oracle import Event, walk
from tests.support.seams.streams import LogRecord

LINES = ("food", "toys", "books")
SPEC: dict[str, Any] = {
    "name": "everything", "horizon": "14d", "memory": "120d", "windows": {"24h": 6, "7d": 7, "28d": 4},
    "kinds": [
        {"name": "visit"},
        {"name": "buy", "values": [
            {"name": "amount", "from": "value", "aggregate": ["sum", "mean", "max", "last"]},
            {"name": "items", "aggregate": ["sum", "last"]},
            {"name": "store", "aggregate": ["distinct"]},
            {"name": "line", "aggregate": ["share"], "categories": list(LINES[:2])},
        ]},
        {"name": "seen", "features": False},
        {"name": "mail", "role": "contact", "value": "properties.store", "aggregate": ["distinct"]},
    ],
    "half_lives": ["3d"], "days_active": [7], "sequence": {"length": 6, "coalesce": "30m"},
    "trends": [["24h", "7d"], ["7d", "28d"]], "week": {"zone": "America/New_York", "buckets": 14},
    "targets": [{"name": "sale", "kinds": ["buy"], "where": {"value": "line", "is": "food"}}],
    "score_after_first": ["2d", "30d"], "eligibility": {"max_tenure": "300d", "max_silence": "60d"},
}  # fmt: skip
COLUMNS = ("user_id", "type", "ts", "value", "items", "store", "line")


def raw_events(seed: int, n: int) -> list[dict[str, Any]]:
    """Events in order of time, as their producer knows them; None where one lacks a value."""
    rng, time, made = np.random.default_rng(seed), START, []
    for _ in range(n):
        time += int(rng.choice([1_000, 20 * 60_000, 7 * HOUR_MS, 2 * DAY_MS, 9 * DAY_MS]))
        kind = str(rng.choice(["visit", "buy", "buy", "seen", "mail"]))
        event: dict[str, Any] = dict.fromkeys(COLUMNS)
        event |= {"user_id": f"c{rng.integers(3)}", "type": kind, "ts": time}
        if kind == "buy":
            amount, items = round(float(rng.normal(20, 30)), 2), int(rng.integers(1, 9))
            drawn = (amount, items, f"s{rng.integers(40)}", str(rng.choice(LINES)))
            for name, value in zip(COLUMNS[3:], drawn, strict=True):
                event[name] = value if rng.random() < 0.85 else None
        elif kind == "mail":
            event["store"] = f"s{rng.integers(9)}"
        made.append(event)
    return made


def as_record(offset: int, event: dict[str, Any]) -> LogRecord:
    said = {name: event[name] for name in ("user_id", "type", "ts", "value") if event[name] is not None}
    said["properties"] = {name: event[name] for name in ("items", "store", "line") if event[name] is not None}
    return LogRecord(offset, event["ts"], event["user_id"].encode(), json.dumps(said).encode())


def oracles(spec: Spec, event: dict[str, Any], tokens: dict[str, float]) -> Event:
    """The event as the oracle takes it: texts by the number that the parser gave each, all else by itself."""
    names = [kind.name for kind in spec.kinds]
    line = event["line"]
    code = None if line is None else 1 + LINES.index(line) if line in LINES[:2] else 0
    store = tokens.get(event["store"])
    values = {"buy": [event["value"], event["items"], store, code], "mail": [store]}.get(event["type"], [])
    numbers = [math.nan if value is None else float(value) for value in values]
    numbers += [math.nan] * (4 - len(numbers))
    return Event(names.index(event["type"]), event["ts"], numbers[0], more=tuple(numbers[1:]))


@pytest.mark.parametrize("seed", range(3))
def test_stream_file_and_oracle_say_the_same(tmp_path: Path, seed: int) -> None:
    spec, raw = parse_spec(SPEC), raw_events(seed, 150)
    layout, rng = Layout(spec), np.random.default_rng(seed)
    with (tmp_path / "events.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(raw)
    log = read_log(tmp_path / "events.csv", spec).events
    offline = dict(zip(log.customers, state_at(layout, log, raw[-1]["ts"] + 1), strict=True))

    state, parser, folder, tokens = State(layout), Parser(spec), Folder(layout), {}
    cuts = [0, *sorted(int(cut) for cut in rng.choice(np.arange(1, len(raw)), 9, replace=False)), len(raw)]
    for start, end in pairwise(cuts):
        parsed = parser.parse([as_record(i, raw[i]) for i in range(start, end)])
        assert not parsed.rejected
        rows, _ = folder.fold(state.load(parsed.events.customers), parsed.events)
        state.store(parsed.events.customers, rows)
        for event, values in zip(raw[start:end], parsed.events.values, strict=True):
            if event["store"] is not None:
                tokens[event["store"]] = float(values[2 if event["type"] == "buy" else 0])
    assert len(set(tokens.values())) == len(tokens)
    assert offline.keys() == state.rows.keys()
    for name, row in offline.items():
        for field in layout.model_fields:
            assert row[field].tobytes() == state.rows[name][field].tobytes(), (seed, name, field)

    names = [feature.name for feature in features(spec)]
    for name, row in offline.items():
        _, life = walk(spec, [oracles(spec, event, tokens) for event in raw if event["user_id"] == name])
        record = {field: np.ascontiguousarray(row[None][field]) for field in layout.model_fields}
        for later in (0, 5 * HOUR_MS, 3 * DAY_MS, 40 * DAY_MS):
            as_of = np.array([raw[-1]["ts"] + later], np.int64)
            got = np.asarray(FeatureLayer(layout)(record, as_of)["features"])[0]
            want = oracle_features(life, int(as_of[0]))
            assert dict(zip(names, got.tolist(), strict=True)) == pytest.approx(want, rel=5e-5, abs=2e-3), (
                seed,
                name,
            )
