"""The worker process, put together: the one place that knows every real part by name.

    settings ─▶ spec, layout ─▶ model (verified, warmed) ─▶ store ─▶ topics ─▶ Faust app ─▶ worker ─▶ HTTP

Start: everything that can be wrong is found before the group is joined, each with one error that says what to do.
Stop (SIGTERM, SIGINT): stop fetching, finish what is in hand within the grace period, commit, leave the group, exit 0.
"""

import asyncio
import contextlib
import gc
import logging
import signal
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.parse import ParseLimits, Parser
from ebbtide.featurestore.hashing import hash_texts
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.cache import Cache
from ebbtide.featurestore.store.protocol import Store
from ebbtide.model.serving.runtime import configure as configure_tensorflow
from ebbtide.model.serving.scorer import Scorer, ScorerSlot
from ebbtide.ops.config.settings import PolicySettings, Settings
from ebbtide.ops.http.customers import Customers
from ebbtide.ops.http.probes import probes
from ebbtide.ops.http.server import HttpServer
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.ops.worker.connect import open_store, topic_specs
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.consumer.app import build_app
from ebbtide.stream.ending import END_S_MAX, end
from ebbtide.stream.kafka.client import check_connection
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.topics import ensure_topics, message_bytes_max
from ebbtide.stream.outputs.dead_letter import BYTES_MAX
from ebbtide.stream.outputs.message import Sink
from ebbtide.stream.outputs.pre_commit import Outputs
from ebbtide.stream.partition import Limits
from ebbtide.stream.pipeline import Tools
from ebbtide.stream.policy import Policy
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.scoring.executor import OwnThread
from ebbtide.stream.telemetry import Telemetry
from ebbtide.stream.worker import Worker

log = logging.getLogger(__name__)

LAST_DISPATCH_S = 2.0
"""A dispatch takes milliseconds. One that hangs does not keep a drained worker: its partitions are the next owner's."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A model in service with the policy that goes with it."""

    name: str
    version: int
    model: Scorer
    policy: Policy


def serving(scorer: Scorer, settings: PolicySettings) -> Serving:
    """`enter` and `exit` from the settings where given, else from the model's manifest."""
    manifest = scorer.manifest
    enter = settings.enter if settings.enter is not None else manifest.enter
    leave = settings.exit if settings.exit is not None else min(manifest.exit, enter)
    return Serving(
        manifest.name,
        manifest.version,
        scorer,
        Policy(enter=enter, exit=leave, dwell_ms=settings.dwell_ms, cooldown_ms=settings.cooldown_ms),
    )


