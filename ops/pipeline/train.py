"""The line from its first stage to its last, once: what `ebbtide train` is."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ebbtide.model.factory.line import REPORT
from ebbtide.model.factory.plan import Plan
from ebbtide.model.training.progress import Stages
from ebbtide.ops.pipeline.run import NAMES, Runner, pushed
from ebbtide.ops.pipeline.store import Store
from ebbtide.stream.clock import Clock

EXAMPLES = NAMES[: NAMES.index("transform") + 1]


def train(
    plan: Plan, clock: Clock, progress: Stages, runs: Path | None, rows_path: Path | None
) -> dict[str, Any]:
    """Publish a version. Returns the names of `Published.as_json`. runs: where artifacts are kept; None: in a folder
    that ends with us. rows_path: where the examples go as Parquet. Raises EbbtideError; nothing is published then."""
    with _store(runs) as store:
        runner = Runner(store, plan, clock, progress)
        if rows_path is not None:
            runner.run(EXAMPLES)
            _write_rows(runner, rows_path)
        runner.run()
        return published(runner, progress)


def published(runner: Runner, progress: Stages) -> dict[str, Any]:
    """Of a runner that has come to its end."""
    report = json.loads((runner.folder_of("refitter") / REPORT).read_text(encoding="utf-8"))
    return {**report, **pushed(runner.folder_of("pusher")), "seconds": progress.seconds}


def _write_rows(runner: Runner, path: Path) -> None:
    from ebbtide.model.examples.rows_file import write_rows  # noqa: PLC0415 - needs pyarrow, and rows are asked for

    prepared, known = runner.value("transform"), runner.value("example_gen").known
    write_rows(path, prepared.drawn, known.log.customers, prepared.slice_of, runner.plan.spec)


@contextmanager
def _store(runs: Path | None) -> Iterator[Store]:
    if runs is not None:
        yield Store(runs)
        return
    with tempfile.TemporaryDirectory(prefix="ebbtide-train-") as folder:
        yield Store(Path(folder), durable=False)
