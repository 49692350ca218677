"""What Prometheus sees: `Telemetry` made into counters, gauges and classic histograms.

One prefix, base units, no customer in a label. Buckets stand around the objectives: 100 ms from event to alert, a few
milliseconds for a dispatch (the Python client has no native histograms).

    counted as it happens    everything that `Telemetry` tells. A series with a label exists from the start, at 0: a
                             rate over one that appears with its first error is no rate, and raises no alert
    asked at the scrape      what is so *now*: lag, stalls, readiness, the model. A figure noted at the last turn says
                             nothing when there is no next one
"""

import gzip
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from itertools import product
from typing import TypeVar, get_args

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder, gzip_accepted

from ebbtide.featurestore import errors as store_errors
from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.events.contract import Reason
from ebbtide.featurestore.record.fold import CAUSES
from ebbtide.ops.observe.at_scrape import AtScrape
from ebbtide.ops.observe.histogram import ColumnHistogram
from ebbtide.stream import errors as stream_errors
from ebbtide.stream import telemetry
from ebbtide.stream.decision.policy import Held, State
from ebbtide.stream.decision.rules import LOWEST_BAND
from ebbtide.stream.outputs.dead_letter import UNSCORED
from ebbtide.stream.telemetry import AlertSent, Dispatched, Telemetry, TurnDone

# Up to an hour: an outage of eighteen minutes must not read as one.
LATENCY_BUCKETS_S = (
    0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 900.0, 3600.0,
)  # fmt: skip
AGE_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0)
"""Of events and decisions, not of records: a phone may send its events a day late."""
PROBABILITY_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
CALL_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
BANDS = tuple(f"{tenth / 10:.1f}" for tenth in range(10))
"""Lower edges of the tenths of probability."""
REDIS_OPERATIONS = ("checkpoint", "load", "apply")
KAFKA_OPERATIONS = ("send", "take_over")
SERVER_ERRORS = {"redis": ("Fenced", "StoreUnavailable"), "kafka": ("BrokerUnavailable",)}
"""Those that happen to a healthy worker: there from the start."""
STAGE_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
DISPATCH_BUCKETS_S = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TRANSITIONS: tuple[str, ...] = get_args(State)
HELD_BY = tuple(by for by in get_args(Held) if by)
STAGES: tuple[str, ...] = get_args(telemetry.Stage)
DISPATCH_REASONS: tuple[str, ...] = get_args(telemetry.Reason)
# Why a record is a dead letter: all but what only a file's row can be.
REJECTIONS = (*(reason.value for reason in Reason if reason is not Reason.BAD_ROW), UNSCORED)
# Why a partition reopens or stops: an error, by its name.
ERRORS = tuple(
    sorted(
        name
        for module in (store_errors, stream_errors)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, EbbtideError) and kind.__module__ == module.__name__
    )
)

# Field of TurnDone -> counter and what it says. A new count of a turn is a field there and a line here.
COUNTS = {
    "records": ("ebbtide_records_total", "Records fetched and dealt with."),
    "events": ("ebbtide_events_total", "Events folded into customers' records."),
    "ignored": ("ebbtide_events_ignored_total", "Events of types the spec ignores."),
    "late": (
        "ebbtide_events_late_total",
        "Events older than the longest window behind their customer's latest.",
    ),
    "duplicates": ("ebbtide_events_duplicate_total", "Events skipped by their event_id."),
    "behind_watermark": (
        "ebbtide_events_behind_watermark_total",
        "Events older than the last decision of their customer.",
    ),
    "misplaced": (
        "ebbtide_events_misplaced_total",
        "Events in another partition than the default partitioner's.",
    ),
    "tombstones": ("ebbtide_tombstones_total", "Tombstones read, whether they found a record or not."),
    "forgotten": ("ebbtide_customers_forgotten_total", "Records that a tombstone deleted."),
    "due": ("ebbtide_timer_customers_total", "Customers whom time brought something, taken by timers."),
    "expired": ("ebbtide_customers_expired_total", "Records deleted a week after the spec's memory."),
    "expired_bytes": ("ebbtide_expired_record_bytes_total", "Their size, before packing."),
}
# Field of TurnDone that counts by a label -> counter, what it says, the label, its values.
COUNTS_BY = {
    "rejected": ("ebbtide_dead_letters_total", "Bad records, by reason.", "reason", REJECTIONS),
    "points": ("ebbtide_decision_points_total", "Points decided, by cause.", "cause", tuple(CAUSES.values())),
    "held": ("ebbtide_alerts_held_back_total", "Transitions that nobody was told of, by why.", "by", HELD_BY),
}


