"""What a turn costs before its first event, and an event after that: `python -m tests.bench.bench_turn [--short]`.

Some events of the bench's clickstream wait, spread evenly over 1, 8 or 64 partitions, and are worked off: parsed,
loaded, folded, scored by an arithmetic model, decided, stored, sent to a list. Without TensorFlow and Kafka, with the
memory store and with Valkey. CPU is this process's (the scorer's thread included, Valkey's own not); a figure is the
median of TURNS turns, and the spread its 10th to 90th percentile. All customers are known before the first turn.
"""

import argparse
import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.featurestore.store.protocol import Store
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.console import steps, table_and_json
from ebbtide.ops.stack.local import LocalValkey
from ebbtide.stream.batch import FetchedBatch
from ebbtide.stream.decision.episodes import EpisodePolicy
from tests.bench.adapter import Pipelines
from tests.bench.machine import Machine, Watch
from tests.bench.traffic import BEGINS_BEFORE_MS, SPEC, clicks, records
from tests.support.seams.streams import ListSink, LogRecord
from tests.support.workers.worlds import Arithmetic

EVENTS = (1, 8, 64, 256, 1_000)
PARTITIONS = (1, 8, 64)
TURNS, SETTLING = 25, 4
KNOWN = 60_000  # events before the first turn: three a customer
TOPIC = "bench-turn"


@dataclass(frozen=True, slots=True)
class Cell:
    """A turn of `events` events over `partitions`: medians and 10th to 90th percentile, ms."""

    store: str
    partitions: int
    events: int
    turns: int
    cpu_ms: float
    cpu_ms_spread: tuple[float, float]
    wall_ms: float
    wall_ms_spread: tuple[float, float]


class Log:
    """The clickstream by partition: `next(n, over)` is the next n events as they wait in `over` partitions."""

    def __init__(self, partitions: int, start_ms: int) -> None:
        self._partitions, self._start_ms, self._made = partitions, start_ms, 0
        self._ready: dict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
        self._ends = [0] * partitions

    def next(self, events: int, over: int) -> list[FetchedBatch]:
        """A batch for each of the first `over` partitions, as even as it goes."""
        share, more = divmod(events, over)
        return [self._batch(number, share + (number < more)) for number in range(over)]

    def everything(self, events: int) -> Iterator[list[FetchedBatch]]:
        """All that is ready and `events` more, in batches as production fetches them."""
        self._make(events)
        while left := [number for number, ready in self._ready.items() if ready]:
            yield [self._batch(number, min(1_000, len(self._ready[number]))) for number in left]

    def _batch(self, number: int, count: int) -> FetchedBatch:
        while len(self._ready[number]) < count:
            self._make(8_192)
        taken, self._ready[number] = self._ready[number][:count], self._ready[number][count:]
        start, now_ms = self._ends[number], time.time_ns() // 1_000_000
        self._ends[number] += count
        log = [LogRecord(start + i, now_ms, key, value) for i, (key, value) in enumerate(taken)]
        return FetchedBatch(TOPIC, number, 0, start, start + count, log)

    def _make(self, count: int) -> None:
        made = clicks(self._made, count, self._start_ms)
        self._made += count
        for customer, record in zip(made.customer.tolist(), records(made), strict=True):
            self._ready[customer % self._partitions].append(record)


