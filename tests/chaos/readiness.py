"""What the workers say at `/readyz`, held against what moves: how long was a partition silent while ready?

    log end     ──────●───────────────●───────────
    checkpoint  ──────┐ stands        │ moves              counted: something to do, its owner says 200, and
    /readyz     200 ──┴──────200──────┴── 503 ───          the checkpoint stands

Who owns a partition is known by the workers' logs: who opened it last. A worker that is stopped or dead says nothing,
and nothing is counted of what it owned. From the same logs the monitor is told which versions serve. Invariant: it only
reads.
"""

import asyncio
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.monitor import Monitor
from tests.chaos.workers import ADDRESS, OPENED, Crew, Worker, until

LOOK_S, ANSWER_S = 0.3, 1.0
SWAPPED = re.compile(r'"message": "model swapped", "model": "[^"]*/(\d+)"')
TOLD = re.compile("ebbtide_(partition_|timer|ready|server_up|source_)")


async def ask(port: int, path: str) -> str | None:
    """The whole answer; None when it does not answer."""
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    return answer.decode(errors="replace")


async def says_ready(port: int) -> bool | None:
    """Whether it answers 200; None when it does not answer."""
    answer = await ask(port, "/readyz")
    return " 200 " in answer.partition("\r\n")[0] if answer else None


@dataclass
class Silence:
    """How long partitions stood while their owner said that it was ready. `longest_s` is the most so far."""

    longest_s: float = 0.0
    _stood_at: dict[int, int] = field(default_factory=dict)
    _since_s: dict[int, float] = field(default_factory=dict)

    def look(self, partition: int, checkpoint: int, end: int, ready: bool, now_s: float) -> bool:
        """One look at a partition. True when this is the longest silence so far."""
        moved = self._stood_at.get(partition) != checkpoint
        if moved or checkpoint >= end or not ready:
            self._stood_at[partition], self._since_s[partition] = checkpoint, now_s
            return False
        silent_s = now_s - self._since_s[partition]
        if silent_s <= self.longest_s:
            return False
        self.longest_s = silent_s
        return True


class Readiness:
    """`start`, then read. `silence`: of all partitions; `silent_at`: where and when it was longest; `mute_s_max`: the
    longest time a worker that was not stopped did not answer."""

    def __init__(self, crew: Crew, monitor: Monitor) -> None:
        self._crew, self._monitor = crew, monitor
        self._read: dict[Path, int] = {}
        self._ports: dict[Path, int] = {}
        self._owners: dict[int, Worker] = {}
        self._ready: dict[Path, bool | None] = {}
        self._answered_s: dict[Path, float] = {}
        self._versions: dict[Path, int] = {}
        self.silence = Silence()
        self.mute_s_max = 0.0
        self.silent_at = ""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def all_ready(self, timeout_s: float) -> list[str]:
        """Wait until every owner of a partition says that it is ready; the logs' names of those that never do."""

        def waiting() -> list[str]:
            owners = {worker.log: worker for worker in self._owners.values() if worker.alive}
            return sorted(log.name for log in owners if self._ready.get(log) is not True)

        await until(lambda: not waiting(), timeout_s)
        return waiting()

    async def metrics(self) -> dict[str, list[str]]:
        """By its log's name, what each worker says of its partitions and timers: for whoever asks why one stands."""
        awake = [w for w in self._crew.all if w.alive and not w.stopped and w.log in self._ports]
        said = await asyncio.gather(*(ask(self._ports[w.log], "/metrics") for w in awake))
        return {
            worker.log.name: [
                line for line in (text or "").splitlines() if TOLD.match(line) and not line.endswith(" 0.0")
            ]
            for worker, text in zip(awake, said, strict=True)
        }

    async def _watch(self) -> None:
        while True:
            self._read_logs()
            awake = [w for w in self._crew.all if w.alive and not w.stopped and w.log in self._ports]
            answers = await asyncio.gather(*(says_ready(self._ports[w.log]) for w in awake))
            now_s = time.monotonic()
            for worker, answer in zip(awake, answers, strict=True):
                self._ready[worker.log] = answer
                # It may have been stopped, killed or told to go while it was asked.
                if answer is not None or worker.stopped or worker.asked is not None or not worker.alive:
                    self._answered_s[worker.log] = now_s
                last_s = self._answered_s.setdefault(worker.log, now_s)
                self.mute_s_max = max(self.mute_s_max, now_s - last_s)
            for worker in self._crew.all:
                if worker.stopped or not worker.alive:
                    self._ready[worker.log] = None
                    self._answered_s[worker.log] = now_s
            self._judge(now_s)
            await asyncio.sleep(LOOK_S)

    def _judge(self, now_s: float) -> None:
        ends = self._monitor.log_ends.tolist()
        at = self._monitor.checkpoints.tolist()
        for partition, owner in self._owners.items():
            ready = self._ready.get(owner.log) is True
            if self.silence.look(partition, at[partition], ends[partition], ready, now_s):
                self.silent_at = f"{time.strftime('%H:%M:%S')}, partition {partition} of {owner.log.name}"

    def _read_logs(self) -> None:
        """Those that have begun; whoever opened a partition last is its owner."""
        for worker in self._crew.all:
            if worker.log not in self._read or worker.alive:
                text = self._new(worker.log)
                # It begins with the latest, and says so when it swaps.
                self._versions.setdefault(worker.log, self._monitor.published)
                for number in SWAPPED.findall(text):
                    self._versions[worker.log] = int(number)
                if (found := ADDRESS.search(text)) is not None:
                    self._ports[worker.log] = int(found[1])
                for number in OPENED.findall(text):
                    self._owners[int(number)] = worker
        alive = {self._versions[worker.log] for worker in self._crew.all if worker.alive}
        self._monitor.versions = alive | {self._monitor.published}

    def _new(self, log: Path) -> str:
        """Whole lines that have been written since."""
        with suppress(OSError), log.open("rb") as file:
            file.seek(self._read.get(log, 0))
            new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[log] = self._read.get(log, 0) + len(whole)
            return whole.decode(errors="replace")
        return ""
