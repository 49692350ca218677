"""Where the benches hold on to the pipeline: the one file that changes when the pipeline's own seam does.

A bench gives work to `Pipelines.take`: pieces of several partitions that wait at the same time; or it lets a whole
worker run (`running`). Everything but the model is what production runs.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Self

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.cache import Cache
from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.config.settings import BatchingSettings, RedisSettings
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.consumer.app import build_app
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.outputs.message import Delivery
from ebbtide.stream.outputs.pre_commit import Outputs
from ebbtide.stream.pipeline import Pipeline, Tools
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.telemetry import Telemetry, Tracer
from ebbtide.stream.turn.limits import Limits
from ebbtide.stream.turn.work import Piece
from ebbtide.stream.worker import Worker
from tests.support.seams.turns import from_the_beginning
from tests.support.workers.worlds import Arithmetic

DRAIN_S = 10.0


def tools_of(
    topic: str, layout: Layout, model: Arithmetic, store: Store, sink: Delivery,
    telemetry: Telemetry | None = None, tracer: Tracer | None = None,
) -> Tools:  # fmt: skip
    """What production's pipelines work with, at its defaults, but for the model; compiled. Its batcher is not running
    yet."""
    telemetry = telemetry or Telemetry()
    clock, batching, folder = SystemClock(), BatchingSettings(), Folder(layout)
    folder.fold(layout.empty(0), EventBatch.empty())
    folder.due(layout.empty(1))
    batcher = Batcher(
        lambda: model, clock, telemetry, deadline_s=batching.deadline_s, linger_s=batching.linger_s
    )
    return Tools(
        topic, Outputs(f"{topic}-alerts", f"{topic}-dead-letters", None), layout, folder,
        Parser(layout.spec), store, Cache(layout.dtype, RedisSettings().cache_bytes_max), sink, batcher,
        clock, telemetry, tracer,
    )  # fmt: skip


class Pipelines:
    """Partitions 0 to `partitions` - 1 of `topic`, each at its beginning."""

    def __init__(
        self, topic: str, layout: Layout, model: Arithmetic, store: Store, sink: Delivery, partitions: int,
        telemetry: Telemetry | None = None, tracer: Tracer | None = None,
    ) -> None:  # fmt: skip
        self._tools = tools_of(topic, layout, model, store, sink, telemetry, tracer)
        self._pipeline = Pipeline(self._tools)
        self._opened = [from_the_beginning(layout.id, number, partitions) for number in range(partitions)]

    async def take(self, waiting: Sequence[FetchedBatch]) -> None:
        """Work off what waits, a batch a partition: returns when all of it is applied and sent."""
        errors = await self._pipeline.turn([Piece(self._opened[batch.partition], batch) for batch in waiting])
        for error in errors.values():
            if error is not None:
                raise error

    async def __aenter__(self) -> Self:
        self._scoring = asyncio.create_task(self._tools.batcher.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._scoring.cancel()
        await asyncio.gather(self._scoring, return_exceptions=True)
        self._tools.batcher.close()


@asynccontextmanager
async def running(kafka: KafkaSettings, tools: Tools) -> AsyncIterator[Worker]:
    """A worker in its group, drained at the end."""
    worker = Worker(tools, alerts_from="start", limits=Limits(piece_records_max=kafka.fetch_records_max))
    app = build_app(kafka, worker.deliver, worker.assigned, worker.revoked)
    worker.attach(app.source)
    working = asyncio.create_task(worker.run())
    await app.start()
    try:
        yield worker
        await worker.drain(DRAIN_S)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        await app.stop()
        tools.batcher.close()
