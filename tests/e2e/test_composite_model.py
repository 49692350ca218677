"""Customers who are a learner and a course, from a log to a model and back: trained, judged offline, streamed.

events.jsonl ─▶ train ─▶ model ─┬─▶ evaluate ─▶ AUROC as of a date ─┐
                                └─▶ replay ───▶ AUROC as of a date ─┴─ the same, score by score
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.times.timestamps import format_time
from tests.e2e.test_replay import ebbtide
from tests.support.servers.services import Services

SPEC = Path(__file__).resolve().parents[2] / "ops" / "specs" / "learners.yaml"
SEED = 11
START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS, LEARNERS, COURSES = 120, 130, ("math", "art", "a/b")


def day(n: int) -> str:
    return (START + timedelta(days=n)).date().isoformat()


def made_up(path: Path) -> int:
    """Learners who take one to three courses, each at a rhythm of its own, and give up most of them without a word.
    Returns how many courses were taken by somebody."""
    rng = np.random.default_rng(SEED)
    events: list[dict[str, Any]] = []
    taken = 0
    for learner in range(LEARNERS):
        for course in rng.permutation(COURSES)[: 1 + int(rng.integers(len(COURSES)))].tolist():
            gap, begin = float(np.exp(rng.normal(0.7, 0.5))), float(rng.uniform(0, 60))
            end = begin + float(rng.exponential(50))
            times = begin + np.cumsum(rng.exponential(gap, 200))
            times = times[times < min(end, DAYS)]
            taken += len(times) > 0
            for at in times.tolist():
                verb = str(rng.choice(["opened", "played", "completed", "failed", "reminder"]))
                events.append(
                    {"learner": f"l{learner}", "course": course, "verb": verb}
                    | {"at": format_time(round((START.timestamp() + at * 86_400) * 1000))}
                    | ({"score": round(float(rng.random()), 2)} if verb in ("completed", "failed") else {})
                )
    events.sort(key=lambda event: str(event["at"]))
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return taken


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_composite_customers_end_to_end(stack: Services, tmp_path: Path) -> None:
    """Training, offline evaluation and replay agree on who the customers are and on every bit of their scores."""
    log, models = tmp_path / "events.jsonl", tmp_path / "models"
    taken = made_up(log)

    def report(command: str, *arguments: str) -> dict[str, Any]:
        path = tmp_path / f"{command}.json"
        done = ebbtide(command, "--events", str(log), *arguments, "--json", str(path), stack=stack)
        assert done.returncode == 0, f"seed {SEED}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    trained = report(
        "train", "--spec", str(SPEC), "--out", str(models), "--labels-until", day(90), "--epochs", "1",
        "--examples-max", "4000", "--bootstrap", "20", "--force",
    )  # fmt: skip
    assert trained["auroc"]["model"] > 0.6
    model, dates = str(models / "learners"), (day(92), day(100))
    judged = report("evaluate", "--model", model, "--snapshot", ",".join(dates), "--bootstrap", "20")
    streamed = report(
        "replay", "--spec", str(SPEC), "--model", model, "--from", day(88), "--snapshot", ",".join(dates)
    )
    assert streamed["customers"] == taken > LEARNERS
    assert streamed["dead_letters"] == 0
    assert streamed["decision_points"] > 200
    assert (streamed["decision_points_missing"], streamed["decision_points_extra"]) == (0, 0)
    assert streamed["score_difference_max"] == 0.0
    for live, (date, offline) in zip(streamed["snapshots"], judged["snapshots"].items(), strict=True):
        assert live["as_of"] == date
        assert live["rows"] == offline["rows"] > 20
        assert live["auroc"]["model"] == offline["auroc"]["model"] > 0.5
