"""The rules, told by Prometheus' own tester: each alert fires when it should, alone, and a healthy day is silent."""

import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from ebbtide.ops.alerting.duration import Scale, promql
from ebbtide.ops.alerting.rules import RUNBOOK, document, text

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "ops/helm/ebbtide/files/ebbtide.rules.yaml"
W = 'job="ebbtide",instance="w"'

HEALTHY = {
    f"up{{{W}}}": "1x400",
    f"ebbtide_ready{{{W}}}": "1x400",
    f"ebbtide_records_total{{{W}}}": "0+600x400",
    f'ebbtide_dead_letters_total{{{W},reason="not_json"}}': "0x400",
    f'ebbtide_partition_stalled_seconds{{{W},partition="0"}}': "0x400",
    f'ebbtide_partition_lag_seconds{{{W},partition="0"}}': "0.1x400",
    f'ebbtide_partition_blocked_records{{{W},partition="0"}}': "0x400",
    f'ebbtide_partition_reopened_total{{{W},reason="Fenced"}}': "0x400",
    f"ebbtide_scorer_call_age_seconds{{{W}}}": "0x400",
    f'ebbtide_server_up{{{W},server="Redis"}}': "1x400",
    f"ebbtide_alert_latency_seconds_count{{{W}}}": "0+60x400",
    f'ebbtide_alert_latency_seconds_bucket{{{W},le="0.5"}}': "0+60x400",
    f'ebbtide_score_probability_count{{{W},version="1"}}': "0+100x400",
    f'ebbtide_score_probability_bucket{{{W},version="1",le="0.1"}}': "0+60x400",
    f'ebbtide_score_probability_bucket{{{W},version="1",le="+Inf"}}': "0+100x400",
    f'ebbtide_redis_memory_used_bytes{{{W},server="r:1"}}': "50x400",
    f'ebbtide_redis_memory_max_bytes{{{W},server="r:1"}}': "100x400",
    f"ebbtide_model_versions_refused{{{W}}}": "0x400",
    f"ebbtide_events_misplaced_total{{{W}}}": "0x400",
    f"ebbtide_source_low_partitions{{{W}}}": "0x400",
    f'ebbtide_explanations_total{{{W},outcome="holds"}}': "0+60x400",
    f'ebbtide_explanations_total{{{W},outcome="inexact"}}': "0x400",
    f'ebbtide_explanations_total{{{W},outcome="failed"}}': "0x400",
}  # fmt: skip
"""By minute, for some hours: a worker with 10 records a second. A window longer than that sees what there is."""


class Case(NamedTuple):
    """What differs from a healthy worker, when it is looked at, and how many alerts of which names fire then."""

    says: str
    series: dict[str, str]
    at: str
    fires: dict[str, int]


def at(value: str, minutes: int, then: str) -> str:
    """`value` for so many minutes, then `then`."""
    return f"{value}x{minutes} {then}x300"


