"""What the fold and the features should say of one customer, written from their definitions, slowly and apart.

It takes one customer's events as a plain list in offset order and, for every question, reads that whole list again:
O(n²), no NumPy, no state but the list and two times. It shares no code with `featurestore/record/fold.py` nor with
`model/graph/features.py`; of the spec it reads the declared durations and kinds only. So where they agree, two readings
of the design agree, not one program with itself.

A *life* is what has not been forgotten: the events since the last tombstone or reset, `clock` (the latest event time
folded or silence taken) and `decided_at` (the last decision point). Everything else is a question asked of the list.
"""

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.target import Target

EVENT, SILENCE, TERMINAL, RESET, RETURNED, EXPIRED = range(6)
TOMBSTONE = 255
DAY = 86_400_000
GRACE = 7 * DAY
TILE_MAX = 65_535
ENTRY_MAX = 65_535


class Event(NamedTuple):
    """kind: index into the spec's kinds, or TOMBSTONE; time: ms; value: NaN where missing; id: 0 where none; more: the
    values behind the first; offset: where it lies in its topic, -1 where it came from a file."""

    kind: int
    time: int
    value: float = math.nan
    id: int = 0
    more: tuple[float, ...] = ()
    offset: int = -1

    @property
    def values(self) -> tuple[float, ...]:
        return (self.value, *self.more)


class Entry(NamedTuple):
    """One entry of the sequence: kind, events merged, sum of their values, seconds since the activity before."""

    kind: int
    events: int
    value: float
    gap_s: float


