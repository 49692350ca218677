"""Was it right? Alerts against what the customers did afterwards, which the simulation knows and the service did not.

    opened alert          right when no activity followed in (as_of, as_of + H]
    precision             share of opened alerts that were right
    base rate             the same share for all decision points of the show: what alerting at random would get
    recall                of the silences of at least H that began in the show and ran their whole H in it, in customers
                          about whom the service was asked meanwhile, the share that an open episode knew of before H
                          was over; accounts that were closed in so many words are no silences
    lead time             last activity + H - as_of, of the right alerts: how long before it was churn by definition
    by recency            alert when someone has been silent for so long, once a silence, at the same decision points;
                          "so long" is chosen so that there are as many alerts as ours

Pure: columns in, figures out. The decision points are those of the very fold the worker uses; the truth is
`ops.demo.shop.events.Activity`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import replay
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.ops.demo.scene import Scene
from ebbtide.ops.demo.shop.events import ACCOUNT_CLOSED, Activity

I8 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Asked:
    """The n scored decision points of the show, brought about by its events or by time."""

    customer: I8
    as_of: I8
    last: I8
    """int64[n] ms: the last activity before it."""
    churned: NDArray[np.bool_]
    """bool[n]: no activity followed within the horizon."""


@dataclass(frozen=True, slots=True)
class Episode:
    """Opened at a decision point, closed at another (or never, as far as was shown). Times in ms UTC."""

    customer: int
    opened: int
    closed: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What a way of alerting came to: NaN where there was nothing to divide."""

    alerts: float
    precision: float
    lead_days: float
    """Median."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`by_silence_alone`: alerts about customers of whom no event was shown any more, so that only a timer could bring
    them. `silence_days`: from what silence on alerting by recency had to alert to come to as many alerts (two scheduled
    gaps: some at the one, the others at the other)."""

    ours: Rule
    recency: Rule
    silence_days: tuple[float, float]
    base_rate: float
    points: int
    recall: float
    silences: int
    by_silence_alone: int = 0


def asked(scene: Scene, log: EventBatch, layout: Layout, sent: int) -> Asked:
    """The decision points of the first `sent` shown events, and of the silences due before the last of them. `log`: the
    live events up to the last one shown or more, in the scene's order and with the scene's customers."""
    horizon_ms, activity = layout.spec.horizon_ms, Activity.of(scene.live)
    until_ms = int(log.time[scene.first + sent - 1]) if sent else scene.opens_ms
    parts: list[tuple[I8, I8, I8]] = []
    for points in replay(layout, log, int(log.time.max()) + 1):
        in_show = (points.event >= scene.first) & (points.event < scene.first + sent)
        passed = points.of_time & (points.as_of >= scene.opens_ms) & (points.as_of < until_ms)
        shown = points.scored & (passed | (in_show & ~points.of_time))
        parts.append(
            (points.customer[shown].astype(np.int64), points.as_of[shown], points.rows["last_seen"][shown])
        )
    customer, as_of, last = (np.concatenate(column) for column in zip(*parts, strict=True))
    churned = activity.went_silent(customer.astype(np.int32), as_of, horizon_ms) == 1
    return Asked(customer, as_of, last, churned)


def judge(
    scene: Scene, points: Asked, episodes: Sequence[Episode], layout: Layout, shown_until_ms: int
) -> Verdict:
    """The figures of a show that ended at `shown_until_ms`."""
    horizon_ms, activity = layout.spec.horizon_ms, Activity.of(scene.live)
    customer = np.array([e.customer for e in episodes], np.int32)
    as_of = np.array([e.opened for e in episodes], np.int64)
    right = activity.went_silent(customer, as_of, horizon_ms) == 1
    lead = (activity.last_ms(customer, as_of) + horizon_ms - as_of)[right] / DAY_MS
    ours = Rule(len(episodes), _mean(right), _median(lead))
    gaps = np.array(layout.spec.silences_ms, np.int64)
    recency, between = by_recency(points, gaps, len(episodes))
    known, silences = _recall(scene, activity, points, episodes, horizon_ms, shown_until_ms)
    return Verdict(
        ours,
        recency,
        between,
        _mean(points.churned),
        len(points.as_of),
        known / silences if silences else np.nan,
        silences,
        _by_silence_alone(scene, episodes, shown_until_ms),
    )