CASES = [
    Case("a healthy day is silent", {}, "390m", {}),
    Case("down", {f"up{{{W}}}": at("1", 60, "0")}, "64m", {"EbbtideDown": 1}),
    Case("down for a moment", {f"up{{{W}}}": "1x60 0x1 1x300"}, "64m", {}),
    Case("not ready", {f"ebbtide_ready{{{W}}}": at("1", 60, "0")}, "67m", {"EbbtideNotReady": 1}),
    Case(
        "stuck", {f'ebbtide_partition_stalled_seconds{{{W},partition="0"}}': at("0", 60, "60+60")}, "67m",
        {"EbbtidePartitionStuck": 1},
    ),
    Case(
        "stuck behind a transaction is another alert",
        {
            f'ebbtide_partition_stalled_seconds{{{W},partition="0"}}': at("0", 60, "60+60"),
            f'ebbtide_partition_blocked_records{{{W},partition="0"}}': at("0", 60, "40"),
        },
        "67m", {"EbbtideOpenTransaction": 1},
    ),
    Case(
        "a flood stopped it",
        {f'ebbtide_partition_state{{{W},partition="0",state="stopped",reason="DeadLetterFlood"}}': at("_", 60, "1")},
        "63m", {"EbbtidePartitionStopped": 1},
    ),
    Case(
        "a corrupt batch stopped it",
        {f'ebbtide_partition_state{{{W},partition="0",state="stopped",reason="UnreadableBatch"}}': at("_", 60, "1")},
        "63m", {"EbbtideCorruptBatch": 1},
    ),
    Case(
        "the scorer hangs", {f"ebbtide_scorer_call_age_seconds{{{W}}}": at("0", 60, "60+60")}, "62m",
        {"EbbtideScorerHung": 1},
    ),
    Case(
        "a slow call is no hang", {f"ebbtide_scorer_call_age_seconds{{{W}}}": at("0", 60, "40")}, "62m", {},
    ),
    Case(
        "Redis is away", {f'ebbtide_server_up{{{W},server="Redis"}}': at("1", 60, "0")}, "64m",
        {"EbbtideServerAway": 1},
    ),
    Case(
        "behind", {f'ebbtide_partition_lag_seconds{{{W},partition="0"}}': at("0", 60, "400")}, "72m",
        {"EbbtideLag": 1},
    ),
    Case(
        "it reopens", {f'ebbtide_partition_reopened_total{{{W},reason="Fenced"}}': at("0", 60, "1+5")}, "68m",
        {"EbbtideReopening": 1},
    ),
    Case(
        "a rebalance", {f'ebbtide_partition_reopened_total{{{W},reason="Fenced"}}': at("0", 60, "2")}, "68m", {},
    ),
    Case(
        "a producer's format: a burst that the budget bears",
        {f'ebbtide_dead_letters_total{{{W},reason="not_json"}}': "0x300 10+12x100"}, "311m",
        {"EbbtideDeadLetters": 1},
    ),
    Case(
        "5 % of records lost for an hour burn the budget by both measures",
        {f'ebbtide_dead_letters_total{{{W},reason="not_json"}}': "0x120 30+30x100"}, "185m",
        {"EbbtideDeadLetters": 1, "EbbtideLossBudget": 3},
    ),
    Case(
        "every fifth alert late for an hour",
        {f'ebbtide_alert_latency_seconds_bucket{{{W},le="0.5"}}': "0+60x300 18048+48x100"}, "365m",
        {"EbbtideLatencyBudget": 2},
    ),
    Case(
        "the budget's page ends soon after its cause",
        {f'ebbtide_alert_latency_seconds_bucket{{{W},le="0.5"}}': "0+60x300 18048+48x30 19500+60x100"}, "338m",
        {"EbbtideLatencyBudget": 1},
    ),
    Case(
        "three alerts, all late, say nothing",
        {
            f"ebbtide_alert_latency_seconds_count{{{W}}}": "0x60 3x300",
            f'ebbtide_alert_latency_seconds_bucket{{{W},le="0.5"}}': "0x400",
        },
        "63m", {},
    ),
    Case("nobody produces", {f"ebbtide_records_total{{{W}}}": "0+600x100 60000x300"}, "125m", {"EbbtideNoEvents": 1}),
    Case("a quiet topic that never had any", {f"ebbtide_records_total{{{W}}}": "0x400"}, "125m", {}),
    Case(
        "scores drift", {f'ebbtide_score_probability_bucket{{{W},version="1",le="0.1"}}': "0+60x300 18010+10x100"},
        "361m", {"EbbtideScoreDrift": 1},
    ),
    Case(
        "Redis fills up", {f'ebbtide_redis_memory_used_bytes{{{W},server="r:1"}}': at("50", 60, "90")}, "67m",
        {"EbbtideRedisMemory": 1},
    ),
    Case(
        "a Redis without a limit",
        {
            f'ebbtide_redis_memory_used_bytes{{{W},server="r:1"}}': "90x400",
            f'ebbtide_redis_memory_max_bytes{{{W},server="r:1"}}': "_x400",
        },
        "67m", {},
    ),
    Case(
        "a version is refused", {f"ebbtide_model_versions_refused{{{W}}}": at("0", 60, "1")}, "67m",
        {"EbbtideModelRefused": 1},
    ),
    Case(
        "another partitioner", {f"ebbtide_events_misplaced_total{{{W}}}": at("0", 60, "7")}, "65m",
        {"EbbtideMisplaced": 1},
    ),
    Case(
        "the producers are away", {f"ebbtide_timers_held{{{W}}}": at("0", 60, "1")}, "67m",
        {"EbbtideTimersHeld": 1},
    ),
    Case(
        "some producers are away", {f"ebbtide_source_low_partitions{{{W}}}": at("0", 60, "3")}, "67m",
        {"EbbtideSourceLow": 1},
    ),
    Case(
        "some producers are away for a moment", {f"ebbtide_source_low_partitions{{{W}}}": "0x60 3x2 0x300"}, "64m", {},
    ),
    Case(
        "every tenth alert without reasons",
        {f'ebbtide_explanations_total{{{W},outcome="inexact"}}': "0x60 6+6x300"}, "90m", {"EbbtideUnexplained": 1},
    ),
    Case(
        "three alerts without reasons", {f'ebbtide_explanations_total{{{W},outcome="failed"}}': at("0", 60, "3")},
        "70m", {},
    ),
]  # fmt: skip


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shipped_file_is_what_the_code_says() -> None:
    assert SHIPPED.read_text() == text(), "ebbtide rules > ops/helm/ebbtide/files/ebbtide.rules.yaml"


