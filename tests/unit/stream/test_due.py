"""The page of who is due, the timer clock and what may be taken: pure, case by case and at random."""

import random

import numpy as np
import pytest

from ebbtide.stream.batch import LogPosition
from ebbtide.stream.turn.due import NEVER, DuePage, elapsed_until
from ebbtide.stream.turn.timers import Allowance, SourceWatch, TimerLimits, timer_clock

LIMITS = TimerLimits(lateness_max_ms=100)


def page_of(entries: list[tuple[int, str]], size: int = 64) -> DuePage:
    """A page as the store answers it."""
    page = DuePage(size=size)
    page.ask()
    first = entries[:size]
    page.answer([name for _, name in first], np.array([due for due, _ in first], np.int64))
    return page


def test_a_page_gives_who_is_due_and_says_how_far_that_is() -> None:
    page = page_of([(10, "a"), (10, "b"), (20, "c"), (30, "d")])
    assert page.next_ms == 10
    assert not page.ready((10, ""))
    first = page.take((25, ""), 2)
    assert (first.customers, first.position) == (["a", "b"], (10, "b"))
    rest = page.take((25, ""), 2)
    assert (rest.customers, rest.position) == (["c"], (25, "")), "whoever is next is known to be later"
    assert page.next_ms == 30
    assert not page.asks((30, ""))


def test_a_page_that_is_used_up_says_no_more_than_it_knows() -> None:
    page = page_of([(10, "a"), (20, "b"), (30, "c")], size=2)
    taken = page.take((99, ""), 9)
    assert (taken.customers, taken.position) == (["a", "b"], (20, "b"))
    assert page.next_ms == 0
    assert page.asks((99, ""))
    assert page.size == 4


def test_nobody_whom_a_commit_armed_is_passed() -> None:
    """
    page     a 10 ──────── b 20            asked for, then a commit arms somebody at 15
    take     a, up to 15 and no further; b has to be asked for again
    """
    page = page_of([(10, "a"), (20, "b")])
    page.arm(np.array([15, 40], np.int64))
    taken = page.take((99, ""), 9)
    assert (taken.customers, taken.position) == (["a"], (15, ""))
    assert not page.ready((99, ""))
    assert page.asks((99, ""))
    page.ask()
    assert not page.asks((99, "")), "its answer is under way"


def test_a_page_that_was_never_asked_for_knows_nothing() -> None:
    page = DuePage()
    assert page.next_ms == 0
    assert page.asks((5, ""))
    assert not page.ready((5, ""), to_the_end=True)
    empty = page_of([])
    assert empty.next_ms == NEVER
    assert not empty.asks((5, ""))
    assert empty.ready((5, ""), to_the_end=True)
    assert empty.take((5, "x"), 1).position == (5, "x")


def test_a_question_that_failed_is_asked_again() -> None:
    """
    page     nobody, ever ── a commit arms somebody at 15 ── asked for, and no answer
    then     whom the commit armed is not forgotten with it: neither passed, nor never asked for
    """
    page = page_of([])
    page.arm(np.array([15], np.int64))
    assert page.asks((20, ""))
    page.ask()
    page.unanswered()
    assert not page.ready((20, ""), to_the_end=True)
    assert page.asks((20, ""))


