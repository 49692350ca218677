"""Symptoms: what a person should look at although no budget shows it yet, or nothing would ever show it there.

Each is something that users would notice (nothing comes out), or that ends badly if nobody looks (memory). An outage
that mends itself is not told before it has lasted for a while.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from ebbtide.ops.alerting.duration import Scale
from ebbtide.ops.alerting.objectives import DAY_S, HOUR_S

MINUTE_S = 60.0
DRIFT_MAX = 0.15
"""Greatest distance between the distributions of scores of an hour and of a week (Kolmogorov and Smirnov's)."""
SCORES_MIN = 500
"""Fewer scores have a distance by chance."""
JOB = 'job="ebbtide"'


class Symptom(NamedTuple):
    """expr: the expression, given the scale. hold_s: how long it has to last."""

    name: str
    severity: str
    hold_s: float
    expr: Callable[[Scale], str]
    summary: str
    description: str


SYMPTOMS = (
    Symptom(
        "Down", "page", 2 * MINUTE_S, lambda _: f"up{{{JOB}}} == 0",
        "Worker {{ $labels.instance }} cannot be scraped", "It ended, hangs, or the network is cut.",
    ),
    Symptom(
        "NotReady", "page", 5 * MINUTE_S, lambda _: "ebbtide_ready == 0",
        "Worker {{ $labels.instance }} is not ready", "GET /readyz says why, a sentence for each reason.",
    ),
    Symptom(
        "PartitionStuck", "page", 0.0,
        lambda scale: f"ebbtide_partition_stalled_seconds > {scale.seconds(5 * MINUTE_S):g}"
        " unless on (instance, partition) ebbtide_partition_blocked_records > 0",
        "Partition {{ $labels.partition }} has stood still for {{ $value | humanizeDuration }}",
        "Its log holds records, and nothing of it was committed.",
    ),
    Symptom(
        "PartitionStopped", "page", MINUTE_S,
        lambda _: 'ebbtide_partition_state{state="stopped", reason!="UnreadableBatch"} == 1',
        "Partition {{ $labels.partition }} has stopped: {{ $labels.reason }}",
        "It does nothing more until a person has looked; the others go on.",
    ),
    Symptom(
        "CorruptBatch", "page", 0.0,
        lambda _: 'ebbtide_partition_state{state="stopped", reason="UnreadableBatch"} == 1',
        "A record batch of partition {{ $labels.partition }} cannot be read",
        "It is corrupt, or larger than may be decompressed; the partition stands before it.",
    ),
    Symptom(
        "OpenTransaction", "ticket", 5 * MINUTE_S, lambda _: "ebbtide_partition_blocked_records > 0",
        "{{ $value }} records of partition {{ $labels.partition }} lie behind an open transaction",
        "A producer began a transaction and has neither committed nor aborted it.",
    ),
    Symptom(
        "ScorerHung", "page", 0.0, lambda scale: f"ebbtide_scorer_call_age_seconds > {scale.seconds(MINUTE_S):g}",
        "The model of {{ $labels.instance }} has not answered for {{ $value | humanizeDuration }}",
        "A call takes milliseconds. After two minutes /healthz fails, and a restart is due.",
    ),
    Symptom(
        "ServerAway", "page", 2 * MINUTE_S, lambda _: "ebbtide_server_up == 0",
        "{{ $labels.server }} does not answer {{ $labels.instance }}",
        "Partitions wait, nothing is lost, and nobody is alerted.",
    ),
    Symptom(
        "Lag", "ticket", 10 * MINUTE_S,
        lambda scale: f"max by (partition) (ebbtide_partition_lag_seconds) > {scale.seconds(5 * MINUTE_S):g}",
        "Partition {{ $labels.partition }} is {{ $value | humanizeDuration }} behind",
        "It moves, and not fast enough, or it makes its state again.",
    ),
    Symptom(
        "Reopening", "ticket", 0.0,
        lambda scale: f"sum by (reason) (increase(ebbtide_partition_reopened_total[{scale.window(10 * MINUTE_S)}]))"
        " > 20",
        "Partitions go back to their checkpoints again and again: {{ $labels.reason }}",
        "In ones and twos it is a rebalance; so often something is wrong.",
    ),
    Symptom(
        "DeadLetters", "ticket", 0.0,
        lambda scale: f"sum by (reason) (increase(ebbtide_dead_letters_total[{scale.window(10 * MINUTE_S)}]))"
        f" > on () group_left () 0.01 * sum(increase(ebbtide_records_total[{scale.window(10 * MINUTE_S)}])) + 10",
        "More than 1 % of records are bad: {{ $labels.reason }}",
        "One reason suddenly: a producer changed its format.",
    ),
    Symptom(
        "NoEvents", "page", 5 * MINUTE_S,
        lambda scale: f"sum(increase(ebbtide_records_total[{scale.window(15 * MINUTE_S)}])) == 0"
        f" and sum(increase(ebbtide_records_total[{scale.window(DAY_S)}])) > 0",
        "Nothing has been read for a quarter of an hour",
        "There were records within the last day. Either nobody produces, or we do not read.",
    ),
    Symptom(
        "ScoreDrift", "ticket", 0.0,
        lambda scale: "max by (version) (abs(ebbtide:score_probability:ecdf1h - ebbtide:score_probability:ecdf7d))"
        f" > {DRIFT_MAX:g} and on (version) sum by (version) "
        f"(increase(ebbtide_score_probability_count[{scale.window(HOUR_S)}])) > {SCORES_MIN}",
        "Scores of version {{ $labels.version }} are not distributed as they were",
        "The distributions of the last hour and of the last week differ: customers changed, or their events did.",
    ),
    Symptom(
        "RedisMemory", "page", 5 * MINUTE_S,
        lambda _: "ebbtide_redis_memory_used_bytes / ebbtide_redis_memory_max_bytes > 0.85",
        "Redis {{ $labels.server }} is {{ $value | humanizePercentage }} full",
        "At maxmemory it refuses writes, and every partition stops.",
    ),
    Symptom(
        "ModelRefused", "ticket", 5 * MINUTE_S, lambda _: "ebbtide_model_versions_refused > 0",
        "{{ $labels.instance }} refuses a version of the model",
        "What runs goes on; the log's line names version and reason.",
    ),
    Symptom(
        "TimersHeld", "ticket", 5 * MINUTE_S, lambda _: "min(ebbtide_timers_held) == 1",
        "No record comes to the whole topic",
        "Nobody's silence is taken meanwhile: it may be the producers'. GET /readyz says for how long.",
    ),
    Symptom(
        "SourceLow", "ticket", 5 * MINUTE_S, lambda _: "sum(ebbtide_source_low_partitions) > 0",
        "{{ $value }} partitions bring far less than is usual",
        "Nobody's silence is taken there meanwhile: it may be the producers'. GET /readyz names them.",
    ),
    Symptom(
        "Unexplained", "ticket", 0.0,
        lambda scale: 'sum by (outcome) (increase(ebbtide_explanations_total{outcome!="holds"}'
        f"[{scale.window(HOUR_S)}])) > on () group_left () 0.01 * sum(increase(ebbtide_explanations_total"
        f"[{scale.window(HOUR_S)}])) + 5",
        "More than 1 % of alerts have no reasons: {{ $labels.outcome }}",
        "The alerts are sent, without their reasons.",
    ),
    Symptom(
        "Misplaced", "ticket", 0.0,
        lambda scale: f"sum(increase(ebbtide_events_misplaced_total[{scale.window(HOUR_S)}])) > 0",
        "Events lie in another partition than their customer's",
        "A producer has another partitioner: its customers are two people each here.",
    ),
)  # fmt: skip


def recording_rules(scale: Scale) -> list[dict[str, Any]]:
    """The cumulative shares of scores by bucket: of an hour, and of a week."""
    return [
        {
            "record": f"ebbtide:score_probability:ecdf{label}",
            "expr": f"sum by (version, le) (increase(ebbtide_score_probability_bucket[{scale.window(s)}]))"
            " / on (version) group_left () sum by (version) "
            f"(increase(ebbtide_score_probability_count[{scale.window(s)}]))",
        }
        for label, s in (("1h", HOUR_S), ("7d", 7 * DAY_S))
    ]


def symptom_alerts(scale: Scale) -> list[dict[str, Any]]:
    """The alerts of SYMPTOMS."""
    return [
        {
            "alert": f"Ebbtide{s.name}",
            "expr": s.expr(scale),
            "for": scale.hold(s.hold_s),
            "labels": {"severity": s.severity},
            "annotations": {"summary": s.summary, "description": s.description},
        }
        for s in SYMPTOMS
    ]
