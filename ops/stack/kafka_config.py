"""What makes a Kafka cluster this one (its id, its ports) and what makes it small (its configuration).

Knows the numbers that fit one machine and a test's patience; refuses to know processes. Invariant: a cluster that
starts on the data of an earlier one has the same id, and the same ports unless somebody else took them.
"""

import base64
import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from ebbtide.ops.errors import StackError
from ebbtide.ops.stack.server import free_ports

NodeSettings = Mapping[str, str] | Callable[[int, int], Mapping[str, str]]
"""Settings for every node, or a function that gives a node's: of its number (from 1) and its client port."""

# Whoever names a listener wants one more: ours is how nodes find each other, and how we know that they serve.
LISTENER_LISTS = ("listeners", "advertised.listeners", "listener.security.protocol.map")


class Identity:
    """What a cluster must find again when it starts on kept data: its id, and each node's two ports."""

    def __init__(self, file: Path, brokers: int) -> None:
        self._file = file
        if file.exists():
            known = json.loads(file.read_text())
            self.cluster_id: str = known["cluster_id"]
            self.ports = [(client, controller) for client, controller in known["ports"]]
            if len(self.ports) != brokers:
                raise StackError(
                    f"{file.parent} holds a Kafka of {len(self.ports)} brokers, not {brokers}",
                    hint="use another folder",
                )
        else:
            # Kafka's form of a UUID, but never with the "-" that a command line would take for an option.
            self.cluster_id = base64.b64encode(uuid.uuid4().bytes, altchars=b"Aa").decode().rstrip("=")
            self.ports = [(0, 0)] * brokers
            self.move()

    def move(self) -> None:
        """Take other ports."""
        free = iter(free_ports(2 * len(self.ports)))
        self.ports = list(zip(free, free, strict=True))
        self._file.write_text(json.dumps({"cluster_id": self.cluster_id, "ports": self.ports}))


def configuration(number: int, ports: list[tuple[int, int]], data: Path) -> dict[str, str]:
    """Of node `number` (from 1) among as many nodes as there are `ports`; `data` is its folder."""
    n = len(ports)
    client, controller = ports[number - 1]
    replicas, in_sync = str(min(3, n)), str(min(2, n))
    return {
        "process.roles": "broker,controller",
        "node.id": str(number),
        "controller.quorum.voters": ",".join(f"{i}@127.0.0.1:{port}" for i, (_, port) in enumerate(ports, 1)),
        "listeners": f"PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{client}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",  # so that a test that kills a worker need not wait 6 s for the group
        "log.retention.ms": "-1",  # replayed history carries old timestamps: retention by time would eat it
        "log.cleaner.dedupe.buffer.size": str(4 << 20),  # 128 MB by default, half our heap
        "num.io.threads": "4",
        "background.threads": "2",
        "broker.session.timeout.ms": "3000",  # a killed node is known dead, and may register again, that much later
        "broker.heartbeat.interval.ms": "500",
    }


def with_settings(
    ours: Mapping[str, str], number: int, client_port: int, more: NodeSettings
) -> dict[str, str]:
    """The configuration of node `number` with `more` on top: it wins, but listeners are added to ours."""
    more = more(number, client_port) if callable(more) else more
    added = {name: f"{ours[name]},{more[name]}" for name in LISTENER_LISTS if name in more}
    return {**ours, **more, **added}
