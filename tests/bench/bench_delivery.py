"""What saying costs: at least once and exactly once, side by side: `python -m tests.bench.bench_delivery [--short]`.

A turn's alerts of 1, 8 or 64 partitions, 24 of each as bytes of their usual length, are sent and waited for; every
second turn the other way. CPU is this process's and the broker's; figures are medians of ROUNDS turns, with their 10th
to 90th percentile. CPU times are what to compare on a busy machine.
"""

import argparse
import asyncio
import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ebbtide.ops.console import steps, table_and_json
from ebbtide.ops.stack.local import LocalKafka
from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from ebbtide.stream.kafka.transactions.sink import ExactlyOnce
from ebbtide.stream.outputs.message import Delivery, Message, Parcel
from tests.bench.machine import Machine, Watch
from tests.support.seams.streams import Faults, LogSource

PARTITIONS = (1, 8, 64)
ALERTS, ALERT_BYTES, OUTPUT_PARTITIONS = 24, 700, 8
ROUNDS, SETTLING = 200, 10
TOPIC = "bench-delivery"
PROMISES = ("at least once", "exactly once")


@dataclass(frozen=True, slots=True)
class Cell:
    """A turn of `partitions` that each say ALERTS alerts: medians, and 10th to 90th percentile of the wall time, ms."""

    promise: str
    partitions: int
    rounds: int
    wall_ms: float
    wall_ms_spread: tuple[float, float]
    cpu_ms: float
    broker_cpu_ms: float


async def figures(kafka: LocalKafka, rounds: int) -> list[Cell]:
    """All cells, both promises in turn."""
    settings = KafkaSettings(url=kafka.url, topic=TOPIC, group=TOPIC)
    alerts = f"{TOPIC}-alerts"
    await ensure_topics(
        settings, [TopicSpec(TOPIC, max(PARTITIONS), "-"), TopicSpec(alerts, OUTPUT_PARTITIONS, "-")]
    )
    server = kafka.nodes[0].server
    assert server is not None
    broker, cells = psutil.Process(server.pid), []
    async with KafkaSink(settings) as least, ExactlyOnce(settings) as once:
        once.attach(LogSource(TOPIC, [[]] * max(PARTITIONS), seed=0, faults=Faults(0, 0.0)))
        for partition in range(max(PARTITIONS)):
            await once.take_over(partition)
        for partitions in PARTITIONS:
            seen: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
            for n in range(2 * (rounds + SETTLING)):
                promise, delivery = (PROMISES[0], least) if n % 2 else (PROMISES[1], once)
                spent = await turn(delivery, alerts, partitions, n, broker)
                if n >= 2 * SETTLING:
                    seen[promise].append(spent)
            for promise in PROMISES:
                wall, cpu, theirs = np.array(seen[promise]).T * 1000
                low, high = np.quantile(wall, [0.1, 0.9]).tolist()
                cells.append(
                    Cell(
                        promise, partitions, rounds, float(np.median(wall)), (low, high), float(np.mean(cpu)),
                        float(np.mean(theirs)),
                    )
                )  # fmt: skip
    return cells


async def turn(
    delivery: Delivery, topic: str, partitions: int, n: int, broker: psutil.Process
) -> tuple[float, float, float]:
    """Seconds: of the wall, of our CPU, of the broker's."""
    value = b"." * ALERT_BYTES
    parcels = [
        Parcel(
            partition,
            [Message(topic, b"customer-%d" % (partition * ALERTS + i), value) for i in range(ALERTS)],
            CommittedOffset(n, "timer_ms=0"),
        )
        for partition in range(partitions)
    ]
    before, cpu_s, began_s = broker.cpu_times(), time.process_time(), time.perf_counter()
    assert await delivery.send_each(parcels) == [None] * partitions
    wall_s, spent_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    after = broker.cpu_times()
    return wall_s, spent_s, after.user + after.system - before.user - before.system


def table(cells: list[Cell], machine: Machine) -> RenderableType:
    """A row a cell."""
    grid = Table(
        "partitions", "promise", "wall ms", "10th to 90th percentile", "our CPU ms", "broker's CPU ms",
        title=f"A turn in which each partition says {ALERTS} alerts", title_justify="left",
    )  # fmt: skip
    for cell in cells:
        low, high = cell.wall_ms_spread
        grid.add_row(
            str(cell.partitions), cell.promise, f"{cell.wall_ms:.1f}", f"{low:.1f} to {high:.1f}",
            f"{cell.cpu_ms:.2f}", f"{cell.broker_cpu_ms:.2f}", end_section=cell.promise == PROMISES[-1],
        )  # fmt: skip
    return Group(grid, Text(f"{cells[0].rounds} turns a cell; {machine}."))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--short", action="store_true", help="a quarter of the turns")
    asked = parser.parse_args()
    watch = Watch()
    with steps() as say:
        say("turns of 1, 8 and 64 partitions")
        with LocalKafka() as kafka:
            cells = asyncio.run(figures(kafka, ROUNDS // 4 if asked.short else ROUNDS))
    machine = watch.seen()
    made = {"machine": asdict(machine), "cells": [asdict(cell) for cell in cells]}
    table_and_json(table(cells, machine), json.loads(json.dumps(made)), asked.json)


if __name__ == "__main__":
    main()
