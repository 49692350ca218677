"""What a worker process of a chaos run is: the real `ops.serve.work`, in a fork of a process that has imported it.

TensorFlow takes ten seconds of a core to import; a hundred kills in ten minutes leave no room for that. So a fork
server imports this module once, and each worker is forked from it. TensorFlow's runtime, its threads and every client
begin after the fork; before it there are only modules, and what Numba has compiled.

Invariant: the server imports and never runs; whatever a worker does is done by production code.
"""

import asyncio
import os
import sys
from pathlib import Path

from featurestore.errors import EbbtideError
from featurestore.event import EventBatch
from featurestore.fold import Folder
from featurestore.hashing import hash_texts
from featurestore.layout import Layout
from featurestore.spec import load_spec
from ops import logs, serve
from ops.quiet import load_tensorflow
from ops.settings import Settings
from ops.stack_watchdog import die_with
from tests.chaos.config import SPEC

SIZES = (32,)
"""One padded size: two programs to compile, or to read from XLA's cache, before a worker is there."""
FATAL = 3
"""The exit code of a worker that ended with an error of its own, in one line."""

# Compiled before the fork, or each worker would read half a second of machine code from Numba's cache.
_layout = Layout(load_spec(SPEC))
hash_texts(["warm"])
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
        asyncio.run(serve.work(settings))
    except EbbtideError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(FATAL)


def publish_model(directory: str, log: str) -> None:
    """Publish the model, and load it once, so that XLA's cache holds what the workers will ask of it."""
    from model.runtime import configure
    from model.scorer import Scorer
    from tests.support.models import publish

    _write_to(log)
    configure()
    Scorer.load(publish(Path(directory), spec=_layout.spec, sizes=SIZES), _layout)


def _write_to(log: str) -> None:
    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
