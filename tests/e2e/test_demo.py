"""The demo as a newcomer runs it, only shorter: it ends by itself, can be read, and its figures are sane."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

NAMES = {
    "events", "alerts", "precision", "recall", "base_rate", "recency_precision", "event_to_alert_ms",
    "seconds_to_first_alert",
}  # fmt: skip


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EBBTIDE_")}
    command = [sys.executable, "-m", "ebbtide.ops.cli", "demo", "--out", str(folder / "run"), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )  # fmt: skip


def family(pid: int) -> list[psutil.Process]:
    return list(psutil.Process(pid).children(recursive=True))


def all_gone(processes: list[psutil.Process], within_s: float = 20.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.timeout(960)
def test_a_short_demo_alerts_better_than_chance(tmp_path: Path) -> None:
    report = tmp_path / "out.json"
    began_s = time.monotonic()
    demo = start(tmp_path, "--seconds", "15", "--json", str(report))
    said, _ = demo.communicate(timeout=900)
    took_s = time.monotonic() - began_s
    assert demo.returncode == 0, said[-3000:]
    assert "\x1b" not in said
    assert "Alerts against what the customers really did" in said
    assert "Where to look next" in said
    found = json.loads(report.read_text())
    assert set(found) >= NAMES
    assert found["events"] > 20_000
    assert found["alerts"] > 50
    assert 0 < found["base_rate"] < 0.3
    assert found["precision"] > 1.5 * found["base_rate"]
    assert 0 < found["recall"] < 1
    assert 0 < found["alerts_by_silence_alone"] <= found["alerts"]
    assert 0 < found["event_to_alert_ms"]["p50"] <= found["event_to_alert_ms"]["p99"]
    assert 0 < found["seconds_to_first_alert"] < took_s
    alerts = (tmp_path / "run" / "alerts.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["state"] == "opened" for line in alerts) == found["alerts"]
    assert f"{found['precision']:.1%}" in said


@pytest.mark.timeout(600)
def test_a_killed_demo_takes_everything_with_it(tmp_path: Path) -> None:
    """SIGKILL while it trains: Kafka, Valkey and the trainer go, too."""
    demo = start(tmp_path, "--seconds", "15")
    try:
        end_s = time.monotonic() + 200
        while len(family(demo.pid)) < 4:  # the keeper, Kafka, Valkey, the trainer
            assert demo.poll() is None and time.monotonic() < end_s
            time.sleep(0.2)
        processes = family(demo.pid)
    finally:
        demo.send_signal(signal.SIGKILL)
        demo.communicate(timeout=30)
    assert all_gone(processes)
