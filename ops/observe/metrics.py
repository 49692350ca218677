"""What Prometheus sees: `Telemetry` made into counters, gauges and classic histograms.

One prefix, base units, no customer in a label. Buckets stand around the objectives: 100 ms from event to alert, a few
milliseconds for a dispatch (the Python client has no native histograms).

    counted as it happens    everything that `Telemetry` tells. A series with a label exists from the start, at 0: a
                             rate over one that appears with its first error is no rate, and raises no alert
    asked at the scrape      what is so *now*: lag, stalls, readiness, the model. A figure noted at the last turn says
                             nothing when there is no next one
"""

import gzip
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from typing import TypeVar, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    Metric,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from ebbtide.featurestore import errors as store_errors
from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.events.contract import Reason
from ebbtide.featurestore.record.fold import CAUSES
from ebbtide.stream import errors as stream_errors
from ebbtide.stream import telemetry
from ebbtide.stream.outputs.dead_letter import UNSCORED
from ebbtide.stream.telemetry import Dispatched, Lag, Telemetry, TurnDone

LATENCY_BUCKETS_S = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
STAGE_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
DISPATCH_BUCKETS_S = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.5)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TRANSITIONS = ("opened", "resolved", "terminated")
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
}
# Field of TurnDone that counts by a label -> counter, what it says, the label, its values.
COUNTS_BY = {
    "rejected": ("ebbtide_dead_letters_total", "Bad records, by reason.", "reason", REJECTIONS),
    "points": ("ebbtide_decision_points_total", "Points decided, by cause.", "cause", tuple(CAUSES.values())),
    "alerts": ("ebbtide_alerts_total", "Alerts sent, by transition.", "transition", TRANSITIONS),
}


class _AtScrape(Collector):
    """What is asked when somebody looks. Each question may be missing."""

    def __init__(self) -> None:
        self.ready: Callable[[], bool] | None = None
        self.model: Callable[[], tuple[str, int]] | None = None
        self.refused: Callable[[], int] | None = None
        self.lags: Callable[[], Mapping[int, Lag]] | None = None
        self.seen_lag: dict[int, int] = {}
        """Of the last turn, for whoever has no better answer."""

    def describe(self) -> Iterable[Metric]:
        return ()  # the registry need not ask for values to learn the names

    def collect(self) -> Iterable[Metric]:
        if self.ready is not None:
            yield GaugeMetricFamily("ebbtide_ready", "1 when /readyz says so.", value=float(self.ready()))
        if self.model is not None:
            name, number = self.model()
            yield GaugeMetricFamily("ebbtide_model_version", "Version of the model in service.", value=number)
            yield InfoMetricFamily(
                "ebbtide_model", "The model in service.", value={"name": name, "version": str(number)}
            )
        if self.refused is not None:
            yield GaugeMetricFamily(
                "ebbtide_model_versions_refused",
                "Versions above the one in service that cannot be served, and 1 for a folder that cannot be looked at.",
                value=self.refused(),
            )
        yield from self._lags()

    def _lags(self) -> Iterable[Metric]:
        records = _by_partition("ebbtide_partition_lag_records", "Offsets between position and log end.")
        if self.lags is None:
            for partition, lag in self.seen_lag.items():
                records.add_metric([str(partition)], lag)
            yield records
            return
        blocked = _by_partition(
            "ebbtide_partition_blocked_records",
            "Offsets of the lag behind an open transaction of a producer.",
        )
        stalled = _by_partition(
            "ebbtide_partition_stalled_seconds",
            "Seconds since the last progress, of a partition with records.",
        )
        for partition, (lag, held, stalled_s) in self.lags().items():
            records.add_metric([str(partition)], lag)
            blocked.add_metric([str(partition)], held)
            stalled.add_metric([str(partition)], stalled_s)
        yield from (records, blocked, stalled)


def _by_partition(name: str, words: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, words, labels=["partition"])


