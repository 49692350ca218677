"""The door of the HTTP face: who gets in, how much they may say, and for how long (`Bounds`).

It knows connections and refuses to know paths. The invariants: what one client does costs the others nothing but their
place in the line; what a client sends is neither logged nor sent back, since it may hold a customer or a token; and
every refusal is JSON.
"""

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

log = logging.getLogger(__name__)

RETRY_AFTER_S = 5
"""What 503 tells a client to wait: as long as the partitions' own longest pause between two tries."""
SERVER = "ebbtide"

_FULL_BODY = json.dumps({"error": "too many connections"}).encode()
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\n"
    b"Content-Length: %d\r\nRetry-After: %d\r\nServer: %s\r\nConnection: close\r\n\r\n%s"
    % (len(_FULL_BODY), RETRY_AFTER_S, SERVER.encode(), _FULL_BODY)
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one client may take. How many there may be is `http.connections_max` of the settings.

    line_bytes_max:     the request line: an id of 128 characters of four bytes, percent-encoded, is 1,536 of them
    field_bytes_max:    one header: a bearer token with claims takes a few thousand
    headers_max:        how many headers
    idle_s_max:         until a head is complete, the first as every later one; longer than the 15 s between two scrapes
    linger_s:           a body that nobody asked for is read away for so long, then cut
    answer_s_max:       an answer: twice the store's timeout; what takes longer waits for a scorer that hangs
    connection_s_max:   a connection, whatever it does, so also one that does not read its answers
    shutdown_s_max:     what a worker that drains still waits for clients; its grace is for the stream
    """

    line_bytes_max: int = 4096
    field_bytes_max: int = 8190
    headers_max: int = 64
    idle_s_max: float = 20.0
    linger_s: float = 1.0
    answer_s_max: float = 10.0
    connection_s_max: float = 300.0
    shutdown_s_max: float = 2.0


class Connection(RequestHandler):
    """One client. With `connections_max` open already, it is told 503 and closed."""

    __slots__ = ("_ask", "_bounds", "_connections_max", "_end", "_wire")

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
        self._request_handler = self._met
        self._end: asyncio.TimerHandle | None = None
        self._wire: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        assert self._manager is not None
        if len(self._manager.connections) >= self._connections_max:
            transport.write(_FULL)
            transport.close()
            return
        self._wire = transport
        self._end = self._loop.call_later(self._bounds.connection_s_max, self._too_long)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    async def _met(self, request: web.BaseRequest) -> web.StreamResponse:
        """Ahead of aiohttp's own look at Expect, which quotes it before any middleware is asked."""
        if request.headers.get("Expect", "100-continue").lower() != "100-continue":
            return refusal("there is nothing to expect but 100-continue", 417)
        assert self._ask is not None
        return await self._ask(request)

    def _too_long(self) -> None:
        if self._waiter is not None:  # between two requests
            self.force_close()
            return
        self.close()
        if self._wire is not None:
            self._end = self._loop.call_later(self._bounds.answer_s_max, self._wire.abort)

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


def refusal(error: str, status: int, **headers: str) -> web.Response:
    """An answer that says no, and why, in words of ours. 503 says when to come again."""
    if status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return web.json_response({"error": error}, status=status, headers={"Server": SERVER, **headers})
