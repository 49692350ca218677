"""What a worker process of a chaos run is: the real `ops.worker.run.work`, in a fork of a process that has imported it.

TensorFlow takes ten seconds of a core to import; a hundred kills in ten minutes leave no room for that. So a fork
server imports this module once, and each worker is forked from it. TensorFlow's runtime, its threads and every client
begin after the fork; before it there are only modules, and what Numba has compiled.

Invariant: the server imports and never runs; whatever a worker does is done by production code.
"""

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import EbbtideError, StoreUnavailable
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import load_spec
from ebbtide.model.serving.folder import MANIFEST
from ebbtide.model.serving.runtime import configure
from ebbtide.model.serving.scorer import Scorer
from ebbtide.ops import cli
from ebbtide.ops.commands import dlq, rebuild  # noqa: F401 -- imported before the fork, not in each
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.observe import logs
from ebbtide.ops.stack.watchdog import die_with
from ebbtide.ops.tensorflow import load_tensorflow
from ebbtide.ops.worker import run as serve
from ebbtide.stream.errors import BrokerUnavailable
from tests.chaos.config import BANDS_FILE, SPEC
from tests.chaos.traffic import Traffic, names
from tests.chaos.workers import AWAY, FATAL
from tests.support.seams.streams import LogRecord

SIZES = ((32,), (16,), (64,))
"""By model. One padded size: two programs to compile, or to read from XLA's cache, before a worker is there."""
QUANTILES = (0.45, 0.5)
BANDS = {"urgent": 0.65, "critical": 0.8}
"""The quantiles of a model's scores from which on its bands begin."""
TYPICAL_RATE, TYPICAL_MS = 300.0, 1_767_225_600_000
PATIENT_S, USUAL_S, POLL_S = 10.0, 0.005, 0.02

# Compiled before the fork, or each worker would read half a second of machine code from Numba's cache. A run's own spec
# differs from this one in durations only, which are not compiled in.
_layout = Layout(load_spec(SPEC))
Folder(_layout).fold(_layout.empty(0), EventBatch.empty())
Folder(_layout).due(_layout.empty(1))
Folder(_layout).elapse(_layout.empty(1), 1)
IMPORTED_IN = os.getpid()


def serve_until_told(config: str, log: str) -> None:
    """Be a worker: settings from the JSON file `config`, everything it says into `log`."""
    _write_to(log)
    die_with(os.getppid())()
    if os.getpid() == IMPORTED_IN:
        raise RuntimeError("this worker was not forked: the fork server has imported nothing")
    settings = Settings.model_validate_json(Path(config).read_text())
    logs.configure(settings.logs.level, settings.logs.form)
    load_tensorflow()
    try:
        asyncio.run(_work(settings))
    except EbbtideError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(AWAY if isinstance(error, (BrokerUnavailable, StoreUnavailable)) else FATAL)


def run_command(words: str, log: str) -> None:
    """Be `ebbtide` with these words, a list in JSON."""
    _write_to(log)
    die_with(os.getppid())()
    sys.exit(cli.run(json.loads(words)))


async def _work(settings: Settings) -> None:
    asyncio.get_running_loop().create_task(_compile_in_order()).add_done_callback(lambda _: None)
    await serve.work(settings)


async def _compile_in_order() -> None:
    """While the model is loaded, let no thread be interrupted: which of two is first to name a function decides what
    XLA's cache calls a program, and a program that is not found there takes two seconds of a core."""
    sys.setswitchinterval(PATIENT_S)
    for compiling in (True, False):
        while any(t.name.startswith("compile") for t in threading.enumerate()) != compiling:  # noqa: ASYNC110 - threads tell no event
            await asyncio.sleep(POLL_S)
    sys.setswitchinterval(USUAL_S)


def publish_models(directory: str, spec: str, log: str) -> None:
    """Publish models of `spec`, of different weights, padded sizes and thresholds: one below each folder of
    `directory`.

    Weights are random, so a model's thresholds are taken from what it says of traffic as it will come: half of all
    scores are at or above `enter`, somewhat less than half below `exit`. The policy has bands for all models together,
    so they begin where those of the model with the highest scores would: written to `bands.json` there.
    """
    from tests.support.seams.models import publish

    _write_to(log)
    configure()
    declared = load_spec(spec)
    rows, as_of = _typical(Layout(declared))
    bands = dict.fromkeys(BANDS, 0.0)
    for seed, folder in enumerate(sorted(Path(directory).iterdir())):
        version = publish(folder, spec=declared, seed=seed, sizes=SIZES[seed % len(SIZES)])
        scorer = Scorer.load(version, Layout(declared), whole=False)
        p = scorer.score(rows, as_of)
        leave, enter = np.quantile(p, QUANTILES).tolist()
        bands = {name: max(bands[name], round(float(np.quantile(p, BANDS[name])), 4)) for name in BANDS}
        file = version / MANIFEST
        manifest = json.loads(file.read_text()) | {"enter": round(enter, 4), "exit": round(leave, 4)}
        file.write_text(json.dumps(manifest))
    Path(directory, BANDS_FILE).write_text(json.dumps(bands))


def _typical(layout: Layout) -> tuple[Rows, NDArray[np.int64]]:
    """Records at the decision points of some traffic, and their times."""
    shrunk = layout.spec.memory_ms / load_spec(SPEC).memory_ms
    traffic = Traffic(names(200), [0] * 200, TYPICAL_RATE, seed=0, scale=shrunk)
    said = [
        s for n in range(60) for s in traffic.next(100, TYPICAL_MS + round(n * 100 / TYPICAL_RATE * 1000))
    ]
    records = [LogRecord(n, TYPICAL_MS, s.key, s.value) for n, s in enumerate(said)]
    events = Parser(layout.spec).parse(records).events
    _, points = Folder(layout).fold(layout.empty(len(events.customers)), events)
    return points.rows[points.scored], points.as_of[points.scored]


def compile_model(directory: str, spec: str, log: str) -> None:
    """Load it once, as a worker will: XLA's cache then holds what they ask of it. In a process that has made no other
    graph, since the names of functions are part of the cache's keys."""
    _write_to(log)
    configure()
    layout = Layout(load_spec(spec))

    async def load() -> None:
        await asyncio.gather(_compile_in_order(), asyncio.to_thread(Scorer.load, Path(directory), layout))

    asyncio.run(load())


def _write_to(log: str) -> None:
    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
