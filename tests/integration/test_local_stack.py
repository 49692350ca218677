"""The local stack starts real servers, keeps their data, says what is wrong, and never outlives its process."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from ebbtide.ops.errors import RegistryUnreachable, ServerFailed, StackError, StackGone
from ebbtide.ops.stack.jars import KafkaJars, recording
from ebbtide.ops.stack.local import LocalKafka, LocalStack, LocalValkey
from ebbtide.ops.stack.probe import kafka_nodes, redis_pid
from ebbtide.ops.stack.server import Keeper, Server, free_ports
from ebbtide.ops.stack.up import up
from tests.support.patience import PATIENCE_S
from tests.support.servers.services import Services

ROOT = Path(__file__).parents[2]


async def create_topic(kafka_url: str, topic: str, partitions: int = 1, replicas: int = 1) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url)
    await admin.start()
    await admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=replicas)])
    await admin.close()


async def produce(kafka_url: str, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka_url, acks="all") as producer:
        await producer.send_and_wait(topic, value, key=b"key", partition=0)


async def consume(kafka_url: str, topic: str, n: int) -> list[bytes]:
    """The first n values, read as a new consumer group."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka_url, group_id=f"{topic}-{time.time_ns()}", auto_offset_reset="earliest"
    )
    async with consumer:
        return [(await asyncio.wait_for(consumer.getone(), 30)).value for _ in range(n)]


def ask_redis(port: int, command: str) -> str:
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(1000).decode().strip()


def eventually(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """No such process, or only its exit code is left, for a parent that does not ask."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def test_a_record_goes_through_kafka(stack: Services, unique_name: str) -> None:
    """A topic is created, a record is produced, and a consumer group reads it."""
    await create_topic(stack.kafka_url, unique_name, partitions=3)
    await produce(stack.kafka_url, unique_name, b"value")
    assert await consume(stack.kafka_url, unique_name, 1) == [b"value"]


def test_valkey_and_debian_redis_answer(stack: Services, debian_redis_url: str) -> None:
    """Both speak the protocol, and they are two servers."""
    ports = [int(url.split(":")[2].split("/")[0]) for url in (stack.redis_url, debian_redis_url)]
    assert [ask_redis(port, "PING") for port in ports] == ["+PONG", "+PONG"]
    pids = [redis_pid(port) for port in ports]
    assert None not in pids
    assert pids[0] != pids[1]


def test_valkey_keeps_its_data_and_port_over_kill_and_over_stop(tmp_path: Path) -> None:
    """Every acknowledged write is in the append-only file: a SIGKILL loses none of them."""
    with LocalValkey(directory=tmp_path) as valkey:
        assert ask_redis(valkey.port, "SET a 1") == "+OK"
        valkey.kill()
        assert not valkey.running
        valkey.restart()
        assert ask_redis(valkey.port, "SET b 2") == "+OK"
        valkey.terminate()
        valkey.restart()
        url, port = valkey.url, valkey.port
        assert ask_redis(port, "CONFIG GET maxmemory-policy").endswith("noeviction")
    assert redis_pid(port) is None
    with LocalValkey(directory=tmp_path) as valkey:
        assert valkey.url == url
        assert ask_redis(port, "MGET a b").split("\r\n")[2::2] == ["1", "2"]


def test_valkey_asks_for_the_password() -> None:
    with LocalValkey(password="secret") as valkey:
        assert ask_redis(valkey.port, "PING").startswith("-NOAUTH")
        assert redis_pid(valkey.port) is None
        assert redis_pid(valkey.port, "secret") is not None
        assert valkey.url == f"redis://127.0.0.1:{valkey.port}/0"


async def test_kafka_keeps_its_data_and_port_over_kill_and_over_stop(
    tmp_path: Path, unique_name: str
) -> None:
    """One broker: SIGKILL and restart, then stop and start anew in the same folder."""
    kafka = LocalKafka(directory=tmp_path / "a folder")
    url = await asyncio.to_thread(kafka.start)
    try:
        await create_topic(url, unique_name)
        await produce(url, unique_name, b"one")
        (node,) = kafka.nodes
        await asyncio.to_thread(node.kill)
        assert kafka_nodes(node.port) is None
        await asyncio.to_thread(node.restart)
        await produce(url, unique_name, b"two")
    finally:
        await asyncio.to_thread(kafka.stop)
    kafka = LocalKafka(directory=tmp_path / "a folder")
    try:
        assert await asyncio.to_thread(kafka.start) == url
        assert await consume(url, unique_name, 2) == [b"one", b"two"]
        with pytest.raises(StackError, match="another local stack runs in"):
            await asyncio.to_thread(LocalKafka(directory=tmp_path / "a folder").start)
    finally:
        await asyncio.to_thread(kafka.stop)
    with pytest.raises(StackError, match="1 brokers, not 3"):
        await asyncio.to_thread(LocalKafka(3, directory=tmp_path / "a folder").start)


def test_ports_that_somebody_took_are_exchanged(tmp_path: Path) -> None:
    """Kept data whose ports are taken meanwhile: other ports, and no error."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", free_ports(1)[0]))
        stranger.listen()
        taken = stranger.getsockname()[1]
        (tmp_path / "valkey").mkdir()
        (tmp_path / "valkey" / "port").write_text(str(taken))
        identity = {"cluster_id": "AAAAAAAAAAAAAAAAAAAAAQ", "ports": [[taken, free_ports(1)[0]]]}
        (tmp_path / "kafka.json").write_text(json.dumps(identity))
        with LocalStack(directory=tmp_path) as stack:
            stack.check()
            assert str(taken) not in stack.kafka_url + stack.redis_url


