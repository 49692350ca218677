"""How much one client may take: bounds on its bytes and its seconds, and room for probes whatever others do.

What one client does costs the others nothing but their place in the line:

    a client we wait for   for its request, or to read its answer: quiet. Where the connections are as many as may be,
                           the one that has been quiet longest gives way to the one that comes
    none is quiet          all wait for the store or the scorer, for answer_s_max at most. NARROW_MAX
                           more are let in, for one request each, and only for what probes ask

So whoever holds connections open holds nobody out. What a client sends is neither logged nor sent back, since it may
hold a customer or a token, and every refusal is JSON. What aiohttp's own runner bounds is passed on to it.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from ebbtide.ops.http.auth import PUBLIC

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5
"""What 503 tells a client to wait: as long as the partitions' own longest pause between two tries."""
SERVER = "ebbtide"
NARROW_MAX = 8
"""Two probes and a scrape at once, and some who only pretend. The one that is quiet longest gives way here, too."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one client may take. How many there may be is `http.connections_max` of the settings.

    line_bytes_max:     the request line: an id of 128 characters of four bytes, percent-encoded, is 1,536 of them
    field_bytes_max:    one header: a bearer token with claims takes a few thousand
    headers_max:        how many headers
    first_s_max:        from connecting to a whole first head: who connects has something to ask
    idle_s_max:         until a later head is complete; longer than the 15 s between two scrapes
    linger_s:           a body that nobody asked for is read away for so long, then cut
    answer_s_max:       an answer: twice the store's timeout; what takes longer waits for a scorer that hangs
    connection_s_max:   a connection, whatever it does, so also one that does not read its answers
    shutdown_s_max:     what a worker that drains still waits for clients; its grace is for the stream
    """

    line_bytes_max: int = 4096
    field_bytes_max: int = 8190
    headers_max: int = 64
    first_s_max: float = 5.0
    idle_s_max: float = 20.0
    linger_s: float = 1.0
    answer_s_max: float = 10.0
    connection_s_max: float = 300.0
    shutdown_s_max: float = 2.0


class Connection(RequestHandler):
    """One client. `connections_max` are served; beyond them see above."""

    __slots__ = ("_ask", "_begun", "_bounds", "_connections_max", "_timer", "narrow", "quiet_since_s", "wire")

    def __init__(self, server: web.Server, connections_max: int, bounds: Bounds) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=bounds.idle_s_max,
            max_line_size=bounds.line_bytes_max,
            max_field_size=bounds.field_bytes_max,
            max_headers=bounds.headers_max,
            lingering_time=bounds.linger_s,
            auto_decompress=False,  # nobody reads a body: nobody inflates one
            access_log=None,  # type: ignore[arg-type]  # the runner passes None, too
        )
        self._connections_max, self._bounds = connections_max, bounds
        self._ask = self._request_handler
        self._request_handler = self._answer
        self._begun = False  # a first request came
        self.narrow = False  # for one request, of what is PUBLIC
        # From when on we wait for the client; None while it waits for us.
        self.quiet_since_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        assert self._manager is not None
        open_now = [c for c in self._manager.connections if isinstance(c, Connection) and c.wire is not None]
        wide = [c for c in open_now if not c.narrow]
        if len(wide) >= self._connections_max and not _one_gave_way(wide):
            self.narrow = True
            narrow = [c for c in open_now if c.narrow]
            if len(narrow) >= NARROW_MAX:
                _one_gave_way(narrow)
        self.wire, self.quiet_since_s = transport, self._loop.time()
        self._timer = self._loop.call_later(self._bounds.first_s_max, self.give_way)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.wire = None
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._timer is not None and not self._begun:
            self._begun = True
            self._timer.cancel()
            more_s = self._bounds.answer_s_max if self.narrow else self._bounds.connection_s_max
            self._timer = self._loop.call_later(more_s, self._too_long)
        self.quiet_since_s = None
        try:
            # Ahead of aiohttp's own look at Expect, which quotes it before any middleware is asked.
            if request.headers.get("Expect", "100-continue").lower() != "100-continue":
                return refusal("there is nothing to expect but 100-continue", 417)
            if self.narrow and request.path not in PUBLIC:
                response: web.StreamResponse = refusal("too many connections", 503)
            else:
                assert self._ask is not None
                response = await self._ask(request)
            if self.narrow:
                response.force_close()
            return response
        finally:
            self.quiet_since_s = self._loop.time()

    def _too_long(self) -> None:
        if self.quiet_since_s is not None:
            self.give_way()
            return
        self.close()  # after the answer under way
        self._timer = self._loop.call_later(self._bounds.answer_s_max, self.give_way)

    def give_way(self) -> None:
        """End it now, whatever lies unread."""
        wire, self.wire = self.wire, None
        if wire is not None:
            wire.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature
    ) -> web.StreamResponse:
        """What is no HTTP, and what no handler caught. Its text holds what was sent: neither is repeated."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is on its way already")
        if status >= 500:
            log.error("a request failed", extra={"reason": type(exc).__name__})
        error = "this is no HTTP that we understand" if status < 500 else "an error of ours"
        response = refusal(error, status)
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:  # noqa: ARG002 - aiohttp's signature
        log.error("a connection failed", extra={"reason": type(kw.get("exc_info")).__name__})


def _one_gave_way(connections: Sequence[Connection]) -> bool:
    """The one that has been quiet longest, if any is."""
    quiet = [(c.quiet_since_s, n) for n, c in enumerate(connections) if c.quiet_since_s is not None]
    if quiet:
        connections[min(quiet)[1]].give_way()
    return bool(quiet)


def refusal(error: str, status: int, **headers: str) -> web.Response:
    """An answer that says no, and why, in words of ours. 503 says when to come again."""
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return web.json_response({"error": error}, status=status, headers={"Server": SERVER, **headers})
