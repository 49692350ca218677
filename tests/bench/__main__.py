"""`make bench`: Ebbtide, Ebbtide with a Faust message a record, an idiomatic Faust service and one of Quix Streams.
ARGS='--only untold ours traced traced_all' says what metrics and traces cost, '--only ours two' what a second process
brings, '--only ours hot' what becomes of it when one customer is half of a partition, '--only ours timers' what timers
cost.

One run on the embedded Kafka and Valkey, one service after the other, each with a topic of its own and the same events
(`traffic.py`). First the most it can do: a backlog, timed over its steady part. Then event-to-alert latency while a
producer in another process sends at half of that rate, and at one low rate common to all. All of it shares the
machine's cores, as said at the end with the load that was there before: take the ratios.
"""

import argparse
import asyncio
import json
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ebbtide.ops.console import Steps, console, steps, table_and_json
from ebbtide.ops.stack.local import LocalStack
from tests.bench.collector import collector
from tests.bench.environment import quix_python
from tests.bench.machine import Machine, Watch
from tests.bench.report import table
from tests.bench.run import Figures, Run, python
from tests.bench.services import COMPARED, VARIANTS, Place
from tests.bench.traffic import BEGINS_LATELY_MS, CUSTOMERS

COMMON_RATE = 500.0


async def measured(asked: argparse.Namespace, say: Steps, figures: dict[str, Figures]) -> None:
    """Fills `figures`, so that what was measured is there even when a later service fails."""
    quix = quix_python(say) if "quix" in asked.only else None
    say("starting Kafka and Valkey")
    with (
        LocalStack(progress=say) as stack,
        tempfile.TemporaryDirectory(prefix="ebbtide-bench-") as folder,
        collector() as collector_url,
    ):
        directory, start_ms = Path(folder), time.time_ns() // 1_000_000 - BEGINS_LATELY_MS
        say("publishing a model of random weights")
        await python("tests.bench.publish", folder, str(start_ms))
        say("compiling it")
        await python("tests.bench.precompile", folder)
        enter = json.loads((directory / "thresholds.json").read_text())
        place = Place(stack.kafka_url, stack.redis_url, directory, start_ms, enter, quix, collector_url)
        for variant in VARIANTS:
            if variant.name in asked.only:
                run = Run(variant, place, asked.seconds, asked.common_rate, say)
                found = figures[variant.name] = await run.measure()
                if variant.name == "ours":
                    found.parts_us = await run.parts_us(found.alert_share)


def as_json(figures: dict[str, Figures], machine: Machine) -> dict[str, Any]:
    """The documented names first: events_per_s, p50_ms, p99_ms (at half of the maximum); then all the rest."""
    out: dict[str, Any] = {
        "machine": {**asdict(machine), "platform": platform.platform(), "customers": CUSTOMERS}
    }
    for name, found in figures.items():
        half = {"p50_ms": found.half.p50_ms, "p99_ms": found.half.p99_ms} if found.half else {}
        out[name] = {"events_per_s": round(found.events_per_s, 1), **half, **asdict(found)}
    if "ours" in figures:
        for name in figures.keys() - {"ours"}:
            out[f"times_{name}"] = figures["ours"].events_per_s / figures[name].events_per_s
        if figures["ours"].parts_us:
            out["efficiency"], out["cpu_us"] = figures["ours"].efficiency, figures["ours"].cpu_us
    return out


def main() -> None:
    names = [variant.name for variant in VARIANTS]
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase (default 15)")
    parser.add_argument(
        "--short", action="store_const", dest="seconds", const=4.0, help="for a look: phases of 4 s"
    )
    parser.add_argument("--only", nargs="+", choices=names, default=COMPARED, metavar="NAME",
                        help=f"some of the services, of {', '.join(names)}")  # fmt: skip
    parser.add_argument(
        "--common-rate",
        type=float,
        default=COMMON_RATE,
        metavar="N",
        help="events/s that all are paced at",
    )
    asked = parser.parse_args()
    figures: dict[str, Figures] = {}
    watch = Watch()
    try:
        with steps() as say:
            asyncio.run(measured(asked, say, figures))
    finally:
        if figures:
            machine = watch.seen()
            table_and_json(table(figures, machine), as_json(figures, machine), asked.json)
    if asked.json:
        console().print(f"figures in {asked.json}")


if __name__ == "__main__":
    main()
