"""Turns as OpenTelemetry traces, sent to a collector by OTLP over HTTP (protobuf); imported only where that is set.

    turn                       partitions, records, alerts, the model's version; links to the traces of its records
    ├── parse … load … fold … score … decide … store … emit        the stages that `ebbtide_stage_seconds` measures
    alert                      continues the trace of the record that it was decided at, and links to its turn

A record's `traceparent` header is its producer's trace. A turn takes hundreds of records, so it is a trace of its own,
of which a share is kept, and links to those it took; an alert is of one record, and goes on with that one's trace,
which is kept if its producer kept it. The alert's own `traceparent` header hands it on. An alert that is sent again by
a new owner has none: the outbox keeps what is promised, and a trace is not.

Spans go through a bounded queue to a thread: a collector that is slow or away costs spans, and no turn waits for it.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import islice
from threading import Timer
from types import TracebackType
from typing import Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ebbtide.stream.batch import FetchedBatch, Record
from ebbtide.stream.clock import Clock
from ebbtide.stream.telemetry import Stage, TurnDone

LINKS_MAX = 32
"""Of a turn, to its records' traces: it may hold a thousand records, and nobody follows more."""
QUEUE_SPANS_MAX = 4_096
EXPORT_S_MAX = 2.0
"""For one request to the collector, with its retries; also on the way out."""
NS_PER_S = 1_000_000_000
CONTEXT_HEADERS = ("traceparent", "tracestate")
_W3C = TraceContextTextMapPropagator()


class Traces:
    """Makes the traces of a worker's turns: `turn` is a `Tracer` of `stream/telemetry.py`.

    url: the collector's, without a path. share: of the turns, in [0, 1]. authorization: the header's value. resource:
    who we are, in OpenTelemetry's names.
    """

    def __init__(
        self,
        clock: Clock,
        url: str,
        topic: str,
        share: float,
        authorization: str | None,
        resource: Mapping[str, str],
    ) -> None:
        # What is told of an outage of the collector is one error a batch that was lost, not one warning a try.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        self._clock, self._topic = clock, topic
        self._exporter = OTLPSpanExporter(
            f"{url.rstrip('/')}/v1/traces",
            headers={} if authorization is None else {"Authorization": authorization},
            timeout=EXPORT_S_MAX,
        )
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create(dict(resource)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter, max_queue_size=QUEUE_SPANS_MAX))
        self._tracer = self._provider.get_tracer("ebbtide")

    def turn(self, batches: Sequence[FetchedBatch]) -> "Turn":
        """The trace of a turn over these batches."""
        return Turn(self._tracer, self._clock, self._topic, batches)

    def close(self) -> None:
        """Send what is left. Blocks for as long as the collector takes, twice EXPORT_S_MAX at most."""
        giving_up = Timer(EXPORT_S_MAX, self._exporter.shutdown)
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()


class Turn:
    """A `TurnTrace`."""

    def __init__(self, tracer: Tracer, clock: Clock, topic: str, batches: Sequence[FetchedBatch]) -> None:
        self._tracer, self._clock, self._topic = tracer, clock, topic
        # One reading of the wall: the stages are as long as the monotonic clock says.
        self._began_ns, self._began_s = clock.now_ms() * 1_000_000, clock.monotonic_s()
        self._span = tracer.start_span("turn", Context(), SpanKind.CONSUMER, start_time=self._began_ns)
        self._kept = self._span.is_recording()
        self._context = set_span_in_context(self._span, Context())
        if self._kept:
            records = sum(len(batch.records) for batch in batches)
            self._span.set_attributes(
                {
                    "messaging.system": "kafka", "messaging.operation.type": "process",
                    "messaging.destination.name": topic, "messaging.batch.message_count": records,
                    "ebbtide.partitions": [batch.partition for batch in batches],
                }
            )  # fmt: skip
            contexts = (context_of(record) for batch in batches for record in batch.records if record.headers)
            for context in islice((c for c in contexts if c is not None), LINKS_MAX):
                self._span.add_link(context)

    def stage(self, stage: Stage, seconds: float) -> None:
        """As in `TurnTrace`."""
        if self._kept:
            ended_ns = self._now_ns()
            span = self._tracer.start_span(
                stage, self._context, start_time=max(ended_ns - int(seconds * NS_PER_S), self._began_ns)
            )
            span.end(ended_ns)

    def alert(self, record: Record | None) -> list[tuple[str, bytes]]:
        """As in `TurnTrace`: its span is the parent of whatever comes of the alert."""
        parent = None if record is None else context_of(record)
        within = self._context
        if parent is not None:
            within = set_span_in_context(NonRecordingSpan(parent), Context())
        now_ns = self._now_ns()
        span = self._tracer.start_span(
            "alert", within, SpanKind.PRODUCER, {"messaging.system": "kafka"},
            links=[] if parent is None else [Link(self._span.get_span_context())], start_time=now_ns,
        )  # fmt: skip
        span.end(now_ns)
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(span, Context()))
        return [(name, value.encode()) for name, value in carrier.items()]

    def done(self, turn: TurnDone | None, outcomes: Mapping[int, Exception | None]) -> None:
        """As in `TurnTrace`."""
        if not self._kept:
            return
        if turn is not None:
            self._span.set_attributes(
                {"ebbtide.events": turn.events, "ebbtide.dead_letters": sum(turn.rejected.values()),
                 "ebbtide.points": sum(turn.points.values()), "ebbtide.alerts": len(turn.sent)}
            )  # fmt: skip
            if turn.judged is not None:
                self._span.set_attribute("ebbtide.model.version", turn.judged.version)
        for partition, error in outcomes.items():
            if error is not None:
                self._failed(type(error).__name__, partition)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._kept:
            self._failed(kind.__name__, None)
        self._span.end(self._now_ns())

    def _failed(self, why: str, partition: int | None) -> None:
        """By the error's class: what it says may hold more than a collector should see."""
        self._span.set_status(StatusCode.ERROR, why)
        at = {} if partition is None else {"ebbtide.partition": partition}
        self._span.add_event("partition left the turn", {"error.type": why, **at}, self._now_ns())

    def _now_ns(self) -> int:
        return self._began_ns + int((self._clock.monotonic_s() - self._began_s) * NS_PER_S)


def context_of(record: Record) -> SpanContext | None:
    """The trace that a record's headers say it is of (W3C); None without, or where they make no sense."""
    carrier = {
        name: value.decode("ascii", "replace")
        for name, value in record.headers
        if name in CONTEXT_HEADERS and value
    }
    if "traceparent" not in carrier:
        return None
    context = get_current_span(_W3C.extract(carrier, Context())).get_span_context()
    return context if context.is_valid else None
