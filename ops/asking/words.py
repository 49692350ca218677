"""A record in words, without a model: times, counts, the episode, and what was done when."""

import math
from typing import Any

import numpy as np

from ebbtide.featurestore.events.contract import TIME_MS_MAX
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.times.timestamps import instant
from ebbtide.stream.decision.episodes import CLOSED, HELD_OUT


def describe(row: np.void, layout: Layout) -> dict[str, Any]:
    """A record's times, counts and episodes: each target's by name, and the first one's again as `episode`."""
    return {
        "first_seen": when(int(row["first_seen"])),
        "last_seen": when(int(row["last_seen"])),
        "left_explicitly_at": when(int(row["terminated_at"])),
        "activities": int(row["activity_count"]),
        "late_events": int(row["late_count"]),
        "counts": {kind.noun: int(n) for kind, n in zip(layout.spec.kinds, row["kind_count"], strict=True)},
        "episode": episode_of(row, 0),
        "episodes": {name: episode_of(row, t) for t, name in enumerate(layout.spec.target_names)},
    }


def episode_of(row: np.void, target: int) -> dict[str, Any]:
    """The episode of one target, by its index. held_out: it is open and told to nobody."""
    return {
        "state": "closed" if row["episode_state"][target] == CLOSED else "open",
        "held_out": bool(row["episode_state"][target] == HELD_OUT),
        "opened_at": when(int(row["episode_opened_at"][target])),
        "cooldown_until": when(int(row["cooldown_until"][target])),
        "sequence": int(row["sequence"][target]),
    }


def timeline(row: np.void, layout: Layout) -> dict[str, Any]:
    """What was done when, as far as the record knows.

    kinds: of each kind that came, how often and when last, exactly. recent: the entries of the sequence, oldest first;
    repeats of a kind within `coalesce` are one entry, so `at` is exact for the last and within that of each later
    one's for the others.
    """
    spec = layout.spec
    kinds = [
        {
            "kind": kind.name, "noun": kind.noun, "count": int(n), "words": kind.said(int(n)), "last": when(int(last)),
        }
        for kind, n, last in zip(spec.kinds, row["kind_count"], row["kind_last"], strict=True)
        if n
    ]  # fmt: skip
    length = len(row["ring_kind"])
    at_ms, recent = float(row["last_seen"]), list[dict[str, Any]]()
    for back in range(length):
        slot = (int(row["ring_head"]) - back) % length
        if not row["ring_kind"][slot]:
            break
        kind = spec.kinds[row["ring_kind"][slot] - 1]
        recent.append({
            "kind": kind.name, "count": int(row["ring_count"][slot]), "value": float(row["ring_value"][slot]),
            "at": when(max(int(at_ms), 1)),
        })  # fmt: skip
        at_ms -= 1000.0 * float(row["ring_gap"][slot])
    return {"kinds": sorted(kinds, key=lambda each: str(each["last"])), "recent": recent[::-1]}


def when(ms: int) -> str | None:
    """RFC 3339; None for never."""
    # A cooldown may end after the last time there is.
    return instant(min(ms, TIME_MS_MAX)).isoformat() if ms else None


def number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