def _by_silence_alone(scene: Scene, episodes: Sequence[Episode], until_ms: int) -> int:
    events = scene.live.events[scene.live.events["time_ms"] <= until_ms]
    last_ms = np.zeros(len(scene.live.customers), np.int64)
    np.maximum.at(last_ms, events["customer"], events["time_ms"])
    return sum(int(last_ms[each.customer]) < each.opened for each in episodes)


def by_recency(points: Asked, gaps: I8, alerts: int) -> tuple[Rule, tuple[float, float]]:
    """Alerting at the first decision point of a silence that is at least so long, for `alerts` alerts in all.

    The service is asked at scheduled gaps only, so the threshold falls between two of them: a share of the silences is
    taken at the one and the others at the next, which gives the number exactly, in expectation. Where even the longest
    gap gives more alerts than that, some of those are drawn at random.
    """
    horizon_ms = int(gaps[-1])
    levels = []
    for gap in gaps:
        long = points.as_of - points.last >= gap
        order = np.lexsort((points.as_of, points.last, points.customer))
        order = order[long[order]]
        new = np.ones(len(order), np.bool_)
        new[1:] = (np.diff(points.customer[order]) != 0) | (np.diff(points.last[order]) != 0)
        levels.append(order[new])
    counts = [len(level) for level in levels]
    at = next((k for k in range(len(gaps) - 1) if counts[k + 1] < alerts), len(gaps) - 1)
    after = min(at + 1, len(gaps) - 1)
    if at == after or counts[at] <= alerts:
        shares = {at: min(1.0, alerts / counts[at]) if counts[at] else 0.0}
        after = at
    else:
        share = (alerts - counts[after]) / (counts[at] - counts[after])
        shares = {at: share, after: 1 - share}
    right = sum(share * float(points.churned[levels[k]].sum()) for k, share in shares.items())
    total = sum(share * counts[k] for k, share in shares.items())
    leads = [(points.last + horizon_ms - points.as_of)[levels[k]][points.churned[levels[k]]] for k in shares]
    weights = [np.full(len(lead), share) for lead, share in zip(leads, shares.values(), strict=True)]
    lead = _weighted_median(np.concatenate(leads) / DAY_MS, np.concatenate(weights))
    return Rule(total, right / total if total else np.nan, lead), (gaps[at] / DAY_MS, gaps[after] / DAY_MS)


def _recall(
    scene: Scene,
    activity: Activity,
    points: Asked,
    episodes: Sequence[Episode],
    horizon_ms: int,
    until_ms: int,
) -> tuple[int, int]:
    """(silences that an episode knew of in time, silences)."""
    customers, lasts = activity.silences(horizon_ms)
    inside = (lasts >= scene.opens_ms) & (lasts + horizon_ms <= until_ms)
    closings = scene.live.events[scene.live.events["type"] == ACCOUNT_CLOSED]
    closed = dict(zip(closings["customer"].tolist(), closings["time_ms"].tolist(), strict=True))
    spoken_of = set(zip(points.customer.tolist(), points.last.tolist(), strict=True))
    by_customer: dict[int, list[Episode]] = {}
    for episode in episodes:
        by_customer.setdefault(episode.customer, []).append(episode)
    known = total = 0
    for customer, last in zip(customers[inside].tolist(), lasts[inside].tolist(), strict=True):
        said_goodbye = last <= closed.get(customer, -1) <= last + horizon_ms
        if said_goodbye or (customer, last) not in spoken_of:
            continue
        total += 1
        known += any(
            e.opened < last + horizon_ms and (e.closed is None or e.closed > last)
            for e in by_customer.get(customer, ())
        )
    return known, total


def _mean(values: NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else np.nan


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else np.nan


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    if not weights.sum():
        return np.nan
    order = np.argsort(values)
    passed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(passed, passed[-1] / 2)])
