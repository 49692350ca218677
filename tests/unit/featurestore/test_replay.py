"""Replay is the fold, walked from end to end: however it is cut, and whatever dates are asked about on the way."""

from dataclasses import fields

import numpy as np
import pytest

from ebbtide.featurestore.events.event import TOMBSTONE, EventBatch
from ebbtide.featurestore.events.known import known_until
from ebbtide.featurestore.record.fold import EVENT, RESET, SILENCE, TERMINAL, Folder, Points
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import (
    SNAPSHOT,
    arrived_before,
    only,
    reached_ms,
    remembered,
    replay,
    state_at,
)
from ebbtide.featurestore.times.durations import DAY_MS
from tests.support.oracle.histories import START, columns, one, placed, random_history, random_spec
from tests.support.oracle.oracle import Event
from tests.support.seams.models import SPEC

SEEDS = range(8)
VISIT, MAIL, GOODBYE = 0, 2, 3


def joined(parts: list[Points]) -> Points:
    return Points(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Points)))


def in_order(points: Points) -> Points:
    """By customer, each one's points as they were decided."""
    order = np.argsort(points.customer, kind="stable")
    return Points(*(getattr(points, f.name)[order] for f in fields(Points)))


def assert_same(a: Points, b: Points) -> None:
    for f in fields(Points):
        left, right = getattr(a, f.name), getattr(b, f.name)
        assert left.tobytes() == right.tobytes(), f.name


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replay_is_one_fold_and_the_silences_left(seed: int) -> None:
    spec = random_spec(seed)
    layout, log = Layout(spec), columns(random_history(spec, seed, 300))
    until = int(log.time.max()) + 40 * DAY_MS
    rows, first = Folder(layout).fold(layout.empty(len(log.customers)), log)
    _, rest = Folder(layout).elapse(rows, until)
    assert_same(in_order(joined(list(replay(layout, log, until)))), in_order(joined([first, rest])))
    assert state_at(layout, log, until).tobytes() == rows.tobytes()


@pytest.mark.parametrize("seed", SEEDS)
def test_chunks_and_snapshots_change_nothing_else(seed: int) -> None:
    spec = random_spec(seed)
    layout, log = Layout(spec), columns(random_history(spec, seed, 300))
    until = int(log.time.max()) + 3 * DAY_MS
    dates = [int(t) for t in np.linspace(START, until, 7)]
    whole = joined(list(replay(layout, log, until, snapshots=dates)))
    cut = joined(list(replay(layout, log, until, snapshots=dates, chunk=7)))
    decisions = [
        Points(*(getattr(p, f.name)[p.cause != SNAPSHOT] for f in fields(Points))) for p in (whole, cut)
    ]
    assert_same(in_order(decisions[0]), in_order(decisions[1]))
    assert_same(in_order(decisions[0]), in_order(joined(list(replay(layout, log, until)))))
    assert (np.sort(whole.as_of[whole.cause == SNAPSHOT]) == np.sort(cut.as_of[cut.cause == SNAPSHOT])).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_snapshot_holds_each_eligible_customer_once_as_of_then(seed: int) -> None:
    spec = random_spec(seed)
    layout, log = Layout(spec), columns(random_history(spec, seed, 300))
    as_of = int(np.median(log.time))
    points = joined(list(replay(layout, log, as_of + 1, snapshots=[as_of])))
    taken = points.cause == SNAPSHOT
    rows = state_at(layout, log, as_of + 1)
    eligible = Folder(layout).eligible(rows, as_of) & (rows["last_seen"] != 0)
    assert points.customer[taken].tolist() == np.flatnonzero(eligible).tolist()
    assert points.rows[taken].tobytes() == rows[eligible].tobytes()
    assert set(points.as_of[taken]) <= {as_of}
    assert set(points.event[taken]) <= {-1}


def test_what_is_known_as_of_a_time_is_what_had_arrived() -> None:
    """
    arrival   ●        ●         ●           ●
    time      day 1    day 5     day 2       day 6
                       └ "as of day 3" ends here: the third had not arrived
    """
    days = [1, 5, 2, 6]
    log = columns(one(*(Event(VISIT, START + d * DAY_MS) for d in days)))
    assert arrived_before(log, START + 3 * DAY_MS) == 1
    assert arrived_before(log, START + 5 * DAY_MS) == 1
    assert arrived_before(log, START + 5 * DAY_MS + 1) == 3
    assert state_at(Layout(SPEC), log, START + 6 * DAY_MS)["activity_count"].tolist() == [3]


def test_silences_after_the_last_event_are_points_up_to_the_end() -> None:
    log = columns(one(Event(VISIT, START)))
    points = joined(list(replay(Layout(SPEC), log, START + 10 * DAY_MS)))
    expected = [gap for gap in SPEC.silences_ms if gap < 10 * DAY_MS]
    assert points.cause.tolist() == [EVENT] + [SILENCE] * len(expected)
    assert (points.as_of[1:] - START).tolist() == expected
    assert points.event.tolist() == [0] + [-1] * len(expected)