async def work(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT. Raises EbbtideError."""
    spec = load_spec(settings.spec)
    settings.check_spec(spec)
    layout, metrics = Layout(spec), Metrics()
    log.info("loading the model", extra={"device": configure_tensorflow(), "model": str(settings.model)})
    slot = ScorerSlot(await asyncio.to_thread(Scorer.load, settings.model, layout))
    await check_connection(settings.kafka)
    counts = await ensure_topics(settings.kafka, topic_specs(settings))
    takes = await message_bytes_max(settings.kafka, [settings.topics.dead_letters])
    async with (
        open_store(settings, layout, counts[settings.kafka.topic]) as store,
        KafkaSink(settings.kafka) as sink,
    ):
        fits = min(takes.get(settings.topics.dead_letters, BYTES_MAX), settings.kafka.produce_bytes_max)
        tools = await tools_of(settings, layout, slot, store, sink, metrics, fits)
        await _serve(settings, tools, slot, metrics)


async def tools_of(
    settings: Settings,
    layout: Layout,
    slot: ScorerSlot,
    store: Store,
    sink: Sink,
    telemetry: Telemetry,
    dead_letter_bytes_max: int = BYTES_MAX,
) -> Tools:
    """What every partition's pipeline works with, compiled; its batcher is not running yet."""
    clock = SystemClock()
    served: list[Serving] = []

    def current() -> Serving:
        """One value a version, made when it takes over."""
        if not served or served[0].model is not slot.current:
            served[:] = [serving(slot.current, settings.policy)]
        return served[0]

    batcher = Batcher(
        current,
        clock,
        telemetry,
        deadline_s=settings.batching.deadline_s,
        linger_s=settings.batching.linger_s,
    )
    tools = Tools(
        topic=settings.kafka.topic,
        outputs=Outputs(
            settings.topics.alerts,
            settings.topics.dead_letters,
            settings.topics.scores,
            dead_letter_bytes_max,
        ),
        layout=layout,
        folder=Folder(layout),
        parser=Parser(layout.spec, ParseLimits(value_bytes_max=settings.record_bytes_max)),
        store=store,
        cache=Cache(layout.dtype, settings.redis.cache_bytes_max),
        sink=sink,
        batcher=batcher,
        clock=clock,
        telemetry=telemetry,
    )
    await asyncio.to_thread(_warm, tools.folder, layout)
    # TensorFlow's half a million objects are here to stay. A collection that looks at them stops everything for 0.2 s,
    # and the last one keeps a worker that has drained from ending, on a busy machine for seconds.
    gc.freeze()
    return tools


def _warm(folder: Folder, layout: Layout) -> None:
    """Compile what Numba compiles, or read it from the cache, before the group waits for us."""
    hash_texts(["warm"])
    folder.fold(layout.empty(0), EventBatch.empty())
    folder.due(layout.empty(1))
    folder.elapse(layout.empty(1), 1)


async def _serve(
    settings: Settings,
    tools: Tools,
    slot: ScorerSlot,
    metrics: Metrics,
) -> None:
    worker = Worker(
        tools,
        alerts_from=settings.alerts_from,
        limits=Limits(
            queued_batches_max=settings.batching.queued_batches_max,
            queued_bytes_max=settings.batching.queued_bytes_max,
            piece_records_max=settings.kafka.fetch_records_max,
            dead_letter_share_max=settings.dead_letter_share_max,
        ),
    )
    app = build_app(settings.kafka, worker.deliver, worker.assigned, worker.revoked)
    worker.attach(app.source)

    async def ask(
        rows: Rows, as_of: NDArray[np.int64]
    ) -> tuple[float, NDArray[np.float32], NDArray[np.float32], int]:
        scored = await tools.batcher.score(rows, as_of, events=0, oldest_ms=tools.clock.now_ms())
        values, contributions = await tools.batcher.explain(rows, as_of, scored.serving)
        return float(scored.p[0]), values[0], contributions[0], scored.serving.version

    customers = Customers(tools.layout, tools.store, ask, tools.clock)
    face = HttpServer(
        settings.http,
        [*probes(metrics, lambda: "; ".join(worker.not_ready_reasons)), *customers.routes()],
    )
    metrics.ready(lambda: not worker.not_ready_reasons)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    working = asyncio.create_task(worker.run(), name="worker")
    watching = asyncio.create_task(_watch_models(settings, slot, metrics), name="models")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        address = await _listen(face, settings)
        log.info(
            "serving", extra={"address": address, "spec": tools.layout.spec.name, "layout": tools.layout.id}
        )
        await app.start()
        failing = asyncio.create_task(app.failed(), name="consumer")
        tasks = {working, watching, stopping, failing}
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if stopping in done:
            log.info("draining", extra={"grace_s": settings.drain_grace_s})
            finished = await worker.drain(settings.drain_grace_s)
            log.info("drained", extra={"finished": finished})
        failing.cancel()
        await app.stop()
        for task in done - {stopping}:
            task.result()
    finally:
        # The worker's own end may take so long; said again earlier, a cancellation would cut it short.
        await end((working, watching, stopping), again_s=END_S_MAX + 1, end_s_max=2 * END_S_MAX + 2)
        tools.batcher.close(LAST_DISPATCH_S)
        await face.stop()


async def _listen(face: HttpServer, settings: Settings) -> str:
    try:
        return await face.start()
    except OSError as error:
        raise EbbtideError(
            f"cannot listen on {settings.http.host}:{settings.http.port}: {error.strerror}",
            hint="set EBBTIDE_HTTP__PORT to a free port, or 0",
        ) from error


async def _watch_models(settings: Settings, slot: ScorerSlot, metrics: Metrics) -> None:
    """Swap to newer versions as they appear; a bad one is refused by name, and the running one stays."""
    metrics.serving(lambda: (slot.current.manifest.name, slot.current.version))
    loader = OwnThread("models")
    try:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(settings.model_watch_s)
                await loader.run(slot.refresh)
    finally:
        loader.close()