def test_each_alert_fires_when_it_should_and_alone(tmp_path: Path) -> None:
    """One run of Prometheus' tester for all; what it prints names the case."""
    (tmp_path / "rules.yaml").write_text(text())
    tests: list[dict[str, Any]] = []
    for case in CASES:
        series = HEALTHY | case.series
        samples = [{"labels": f'{{alertname="{name}"}}', "value": n} for name, n in case.fires.items()]
        tests.append(
            {
                "name": case.says,
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": case.at,
                        "exp_samples": samples,
                    }
                ],
            }
        )
    tested = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tested))
    promtool("test", "rules", str(tmp_path / "tests.yaml"))
    named = {rule["alert"] for group in document()["groups"] for rule in group["rules"] if "alert" in rule}
    assert named == {name for case in CASES for name in case.fires}, "an alert without a case"


@pytest.mark.parametrize("scale", [Scale(), Scale(0.001, 2.0)], ids=["production", "a thousandth"])
def test_the_rules_are_valid_at_every_scale(scale: Scale, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(text(scale))
    promtool("check", "rules", str(tmp_path / "rules.yaml"))


def test_every_alert_has_its_page_of_the_runbook() -> None:
    """Meaning, first look and remedy; and no page for an alert that is gone."""
    sections = (ROOT / RUNBOOK).read_text().split("\n## ")[1:]
    pages = {name: page for name, _, page in (section.partition("\n") for section in sections)}
    alerts = [rule for group in document()["groups"] for rule in group["rules"] if "alert" in rule]
    assert {alert["alert"] for alert in alerts} == set(pages)
    for alert in alerts:
        assert alert["annotations"]["runbook_url"] == f"{RUNBOOK}#{alert['alert'].lower()}"
    for name, page in pages.items():
        assert all(f"**{part}.**" in page for part in ("Meaning", "First look", "Remedy")), name


def test_durations_are_exact() -> None:
    given = (259_200, 21_600, 300, 90, 1.5, 0.25, 0.0001)
    assert [promql(s) for s in given] == ["3d", "6h", "5m", "90s", "1500ms", "250ms", "1ms"]
    assert Scale(0.001, 2.0).window(3600) == "3600ms" and Scale(0.001, 2.0).window(300) == "2s"
