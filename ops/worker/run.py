"""The worker process, from its start to its end.

    model, first size ─┐
    Kafka's topics ────┼─▶ tools ─▶ HTTP ─▶ group joined ─▶ larger sizes, newer versions … ─▶ drained, left
    store, producer ───┘

Start: everything that can be wrong is found before the group is joined, each with one error that says what to do; the
group is joined when a version can score.
Stop (SIGTERM, SIGINT): stop fetching, finish what is in hand within the grace period, commit, leave the group, exit
0. An error on the way out is raised: who supervises us sees that not all was well.
"""

import asyncio
import logging
import signal
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.model.serving.runtime import configure as configure_tensorflow
from ebbtide.model.serving.slot import ScorerSlot
from ebbtide.ops.asking.customer import Asked
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.http.customers import Customers
from ebbtide.ops.http.probes import probes
from ebbtide.ops.http.server import HttpServer
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.ops.observe.servers import MeasuredDelivery, MeasuredStore
from ebbtide.ops.page.live import Live
from ebbtide.ops.page.routes import page_routes
from ebbtide.ops.state.room import Room, room_of
from ebbtide.ops.worker.compose import load_slot, tools_of, traces_of
from ebbtide.ops.worker.connect import check_state, open_delivery, open_store, topic_specs
from ebbtide.ops.worker.models import watch_models
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.consumer.app import build_app
from ebbtide.stream.decision.policy import Policy
from ebbtide.stream.ending import END_S_MAX, end
from ebbtide.stream.kafka.client import check_connection
from ebbtide.stream.kafka.topics import ensure_topics, message_bytes_max
from ebbtide.stream.outputs.at_risk import floors
from ebbtide.stream.outputs.dead_letter import BYTES_MAX
from ebbtide.stream.pipeline import Tools
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.turn.limits import Limits
from ebbtide.stream.turn.state import named
from ebbtide.stream.worker import Worker

log = logging.getLogger(__name__)

SCORER_HANGS_S = 120.0
"""No dispatch takes two minutes; one that does will not end, and only a restart helps: `/healthz` fails."""
REDIS_EVERY_S = 15.0
"""It fills in hours; a small question a partition of ours."""
LAST_DISPATCH_S = 2.0
"""A dispatch takes milliseconds. One that hangs does not keep a drained worker: its partitions are the next owner's."""


async def work(settings: Settings, metrics: Metrics | None = None) -> None:
    """Run a worker until SIGTERM or SIGINT. metrics: what counts, if not the usual. Raises EbbtideError."""
    spec = load_spec(settings.spec)
    settings.check_spec(spec)
    layout, clock = Layout(spec), SystemClock()
    metrics = metrics or Metrics(bands=settings.policy.band_names)
    live = Live(settings.topics.alerts, clock, metrics.at_scrape.summary)
    metrics.on_turn = live.turn
    log.info("loading the model", extra={"device": configure_tensorflow(), "model": str(settings.model)})
    loading = asyncio.create_task(asyncio.to_thread(load_slot, settings, layout, whole=False), name="load")
    try:
        await check_connection(settings.kafka)
        counts = await ensure_topics(settings.kafka, topic_specs(settings))
        takes = await message_bytes_max(settings.kafka, [settings.topics.dead_letters])
    except BaseException:
        loading.cancel()
        raise
    async with (
        open_store(
            settings,
            layout,
            counts[settings.kafka.topic],
            partial(MeasuredStore, clock, metrics.redis_called),
        ) as store,
        open_delivery(settings) as plain,
    ):
        await check_state(store, layout)
        fits = min(takes.get(settings.topics.dead_letters, BYTES_MAX), settings.kafka.produce_bytes_max)
        slot = await loading
        delivery = MeasuredDelivery(clock, metrics.kafka_called, plain, live.sent)
        with traces_of(settings) as tracer:
            tools = await tools_of(settings, layout, slot, store, delivery, metrics, fits, tracer)
            watched = asyncio.create_task(watch_redis(store, metrics), name="redis")
            try:
                await _serve(settings, tools, slot, metrics, live)
            finally:
                await end([watched])


