"""Metrics: every series there from the start, lag as of the scrape, and a text that Prometheus' own linter takes."""

import gzip
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ebbtide.ops.observe.at_scrape import ModelNow
from ebbtide.ops.observe.histogram import ColumnHistogram
from ebbtide.ops.observe.metrics import BANDS, ERRORS, Metrics, band_of
from ebbtide.ops.state.room import Room
from ebbtide.stream.telemetry import AlertSent, Dispatched, Judged, Lag, PieceDone, TurnDone

Samples = dict[tuple[str, ...], float]


def samples(metrics: Metrics) -> Samples:
    body, _ = metrics.render()
    return {
        (s.name, *s.labels.values()): s.value for family in parse_text(body.decode()) for s in family.samples
    }


DONE = TurnDone(
    [PieceDone(0, position=10, records=10, rejected=2, lag=5)], records=10, events=8,
    rejected={"not_json": 2}, ignored=1, late=1, duplicates=1, behind_watermark=1,
    misplaced=1, tombstones=2, forgotten=1, points={"event": 3}, held={"budget": 1},
    seconds={"fold": 0.001}, latency_s=0.02,
    sent=[
        AlertSent("opened", "high", "event", 0.83, 3, 0, 9, 0.03, 1.5),
        AlertSent("opened", "high", "silence", 1.0, 3, 0, 9, None, 7_200.0),
        AlertSent("resolved", "high", "terminal", None, 3, 0, 9, 1_200.0, 1_500.0),
    ],
    judged=Judged(3, np.array([0.005, 0.83, 1.0], np.float32), np.array([0.2, 0.01])),
)  # fmt: skip


def test_a_partition_given_away_during_its_turn_leaves_no_series() -> None:
    """A turn that was applied before a revocation is told of after it."""
    metrics = busy()
    told: list[TurnDone] = []
    metrics.on_turn = told.append
    metrics.turn_done(replace(DONE, pieces=[PieceDone(1, position=20, records=1, rejected=0, lag=0)]))
    metrics.assigned(frozenset({0}))
    metrics.turn_done(replace(DONE, pieces=[PieceDone(1, position=30, records=1, rejected=0, lag=0)]))
    assert len(told) == 2
    assert [key for key in samples(metrics) if key[0] == "ebbtide_partition_position"] == [
        ("ebbtide_partition_position", "0")
    ]


def busy() -> Metrics:
    """Metrics of which every series has been used."""
    metrics = Metrics()
    metrics.at_scrape.not_ready = list
    metrics.at_scrape.model = lambda: ModelNow("churn", 3)
    metrics.at_scrape.lags = lambda: {0: Lag(7, 2, 1.5, 2.5), 1: Lag(0, 0, 0.0)}
    metrics.assigned(frozenset({0, 1}))
    metrics.turn_done(DONE)
    metrics.dispatched(Dispatched("idle", 3, 5, 8, 8, 0.001, 0.002, 0.003))
    metrics.paused(0)
    metrics.reopened(0, "StoreUnavailable")
    metrics.stopped(1, "LayoutError")
    metrics.rebuilding(0, 3)
    metrics.queued(4)
    metrics.redis_called("apply", 0.004, ["Fenced"], 2)
    metrics.kafka_called("send", 0.006, [], 3)
    metrics.at_scrape.refused = lambda: 1
    metrics.at_scrape.states = lambda: {0: ("retrying", "StoreUnavailable"), 1: ("live", "")}
    metrics.at_scrape.away = lambda: ["Redis"]
    metrics.at_scrape.call_age_s = lambda: 3.5
    metrics.at_scrape.memory = lambda: {"r:1": Room(5, None), "r:2": Room(5, 10)}
    metrics.at_scrape.device = lambda: ("GPU:0", 7)
    metrics.at_scrape.customers = 12
    return metrics


def test_every_series_with_a_known_label_is_there_from_the_start() -> None:
    """A first error must be a step from 0 to 1, or no alert on a rate sees it."""
    metrics = Metrics(bands=("high", "critical"))
    metrics.at_scrape.model = lambda: ModelNow("churn", 3)
    found = samples(metrics)
    assert {"StoreUnavailable", "Fenced", "BrokerUnavailable", "ScorerUnavailable", "LayoutError"} <= set(
        ERRORS
    )
    for name, values in {
        "ebbtide_dead_letters_total": ("not_json", "key_mismatch", "too_large", "future", "unscored"),
        "ebbtide_partition_reopened_total": ERRORS,
        "ebbtide_partition_stopped_total": ERRORS,
        "ebbtide_alerts_held_back_total": ("budget", "holdout"),
        "ebbtide_decision_points_total": ("event", "silence", "terminal", "reset"),
        "ebbtide_stage_seconds_count": ("parse", "load", "fold", "score", "decide", "store", "emit"),
    }.items():
        for value in values:
            assert found[name, value] == 0, (name, value)
    for state in ("opened", "escalated", "resolved", "corrected"):
        for band in ("high", "critical"):
            assert found["ebbtide_alerts_total", band, state] == 0, (state, band)
    for reason in ("idle", "full", "deadline", "linger"):
        assert found["ebbtide_dispatches_total", reason, "3"] == 0
    assert ("ebbtide_dead_letters_total", "bad_row") not in found