def test_a_leave_is_a_point_and_no_silence_follows() -> None:
    log = columns(one(Event(VISIT, START), Event(GOODBYE, START + 1000)))
    points = joined(list(replay(Layout(SPEC), log, START + 10 * DAY_MS)))
    assert points.cause.tolist() == [EVENT, TERMINAL]


def test_events_are_numbered_in_the_whole_log() -> None:
    log = columns([(f"c{i % 3}", Event(VISIT, START + i * 60_000)) for i in range(20)])
    points = joined(list(replay(Layout(SPEC), log, START + DAY_MS, chunk=6)))
    by_event = points.event[points.event >= 0]
    assert by_event.tolist() == list(range(20))
    assert (log.customer[by_event] == points.customer[points.event >= 0]).all()


def test_a_log_of_some_customers_keeps_their_indices() -> None:
    log = columns(placed([(f"c{i % 3}", Event(VISIT, START + i)) for i in range(9)]))
    part = only(log, np.array([False, True, False]))
    assert part.customers == log.customers
    assert part.customer.tolist() == [1, 1, 1]
    assert part.position.tolist() == [1, 4, 7]


def test_what_was_forgotten_is_not_remembered() -> None:
    """One customer asks to be forgotten twice and comes back; the other's events stay."""
    history = [("a", Event(VISIT, START)), ("b", Event(VISIT, START)), ("a", Event(TOMBSTONE, START + 1))]
    history += [
        ("a", Event(VISIT, START + 2)),
        ("a", Event(TOMBSTONE, START + 3)),
        ("a", Event(VISIT, START + 4)),
    ]
    assert remembered(columns(placed(history)), SPEC).position.tolist() == [1, 5]
    reset = joined(list(replay(Layout(SPEC), columns(history), START + 10)))
    assert (reset.cause == RESET).sum() == 2


def test_an_empty_log_has_no_points() -> None:
    log = columns([])
    assert sum(len(points) for points in replay(Layout(SPEC), log, START, snapshots=[START - 1])) == 0
    assert len(state_at(Layout(SPEC), log, START)) == 0


def visits(times: list[int]) -> EventBatch:
    return columns([(f"c{i % 7}", Event(0, time)) for i, time in enumerate(times)])


@pytest.mark.parametrize("far_days", [2, 33, 730, 100_000])
def test_the_end_is_not_moved_by_one_event_far_ahead(far_days: int) -> None:
    """
    ●●●● ●●●●● ●●●●●● ●●●|                                    ●    the pause is like no other, so it ends at the bar
    """
    times = [START + i * DAY_MS // 20 for i in range(2_000)]
    assert known_until(visits(times).time) == times[-1] + 1
    assert known_until(visits([*times, times[-1] + far_days * DAY_MS]).time) == times[-1] + 1
    assert known_until(visits([times[-1] + far_days * DAY_MS, *times]).time) == times[-1] + 1, (
        "wherever it stands"
    )


def test_the_end_is_the_last_event_where_pauses_are_common() -> None:
    """A shop closed over the week-end, a log of few events, and more events beyond than a thousandth."""
    weeks = [
        START + week * 7 * DAY_MS + day * DAY_MS + i * 60_000
        for week in range(8)
        for day in range(5)
        for i in range(60)
    ]
    assert known_until(visits([*weeks, weeks[-1] + 3 * DAY_MS]).time) == weeks[-1] + 3 * DAY_MS + 1
    few = [START, START + DAY_MS, START + 90 * DAY_MS]
    assert known_until(visits(few).time) == few[-1] + 1
    many = [*weeks, *(weeks[-1] + 40 * DAY_MS + i for i in range(5))]
    assert known_until(visits(many).time) == many[-1] + 1
    assert known_until(visits([]).time) == 0


@pytest.mark.parametrize("seed", range(4))
def test_parts_of_the_customers_see_what_the_whole_log_sees(seed: int) -> None:
    """Late events, and snapshots among them: each part stops where the whole log had arrived, not where itself had."""
    spec = random_spec(seed)
    log = columns(random_history(spec, seed, 400, customers=9))
    layout, end = Layout(spec), int(log.time.max()) + DAY_MS
    dates = tuple(int(t) for t in np.quantile(log.time, [0.2, 0.5, 0.9]))

    whole = joined(list(replay(layout, log, end, snapshots=dates)))
    for part in range(3):
        keep = np.arange(len(log.customers)) % 3 == part
        reached = reached_ms(log)[keep[log.customer]]
        found = joined(list(replay(layout, only(log, keep), end, snapshots=dates, reached=reached)))
        expected = in_order(whole.take(keep[whole.customer]))
        for name in ("rows", "customer", "as_of", "cause"):
            assert getattr(in_order(found), name).tobytes() == getattr(expected, name).tobytes(), name