class Metrics(Telemetry):
    """A `Telemetry` over one Prometheus registry, with the process's own figures beside ours."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        # A series beside each counter, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the client publishes no type for it
        self.registry = registry or CollectorRegistry()
        r = self.registry
        ProcessCollector(registry=r)
        PlatformCollector(registry=r)
        GCCollector(registry=r)
        Info("ebbtide_build", "The installed version.", registry=r).info({"version": version("ebbtide")})
        self._at_scrape = _AtScrape()
        r.register(self._at_scrape)
        self._counts = {field: Counter(*of, registry=r) for field, of in COUNTS.items()}
        self._counts_by = {
            field: _labelled(Counter(name, words, [label], registry=r), values)
            for field, (name, words, label, values) in COUNTS_BY.items()
        }
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
        self._customers = Gauge(
            "ebbtide_partition_customers", "Customers with a record, as last counted.", ["partition"], registry=r
        )  # fmt: skip
        self._redis_used = Gauge(
            "ebbtide_redis_used_bytes", "Memory that a Redis uses.", ["server"], registry=r
        )
        self._redis_max = Gauge(
            "ebbtide_redis_max_bytes", "What it may use (maxmemory); 0 is no limit.", ["server"], registry=r
        )  # fmt: skip
        self._in_history = Counter(
            "ebbtide_records_in_history_total",
            "Records left out, since a backfilled file held them.",
            registry=r,
        )
        self._partitions: frozenset[int] = frozenset()
        _labelled(self._stages, STAGES)
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
        for field, counter in self._counts.items():
            counter.inc(getattr(turn, field))
        for field, counter in self._counts_by.items():
            for value, n in getattr(turn, field).items():
                counter.labels(value).inc(n)
        for stage, seconds in turn.seconds.items():
            self._stages.labels(stage).observe(seconds)
        if turn.latency_s is not None:
            self._latency.observe(max(turn.latency_s, 0.0))
        for piece in turn.pieces:
            self._position.labels(str(piece.partition)).set(piece.position)
            if piece.lag is not None:
                self._at_scrape.seen_lag[piece.partition] = piece.lag

    def in_history(self, records: int) -> None:
        self._in_history.inc(records)

    def assigned(self, partitions: frozenset[int]) -> None:
        for gone in self._partitions - partitions:
            for gauge in (self._position, self._paused, self._rebuild, self._customers):
                gauge.remove_by_labels({"partition": str(gone)})
            self._at_scrape.seen_lag.pop(gone, None)
        self._partitions = partitions
        self._owned.set(len(partitions))

    def paused(self, partition: int) -> None:
        self._paused.labels(str(partition)).set(1)

    def resumed(self, partition: int) -> None:
        self._paused.labels(str(partition)).set(0)

    def reopened(self, partition: int, reason: str) -> None:  # noqa: ARG002  # too many series, and the log has it
        self._reopened.labels(reason).inc()

    def stored(self, customers: Mapping[int, int], servers: Mapping[str, tuple[int, int]]) -> None:
        """Customers by partition of ours; by server of the store the bytes that it uses, and that it may (0: any)."""
        for partition in self._partitions & customers.keys():
            self._customers.labels(str(partition)).set(customers[partition])
        for server, (used, most) in servers.items():
            self._redis_used.labels(server).set(used)
            self._redis_max.labels(server).set(most)

    def rebuilding(self, partition: int, remaining: int) -> None:
        self._rebuild.labels(str(partition)).set(remaining)

    def stopped(self, partition: int, reason: str) -> None:  # noqa: ARG002  # the log has it, and /readyz
        self._stopped.labels(reason).inc()

    def queued(self, rows: int) -> None:
        self._queue.set(rows)

    def ready(self, current: Callable[[], bool]) -> None:
        """Whom to ask whether all is well."""
        self._at_scrape.ready = current

    def serving(self, current: Callable[[], tuple[str, int]]) -> None:
        """Whom to ask which model answers now: its name and version."""
        self._at_scrape.model = current

    def refused(self, current: Callable[[], int]) -> None:
        """Whom to ask how many model versions cannot be served."""
        self._at_scrape.refused = current

    def lags(self, current: Callable[[], Mapping[int, Lag]]) -> None:
        """Whom to ask where each partition of ours stands, as a `Lag`; the series are those it names."""
        self._at_scrape.lags = current

    def render(self, accept: str = "", encodings: str = "") -> tuple[bytes, dict[str, str]]:
        """The exposition and its headers, for what a client says in Accept and in Accept-Encoding."""
        if self._at_scrape.model is not None:
            number = str(self._at_scrape.model()[1])
            for reason in DISPATCH_REASONS:
                self._dispatches.labels(reason, number)
        encode, content_type = choose_encoder(accept)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        body: bytes = encode(self.registry)
        if gzip_accepted(encodings):
            return gzip.compress(body, compresslevel=5), headers | {"Content-Encoding": "gzip"}
        return body, headers


_Labelled = TypeVar("_Labelled", Counter, Histogram)


def _labelled(metric: _Labelled, values: Iterable[str]) -> _Labelled:
    """With a series for each value of its one label, at 0."""
    for value in values:
        metric.labels(value)
    return metric
