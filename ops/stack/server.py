"""Our end of the pipe to the watchdog, a server seen through it, and the waiting that both need.

Knows processes, folders, ports and deadlines; refuses to know what a server is for. Nothing here sleeps a fixed
time: a server is ready when its own probe says so, it failed when its process ended, and between the two there is
a deadline. Invariant: every server belongs to one `Keeper`, and when the keeper ends, in whatever way, so do they.
"""

import fcntl
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, Self

from ebbtide.ops.errors import ServerFailed, StackError, StackGone
from ebbtide.stream.clock import SystemClock

WATCHDOG = Path(__file__).with_name("watchdog.py")
SCRIPT = (sys.executable, "-I", "-S", str(WATCHDOG))
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",
}  # ours alone: no JAVA_TOOL_OPTIONS
PAUSE_S = 0.02  # between two looks at a server that is not there yet
TAIL_LINES = 25

# Below the ephemeral ranges of Linux (32768-) and macOS (49152-): there, no outgoing connection can take the port of
# a server that is down for a moment, and no client that keeps knocking can connect to itself.
PORTS = range(20_000, 32_000)

Progress = Callable[[str], None]
_NEVER = threading.Event()
_now_s = SystemClock().monotonic_s


def silent(message: str) -> None:
    """The progress callback of whoever does not look."""


def tied(argv: Sequence[str]) -> list[str]:
    """The command line of a child that ends with us, for the main thread to start: on Linux it is killed when the
    thread that forked it goes. No code of ours runs between fork and exec, so it does not matter what other threads
    hold."""
    return [*SCRIPT, "--exec", str(os.getpid()), *argv]


class _Ports:
    """Which ports this process has taken, known to all processes of this user on this machine.

    That nobody listens on a port says nothing about who is about to, or whose server is down for a moment. A port is a
    byte of one file, and whoever takes it locks that byte: a lock that ends with its process, whatever it ends by.
    """

    def __init__(self) -> None:
        self._file: int | None = None
        self._pid, self._taken = os.getpid(), set[int]()
        self._lock = threading.Lock()

    def take(self, port: int) -> bool:
        """False when somebody has it. Raises StackError when that cannot be noted."""
        with self._lock:
            if self._file is None:
                self._file = _opened(Path(tempfile.gettempdir()) / f"ebbtide-{os.getuid()}.ports")
            if self._pid != os.getpid():  # a fork takes over our set, not our locks
                self._pid, self._taken = os.getpid(), set()
            if port in self._taken:
                return False
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            except OSError:
                return False
            self._taken.add(port)
            return True


def _opened(path: Path) -> int:
    try:  # others may write into that folder: nothing that they put there is followed
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StackError(f"cannot note which ports are taken: {error}", hint=f"remove {path}") from error


_PORTS = _Ports()