class Metrics(Telemetry):
    """A `Telemetry` over one Prometheus registry, with the process's own figures beside ours."""

    def __init__(
        self, registry: CollectorRegistry | None = None, bands: Sequence[str] = (LOWEST_BAND,)
    ) -> None:
        """`bands`: those that the policy has, which are there from the start."""
        # A series beside each counter, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the client publishes no type for it
        self.registry = registry or CollectorRegistry()
        r = self.registry
        ProcessCollector(registry=r)
        PlatformCollector(registry=r)
        GCCollector(registry=r)
        Info("ebbtide_build", "The installed version.", registry=r).info({"version": version("ebbtide")})
        self.on_turn: Callable[[TurnDone], None] | None = None
        """Who else hears of turns: the page."""
        self._timers_hold = Gauge(
            "ebbtide_timers_held",
            "1: no silence is taken, no record has come to the whole topic for too long.",
            registry=r,
        )
        self._low = Gauge(
            "ebbtide_source_low_partitions",
            "Partitions in which no silence is taken, since their logs bring less than source_share_min of the usual.",
            registry=r,
        )
        self._timer_lateness = Gauge(
            "ebbtide_timer_lateness_seconds", "How long somebody has been due, beyond lateness_max; 0 for nobody.",
            registry=r,
        )  # fmt: skip
        self.at_scrape = AtScrape()
        """Whom to ask what is so now, and what it gave."""
        r.register(self.at_scrape)
        self._counts = {field: Counter(*of, registry=r) for field, of in COUNTS.items()}
        self._counts_by = {
            field: _labelled(Counter(name, words, [label], registry=r), values)
            for field, (name, words, label, values) in COUNTS_BY.items()
        }
        self._alerts = Counter(
            "ebbtide_alerts_total",
            "Alerts sent, by transition and band of risk.",
            ["transition", "band"],
            registry=r,
        )
        for transition, band in product(TRANSITIONS, bands):
            self._alerts.labels(transition, band)
        self._latency = Histogram(
            "ebbtide_event_to_emit_seconds", "Kafka timestamp of a turn's oldest record to its last acknowledgement.",
            buckets=LATENCY_BUCKETS_S, registry=r,
        )  # fmt: skip
        self._alert_latency = Histogram(
            "ebbtide_alert_latency_seconds", "Kafka timestamp of an alert's record to its acknowledgement.",
            buckets=LATENCY_BUCKETS_S, registry=r,
        )  # fmt: skip
        self._decision_age = Histogram(
            "ebbtide_alert_decision_age_seconds", "From the moment that an alert was decided as of to its sending.",
            ["cause"], buckets=AGE_BUCKETS_S, registry=r,
        )  # fmt: skip
        self._opened = Counter(
            "ebbtide_episodes_opened_total", "Alerts that opened an episode, by tenth of probability and version.",
            ["band", "version"], registry=r,
        )  # fmt: skip
        self._event_age = ColumnHistogram(
            "ebbtide_score_event_age_seconds", "Age of an event when its score was there.", AGE_BUCKETS_S
        )
        self._probability = ColumnHistogram(
            "ebbtide_score_probability", "Scores of decision points.", PROBABILITY_BUCKETS, "version"
        )
        r.register(self._event_age)
        r.register(self._probability)
        self._turns = Counter("ebbtide_turns_total", "Turns that were applied and sent.", registry=r)
        self._redis = _Calls("redis", "Redis", REDIS_OPERATIONS, r)
        self._kafka = _Calls("kafka", "Kafka", KAFKA_OPERATIONS, r)
        self._explanations = Counter(
            "ebbtide_explanations_total",
            "Rows that were to be explained: the parts add up, do not (not sent), or there are none.",
            ["outcome"],
            registry=r,
        )
        for outcome in ("holds", "inexact", "failed"):
            self._explanations.labels(outcome)
        self._messages = Counter("ebbtide_kafka_messages_total", "Messages given to Kafka.", registry=r)
        self._stages = Histogram(
            "ebbtide_stage_seconds",
            "Seconds of a turn, by stage.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=r,
        )
        self._dispatches = Counter(
            "ebbtide_dispatches_total",
            "Calls of the model, by reason and version.",
            ["reason", "version"],
            registry=r,
        )
        self._rows = Histogram("ebbtide_dispatch_rows", "Rows a dispatch.", buckets=ROW_BUCKETS, registry=r)
        self._dispatch_events = Counter(
            "ebbtide_dispatch_events_total", "Events behind scored rows.", registry=r
        )
        self._padding = Counter("ebbtide_dispatch_padding_rows_total", "Rows of padding scored.", registry=r)
        self._queue_age = Histogram(
            "ebbtide_dispatch_queue_age_seconds", "Age of a dispatch's oldest row in the queue.",
            buckets=DISPATCH_BUCKETS_S, registry=r,
        )  # fmt: skip
        self._seconds = Histogram(
            "ebbtide_dispatch_seconds",
            "Seconds a dispatch took.",
            ["size"],
            buckets=DISPATCH_BUCKETS_S,
            registry=r,
        )
        self._predicted = Counter("ebbtide_dispatch_predicted_seconds_total", "Seconds foreseen.", registry=r)
        self._queue = Gauge("ebbtide_score_queue_rows", "Rows that wait for the scorer.", registry=r)
        self._owned = Gauge(
            "ebbtide_partitions_owned", "Partitions of the input topic that are ours.", registry=r
        )
        self._position = Gauge("ebbtide_partition_position", "Applied offset.", ["partition"], registry=r)
        self._paused = Gauge(
            "ebbtide_partition_paused", "1 while the fetch is paused.", ["partition"], registry=r
        )
        self._reopened = Counter(
            "ebbtide_partition_reopened_total", "Times a partition went back to its checkpoint.", ["reason"], registry=r
        )  # fmt: skip
        self._rebuild = Gauge(
            "ebbtide_rebuild_remaining_records", "Offsets until a state made again is where it was; 0 when it is.",
            ["partition"], registry=r,
        )  # fmt: skip
        self._stopped = Counter(
            "ebbtide_partition_stopped_total", "Times a partition stopped until somebody looks.", ["reason"], registry=r
        )  # fmt: skip
        self._in_history = Counter(
            "ebbtide_records_in_history_total",
            "Records left out, since a backfilled file held them.",
            registry=r,
        )
        self._partitions: frozenset[int] = frozenset()
        _labelled(self._stages, STAGES)
        _labelled(self._decision_age, CAUSES.values())
        _labelled(self._reopened, ERRORS)
        _labelled(self._stopped, ERRORS)

    def dispatched(self, dispatch: Dispatched) -> None:
        self._dispatches.labels(dispatch.reason, str(dispatch.version)).inc()
        self._rows.observe(dispatch.rows)
        self._dispatch_events.inc(dispatch.events)
        self._padding.inc(dispatch.padding)
        self._queue_age.observe(dispatch.queue_age_s)
        self._seconds.labels(str(dispatch.size)).observe(dispatch.actual_s)
        self._predicted.inc(dispatch.predicted_s)

    def turn_done(self, turn: TurnDone) -> None:
        self._turns.inc()
        if self.on_turn is not None:
            self.on_turn(turn)
        for field, counter in self._counts.items():
            counter.inc(getattr(turn, field))
        for field, counter in self._counts_by.items():
            for value, n in getattr(turn, field).items():
                counter.labels(value).inc(n)
        for stage, seconds in turn.seconds.items():
            self._stages.labels(stage).observe(seconds)
        if turn.latency_s is not None:
            self._latency.observe(max(turn.latency_s, 0.0))
        for alert in turn.sent:
            self._alert_sent(alert)
        if turn.judged is not None:
            self._probability.observe(turn.judged.p, str(turn.judged.version))
            self._event_age.observe(np.maximum(turn.judged.event_age_s, 0.0))
        for piece in turn.pieces:
            if piece.partition not in self._partitions:
                continue  # given away while its turn ended: its series would stand still here for good
            self._position.labels(str(piece.partition)).set(piece.position)
            if piece.lag is not None:
                self.at_scrape.seen_lag[piece.partition] = piece.lag

    def _alert_sent(self, alert: AlertSent) -> None:
        if alert.record_age_s is not None:
            # Where to look for what made it slow: the position of its record, and no customer.
            where = {"partition": str(alert.partition), "offset": str(alert.offset)}
            self._alert_latency.observe(max(alert.record_age_s, 0.0), where)
        self._alerts.labels(alert.transition, alert.band).inc()
        self._decision_age.labels(alert.cause).observe(max(alert.decision_age_s, 0.0))
        if alert.transition == "opened" and alert.probability is not None:
            self._opened.labels(band_of(alert.probability), str(alert.version)).inc()

    def timers(self, hold: bool, low: int, late_s: float) -> None:
        self._timers_hold.set(hold)
        self._low.set(low)
        self._timer_lateness.set(late_s)

    def in_history(self, records: int) -> None:
        self._in_history.inc(records)

    def assigned(self, partitions: frozenset[int]) -> None:
        for gone in self._partitions - partitions:
            for gauge in (self._position, self._paused, self._rebuild):
                gauge.remove_by_labels({"partition": str(gone)})
            self.at_scrape.seen_lag.pop(gone, None)
        self._partitions = partitions
        self._owned.set(len(partitions))

    def paused(self, partition: int) -> None:
        self._paused.labels(str(partition)).set(1)

    def resumed(self, partition: int) -> None:
        self._paused.labels(str(partition)).set(0)

    def reopened(self, partition: int, reason: str) -> None:  # noqa: ARG002  # too many series, and the log has it
        self._reopened.labels(reason).inc()

    def rebuilding(self, partition: int, remaining: int) -> None:
        self._rebuild.labels(str(partition)).set(remaining)

    def stopped(self, partition: int, reason: str) -> None:  # noqa: ARG002  # the log has it, and /readyz
        self._stopped.labels(reason).inc()

    def explained(self, rows: int, inexact: int, failed: int) -> None:
        for outcome, n in (("holds", rows - inexact - failed), ("inexact", inexact), ("failed", failed)):
            self._explanations.labels(outcome).inc(n)

    def queued(self, rows: int) -> None:
        self._queue.set(rows)

    def redis_called(self, operation: str, seconds: float, errors: Sequence[str], _questions: int) -> None:
        """Redis was asked; see `ops/observe/servers.py`."""
        self._redis.called(operation, seconds, errors)

    def kafka_called(self, operation: str, seconds: float, errors: Sequence[str], messages: int) -> None:
        """Kafka was sent something."""
        self._kafka.called(operation, seconds, errors)
        self._messages.inc(messages)

    def render(self, accept: str = "", encodings: str = "") -> tuple[bytes, dict[str, str]]:
        """The exposition and its headers, for what a client says in Accept and in Accept-Encoding."""
        if self.at_scrape.model is not None:
            number = str(self.at_scrape.model()[1])
            for reason in DISPATCH_REASONS:
                self._dispatches.labels(reason, number)
            for band in BANDS:
                self._opened.labels(band, number)
            self._probability.observe(np.empty(0), number)
        encode, content_type = choose_encoder(accept)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        body: bytes = encode(self.registry)
        if gzip_accepted(encodings):
            return gzip.compress(body, compresslevel=5), headers | {"Content-Encoding": "gzip"}
        return body, headers


