"""`ebbtide worker --processes N`: the supervisor and its address, until it is told to stop."""

import asyncio
import logging
import signal
import tempfile
from pathlib import Path

import aiohttp

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.http.server import HttpServer
from ebbtide.ops.processes.face import Face
from ebbtide.ops.processes.supervisor import Supervisor

log = logging.getLogger(__name__)

LOOK_S = 1.0


async def supervise(settings: Settings, processes: int) -> None:
    """Until SIGTERM or SIGINT. Raises WorkerFailed, and EbbtideError where the address is taken."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="ebbtide-workers-") as folder:
        supervisor = Supervisor(settings, processes, Path(folder))
        async with aiohttp.ClientSession() as session:
            face = Face(supervisor, session)
            server = HttpServer(settings.http, face.routes())
            try:
                address = await server.start()
            except OSError as error:
                raise EbbtideError(
                    f"cannot listen on {settings.http.host}:{settings.http.port}: {error.strerror}",
                    hint="set EBBTIDE_HTTP__PORT to a free port, or 0",
                ) from error
            log.info("supervising", extra={"address": address, "processes": processes})
            watching = asyncio.create_task(face.watch(LOOK_S), name="watch")
            try:
                await supervisor.run(stop)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                await server.stop()
