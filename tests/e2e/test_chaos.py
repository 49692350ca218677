"""The chaos suite in its short form: every kind of fault at least once, and the same comparisons as in ten minutes.

What operators do under faults, and logs that break under workers, take longer than all else: a slow test of their own.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.report import MUST_BE_ZERO, OPERATORS_ZERO
from tests.chaos.shape import BOUNDS, FAULTS, OPERATORS_MINIMA

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

SOME = (
    "rebalances", "broker_kills", "redis_kills", "network_faults", "states_made_again", "aborted_runs",
    "compacted_gaps", "recovery_s_max",
)  # fmt: skip
MISSED_MAX = 5
"""Kinds of faults, of 22, that may find nobody to hurt: on a busy machine a worker hardly comes to work before the next
one. The ten-minute form allows none."""


def run(out: Path, *arguments: str) -> dict[str, Any]:
    """The figures of a run without problems. A new seed each time; it is printed first, and a failure says how to run
    it again."""
    command = [sys.executable, "-m", "tests.chaos", "--seconds", "20", "--events", "24000", *arguments]
    command += ["--json", str(out)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(ended.stdout)
    assert out.exists(), "the run did not come to its end"
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["problems"] == []
    assert ended.returncode == 0
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_operators_and_broken_logs_lose_nothing(tmp_path: Path) -> None:
    found = run(tmp_path / "chaos.json", "--phases", "operators")
    zero = [name for name in (*MUST_BE_ZERO, *OPERATORS_ZERO) if name in found]
    assert set(OPERATORS_ZERO) < set(zero)
    assert {name: found[name] for name in zero} == dict.fromkeys(zero, 0)
    assert {name: least for name, least in OPERATORS_MINIMA.items() if found[name] < least} == {}


@pytest.mark.timeout(1200)
def test_nothing_is_lost_whatever_fails(tmp_path: Path) -> None:
    found = run(tmp_path / "chaos.json", "--phases", "faults")
    assert {name: found[name] for name in MUST_BE_ZERO} == dict.fromkeys(MUST_BE_ZERO, 0)
    missed = {kind for kind in FAULTS if not found["faults"][kind]}
    assert len(missed) <= MISSED_MAX, f"without effect: {missed}"
    assert found["events"] >= 20_000
    assert found["alerts"] > 100
    assert found["scores"] > 1_000
    assert found["escalations"] > 0 and found["held_out"] > 0
    assert found["rss_mb_max"] <= BOUNDS["rss_mb_max"]
    assert found["silent_while_ready_s_max"] <= BOUNDS["silent_while_ready_s_max"]
    assert found["dead_letters"] > 50
    assert found["worker_kills"] >= 5
    assert [name for name in SOME if not found[name] > 0] == []
    assert found["memories"] >= 4, "the log is hardly longer than what a record remembers"
