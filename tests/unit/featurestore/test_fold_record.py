"""What the record keeps of events, by cases worked out by hand: ids, the sequence, rhythm, counts, windows, the week.

The unit of the timelines is the hour; every case is asked of the oracle as well.
"""

import math

import numpy as np
import pytest

from ebbtide.featurestore.record.fold import (
    Folder,
)
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS
from tests.support.oracle.histories import columns, one, placed
from tests.support.oracle.oracle import TOMBSTONE, Entry, Event
from tests.support.oracle.records import recorded
from tests.support.oracle.rules import (
    BUY,
    MAIL,
    PLAN,
    START,
    VISIT,
    at,
    known,
    points_of,
    spec_of,
)


def test_the_record_knows_where_its_last_activity_lies() -> None:
    """Not where a contact does, nor one that came late; of two at one time the later."""
    events = [at(VISIT, 1), at(BUY, 1), at(MAIL, 2), at(VISIT, 0)]
    layout = Layout(spec_of())
    rows, _ = Folder(layout).fold(layout.empty(1), columns(placed(one(*events))))
    assert rows["last_seen_offset"].tolist() == [1]
    rows, _ = Folder(layout).fold(layout.empty(1), columns(one(*events)))
    assert rows["last_seen_offset"].tolist() == [-1], "it came from a file"


def test_a_late_event_ends_no_gap() -> None:
    """
    hour   0                 60          100    arrival order: mail 100, visit 0 (late), mail 60 (late)
    visit  ◌                                    60 is more than memory after 0, but 100 was folded already:
    mail                     ◌           ○      no reset, else a point would lie before one already taken
    """
    events = at(MAIL, 100), at(VISIT, 0), at(MAIL, 60)
    assert points_of(spec_of(), *events) == []
    assert known(spec_of(), *events)["kind_count"][MAIL] == 2


def test_a_tombstone_leaves_zero_bytes() -> None:
    """
    hour   0  1        2         3
    visit  ●                     ●     a customer of whom nothing is known
    plan      ■
    ✝                  ✝ ✝             the second finds nothing to forget
    points e           r         e
    """
    spec, gone = spec_of(), Event(TOMBSTONE, START + 2 * HOUR_MS)
    events = at(VISIT, 0, event_id=1), at(PLAN, 1, 3.0), gone, gone
    assert points_of(spec, *events) == [("event", 0), ("reset", 1)]
    layout = Layout(spec)
    rows, _ = Folder(layout).fold(layout.empty(1), columns(one(*events)))
    assert rows.tobytes() == bytes(layout.itemsize)
    assert points_of(spec, *events, at(VISIT, 3, event_id=1))[-1] == ("event", 3)


def test_recent_ids_are_remembered_in_turn() -> None:
    """
    dedupe = 2
    ids    a  b  a  c  a      the second a is known; at the third the two remembered are b and c
           ●  ●  ·  ●  ●
    """
    a, b, c = (at(VISIT, n, event_id=n + 1) for n in range(3))
    assert known(spec_of(), a, b, a, c)["activity_count"] == 3
    assert known(spec_of(), a, b, a, c, a)["activity_count"] == 4
    assert known(spec_of(dedupe=0), a, a)["activity_count"] == 2


def test_a_duplicate_does_not_even_take_silences() -> None:
    """
    hour   0  2  3      the event of 0 comes once more after one of 3
    visit  ●     ●  ·
    points e  s  e
    """
    first = at(VISIT, 0, event_id=9)
    assert points_of(spec_of(), first, at(VISIT, 3), first) == [("event", 0), ("silence", 2), ("event", 3)]


def test_repeats_share_an_entry_of_the_sequence() -> None:
    """
    minutes  0    20   40 | 90     100      110     coalesce = 30 min, three entries
             v    v    v  | buy 5  buy 2    v       gaps to the activity before
             └─ 3 × v ──┘   └─ 2 × 7 ──┘
    """
    minutes = [
        (VISIT, 0, math.nan),
        (VISIT, 20, math.nan),
        (VISIT, 40, math.nan),
        (BUY, 90, 5.0),
        (BUY, 100, 2.0),
    ]
    events = [at(kind, minute / 60, value) for kind, minute, value in minutes]
    visits, buys = Entry(VISIT, 3, 0.0, 0.0), Entry(BUY, 2, 7.0, 50 * 60.0)
    assert known(spec_of(), *events)["sequence"] == [visits, buys]
    events += [at(VISIT, 110 / 60), at(MAIL, 112 / 60), at(BUY, 115 / 60, 1.0)]
    assert known(spec_of(), *events)["sequence"] == [
        buys, Entry(VISIT, 1, 0.0, 600.0), Entry(BUY, 1, 1.0, 300.0),
    ]  # fmt: skip


def test_the_rhythm_is_of_gaps_longer_than_a_burst() -> None:
    """
    hour   0  0.25     1.25        3.25      gaps: 15 min (a burst), 1 h, 2 h
    visit  ●  ●        ●           ●
    """
    facts = known(spec_of(), *(at(VISIT, hour) for hour in (0, 0.25, 1.25, 3.25)))
    logs = [math.log1p(3600), math.log1p(7200)]
    assert facts["gap_count"] == 2
    assert facts["gap_mean"] == pytest.approx(np.mean(logs), rel=1e-12)
    assert facts["gap_sd"] == pytest.approx(np.std(logs), rel=1e-9)


