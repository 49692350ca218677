"""Metrics: every series there from the start, lag as of the scrape, and a text that Prometheus' own linter takes."""

import gzip
import subprocess

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ebbtide.ops.observe.metrics import ERRORS, Metrics
from ebbtide.stream.telemetry import Dispatched, Lag, PieceDone, TurnDone

Samples = dict[tuple[str, ...], float]


def samples(metrics: Metrics) -> Samples:
    body, _ = metrics.render()
    return {
        (s.name, *s.labels.values()): s.value for family in parse_text(body.decode()) for s in family.samples
    }


def busy() -> Metrics:
    """Metrics of which every series has been used."""
    metrics = Metrics()
    metrics.ready(lambda: True)
    metrics.serving(lambda: ("churn", 3))
    metrics.lags(lambda: {0: Lag(7, 2, 1.5), 1: Lag(0, 0, 0.0)})
    metrics.assigned(frozenset({0, 1}))
    metrics.turn_done(
        TurnDone(
            [PieceDone(0, position=10, records=10, rejected=2, lag=5)], records=10, events=8,
            rejected={"not_json": 2}, ignored=1, late=1, duplicates=1, behind_watermark=1,
            misplaced=1, tombstones=2, forgotten=1, points={"event": 3}, alerts={"opened": 1},
            seconds={"fold": 0.001}, latency_s=0.02,
        )
    )  # fmt: skip
    metrics.dispatched(Dispatched("idle", 3, 5, 8, 8, 0.001, 0.002, 0.003))
    metrics.paused(0)
    metrics.reopened(0, "StoreUnavailable")
    metrics.stopped(1, "LayoutError")
    metrics.rebuilding(0, 3)
    metrics.queued(4)
    return metrics


def test_every_series_with_a_known_label_is_there_from_the_start() -> None:
    """A first error must be a step from 0 to 1, or no alert on a rate sees it."""
    metrics = Metrics()
    metrics.serving(lambda: ("churn", 3))
    found = samples(metrics)
    assert {"StoreUnavailable", "Fenced", "BrokerUnavailable", "ScorerUnavailable", "LayoutError"} <= set(
        ERRORS
    )
    for name, values in {
        "ebbtide_dead_letters_total": ("not_json", "key_mismatch", "too_large", "future", "unscored"),
        "ebbtide_partition_reopened_total": ERRORS,
        "ebbtide_partition_stopped_total": ERRORS,
        "ebbtide_alerts_total": ("opened", "resolved", "terminated"),
        "ebbtide_decision_points_total": ("event", "silence", "terminal", "reset"),
        "ebbtide_stage_seconds_count": ("parse", "load", "fold", "score", "decide", "store", "emit"),
    }.items():
        for value in values:
            assert found[name, value] == 0, (name, value)
    for reason in ("idle", "full", "deadline", "linger"):
        assert found["ebbtide_dispatches_total", reason, "3"] == 0
    assert ("ebbtide_dead_letters_total", "bad_row") not in found


def test_lag_is_what_it_is_at_the_scrape() -> None:
    """No batch comes, and lag and stall grow all the same; a partition that is gone takes its series along."""
    metrics = Metrics()
    now = {3: Lag(10, 0, 0.0), 4: Lag(0, 0, 0.0)}
    metrics.lags(lambda: now)
    assert samples(metrics)["ebbtide_partition_lag_records", "3"] == 10
    now[3] = Lag(3_000, 12, 18.5)
    found = samples(metrics)
    assert found["ebbtide_partition_lag_records", "3"] == 3_000
    assert found["ebbtide_partition_blocked_records", "3"] == 12
    assert found["ebbtide_partition_stalled_seconds", "3"] == 18.5
    assert found["ebbtide_partition_lag_records", "4"] == 0
    del now[3]
    assert not [name for name in samples(metrics) if name[1:] == ("3",)]


def test_which_build_and_which_model_stand_in_labels() -> None:
    served = [("churn", 3)]
    metrics = Metrics()
    metrics.serving(lambda: served[0])
    found = samples(metrics)
    assert found["ebbtide_model_info", "churn", "3"] == 1 and found["ebbtide_model_version",] == 3
    assert next(name for name in found if name[0] == "ebbtide_build_info")[1]
    served[0] = ("churn", 4)
    found = samples(metrics)
    assert ("ebbtide_model_info", "churn", "3") not in found and found[
        "ebbtide_model_info", "churn", "4"
    ] == 1


def test_the_process_is_seen_and_no_created_series() -> None:
    found = samples(busy())
    for name in ("process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"):
        assert found[name,] > 0
    assert any(name[0] == "python_gc_collections_total" for name in found)
    assert any(name[0] == "python_info" for name in found)
    assert not [name for name in found if name[0].endswith("_created")]


def test_openmetrics_and_gzip_for_whoever_takes_them() -> None:
    metrics = busy()
    body, headers = metrics.render("application/openmetrics-text; version=1.0.0", "deflate, gzip")
    assert headers["Content-Encoding"] == "gzip" and headers["Content-Type"].startswith(
        "application/openmetrics"
    )
    parsed = parse_openmetrics(gzip.decompress(body).decode())  # type: ignore[no-untyped-call]  # it has no types
    families = {family.name for family in parsed}
    assert {"ebbtide_records", "ebbtide_partition_lag_records", "ebbtide_model"} <= families
    body, headers = metrics.render()
    assert "Content-Encoding" not in headers and headers["Content-Type"].startswith("text/plain")
    assert b"ebbtide_records_total 10.0" in body


@pytest.mark.parametrize("metrics", [Metrics(), busy()], ids=["new", "busy"])
def test_prometheus_own_linter_finds_nothing(metrics: Metrics) -> None:
    body, _ = metrics.render()
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    ours = [line for line in done.stderr.decode().splitlines() if line.startswith("ebbtide")]
    assert not ours
    assert done.returncode == 0, done.stderr.decode()
