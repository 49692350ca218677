"""Apache Kafka on loopback: one broker for a demo, three that can be killed for a chaos test. The same code.

Knows how a small Kafka is configured, formatted, started and stopped; refuses to know topics and clients. Every
node is broker and controller (KRaft). Invariant: a node that went comes back on its port, with its data.
"""

import signal
from collections.abc import Sequence
from pathlib import Path

from ebbtide.ops.errors import ServerFailed
from ebbtide.ops.stack.jars import REGISTRY, KafkaJars, recording
from ebbtide.ops.stack.kafka_config import Identity, NodeSettings, configuration, with_settings
from ebbtide.ops.stack.probe import kafka_nodes
from ebbtide.ops.stack.server import Keeper, Local, Progress, Server, silent

START_S = 90.0  # deadlines, not expectations: a start takes 1 to 3 s, far more on a machine that is busy
FORMAT_S = 60.0
STOP_S = 15.0
RECORD_S = 60.0
JAVA_TERMINATED = 128 + signal.SIGTERM  # the exit code of a Java that ended on SIGTERM by itself
HEAP_MB = 256
PORT_TRIES = 3  # a port that was free may be taken a moment later


class KafkaNode:
    """One broker and controller. `number` counts from 1 and is Kafka's `node.id`."""

    def __init__(self, number: int, server: Server, jars: KafkaJars, cluster_id: str, heap_mb: int) -> None:
        self.number, self.server, self.port = number, server, 0
        self._jars, self._cluster_id, self._heap_mb = jars, cluster_id, heap_mb
        self._properties = server.folder / "server.properties"
        self._data = server.folder / "data"

    @property
    def running(self) -> bool:
        return self.server.running

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone: what a crashed machine looks like."""
        self.server.kill()

    def terminate(self, timeout_s: float = STOP_S) -> None:
        """SIGTERM: Kafka moves its leaderships away and closes its logs. SIGKILL after `timeout_s`."""
        self.server.terminate(timeout_s)

    def restart(self) -> None:
        """Start again on the same port and data, and wait until this node serves. It must not be running."""
        self.spawn()
        self.wait_ready(brokers=1)

    def configure(self, ports: list[tuple[int, int]], settings: NodeSettings) -> None:
        """Write the configuration. `ports` are each node's client and controller port."""
        self.port = ports[self.number - 1][0]
        ours = configuration(self.number, ports, self._data)
        lines = with_settings(ours, self.number, self.port, settings)
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))

    def formatting(self, more: Sequence[str] = ()) -> Server | None:
        """Format the data folder, in the background, with `more` options; None when it is formatted already."""
        if (self._data / "meta.properties").exists():
            return None
        formatter = Server(self.server.keeper, f"{self.server.name}-format", self.server.folder)
        arguments = ("format", "--cluster-id", self._cluster_id, "--config", str(self._properties), *more)
        formatter.spawn(self._jars.command("kafka.tools.StorageTool", *arguments, heap_mb=self._heap_mb))
        return formatter

    def spawn(self, record: Path | None = None) -> None:
        command = self._jars.command(
            "kafka.Kafka", str(self._properties), heap_mb=self._heap_mb, record=record
        )
        self.server.spawn(command)

    def wait_ready(self, brokers: int, others: Sequence["KafkaNode"] = ()) -> None:
        """Until this node answers for itself and at least `brokers` nodes of its cluster, itself included. Raises
        ServerFailed, also as soon as one of `others` has ended: who waits for a node that is gone waits in vain."""

        def ready() -> bool:
            for node in others:
                node.server.check()
            answer = kafka_nodes(self.port)
            return answer is not None and answer[0] == self._cluster_id and self.number in answer[1] and (
                len(answer[1]) >= brokers
            )  # fmt: skip

        self.server.wait_ready(ready, START_S)


