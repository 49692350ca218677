"""The servers of a chaos run, and every way to hurt them: three brokers, a Valkey with a replica, proxies before them.

    feed, checker ─────────────────────────▶ brokers (direct listeners)      Valkey ─▶ its replica
    workers ─▶ a proxy for each broker ────▶ (second listener, which       ◀── proxy ◀── workers
                                              advertises the proxy)        ◀── another ◀── checker

Both ways to Redis lead to whichever of the two is the master, as an address does that moves at a failover.

It knows ports and processes, and what hurting means for each; it refuses to know when. All of it blocks: call it in a
thread. Invariant: `heal` undoes everything that was done to the network, and no server is left dead by a fault.
"""

import random
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redis import Redis
from redis.exceptions import BusyLoadingError

from ebbtide.ops.stack.local import LocalKafka, LocalValkey
from ebbtide.ops.stack.server import free_ports
from tests.support.servers.proxy import Proxy

BROKERS = 3
REWRITE_S_MAX, LINK_S_MAX, LOOK_S = 20.0, 30.0, 0.02
WAYS_TO_REDIS = ("redis", "redis-direct")
LOST_BYTES_MAX = 200_000
"""At most so much of Valkey's log is torn off: about a second of a busy run, which `everysec` may lose."""


@dataclass
class Scene:
    """Everything runs. `kafka_url` is the direct way to the brokers, `proxied_url` the workers' way. `valkey` is the
    master as of now."""

    kafka: LocalKafka
    valkey: LocalValkey
    replica: LocalValkey
    network: dict[str, Proxy] = field(default_factory=dict)
    proxied_url: str = ""

    @property
    def kafka_url(self) -> str:
        return self.kafka.url

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.network['redis-direct'].port}/0"

    @property
    def proxied_redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.network['redis'].port}/0"

    def proxies(self, name: str) -> list[Proxy]:
        """By the name of a way: `redis`, `kafka` (all brokers), `broker-1`…"""
        if name == "kafka":
            return [proxy for way, proxy in self.network.items() if way.startswith("broker")]
        return [self.network[name]]

    def kill_broker(self, number: int) -> None:
        self.kafka.nodes[number].kill()

    def restart_broker(self, number: int) -> None:
        self.kafka.nodes[number].restart()

    def kill_redis(self) -> None:
        self.valkey.kill()

    def restart_redis(self, left: str, draw: random.Random) -> bool:
        """`left` of its data: `all`, `torn` (the end of the log was not on the disk yet), `nothing`. False when there
        was nothing to tear off."""
        server = self.valkey.server
        assert server is not None
        log = server.folder / "appendonlydir"
        as_told = left != "torn" or _torn(log, draw.randrange(1, LOST_BYTES_MAX))
        self.valkey.appendonly = left != "nothing"
        self.valkey.restart()
        if left == "nothing":
            shutil.rmtree(log)  # of a life before; from now on it writes one again
            self.valkey.appendonly = True
            with Redis.from_url(self.redis_url) as redis:
                redis.config_set("appendonly", "yes")
                _wait_for_log(redis, log)
        return as_told

    def fail_over(self, alone_s: float) -> bool:
        """The replica becomes the master, which dies, comes back and follows it. For `alone_s` before that the master
        serves on by itself: what it takes then is lost. False when the replica did not follow."""
        if not self._follows():
            return False
        old, new = self.valkey, self.replica
        with Redis.from_url(new.url) as redis:
            redis.replicaof("NO", "ONE")
        time.sleep(alone_s)
        old.kill()
        for way in WAYS_TO_REDIS:
            self.network[way].point(new.port)
        self.valkey, self.replica = new, old
        old.restart()
        self.follow()
        return self._follows()

    def follow(self) -> None:
        """Have the replica copy the master. One that has just come back refuses while it loads what it knew itself."""
        until_s = time.monotonic() + LINK_S_MAX
        with Redis.from_url(self.replica.url) as redis:
            while True:
                try:
                    redis.replicaof("127.0.0.1", str(self.valkey.port))
                except BusyLoadingError:
                    if time.monotonic() > until_s:
                        raise
                    time.sleep(LOOK_S)
                else:
                    return

    def _follows(self) -> bool:
        until_s = time.monotonic() + LINK_S_MAX
        with Redis.from_url(self.replica.url) as redis:
            while redis.info("replication").get("master_link_status") != "up":
                if time.monotonic() > until_s:
                    return False
                time.sleep(LOOK_S)
        return True

    def flush_redis(self) -> None:
        with Redis.from_url(self.redis_url) as redis:
            redis.flushall()

    def heal(self) -> None:
        for proxy in self.network.values():
            proxy.heal()


def _torn(log: Path, lost_bytes: int) -> bool:
    """Cut the end off what Valkey appended last; False when it has appended nothing yet."""
    newest = max(log.glob("*.incr.aof"), key=lambda file: file.stat().st_mtime, default=None)
    if newest is None or not (size := newest.stat().st_size):
        return False
    with newest.open("r+b") as file:
        file.truncate(max(0, size - lost_bytes))
    return True


def _wait_for_log(redis: Redis, log: Path) -> None:
    """Valkey appends to a log only once it has written its base, in the background: a kill before that loses all."""
    until_s = time.monotonic() + REWRITE_S_MAX
    while True:
        told = redis.info("persistence")
        writing = told["aof_rewrite_in_progress"] or told.get("aof_rewrite_scheduled")
        if told["aof_enabled"] and not writing and any(log.glob("*.incr.aof")):
            return
        if time.monotonic() > until_s:
            raise TimeoutError(f"Valkey does not begin its log: {told}")
        time.sleep(LOOK_S)


@contextmanager
def servers(directory: Path) -> Iterator[Scene]:
    """Start them all, below `directory`; they end with the block."""
    with ExitStack() as stack:
        ports = dict(enumerate(free_ports(BROKERS), 1))
        ways = {n: stack.enter_context(Proxy(port)) for n, port in ports.items()}

        def listener(number: int, _client_port: int) -> Mapping[str, str]:
            return {
                "listeners": f"PROXIED://127.0.0.1:{ports[number]}",
                "advertised.listeners": f"PROXIED://127.0.0.1:{ways[number].port}",
                "listener.security.protocol.map": "PROXIED:PLAINTEXT",
                "log.cleaner.backoff.ms": "200",  # for the compacted topic: 15 s by default
                "transaction.max.timeout.ms": "60000",
                # Each replica is cleaned by itself, so two of them may have other gaps: a leadership that moves back
                # would change the compacted topic between the workers' reading and the replay's.
                "auto.leader.rebalance.enable": "false",
            }

        valkey, replica = (
            LocalValkey(directory=directory / name, settings={"repl-diskless-sync-delay": "0"})
            for name in ("valkey", "replica")
        )
        scene = Scene(LocalKafka(BROKERS, directory=directory / "kafka", settings=listener), valkey, replica)
        scene.network = {f"broker-{n}": way for n, way in ways.items()}
        scene.proxied_url = ",".join(f"127.0.0.1:{way.port}" for way in ways.values())
        stack.callback(scene.kafka.stop)
        for server in (scene.valkey, scene.replica):
            stack.callback(server.stop)
            server.start()
        for way in WAYS_TO_REDIS:
            scene.network[way] = stack.enter_context(Proxy(scene.valkey.port))
        scene.follow()
        scene.kafka.start()
        yield scene
