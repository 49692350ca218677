"""The figures of a replay: live snapshots beside baselines, alerts against what followed, streamed against offline.

It is given what came out (`ops/replay/run.py`) and the log, and knows what followed each point; it talks to no server.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.known import known_until
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.record.fold import CAUSES, EVENT
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import SNAPSHOT, replay
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import epoch_ms, format_time
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.dataset import History
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.labels import CHURNED, STAYED
from ebbtide.model.fitting.baselines import Baselines
from ebbtide.model.judging.evaluate import MODEL, Evaluation, evaluate
from ebbtide.model.serving.scorer import Scorer, of_target
from ebbtide.model.training.offline import baselines_of, examples_until
from ebbtide.ops.errors import OpsError
from ebbtide.ops.replay.outcomes import Alerting, alerting_of
from ebbtide.ops.replay.run import Replayed, Snapshot

PRIMARY = "primary"
OF_TIME = -2
"""In the place of an offset: of a silence, which is told apart by its customer and time."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A snapshot with its figures; `customers`: eligible, `evaluation.rows`: those of them whose horizon is known.
    further: of the other targets by name; there the baseline, `primary`, is what the primary head says of them."""

    as_of: int
    customers: int
    evaluation: Evaluation
    further: dict[str, Evaluation]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Streamed scores against offline ones: points of both, of one alone, and the largest difference of p."""

    points: int
    missing: int
    extra: int
    difference_max: float


def history_of(layout: Layout, log: EventLog) -> History:
    """The log, taken as complete up to, not including, the time just after its last event."""
    return History(layout, log.events, known_until(log.events.time))


def fit_baselines(history: History, labels_until_ms: int, config: TrainConfig) -> Baselines:
    """The baselines on all that training may know: they are fitted again, never stored."""
    learned = examples_until(history, labels_until_ms, config)
    return baselines_of(learned, history.log, history.layout.spec, labels_until_ms, config)


def judge(
    snapshot: Snapshot, history: History, scorer: Scorer, baselines: Baselines, bootstrap: int
) -> Judged:
    """Score a snapshot's records with the served model and hold it against what followed. Raises OpsError when the
    log ends before the snapshot's horizon does."""
    as_of = np.full(len(snapshot.rows), snapshot.as_of, np.int64)
    label = history.labeller.label(snapshot.customer, as_of)
    usable = (label == CHURNED) | (label == STAYED)
    if not usable.any():
        raise OpsError(
            "a snapshot's horizon ends after the log: nobody knows who churned",
            hint=f"take --snapshot at least {history.layout.spec.horizon_ms / DAY_MS:.0f} days before the last event",
        )
    rows, times = snapshot.rows[usable], as_of[usable]
    cause = np.full(len(rows), SNAPSHOT, np.uint8)
    customer = snapshot.customer[usable]
    examples = Examples(
        customer, times, cause, label[usable], history.inputs(rows, times), person=history.people(customer)
    )
    said = scorer.score(rows, times)
    scores: dict[str, NDArray[Any]] = {MODEL: of_target(said, 0), **baselines.probabilities(examples)}
    evaluation = evaluate(
        scores, label[usable] == CHURNED, customer, people=examples.people, bootstrap=bootstrap
    )
    further = {}
    for t, name in list(enumerate(history.layout.spec.target_names))[1:]:
        of = history.labeller.label(examples.customer, times, t)
        known = (of == CHURNED) | (of == STAYED)
        if known.any():
            both = {MODEL: of_target(said, t)[known], PRIMARY: of_target(said, 0)[known]}
            further[name] = evaluate(
                both,
                of[known] == CHURNED,
                customer[known],
                people=examples.people[known],
                bootstrap=bootstrap,
            )
    return Judged(snapshot.as_of, len(snapshot.rows), evaluation, further)


