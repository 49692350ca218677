"""Worker processes: forked, watched, killed, stopped, continued; and made again when they end.

    Forks     the fork server, and what is forked from it
    Worker    one process, from its start to its exit code
    Crew      the slots that are to be filled; `keep` fills one again when its worker has ended, however it ended

It knows processes and signals; it refuses to know why somebody wants one dead. Invariant: every process that was
started is in `Crew.all`, and its end was either asked for or is in `Crew.surprises`.
"""

import asyncio
import contextlib
import importlib
import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# By name: who imports them imports TensorFlow.
PRELOADED, MAIN = "tests.chaos.preloaded", "tests.chaos.worker_main"
POLL_S = 0.02
EXIT_S_MAX = 30.0
"""A worker that was told to go and is still there has failed; its grace period is far below."""
CACHE_FLAG = "TF_XLA_FLAGS"
FATAL, AWAY = 3, 4
"""Exit codes of a worker that ended with an error of ours, in one line: any, and one that says no server answers. The
command line knows one code for both; a trace ends with 1."""
SWAPPED = '"message": "model swapped"'
OPENED = re.compile(r'"message": "partition opened", "partition": (\d+)')
ADDRESS = re.compile(r'"message": "serving", "address": "http://[^:"]+:(\d+)"')


async def until(condition: Callable[[], object], timeout_s: float) -> bool:
    """Whether it came true within `timeout_s`."""
    end_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end_s:  # noqa: ASYNC110 - processes and logs tell no event
        await asyncio.sleep(POLL_S)
    return bool(condition())


class Forks:
    """The fork server. Its first process waits until all is imported, some ten seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOADED, MAIN])

    def publish(self, models: Path, n: int, spec: Path) -> list[Path]:
        """Publish `n` different models of `spec` below `models`, and fill XLA's cache with their programs. Returns
        their versions' folders. Blocking."""
        folders = [models / f"model-{number}" for number in range(n)]
        for folder in folders:
            folder.mkdir(parents=True)
        with self.compiled():
            self._do("publish_models", str(models), str(spec))
            for folder in folders:
                self._do("compile_model", str(folder), str(spec))
        return [next(path.parent for path in folder.glob("*/*/manifest.json")) for folder in folders]

    def _do(self, what: str, *arguments: str) -> None:
        log = self._folder / "publish.log"
        process = self._context.Process(target=_forked, args=(what, *arguments, str(log)))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"{what}: {last_words(log)}")

    def start(self, config: Path, log: Path) -> BaseProcess:
        arguments = ("serve_until_told", str(config), str(log))
        process = self._context.Process(target=_forked, args=arguments, daemon=True)
        process.start()
        return process

    def command(self, words: Sequence[str], log: Path) -> BaseProcess:
        """`ebbtide` with these words."""
        arguments = ("run_command", json.dumps(words), str(log))
        process = self._context.Process(target=_forked, args=arguments, daemon=True)
        process.start()
        return process

    @contextlib.contextmanager
    def compiled(self) -> Iterator[None]:
        """The environment in which TensorFlow keeps what it compiles: a process reads it when it starts, once."""
        flags = f"--tf_xla_persistent_cache_directory={self._folder / 'xla'}"
        own = {CACHE_FLAG: flags, "TF_CPP_MIN_LOG_LEVEL": "3"}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _forked(what: str, *arguments: str) -> None:
    """Runs in the fork, where the import has been made."""
    getattr(importlib.import_module(MAIN), what)(*arguments)


class Worker:
    """One process. `asked`: why its end is no surprise; None while nobody wants it to end."""

    def __init__(self, process: BaseProcess, slot: int, log: Path) -> None:
        self.process, self.slot, self.log = process, slot, log
        self.began_s = time.monotonic()
        self.asked: str | None = None
        self.stopped = False
        self.rest_s: float | None = None  # for so long nobody follows it; None: the crew draws
        self.rss_max_kb = 0

    @property
    def alive(self) -> bool:
        return self.process.exitcode is None

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.began_s

    @property
    def served(self) -> bool:
        """It came as far as joining the group."""
        return '"message": "serving"' in self.log.read_text(errors="replace")

    @property
    def opened(self) -> set[int]:
        """Partitions it has opened so far, by its own log."""
        text = self.log.read_text(errors="replace")
        return {int(number) for number in OPENED.findall(text)}

    def kill(self) -> bool:
        """SIGKILL. False when it had ended, or been killed, before."""
        return self.asked != "killed" and self._signal(signal.SIGKILL, "killed")

    def terminate(self) -> bool:
        return self.asked is None and self._signal(signal.SIGTERM, "told to go")

    def stop(self) -> bool:
        """SIGSTOP: to everybody else it is dead, to itself no time passes."""
        self.stopped = self._signal(signal.SIGSTOP)
        return self.stopped

    def resume(self) -> bool:
        self.stopped = False
        return self._signal(signal.SIGCONT)

    async def ended(self, timeout_s: float = EXIT_S_MAX) -> int | None:
        """Its exit code, None when it is still there."""
        await until(lambda: not self.alive, timeout_s)
        return self.process.exitcode

    def look(self) -> None:
        """Note how much memory it has held at most."""
        with contextlib.suppress(OSError, ValueError):
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
            held = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
            self.rss_max_kb = max(self.rss_max_kb, int(held.split()[1]))

    def _signal(self, number: signal.Signals, asked: str | None = None) -> bool:
        if not self.alive or self.process.pid is None:
            return False
        if asked is not None:
            self.asked = asked
        try:
            os.kill(self.process.pid, number)
        except ProcessLookupError:  # it has just ended, and the fork server is about to say so
            return False
        return True


