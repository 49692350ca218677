"""`ebbtide train` on a log of a million events: seconds by stage and the peak memory of its process.

    python -m tests.bench.bench_train [--events N] [--again] [--json FILE] [-- options of `ebbtide train`]

The log is made of the public complete_journey log: its customers over again under new ids, whole customers in an order
drawn from a seed, until N events are reached. So customers behave as they do in life, and there are many of them; what
they do in the copies is the same, which makes figures of quality worthless here and figures of time no less true.
"""

import argparse
import csv
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOG = ROOT.parent / "shared" / "data" / "complete_journey" / "events.csv.gz"
SPEC = ROOT / "ops" / "specs" / "complete_journey.yaml"
SEED = 11
MIB = 1 << 20
FITTING = ("building the network", "cross-fitting", "finding the recipe", "training", "fitting")
"""How the stages begin that fit something."""


def repeated(rows: list[dict[str, str]], events: int, seed: int = SEED) -> Iterator[dict[str, str]]:
    """`events` rows: whole customers in a random order, over again as `<id>-<copy>`, in the order of time."""
    by_customer: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_customer.setdefault(row["user_id"], []).append(row)
    rng, copy = random.Random(seed), 0
    made: list[dict[str, str]] = []
    while len(made) < events:
        names = sorted(by_customer)
        rng.shuffle(names)
        for name in names:
            made += [{**row, "user_id": f"{name}-{copy}"} for row in by_customer[name]]
            if len(made) >= events:
                break
        copy += 1
    yield from sorted(made[:events], key=lambda row: int(row["ts"]))


def write_log(path: Path, events: int, source: Path) -> None:
    """A CSV file of `events` events, made of `source`."""
    with gzip.open(source, "rt", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(repeated(rows, events))


def measured(arguments: list[str], cwd: Path) -> tuple[float, int]:
    """Seconds and peak RSS in bytes of a command's process (its largest child's, where it has children)."""
    began = os.times().elapsed
    process = subprocess.Popen(arguments, cwd=cwd)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with status {status}")
    return os.times().elapsed - began, usage.ru_maxrss * 1024


def main() -> None:
    """Make the log, train, print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--log", type=Path, default=LOG, help="complete_journey's events.csv.gz")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--tree", type=Path, default=ROOT, help="measure another checkout")
    parser.add_argument("--module", default="ebbtide.ops.cli", help="its command's module")
    parser.add_argument("--again", action="store_true", help="run it twice, with what the first run made")
    parser.add_argument("options", nargs="*", help="options of `ebbtide train`, after --")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ebbtide-bench-") as folder:
        log, report = Path(folder) / "events.csv", Path(folder) / "report.json"
        write_log(log, asked.events, asked.log)
        kept = ["--runs", f"{folder}/runs"] if asked.again else []
        command = [
            sys.executable, "-m", asked.module, "train", "--events", str(log), "--spec", str(SPEC), "--out",
            f"{folder}/models", "--json", str(report), *kept, *asked.options,
        ]  # fmt: skip
        seconds, peak = measured(command, asked.tree)
        found = json.loads(report.read_text())
        again = measured(command, asked.tree) if asked.again else None
    fitted = sum(took for stage, took in found["seconds"].items() if stage.startswith(FITTING))
    figures = {
        "events": found["events"], "customers": found["customers"], "seconds": seconds,
        "seconds_without_fitting": seconds - fitted, "again": again, "peak_rss_bytes": peak,
        "stages": found["seconds"], "load": os.getloadavg()[0],
    }  # fmt: skip
    print(f"\n{found['events']:,} events of {found['customers']:,} customers")
    for stage, took in found["seconds"].items():
        print(f"{took:8.1f} s  {stage}")
    print(
        f"{seconds:8.1f} s  in all, the start included; peak {peak / MIB:,.0f} MiB, load {figures['load']:.1f}"
    )
    print(f"{seconds - fitted:8.1f} s  of it without fitting")
    if again:
        print(f"{again[0]:8.1f} s  once more with nothing new; peak {again[1] / MIB:,.0f} MiB")
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
