"""Apache Spark, on this machine (`local[2]`) or on a cluster, by its master URL: a task a part.

    driver     items ─pickled, lz4─▶ parallelize, a slice an item
    executor                         map: item ─work─▶ outcome
    driver     answers ◀── collect ──────────────────────┘

The driver holds what it hands out and what comes back; executors hold one part a core. Their Python is ours, by its
path (PYSPARK_PYTHON names another), and must have the same release of `ebbtide` and of what decides bits: a task that
finds another one says so and does nothing. On one machine they find `ebbtide` where we did; on a cluster it is
installed in their image, or shipped with its environment (`spark.archives`).

What a function raises is carried back as an outcome, so Spark does not try it again; a task that dies is tried again as
Spark is configured (on one machine never). A context that is there already, as in a notebook, is used and left open.
"""

import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from ebbtide.featurestore.parts.engine import JobFailed, Outcome, Progress, R, T, attempt

EVENTS_A_PART = 500_000
"""Tens of MB of columns, and some hundred of records while they are folded."""
JAVA_MIN = 17
BITS = ("ebbtide", "numpy", "numba", "pyarrow")
"""Whose release decides what comes of a part."""
OPTIONS = {
    "spark.app.name": "ebbtide",
    "spark.driver.maxResultSize": "0",  # we hold the answers in any case
    "spark.driver.memory": "2g",
    "spark.log.level": "ERROR",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
LOCAL = re.compile(r"local(?:\[(\d+|\*)(?:,\s*\d+)?\])?")
LOCAL_OPTIONS = {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}


class SparkUnfit(JobFailed):
    """Spark cannot begin here: it, Java or the master is missing."""


@dataclass(frozen=True, slots=True)
class Spark:
    """master: as `spark-submit --master` takes it. count: of parts; default a part a core of `local[n]`, or one a
    half million events. options: Spark's own, over ours."""

    master: str
    count: int | None = None
    options: tuple[tuple[str, str], ...] = ()

    def parts(self, events: int) -> int:
        return self.count or max(2, self._cores, -(-events // EVENTS_A_PART))

    def map(self, work: Callable[[T], R], items: Sequence[T], progress: Progress = lambda _: None) -> list[R]:
        """As `Engine.map`. Raises SparkUnfit, too."""
        serve = partial(_serve, _releases(), pickle.dumps(work))
        with self._context() as context, _in_words():
            slices = context.parallelize([_packed(item) for item in items], len(items))
            outcomes: list[Outcome] = [_unpacked(one) for one in slices.map(serve).collect()]
        found = [outcome.settled("take --jobs 1 instead of Spark to see where") for outcome in outcomes]
        progress(1.0)
        return found

    @property
    def _cores(self) -> int:
        """Of this machine that the master names; 0 where it is a cluster."""
        local = LOCAL.fullmatch(self.master)
        if local is None:
            return 0
        return (os.cpu_count() or 1) if local[1] == "*" else int(local[1] or 1)

    @contextmanager
    def _context(self) -> Iterator[Any]:
        try:
            from pyspark import SparkContext  # noqa: PLC0415 - an extra, loaded where Spark is asked for
        except ModuleNotFoundError as error:
            raise SparkUnfit(
                f"Spark needs {error.name}, which is not installed", hint="pip install 'ebbtide[spark]'"
            ) from None
        _check_java()
        ours = True
        with _said_apart() as said:
            try:
                context = SparkContext(conf=self._conf())
            except ValueError as error:
                if "multiple SparkContexts" not in str(error):
                    raise SparkUnfit(f"Spark does not start: {_first(str(error))}") from None
                context, ours = SparkContext.getOrCreate(), False
            except _errors() as error:
                words = _first(_read(said) if "JAVA_GATEWAY_EXITED" in str(error) else str(error))
                raise SparkUnfit(
                    f"Spark does not start on master {self.master}: {words}",
                    hint="is the master right, and does it run? local[2] is this machine",
                ) from None
        if context.pythonExec == "python3":  # nobody said which
            context.pythonExec = sys.executable
        try:
            yield context
        finally:
            if ours:
                context.stop()

    def _conf(self) -> Any:
        from pyspark import SparkConf  # noqa: PLC0415 - see above

        options = {**OPTIONS, **(LOCAL_OPTIONS if self._cores else {}), **dict(self.options)}
        if self._cores:  # a cluster has an environment of its own
            options.setdefault("spark.executorEnv.PYTHONPATH", str(Path(__file__).absolute().parents[3]))
        return SparkConf().setMaster(self.master).setAll(list(options.items()))


def _serve(releases: dict[str, str], work: bytes, packed: bytes) -> bytes:
    """What a task does with an item."""
    there = _releases()
    if wrong := [
        f"{name} {there[name]} instead of {of}" for name, of in releases.items() if there[name] != of
    ]:
        said = JobFailed(f"an executor has {', '.join(wrong)}", hint="give executors our own environment")
        return _packed(Outcome(False, said))
    return _packed(attempt(pickle.loads(work), _unpacked(packed)))  # noqa: S301 - written by the driver that sent it


def _releases() -> dict[str, str]:
    return {"Python": ".".join(map(str, sys.version_info[:2])), **{name: _release(name) for name in BITS}}


def _release(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _packed(value: Any) -> bytes:
    import pyarrow as pa  # noqa: PLC0415 - a worker of the service has no Arrow

    plain = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    compressed: bytes = pa.compress(plain, codec="lz4", asbytes=True)
    return struct.pack("<q", len(plain)) + compressed


def _unpacked(packed: bytes) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - a worker of the service has no Arrow

    (size,) = struct.unpack_from("<q", packed)
    return pickle.loads(pa.decompress(packed[8:], size, codec="lz4"))  # noqa: S301 - written by this module


def _check_java() -> None:
    """Raises SparkUnfit. Java is sought as Spark's own script does it."""
    found = subprocess.run(
        ["sh", "-c", '"${JAVA_HOME:+$JAVA_HOME/bin/}java" --list-modules'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    hint = "apt-get install openjdk-17-jre-headless, or set JAVA_HOME to another"
    modules = dict(line.partition("@")[::2] for line in found.stdout.splitlines())
    if found.returncode or "java.base" not in modules:
        raise SparkUnfit(f"Spark needs a Java runtime, {JAVA_MIN} or later, and there is none", hint=hint)
    version = modules["java.base"]
    if int(re.split(r"\D", version)[0]) < JAVA_MIN or "jdk.incubator.vector" not in modules:
        raise SparkUnfit(
            f"Spark needs a whole Java runtime, {JAVA_MIN} or later, and this is {version}"
            + ("" if "jdk.incubator.vector" in modules else " without jdk.incubator.vector"),
            hint=hint,
        )


@contextmanager
def _said_apart() -> Iterator[IO[bytes]]:
    """What Java and the workers write to descriptor 2 goes to a file without a name, for as long as they live."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _errors() -> tuple[type[Exception], ...]:
    from py4j.protocol import Py4JError  # noqa: PLC0415 - Spark's, see `_context`
    from pyspark.errors import PySparkException  # noqa: PLC0415 - see `_context`

    return PySparkException, Py4JError, OSError


@contextmanager
def _in_words() -> Iterator[None]:
    """What Spark raises of a job is pages of traces: here it is one line."""
    try:
        yield
    except _errors() as error:
        text = str(error)
        if "No module named 'ebbtide'" in text:
            raise JobFailed(
                "an executor's Python has no ebbtide",
                hint="give executors our environment: PYSPARK_PYTHON, or Spark's spark.archives",
            ) from error
        if "Python worker exited unexpectedly" in text or "ExecutorLostFailure" in text:
            raise JobFailed(
                "an executor of Spark ended in the middle of a part",
                hint="is there memory for a part a core? raise `parts`, or spark.executor.memory",
            ) from error
        raise JobFailed(
            f"Spark failed: {_first(text)}", hint="take --jobs 1 instead of Spark to see where"
        ) from error


def _first(text: str) -> str:
    """The line that says most: the first that names an error, else the first one."""
    lines = [line.strip(": \t") for line in text.splitlines() if line.strip(": \t")]
    told = [line for line in lines if re.search(r"(?:^|\s)(?:[\w$]+\.)*\w*(?:Error|Exception): ", line)]
    return (told or lines or ["it gave no reason"])[0][:300]


def _read(said: IO[bytes]) -> str:
    said.seek(0)
    return said.read().decode(errors="replace")
