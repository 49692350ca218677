"""From exec to `/readyz` 200 of a worker: with nothing compiled, and with XLA's programs kept from the start before.

    $ python -m tests.bench.bench_start [--runs 5]

A real Kafka and Valkey run on this machine, with one topic; each run is a process of its own in a group of its own.
Of the first run the cache is empty, the others find it. `cpu` is what the process has used by then, which a busy
machine changes least; the import of TensorFlow alone is measured beside it, for what is ours is the rest.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from ebbtide.featurestore.spec import dump_spec
from ebbtide.ops.config.settings import RedisSettings, Settings
from ebbtide.ops.console import console, steps
from ebbtide.ops.stack.local import LocalStack
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.kafka.settings import KafkaSettings
from tests.support.seams.models import SPEC, publish

READY_S_MAX = 300.0
IMPORT = "import time; a = time.process_time(); import tensorflow; print(time.process_time() - a)"


def once(settings: Settings, folder: Path) -> tuple[float, float]:
    """Seconds from exec to ready, and of CPU used by then."""
    began = time.perf_counter()
    with WorkerProcess(settings, folder) as worker:
        worker.wait_ready(READY_S_MAX)
        used = psutil.Process(worker.pid).cpu_times()
        return time.perf_counter() - began, used.user + used.system


def imported() -> tuple[float, float]:
    """Seconds that the import of TensorFlow takes alone, and of CPU."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    return time.perf_counter() - began, float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"import": [], "cold": [], "warm": []}
    with steps() as say, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        say("publishing a model of random weights")
        # In a process of its own: this one stays without TensorFlow's threads.
        publish(folder / "models", spec=SPEC)
        (folder / "spec.yaml").write_text(yaml.safe_dump(dump_spec(SPEC)))
        with LocalStack(progress=say) as stack:
            for n in range(asked.runs):
                shutil.rmtree(folder / "kept", ignore_errors=True)
                for kind in ("cold", "warm"):
                    name = f"start-{kind}-{n}"
                    settings = Settings(
                        spec=folder / "spec.yaml", model=folder / "models" / SPEC.name, compiled=folder / "kept",
                        kafka=KafkaSettings(url=stack.kafka_url, topic="start", group=name),
                        redis=RedisSettings.model_validate({"url": stack.redis_url, "prefix": f"{name}:"}),
                    )  # fmt: skip
                    say(f"{kind}, {n + 1} of {asked.runs}")
                    found[kind].append(once(settings, folder))
                    time.sleep(1.0)
                found["import"].append(imported())
    for kind, figures in found.items():
        for what, values in zip(("seconds", "cpu"), zip(*figures, strict=True), strict=True):
            console().print(
                f"{kind:7}{what:8} median {statistics.median(values):5.1f}  {min(values):5.1f} to {max(values):5.1f}"
            )
    console().print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