class LocalKafka(Local):
    """`brokers` nodes of Kafka. Blocking: from asyncio, call it through `asyncio.to_thread`. A context manager.

    With a `keeper` it lives in that keeper's folder and ends with it; without, it makes its own (`directory` and
    `keep` as there). `heap_mb` is each node's. `settings` are added to each node's configuration and win over ours,
    except that listeners are added to the one on `port`; a function gives each node its own, of its number and client
    port, and is asked again should the ports have been taken. `format_options` go to Kafka's `format`: SCRAM users.
    `nodes[i]` is killed, terminated and restarted by itself. `progress` gets a line for whatever takes a while.
    It starts faster once `warm` has been called on this machine.
    """

    def __init__(
        self,
        brokers: int = 1,
        *,
        directory: Path | None = None,
        keep: bool = False,
        heap_mb: int = HEAP_MB,
        settings: NodeSettings | None = None,
        format_options: Sequence[str] = (),
        keeper: Keeper | None = None,
        cache: Path | None = None,
        registry: str = REGISTRY,
        progress: Progress = silent,
    ) -> None:
        self._jars = KafkaJars(cache, registry, progress)
        self._brokers, self._heap_mb, self._settings = brokers, heap_mb, settings or {}
        self._format_options = tuple(format_options)
        self._directory, self._keep, self._keeper, self._owns = directory, keep, keeper, keeper is None
        self._progress = progress
        self.nodes: list[KafkaNode] = []

    @property
    def url(self) -> str:
        """Bootstrap servers, `127.0.0.1:PORT[,127.0.0.1:PORT…]`."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def resolve(self) -> None:
        """Have Kafka's jars in the cache: `start` does it, too. Raises RegistryUnreachable or StackError."""
        self._jars.resolve()

    def start(self) -> str:
        """Resolve, format, start, and wait until every node serves. Returns `url`. Raises StackError."""
        self.resolve()
        if self._keeper is None:
            self._keeper = Keeper(self._directory, keep=self._keep)
        try:
            identity = Identity(self._keeper.directory / "kafka.json", self._brokers)
            for number in range(1, self._brokers + 1):
                name = f"kafka-{number}"
                server = Server(self._keeper, name, self._keeper.directory / name)
                self.nodes.append(KafkaNode(number, server, self._jars, identity.cluster_id, self._heap_mb))
            cold = "" if self._jars.aot.exists() else " (faster once `ebbtide stack warm` has run)"
            self._progress(f"starting Apache Kafka, {self._brokers} broker{'s' * (self._brokers > 1)}{cold}")
            self._launch(identity)
        except BaseException:
            self.stop()
            raise
        return self.url

    def _launch(self, identity: Identity) -> None:
        for left in reversed(range(PORT_TRIES)):
            try:
                for node in self.nodes:
                    node.configure(identity.ports, self._settings)
                for formatter in [node.formatting(self._format_options) for node in self.nodes]:
                    if formatter is not None and formatter.wait(FORMAT_S) != 0:
                        raise formatter.failed("could not format its data folder")
                for node in self.nodes:
                    node.spawn()
                for node in self.nodes:
                    node.wait_ready(self._brokers, self.nodes)
                return
            except ServerFailed as failure:
                if "Address already in use" not in str(failure) or not left:
                    raise
                for node in self.nodes:
                    node.kill()
                identity.move()

    def stop(self) -> None:
        """Stop for good. Data that are not kept are not worth closing: those nodes are killed. May be called twice."""
        if self._keeper is None:
            return
        try:
            running = [node for node in self.nodes if node.running]
            if self._keeper.kept:
                for node in running:  # all at once: a quorum that shrinks one by one makes the last ones wait
                    node.server.signal(signal.SIGTERM)
                for node in running:
                    node.terminate()
            elif not self._owns:
                for node in running:
                    node.kill()
        finally:
            if self._owns:
                self._keeper.end()


def warm(cache: Path | None = None, registry: str = REGISTRY, progress: Progress = silent) -> None:
    """Have the jars here, and the AOT cache with which every later start of a broker is some 2 s faster: an empty
    broker is started, Java watches itself run, and writes the cache when it is told to end.

    About 12 s the first time, nothing after. For an image, a bench, a test run. Raises StackError.
    """
    jars = KafkaJars(cache, registry, progress)
    jars.resolve()
    with recording(jars) as path:
        if path is None:
            return
        progress("noting what Apache Kafka loads, to start faster from now on (once, about 12 s)")
        with Keeper() as keeper:
            identity = Identity(keeper.directory / "kafka.json", 1)
            server = Server(keeper, "kafka-1", keeper.directory / "kafka-1")
            node = KafkaNode(1, server, jars, identity.cluster_id, HEAP_MB)
            node.configure(identity.ports, {})
            formatter = node.formatting()
            if formatter is not None and formatter.wait(FORMAT_S) != 0:
                raise formatter.failed("could not format its data folder")
            node.spawn(record=path)
            node.wait_ready(brokers=1)
            node.terminate(RECORD_S)
            if server.code() == JAVA_TERMINATED and path.exists():
                path.rename(jars.aot)
