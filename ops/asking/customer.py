"""All that is known of one customer: the record, the features, and what the serving version says of them, now and over
the coming silence.

It reads through the same store and the same model as the data path and changes nothing. The invariant: no time before
what is known is answered for, since the record does not say what it was then.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.contract import TIME_MS_MAX
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.record.reasons import Reasons
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import instant
from ebbtide.model.explaining.explained import Explained
from ebbtide.model.graph.hazard import QUANTILES, time_to_next_ms
from ebbtide.ops.asking.words import describe, number, timeline, when
from ebbtide.stream.kafka.topics import partition_for

CURVE_MAX = 31
"""Points of a curve: with the present they are one block of rows (`model/serving/program.py`), so one dispatch."""


class Asked(NamedTuple):
    """A version's answer: p float32[n], all by one dispatch, and why, of the first row alone."""

    p: NDArray[np.float32]
    why: Explained
    version: int


Ask = Callable[[Rows, NDArray[np.int64]], Awaitable[Asked]]
"""Rows and their times to what the serving version says, computed where it does not stop the event loop."""


class Found(NamedTuple):
    """Where a customer's record is; others: partitions that hold another record of theirs, where producers do not agree
    on the partitioner, and the last activity there, ms UTC."""

    partition: int
    row: np.void
    others: list[tuple[int, int]]


async def find(store: Store, spec: Spec, customer: str) -> Found | None:
    """The record in the partition that Kafka's default partitioner gives, or else in the first that has one."""
    found = dict(await store.find(customer))
    if not found:
        return None
    home = partition_for(spec.keys_of([customer])[0], store.partitions)
    partition = home if home in found else min(found)
    others = [(other, int(found[other]["last_seen"])) for other in sorted(found) if other != partition]
    return Found(partition, found[partition], others)


async def of_first(store: Store, first: str) -> list[str]:
    """The composite customers who begin with a first part, sorted; at most CUSTOMERS_MAX of a partition."""
    asked = store.of_first_each([(partition, first, CUSTOMERS_MAX) for partition in range(store.partitions)])
    return sorted(name for found in await asyncio.gather(*asked) for name in found)


async def view(customer: str, found: Found, layout: Layout, ask: Ask, as_of: int) -> dict[str, Any]:
    """All of it, as JSON takes it, as of `as_of` >= the row's watermark, ms UTC. Raises what `ask` raises."""
    row, folder = found.row, Folder(layout)
    one = np.array([row], layout.dtype)
    armed = int(folder.armed_at(one)[0])
    times = np.array([as_of, *coming_silence(armed, int(row["last_seen"]), layout, as_of)], np.int64)
    rows = np.repeat(one, len(times))
    asked = await ask(rows, times)
    eligible = folder.eligible(rows, times).tolist()
    p = [number(p) if fits else None for p, fits in zip(asked.p.tolist(), eligible, strict=True)]
    return {
        "customer": customer,
        "partition": found.partition,
        # Of a producer with another partitioner: the same customer, in parts that know nothing of each other.
        "other_records": [{"partition": other, "last_seen": when(seen)} for other, seen in found.others],
        "as_of": instant(as_of).isoformat(),
        "state": describe(row, layout),
        "timeline": timeline(row, layout),
        "eligible": eligible[0],
        "probability": p[0],
        "model_version": asked.version,
        "last_score": {"probability": number(row["score"][0]), "as_of": when(int(row["scored_at"]))}
        if row["scored_at"]
        else None,
        "silence_curve": [
            {"as_of": when(t), "days": (t - as_of) / 86_400_000, "probability": p}
            for t, p in zip(times.tolist(), p, strict=True)
        ],
        **_why(asked.why, Reasons(layout.spec), layout),
        "targets": _targets(asked.why, layout) if eligible[0] else [],
    }  # fmt: skip


def _targets(why: Explained, layout: Layout) -> list[dict[str, Any]]:
    """Of each target the probability now, and where the model knows more than one horizon, that nothing comes by each
    of them and when the next event is to be expected."""
    spec = layout.spec
    told = []
    for t, name in enumerate(spec.target_names):
        one = why.of_target(t)
        said: dict[str, Any] = {
            "target": name,
            "churn": spec.only_target(t).churn_words,
            "probability": number(1.0 / (1.0 + np.exp(-one.logit[0].astype(np.float64)))),
        }
        if one.survival is not None:
            days = (
                float(time_to_next_ms(spec.horizons_ms, one.survival[:1], q)[0]) / DAY_MS for q in QUANTILES
            )
            said["survival"] = [
                {"days": horizon / DAY_MS, "probability": number(s)}
                for horizon, s in zip(spec.horizons_ms, one.survival[0], strict=True)
            ]
            said["activity_in_days"] = {
                f"p{round(100 * q)}": day if np.isfinite(day) else None
                for q, day in zip(QUANTILES, days, strict=True)
            }
        told.append(said)
    return told


def _why(why: Explained, reasons: Reasons, layout: Layout) -> dict[str, Any]:
    """The reasons of one row in both directions, loudest first, and every feature. What does not add up, or is not
    there, is not said."""
    holds = bool(why.holds[0])
    values, parts = why.values[0], why.contributions[0]
    said = [
        each
        for towards in (1, -1)
        for each in reasons.top(values, parts, float(why.sequence[0]), towards, len(reasons.groups))
        if holds
    ]
    return {
        "logit": number(why.logit[0]),
        # Of a customer with every feature at its mean and an empty sequence; the reasons sum to the difference.
        "reference_logit": number(why.reference[0]),
        "explained": holds,
        "reasons": [each._asdict() for each in sorted(said, key=lambda each: -abs(each.contribution))],
        "features": {
            f.name: {
                "value": number(v), "unit": f.unit, "contribution": number(c) if holds else None, "group": f.group,
                "words": reasons.sentence(i, values) if np.isfinite(v) else None,
            }
            for i, (f, v, c) in enumerate(zip(features(layout.spec), values, parts, strict=True))
        },
    }  # fmt: skip


def coming_silence(armed: int, last_seen: int, layout: Layout, as_of: int) -> list[int]:
    """Times after `as_of` to score at, ascending, ms UTC: the decision points that come if nothing happens, and eighths
    of a horizon from now; at most CURVE_MAX, within what the record remembers."""
    spec = layout.spec
    eighths = [as_of + spec.horizon_ms * i // 8 for i in range(1, 9)]
    end = min(last_seen + spec.memory_ms, TIME_MS_MAX)
    times = sorted({t for t in (*(armed + gap for gap in spec.silences_ms), *eighths) if as_of < t <= end})
    if len(times) <= CURVE_MAX:
        return times
    return [times[i] for i in np.linspace(0, len(times) - 1, CURVE_MAX).round().astype(int).tolist()]