def test_a_port_that_one_broker_of_three_lost_is_exchanged(tmp_path: Path) -> None:
    """The two others serve, and would be waited for until the deadline."""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", free_ports(1)[0]))
        stranger.listen()
        taken = stranger.getsockname()[1]
        ports = [free_ports(2) for _ in range(3)]
        ports[1][0] = taken
        identity = {"cluster_id": "AAAAAAAAAAAAAAAAAAAAAQ", "ports": ports}
        (tmp_path / "kafka.json").write_text(json.dumps(identity))
        with LocalKafka(3, directory=tmp_path) as kafka:
            assert str(taken) not in kafka.url


def test_no_port_is_given_twice() -> None:
    """Also not to another process, while ours has not yet begun to listen."""
    ours = free_ports(200)
    ask = "from ebbtide.ops.stack.server import free_ports; print(*free_ports(11_000))"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    theirs = {int(port) for port in asked.stdout.split()}
    assert len(theirs) == 11_000
    assert not theirs & {*ours}


@pytest.fixture
def three_brokers() -> Iterator[LocalKafka]:
    with LocalKafka(brokers=3) as kafka:
        yield kafka


@pytest.mark.slow
async def test_three_brokers_serve_on_while_one_is_killed(
    three_brokers: LocalKafka, unique_name: str
) -> None:
    """A topic with three replicas takes writes with any one node down; the node comes back on its port."""
    url = three_brokers.url
    await create_topic(url, unique_name, replicas=3)
    written = []
    for node in three_brokers.nodes[:2]:
        await asyncio.to_thread(node.kill)
        written.append(b"%d" % node.number)
        await asyncio.wait_for(produce(url, unique_name, written[-1]), 60)
        await asyncio.to_thread(node.restart)
    assert await consume(url, unique_name, 2) == written


PARENT = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
from ebbtide.ops.stack.local import LocalStack, LocalValkey
stack = LocalStack() if sys.argv[1] == "stack" else LocalValkey()
starter = threading.Thread(target=stack.start)  # the thread that starts the servers ends at once: nothing may follow it
starter.start(); starter.join()
if os.fork() == 0:  # a child that holds every file of its parent, the watchdog's pipe among them
    time.sleep(60)
    os._exit(0)
