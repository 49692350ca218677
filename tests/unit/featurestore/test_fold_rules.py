"""Each rule of the fold by a case worked out by hand: a timeline, and what must come of it.

The unit of the timelines is the hour; the spec scores silences 2, 4, 8 and 16 hours after the last activity. Times are
hours after START, which is a midnight. Every case is asked of the oracle as well, so that its own reading of the rules
rests on something.
"""

import math

import numpy as np
import pytest

from ebbtide.featurestore.record.fold import (
    EVENT,
    EXPIRED,
    EXPIRY_GRACE_MS,
    RESET,
    RETURNED,
    SILENCE,
    TERMINAL,
    Folder,
)
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS, HOUR_MS
from tests.support.oracle.histories import columns, one, placed
from tests.support.oracle.oracle import TOMBSTONE, Entry, Event, walk
from tests.support.oracle.records import Facts, expected, recorded

START = 20_000 * DAY_MS
VISIT, BUY, MAIL, CLOSE, PLAN, HELP = range(6)
NAMES = {
    EVENT: "event",
    SILENCE: "silence",
    TERMINAL: "terminal",
    RESET: "reset",
    RETURNED: "returned",
    EXPIRED: "expired",
}


def spec_of(**changes: object) -> Spec:
    plain: dict[str, object] = {
        "name": "rules",
        "horizon": "16h",
        "memory": "48h",
        "kinds": [
            {"name": "visit"},
            {"name": "buy", "aggregate": ["sum", "mean", "last"]},
            {"name": "mail", "role": "contact"},
            {"name": "close", "role": "terminal"},
            {"name": "plan", "role": "attribute"},
            {"name": "help", "role": "contact", "score": "always"},
        ],
        "windows": {"6h": 3, "24h": 2},
        "half_lives": ["3h"],
        "days_active": [2, 70],
        "sequence": {"length": 3, "coalesce": "30m"},
        "silence": {"first": "2h", "ratio": 2.0},
        "dedupe": 2,
    }
    return parse_spec({**plain, **changes})


def at(kind: int, hours: float, value: float = math.nan, event_id: int = 0) -> Event:
    return Event(kind, START + round(hours * HOUR_MS), value, event_id)


def points_of(spec: Spec, *events: Event) -> list[tuple[str, float]]:
    """Cause and hour of each point; the oracle's must be the same."""
    layout = Layout(spec)
    _, points = Folder(layout).fold(layout.empty(1), columns(one(*events)))
    told = [(int(cause), int(as_of)) for cause, as_of in zip(points.cause, points.as_of, strict=True)]
    assert told == [(point.cause, point.as_of) for point in walk(spec, list(events))[0]]
    return [(NAMES[cause], (as_of - START) / HOUR_MS) for cause, as_of in told]


def known(spec: Spec, *events: Event, as_of: float | None = None) -> Facts:
    """What the record says after the events, as of an hour (default: its clock)."""
    layout = Layout(spec)
    rows, _ = Folder(layout).fold(layout.empty(1), columns(one(*events)))
    time = int(rows["row_watermark"][0]) if as_of is None else START + round(as_of * HOUR_MS)
    oracle = expected(walk(spec, list(events))[1], time)
    facts = recorded(layout, rows[0], time)
    assert {name: facts[name] for name in ("counts", "sequence", "days")} == {
        name: oracle[name] for name in ("counts", "sequence", "days")
    }
    return facts


def test_silences_before_the_next_event_are_decided_before_it() -> None:
    """
    hour   0    2    4         8 9
    visit  ●─────────────────────●
    points e    s    s         s e
    """
    assert points_of(spec_of(), at(VISIT, 0), at(VISIT, 9)) == [
        ("event", 0), ("silence", 2), ("silence", 4), ("silence", 8), ("event", 9),
    ]  # fmt: skip


def test_an_event_at_the_very_time_of_a_silence_disproves_it() -> None:
    """
    hour   0    2
    visit  ●────●      the silence of 2 h lies before nothing: it is not taken
    points e    e
    """
    assert points_of(spec_of(), at(VISIT, 0), at(VISIT, 2)) == [("event", 0), ("event", 2)]


def test_the_last_silence_is_the_horizon() -> None:
    """
    hour   0 2 4 8 16           40
    visit  ●────────────────────●
    points e s s s s            e
    """
    points = points_of(spec_of(), at(VISIT, 0), at(VISIT, 40))
    assert [hour for cause, hour in points if cause == "silence"] == [2, 4, 8, 16]


