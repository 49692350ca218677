"""What metrics and traces cost a turn: `python -m tests.bench.bench_telemetry [--short]`.

The same turns as `bench_turn` (8 partitions, memory store, arithmetic model: little else, so a cost shows), told to
nobody, to the metrics, and to metrics and traces: a share of 0.05, the default, and all of them. The kinds take turns,
one after the other, so that a neighbour's burst hits all. CPU is this process's, the export of spans to a collector on
loopback included, the collector not. A figure is the median; its spread the 10th to 90th percentile.
"""

import argparse
import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.ops.console import steps, table_and_json
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.ops.observe.traces import Traces
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.decision.episodes import EpisodePolicy
from tests.bench.adapter import Pipelines
from tests.bench.bench_turn import KNOWN, TOPIC, Log
from tests.bench.collector import collector
from tests.bench.machine import Watch
from tests.bench.traffic import BEGINS_BEFORE_MS, SPEC
from tests.support.seams.streams import ListSink
from tests.support.workers.worlds import Arithmetic

EVENTS, PARTITIONS, TURNS, SETTLING = (8, 64, 1_000), 8, 200, 20
WORKER_US = 26.0
"""CPU of a whole worker an event (`make bench`): what the cost at 1,000 events a turn is held against."""


@dataclass(frozen=True, slots=True)
class Cell:
    """CPU of a turn, ms: the median and the 10th and 90th percentile."""

    told: str
    events: int
    cpu_ms: float
    low_ms: float
    high_ms: float


async def measured(url: str, turns: int) -> list[Cell]:
    """All cells."""
    layout, start_ms = Layout(SPEC), time.time_ns() // 1_000_000 - BEGINS_BEFORE_MS
    model = Arithmetic(SPEC, EpisodePolicy.of(enter=0.4, exit=0.3, cooldown_ms=0), version=1)
    traced = {share: Traces(SystemClock(), url, TOPIC, share, None, {}) for share in (0.05, 1.0)}
    kinds = {
        "nobody": (None, None),
        "metrics": (Metrics(), None),
        "metrics, 5 % traced": (Metrics(), traced[0.05].turn),
        "metrics, all traced": (Metrics(), traced[1.0].turn),
    }
    spent: dict[tuple[str, int], list[float]] = {(kind, n): [] for kind in kinds for n in EVENTS}
    async with AsyncExitStack() as stack:
        at_work = {}
        for kind, (telemetry, tracer) in kinds.items():
            store = MemoryStore(layout.dtype, PARTITIONS)
            made = Pipelines(TOPIC, layout, model, store, ListSink(), PARTITIONS, telemetry, tracer)
            at_work[kind] = await stack.enter_async_context(made), Log(PARTITIONS, start_ms)
            for waiting in at_work[kind][1].everything(KNOWN):
                await at_work[kind][0].take(waiting)
        for turn in range(SETTLING + turns):
            for events in EVENTS:
                for kind, (pipelines, log) in at_work.items():
                    waiting = log.next(events, PARTITIONS)
                    began_s = time.process_time()
                    await pipelines.take(waiting)
                    if turn >= SETTLING:
                        spent[kind, events].append((time.process_time() - began_s) * 1000)
    for each in traced.values():
        each.close()
    return [Cell(kind, n, *np.quantile(ms, [0.5, 0.1, 0.9]).tolist()) for (kind, n), ms in spent.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--short", action="store_true", help="fifty turns a cell")
    asked = parser.parse_args()
    watch = Watch()
    with steps() as say, collector() as url:
        say("turns of 8, 64 and 1,000 events, told to nobody, to metrics, to metrics and traces")
        cells = asyncio.run(measured(url, 50 if asked.short else TURNS))
    machine = watch.seen()
    found = {(cell.told, cell.events): cell for cell in cells}
    grid = Table("ms of CPU a turn", *(f"{n:,} events" for n in EVENTS), "of a worker's CPU")
    for kind in dict.fromkeys(cell.told for cell in cells):
        row = [found[kind, n] for n in EVENTS]
        added_us = (row[-1].cpu_ms - found["nobody", EVENTS[-1]].cpu_ms) * 1000 / EVENTS[-1]
        said = (f"{c.cpu_ms:.2f} ({c.low_ms:.2f} to {c.high_ms:.2f})" for c in row)
        grid.add_row(kind, *said, f"{added_us / WORKER_US:.1%}")
    made = {"machine": asdict(machine), "cells": [asdict(cell) for cell in cells]}
    table_and_json(Group(grid, Text(str(machine))), made, asked.json)


if __name__ == "__main__":
    main()