servers = [stack.kafka.nodes[0].server, stack.valkey.server] if sys.argv[1] == "stack" else [stack.server]
assert all(server.running for server in servers)
print(stack._keeper.directory, stack._keeper.pid, *(server.pid for server in servers), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("number", "what"), [(signal.SIGKILL, "stack"), (signal.SIGTERM, "valkey"), (signal.SIGINT, "valkey")]
)
def test_no_server_outlives_its_parent(number: signal.Signals, what: str) -> None:
    """Whatever way the parent ends: its servers, their watchdog and the temporary folder go."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, what],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as parent:
        assert parent.stdout is not None
        directory, *words = parent.stdout.readline().decode().split()
        pids = [int(word) for word in words]
        orphans = psutil.Process(parent.pid).children()
        assert not any(gone(pid) for pid in pids)
        parent.send_signal(number)
        parent.wait(60)
        try:
            eventually(lambda: all(gone(pid) for pid in pids))
            eventually(lambda: not Path(directory).exists())
        finally:
            for orphan in orphans:
                if orphan.is_running():
                    orphan.kill()


def test_servers_end_with_their_watchdog() -> None:
    """A watchdog killed with SIGKILL takes its servers along, and whoever asks it next is told so."""
    with Keeper() as keeper, LocalValkey(keeper=keeper) as valkey:
        assert valkey.server is not None
        pid = valkey.server.pid
        os.kill(keeper.pid, signal.SIGKILL)
        eventually(lambda: gone(pid))
        with pytest.raises(StackGone):
            valkey.kill()
        assert not valkey.running
    assert not keeper.directory.exists()


def test_stack_up_prints_its_urls_and_ends_with_ctrl_c() -> None:
    """What it prints is for a shell; after SIGINT nothing is left and the exit code is 0."""
    code = "from ops.stack.up import up; up()"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().decode().strip() for _ in range(3)]
        kafka, redis = (line.partition("=")[2] for line in lines[:2])
        assert lines[0].startswith("export EBBTIDE_KAFKA_URL=127.0.0.1:")
        assert lines[1].startswith("export EBBTIDE_REDIS_URL=redis://127.0.0.1:")
        assert lines[2].startswith("# ")
        assert kafka_nodes(int(kafka.split(":")[1])) is not None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert kafka_nodes(int(kafka.split(":")[1])) is None
        assert redis_pid(int(redis.split(":")[2].split("/")[0])) is None


def test_stack_up_ends_with_an_error_when_a_server_ends() -> None:
    """Nobody is left with half a stack: Valkey is killed from outside, `up` says so and takes Kafka down."""
    lines: list[str] = []

    def write(line: str) -> None:
        lines.append(line)
        if line.startswith("export EBBTIDE_REDIS_URL"):
            pid = redis_pid(int(line.rpartition(":")[2].partition("/")[0]))
            assert pid is not None
            os.kill(pid, signal.SIGKILL)

    with pytest.raises(ServerFailed, match="valkey ended with code -9"):
        up(write=write)
    assert kafka_nodes(int(lines[0].split(":")[1])) is None


def test_no_route_to_the_registry_is_one_clear_error(tmp_path: Path) -> None:
    """On first use without a network: what is missing, from where, and the two ways around it."""
    (port,) = free_ports(1)
    before = set(psutil.pids())
    with pytest.raises(RegistryUnreachable) as caught:
        LocalStack(cache=tmp_path, registry=f"http://127.0.0.1:{port}").start()
    message = str(caught.value)
    for part in (str(tmp_path), f"http://127.0.0.1:{port}", "EBBTIDE_KAFKA_URL", "EBBTIDE_REDIS_URL"):
        assert part in message
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    assert children <= before


def test_a_broker_that_refuses_to_start_says_why() -> None:
    """The error carries the end of the server's log; nothing is left running, and stopping again is no error."""
    kafka = LocalKafka(settings={"log.retention.ms": "soon"})
    with pytest.raises(ServerFailed, match=r"log\.retention\.ms"):
        kafka.start()
    assert not any(node.running for node in kafka.nodes)
    kafka.stop()


def test_a_server_that_never_answers_meets_its_deadline(tmp_path: Path) -> None:
    with Keeper(tmp_path) as keeper:
        server = Server(keeper, "mute", tmp_path)
        server.spawn(["/bin/sh", "-c", "echo I wait for nothing; exec sleep 60"])
        with pytest.raises(ServerFailed, match=r"did not answer within 0\.3 s(.|\n)*I wait for nothing"):
            server.wait_ready(lambda: False, 0.3)
        assert server.running


def test_one_process_at_a_time_records_the_aot_cache(tmp_path: Path) -> None:
    """The second asks in vain; one that came to nothing leaves nothing; one that was kept ends them for good."""
    jars = KafkaJars(tmp_path)
    jars.folder.mkdir()
    stale = jars.folder / "recording-1.aot"
    stale.touch()
    with recording(jars) as first, recording(jars) as second:
        assert first is not None
        assert second is None
        assert not stale.exists()
        first.touch()
    assert not jars.aot.exists() and not first.exists()
    with recording(jars) as third:
        assert third is not None
        third.write_text("as Java left it")
        third.rename(jars.aot)
    assert jars.aot.read_text() == "as Java left it"
    with recording(jars) as fourth:
        assert fourth is None


TIED = """
import subprocess, sys, threading
from ebbtide.ops.stack.server import tied
child = subprocess.Popen(tied([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]))
print(child.pid, flush=True)
threading.Event().wait()
"""


def test_a_child_of_a_process_with_threads_ends_with_it() -> None:
    """It is the command itself, under the pid that its parent knows."""
    with subprocess.Popen(
        [sys.executable, "-c", TIED], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        (pid,) = (int(line) for line in lines - {"up"})
        assert "time.sleep(60)" in psutil.Process(pid).cmdline()[-1]
        parent.kill()
        eventually(lambda: gone(pid))
