"""`make fuzz` in short: what it counts, that it is the same by its seed, and that it fails when it should.

The real worker under a short stream of the same records is in `tests/e2e/test_worker.py`.
"""

import asyncio
import gc
import json
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

from aiohttp import web

from ebbtide.featurestore.events.parse import Parsed, Parser
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.ops.config.settings import DEFAULT_SPEC
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.stream.batch import FetchedBatch
from tests.fuzz.parsing import REASONS, fuzz_parser
from tests.fuzz.requesting import CLIENTS, fuzz_face
from tests.fuzz.wire import wire_batch
from tests.integration.test_http import face, filled, get
from tests.support.seams.scoring import LAYOUT
from tests.support.seams.streams import LogRecord
from tests.support.seams.turns import from_the_beginning, take_over
from tests.support.seams.world import PARTITIONS, TOPIC, World

SEED = 20_261
ROUND = 6_000
LEFT_BYTES_MAX = 64
"""A record: less than the smallest object that somebody could keep of each."""


def test_the_parsers_counts_add_up() -> None:
    print("seed", SEED)
    once, again, other = fuzz_parser(SEED, 25_000), fuzz_parser(SEED, 25_000), fuzz_parser(SEED + 1, 5_000)
    assert once.crashes == once.wrong == []
    assert once.adds_up and once.records == 25_000
    assert set(once.rejected) == REASONS  # nothing that can be wrong is left out
    assert once.events > 5_000 and once.tombstones > 100 and once.ignored > 100
    assert once.digest == again.digest and once.rejected == again.rejected
    assert other.digest != once.digest


async def test_odd_batches_leave_nothing_behind() -> None:
    """Whole turns over what other clients write: when every customer and every reason has been there, no object more
    is kept of six thousand records, and memory is what it was."""
    print("seed", SEED)
    draw, world = random.Random(SEED), World(0, [[] for _ in range(PARTITIONS)], 0.0)
    tools, opened = world.tools(Metrics()), from_the_beginning(LAYOUT.id, 0, PARTITIONS)

    async def fold_a_round() -> int:
        begin = opened.checkpoint.offset
        while (start := opened.checkpoint.offset) < begin + ROUND:
            if (made := wire_batch(draw)).whole:
                records = [
                    LogRecord(start + i, r.timestamp, r.key, r.value) for i, r in enumerate(made.records)
                ]
                await take_over(
                    tools, opened, FetchedBatch(TOPIC, 0, 0, start, start + len(records), records)
                )
        world.sink.sent.clear()
        return opened.checkpoint.offset - begin

    serving = asyncio.create_task(tools.batcher.run())
    for _ in range(4):
        await fold_a_round()
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        folded = await fold_a_round()
        gc.collect()
        left_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    more = len(gc.get_objects()) - objects
    serving.cancel()
    tools.batcher.close()
    print(f"{left_bytes} bytes and {more} objects are left of {folded} records")
    assert left_bytes < LEFT_BYTES_MAX * folded
    assert more < folded / 20


class _Broken(Parser):
    """Falls over a key that ends in a space, and loses a refusal of each large batch."""

    def parse(self, records: Any) -> Parsed:
        if any((record.key or b"").endswith(b" ") for record in records):
            raise KeyError("a space")
        parsed = super().parse(records)
        if len(records) > 50 and parsed.rejected:
            parsed.rejected.pop()
        return parsed


def test_a_parser_that_falls_over_or_loses_a_record_is_found() -> None:
    found = fuzz_parser(SEED, 20_000, ours=[(None, _Broken(load_spec(DEFAULT_SPEC)))])
    assert found.crashes and all(" ', value=" in crash for crash in found.crashes)
    assert not found.adds_up
    assert any("do not add up" in wrong for wrong in found.wrong)


async def test_the_face_answers_what_it_may_and_nothing_else() -> None:
    """2,500 requests at once by many clients, with a token and without one configured; then it still answers, and
    holds nobody's connection."""
    print("seed", SEED)
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    for token, headers in ((None, ()), ("s3cret", ("Authorization: Bearer s3cret",))):
        async with face(store, token=token) as address:
            found = await fuzz_face(address, SEED, 1_250, headers=headers)
            assert found.failures == []
            assert found.requests == 1_250
            assert found.answers[200] > 50 and found.answers[400] > 50 and found.answers[404] > 50
            assert bool(found.answers[401]) == (token is not None)
            assert (await get(address + "/healthz"))[0] == 200


async def test_a_face_that_errs_or_tells_too_much_is_found() -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=f"{request.path} is odd", status=500 if request.path == "/v1" else 404)

    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    found = await fuzz_face(f"http://{host}:{port}", SEED, 20 * CLIENTS)
    await runner.cleanup()
    assert any("must not be" in failure for failure in found.failures)
    assert any("too much" in failure for failure in found.failures)


def test_the_command_prints_its_seed_and_writes_its_figures(tmp_path: Path) -> None:
    figures = tmp_path / "f.json"
    command = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--records",
        "3000",
        "--through-kafka",
        "0",
        "--batches",
        "0",
        "--requests",
        "0",
    ]
    done = subprocess.run(
        [*command, "--seed", "7", "--json", figures], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "seed 7" in done.stderr and "records through the parser" in done.stdout
    found = json.loads(figures.read_text())
    assert {"seed", "records", "http_requests", "crashes", "rejected", "seconds"} <= found.keys()
    assert (found["seed"], found["records"], found["http_requests"], found["crashes"]) == (7, 3000, 0, 0)
    assert found["events"] + found["ignored"] + sum(found["rejected"].values()) == 3000
    assert found["failures"] == []
