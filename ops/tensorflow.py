"""TensorFlow loaded without what it tells its own developers.

Some of its lines are written to standard error before any setting of its log counts, so for the length of the import
that descriptor leads into a file; should the import fail, what was written is shown. A command that has more to do in
those seconds imports it `beside`, in a thread, and keeps its own words `apart`.
"""

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def hushed() -> Iterator[None]:
    """What is written to descriptor 2 within the block is shown only if the block raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except BaseException:
            caught.seek(0)
            os.write(kept, caught.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def apart() -> None:
    """Python's own words leave by a descriptor of their own, past the one that is hushed while TensorFlow is imported
    `beside`. Before anything keeps `sys.stderr` for itself, as a log's handler does."""
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")


@contextmanager
def beside() -> Iterator[Future[str]]:
    """`load_tensorflow` under way in a thread while the block runs. An error of the block does not wait for it: only
    the process's end does."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="import")
    try:
        yield pool.submit(load_tensorflow)
    finally:
        pool.shutdown(wait=False)


@contextmanager
def without_keras() -> Iterator[None]:
    """TensorFlow's import ends with Keras's, and goes on where there is none. Who trains imports it afterwards; who
    serves a SavedModel never does, and saves 2.1 of 4.9 s and 105 of 640 MB."""
    if "keras" in sys.modules:
        yield
        return
    sys.modules["keras"] = None  # type: ignore[assignment]  # Python's way of saying that it cannot be imported
    try:
        yield
    finally:
        del sys.modules["keras"]


def load_tensorflow() -> str:
    """Import it and have it look for devices. Returns where models will live, "/GPU:0" or "/CPU:0"."""
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="keras")
    with hushed(), without_keras():
        from ebbtide.model.serving import runtime  # noqa: PLC0415 - the import is what is hushed

        return runtime.device()


def leave() -> NoReturn:
    """End this process with status 0, now that all is closed.

    A thread of ours may be in the middle of a compilation that nobody waits for. The interpreter's end would run the
    destructors of native libraries under it, which aborts (SIGABRT) what has ended in good order.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
