"""The process that really owns the local servers, so that none of them can outlive Ebbtide.

It runs as a script of its own (`python -I -S watchdog.py PARENT FOLDER`), in a session of its own, on the
standard library alone: it imports nothing of Ebbtide and takes about 10 MB. It starts servers when asked, and when
its parent goes it kills them all and removes FOLDER (empty = nothing to remove).

Three nets, each for a death that the one above does not see:

    the parent ends, in any way       its end of the pipe closes: end of file on standard input
    … but had forked a child that     the parent's pid is polled: an orphan has another one
      still holds that pipe
    this process is killed            Linux kills each server with it (PR_SET_PDEATHSIG)

That signal follows the *thread* that forked, and code between fork and exec (`preexec_fn`) can wait for ever on a lock
that another thread held: both are safe here, where there is one thread. For a process with threads there is
`python -I -S watchdog.py --exec PARENT ARGV…`, which asks for the signal after its own start and then becomes ARGV.

Invariant: a server is a child of this process and is reaped only here, so a pid can never mean a stranger.

Requests and replies are JSON objects, one a line; a reply repeats its request's "id":

    {"do": "spawn", "name", "argv", "log", "cwd", "env"}  -> {"pid": int}
    {"do": "signal", "name", "number"}                    -> {"pid": int}
    {"do": "poll", "name"}                                -> {"code": int | null}     negative = killed by that signal
    {"do": "end"}                                         -> {}                       after all is dead and removed
    a request that fails                                  -> {"error": str}
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

POLL_S = 0.5  # how soon an orphan notices when the pipe did not tell
PR_SET_PDEATHSIG = 1


class Ended(Exception):
    """Somebody asked this process to end."""


def die_with(keeper: int) -> Callable[[], None]:
    """What a server runs between fork and exec: on Linux, ask to be killed when this process goes."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def ask() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != keeper:  # it went between the fork and the line above
                os.kill(os.getpid(), signal.SIGKILL)

    return ask


class Watchdog:
    """The servers by name, and what each request does to them."""

    def __init__(self) -> None:
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        self.preexec = die_with(os.getpid())

    def answer(self, ask: dict[str, Any]) -> dict[str, Any]:
        do, name = ask["do"], ask.get("name", "")
        if do == "spawn":
            known = self.servers.get(name)
            if known is not None and known.poll() is None:
                return {"error": f"{name} runs already, pid {known.pid}"}
            with Path(ask["log"]).open("ab") as log:
                server = subprocess.Popen(
                    ask["argv"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=ask["cwd"],
                    env=ask["env"],
                    process_group=0,
                    preexec_fn=self.preexec,  # noqa: PLW1509 - unsafe with threads, and this process has one
                )
            self.servers[name] = server
            return {"pid": server.pid}
        if do == "signal":
            server = self.servers[name]
            if server.poll() is None:
                os.killpg(server.pid, ask["number"])
            return {"pid": server.pid}
        if do == "poll":
            return {"code": self.servers[name].poll()}
        raise Ended

    def kill_all(self) -> None:
        for server in self.servers.values():
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
        for server in self.servers.values():
            server.wait()


def requests(parent: int) -> Iterator[bytes]:
    """Lines of standard input until the parent is gone."""
    pending = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], POLL_S)[0]:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            return
        *lines, pending = (pending + read).split(b"\n")
        yield from lines


def reply(request: dict[str, Any], answer: dict[str, Any]) -> None:
    os.write(1, json.dumps({"id": request.get("id"), **answer}).encode() + b"\n")


def on_signal(_number: int, _frame: FrameType | None) -> None:
    raise Ended


def main(parent: int, folder: str) -> None:
    watchdog = Watchdog()
    end: dict[str, Any] | None = None
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, on_signal)
        for line in requests(parent):
            request = json.loads(line)
            try:
                answer = watchdog.answer(request)
            except (OSError, KeyError, ValueError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            except Ended:
                end = request
                raise
            reply(request, answer)
    except (Ended, BrokenPipeError):
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        watchdog.kill_all()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
    if end is not None:
        with suppress(BrokenPipeError):
            reply(end, {})


if __name__ == "__main__":
    if sys.argv[1] == "--exec":
        die_with(int(sys.argv[2]))()
        os.execv(sys.argv[3], sys.argv[3:])  # noqa: S606 - the very command that our parent asked for
    main(int(sys.argv[1]), sys.argv[2])
