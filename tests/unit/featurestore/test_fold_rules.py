"""Each rule of the fold by a case worked out by hand: a timeline, and what must come of it.

The unit of the timelines is the hour; the spec scores silences 2, 4, 8 and 16 hours after the last activity. Times are
hours after START, which is a midnight. Every case is asked of the oracle as well, so that its own reading of the rules
rests on something.
"""

import pytest

from ebbtide.featurestore.record.fold import (
    EXPIRED,
    EXPIRY_GRACE_MS,
    SILENCE,
    Folder,
)
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import parse_spec
from ebbtide.featurestore.times.durations import HOUR_MS
from tests.support.oracle.histories import columns, one
from tests.support.oracle.oracle import Entry, Event
from tests.support.oracle.rules import (
    CLOSE,
    HELP,
    MAIL,
    START,
    VISIT,
    at,
    known,
    points_of,
    spec_of,
)


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


def test_nobody_is_due_among_no_rows() -> None:
    """As in a turn whose records are all bad."""
    layout = Layout(parse_spec({"name": "shop", "horizon": "7d", "memory": "30d", "windows": {"7d": 7},
                                "kinds": [{"name": "visit"}]}))  # fmt: skip
    assert len(Folder(layout).due(layout.empty(0))) == 0
