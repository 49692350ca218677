"""Alerts against what followed, which the log knows and the service did not. One episode is one alert."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.examples.dataset import History
from ebbtide.model.examples.labels import CHURNED, NEVER, STAYED


@dataclass(frozen=True, slots=True)
class Alerting:
    """Opened episodes: how many, how many of those with a known outcome were right, the lead of the right ones, and of
    how many customers no event followed in the log, so that only a timer could tell."""

    opened: int
    known: int
    right: int
    lead_days_p50: float
    by_silence_alone: int = 0

    @property
    def precision(self) -> float:
        return self.right / self.known if self.known else float("nan")


def alerting_of(
    history: History, customer: NDArray[np.int32], as_of: NDArray[np.int64], target: int = 0
) -> Alerting:
    """Of episodes of these customers that opened then, ms UTC, for one target, by its index. One was right if the
    customer was lost within the horizon; its lead is how long before that it was said."""
    if not len(customer):
        return Alerting(0, 0, 0, float("nan"))
    label = history.labeller.label(customer, as_of, target)
    right = label == CHURNED
    known = right | (label == STAYED)
    lead = lost_ms(history, customer[right], as_of[right], target) - as_of[right]
    p50 = float(np.median(lead)) / DAY_MS if right.any() else float("nan")
    last_ms = np.zeros(len(history.log.customers), np.int64)
    np.maximum.at(last_ms, history.log.customer, history.log.time)
    alone = int((last_ms[customer] < as_of).sum())
    return Alerting(len(customer), int(known.sum()), int(right.sum()), p50, alone)


def lost_ms(
    history: History, customer: NDArray[np.int32], as_of: NDArray[np.int64], target: int = 0
) -> NDArray[np.int64]:
    """int64[n], ms UTC: when each customer counts as lost: a horizon after the target's latest event at or before
    `as_of`, or, where the event itself is churn, when it comes. Of a further target there may have been no event yet:
    then a horizon after `as_of`."""
    spec = history.layout.spec.only_target(target)
    if not spec.churn_is_absence:
        return history.labeller.events_of(target).after(customer, as_of)
    who, when = _target_events(history, target)
    first, last = np.searchsorted(who, customer, "left"), np.searchsorted(who, customer, "right")
    return spec.horizon_ms + np.array(
        [
            when[a + at - 1] if (at := np.searchsorted(when[a:b], t, "right")) else t
            for a, b, t in zip(first, last, as_of, strict=True)
        ],
        np.int64,
    )


def losses(history: History, from_ms: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Customers who were lost from `from_ms` on, by the target's definition and not in so many words: int32[n], since
    when an alert about it makes sense, and when they were lost, int64[n] ms UTC."""
    who, when = _target_events(history)
    horizon_ms = history.layout.spec.horizon_ms
    if not history.layout.spec.churn_is_absence:
        chosen = (when >= from_ms) & (when < history.known_until_ms)
        return who[chosen], when[chosen] - horizon_ms, when[chosen]
    chosen = (when >= from_ms) & (history.labeller.label(who, when) == CHURNED)
    # Of several events at one time, one silence begins.
    began = np.unique(np.stack([who[chosen].astype(np.int64), when[chosen]], axis=1), axis=0)
    return began[:, 0].astype(np.int32), began[:, 1], began[:, 1] + horizon_ms


def foreseen(
    customer: NDArray[np.int32],
    since: NDArray[np.int64],
    lost: NDArray[np.int64],
    episodes: dict[int, list[tuple[int, int]]],
) -> NDArray[np.bool_]:
    """bool[n]: did an open episode know of it before the customer was lost? `episodes`: by customer, when each opened
    and when it was over (`NEVER`: not yet)."""
    return np.array(
        [
            any(opened < end and closed > begin for opened, closed in episodes.get(who, ()))
            for who, begin, end in zip(customer.tolist(), since.tolist(), lost.tolist(), strict=True)
        ],
        np.bool_,
    )


STILL_OPEN = int(NEVER)


def _target_events(history: History, target: int = 0) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Customers and times, by customer, then time."""
    log = history.log
    ours = history.layout.spec.only_target(target).target_events.of(log.kind, log.values)
    who, when = log.customer[ours], log.time[ours]
    order = np.lexsort((when, who))
    return who[order], when[order]
