"""When customers of a target are scored, and when they are not, by cases worked out by hand.

The unit of the timelines is the hour; every case is asked of the oracle as well.
"""

from ebbtide.featurestore.times.durations import HOUR_MS
from tests.support.oracle.rules import (
    BUY,
    START,
    VISIT,
    at,
    known,
    points_of,
    spec_of,
)


def test_only_the_eligible_are_scored() -> None:
    """
    min_events 2, min_tenure 3 h, max_silence 5 h
    hour   0     1     3   4     6     8      12         20
    visit  ●─────●─────────●─────────────────────────────●
    points ·     ·     s   e     s     s      ·          e     0, 1: too few, too new; 12: silent for 8 h
    """
    spec = spec_of(eligibility={"min_events": 2, "min_tenure": "3h", "max_silence": "5h"})
    assert points_of(spec, at(VISIT, 0), at(VISIT, 1), at(VISIT, 4), at(VISIT, 20)) == [
        ("silence", 3), ("event", 4), ("silence", 6), ("silence", 8), ("event", 20),
    ]  # fmt: skip


SALE = {"targets": [{"name": "sale", "kinds": ["buy"], "where": {"above": 10}}]}


def test_silence_is_counted_from_the_targets_last_event() -> None:
    """Visits are scored and re-arm nothing; a small purchase is none of the target's.

    hour   0    1    2    3    4      8 9
    buy    ●20       ○5                 ●20
    visit       ●         ●
    points e    e  s e    e    s      s e
    """
    spec = spec_of(**SALE)
    events = at(BUY, 0, 20), at(VISIT, 1), at(BUY, 2.5, 5), at(VISIT, 3), at(BUY, 9, 20)
    assert points_of(spec, *events) == [
        ("event", 0), ("event", 1), ("silence", 2), ("event", 2.5), ("event", 3), ("silence", 4), ("silence", 8),
        ("event", 9),
    ]  # fmt: skip
    assert known(spec, *events)["armed_at"] == START + 9 * HOUR_MS
    assert known(spec, *events)["last_seen"] == START + 9 * HOUR_MS


def test_nobody_is_scored_before_the_targets_first_event() -> None:
    spec = spec_of(**SALE)
    assert points_of(spec, at(VISIT, 0), at(BUY, 1, 5), at(BUY, 20, 11)) == [("event", 20)]


def test_a_further_target_has_silences_of_its_own() -> None:
    """Visits arm the second schedule, purchases the first; a point of both at one time is one point.

    hour   0    1 2  3  4 5       8 9
    buy    ●                                        primary: 2, 4, 8 hours after it
    visit       ●                                   further: 2, 4, 8 hours after it
    points e    e s  f  s f       s f
    """
    spec = spec_of(targets=[*SALE["targets"], {"name": "look", "kinds": ["visit"]}])
    events = at(BUY, 0, 20), at(VISIT, 1)
    points = points_of(spec, *events, at(VISIT, 10))
    assert [hour for _, hour in points] == [0, 1, 2, 3, 4, 5, 8, 9, 10]
    both = points_of(spec, at(BUY, 0, 20), at(VISIT, 0), at(VISIT, 10))
    assert [hour for _, hour in both] == [0, 0, 2, 4, 8, 10]
    assert known(spec, *events)["further_last"] == [START + HOUR_MS]


def test_a_further_target_that_is_churn_by_coming_arms_nothing() -> None:
    spec = spec_of(targets=[*SALE["targets"], {"name": "look", "kinds": ["visit"], "churn_when": "present"}])
    points = points_of(spec, at(BUY, 0, 20), at(VISIT, 1), at(VISIT, 10))
    assert [hour for _, hour in points] == [0, 1, 2, 4, 8, 10]
    assert known(spec, at(BUY, 0, 20), at(VISIT, 1))["further_last"] == [START + HOUR_MS]


def test_max_silence_is_the_targets() -> None:
    spec = spec_of(**SALE, eligibility={"max_silence": "4h"})
    points = points_of(spec, at(BUY, 0, 20), at(VISIT, 3.5), at(VISIT, 5), at(VISIT, 9))
    assert points == [("event", 0), ("silence", 2), ("event", 3.5), ("silence", 4)]


def test_a_point_so_long_after_the_first_activity() -> None:
    """
    hour   0    2  3  4      7 8 9
    visit  ●                       ●
    points e    s  f  s      f s   e      f: 3 and 7 hours after the first activity; later visits move none of them
    """
    spec = spec_of(score_after_first=["7h", "3h"])
    points = points_of(spec, at(VISIT, 0), at(VISIT, 9))
    assert [hour for _, hour in points] == [0, 2, 3, 4, 7, 8, 9]
    points = points_of(spec, at(VISIT, 0), at(VISIT, 2.5), at(VISIT, 4), at(VISIT, 8))
    assert [hour for _, hour in points] == [0, 2, 2.5, 3, 4, 6, 7, 8]


def test_max_tenure_leaves_out_who_came_long_ago() -> None:
    spec = spec_of(eligibility={"max_tenure": "5h"})
    points = points_of(spec, at(VISIT, 0), at(VISIT, 4.5), at(VISIT, 6))
    assert [hour for _, hour in points] == [0, 2, 4, 4.5]