def free_ports(n: int) -> list[int]:
    """n TCP ports nobody listens on at 127.0.0.1 now, and nobody else is given while this process lives; a server that
    finds one taken after all says so."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        if not _PORTS.take(port):
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == n:
            return found
    raise StackError(
        f"no {n} free ports in {PORTS}", hint="something on this machine listens on nearly all of them"
    )


def _only_user(directory: Path) -> IO[str]:
    """A lock on the folder, for as long as the file is open."""
    lock = (directory / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise StackError(
            f"another local stack runs in {directory}", hint="use its URLs, end it, or use another folder"
        ) from error
    return lock


class Local(ABC):
    """Something that runs for as long as a block does, or from `start` to `stop`."""

    @abstractmethod
    def start(self) -> object:
        """Run. Raises StackError, with nothing left running."""

    @abstractmethod
    def stop(self) -> None:
        """End it, and what is kept for it. May be called twice."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Keeper(AbstractContextManager["Keeper"]):
    """A folder and the watchdog process over it. Thread-safe; a context manager that ends itself.

    `directory` None makes a temporary folder, removed at the end unless `keep`; a folder that was given is kept.
    """

    def __init__(self, directory: Path | None = None, *, keep: bool = False) -> None:
        self.kept = keep or directory is not None
        self._in_use: IO[str] | None = None
        if directory is None:
            self.directory = Path(tempfile.mkdtemp(prefix="ebbtide-stack-"))
        else:
            self.directory = directory.absolute()
            self.directory.mkdir(parents=True, exist_ok=True)
            self._in_use = _only_user(self.directory)
        self._lock = threading.Lock()
        self._asked = 0
        self._process = subprocess.Popen(
            [*SCRIPT, str(os.getpid()), "" if self.kept else str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Process id of the watchdog."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, do: str, **more: object) -> dict[str, Any]:
        """One request, one reply. Raises StackGone when the watchdog is away, StackError when it refuses."""
        with self._lock:
            stdin, stdout = self._process.stdin, self._process.stdout
            assert stdin is not None and stdout is not None
            self._asked += 1
            answer: dict[str, Any] = {}
            try:
                stdin.write(json.dumps({"id": self._asked, "do": do, **more}).encode() + b"\n")
                stdin.flush()
                # An earlier request may have been interrupted before its reply was read: Ctrl-C comes anywhere.
                while answer.get("id") != self._asked:
                    answer = json.loads(stdout.readline())
            except (BrokenPipeError, ValueError) as error:  # no JSON: the end of the file
                code = self._process.wait(10)
                raise StackGone(
                    f"the keeper of the local servers ended (code {code}), and they with it",
                    hint="start the local stack again",
                ) from error
        if "error" in answer:
            raise StackError(f"the local stack could not {do} {more.get('name', '')}: {answer['error']}")
        return answer

    def end(self) -> None:
        """Kill every server, remove the folder unless it is kept, end the watchdog. May be called twice."""
        if not self.ended:
            with suppress(StackGone):
                self.ask("end")
            with self._lock:
                self._process.communicate()
        if self._in_use is not None:
            self._in_use.close()
        if not self.kept:
            shutil.rmtree(self.directory, ignore_errors=True)  # the watchdog's work, unless it was killed

    def __exit__(self, *_: object) -> None:
        self.end()


class Server:
    """One server process: start, wait until ready, SIGTERM, SIGKILL, start again. Blocking; thread-safe."""

    def __init__(self, keeper: Keeper, name: str, folder: Path, env: Mapping[str, str] = ENVIRONMENT) -> None:
        self.keeper, self.name, self.folder, self.env = keeper, name, folder, dict(env)
        self.log = folder / f"{name}.log"
        self.pid = 0
        self.started = False
        folder.mkdir(parents=True, exist_ok=True)

    def spawn(self, argv: Sequence[str]) -> None:
        """Start the process; says nothing about readiness."""
        self.pid = self.keeper.ask(
            "spawn", name=self.name, argv=list(argv), log=str(self.log), cwd=str(self.folder), env=self.env
        )["pid"]
        self.started = True

    @property
    def running(self) -> bool:
        return self.started and not self.keeper.ended and self.code() is None

    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        code: int | None = self.keeper.ask("poll", name=self.name)["code"]
        return code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to whatever it forked (SIGSTOP and SIGCONT make a server hang)."""
        self.keeper.ask("signal", name=self.name, number=int(number))

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.signal(signal.SIGKILL)
        self.wait(10)

    def terminate(self, timeout_s: float = 15) -> None:
        """SIGTERM, and wait; SIGKILL if it is still there after `timeout_s`."""
        self.signal(signal.SIGTERM)
        try:
            self.wait(timeout_s)
        except ServerFailed:
            self.kill()

    def check(self) -> None:
        """Raises ServerFailed when the process has ended."""
        if (code := self.code()) is not None:
            raise self.failed(f"ended with code {code}")

    def wait(self, timeout_s: float) -> int:
        """Exit code, once the process has ended. Raises ServerFailed after `timeout_s`."""
        until = _now_s() + timeout_s
        while (code := self.code()) is None:
            if _now_s() > until:
                raise self.failed(f"did not end within {timeout_s:g} s")
            _NEVER.wait(PAUSE_S)
        return code

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Until `ready()` says yes. Raises ServerFailed when the process ended or `timeout_s` went by."""
        until = _now_s() + timeout_s
        while not ready():
            if (code := self.code()) is not None:
                raise self.failed(f"ended with code {code} before it was ready")
            if _now_s() > until:
                raise self.failed(f"did not answer within {timeout_s:g} s")
            _NEVER.wait(PAUSE_S)

    def tail(self) -> str:
        """The last lines of the log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "\n".join(lines[-TAIL_LINES:])

    def failed(self, what: str) -> ServerFailed:
        tail = self.tail() or "(its log is empty)"
        return ServerFailed(
            f"the local {self.name} {what}; the end of its log:\n{tail}\n",
            hint=f"all of it is in {self.log}"
            if self.keeper.kept
            else "`ebbtide stack up --keep` keeps all of it",
        )