def test_lag_is_what_it_is_at_the_scrape() -> None:
    """No batch comes, and lag and stall grow all the same; a partition that is gone takes its series along."""
    metrics = Metrics()
    now = {3: Lag(10, 0, 0.0), 4: Lag(0, 0, 0.0)}
    metrics.at_scrape.lags = lambda: now
    assert samples(metrics)["ebbtide_partition_lag_records", "3"] == 10
    now[3] = Lag(3_000, 12, 18.5, 21.0)
    found = samples(metrics)
    assert found["ebbtide_partition_lag_records", "3"] == 3_000
    assert found["ebbtide_partition_blocked_records", "3"] == 12
    assert found["ebbtide_partition_stalled_seconds", "3"] == 18.5
    assert found["ebbtide_partition_lag_seconds", "3"] == 21.0
    assert found["ebbtide_partition_lag_records", "4"] == 0
    del now[3]
    assert not [name for name in samples(metrics) if name[1:] == ("3",)]


def test_which_build_and_which_model_stand_in_labels() -> None:
    served = [ModelNow("churn", 3)]
    metrics = Metrics()
    metrics.at_scrape.model = lambda: served[0]
    found = samples(metrics)
    assert found["ebbtide_model_info", "churn", "3"] == 1 and found["ebbtide_model_version",] == 3
    assert next(name for name in found if name[0] == "ebbtide_build_info")[1]
    served[0] = ModelNow("churn", 4)
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


def test_an_alerts_age_is_told_up_to_an_hour_with_its_position() -> None:
    """An outage of twenty minutes must not read as one minute, and the slow alert says where its record lies."""
    metrics = busy()
    found = samples(metrics)
    assert found["ebbtide_alert_latency_seconds_count",] == 2
    assert found["ebbtide_alert_latency_seconds_bucket", "900.0"] == 1
    assert found["ebbtide_alert_latency_seconds_bucket", "3600.0"] == 2
    assert found["ebbtide_alert_decision_age_seconds_sum", "silence"] == 7_200
    body, _ = metrics.render("application/openmetrics-text; version=1.0.0")
    parsed = parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]  # it has no types
    latency = next(family for family in parsed if family.name == "ebbtide_alert_latency_seconds")
    exemplars = [s.exemplar.labels for s in latency.samples if s.exemplar]
    assert {"partition": "0", "offset": "9"} in exemplars


def test_scores_and_episodes_are_told_by_version() -> None:
    found = samples(busy())
    assert found["ebbtide_score_probability_bucket", "0.01", "3"] == 1
    assert found["ebbtide_score_probability_bucket", "0.9", "3"] == 2
    assert found["ebbtide_score_probability_count", "3"] == 3
    assert found["ebbtide_episodes_opened_total", "0.8", "3"] == 1
    assert found["ebbtide_episodes_opened_total", "0.9", "3"] == 1
    assert found["ebbtide_episodes_opened_total", "0.1", "3"] == 0
    assert found["ebbtide_score_event_age_seconds_count",] == 2
    assert [band_of(p) for p in (0.0, 0.1, 0.999, 1.0)] == [BANDS[0], BANDS[1], BANDS[9], BANDS[9]]


def test_what_is_so_now_is_asked_at_the_scrape() -> None:
    found = samples(busy())
    assert found["ebbtide_server_up", "Redis"] == 0 and found["ebbtide_server_up", "Kafka"] == 1
    assert found["ebbtide_partition_state", "0", "StoreUnavailable", "retrying"] == 1
    assert found["ebbtide_partition_state", "1", "", "live"] == 1
    assert found["ebbtide_scorer_call_age_seconds",] == 3.5
    assert found["ebbtide_redis_memory_max_bytes", "r:2"] == 10
    assert ("ebbtide_redis_memory_max_bytes", "r:1") not in found
    assert found["ebbtide_device_info", "GPU:0"] == 1 and found["ebbtide_device_memory_bytes",] == 7
    assert found["ebbtide_redis_errors_total", "apply", "Fenced"] == 1
    assert found["ebbtide_redis_call_seconds_count", "apply"] == 1
    assert found["ebbtide_kafka_messages_total",] == 3
    assert found["ebbtide_customers",] == 12


def test_a_column_counts_as_the_client_would() -> None:
    """The oracle is the client's own histogram, one value at a time."""
    rng = np.random.default_rng(11)
    buckets = (0.1, 0.5, 1.0, 10.0)
    values = np.concatenate([rng.exponential(1.0, 500), buckets])
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = ColumnHistogram("x_seconds", "Words.", buckets)
    ours.register(mine)
    one = Histogram("x_seconds", "Words.", buckets=buckets, registry=theirs)
    mine.observe(values[:100])
    mine.observe(values[100:])
    for value in values:
        one.observe(value)
    found, expected = (
        {(s.name, *s.labels.values()): s.value for f in parse_text(generate_latest(r).decode()) for s in f.samples}
        for r in (ours, theirs)
    )  # fmt: skip
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("metrics", [Metrics(), busy()], ids=["new", "busy"])
def test_prometheus_own_linter_finds_nothing(metrics: Metrics) -> None:
    body, _ = metrics.render()
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    ours = [line for line in done.stderr.decode().splitlines() if line.startswith("ebbtide")]
    assert not ours
    assert done.returncode == 0, done.stderr.decode()