def test_a_contact_is_no_life_but_skips_the_silence_it_disproves() -> None:
    """Silence is counted from the last activity, mail or no mail; no decision is taken as of a past hour.

    hour   0    2  3  4
    visit  ●
    mail           ○           at 3: the silence of 2 lies before it
    mail              ○        at 4: at the very time of the silence of 4, which is skipped
    visit                ●     at 5
    points e    s        e
    """
    spec = spec_of()
    events = at(VISIT, 0), at(MAIL, 3), at(MAIL, 4), at(VISIT, 5)
    assert points_of(spec, *events) == [("event", 0), ("silence", 2), ("event", 5)]
    facts = known(spec, *events)
    assert facts["activity_count"] == 2
    assert facts["first_seen"] == START
    assert facts["kind_count"][MAIL] == 2


def test_a_kind_marked_always_is_scored_whatever_its_role() -> None:
    """
    hour   0  1  2
    visit  ●
    mail      ○         a contact: not scored
    help         ◆      a contact, score: always
    points e     e
    """
    assert points_of(spec_of(), at(VISIT, 0), at(MAIL, 1), at(HELP, 2)) == [("event", 0), ("event", 2)]


def test_score_every_counts_from_the_last_decision_point() -> None:
    """
    score_every = 2 h
    hour   0    1         3       4.4   5
    visit  ●────●─────────────────●─────●
    points e    ·         s       ·     e      1 is 1 h after a point, 4.4 is 1.4 h after one, 5 is 2 h after it
    """
    spec = spec_of(score_every="2h")
    points = points_of(spec, at(VISIT, 0), at(VISIT, 1), at(VISIT, 4.4), at(VISIT, 5))
    assert points == [("event", 0), ("silence", 3), ("event", 5)]


def test_a_late_event_is_decided_as_of_the_row_watermark() -> None:
    """
    hour   0        5         7      arrival order: 0, 7, 5
    visit  ●        ◌─────────●      windows of three tiles of 2 h: [2,4) [4,6) [6,8)
    points e   s s            e e
    """
    spec = spec_of()
    events = at(VISIT, 0), at(VISIT, 7), at(VISIT, 5)
    assert points_of(spec, *events)[-2:] == [("event", 7), ("event", 7)]
    facts = known(spec, *events)
    assert facts["counts"][VISIT, 0] == 2
    assert facts["counts"][VISIT, 1] == 3
    assert known(spec, *events, as_of=10.5)["counts"][VISIT, 0] == 1, "as of 10:30 the tile of 5 has left"
    assert facts["last_seen"] == START + 7 * HOUR_MS
    assert facts["sequence"] == [Entry(VISIT, 1, 0.0, 0.0), Entry(VISIT, 1, 0.0, 7 * 3600.0)], (
        "no gap back in time"
    )
    assert facts["decays"][VISIT, 3 * HOUR_MS] == pytest.approx(2 ** (-7 / 3) + 1 + 2 ** (-2 / 3))


def test_older_than_the_longest_window_is_counted_late() -> None:
    """
    hour   0                           24 25     the longest window is 24 h
    visit  ◌ ◌                            ●      0 and 1 come after 25: only 0 is more than 24 h older
    """
    early = Event(VISIT, START + HOUR_MS - 1)
    assert known(spec_of(), at(VISIT, 25), at(VISIT, 1))["late_count"] == 0
    assert known(spec_of(), at(VISIT, 25), early)["late_count"] == 1
    facts = known(spec_of(), at(VISIT, 25), at(VISIT, 1), at(VISIT, 0))
    assert facts["late_count"] == 1
    assert facts["first_seen"] == START
    assert facts["activity_count"] == 3