@pytest.mark.parametrize("part", range(3))
def test_a_position_never_leaves_anybody_behind(part: int) -> None:
    """A store, pages of it, and commits between: nobody who is stored is due at or before the position."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}, part {part}")
    draw = random.Random(seed)
    for _ in range(60):
        stored = {f"c{n}": draw.randrange(1, 200) for n in range(draw.randrange(0, 40))}
        page, position, clock = DuePage(size=draw.choice([1, 3, 8])), (0, ""), 0
        for _ in range(120):
            clock += draw.randrange(4)
            if draw.random() < 0.3:  # an event: it arms its customer beyond the position
                name = f"c{draw.randrange(50)}"
                stored[name] = position[0] + draw.randrange(1, 60)
                page.arm(np.array([stored[name]]))
            elif page.asks((clock, "")):
                order = sorted((due, name) for name, due in stored.items())[: page.ask()]
                page.answer([name for _, name in order], np.array([due for due, _ in order], np.int64))
            elif page.ready((clock, "")):
                taken = page.take((clock, ""), draw.choice([1, 2, 100]))
                assert position < taken.position <= (clock, "")
                position, written = taken.position, []
                for name, until in zip(
                    taken.customers, elapsed_until(taken.customers, position).tolist(), strict=True
                ):
                    if stored[name] < until:
                        stored[name] = until + draw.randrange(30)
                    written.append(stored[name])
                page.arm(np.array(written))
            assert all((due, name) > position for name, due in stored.items())
        while page.asks((clock, "")) or page.ready((clock, "")):
            if page.ready((clock, "")):
                taken = page.take((clock, ""), 100)
                for name in taken.customers:
                    stored[name] = clock + 1
                page.arm(np.array([clock + 1]))
            else:
                order = sorted((due, name) for name, due in stored.items())[: page.ask()]
                page.answer([name for _, name in order], np.array([due for due, _ in order], np.int64))
        assert all(due >= clock for due in stored.values()), "and in the end nobody is forgotten"


@pytest.mark.parametrize(
    ("name", "log", "offset", "newest_ms", "expected"),
    [
        ("the end is reached", LogPosition(50, 50, 50, 9_000), 50, 8_000, 8_900),
        ("a backlog", LogPosition(50, 70, 70, 9_000), 50, 8_000, 7_900),
        ("a backlog from the future", LogPosition(50, 70, 70, 9_000), 50, 99_000, 8_900),
        ("fetched and not applied", LogPosition(70, 70, 70, 9_000), 50, 8_000, 7_900),
        ("an open transaction", LogPosition(50, 70, 50, 9_000), 50, 8_000, 7_900),
        ("nothing was fetched yet", LogPosition(50, 50, 50, 0), 50, 8_000, -100),
        ("nothing is known", LogPosition(-1, -1, -1, 0), 50, 0, -100),
    ],
)
def test_the_timer_clock(name: str, log: LogPosition, offset: int, newest_ms: int, expected: int) -> None:
    """It is never ahead of what the log has shown."""
    assert timer_clock(log, offset, newest_ms, LIMITS) == expected


def test_the_logical_clock_is_the_logs_own() -> None:
    limits = TimerLimits(lateness_max_ms=100, clock="event")
    assert timer_clock(LogPosition(50, 50, 50, 9_000), 50, 1_000, limits) == 900
    assert timer_clock(LogPosition(50, 70, 50, 9_000), 50, 1_000, limits) == 900


def test_the_topics_silence_is_nobodys() -> None:
    """Until a record was seen to come nobody knows; then it may be quiet for so long and no longer."""
    watch = SourceWatch(1_000)
    assert watch.holds(50_000)
    watch.look(-1, 50_000, 0)
    watch.look(700, 50_000, 0)
    assert (watch.holds(50_000), watch.quiet_ms(50_900)) == (True, 0)
    assert watch.quiet_ms(52_000) == 2_000
    watch.look(701, 52_000, 0)
    assert (watch.holds(53_000), watch.quiet_ms(53_000)) == (False, 0)
    assert (watch.holds(53_001), watch.quiet_ms(53_001)) == (True, 1_001)
    watch.look(650, 53_500, 53_400)
    assert not watch.holds(54_400), "what was applied counts, too"
    watch.look(-1, 60_000, 99_000)
    assert not watch.holds(60_500), "a record of the future is one of now"


def test_an_allowance_is_spent_and_comes_back_in_portions() -> None:
    allowance = Allowance(500)
    assert (allowance.left(100.0), allowance.wait_s(100.0)) == (20, 0.0)
    allowance.spend(20)
    assert (allowance.left(100.0), allowance.wait_s(100.0)) == (0, 0.02)
    assert allowance.left(100.015625) == 0, "no portion yet"
    assert allowance.left(100.03125) == 15
    assert allowance.left(200.0) == 20
    allowance.spend(100)
    assert allowance.left(200.09375) == 0, "what was taken beyond it is waited for"
