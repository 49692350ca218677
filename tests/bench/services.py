"""The services that are measured, each a process of its own, and what can be seen of a process from outside.

    ours         `ebbtide worker` as it is, alerts at least once
    exactly_once the same, alerts.exactly_once
    per_record   the same with kafka.fetch_records_max=1: one Faust message a record, as Faust has it
    idiomatic    tests/bench/idiomatic.py
    quix         tests/bench/quix.py, by an interpreter of its own
    untold       ours without a metric; traced, traced_all: ours with 5 % of its turns traced, with all of them
    two          ours, `--processes 2`
    hot          ours, half of a partition's events are one customer's
    timers       ours, with timers: who falls silent is told

It knows how each is started and told where things are; it refuses to know what is measured of them.
"""

import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import yaml

from ebbtide.featurestore.spec import dump_spec
from ebbtide.ops.config.child import child_environment
from ebbtide.ops.stack.server import free_ports
from tests.bench.producer import PARTITIONS
from tests.bench.traffic import SPEC

SAMPLE_EVERY_S = 0.25
STOP_S = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run happens. `directory` holds the published model and Quix's state; `quix_python`: its interpreter, None
    where it is not measured; START_MS is when the stream begins; `collector_url` takes traces."""

    kafka_url: str
    redis_url: str
    directory: Path
    start_ms: int
    enter: dict[str, float]
    quix_python: Path | None = None
    collector_url: str = ""

    @property
    def quix_state(self) -> Path:
        """Where Quix Streams keeps its RocksDB."""
        return self.directory / "quix-state"


@dataclass(frozen=True, slots=True)
class Variant:
    """One of them. `guess_per_s`: about how fast, to size a backlog by; wrong by half does no harm. traced: share
    of its turns. told: to metrics. hot: of one partition's events every other is one customer's. timers: the clock
    takes silences, which the other services leave to the next event."""

    name: str
    title: str
    guess_per_s: int
    fetch_records_max: int = 1000
    exactly_once: bool = False
    traced: float = 0.0
    told: bool = True
    processes: int = 1
    hot: bool = False
    timers: bool = False

    @property
    def topic(self) -> str:
        return f"bench-{self.name}"

    @property
    def alerts(self) -> str:
        return f"bench-{self.name}-alerts"

    @property
    def ours(self) -> bool:
        return self.name not in ("idiomatic", "quix")


VARIANTS = (
    Variant("ours", "ours: a message a fetched batch", 40_000),
    Variant("exactly_once", "ours, each alert exactly once", 40_000, exactly_once=True),
    Variant("per_record", "ours, a message a record", 3_000, fetch_records_max=1),
    Variant("idiomatic", "Faust take() + Redis hashes", 2_000),
    Variant("quix", "Quix Streams + RocksDB", 6_000),
    Variant("untold", "ours, no metrics", 40_000, told=False),
    Variant("traced", "ours, 5 % of turns traced", 40_000, traced=0.05),
    Variant("traced_all", "ours, all turns traced", 40_000, traced=1.0),
    Variant("two", "ours, two processes", 50_000, processes=2),
    Variant("hot", "ours, one customer is half of a partition", 40_000, hot=True),
    Variant("timers", "ours, with timers", 40_000, timers=True),
)
COMPARED = ("ours", "exactly_once", "per_record", "idiomatic", "quix")
"""What `make bench` measures unless told otherwise; the others are for questions about ours."""


def command_of(variant: Variant, place: Place, port: int, scratch: Path) -> tuple[list[str], dict[str, str]]:
    """Command line and environment."""
    if variant.name == "quix":
        own = {
            "KAFKA": place.kafka_url, "TOPIC": variant.topic, "ALERTS": variant.alerts, "GROUP": variant.topic,
            "STATE": str(place.quix_state), "MODEL": str(place.directory / "plain"),
            "ENTER": str(place.enter["plain"]), "PARTITIONS": str(PARTITIONS),
        }  # fmt: skip
        # What the caller's environment says of BENCH_QUIX_COMMIT_S and _EVERY holds: so they can be tuned.
        return [str(place.quix_python), "-m", "tests.bench.quix"], child_environment(
            TF_CPP_MIN_LOG_LEVEL="2", **{f"BENCH_{name}": value for name, value in own.items()}
        )
    if not variant.ours:
        own = {
            "KAFKA": place.kafka_url, "REDIS": place.redis_url, "TOPIC": variant.topic, "ALERTS": variant.alerts,
            "GROUP": variant.topic, "MODEL": str(place.directory / "plain"), "ENTER": str(place.enter["plain"]),
        }  # fmt: skip
        options = ["--datadir", str(scratch), "worker", "--without-web", "--loglevel", "warn"]
        named = {f"IDIOMATIC_{name}": value for name, value in own.items()}
        # What the caller's environment says of IDIOMATIC_BATCH and _WITHIN_S holds: so they can be tuned.
        return [sys.executable, "-m", "tests.bench.idiomatic", *options], child_environment(
            TF_CPP_MIN_LOG_LEVEL="2", **named
        )
    spec = scratch / "spec.yaml"
    spec.write_text(yaml.safe_dump(dump_spec(SPEC)))
    enter = str(place.enter["ours"])
    module = ["ebbtide.ops.cli", "worker"] if variant.told else ["tests.bench.untold"]
    several = ["--processes", str(variant.processes)] if variant.processes > 1 else []
    traces = {"EBBTIDE_TRACES__URL": place.collector_url, "EBBTIDE_TRACES__SHARE": str(variant.traced)}
    return [sys.executable, "-m", *module, *several], child_environment(
        EBBTIDE_SPEC=str(spec), EBBTIDE_MODEL=str(place.directory / "models" / SPEC.name),
        EBBTIDE_KAFKA_URL=f"kafka://{place.kafka_url}", EBBTIDE_REDIS_URL=place.redis_url,
        EBBTIDE_KAFKA__TOPIC=variant.topic, EBBTIDE_KAFKA__GROUP=variant.topic,
        EBBTIDE_KAFKA__FETCH_RECORDS_MAX=str(variant.fetch_records_max),
        EBBTIDE_ALERTS__EXACTLY_ONCE=str(variant.exactly_once).lower(),
        EBBTIDE_REDIS__PREFIX=prefix_of(variant), EBBTIDE_TOPICS__ALERTS=variant.alerts,
        EBBTIDE_TOPICS__DEAD_LETTERS=variant.topic + "-dead-letters", EBBTIDE_POLICY__ENTER=enter,
        EBBTIDE_POLICY__EXIT=enter, EBBTIDE_POLICY__COOLDOWN="0s", EBBTIDE_ALERTS_FROM="start",
        EBBTIDE_COMPILED=str(place.directory / "compiled"),
        EBBTIDE_TIMERS__CLOCK="wall" if variant.timers else "off",  # the others decide nothing of who is silent
        EBBTIDE_HTTP__PORT=str(port), EBBTIDE_LOGS__LEVEL="warning", EBBTIDE_LOGS__FORM="text",
        **(traces if variant.traced else {}),
    )  # fmt: skip


def prefix_of(variant: Variant) -> str:
    """Of its keys in Redis."""
    return f"{variant.name}:"


@dataclass(slots=True)
class Cpu:
    """CPU seconds used so far, by process and by `all` of the machine, at wall times."""

    at_ms: list[int] = field(default_factory=list)
    seconds: list[dict[str, float]] = field(default_factory=list)

    def cores(self, from_ms: int, to_ms: int) -> dict[str, float]:
        """Cores busy on average between two times, by process; `others`: with what we know nothing of."""
        inside = [i for i, at in enumerate(self.at_ms) if from_ms <= at <= to_ms]
        if len(inside) < 2:
            return {}
        a, b = inside[0], inside[-1]
        spent_s = (self.at_ms[b] - self.at_ms[a]) / 1000
        found = {name: (self.seconds[b][name] - used) / spent_s for name, used in self.seconds[a].items()}
        whole = found.pop("all")
        return {**found, "others": max(0.0, whole - sum(found.values()))}


class Service:
    """A variant at work. A context manager: SIGTERM at the end. `rss_bytes_max` is read before that."""

    def __init__(self, variant: Variant, place: Place) -> None:
        self._variant, self._place = variant, place
        self._scratch = tempfile.TemporaryDirectory(prefix="ebbtide-bench-")
        self._port = free_ports(1)[0]
        self._stop = threading.Event()
        self.cpu = Cpu()
        self.rss_bytes_max = 0

    def __enter__(self) -> Self:
        scratch = Path(self._scratch.name)
        self._log = (scratch / "log").open("w+b")
        command, environment = command_of(self._variant, self._place, self._port, scratch)
        self._process = subprocess.Popen(command, env=environment, stdout=self._log, stderr=self._log)
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._sampler.join()
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._scratch.cleanup()

    def check(self) -> None:
        """Raises RuntimeError, with the end of its log, when it has ended by itself."""
        if self._process.poll() is not None:
            raise RuntimeError(
                f"{self._variant.name} ended with {self._process.returncode}:\n{self.log_end()}"
            )

    def log_end(self) -> str:
        """What it said last."""
        return Path(self._log.name).read_bytes()[-4000:].decode(errors="replace")

    def metrics(self) -> dict[str, float]:
        """Every sample of its /metrics, by name with labels; of several processes their sum. Ours only."""
        url = f"http://127.0.0.1:{self._port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        found: dict[str, float] = {}
        for line in lines:
            if not line.startswith("#"):
                name, value = re.sub(r'process="\d+",?', "", line).replace("{}", "").rsplit(" ", 1)
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def _worker(self) -> list[psutil.Process]:
        """The process; of several, with those that it watches over."""
        own = psutil.Process(self._process.pid)
        return [own, *own.children(recursive=True)] if self._variant.processes > 1 else [own]

    def _sample(self) -> None:
        watched = _servers()
        while not self._stop.wait(SAMPLE_EVERY_S):
            try:
                used = {name: sum(process.cpu_times()[:2]) for name, process in watched.items()}
                worker = self._worker()
                used["worker"] = sum(sum(process.cpu_times()[:2]) for process in worker)
                whole = psutil.cpu_times()
                used["all"] = sum(whole) - whole.idle - whole.iowait - whole.guest - whole.guest_nice
                self.rss_bytes_max = max(self.rss_bytes_max, sum(each.memory_info().rss for each in worker))
            except psutil.NoSuchProcess:
                return
            self.cpu.at_ms.append(time.time_ns() // 1_000_000)
            self.cpu.seconds.append(used)


def _servers() -> dict[str, psutil.Process]:
    """Kafka and Valkey of the stack that this process started."""
    names = {"java": "kafka", "valkey-server": "redis"}
    return {
        names[child.name()]: child
        for child in psutil.Process().children(recursive=True)
        if child.name() in names
    }
