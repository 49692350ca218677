"""Turns as traces, read by a collector of our own: a whole worker, from a record's trace to its alert's."""

import asyncio
import gzip
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic import SecretStr

from ebbtide.ops.config.settings import Settings, TraceSettings
from ebbtide.ops.observe.traces import LINKS_MAX, Traces
from ebbtide.ops.stack.server import free_ports
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.topics import ensure_topics
from tests.support.seams.streams import LogRecord
from tests.support.workers.outages import event, outage, sigterm, until

EVENTS = 1_500
AUTHORIZATION = "Bearer of the collector"


class Collector:
    """What a collector's OTLP/HTTP port is: `spans` as they came; `url` is its address."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.authorizations: set[str | None] = set()
        self.url = ""

    def take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        self.authorizations.add(headers.get("authorization"))
        plain = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
        for group in ExportTraceServiceRequest.FromString(plain).resource_spans:
            self.resources.append({a.key: a.value.string_value for a in group.resource.attributes})
            self.spans += [span for scope in group.scope_spans for span in scope.spans]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def trace_of(n: int) -> tuple[str, str]:
    """The trace and the span of the producer of event n, in hex."""
    return f"{n + 1:032x}", f"{n + 1:016x}"


async def produce(settings: Settings) -> None:
    """Events, each but every third with its producer's trace; of every other the producer kept the trace."""
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka.url, linger_ms=5) as producer:
        acks = []
        for n in range(EVENTS):
            partition, key, value = event(n)
            trace, span = trace_of(n)
            headers = [] if n % 3 == 0 else [("traceparent", f"00-{trace}-{span}-0{n % 2}".encode())]
            at_ms = orjson.loads(value)["ts"]
            acks.append(
                await producer.send(settings.kafka.topic, value, key, partition, at_ms, headers=headers)
            )
        await asyncio.gather(*acks)


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
async def test_a_trace_goes_from_a_record_through_its_alert(tmp_path: Path) -> None:
    with outage(tmp_path, sizes=(32,)) as servers, collecting() as collector:
        traces = TraceSettings(url=collector.url, share=1.0, authorization=SecretStr(AUTHORIZATION))
        settings = servers.settings("traced", traces=traces)
        direct = servers.direct(settings)
        await ensure_topics(direct.kafka, topic_specs(settings))
        with WorkerProcess(settings, tmp_path) as worker:
            await asyncio.to_thread(worker.wait_ready)
            await produce(direct)
            await until(
                lambda: sum(records_in(span) for span in collector.spans) == EVENTS, "all turns told", 60.0,
                lambda: f"{len(collector.spans)} spans, {worker.log.read_text()[-500:]}",
            )  # fmt: skip
            code, _ = await sigterm(worker)
        assert code == 0
        made = {
            (r.partition, r.offset): dict(r.headers)
            async for r in read_topic(direct.kafka, direct.kafka.topic)
        }
        alerts = [r async for r in read_topic(direct.kafka, direct.topics.alerts)]

    assert collector.authorizations == {AUTHORIZATION}
    assert {each["service.name"] for each in collector.resources} == {"ebbtide"}
    by_id = {span.span_id.hex(): span for span in collector.spans}
    turns = [span for span in collector.spans if span.name == "turn"]
    # Every turn has its stages, within it.
    for turn in turns:
        stages = [s for s in collector.spans if s.parent_span_id == turn.span_id and s.name != "alert"]
        assert {"parse", "load", "fold", "score", "decide", "store", "emit"} == {s.name for s in stages}
        for stage in stages:
            assert turn.start_time_unix_nano <= stage.start_time_unix_nano <= stage.end_time_unix_nano
            assert stage.end_time_unix_nano <= turn.end_time_unix_nano
    # It links to the traces of its records.
    known = {trace_of(n) for n in range(EVENTS) if n % 3}
    for turn in turns:
        links = {(link.trace_id.hex(), link.span_id.hex()) for link in turn.links}
        assert links <= known
        assert len(links) >= min(LINKS_MAX, records_in(turn) // 3 - 2)
    # An alert goes on with its record's trace, and is kept when that is.
    told = {"with": 0, "kept": 0, "without": 0}
    for record in alerts:
        decided = orjson.loads(record.value or b"")["decision"]
        _, trace, span, flags = dict(record.headers)["traceparent"].decode().split("-")
        source = made[decided["partition"], decided["offset"]].get("traceparent")
        kept = by_id.get(span)
        if source is None or decided["cause"] != "event":
            told["without"] += 1
            assert kept is not None
            assert by_id[kept.parent_span_id.hex()].name == "turn"
            continue
        told["with"] += 1
        _, its_trace, its_span, its_flags = source.decode().split("-")
        assert (trace, flags) == (its_trace, its_flags)
        assert span != its_span
        assert (kept is not None) == (its_flags == "01")
        if kept is not None:
            told["kept"] += 1
            assert (kept.name, kept.parent_span_id.hex(), kept.trace_id.hex()) == ("alert", its_span, trace)
            assert by_id[kept.links[0].span_id.hex()].name == "turn"
    assert all(told.values()), told
    # Nobody's name travels to a collector.
    assert not [span for span in collector.spans if b"customer-" in span.SerializeToString()]


def records_in(span: Span) -> int:
    return sum(a.value.int_value for a in span.attributes if a.key == "messaging.batch.message_count")


def traces(url: str, share: float = 1.0) -> Traces:
    return Traces(SystemClock(), url, "clicks", share, None, {"service.name": "ebbtide"})


def batch(*headers: list[tuple[str, bytes]]) -> FetchedBatch:
    records = [LogRecord(n, 0, b"k", b"v", each) for n, each in enumerate(headers)]
    return FetchedBatch("clicks", 0, 0, 0, len(records), records)


def test_headers_that_make_no_sense_are_no_trace() -> None:
    odd = [b"", b"\xff\xfe", b"00-0-0-01", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01", b"x" * 4096]
    with collecting() as collector:
        told = traces(collector.url)
        fetched = batch(*[[("traceparent", each)] for each in odd])
        with told.turn([fetched]) as turn:
            for record in fetched.records:
                ((name, value),) = turn.alert(record)
                assert (name, len(value)) == ("traceparent", 55)
        told.close()
        (span,) = [span for span in collector.spans if span.name == "turn"]
        assert not span.links


def test_an_error_shows_by_its_class_alone() -> None:
    with collecting() as collector:
        told = traces(collector.url)
        with pytest.raises(RuntimeError), told.turn([batch([])]):
            raise RuntimeError("of a customer's secret")
        with told.turn([batch([])]) as turn:
            turn.done(None, {0: ValueError("of another secret"), 1: None})
        told.close()
        first, second = collector.spans
        assert (first.status.message, second.status.message) == ("RuntimeError", "ValueError")
        assert b"secret" not in first.SerializeToString() + second.SerializeToString()


def test_a_share_of_none_tells_nothing_and_passes_on() -> None:
    with collecting() as collector:
        told = traces(collector.url, share=0.0)
        source = batch([("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-00")])
        with told.turn([source]) as turn:
            turn.stage("fold", 0.001)
            headers = dict(turn.alert(source.records[0]))
        told.close()
        assert headers["traceparent"].startswith(b"00-" + b"a" * 32)
        assert headers["traceparent"].endswith(b"-00")
        assert collector.spans == []


def test_a_collector_that_is_away_holds_up_nobody() -> None:
    (nobody,) = free_ports(1)
    clock, told = SystemClock(), traces(f"http://127.0.0.1:{nobody}")
    began_s = clock.monotonic_s()
    for _ in range(2_000):
        with told.turn([batch([])]) as turn:
            for _ in range(5):
                turn.stage("fold", 0.0)
    assert clock.monotonic_s() - began_s < 5.0
    began_s = clock.monotonic_s()
    told.close()
    assert clock.monotonic_s() - began_s < 6.0


def test_a_worker_without_traces_loads_nothing_for_them() -> None:
    # redis-py looks for OpenTelemetry's metrics by itself, where they are installed.
    look = "import sys, ebbtide.ops.worker.run; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, text=True).stdout
    loaded = set(said.split())
    assert "ebbtide.ops.worker.compose" in loaded
    assert not loaded & {"opentelemetry.sdk.trace", "opentelemetry.exporter", "ebbtide.ops.observe.traces"}
