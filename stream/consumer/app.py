"""The Faust app: one agent that takes a batch a message, and the `Source` that the pipeline drives it by.

    FaustSource.start ─▶ joins the group ─▶ on_assigned(partitions) ─▶ the pipeline seeks each ─▶ on_batch(batch) …
    FaustSource.stop  ─▶ commits the committed offsets ─▶ leaves the group

Faust runs inside our own event loop, without its command line, web server, tables, producer or leader topic: it
brings the consumer thread, the stream and the supervision of both. What it would do of its own at a rebalance or a
stop (wait for agents, commit what it counted) is replaced in `stream/consumer/transport.py`.

`on_batch` takes a batch in and returns; it does not wait for the store. If it raises, the worker has failed: Faust
would restart the agent and go on with the next batch, so the failure is kept and `failed` raises it.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import faust
from aiokafka import TopicPartition
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.types import AgentT, AppT, EventT, StreamT
from mode import ServiceT

from ebbtide.stream.batch import CommittedOffset, FetchedBatch, OnPartitions
from ebbtide.stream.consumer.transport import BatchConsumer, BatchTransport
from ebbtide.stream.errors import BrokerUnavailable
from ebbtide.stream.kafka.client import KafkaSettings

OnBatch = Callable[[FetchedBatch], Awaitable[None]]


class NoTables(TableManager):
    """State lives in Redis: no changelog to recover, so no recovery between an assignment and the first fetch."""

    async def on_start(self) -> None:
        """Faust sleeps a second here for tables to be defined."""
        await self._update_channels()


class Boot(BootStrategy):
    """What an app of ours starts, in this order, and stops in the other."""

    def server(self) -> Iterable[ServiceT]:
        """The consumer, the agent, the conductor between them; and the fetcher, which runs from the start."""
        app: Any = self.app
        return [app.consumer, app.agents, app.topics, app.tables, app._fetcher]  # noqa: SLF001 -- Faust starts it elsewhere


class Batches(faust.Schema[Any, Any]):
    """A message's value is a FetchedBatch already: there is nothing to decode."""

    def compile(self, app: AppT, **_: Any) -> Callable[..., Awaitable[EventT[Any]]]:
        async def decode(message: Any, **_: Any) -> EventT[Any]:
            return app.create_event(None, message.value, None, message)

        return decode


class App(faust.App):
    """A Faust app that leaves no trace on the disk and does not get over an error."""

    BootStrategy = Boot

    def _create_directories(self) -> None:
        """Faust keeps tables in a data directory; the root of our container is read-only."""

    async def _on_agent_error(self, agent: AgentT[Any], exc: BaseException) -> None:  # noqa: ARG002 -- Faust's signature
        """Faust would log it and start the agent anew behind the batch that failed."""
        await self.crash(exc)


def build_app(
    settings: KafkaSettings, on_batch: OnBatch, on_assigned: OnPartitions, on_revoked: OnPartitions
) -> App:
    """The app, not started. To be called on the event loop that will run it."""
    app = App(
        settings.group,
        env={},  # the environment is read in one place, which is not Faust
        broker=[f"kafka://{host}" for host in settings.url.split(",")],
        broker_commit_interval=settings.commit_interval_s,
        stream_buffer_maxsize=settings.fetched_batches_max,
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        TableManager=NoTables,
    )
    app.transport = BatchTransport(settings, app, on_assigned, on_revoked)
    topic = app.topic(settings.topic, schema=Batches(), acks=False)

    @app.agent(topic, name="intake")
    async def intake(stream: StreamT[FetchedBatch]) -> None:
        async for batch in stream:
            await on_batch(batch)

    return app


class FaustSource:
    """`Source` over the app's consumer: see there for what each method promises."""

    def __init__(
        self, settings: KafkaSettings, on_batch: OnBatch, on_assigned: OnPartitions, on_revoked: OnPartitions
    ) -> None:
        self._settings = settings
        self._app = build_app(settings, on_batch, on_assigned, on_revoked)

    @property
    def _consumer(self) -> BatchConsumer:
        consumer: Any = self._app.consumer
        assert isinstance(consumer, BatchConsumer)
        return consumer

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._settings.topic, partition)

    async def start(self) -> None:
        """Join the group. Assignments and batches come through the callbacks."""
        self._app.flow_control.resume()
        await self._app.start()

    async def stop(self) -> None:
        """Commit the committed offsets and leave the group, so that the others need not wait for a session to time
        out."""
        await self._app.stop()

    async def failed(self) -> None:
        """Return when the app was stopped; raise why it stopped by itself."""
        await self._app.wait_until_stopped()
        reason = self._app.crash_reason
        if reason is not None:
            raise reason

    def assigned(self) -> frozenset[int]:
        return frozenset(tp.partition for tp in self._consumer.owned)

    async def partition_count(self) -> int:
        count = self._consumer.topic_partitions(self._settings.topic)
        if count is None:
            # It was there when we started. Assigned before its first answer about the topic, the client knows none.
            raise BrokerUnavailable(
                f"Kafka has not said yet how many partitions {self._settings.topic!r} has"
            )
        return int(count)

    async def log_range(self, partition: int) -> tuple[int, int]:
        return await self._consumer.log_range(self._tp(partition))

    async def committed(self, partition: int) -> CommittedOffset | None:
        return await self._consumer.committed(self._tp(partition))

    async def seek(self, partition: int, offset: int) -> int:
        return await self._consumer.open(self._tp(partition), offset)

    def pause(self, partition: int) -> None:
        self._consumer.pause(self._tp(partition))

    def resume(self, partition: int) -> None:
        self._consumer.resume(self._tp(partition))

    def advance_committed(self, partition: int, offset: int, metadata: str = "") -> None:
        self._consumer.advance_committed(self._tp(partition), CommittedOffset(offset, metadata))
