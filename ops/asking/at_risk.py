"""Who is at risk, highest first: from the store's lists and records, without a model.

p is that of each customer's last decision, and its time stands beside it: who has been silent since may be nearer to
leaving than it says. Of a spec with several targets the list is the first one's, which the answer names, and p and
episode of every target stand beside each customer; who is at risk by a further target alone is not found here. Who asks
for that target's list is refused: a shorter one would look like the answer.
"""

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
"""Of whom the value is looked at, from the highest p on: 5 records of 1 KiB a millisecond."""


async def at_risk(
    store: Store,
    layout: Layout,
    *,
    limit: int = LIMIT,
    p_min: float = 0.0,
    order: Order = "p",
    target: str | None = None,
    holdout: Holdout = NOBODY,
) -> dict[str, Any]:
    """The `limit` customers with the highest p (or p times value), as JSON takes it. target: whose list is meant; None:
    whichever there is. holdout: the policy's. Raises ValueError where the spec has no value to order by or `target` no
    list, StoreUnavailable, LayoutError."""
    of = _target_listed(layout.spec, target)
    worth = _worth(layout, needed=order == "value")
    found = await store.at_risk(p_min, CONSIDERED_MAX if order == "value" else limit)
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
                "customer": name, "partition": partition, "probability": float(row["score"][0]),
                "as_of": when(int(row["scored_at"])), "value": number(value),
                "last_seen": when(int(row["last_seen"])), "episode": episode_of(row, 0)["state"],
                # Whoever contacts them spoils what the holdout is there to show, in an episode or not.
                "held_out": bool((row["episode_state"] == HELD_OUT).any()) or holdout.holds(name),
                "targets": _each_target(row, layout.spec),
            }
            for name, row, value, known in zip(names, rows, values.tolist(), there.tolist(), strict=True)
            # Who was decided about again between the two questions may be at risk no more.
            if known and row["score"][0] >= p_min and row["scored_at"]
        ]  # fmt: skip
    listed.sort(key=lambda each: -each["probability"] * (each["value"] if order == "value" else 1.0))
    return {
        "customers": listed[:limit],
        "target": of,
        "order": order,
        "listed": found.listed,
        "considered": len(found.entries) if order == "value" else found.listed,
        "value": worth and worth.words,
        # The list of a partition was full: from this p on everybody is in it.
        "complete_from": found.floor or None,
    }


def _target_listed(spec: Spec, asked: str | None) -> str:
    """The target that the lists are of. Raises ValueError where another one is asked for."""
    first, *further = spec.target_names
    if asked is None or asked == first:
        return first
    if asked in further:
        raise ValueError(
            f"the lists are of {first!r}, the spec's first target: of {asked!r} they say p and episode of whoever is"
            " in them, and miss who is at risk by it alone"
        )
    raise ValueError(f"the spec has no target {asked!r}: the lists are of {first!r}")


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