def compare(replayed: Replayed, history: History, scorer: Scorer) -> Agreement:
    """Every decision point of the streamed part, scored again offline from the log alone."""
    streamed = {
        (s.customer, s.offset if s.cause == CAUSES[EVENT] else OF_TIME, s.as_of, s.cause): s.p
        for s in replayed.scores
    }  # an at-least-once duplicate has the same key, and must have the same p
    if len(streamed) != len(replayed.scores):
        raise OpsError("one decision point was streamed with two different scores", hint="this is a defect")
    missing, same, difference = 0, 0, 0.0
    # To the worker's own clocks: one event far ahead moves that of its partition, and not what is known.
    end_ms = max(history.known_until_ms, int(replayed.until_ms.max()) + 1)
    for points in replay(history.layout, history.log, end_ms):
        # What was due before the stream began is history: the backfill took it and nobody was asked to score it.
        # Nor was there anybody to take what is due after the last event that the worker saw.
        taken = (points.event >= replayed.start) | (points.as_of < replayed.until_ms[points.customer])
        own = points.scored & taken & (points.as_of >= replayed.from_ms)
        if not own.any():
            continue
        p = of_target(scorer.score(points.rows[own], points.as_of[own]), 0)
        at_event = points.cause[own] == EVENT
        place = np.full(len(at_event), OF_TIME, np.int64)
        place[at_event] = replayed.offset[points.event[own][at_event] - replayed.start]
        keys = zip(
            (history.log.customers[i] for i in points.customer[own].tolist()), place.tolist(),
            points.as_of[own].tolist(), (CAUSES[cause] for cause in points.cause[own].tolist()), strict=True,
        )  # fmt: skip
        for key, offline in zip(keys, p.tolist(), strict=True):
            live = streamed.pop(key, None)
            if live is None:
                missing += 1
                continue
            same += 1
            difference = max(difference, abs(live - offline))
    return Agreement(same, missing, len(streamed), difference)


def alerting(replayed: Replayed, history: History, target: int = 0) -> Alerting:
    """Of the episodes of one target, by its index, that were alerted about."""
    name = history.layout.spec.target_names[target]
    opened = [alert for alert in replayed.alerts if alert.state == "opened" and alert.target == name]
    index = {name: i for i, name in enumerate(history.log.customers)}
    customer = np.array([index[alert.customer] for alert in opened], np.int32)
    as_of = np.array([epoch_ms(alert.decision.as_of) for alert in opened], np.int64)
    return alerting_of(history, customer, as_of, target)


def as_json(
    replayed: Replayed,
    log: EventLog,
    judged: list[Judged],
    agreement: Agreement,
    alerts: Alerting,
    further: Mapping[str, Alerting] = MappingProxyType({}),
) -> dict[str, Any]:
    """The report under stable names."""
    return {
        "events": len(log) - replayed.start,
        "events_backfilled": replayed.start,
        "customers": len(log.events.customers),
        "dead_letters": replayed.dead_letters,
        "snapshots": [
            {
                **j.evaluation.as_json(),
                "as_of": format_time(j.as_of),
                "customers": j.customers,
                "targets": {name: found.as_json() for name, found in j.further.items()},
            }
            for j in judged
        ],
        "alerts": alerts.opened,
        "alerts_by_silence_alone": alerts.by_silence_alone,
        "alert_precision": None if np.isnan(alerts.precision) else alerts.precision,
        "targets": {
            name: {
                "alerts": each.opened,
                "alert_precision": None if np.isnan(each.precision) else each.precision,
                "lead_time_days_p50": None if np.isnan(each.lead_days_p50) else each.lead_days_p50,
            }
            for name, each in further.items()
        },
        "lead_time_days_p50": None if np.isnan(alerts.lead_days_p50) else alerts.lead_days_p50,
        "score_difference_max": agreement.difference_max,
        "decision_points": agreement.points,
        "decision_points_missing": agreement.missing,
        "decision_points_extra": agreement.extra,
        "events_per_s": (len(log) - replayed.start) / max(replayed.seconds, 1e-9),
        "worker_peak_rss_bytes": replayed.peak_rss_bytes,
    }
