"""What Prometheus sees: `Telemetry` made into counters, gauges and classic histograms.

One prefix, base units, no customer in a label. Buckets stand around the objectives: 100 ms from event to alert, a few
milliseconds for a dispatch (the Python client has no native histograms). Series of a partition go away with it.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ebbtide.stream.telemetry import Dispatched, Telemetry, TurnDone

LATENCY_BUCKETS_S = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
STAGE_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
DISPATCH_BUCKETS_S = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TRANSITIONS = ("opened", "resolved", "terminated")


class Metrics(Telemetry):
    """A `Telemetry` over one Prometheus registry."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        self._records = Counter("ebbtide_records_total", "Records fetched and dealt with.", registry=r)
        self._events = Counter("ebbtide_events_total", "Events folded into customers' records.", registry=r)
        self._ignored = Counter(
            "ebbtide_events_ignored_total", "Events of types the spec ignores.", registry=r
        )
        self._rejected = Counter(
            "ebbtide_dead_letters_total", "Bad records, by reason.", ["reason"], registry=r
        )
        self._forgotten = Counter("ebbtide_customers_forgotten_total", "Tombstones obeyed.", registry=r)
        self._points = Counter(
            "ebbtide_decision_points_total", "Points decided, by cause.", ["cause"], registry=r
        )
        self._alerts = Counter(
            "ebbtide_alerts_total", "Alerts sent, by transition.", ["transition"], registry=r
        )
        self._latency = Histogram(
            "ebbtide_event_to_emit_seconds", "Kafka timestamp of a batch's oldest record to its last acknowledgement.",
            buckets=LATENCY_BUCKETS_S, registry=r,
        )  # fmt: skip
        self._stages = Histogram(
            "ebbtide_stage_seconds",
            "Seconds of a batch, by stage.",
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
        self._ready = Gauge("ebbtide_ready", "1 when /readyz says so.", registry=r)
        self._model = Gauge("ebbtide_model_version", "Version of the model in service.", registry=r)
        self._lag = Gauge(
            "ebbtide_partition_lag_records",
            "Offsets between position and log end.",
            ["partition"],
            registry=r,
        )
        self._partitions: frozenset[int] = frozenset()
        for transition in TRANSITIONS:  # a rate over a series that does not exist yet is no rate
            self._alerts.labels(transition)

    def dispatched(self, dispatch: Dispatched) -> None:
        self._dispatches.labels(dispatch.reason, str(dispatch.version)).inc()
        self._rows.observe(dispatch.rows)
        self._dispatch_events.inc(dispatch.events)
        self._padding.inc(dispatch.padding)
        self._queue_age.observe(dispatch.queue_age_s)
        self._seconds.labels(str(dispatch.size)).observe(dispatch.actual_s)
        self._predicted.inc(dispatch.predicted_s)

    def turn_done(self, turn: TurnDone) -> None:
        self._records.inc(turn.records)
        self._events.inc(turn.events)
        self._ignored.inc(turn.ignored)
        self._forgotten.inc(turn.forgotten)
        for reason, n in turn.rejected.items():
            self._rejected.labels(reason).inc(n)
        for cause, n in turn.points.items():
            self._points.labels(cause).inc(n)
        for transition, n in turn.alerts.items():
            self._alerts.labels(transition).inc(n)
        for stage, seconds in turn.seconds.items():
            self._stages.labels(stage).observe(seconds)
        if turn.latency_s is not None:
            self._latency.observe(max(turn.latency_s, 0.0))
        for piece in turn.pieces:
            self._position.labels(str(piece.partition)).set(piece.position)
            if piece.lag is not None:
                self._lag.labels(str(piece.partition)).set(piece.lag)

    def assigned(self, partitions: frozenset[int]) -> None:
        for gone in self._partitions - partitions:
            for gauge in (self._position, self._paused, self._lag, self._rebuild):
                gauge.remove_by_labels({"partition": str(gone)})
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

    def queued(self, rows: int) -> None:
        self._queue.set(rows)

    def ready(self, current: Callable[[], bool]) -> None:
        """Whom to ask whether all is well."""
        self._ready.set_function(lambda: float(current()))

    def serving(self, current: Callable[[], int]) -> None:
        """Whom to ask which model version answers now."""
        self._model.set_function(current)

    def render(self) -> bytes:
        """The exposition, as `/metrics` serves it."""
        return generate_latest(self.registry)
