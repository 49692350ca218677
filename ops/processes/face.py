"""One HTTP address for several worker processes.

/healthz, /readyz   all must be; 503 names those that are not. A worker that is being started again is not ready;
                    one that listens and does not answer is not alive
/metrics            all of them, each sample with its process; one that does not answer is not ready, and is not left
                    out: who counts those that are ready, or waits for a 0, would else never hear of it
anything else       the first that answers: what is known of a customer is in Redis, for each of them to say. Asked
                    first is the one that answered last, since the page is of one process; the next one when that one
                    has gone, or has been silent for NEXT_S. Whoever is only slow is waited for, as long as
                    `ops/http/limits.py` lets any answer take
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import aiohttp
from aiohttp import web

from ebbtide.ops.http.limits import SERVER
from ebbtide.ops.observe.at_scrape import READY
from ebbtide.ops.processes.merge import merge
from ebbtide.ops.processes.supervisor import Supervised, Supervisor

ASK_S = 2.5
"""A probe waits for three seconds, and is to hear which of them it was."""
NEXT_S = 1.0
"""So that the answer of one that works comes in time behind several that hang."""
PASS_S = 20.0
"""An answer and its reading: more than `/live`, the longest, takes."""
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
        self._answered = 0  # number of the worker that answered last

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

        async def ask(worker: Supervised) -> aiohttp.ClientResponse:
            answer = await self._session.request(
                request.method, worker.address + str(request.rel_url), headers=headers, data=body or None,
                allow_redirects=False, timeout=aiohttp.ClientTimeout(total=PASS_S),
            )  # fmt: skip
            self._answered = worker.number
            return answer

        running = [worker for worker in self._supervisor.workers if worker.running]
        running.sort(key=lambda worker: worker.number != self._answered)
        answer = await _first([partial(ask, worker) for worker in running])
        if answer is None:
            raise web.HTTPServiceUnavailable(reason="no worker answers")
        async with answer:
            given = {name: answer.headers[name] for name in GIVEN if name in answer.headers}
            response = web.StreamResponse(status=answer.status, headers=given | {"Server": SERVER})
            await response.prepare(request)
            with suppress(aiohttp.ClientError, ConnectionError):  # one of both ends has gone
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
        return response

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


async def _first(
    asks: Sequence[Callable[[], Awaitable[aiohttp.ClientResponse]]],
) -> aiohttp.ClientResponse | None:
    """The answer that comes first, each asked NEXT_S after the one before it or when that one has failed; None where
    all fail. The others are asked no longer."""
    asked = set[asyncio.Future[aiohttp.ClientResponse]]()
    left, answers = list(asks), list[aiohttp.ClientResponse]()
    try:
        while not answers and (left or asked):
            if left:
                asked.add(asyncio.ensure_future(left.pop(0)()))
            done, asked = await asyncio.wait(
                asked, timeout=NEXT_S if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            answers += [each.result() for each in done if not _failed(each)]
    finally:
        for each in asked:
            each.cancel()
    for unread in answers[1:]:
        unread.close()
    return answers[0] if answers else None


def _failed(asked: "asyncio.Future[aiohttp.ClientResponse]") -> bool:
    """It is starting, has ended, or takes longer than anything does. Raises what was not to be expected."""
    error = asked.exception()
    if error is not None and not isinstance(error, aiohttp.ClientError | TimeoutError):
        raise error
    return error is not None


def _words(wrong: Mapping[int, str]) -> str:
    return "; ".join(f"process {number}: {reason}" for number, reason in sorted(wrong.items()))
