"""What a record costs to parse, part by part: `python -m tests.bench.bench_parse`.

CPU time of this process (a busy machine does not count), the best of ROUNDS, in µs a record of a 1,024-record batch of
about 150 bytes each: JSON decoding and validation alone, then the whole parser for times as numbers and as text, with
attributes, and with bad records in it. At the end a file of a million rows in each format.
"""

import argparse
import csv
import gc
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
from pyarrow import parquet

from ebbtide.featurestore.events.columns import ColumnReader
from ebbtide.featurestore.events.contract import event_adapter
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.files.as_stream import records_of
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.spec import Spec, parse_spec
from tests.support.fuzz import NOW_MS
from tests.support.seams.streams import LogRecord

RECORDS, ROUNDS, PASSES = 1024, 15, 10
KINDS: list[dict[str, Any]] = [
    {"name": "page_view"}, {"name": "search"}, {"name": "add_to_cart"}, {"name": "purchase", "aggregate": ["sum"]},
    {"name": "plan", "role": "attribute", "attribute": "category", "categories": ["free", "plus"]},
]  # fmt: skip


def spec_of(**more: Any) -> Spec:
    base = {"name": "b", "horizon": "14d", "memory": "90d", "windows": {"30d": 6}, "kinds": KINDS}
    return parse_spec({**base, **more})


def event(rng: random.Random, *, text: bool) -> dict[str, Any]:
    """About 150 bytes of JSON, as a shop sends them."""
    return {
        "user_id": f"customer-{rng.randrange(300):06d}",
        "event_id": f"{rng.getrandbits(64):016x}",
        "type": rng.choice(["page_view", "search", "add_to_cart", "purchase"]),
        "ts": "2025-12-31T12:34:56.789Z" if text else NOW_MS - rng.randrange(10**8),
        "value": round(rng.uniform(1, 100), 2),
        "properties": {"page": "/catalogue"},
    }


def records(make: Callable[[random.Random], dict[str, Any]]) -> list[LogRecord]:
    rng = random.Random(1)
    events = [make(rng) for _ in range(RECORDS)]
    return [LogRecord(i, NOW_MS, e["user_id"].encode(), orjson.dumps(e)) for i, e in enumerate(events)]


def cost(work: Callable[[], object], n: int = RECORDS) -> float:
    """µs each of n, in the best round."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(PASSES):
            work()
        best = min(best, time.process_time() - start)
    return best / PASSES / n * 1e6


def bench_records() -> None:
    spec = spec_of()
    parser, columns, adapter = Parser(spec), ColumnReader(spec), event_adapter(spec.mapping)
    numbers = records(lambda rng: event(rng, text=False))
    texts = records(lambda rng: event(rng, text=True))
    values = [record.value for record in numbers if record.value is not None]
    rows = [orjson.loads(value) for value in values]
    plans = records(lambda rng: {**event(rng, text=False), "type": "plan", "value": "plus"})
    bad = [*numbers[:-10], *(LogRecord(i, NOW_MS, b"c", b'{"ts":true}') for i in range(10))]
    noisy = [LogRecord(r.offset, NOW_MS, r.key, b"{}" if i % 2 else r.value) for i, r in enumerate(numbers)]
    mapped = Parser(spec_of(mapping={"user_id": "context.user", "value": "properties.revenue"}))
    foreign = records(
        lambda rng: {
            **(own := event(rng, text=False)),
            "context": {"user": own["user_id"]},
            "properties": {"revenue": 1.5},
        }
    )
    print(f"{RECORDS} records, {sum(map(len, values)) / RECORDS:.0f} bytes each, µs a record")
    for name, work in (
        ("JSON alone", lambda: [orjson.loads(value) for value in values]),
        ("validation alone", lambda: adapter.validate_python(rows)),
        ("validation and columns", lambda: columns.read(rows)),
        ("the whole, ts in ms", lambda: parser.parse(numbers)),
        ("the whole, ts as text", lambda: parser.parse(texts)),
        ("the whole, through a mapping", lambda: mapped.parse(foreign)),
        ("the whole, all attributes", lambda: parser.parse(plans)),
        ("the whole, 10 bad records", lambda: parser.parse(bad)),
        ("the whole, every other bad", lambda: parser.parse(noisy)),
    ):
        print(f"  {name:30s} {cost(work):5.2f}")
    assert len(mapped.parse(foreign).events) == RECORDS


def bench_files(n: int) -> None:
    rng = random.Random(2)
    names = ("user_id", "event_id", "type", "ts", "value")
    rows = [tuple(event(rng, text=False)[name] for name in names) for _ in range(n)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"events.{ending}" for ending in ("csv", "jsonl", "parquet")]
        with paths[0].open("w", newline="") as file:
            csv.writer(file).writerows([names, *rows])
        paths[1].write_bytes(b"\n".join(orjson.dumps(dict(zip(names, row, strict=True))) for row in rows))
        parquet.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), paths[2])
        del rows
        gc.collect()
        print(f"{n:,} rows of a file, seconds")
        for path in paths:
            start = time.process_time()
            log = read_log(path, spec_of())
            print(f"  {path.suffix:30s} {time.process_time() - start:5.2f}")
        start = time.process_time()
        sent = sum(1 for _ in records_of(log, spec_of()))
        print(f"  {'back to records':30s} {time.process_time() - start:5.2f}")
        assert sent == n


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--rows", type=int, default=1_000_000, help="rows of the files (0: no files)")
    chosen = arguments.parse_args()
    bench_records()
    if chosen.rows:
        bench_files(chosen.rows)
