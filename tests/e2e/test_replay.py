"""A log through the whole service, as a data scientist would run it: every figure, and not one bit of difference."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.config.settings import DEFAULT_SPEC
from ebbtide.ops.demo.shop.behaviour import Scenario, simulate
from ebbtide.ops.demo.shop.events import write_jsonl
from ebbtide.stream.clock import SystemClock
from tests.support.seams.models import publish
from tests.support.servers.services import Services

START = datetime(2024, 1, 1, tzinfo=UTC)


def day(n: int) -> str:
    return (START + timedelta(days=n)).date().isoformat()


def ebbtide(*arguments: str, stack: Services) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EBBTIDE_KAFKA_URL": stack.kafka_url, "EBBTIDE_REDIS_URL": stack.redis_url}
    command = [sys.executable, "-m", "ebbtide.ops.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550, check=False)


@pytest.mark.kafka
@pytest.mark.slow
def test_replay(stack: Services, tmp_path: Path) -> None:
    """100 days of simulated customers: 60 folded, 40 streamed, two snapshots; streamed scores equal offline ones."""
    log = tmp_path / "events.jsonl.gz"
    start_ms = round(START.timestamp() * 1000)
    write_jsonl(simulate(Scenario(seed=5, customers=150, start_ms=start_ms, days=100)), log)
    publish(tmp_path / "models", spec=load_spec(DEFAULT_SPEC))
    report = tmp_path / "report.json"
    done = ebbtide(
        "replay", "--events", str(log), "--spec", str(DEFAULT_SPEC), "--model", str(tmp_path / "models" / "demo"),
        "--from", day(60), "--snapshot", f"{day(70)},{day(80)}", "--json", str(report), stack=stack,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "AUROC of live snapshots" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["events"] + found["events_backfilled"] > 5_000
    assert found["customers"] >= 100
    assert found["dead_letters"] == 0
    assert [s["as_of"][:10] for s in found["snapshots"]] == [day(70), day(80)]
    for snapshot in found["snapshots"]:
        assert snapshot["customers"] > 20
        assert 0 < snapshot["base_rate"] < 1
        assert set(snapshot["auroc"]) == {"model", "recency", "logistic", "trees"}
        assert "model" in snapshot["lift_at_10"]
    assert found["decision_points"] > 200
    assert (found["decision_points_missing"], found["decision_points_extra"]) == (0, 0)
    assert found["score_difference_max"] == 0.0
    assert 0 < found["alerts_by_silence_alone"] <= found["alerts"]
    assert {"alerts", "alert_precision", "lead_time_days_p50"} <= found.keys()


@pytest.mark.kafka
@pytest.mark.slow
def test_one_event_far_ahead_is_streamed_too(stack: Services, tmp_path: Path) -> None:
    """Ten months ahead of the wall's clock, which a topic of Kafka's defaults refuses with its whole batch. The clock
    of its partition follows it, and offline the same is due."""
    log, report = tmp_path / "events.jsonl", tmp_path / "report.json"
    start_ms = round(START.timestamp() * 1000)
    write_jsonl(simulate(Scenario(seed=6, customers=100, start_ms=start_ms, days=100)), log)
    ahead = json.loads(log.read_text().splitlines()[-1])
    ahead |= {"event_id": "ahead", "ts": SystemClock().now_ms() + 300 * 86_400_000}
    with log.open("a") as file:
        file.write(json.dumps(ahead) + "\n")
    publish(tmp_path / "models", spec=load_spec(DEFAULT_SPEC))
    done = ebbtide(
        "replay", "--events", str(log), "--spec", str(DEFAULT_SPEC), "--model", str(tmp_path / "models" / "demo"),
        "--from", day(60), "--snapshot", day(70), "--json", str(report), stack=stack,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(report.read_text())
    assert found["dead_letters"] == 0
    assert found["decision_points"] > 100
    assert (found["decision_points_missing"], found["decision_points_extra"]) == (0, 0)
    assert found["score_difference_max"] == 0.0
