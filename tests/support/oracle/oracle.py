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
from itertools import pairwise
from typing import NamedTuple

from ebbtide.featurestore.spec import Kind, Spec

EVENT, SILENCE, TERMINAL, RESET = range(4)
TOMBSTONE = 255
DAY = 86_400_000
TILE_MAX = 65_535
ENTRY_MAX = 65_535


class Event(NamedTuple):
    """kind: index into the spec's kinds, or TOMBSTONE; time: ms; value: NaN where missing; id: 0 where none."""

    kind: int
    time: int
    value: float = math.nan
    id: int = 0


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
        kept: list[Event] = []
        for event in self.activity:
            if all(event.time >= before.time for before in kept):
                kept.append(event)
        return kept

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
    def anchor(self) -> int:
        """When life was last renewed: by activity, or by any event before the first activity."""
        return self.last_seen or max((event.time for event in self.events), default=0)

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
            and as_of - self.last_seen <= (rule.max_silence_ms or self.spec.memory_ms)
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

    def sum(self, kind: int, window: int, as_of: int) -> float:
        tiles = self.in_window(kind, window, as_of).values()
        return math.fsum(event.value for events in tiles for event in events if not math.isnan(event.value))

    def last_value(self, kind: int) -> Event | None:
        """The kind's latest event that has a value; of several at one time the one with the later offset.

        A customer attribute is dated by its values. For the other kinds the record dates the kind's events, not its
        values: there an event counts when it is no older than any of its kind before it, with a value or not.
        """
        last, newest, dated = None, 0, self.spec.kinds[kind].role == "attribute"
        for event in self.of(kind):
            if dated and math.isnan(event.value):
                continue
            if event.time >= newest:
                newest = event.time
                last = last if math.isnan(event.value) else event
        return last

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
        for event in self.in_order:
            value = 0.0 if math.isnan(event.value) else event.value
            gap = 0 if before is None else event.time - before.time
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

    def remembers(self, event: Event) -> bool:
        """Is its id among the last `dedupe` ids of the customer?"""
        ids = [before.id for before in self.events if before.id]
        return bool(event.id) and event.id in ids[len(ids) - min(self.spec.dedupe, len(ids)) :]

    def next_silence(self) -> int | None:
        """When the next silence is due, if nothing comes before it."""
        if not self.activity or self.terminated:
            return None
        dues = [self.last_seen + gap for gap in self.spec.silences_ms]
        return min((due for due in dues if due > self.clock), default=None)


class Point(NamedTuple):
    """A decision point: `life` as it was then; `event`: index into the list of events, -1 when time alone did it."""

    as_of: int
    cause: int
    event: int
    life: Life


def walk(spec: Spec, events: list[Event], until: int = 0) -> tuple[list[Point], Life]:
    """Every decision point of a customer, and the life that is left; at the end the silences due before `until`."""
    life, points = Life(spec), []
    for index, event in enumerate(events):
        if event.kind == TOMBSTONE:
            if life.events:
                points.append(Point(life.clock, RESET, index, life))
            life = Life(spec)
            continue
        if life.remembers(event):
            continue
        life, silences = _silences(life, event.time, index)
        points += silences
        if life.anchor and event.time - life.anchor > spec.memory_ms and event.time > life.clock:
            points.append(Point(life.clock, RESET, index, life))
            life = Life(spec)
        life, point = _fold(life, event, index)
        points += point
    life, silences = _silences(life, until, -1)
    return points + silences, life


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


def _silences(life: Life, until: int, index: int) -> tuple[Life, list[Point]]:
    points = []
    while (due := life.next_silence()) is not None and due < until:
        life = replace(life, clock=due)
        if life.eligible(due):
            life = replace(life, decided_at=due)
            points.append(Point(due, SILENCE, index, life))
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


def features(life: Life, as_of: int) -> dict[str, float]:
    """Every feature of `featurestore/record/features.py` by name, in natural units."""
    spec, out = life.spec, {}
    gaps, seen = life.log_gaps, bool(life.activity)
    mean = sum(gaps) / len(gaps) if gaps else 0.0
    usual = math.expm1(mean) * 1000 / DAY if gaps else 0.0
    silence = (as_of - life.last_seen) / DAY if seen else 0.0
    out["silence"] = silence
    out["tenure"] = (as_of - life.first_seen) / DAY if seen else 0.0
    out["activity_total"] = float(len(life.activity))
    out["gap_usual"] = usual
    out["gap_spread"] = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) if gaps else 0.0
    out["gap_missing"] = float(not gaps)
    out["silence_ratio"] = silence / usual if gaps else 0.0
    for days in spec.days_active:
        out[f"active_days_{days}d"] = float(life.days_active(days, as_of))
    for k, kind in enumerate(spec.kinds):
        if kind.role in ("activity", "contact"):
            out |= _counted(life, k, kind, as_of)
        elif kind.role == "attribute":
            out |= _attribute(life, k, kind, as_of)
    return out


def _counted(life: Life, k: int, kind: Kind, as_of: int) -> dict[str, float]:
    out = {}
    for w, window in enumerate(life.spec.windows):
        count, total = life.count(k, w, as_of), life.sum(k, w, as_of)
        out[f"{kind.name}_count_{window.words}"] = float(count)
        if "sum" in kind.aggregate:
            out[f"{kind.name}_sum_{window.words}"] = total
        if "mean" in kind.aggregate:
            out[f"{kind.name}_mean_{window.words}"] = total / count if count else 0.0
    if "last" in kind.aggregate:
        last = life.last_value(k)
        out[f"{kind.name}_last"] = last.value if last else 0.0
    latest = max((event.time for event in life.of(k)), default=0)
    out[f"{kind.name}_since"] = (as_of - latest) / DAY if latest else 0.0
    out[f"{kind.name}_never"] = float(not latest)
    for half_life in life.spec.half_lives_ms if kind.decay else ():
        out[f"{kind.name}_decay_{_words(half_life)}"] = life.decay(k, half_life, as_of)
    return out


def _attribute(life: Life, k: int, kind: Kind, as_of: int) -> dict[str, float]:
    last = life.last_value(k)
    value = last.value if last else math.nan
    out = {f"{kind.name}_missing": float(last is None)}
    if kind.attribute == "category":
        for code, category in enumerate(kind.categories, start=1):
            out[f"{kind.name}_is_{category}"] = float(value == code)
    elif kind.attribute == "date":
        out[f"{kind.name}_until"] = value - as_of / DAY if last else 0.0
    else:
        out[kind.name] = value if last else 0.0
    return out


def _words(ms: int) -> str:
    """A duration as features are named by it: whole weeks from eight on, else the longest whole unit."""
    for unit, size in (("w", 7 * DAY), ("d", DAY), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if ms % size == 0 and (unit != "w" or ms >= 8 * size):
            return f"{ms // size}{unit}"
    return f"{ms}ms"
