"""Which points of a log are kept: a bounded sample of the labelled ones, and all decisions of a few customers.

    replay ─points─▶ labelled?  ─▶ Sample of decisions     ┐
                                ─▶ Sample of snapshots     ├─▶ Gathered        one walk through the log for all of them
                     in a span? ─▶ points of its panel     ┘

It knows records and times, no model: features and labels are put to the points afterwards, by `dataset.py`. So a
process that only walks through a log does without TensorFlow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.parts.part import Part
from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import SNAPSHOT, replay
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS

SNAPSHOTS_A_HORIZON = 8
"""Dates nearer than an eighth of the horizon find nearly the same customers in nearly the same state."""


class Sample:
    """At most `k` of all points offered: those of smallest hash of (customer, as_of, cause, seed)."""

    def __init__(self, layout: Layout, k: int, seed: int) -> None:
        self._layout, self._k, self._seed = layout, max(k, 1), seed
        self._keys = [np.zeros(0, np.uint64)]
        self._parts: list[Points] = []
        self._below = np.uint64(np.iinfo(np.uint64).max)
        self.offered = 0

    def offer(self, points: Points, chosen: NDArray[np.bool_]) -> None:
        """Offer the chosen ones, bool[m]. Only what can still be among the k smallest is copied."""
        keys = _hash(points, self._seed)
        kept = np.flatnonzero(chosen & (keys <= self._below))
        self.offered += int(chosen.sum())
        self._keys.append(keys[kept])
        self._parts.append(points.take(kept))
        if sum(map(len, self._keys)) > 2 * self._k:
            self._shrink()

    def points(self) -> Points:
        """The sample, in order of customer, then time."""
        self._shrink()
        return _ordered(self._layout, self._parts)

    def _shrink(self) -> None:
        keys, joined = np.concatenate(self._keys), Points.joined(self._layout, self._parts)
        if len(keys) > self._k:
            # In the order in which they were offered: points of a customer that nothing but their records tells apart
            # (two events of one millisecond) stay in the order in which they were decided, however the log was cut.
            smallest = np.sort(np.argsort(keys, kind="stable")[: self._k])
            keys, joined = keys[smallest], joined.take(smallest)
            self._below = keys.max()
        self._keys, self._parts = [keys], [joined]


@dataclass(frozen=True, slots=True)
class Panel:
    """Some customers, bool[m] over the log's, of whom every decision point in [start_ms, end_ms) is kept."""

    start_ms: int
    end_ms: int
    customers: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to keep of a log that is known up to, not including, `known_until_ms`.

    snapshots: dates whose snapshots are examples     examples_max: half of them decision points, half snapshots
    """

    known_until_ms: int
    snapshots: tuple[int, ...]
    examples_max: int
    seed: int
    panels: tuple[Panel, ...] = ()


@dataclass(frozen=True, slots=True)
class Gathered:
    """The points kept, each in order of customer, then time. decisions, snapshots: labelled. panels: of each asked."""

    decisions: Points
    snapshots: Points
    panels: tuple[Points, ...]


def gather(
    layout: Layout, part: Part, wanted: Wanted, progress: Callable[[float], None] = lambda _: None
) -> Gathered:
    """Walk through a log once and keep what is wanted. `progress`: share done, 0 to 1."""
    horizon = layout.spec.horizon_ms
    first = int(part.log.time.min(initial=wanted.known_until_ms))
    # A point whose horizon is not over has no label: the walk may end where the last labelled points lie.
    until = max([wanted.known_until_ms - horizon, *(panel.end_ms for panel in wanted.panels)])
    decisions, snapshots = (Sample(layout, wanted.examples_max // 2, wanted.seed) for _ in range(2))
    panels: list[list[Points]] = [[] for _ in wanted.panels]
    for found in replay(layout, part.log, until, snapshots=wanted.snapshots, reached=part.reached):
        points = replace(found, customer=part.customers[found.customer])
        labelled = points.as_of + horizon < wanted.known_until_ms
        decisions.offer(points, points.scored & labelled)
        snapshots.offer(points, (points.cause == SNAPSHOT) & labelled)
        for panel, kept in zip(wanted.panels, panels, strict=True):
            inside = (points.as_of >= panel.start_ms) & (points.as_of < panel.end_ms)
            kept.append(points.take(points.scored & inside & panel.customers[points.customer]))
        if len(points):
            progress(min(1.0, (int(points.as_of.max()) - first) / max(until - first, 1)))
    return Gathered(decisions.points(), snapshots.points(), tuple(_ordered(layout, kept) for kept in panels))


def merged(layout: Layout, parts: Sequence[Gathered], wanted: Wanted) -> Gathered:
    """What `gather` finds in the whole log, of what it found in parts with no customer in two of them."""

    def sample(offers: Sequence[Points]) -> Points:
        """The k smallest of all are among the k smallest of each."""
        found = Sample(layout, wanted.examples_max // 2, wanted.seed)
        for points in offers:
            found.offer(points, np.ones(len(points), np.bool_))
        return found.points()

    return Gathered(
        sample([part.decisions for part in parts]),
        sample([part.snapshots for part in parts]),
        tuple(_ordered(layout, kept) for kept in zip(*(part.panels for part in parts), strict=True)),
    )


def snapshot_dates(
    spec: Spec, log: EventBatch, until_ms: int, every_ms: int | None = None
) -> tuple[int, ...]:
    """Dates before `until_ms` whose snapshots are examples; whole days where `every_ms` is at least a day.

    `every_ms`: default an eighth of the horizon, rounded down to whole days.
    """
    every = every_ms or spec.horizon_ms // SNAPSHOTS_A_HORIZON
    grain = DAY_MS if every >= DAY_MS else 1
    every = max(every // grain * grain, 1)
    first = int(log.time.min()) // grain * grain
    return tuple(range(first + every, until_ms, every))


def _ordered(layout: Layout, parts: Sequence[Points]) -> Points:
    """In order of customer, then time; points of one time in the order in which they were decided."""
    points = Points.joined(layout, parts)
    return points.take(np.lexsort((points.as_of, points.customer)))


def _hash(points: Points, seed: int) -> NDArray[np.uint64]:
    """uint64[n]: splitmix64 (Steele, Lea & Flood 2014) of what identifies a point."""
    mixed: NDArray[np.uint64] = points.as_of.astype(np.uint64) + (
        points.customer.astype(np.uint64) << np.uint64(36)
    )
    salt = np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed ^= (points.cause.astype(np.uint64) << np.uint64(60)) + salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed
