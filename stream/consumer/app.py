"""The Faust app: one agent that takes a fetch a message, on a transport whose consumer is the worker's `Source`.

    app.start ─▶ joins the group ─▶ on_assigned(partitions) ─▶ the pipeline seeks each ─▶ on_fetched(batches) …
    app.stop  ─▶ commits what is done ─▶ leaves the group

Faust runs inside our own event loop, without its command line, web server, tables, producer or leader topic: it
brings the consumer thread, the stream and the supervision of both. What it would do of its own at a rebalance or a
stop (wait for agents, commit what it counted) is replaced in `stream/consumer/transport.py`.

`on_fetched` takes batches in and returns; it does not wait for the store. If it raises, the worker has failed: Faust
would restart the agent and go on behind them, so the failure is kept and `failed` raises it.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import faust
from faust.app.base import BootStrategy
from faust.tables.manager import TableManager
from faust.types import AgentT, AppT, EventT, StreamT, TopicT
from mode import ServiceT

from ebbtide.stream.batch import Fetched, OnFetched, OnPartitions
from ebbtide.stream.consumer.transport import BatchConsumer, BatchTransport
from ebbtide.stream.ending import closed
from ebbtide.stream.kafka.settings import KafkaSettings

STOP_S_MAX = 20.0
"""The last commit (3 s, twice at most), leaving the group (5 s) and the threads' ends, with room for a busy machine."""


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
    """A message's value is a list of batches already: there is nothing to decode."""

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
        """Faust would log it and start the agent anew behind the batches that failed."""
        await self.crash(exc)

    def add_agent(self, taken: Callable[[StreamT[Any]], Awaitable[None]], topic: TopicT) -> None:
        """What the decorator `App.agent` does, without noting the agent for a scan of modules that nobody makes: for
        that, `inspect` looks up the path of every module there is, .33 s of a start beside TensorFlow's 4,700."""
        conf: Any = self.conf
        agent: AgentT[Any] = conf.Agent(
            taken, name=taken.__name__, app=self, channel=topic, on_error=self._on_agent_error
        )
        self.agents[agent.name] = agent
        self.topics.beacon.add(agent)

    @property
    def source(self) -> BatchConsumer:
        """The worker's `Source`, also before the start."""
        consumer: Any = self.consumer
        assert isinstance(consumer, BatchConsumer)
        return consumer

    async def stop(self) -> None:
        """Commit what is done and leave the group, within STOP_S_MAX: mode waits by what can lose its own end."""
        await closed(super().stop(), "the consumer", STOP_S_MAX)

    async def failed(self) -> None:
        """Return when the app was stopped; raise why it stopped by itself."""
        await self.wait_until_stopped()
        if self.crash_reason is not None:
            raise self.crash_reason


def build_app(
    settings: KafkaSettings, on_fetched: OnFetched, on_assigned: OnPartitions, on_revoked: OnPartitions
) -> App:
    """The app, not started: `start` joins the group, `stop` commits and leaves it, so that the others need not wait for
    a session to time out. To be called on the event loop that will run it; the callbacks are called on it, too."""
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

    async def intake(stream: StreamT[list[Fetched]]) -> None:
        async for fetched in stream:
            await on_fetched(fetched)

    app.add_agent(intake, topic)
    app.flow_control.resume()
    return app
