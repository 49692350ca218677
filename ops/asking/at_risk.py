"""Who is at risk, highest first: from the store's lists and records, without a model.

p is that of each customer's last decision, and its time stands beside it: who has been silent since may be nearer to
leaving than it says. Of a spec with several targets one is asked about, by default the first; the answer names it, and
p and episode of every target stand beside each customer. The lists are ordered by the highest p of all targets
(`stream/outputs/at_risk.py`), so as many are looked at as for an order by value, and where that were not all, the
answer says from which p on it is complete.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.worth import Worth
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.store.commit import pages
from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.asking.words import episode_of, number, when
from ebbtide.stream.decision.episodes import HELD_OUT
from ebbtide.stream.decision.holdout import NOBODY, Holdout

Order = Literal["p", "value"]
LIMIT, LIMIT_MAX = 50, 1_000
CONSIDERED_MAX = 5_000
"""Whose records are looked at where the list's own order does not do, from the highest p on: 5 records of 1 KiB a
millisecond."""


async def at_risk(
    store: Store,
    layout: Layout,
    *,
    limit: int = LIMIT,
    p_min: float = 0.0,
    order: Order = "p",
    target: str | None = None,
    floors: Sequence[float] = (),
    holdout: Holdout = NOBODY,
) -> dict[str, Any]:
    """The `limit` customers with the highest p of a target (or p times value), as JSON takes it. target: its name;
    None: the first. floors: by target the p from which on customers are at risk by it, none where nobody knows: then
    whoever is listed by another target is here, too. holdout: the policy's. Raises ValueError where the spec has no
    value to order by or no such target, StoreUnavailable, LayoutError."""
    targets = layout.spec.target_names
    t = _target(targets, target)
    several = len(targets) > 1
    if several and floors:
        p_min = max(p_min, float(np.float32(floors[t])))  # as a commit compares it with its scores
    worth = _worth(layout, needed=order == "value")
    found = await store.at_risk(p_min, CONSIDERED_MAX if several or order == "value" else limit)
    by_partition: dict[int, list[str]] = {}
    for _, partition, customer in found.entries:
        by_partition.setdefault(partition, []).append(customer)
    asked = [(partition, page) for partition, names in by_partition.items() for page in pages(names)]
    listed: list[dict[str, Any]] = []
    for (partition, names), loaded in zip(asked, await store.load_many(asked), strict=True):
        if isinstance(loaded, Exception):
            raise loaded
        rows, there = loaded
        values = np.full(len(rows), np.nan) if worth is None else worth(rows, rows["scored_at"])
        listed += [
            {
                "customer": name, "partition": partition, "probability": float(row["score"][t]),
                "as_of": when(int(row["scored_at"])), "value": number(value),
                "last_seen": when(int(row["last_seen"])), "episode": episode_of(row, t)["state"],
                # Whoever contacts them spoils what the holdout is there to show, in an episode or not.
                "held_out": bool((row["episode_state"] == HELD_OUT).any()) or holdout.holds(name),
                "targets": _each_target(row, layout.spec),
            }
            for name, row, value, known in zip(names, rows, values.tolist(), there.tolist(), strict=True)
            # Who was decided about again between the two questions may be at risk no more.
            if known and row["score"][t] >= p_min and row["scored_at"]
        ]  # fmt: skip
    listed.sort(key=lambda each: -each["probability"] * (each["value"] if order == "value" else 1.0))
    floor = found.floor
    if several and len(found.entries) < found.listed:  # nobody further down has a higher p of any target
        floor = max(floor, found.entries[-1][0])
    return {
        "customers": listed[:limit],
        "target": targets[t],
        "order": order,
        "listed": found.listed,
        "considered": len(found.entries) if several or order == "value" else found.listed,
        "value": worth and worth.words,
        # The list of a partition was full, or longer than was looked at: from this p on everybody is in it.
        "complete_from": floor or None,
    }


def _target(names: Sequence[str], asked: str | None) -> int:
    """Index of the target that is asked about. Raises ValueError where the spec has none such."""
    if asked is not None and asked not in names:
        raise ValueError(f"the spec has no target {asked!r}: it has {', '.join(names)}")
    return 0 if asked is None else names.index(asked)


def _each_target(row: np.void, spec: Spec) -> dict[str, Any] | None:
    """By name p as of the last decision, and the episode; None of a spec with one target, which is said already."""
    if len(spec.target_names) == 1:
        return None
    return {
        name: {"probability": float(row["score"][t]), "episode": episode_of(row, t)["state"]}
        for t, name in enumerate(spec.target_names)
    }


def _worth(layout: Layout, *, needed: bool) -> Worth | None:
    try:
        return Worth(layout)
    except ValueError:
        if needed:
            raise
        return None