def test_days_are_counted_once_late_ones_too() -> None:
    """
    day    0      1      2  …  69     midnights at hours 0, 24, 48 …
    visit  ●●     ◌      ●            24 h comes last
    """
    spec = spec_of(memory="90d")
    events = at(VISIT, 1), at(VISIT, 2), at(VISIT, 50), at(VISIT, 24)
    assert known(spec, *events)["days"] == {2: 2, 70: 3}
    assert known(spec, *events, as_of=72)["days"] == {2: 1, 70: 3}
    assert known(spec, *events, as_of=70 * 24)["days"] == {2: 0, 70: 2}
    one_word = spec_of(memory="90d", days_active=[64])
    assert known(one_word, at(VISIT, 63 * 24), at(VISIT, 23))["days"] == {64: 2}, (
        "the oldest day that is kept"
    )


def test_an_attribute_keeps_its_latest_value_by_time() -> None:
    """
    hour    0     5     7      arrival order: 5 (=2), 7 (missing), 0 (=1), 5 (=3)
    plan    1    2,3    ?      of two at 5 the one that came later; a missing value says nothing
    """
    events = at(PLAN, 5, 2.0), at(PLAN, 7), at(PLAN, 0, 1.0)
    assert known(spec_of(), *events)["attributes"] == {PLAN: 2.0}
    assert known(spec_of(), *events, at(PLAN, 5, 3.0))["attributes"] == {PLAN: 3.0}
    assert known(spec_of(), at(PLAN, 7))["attributes"] == {PLAN: None}


def test_counts_are_full_at_two_bytes_and_stay_so() -> None:
    """65,536 visits within a minute: the tile holds 65,535; the full entry of the sequence starts another."""
    layout = Layout(spec_of())
    events = columns(one(*(at(VISIT, n / 70_000 / 60) for n in range(65_536))))
    rows, _ = Folder(layout).fold(layout.empty(1), events)
    facts = recorded(layout, rows[0], int(rows["row_watermark"][0]))
    assert facts["counts"][VISIT, 0] == 65_535
    assert [entry.events for entry in facts["sequence"]] == [65_535, 1]
    assert facts["activity_count"] == 65_536


def test_counters_are_full_at_four_bytes_and_stay_so() -> None:
    """A synthetic customer at 10,000 events a second gets there in five days."""
    layout = Layout(spec_of())
    rows, _ = Folder(layout).fold(layout.empty(1), columns(one(at(VISIT, 100))))
    counters = ("activity_count", "gap_count", "late_count")
    for name in (*counters, "kind_count"):
        rows[name] = 2**32 - 2
    for _ in range(3):
        rows, _ = Folder(layout).fold(rows, columns(one(at(VISIT, 110), at(VISIT, 20))))
        rows, _ = Folder(layout).fold(rows, columns(one(at(VISIT, 112), at(VISIT, 20))))
    assert [int(rows[name][0]) for name in counters] == [2**32 - 1] * 3
    assert int(rows["kind_count"][0, VISIT]) == 2**32 - 1
    assert np.isfinite(rows["gap_mean"][0])


@pytest.mark.parametrize("window", [0, 1])
def test_a_window_is_exact_within_one_hop(window: int) -> None:
    """The events counted are those of the last x ms, for one x in (length - hop, length]: never more, never less.

    hop           ├─────┼─────┼──▲──┤   as of ▲, in the middle of the newest tile
    counted       └──── x ───────┘
    """
    spec = spec_of(memory="90d")
    length, hop = spec.windows[window].length_ms, spec.windows[window].hop_ms
    rng = np.random.default_rng(window)
    for _ in range(200):
        as_of = int(START + rng.integers(0, 10 * DAY_MS))
        # One event every 1,000th of the window: the count says how far back it reaches.
        step = length // 1_000
        times = np.arange(as_of - 2 * length, as_of + 1, step)
        layout = Layout(spec)
        events = columns(one(*(Event(VISIT, int(time)) for time in times)))
        rows, _ = Folder(layout).fold(layout.empty(1), events)
        counted = recorded(layout, rows[0], as_of)["counts"][VISIT, window]
        assert counted == np.count_nonzero(times > as_of - _reach(as_of, length, hop))
        assert length - hop < _reach(as_of, length, hop) <= length
        assert length - hop - step < counted * step <= length + step


def _reach(as_of: int, length: int, hop: int) -> int:
    """The length of the window, `as_of` included: from the start of its oldest tile."""
    return as_of + 1 - (as_of // hop + 1 - length // hop) * hop


def test_the_week_is_the_zones_own() -> None:
    """Friday 23:30 UTC is Saturday in Berlin; seven parts, Monday first."""
    spec = spec_of(week={"zone": "Europe/Berlin", "buckets": 7})
    facts = known(spec, at(VISIT, 12), at(VISIT, 23.5))
    assert facts["week"] == [0, 0, 0, 0, 1, 1, 0]
    utc = known(spec_of(week={"buckets": 7}), at(VISIT, 12), at(VISIT, 23.5))
    assert utc["week"] == [0, 0, 0, 0, 2, 0, 0]


def test_a_full_part_of_the_week_halves_them_all() -> None:
    spec = spec_of(week={"buckets": 7})
    visits = [at(VISIT, 24)] * 5 + [at(VISIT, 25)] * 256
    assert known(spec, at(VISIT, 12), *visits)["week"] == [0, 0, 0, 0, 0, 133, 0]


def test_a_kind_that_is_no_feature_leaves_no_trace_but_life() -> None:
    kinds = [{"name": "visit", "features": False}, {"name": "buy"}]
    facts = known(spec_of(kinds=kinds), at(BUY, 0), at(VISIT, 1), at(VISIT, 2))
    assert facts["last_seen"] == START + 2 * HOUR_MS
    assert [entry.kind for entry in facts["sequence"]] == [BUY]
    assert {k for k, _ in facts["counts"]} == {BUY}
