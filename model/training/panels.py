"""Whose decisions a threshold is chosen by: customers drawn at random, as many as a bound on decision points allows.

A share of few customers is no quantile (7 % of 228 are 16 of them), and each point costs its features and its record:
so the points that a customer brings are counted before anything is walked through. The count is the schedule's, not
the fold's: events `score_every` apart, and silences that no next event forestalls.
"""

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.target import target_events

PANEL_MIN = 400
"""Customers of a panel at least, if there are so many."""
POINTS_MIN = 30_000
"""A panel's bound on decision points at least: 45 MB, however few examples a training is told to learn from."""

I8 = NDArray[np.int64]


def panel_of(
    spec: Spec, log: EventBatch, span: tuple[int, int], points_max: int, seed: int
) -> NDArray[np.bool_]:
    """bool[m]: customers in random order, as many as bring some `points_max` decision points in `span`, ms UTC."""
    order = np.random.default_rng(seed).permutation(len(log.customers))
    brought = np.cumsum(points_in(spec, log, span)[order])
    panel = np.zeros(len(order), np.bool_)
    panel[order[: max(PANEL_MIN, int(np.searchsorted(brought, points_max, side="right")))]] = True
    return panel


def points_in(spec: Spec, log: EventBatch, span: tuple[int, int]) -> I8:
    """int64[m]: how many decision points each customer brings in `span`, roughly: eligibility, kinds that are always
    scored and points relative to the first activity are left out of account."""
    start, end = span
    gaps = np.array(spec.silences_ms, np.int64)
    near = log.take((log.time >= start - gaps[-1]) & (log.time < end))
    active = target_events(spec.kinds, None).of(near.kind, near.values)
    arming = spec.target_events.of(near.kind, near.values) if spec.arms_apart else active
    customer, time, new = _ordered(near, active & (near.time >= start))
    new[1:] |= np.diff(time // max(spec.score_every_ms, 1)) != 0
    points = np.bincount(customer[new], minlength=len(log.customers)).astype(np.int64)
    customer, time, new = _ordered(near, arming)
    following = np.append(np.where(new[1:], end, time[1:]), end)[: len(time)]
    silences = np.searchsorted(gaps, following - time) - np.searchsorted(gaps, start - time)
    np.add.at(points, customer, np.maximum(silences, 0))
    return points


def _ordered(log: EventBatch, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int32], I8, NDArray[np.bool_]]:
    """(customer, time, is the customer's first) of the chosen events, by customer, then time."""
    customer, time = log.customer[chosen], log.time[chosen]
    order = np.lexsort((time, customer))
    customer, time = customer[order], time[order]
    return customer, time, np.diff(customer, prepend=-1) != 0
