"""`ebbtide worker --processes 2`: one address for both, one that dies is started again, and all end together."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ebbtide.ops.config.child import child_environment, for_child
from ebbtide.ops.stack.server import free_ports, tied
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.stream.kafka.topics import ensure_topics
from tests.support.workers.outages import PARTITIONS, outage, readiness, samples, until


@pytest.mark.kafka
@pytest.mark.redis
@pytest.mark.slow
async def test_two_processes_share_an_address_and_the_partitions(tmp_path: Path) -> None:
    with outage(tmp_path, sizes=(32,)) as servers:
        settings = servers.settings("several")
        await ensure_topics(servers.direct(settings).kafka, topic_specs(settings))
        (port,) = free_ports(1)
        http = settings.http.model_copy(update={"port": port})
        data, secrets = for_child(settings.model_copy(update={"http": http}))
        (tmp_path / "several.yaml").write_text(yaml.safe_dump(data))
        address, log = f"http://127.0.0.1:{port}", tmp_path / "several.log"
        command = [sys.executable, "-m", "ebbtide.ops.cli", "worker", "--processes", "2", "--config"]
        process = started([*command, str(tmp_path / "several.yaml")], child_environment(**secrets), log)
        try:
            await until(
                lambda: readiness(address)[0] == 200, "both ready", 150.0, lambda: log.read_text()[-2000:]
            )

            def owned() -> dict[str, float]:
                return {
                    name: n
                    for name, n in samples(address).items()
                    if name.startswith("ebbtide_partitions_owned")
                }

            await until(
                lambda: sum(owned().values()) == PARTITIONS and len(owned()) == 2, "all partitions owned"
            )
            before = {n: t for n, t in samples(address).items() if n.startswith("process_start_time_seconds")}
            children = [int(pid) for pid in children_of(process.pid)]
            assert len(children) == 2
            os.kill(children[0], signal.SIGKILL)
            await until(lambda: readiness(address)[0] == 503, "one is gone")
            await until(
                lambda: readiness(address)[0] == 200, "it is back", 150.0, lambda: log.read_text()[-2000:]
            )
            again = {n: t for n, t in samples(address).items() if n.startswith("process_start_time_seconds")}
            assert sum(again[name] != before[name] for name in before) == 1
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()[-2000:]
        finally:
            process.kill()
            process.wait()


def started(command: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(tied(command), stdout=file, stderr=file, env=env, process_group=0)


def children_of(pid: int) -> list[str]:
    """Of a supervisor: its workers."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