def test_beyond_memory_is_no_beginning() -> None:
    """
    memory 48 h
    hour     -60 -37.5      0     10
    visit     ◌    ◌        ●     ●     -37.5 comes late and is the beginning; -60 lies beyond memory
    """
    spec = spec_of()
    events = at(VISIT, 0), at(VISIT, 10), at(VISIT, -60)
    assert known(spec, *events)["first_seen"] == START
    facts = known(spec, *events, at(VISIT, -37.5))
    assert facts["first_seen"] == START - 37.5 * HOUR_MS
    assert facts["activity_count"] == 4, "it is counted all the same"
    seconds = Event(VISIT, START // 1000)  # a producer that sends seconds
    assert known(spec, *events, seconds)["first_seen"] == START
    assert known(spec, at(MAIL, 0), seconds)["first_seen"] == seconds.time, "the first activity at all is one"


def test_a_leave_ends_scoring_until_the_next_activity() -> None:
    """
    hour   0  1            7    10
    visit  ●                    ●
    close     ✕
    mail/help              ◆          always, but the customer has left
    points e  t                 e     no silence between
    """
    spec = spec_of()
    events = at(VISIT, 0), at(CLOSE, 1), at(HELP, 7)
    assert points_of(spec, *events) == [("event", 0), ("terminal", 1)]
    assert known(spec, *events)["terminated"]
    assert points_of(spec, *events, at(VISIT, 10))[-1] == ("event", 10)
    assert not known(spec, *events, at(VISIT, 10))["terminated"]


def test_a_leave_is_taken_back_by_a_later_activity() -> None:
    """
    hour   0  1  1.5      arrival order: 0, 1.5, 1
    visit  ●     ●
    close     ✕           came late: the visit at 1.5 is life after it
    """
    events = at(VISIT, 0), at(VISIT, 1.5), at(CLOSE, 1)
    assert points_of(spec_of(), *events) == [("event", 0), ("event", 1.5)]
    assert not known(spec_of(), *events)["terminated"]
    kinds = [{"name": "visit"}, {"name": "leave", "role": "terminal", "score": "always"}]
    always = at(0, 0), at(0, 1.5), at(1, 1)
    assert points_of(spec_of(kinds=kinds), *always) == [("event", 0), ("event", 1.5), ("event", 1.5)]


def test_memory_starts_a_fresh_row_and_says_so() -> None:
    """
    memory = 48 h, since the last activity
    hour   0 2 4 8 16    20      48.5
    visit  ●                     ●        > 48 h after 0
    mail                 ○                a contact renews nothing
    points e s s s s             r e      r as of 48.5: they are back
    """
    events = at(VISIT, 0, event_id=7), at(MAIL, 20), at(VISIT, 48.5, event_id=8)
    assert points_of(spec_of(), *events)[-2:] == [("returned", 48.5), ("event", 48.5)]
    facts = known(spec_of(), *events)
    assert (facts["activity_count"], facts["kind_count"][MAIL]) == (1, 0)
    assert known(spec_of(), *events, at(VISIT, 48.5, event_id=8))["activity_count"] == 1, (
        "its id is remembered"
    )
    exactly = at(VISIT, 0), at(VISIT, 48)
    assert "returned" not in [cause for cause, _ in points_of(spec_of(), *exactly)]


def test_a_record_expires_a_week_after_memory() -> None:
    """
    hour   0 2 4 8 16     48       216     217
    visit  ●               memory  │ grace ●
    points e s s s s               x       e      x as of 216, whoever notices: the next event, or time

    An event at 216 itself comes in time, and returns.
    """
    late = 48 + 7 * 24
    assert points_of(spec_of(), at(VISIT, 0), at(VISIT, late + 1))[-2:] == [
        ("expired", late),
        ("event", late + 1),
    ]
    assert points_of(spec_of(), at(VISIT, 0), at(VISIT, late))[-2:] == [("returned", late), ("event", late)]
    folder = Folder(Layout(spec_of()))
    rows, _ = folder.fold(folder.layout.empty(1), columns(one(at(VISIT, 0))))
    rows, points = folder.elapse(rows, START + late * HOUR_MS)
    assert points.cause.tolist() == [SILENCE] * 4
    rows, points = folder.elapse(rows, START + late * HOUR_MS + 1)
    assert (points.cause.tolist(), points.as_of.tolist()) == ([EXPIRED], [START + late * HOUR_MS])
    assert rows.tobytes() == bytes(rows.nbytes)


def test_what_came_late_never_expires_behind_the_watermark() -> None:
    """
    hour   0          300   301     arrival order: mail 300, visit 0 (late), mail 301
    visit  ◌                        216 is past already: the record ends as of 300, when it was last looked at
    mail               ○     ○
    """
    assert points_of(spec_of(), at(MAIL, 300), at(VISIT, 0), at(MAIL, 301)) == [("expired", 300)]


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


def test_due_is_the_next_silence_then_expiry() -> None:
    """
    hour   0    2    4    8    16            48 + a week
    visit  ●    ┆    ┆    ┆    ┆             ┆
    """
    layout = Layout(spec_of())
    folder = Folder(layout)
    rows, _ = folder.fold(layout.empty(1), columns(one(at(VISIT, 0))))
    for hour in (2, 4, 8, 16):
        assert folder.due(rows).tolist() == [START + hour * HOUR_MS]
        rows, _ = folder.elapse(rows, START + hour * HOUR_MS + 1)
    assert folder.due(rows).tolist() == [START + 48 * HOUR_MS + EXPIRY_GRACE_MS]


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
