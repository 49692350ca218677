"""A worker process for each pair of cores, under a process that does no work itself.

    supervisor ─┬─ worker 0   127.0.0.1:port 0   ends by itself: started again, after a while
                ├─ worker 1   127.0.0.1:port 1
                └─ HTTP, on the configured address (`face.py`)

It knows processes, and no stream. A worker that ends before any was ever ready has nothing that a new start would
mend: all end, with its code. SIGTERM goes to all, and whoever does not drain in time is killed.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from ebbtide.ops.config.child import child_environment, for_child
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.errors import WorkerFailed
from ebbtide.ops.stack.server import free_ports, tied
from ebbtide.stream.retry import Backoff

log = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "ebbtide.ops.cli", "worker")
CORES_EACH = 2
"""The event loop's and the scorer's."""
END_MARGIN_S = 13.0
"""Beyond the drain's grace: without Kafka the last commit and leaving take up to 12 s."""


class Supervised:
    """One worker process and its successors. command: what it is, without the settings that `--config` gives it."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        folder: Path,
        port: int,
        cores: Sequence[int],
        command: Sequence[str],
    ) -> None:
        self.number = number
        self.address = f"http://127.0.0.1:{port}"
        self._grace_s = settings.drain_grace_s
        self._cores, self._command = cores, command
        self._config = folder / f"worker-{number}.yaml"
        http = settings.http.model_copy(update={"host": "127.0.0.1", "port": port})
        kafka = settings.kafka
        if kafka.instance is not None:
            kafka = kafka.model_copy(update={"instance": f"{kafka.instance}-{number}"})
        self._data, self._secrets = for_child(settings.model_copy(update={"http": http, "kafka": kafka}))
        self._process: asyncio.subprocess.Process | None = None
        self.starts = 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Of the one that was started last."""
        if self._process is None:
            raise RuntimeError(f"worker {self.number} was not started")
        return self._process.pid

    async def run_once(self) -> int:
        """Start it and wait for its end. Returns its code."""
        self._config.write_text(yaml.safe_dump(self._data))
        self._process = await asyncio.create_subprocess_exec(
            *tied([*self._command, "--config", str(self._config)]),
            env=child_environment(**self._secrets), start_new_session=True,
        )  # fmt: skip
        self.starts += 1
        if self._cores:
            with suppress(ProcessLookupError):  # it has ended already
                os.sched_setaffinity(self._process.pid, self._cores)
        return await self._process.wait()

    async def stop(self) -> int:
        """SIGTERM, then SIGKILL for one that does not drain. Returns its code, 0 when none runs."""
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self._grace_s + END_MARGIN_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        return self._process.returncode or 0


class Supervisor:
    """`run` lasts until SIGTERM or SIGINT. `ever_ready` is told by whoever asks the workers."""

    def __init__(
        self, settings: Settings, processes: int, folder: Path, command: Sequence[str] = WORKER
    ) -> None:
        shares = share_of_cores(sorted(os.sched_getaffinity(0)), processes)
        self.workers = [
            Supervised(n, settings, folder, port, shares[n], command)
            for n, port in enumerate(free_ports(processes))
        ]
        self.ever_ready = False
        self._stopping = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Keep all of them running. Raises WorkerFailed where a start is of no use, or an end was not in good order;
        and what keeps us from starting one again."""
        stopping = asyncio.create_task(stop.wait(), name="stop")
        keeping = [
            asyncio.create_task(self._keep(worker), name=f"worker-{worker.number}") for worker in self.workers
        ]
        try:
            await asyncio.wait({stopping, *keeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping.set()
            codes = await asyncio.gather(*(worker.stop() for worker in self.workers))
            for task in (stopping, *keeping):
                task.cancel()
            ended = await asyncio.gather(*keeping, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):  # else a cancellation of ours
                raise error
        if wrong := [code for code in codes if code]:
            raise WorkerFailed(f"workers ended with codes {wrong}", hint="see their last lines above")

    async def _keep(self, worker: Supervised) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            code = await worker.run_once()
            if self._stopping.is_set():
                return
            if not self.ever_ready:
                raise WorkerFailed(
                    f"worker {worker.number} ended with code {code}", hint="see its last line above"
                )
            wait_s = backoff.next_s()
            log.warning(
                "a worker ended", extra={"worker": worker.number, "code": code, "again_s": round(wait_s, 1)}
            )
            await asyncio.sleep(wait_s)


def share_of_cores(cores: Sequence[int], processes: int) -> list[Sequence[int]]:
    """Cores by process, side by side; nobody is bound where there are fewer than CORES_EACH for each."""
    each = len(cores) // processes
    if each < CORES_EACH:
        return [()] * processes
    return [cores[n * each : (n + 1) * each] for n in range(processes)]