async def measure(name: str, store: Store, partitions: int, turns: int) -> list[Cell]:
    """A row of the table. Turns of all sizes take their turn, so that a neighbour's burst does not hit one of them."""
    model = Arithmetic(SPEC, EpisodePolicy.of(enter=0.4, exit=0.3, cooldown_ms=0), version=1)
    log = Log(partitions, time.time_ns() // 1_000_000 - BEGINS_BEFORE_MS)
    sizes = [events for events in EVENTS if events >= partitions]
    spent: dict[int, list[tuple[float, float]]] = {events: [] for events in sizes}
    async with Pipelines(TOPIC, Layout(SPEC), model, store, ListSink(), partitions) as pipelines:
        for waiting in log.everything(KNOWN):
            await pipelines.take(waiting)
        for turn in range(SETTLING + turns):
            for events in sizes:
                waiting = log.next(events, partitions)
                cpu_s, wall_s = time.process_time(), time.perf_counter()
                await pipelines.take(waiting)
                took = (time.process_time() - cpu_s, time.perf_counter() - wall_s)
                if turn >= SETTLING:
                    spent[events].append(took)
    return [cell_of(name, partitions, events, np.array(spent[events]) * 1000) for events in sizes]


def cell_of(store: str, partitions: int, events: int, ms: NDArray[np.float64]) -> Cell:
    """`ms`: CPU and wall of every turn, float64[turns, 2]."""
    low, middle, high = np.quantile(ms, [0.1, 0.5, 0.9], axis=0)
    cpu, wall = ((float(low[i]), float(high[i])) for i in (0, 1))
    return Cell(store, partitions, events, len(ms), float(middle[0]), cpu, float(middle[1]), wall)


def event_us(cells: list[Cell]) -> float:
    """CPU µs an event beyond the smallest turn, of one store's cells over one number of partitions."""
    small, large = cells[0], cells[-1]
    return (large.cpu_ms - small.cpu_ms) / (large.events - small.events) * 1000


def table(cells: list[Cell], machine: Machine) -> RenderableType:
    """Ratios, then the table of issue 9 by store and partitions, then the machine."""
    found = {(cell.store, cell.partitions, cell.events): cell for cell in cells}
    stores = list(dict.fromkeys(cell.store for cell in cells))
    lines = []
    for store in stores:
        for partitions in PARTITIONS[1:]:
            alone, one = found[store, 1, 1], found[store, 1, partitions]
            many = found[store, partitions, partitions]
            lines.append(
                f"{store}: {partitions} partitions with an event each cost {many.cpu_ms / one.cpu_ms:.1f} times the "
                f"CPU of {partitions} events in one, {many.cpu_ms / alone.cpu_ms:.1f} times that of one event."
            )
    grid = Table(
        "events in a turn", *(f"{events:,}" for events in EVENTS), "µs an event",
        title="ms of a turn (± half of 10th to 90th percentile)", title_justify="left",
    )  # fmt: skip
    for column in grid.columns[1:]:
        column.justify = "right"
    for store in stores:
        for partitions in PARTITIONS:
            row = [found.get((store, partitions, events)) for events in EVENTS]
            cost = event_us([cell for cell in row if cell])
            name = f"{store}, {partitions} partition{'s' * (partitions > 1)}"
            cpu = (said(cell.cpu_ms, cell.cpu_ms_spread) if cell else "" for cell in row)
            wall = (said(cell.wall_ms, cell.wall_ms_spread) if cell else "" for cell in row)
            grid.add_row(f"{name}: CPU", *cpu, f"{cost:.1f}")
            grid.add_row("  wall", *wall, end_section=partitions == PARTITIONS[-1])
    return Group(Text("\n".join(lines)), grid, Text(f"{cells[0].turns} turns a cell; {machine}."))


def said(median: float, spread: tuple[float, float]) -> str:
    low, high = spread
    return f"{median:.1f} ±{(high - low) / 2:.1f}"


async def figures(redis_url: str, turns: int) -> list[Cell]:
    """All cells. `redis_url`: a server that may be filled."""
    cells, layout = [], Layout(SPEC)
    for partitions in PARTITIONS:
        cells += await measure("memory", MemoryStore(layout.dtype, partitions), partitions, turns)
        store = RedisStore(redis_url, layout.dtype, TOPIC, partitions, prefix=f"turn-{partitions}:")
        try:
            cells += await measure("Valkey", store, partitions, turns)
        finally:
            await store.close()
    return sorted(cells, key=lambda cell: cell.store == "Valkey")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--short", action="store_true", help="five turns a cell")
    asked = parser.parse_args()
    watch = Watch()
    with steps() as say:
        say("turns of 1 to 1,000 events over 1, 8 and 64 partitions")
        with LocalValkey() as valkey:
            cells = asyncio.run(figures(valkey.url, 5 if asked.short else TURNS))
    machine = watch.seen()
    made = {"machine": asdict(machine), "cells": [asdict(cell) for cell in cells]}
    table_and_json(table(cells, machine), json.loads(json.dumps(made)), asked.json)


if __name__ == "__main__":
    main()