async def _serve(
    settings: Settings,
    tools: Tools,
    slot: ScorerSlot[Policy],
    metrics: Metrics,
    live: Live,
) -> None:
    worker = Worker(
        tools,
        alerts_from=settings.alerts_from,
        limits=Limits(
            queued_batches_max=settings.batching.queued_batches_max,
            queued_bytes_max=settings.batching.queued_bytes_max,
            piece_records_max=settings.kafka.fetch_records_max,
            dead_letter_share_max=settings.dead_letter_share_max,
            timers=settings.timers.limits(),
        ),
    )
    app = build_app(settings.kafka, worker.deliver, worker.assigned, worker.revoked)
    worker.attach(app.source)

    async def ask(rows: Rows, as_of: NDArray[np.int64]) -> Asked:
        scored = await tools.batcher.score(rows, as_of, events=0, oldest_ms=tools.clock.now_ms())
        why = await tools.batcher.explain(rows[:1], as_of[:1], scored.serving)
        return Asked(scored.primary, why, scored.serving.version)

    customers = Customers(
        tools.layout, tools.store, ask, tools.clock, settings.policy.held_out,
        lambda: floors(slot.current.policy.targets, tools.at_risk_from),
    )  # fmt: skip
    face = HttpServer(
        settings.http,
        [
            *probes(
                metrics,
                lambda: "; ".join(worker.not_ready_reasons),
                lambda: hangs(tools.batcher),
                lambda: worker.warnings,
            ),
            *customers.routes(),
            *page_routes(live, settings.http, tools.clock),
        ],
    )
    asked = metrics.at_scrape
    asked.lags, asked.away = worker.lags, lambda: worker.away
    asked.not_ready = lambda: worker.not_ready_reasons
    asked.states = lambda: {n: named(partition.state) for n, partition in worker.partitions.items()}
    asked.call_age_s = lambda: tools.batcher.call_age_s
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait(), name="stop")
    tasks = [
        stopping,
        asyncio.create_task(worker.run(), name="worker"),
        asyncio.create_task(watch_models(slot, settings.model_watch_s, metrics, tools.clock), name="models"),
    ]
    try:
        address = await _listen(face, settings)
        log.info(
            "serving", extra={"address": address, "spec": tools.layout.spec.name, "layout": tools.layout.id}
        )
        await app.start()
        tasks.append(asyncio.create_task(app.failed(), name="consumer"))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if stopping in done:
            log.info("draining", extra={"grace_s": settings.drain_grace_s})
            finished = await worker.drain(settings.drain_grace_s)
            log.info("drained", extra={"finished": finished})
        await app.stop()
    finally:
        # The worker's own end may take so long; said again earlier, a cancellation would cut it short.
        await end(tasks, again_s=END_S_MAX + 1, end_s_max=2 * END_S_MAX + 2)
        tools.batcher.close(LAST_DISPATCH_S)
        await face.stop()
    raise_first(tasks)


async def watch_redis(store: RedisStore, metrics: Metrics, every_s: float = REDIS_EVERY_S) -> None:
    """Note how full Redis is, and how many customers are ours, until cancelled. What it said last stays: a server that
    is away has not become empty. One that is no master any more is left out with the next answer of those that are."""
    asked, found = metrics.at_scrape, dict[str, Room]()
    asked.memory = lambda: found
    while True:
        with suppress(EbbtideError):
            found = {where: room_of(info) for where, info in await store.infos()}
            if asked.states is not None:
                asked.customers = sum(await store.customers_each(list(asked.states())))
        await asyncio.sleep(every_s)


def hangs(batcher: Batcher) -> str:
    """Why a restart would help, in words; empty when it would not. An outage of a server is none of those reasons."""
    age_s = batcher.call_age_s
    return f"a call of the model has not ended for {age_s:.0f} s" if age_s > SCORER_HANGS_S else ""


def raise_first(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Raise the error that one of the ended tasks ended with, also one that came while the worker drained: it must not
    leave with 0."""
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def _listen(face: HttpServer, settings: Settings) -> str:
    try:
        return await face.start()
    except OSError as error:
        raise EbbtideError(
            f"cannot listen on {settings.http.host}:{settings.http.port}: {error.strerror}",
            hint="set EBBTIDE_HTTP__PORT to a free port, or 0",
        ) from error
