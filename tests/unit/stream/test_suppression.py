"""What the committed offset's metadata says: written and read in one place, and never taken back."""

import pytest

from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.decision.suppression import NO_SUPPRESSION, Suppression


def at(offset: int, sequence: int, ms: int = 0, customer: str = "") -> Checkpoint:
    return Checkpoint(offset, sequence, 0, "layout", 4).at_timers((ms, customer))


@pytest.mark.parametrize("customer", ["", "ann", "a b=c:d%e ☕", "x" * 128])
def test_what_is_committed_is_read_again(customer: str) -> None:
    committed = NO_SUPPRESSION.committed_at(at(40, 7, 1_000, customer))
    assert Suppression.by(committed) == Suppression(40, 40, 7, (1_000, customer))
    assert len(committed.metadata) < 2_000
    first, asked = NO_SUPPRESSION.from_now(None, None, 10, 90, 5_000)
    assert asked.offset == 10
    assert Suppression.by(asked) == first == Suppression(10, 90, 0, (0, ""), 5_000)


def test_nothing_committed_is_taken_back() -> None:
    """A state that is made again is behind in everything: what is committed meanwhile says what was said before."""
    before = Suppression(40, 40, 7, (1_000, "ann"), 2_000)
    again = before.committed_at(at(40, 3, 900))
    assert Suppression.by(again) == before
    later = Suppression.by(before.committed_at(at(41, 9, 3_000)))
    assert later == Suppression(41, 41, 9, (3_000, ""), 0), "what is past is no longer said"


def test_an_older_releases_words_say_nothing_of_timers() -> None:
    """Then all that is due by now is no news, and what of the outbox is there is sent."""
    for metadata in ("timer_ms=0", "timer_ms=17 alerts_from=55", "", "somebody else's"):
        found = Suppression.by(CommittedOffset(40, metadata))
        assert not found.timers_known
        assert found.alerts_from == (55 if "55" in metadata else 40)
        first, asked = found.from_now(at(40, 12), CommittedOffset(40, metadata), 0, 90, 5_000)
        assert first.timers_known and first.silences_from_ms == 5_000
        assert (asked.offset, Suppression.by(asked).sequence) == (40, 0)


def test_timers_that_were_off_begin_with_who_is_due_from_then_on() -> None:
    off = NO_SUPPRESSION.with_timers(off=True, news_from_ms=5_000)
    assert off == NO_SUPPRESSION._replace(timers_off=True), "silences that an event tells are news"
    again = Suppression.by(off.committed_at(at(40, 7)))
    assert again == Suppression(40, 40, 7, timers_off=True)
    assert again.with_timers(off=False, news_from_ms=9_000) == Suppression(40, 40, 7, silences_from_ms=9_000)
    never = Suppression(40, 40, 7, (1_000, "ann"))
    assert never.with_timers(off=False, news_from_ms=9_000) == never


def test_a_backfilled_state_goes_on_where_it_is() -> None:
    first, asked = NO_SUPPRESSION.from_now(at(60, 3, 4_000), None, 10, 90, 5_000)
    assert (first.outputs_from, first.alerts_from, first.silences_from_ms) == (0, 0, 5_000)
    assert asked.offset == 60


def test_timers_come_before_what_was_not_said_yet() -> None:
    before = Suppression(40, 40, 7, (1_000, "ann"))
    assert not before.timers_behind(at(39, 6, 10)), "the log first"
    assert before.timers_behind(at(40, 7, 1_000, "a"))
    assert not before.timers_behind(at(40, 7, 1_000, "ann"))
    assert not before.timers_behind(at(41, 8, 1_001))
