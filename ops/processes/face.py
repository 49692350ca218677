"""One HTTP address for several worker processes.

/healthz, /readyz   all must be; 503 names those that are not. A worker that is being started again is not ready;
                    one that listens and does not answer is not alive
/metrics            all of them, each sample with its process; one that does not answer is not ready, and is not left
                    out: who counts those that are ready, or waits for a 0, would else never hear of it
anything else       one that answers: what is known of a customer is in Redis, for each of them to say. The page is
                    of that one process
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

import aiohttp
from aiohttp import web

from ebbtide.ops.http.limits import SERVER
from ebbtide.ops.observe.at_scrape import READY
from ebbtide.ops.processes.merge import merge
from ebbtide.ops.processes.supervisor import Supervised, Supervisor

ASK_S = 2.5
"""A probe waits for three seconds, and is to hear which of them it was."""
REFUSED, HANGS = 0, 504
"""As a status: nobody listens there, since it is starting or has ended; somebody does, and is silent for ASK_S."""
PASSED = ("Authorization", "Cookie", "Accept", "Last-Event-ID", "Content-Type")
GIVEN = (
    "Content-Type",
    "Cache-Control",
    "Content-Security-Policy",
    "X-Content-Type-Options",
    "Referrer-Policy",
    "Location",
    "Set-Cookie",
)
_AWAY = "# HELP {0} {1}\n# TYPE {0} gauge\n{0} 0.0\n".format(*READY)


class Face:
    """The routes; `session` lives as long as it does."""

    def __init__(self, supervisor: Supervisor, session: aiohttp.ClientSession) -> None:
        self._supervisor, self._session = supervisor, session

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get("/healthz", self._healthz), web.get("/readyz", self._readyz), web.get("/metrics", self._metrics),
            web.route("*", "/{tail:.*}", self._pass_on),
        ]  # fmt: skip

    async def watch(self, every_s: float) -> None:
        """Notice when one of them is ready for the first time: from then on one that ends is started again."""
        while not self._supervisor.ever_ready:
            await self._readiness()
            await asyncio.sleep(every_s)

    async def _healthz(self, _: web.Request) -> web.Response:
        """A worker that ended is started again by us; one that hangs is not."""
        found = await self._each("/healthz")
        wrong = {n: body for n, (status, body) in found.items() if status in (503, HANGS)}
        if wrong:
            return web.json_response({"status": "hangs", "reason": _words(wrong)}, status=503)
        return web.json_response({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        found = await self._readiness()
        wrong = {n: body or "it does not answer" for n, (status, body) in found.items() if status != 200}
        if not wrong:
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "waiting", "reason": _words(wrong)}, status=503)

    async def _metrics(self, _: web.Request) -> web.Response:
        found = await self._each("/metrics")
        texts = {str(n): body if status == 200 else _AWAY for n, (status, body) in found.items()}
        return web.Response(
            text=merge(texts), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        headers = {name: request.headers[name] for name in PASSED if name in request.headers}
        body = await request.read()
        for worker in self._supervisor.workers:
            if not worker.running:
                continue
            try:
                async with self._session.request(
                    request.method, worker.address + str(request.rel_url), headers=headers, data=body or None,
                    allow_redirects=False, timeout=aiohttp.ClientTimeout(sock_connect=ASK_S, total=20.0),
                ) as answer:  # fmt: skip
                    given = {name: answer.headers[name] for name in GIVEN if name in answer.headers}
                    response = web.StreamResponse(status=answer.status, headers=given | {"Server": SERVER})
                    await response.prepare(request)
                    with suppress(aiohttp.ClientError, ConnectionError):  # one of both ends has gone
                        async for chunk in answer.content.iter_any():
                            await response.write(chunk)
                    return response
            except aiohttp.ClientConnectorError:
                continue  # it is starting
        raise web.HTTPServiceUnavailable(reason="no worker answers")

    async def _readiness(self) -> Mapping[int, tuple[int, str]]:
        """Whoever asks, the supervisor hears of it: what was told to be ready is not given up as never ready."""
        found = await self._each("/readyz")
        self._supervisor.ever_ready |= any(status == 200 for status, _ in found.values())
        return found

    async def _each(self, path: str) -> Mapping[int, tuple[int, str]]:
        workers = self._supervisor.workers
        answers = await asyncio.gather(*(self._ask(worker, path) for worker in workers))
        return {worker.number: answer for worker, answer in zip(workers, answers, strict=True)}

    async def _ask(self, worker: Supervised, path: str) -> tuple[int, str]:
        """Status and text; REFUSED or HANGS of one that does not answer."""
        try:
            async with self._session.get(
                worker.address + path, timeout=aiohttp.ClientTimeout(total=ASK_S)
            ) as answer:
                if "json" in answer.content_type:
                    return answer.status, str((await answer.json()).get("reason", ""))
                return answer.status, await answer.text()
        except TimeoutError:
            return HANGS, f"no answer within {ASK_S:g} s"
        except aiohttp.ClientError:
            return REFUSED, ""


def _words(wrong: Mapping[int, str]) -> str:
    return "; ".join(f"process {number}: {reason}" for number, reason in sorted(wrong.items()))