class _Calls:
    """Calls of one server: seconds by operation, and errors by operation and class."""

    def __init__(
        self, server: str, name: str, operations: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._seconds = Histogram(
            f"ebbtide_{server}_call_seconds", f"Seconds of a round of questions to {name}, by operation.",
            ["operation"], buckets=CALL_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._errors = Counter(
            f"ebbtide_{server}_errors_total", f"Questions to {name} that failed, by operation and error.",
            ["operation", "reason"], registry=registry,
        )  # fmt: skip
        _labelled(self._seconds, operations)
        for operation in operations:
            for reason in SERVER_ERRORS[server]:
                self._errors.labels(operation, reason)

    def called(self, operation: str, seconds: float, errors: Sequence[str]) -> None:
        self._seconds.labels(operation).observe(seconds)
        for reason in errors:
            self._errors.labels(operation, reason).inc()


def band_of(probability: float) -> str:
    """The tenth that a probability in [0, 1] lies in, by its lower edge; 1 is of the last one."""
    return BANDS[min(int(probability * 10), 9)]


_Labelled = TypeVar("_Labelled", Counter, Histogram)


def _labelled(metric: _Labelled, values: Iterable[str]) -> _Labelled:
    """With a series for each value of its one label, at 0."""
    for value in values:
        metric.labels(value)
    return metric