@dataclass(frozen=True)
class Life:
    """What is known of a customer: events folded and not forgotten, in offset order."""

    spec: Spec
    events: tuple[Event, ...] = ()
    clock: int = 0
    decided_at: int = 0
    late: int = 0

    # ---- times

    def role(self, event: Event) -> str:
        return self.spec.kinds[event.kind].role

    @property
    def activity(self) -> list[Event]:
        """Every activity event, late ones too."""
        return [event for event in self.events if self.role(event) == "activity"]

    @property
    def in_order(self) -> list[Event]:
        """Activity no older than any activity before it."""
        return _never_back(self.activity)

    @property
    def first_seen(self) -> int:
        """Since when they are a customer: what we do to them before they do anything is no life of theirs.

        The earliest activity, but an event older than `memory` when it came, seen from the latest before it, is no
        beginning, unless it is the first activity at all.
        """
        first = latest = 0
        for event in self.events:
            if self.role(event) == "activity":
                forgotten = latest - event.time > self.spec.memory_ms
                if first == 0 or (event.time < first and not forgotten):
                    first = event.time
            latest = max(latest, event.time)
        return first

    @property
    def last_seen(self) -> int:
        return max((event.time for event in self.activity), default=0)

    @property
    def armed_at(self) -> int:
        """From when silence counts: the last of the target's events if there is such a target, else of activity."""
        return max((event.time for event in self.events if self.arms(event)), default=0)

    def arms(self, event: Event) -> bool:
        if not self.spec.targets or self.spec.targets[0].churn_when == "present":
            return self.role(event) == "activity"
        return is_target(self.spec, event)

    def last_of(self, target: Target) -> int:
        """When the last event of a further target came, 0 for never."""
        return max((event.time for event in self.events if is_one_of(self.spec, target, event)), default=0)

    @property
    def anchor(self) -> int:
        """When life was last renewed: by activity or the target, or by any event before the first of these."""
        return max(self.last_seen, self.armed_at) or max((event.time for event in self.events), default=0)

    @property
    def last_offset(self) -> int:
        """Where the activity lies by which they were last seen; of several at one time the last that came."""
        return next((event.offset for event in reversed(self.activity) if event.time == self.last_seen), 0)

    @property
    def expiry(self) -> int:
        """When a record that nothing renews is deleted: `memory` and a week after; never before it was looked at."""
        return max(self.anchor + self.spec.memory_ms + GRACE, self.clock)

    @property
    def terminated(self) -> bool:
        """Has the customer left, and not been active since? Both count only when no older than the last activity."""
        left, seen = False, 0
        for event in self.events:
            if self.role(event) == "activity" and event.time >= seen:
                left, seen = False, event.time
            elif self.role(event) == "terminal" and event.time >= seen:
                left = True
        return left

    def eligible(self, as_of: int) -> bool:
        rule = self.spec.eligibility
        return (
            not self.terminated
            and len(self.activity) >= max(1, rule.min_events)
            and as_of - self.first_seen >= rule.min_tenure_ms
            and (rule.max_tenure_ms is None or as_of - self.first_seen <= rule.max_tenure_ms)
            and self.armed_at > 0
            and as_of - self.armed_at <= (rule.max_silence_ms or self.spec.memory_ms)
        )

    # ---- figures as of a time

    def of(self, kind: int) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    def in_window(self, kind: int, window: int, as_of: int) -> dict[int, list[Event]]:
        """The kind's events in the window, by tile: n tiles, the one that holds `as_of` the newest."""
        hop, n = self.spec.windows[window].hop_ms, self.spec.windows[window].tiles
        newest = as_of // hop
        return {
            tile: [event for event in self.of(kind) if event.time // hop == tile]
            for tile in range(newest - n + 1, newest + 1)
        }

    def count(self, kind: int, window: int, as_of: int) -> int:
        return sum(min(TILE_MAX, len(events)) for events in self.in_window(kind, window, as_of).values())

    def windowed(self, kind: int, column: int, window: int, as_of: int) -> list[list[float]]:
        """The values in the window, NaN left out, a list a tile, in offset order."""
        tiles = self.in_window(kind, window, as_of).values()
        return [[e.values[column] for e in events if not math.isnan(e.values[column])] for events in tiles]

    def sum(self, kind: int, window: int, as_of: int, column: int = 0) -> float:
        return math.fsum(value for tile in self.windowed(kind, column, window, as_of) for value in tile)

    def largest(self, kind: int, window: int, as_of: int, column: int) -> float | None:
        return max((v for tile in self.windowed(kind, column, window, as_of) for v in tile), default=None)

    def distinct(self, kind: int, window: int, as_of: int, column: int) -> set[float]:
        """The different values themselves."""
        return {value for tile in self.windowed(kind, column, window, as_of) for value in tile}

    def of_category(self, kind: int, window: int, as_of: int, column: int, code: int) -> int:
        tiles = self.windowed(kind, column, window, as_of)
        return sum(min(TILE_MAX, sum(value == code for value in tile)) for tile in tiles)

    def last_value(self, kind: int, column: int = 0) -> float | None:
        """The value of the kind's latest event that has one; of several at one time the one with the later offset.

        A customer attribute is dated by its values. For the other kinds the record dates the kind's events, not its
        values: there an event counts when it is no older than any of its kind before it, with a value or not.
        """
        last, newest, dated = None, 0, self.spec.kinds[kind].role == "attribute"
        for event in self.of(kind):
            value = event.values[column]
            if dated and math.isnan(value):
                continue
            if event.time >= newest:
                newest = event.time
                last = last if math.isnan(value) else value
        return last

    @property
    def week(self) -> list[int]:
        """Activities by part of the week; all are halved, fractions dropped, when one would pass 255."""
        week = self.spec.week
        assert week is not None
        counts = [0] * week.buckets
        for event in self.activity:
            part = int(hours_into_week(event.time, week.zone) // (168 / week.buckets))
            if counts[part] == 255:
                counts = [count // 2 for count in counts]
            counts[part] += 1
        return counts

    def decay(self, kind: int, half_life: int, as_of: int) -> float:
        return math.fsum(2.0 ** (-(as_of - event.time) / half_life) for event in self.of(kind))

    def days_active(self, days: int, as_of: int) -> int:
        today = as_of // DAY
        return len(
            {event.time // DAY for event in self.activity if today - days < event.time // DAY <= today}
        )

    @property
    def log_gaps(self) -> list[float]:
        """log(1 + seconds) of the gaps between activities that are longer than `coalesce`."""
        times = [event.time for event in self.in_order]
        gaps = [b - a for a, b in pairwise(times)]
        return [math.log1p(gap / 1000) for gap in gaps if gap > self.spec.sequence.coalesce_ms]

    @property
    def sequence(self) -> list[Entry]:
        """The last entries of the sequence, oldest first."""
        entries: list[Entry] = []
        before: Event | None = None
        order = self.in_order
        for last, event in zip([None, *order], order, strict=False):
            if not self.spec.kinds[event.kind].features:
                continue
            value = self._listed_value(event)
            gap = 0 if last is None else event.time - last.time
            repeat = (
                before is not None and before.kind == event.kind and gap <= self.spec.sequence.coalesce_ms
            )
            if repeat and entries[-1].events < ENTRY_MAX:
                merged = entries[-1]
                entries[-1] = merged._replace(events=merged.events + 1, value=merged.value + value)
            else:
                entries.append(Entry(event.kind, 1, value, gap / 1000))
            before = event
        return entries[-self.spec.sequence.length :]

    def _listed_value(self, event: Event) -> float:
        """The first of an event's values that is a number."""
        readings = self.spec.kinds[event.kind].readings
        numbers = [v for v, reading in zip(event.values, readings, strict=False) if reading.reads == "number"]
        return numbers[0] if numbers and not math.isnan(numbers[0]) else 0.0

    def remembers(self, event: Event) -> bool:
        """Is its id among the last `dedupe` ids of the customer?"""
        ids = [before.id for before in self.events if before.id]
        return bool(event.id) and event.id in ids[len(ids) - min(self.spec.dedupe, len(ids)) :]

    def next_silence(self) -> int | None:
        """When the next silence is due, if nothing comes before it."""
        if not self.activity or self.terminated:
            return None
        dues = [self.armed_at + gap for gap in self.spec.silences_ms if self.armed_at]
        dues += [self.first_seen + gap for gap in self.spec.score_after_first_ms]
        armed = [self.last_of(each) for each in self.spec.targets[1:] if each.churn_when == "absent"]
        dues += [last + gap for last in armed if last for gap in self.spec.silences_ms]
        return min((due for due in dues if due > self.clock), default=None)


def _never_back(events: list[Event]) -> list[Event]:
    """Those no older than any before them."""
    kept: list[Event] = []
    for event in events:
        if all(event.time >= before.time for before in kept):
            kept.append(event)
    return kept


def is_target(spec: Spec, event: Event) -> bool:
    """Is the event one of those that the spec's target names?"""
    if event.kind == TOMBSTONE:
        return False
    kind = spec.kinds[event.kind]
    if not spec.targets:
        return kind.role == "activity"
    return is_one_of(spec, spec.targets[0], event)


def is_one_of(spec: Spec, target: Target, event: Event) -> bool:
    """Is the event one of those that this target names?"""
    if event.kind == TOMBSTONE:
        return False
    kind = spec.kinds[event.kind]
    if kind.name not in target.kinds or target.where is None:
        return kind.name in target.kinds
    names = [reading.name for reading in kind.readings]
    column = names.index(target.where.value) if target.where.value in names else 0
    value = event.values[column]
    if target.where.category is not None:
        listed = kind.readings[column].categories
        return not math.isnan(value) and value >= 1 and listed[int(value) - 1] == target.where.category
    above, below = target.where.above, target.where.below
    return not math.isnan(value) and (above is None or value > above) and (below is None or value < below)


def hours_into_week(ms: int, zone: str) -> float:
    """Hours since Monday 0:00 of the zone's own clock."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    local = moment.astimezone(ZoneInfo(zone))
    return (
        local.weekday() * 24
        + local.hour
        + local.minute / 60
        + local.second / 3600
        + local.microsecond / 3.6e9
    )


def local_clock(ms: int, zone: str) -> datetime:
    """What a clock on the wall there shows; from 2100 on what it would show if it were never changed again."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    offset = min(moment, datetime(2100, 1, 1, tzinfo=UTC)).astimezone(ZoneInfo(zone)).utcoffset()
    assert offset is not None
    return moment.replace(tzinfo=None) + offset


class Point(NamedTuple):
    """A decision point: `life` as it was then; `event`: index into the list of events, -1 when time alone did it."""

    as_of: int
    cause: int
    event: int
    life: Life


def walk(spec: Spec, events: list[Event], until: int = 0) -> tuple[list[Point], Life]:
    """Every point of a customer, and the life that is left; at the end what is due before `until`."""
    life, points = Life(spec), []
    for index, event in enumerate(events):
        if event.kind == TOMBSTONE:
            if life.events:
                points.append(Point(life.clock, RESET, index, life))
            life = Life(spec)
            continue
        if life.remembers(event):
            continue
        life, passed = _time_passes(life, event.time, index)
        points += passed
        if life.anchor and event.time - life.anchor > spec.memory_ms and event.time > life.clock:
            points.append(Point(event.time, RETURNED, index, life))
            life = Life(spec)
        life, point = _fold(life, event, index)
        points += point
    life, passed = _time_passes(life, until, -1)
    return points + passed, life


def no_news(spec: Spec, events: list[Event]) -> tuple[int, int, int]:
    """How many of a customer's events were late (older than the longest window behind the latest), duplicates, and
    behind the time that had been looked at, each judged by what was known just before it."""
    late = duplicates = behind = 0
    for index, event in enumerate(events):
        _, life = walk(spec, events[:index])
        if event.kind == TOMBSTONE:
            continue
        if life.remembers(event):
            duplicates += 1
            continue
        latest = max((before.time for before in life.events), default=0)
        late += latest - event.time > spec.longest_window_ms
        behind += event.time < life.clock
    return late, duplicates, behind


def _time_passes(life: Life, until: int, index: int) -> tuple[Life, list[Point]]:
    """The silences before `until`, and the end of a life that nothing renewed."""
    points = []
    while (due := life.next_silence()) is not None and due < min(until, life.expiry):
        life = replace(life, clock=due)
        if life.eligible(due):
            life = replace(life, decided_at=due)
            points.append(Point(due, SILENCE, index, life))
    if life.events and life.expiry < until:
        points.append(Point(life.expiry, EXPIRED, index, life))
        life = Life(life.spec)
    return life, points


def _fold(life: Life, event: Event, index: int) -> tuple[Life, list[Point]]:
    spec, kind = life.spec, life.spec.kinds[event.kind]
    leaves = kind.role == "terminal" and event.time >= life.last_seen
    latest = max((before.time for before in life.events), default=0)
    late = life.late + (latest - event.time > spec.longest_window_ms)
    life = replace(life, events=(*life.events, event), clock=max(life.clock, event.time), late=late)
    points = [Point(life.clock, TERMINAL, index, life)] if leaves else []
    waited = life.clock - life.decided_at >= spec.score_every_ms
    wanted = kind.score == "always" or (kind.score == "auto" and kind.role == "activity" and waited)
    if wanted and life.eligible(life.clock):
        life = replace(life, decided_at=life.clock)
        points.append(Point(life.clock, EVENT, index, life))
    return life, points
