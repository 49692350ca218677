"""What history costs by engine, a million events: `python -m tests.bench.bench_engines [--events N] [--only NAME …]`.

The demo's shop in eight files of CSV, read and walked through (examples, snapshots, a panel) by one process, by two,
and by Spark on one and on two cores of this machine. Each engine has a process of its own, whose CPU and memory are
those of all its processes, Java among them, looked at ten times a second: memory is the largest sum of resident pages,
which counts shared ones twice. "Start" is the reading of one row and a `map` of nothing, what an engine costs before
its first event; its CPU (imports, too) is not in what is said of a million. Beside them stands the machine's load. All
engines must find the same bytes.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.parts.engine import Engine
from ebbtide.featurestore.parts.processes import HERE, Processes
from ebbtide.featurestore.parts.spark import Spark
from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.examples.jobs import gather_by
from ebbtide.model.examples.sample import Gathered, Panel, Wanted, snapshot_dates
from ebbtide.ops.console import table_and_json
from ebbtide.ops.demo.shop.behaviour import Scenario, simulate
from ebbtide.ops.demo.shop.events import write_csv

ENGINES: dict[str, Engine] = {
    "--jobs 1": Processes(1), "--jobs 2": Processes(2),
    "Spark local[1]": Spark("local[1]"), "Spark local[2]": Spark("local[2]"),
}  # fmt: skip
SPEC = Path(__file__).resolve().parents[2] / "ops" / "specs" / "demo.yaml"
FILES, EVENTS_A_CUSTOMER, EXAMPLES_MAX = 8, 37, 60_000
LOOK_S = 0.1
WARM, STARTED = "_warm", "_started"
"""Beside the events, and hidden from whoever reads them."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one engine; `digest`: of every byte it found."""

    engine: str
    events: int
    start_s: float
    read_s: float
    walk_s: float
    digest: str
    start_cpu_s: float = 0.0
    cpu_s: float = 0.0
    rss_bytes: int = 0
    load: float = 0.0


def write_events(folder: Path, events: int) -> None:
    sim = simulate(
        Scenario(
            seed=7, customers=max(50, events // EVENTS_A_CUSTOMER), start_ms=1_700_000_000_000, days=120.0
        )
    )
    count = min(len(sim), events)
    for number in range(FILES):
        begin, end = (count * at // FILES for at in (number, number + 1))
        write_csv(sim, folder / f"{number}.csv", slice(begin, end))
    (folder / WARM).mkdir()
    write_csv(sim, folder / WARM / "one.csv", slice(0, 1))


def measure(name: str, folder: Path) -> Cost:
    """In this process and in what the engine starts."""
    engine, spec = ENGINES[name], load_spec(SPEC)
    layout, times = Layout(spec), [time.perf_counter()]
    read_log(folder / WARM / "one.csv", spec)
    if engine != HERE:
        engine.map(len, ["", ""])
    (folder / STARTED).touch()
    times.append(time.perf_counter())
    log = read_log(folder, spec, engine=engine).events
    times.append(time.perf_counter())
    until = int(log.time.max()) + 1
    panel = Panel(until - spec.horizon_ms, until, np.arange(len(log.customers)) % 10 == 0)
    dates = snapshot_dates(spec, log, until - spec.horizon_ms, 4 * DAY_MS)
    found = gather_by(engine, layout, log, Wanted(until, dates, EXAMPLES_MAX, 0, (panel,)), lambda _: None)
    times.append(time.perf_counter())
    start, read, walk = np.diff(times).tolist()
    return Cost(name, len(log), start, read, walk, _digest(found))


def _digest(found: Gathered) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for points in (found.decisions, found.snapshots, *found.panels):
        for field in fields(Points):
            if field.name != "event":  # numbered within the part
                digest.update(np.ascontiguousarray(getattr(points, field.name)).view(np.uint8).data)
    return digest.hexdigest()


def watched(name: str, folder: Path) -> Cost:
    """`measure` in a process of its own, with what all of its processes took."""
    command = [sys.executable, "-m", "tests.bench.bench_engines", "--measure", name, "--folder", str(folder)]
    (folder / STARTED).unlink(missing_ok=True)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    used: dict[int, float] = {}
    rss, start_cpu_s = 0, 0.0
    while child.poll() is None:
        now = 0
        for process in _tree(child.pid):
            try:
                with process.oneshot():
                    used[process.pid] = sum(process.cpu_times()[:2])
                    now += process.memory_info().rss
            except psutil.Error:
                continue  # ended since
        rss = max(rss, now)
        if not (folder / STARTED).exists():
            start_cpu_s = sum(used.values())
        time.sleep(LOOK_S)
    assert child.stdout is not None
    said: dict[str, Any] = json.loads(child.stdout.read().splitlines()[-1])
    cpu_s = sum(used.values()) - start_cpu_s
    return Cost(
        **{**said, "start_cpu_s": start_cpu_s, "cpu_s": cpu_s, "rss_bytes": rss, "load": os.getloadavg()[0]}
    )


def _tree(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.Error:
        return []


def shown(costs: list[Cost]) -> Table:
    table = Table(
        "engine", "start s", "of CPU", "read s", "walk s", "s / million", "CPU s / million", "MiB", "load"
    )
    for cost in costs:
        million = cost.events / 1e6
        table.add_row(
            cost.engine, f"{cost.start_s:.1f}", f"{cost.start_cpu_s:.1f}", f"{cost.read_s:.1f}", f"{cost.walk_s:.1f}",
            f"{(cost.read_s + cost.walk_s) / million:.1f}", f"{cost.cpu_s / million:.1f}",
            f"{cost.rss_bytes / MIB:,.0f}", f"{cost.load:.1f}",
        )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", choices=ENGINES)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.measure:
        sys.stdout.write(json.dumps(asdict(measure(asked.measure, asked.folder))) + "\n")
        return
    with tempfile.TemporaryDirectory(prefix="ebbtide-engines-") as name:
        folder = Path(name)
        write_events(folder, asked.events)
        measure("--jobs 1", folder)  # what is compiled once is in Numba's cache from here on
        costs = [watched(each, folder) for each in asked.only]
    assert len({cost.digest for cost in costs}) == 1, "the engines differ in what they found"
    table_and_json(shown(costs), {"costs": [asdict(cost) for cost in costs]}, asked.json)


if __name__ == "__main__":
    main()