@dataclass
class Crew:
    """`slots` workers at a time, and guests. `settings[slot]` as JSON; with an `instance` it is a static member's."""

    forks: Forks
    folder: Path
    settings: Mapping[int, Mapping[str, Any]]
    draw: random.Random
    all: list[Worker] = field(default_factory=list)
    gave_up: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    bad_exits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manned: dict[int, Worker] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self._started = 0
        for slot, settings in self.settings.items():
            self.config(slot).write_text(json.dumps(settings))

    def config(self, slot: int) -> Path:
        return self.folder / f"settings-{slot}.json"

    async def start(self, slot: int) -> Worker:
        """A new worker by the settings of `slot`."""
        self._started += 1
        log = self.folder / f"worker-{self._started:03d}-slot-{slot}.log"
        log.touch()  # some are killed before they have said a word
        process = await asyncio.to_thread(self.forks.start, self.config(slot), log)
        worker = Worker(process, slot, log)
        self.all.append(worker)
        return worker

    def man(self, slots: int) -> None:
        """Fill the first `slots` slots, and keep them filled."""
        self._keeping = [asyncio.create_task(self._keep(slot)) for slot in range(slots)]

    async def _keep(self, slot: int) -> None:
        while True:
            worker = self.manned[slot] = await self.start(slot)
            while worker.alive:
                worker.look()
                await asyncio.sleep(POLL_S * 3)
            if self.judge(worker):
                await asyncio.sleep(0.5)
            else:
                drawn_s = self.draw.choice([0.0, 0.0, 0.3, 1.5])
                await asyncio.sleep(drawn_s if worker.rest_s is None else worker.rest_s)

    def judge(self, worker: Worker) -> bool:
        """Whether one that has ended did so by itself; then it is noted.

        One that finds a server away when it starts says so and ends, and its supervisor tries again. Nothing else is
        forgiven: not once it has had a partition, and no other error.
        """
        if worker.asked is not None:
            return False
        code = worker.process.exitcode
        found = self.gave_up if code == AWAY and not worker.opened else self.surprises
        found.append(f"{worker.log.name}: code {code} after {worker.age_s:.1f} s: {last_words(worker.log)}")
        return True

    def static(self, slot: int) -> bool:
        """Whether its workers keep their place in the group while they are away."""
        return self.settings[slot]["kafka"].get("instance") is not None

    async def ready(self, partitions: int, timeout_s: float) -> None:
        """Until every partition has been opened. Raises TimeoutError."""
        if not await until(lambda: len(self.opened_since({})) == partitions, timeout_s):
            said = {worker.log.name: last_words(worker.log) for worker in self.all}
            raise TimeoutError(f"the workers have not opened all partitions in {timeout_s:.0f} s: {said}")

    async def pick(
        self, *, serving: bool = False, static: bool | None = None, timeout_s: float = 45.0
    ) -> Worker | None:
        """A random worker of a slot that is alive and not stopped; `serving`: one that has opened a partition;
        `static`: one that is such a member, or is not.

        Waits for one; None when none came.
        """

        def able() -> list[Worker]:
            alive = [w for w in self.manned.values() if w.alive and not w.stopped and w.asked is None]
            alive = [w for w in alive if static is None or self.static(w.slot) == static]
            return [worker for worker in alive if worker.opened] if serving else alive

        await until(able, timeout_s)
        return self.draw.choice(found) if (found := able()) else None

    @property
    def serving(self) -> bool:
        """Whether a worker is there, awake, that has opened a partition."""
        return any(worker.alive and not worker.stopped and worker.opened for worker in self.all)

    async def knows_model_of(self, published_s: float, timeout_s: float = EXIT_S_MAX) -> bool:
        """Whether a worker that has partitions has come to know the model that was published then: in time."""

        def knows(worker: Worker) -> bool:
            return worker.began_s > published_s or SWAPPED in worker.log.read_text(errors="replace")

        return await until(lambda: any(w.alive and w.opened and knows(w) for w in self.all), timeout_s)

    def log_sizes(self) -> dict[Path, int]:
        """Bytes of every log so far: for `opened_since`."""
        return {worker.log: worker.log.stat().st_size for worker in self.all}

    def opened_since(self, sizes: Mapping[Path, int]) -> set[int]:
        """Partitions opened by anyone since."""
        opened: set[int] = set()
        for worker in self.all:
            with worker.log.open("rb") as file:
                file.seek(sizes.get(worker.log, 0))
                opened |= {int(number) for number in OPENED.findall(file.read().decode(errors="replace"))}
        return opened

    async def dismiss(self, worker: Worker) -> int | None:
        """SIGTERM, and its exit code, which has to be 0. None when it had ended before."""
        if not worker.terminate():
            return None
        began_s = time.monotonic()
        code = await worker.ended()
        early = code == -signal.SIGTERM and not worker.served  # nothing to drain, and no handler yet
        if code != 0 and worker.asked == "told to go" and not early:
            took_s = time.monotonic() - began_s
            said = "did not go" if code is None else f"code {code}"
            self.bad_exits.append(f"{worker.log.name}: {said} in {took_s:.1f} s: {last_words(worker.log)}")
            worker.kill()
        return code

    async def disband(self) -> list[int | None]:
        """No more slots are filled; every worker is told to go. Returns their exit codes."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        left = [worker for worker in self.all if worker.alive]
        for worker in left:
            worker.resume()
        return list(await asyncio.gather(*(self.dismiss(worker) for worker in left)))

    def kill_all(self) -> None:
        for worker in self.all:
            worker.kill()


def last_words(log: Path) -> str:
    """The end of a log, in one line."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        said = [line for line in lines if line.startswith("error:")] or lines[-3:]
        return " | ".join(line[-400:] for line in said)
    return "(no log)"
