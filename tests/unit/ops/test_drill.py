"""The verdict of a drill: what counts as lost, as said twice, and as a contradiction."""

import json
from pathlib import Path

from ebbtide.ops.commands.drill import NAMES, figures
from ebbtide.ops.console import table_and_json
from ebbtide.ops.drill.faults import FAULTS
from ebbtide.ops.drill.verdict import Second, longest, verdict
from ebbtide.ops.load.run import Outcome


def second(at_s: float, *reasons: str) -> Second:
    return Second(at_s, "during", {str(n): reason for n, reason in enumerate(reasons)}, 0.0, 0, 0, 0.0)


def test_a_missing_customer_breaks_the_promise_a_repeat_does_not() -> None:
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


def test_the_figures_can_be_written_as_json(tmp_path: Path) -> None:
    found = verdict(Outcome(customers=1, scored={"a": 1}, opened={"a": 1}, alerts_s=[0.5]), [second(1, "x")])
    table_and_json(None, figures("kill-worker", found), tmp_path / "drill.json")
    told = json.loads((tmp_path / "drill.json").read_text())
    assert (
        told["kept"] and told["latency"]["p50_ms"] == 500.0 and told["seconds"][0]["not_ready"] == {"0": "x"}
    )


def test_every_fault_can_be_asked_for() -> None:
    assert set(NAMES) == set(FAULTS)
