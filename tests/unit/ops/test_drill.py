"""The verdict of a drill: what counts as lost, as said twice, and as a contradiction."""

from ebbtide.ops.commands.drill import NAMES
from ebbtide.ops.drill.faults import FAULTS
from ebbtide.ops.drill.run import Second, longest, verdict
from ebbtide.ops.load.run import Outcome


def second(at_s: float, *reasons: str) -> Second:
    return Second(at_s, "during", dict(enumerate(reasons)), 0.0, 0, 0, 0.0)


def test_a_missing_customer_breaks_the_promise_and_a_repeat_does_not() -> None:
    outcome = Outcome(
        customers=3, scored={"a": 1, "b": 2, "c": 1}, opened={"a": 1, "b": 1, "c": 1}, repeated=4
    )
    found = verdict(outcome, [])
    assert found.kept and (found.repeated_scores, found.repeated_alerts) == (1, 4)
    outcome.customers = 4
    found = verdict(outcome, [])
    assert not found.kept and (found.lost_scores, found.lost_alerts) == (1, 1)


def test_two_different_alerts_for_one_episode_break_it() -> None:
    found = verdict(Outcome(customers=1, scored={"a": 1}, opened={"a": 2}), [])
    assert not found.kept and found.other_alerts == 1


def test_nobody_ready_is_told_at_a_stretch() -> None:
    """One of two that is ready is enough, and a worker that does not answer is not there."""
    seen = [
        second(0, "", ""),
        second(1, "x", ""),
        second(2, "x", "x"),
        second(3, "x"),
        second(6, "x"),
        second(7, ""),
    ]
    assert longest(seen) == 4.0
    assert longest([]) == longest([second(0)]) == 0.0


def test_every_fault_can_be_asked_for() -> None:
    assert set(NAMES) == set(FAULTS)
