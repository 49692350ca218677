"""Workers under a supervisor and one HTTP address: real processes that listen, hang, end and are started again.

What they are is a small HTTP server in place of a worker, told its port as a worker is; the supervisor, its address and
the signals are the real ones.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from ebbtide.ops.config.settings import HttpSettings, Settings
from ebbtide.ops.errors import WorkerFailed
from ebbtide.ops.http.server import HttpServer
from ebbtide.ops.processes.face import NEXT_S, Face
from ebbtide.ops.processes.supervisor import Supervisor

LISTENS = """
import http.server, json, os, sys, yaml

class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"reason": "", "pid": os.getpid()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

port = yaml.safe_load(open(sys.argv[2]))["http"]["port"]
http.server.ThreadingHTTPServer(("127.0.0.1", port), Answers).serve_forever()
"""
ENDS = "raise SystemExit(7)"
SETTINGS = Settings(http=HttpSettings(port=0), drain_grace_s=1.0)


def supervisor(folder: Path, program: str = LISTENS, processes: int = 2) -> Supervisor:
    return Supervisor(SETTINGS, processes, folder, (sys.executable, "-c", program))


@asynccontextmanager
async def faced(workers: Supervisor) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """The address of all, once both are ready; whatever becomes of them is ended with SIGKILL."""
    async with aiohttp.ClientSession() as session:
        face = Face(workers, session)
        server = HttpServer(SETTINGS.http, face.routes())
        address, stop = await server.start(), asyncio.Event()
        running = asyncio.create_task(workers.run(stop))
        try:
            await until(lambda: status_of(session, address + "/readyz"), 200)
            yield address, session
        finally:
            for worker in workers.workers:
                if worker.running:
                    os.kill(worker.pid, signal.SIGKILL)
            stop.set()
            await asyncio.gather(running, return_exceptions=True)
            await server.stop()


async def status_of(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(url) as answer:
        return answer.status


async def until(asked: Callable[[], Awaitable[int]], wanted: int) -> None:
    async with asyncio.timeout(30):
        while await asked() != wanted:  # noqa: ASYNC110 - other processes tell no event
            await asyncio.sleep(0.1)


async def test_a_worker_that_hangs_is_named_as_not_alive(tmp_path: Path) -> None:
    """A process that stands still listens on, and answers nobody: only a restart helps."""
    workers = supervisor(tmp_path)
    async with faced(workers) as (address, session):
        assert await status_of(session, address + "/healthz") == 200
        os.kill(workers.workers[1].pid, signal.SIGSTOP)
        async with session.get(address + "/healthz") as answer:
            said = await answer.json()
        assert answer.status == 503 and said["reason"] == "process 1: no answer within 2.5 s"
        os.kill(workers.workers[1].pid, signal.SIGCONT)
        await until(lambda: status_of(session, address + "/healthz"), 200)


async def test_a_worker_that_ends_is_started_again(tmp_path: Path) -> None:
    """Not ready meanwhile, and alive: the supervisor does by itself what a restart would."""
    workers = supervisor(tmp_path)
    async with faced(workers) as (address, session):
        before = workers.workers[0].pid
        os.kill(before, signal.SIGKILL)
        await until(lambda: status_of(session, address + "/readyz"), 503)
        assert await status_of(session, address + "/healthz") == 200
        assert await status_of(session, address + "/v1/at-risk") == 200  # the other one answers
        await until(lambda: status_of(session, address + "/readyz"), 200)
        assert workers.workers[0].pid != before and workers.workers[0].starts == 2


async def test_one_that_hangs_does_not_hold_up_an_answer(tmp_path: Path) -> None:
    """The next one answers, and is asked first from then on; one that is only slow is waited for."""
    workers = supervisor(tmp_path)
    async with faced(workers) as (address, session):
        first, second = (worker.pid for worker in workers.workers)

        async def answering() -> tuple[int, float]:
            begun_s = asyncio.get_running_loop().time()
            async with asyncio.timeout(8), session.get(address + "/v1/at-risk") as answer:
                return (await answer.json())["pid"], asyncio.get_running_loop().time() - begun_s

        assert (await answering())[0] == first
        os.kill(first, signal.SIGSTOP)
        pid, took_s = await answering()
        assert pid == second and took_s < 2 * NEXT_S + 0.5
        pid, took_s = await answering()
        assert pid == second and took_s < NEXT_S
        os.kill(second, signal.SIGSTOP)
        waiting = asyncio.create_task(answering())
        await asyncio.sleep(3 * NEXT_S)
        assert not waiting.done()
        os.kill(first, signal.SIGCONT)
        pid, took_s = await waiting
        assert pid == first and took_s >= 3 * NEXT_S


async def test_one_that_ends_before_any_was_ready_ends_all(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="ended with code 7"):
        await supervisor(tmp_path, ENDS).run(asyncio.Event())


async def test_what_keeps_a_worker_from_starting_is_raised(tmp_path: Path) -> None:
    """An end of the supervisor that nobody asked for is no good end: whoever supervises it starts it again."""
    with pytest.raises(FileNotFoundError):
        await supervisor(tmp_path / "gone").run(asyncio.Event())
