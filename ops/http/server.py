"""The worker's small HTTP server: it binds, keeps clients within bounds, and puts every refusal into words of ours.

    probes.py      /healthz, /readyz, /metrics        ─┐
    customers.py   /v1/customers/{id}                 ─┴▶ routes ─▶ admission (auth.py) ─▶ connections (limits.py)

What a customer did is nobody's business: `auth.py` says who may ask. The invariant: no answer holds a trace, and none
but /readyz and /healthz an address or a library's words. Those are for the operator and give the reason as it is: they
name servers, never a customer.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from ebbtide.featurestore.errors import EbbtideError, StoreUnavailable
from ebbtide.ops.config.settings import HttpSettings
from ebbtide.ops.http.auth import PUBLIC, admission, is_closed
from ebbtide.ops.http.limits import SERVER, Bounds, Connection, refusal
from ebbtide.stream.errors import ScorerUnavailable

log = logging.getLogger(__name__)


class HttpServer:
    """Serves `routes`, any number of tables joined."""

    def __init__(
        self, settings: HttpSettings, routes: Iterable[web.RouteDef], *, bounds: Bounds | None = None
    ) -> None:
        self._settings, self._routes, self._bounds = settings, list(routes), bounds or Bounds()
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    async def start(self) -> str:
        """Bind and serve. Returns the address, e.g. http://127.0.0.1:8080. Raises OSError when it is taken."""
        app = web.Application(middlewares=[self._answer, admission(self._settings)])
        app.add_routes(self._routes)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=self._bounds.shutdown_s_max
        )
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self._listening = await asyncio.get_running_loop().create_server(
            lambda: Connection(server, self._settings.connections_max, self._bounds),
            self._settings.host,
            self._settings.port,
        )
        host, port = self._listening.sockets[0].getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        if is_closed(self._settings):
            log.warning(
                "others reach this address and no token is set: nothing but health and metrics is served",
                extra={"address": address, "closed": "/v1", "hint": "set http.token"},
            )
        return address

    async def stop(self) -> None:
        """Close the port and what is open on it, `shutdown_s_max` for what is being answered."""
        if self._listening is not None:
            self._listening.close()
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Every refusal is JSON with a reason in our own words; what is away is 503, not a trace."""
        response: web.StreamResponse
        try:
            async with asyncio.timeout(self._bounds.answer_s_max):
                response = await handler(request)
        except web.HTTPException as error:
            headers = {k: v for k, v in error.headers.items() if k in ("WWW-Authenticate", "Allow")}
            response = refusal(error.reason, error.status, **headers)
        except StoreUnavailable:
            response = refusal("the store does not answer", 503)
        except ScorerUnavailable:
            response = refusal("the model does not answer", 503)
        except TimeoutError:
            response = refusal(f"no answer within {self._bounds.answer_s_max:g} s", 503)
        except EbbtideError as error:  # says what to do, and names no customer
            log.error("a request failed", extra={"reason": type(error).__name__, "error": str(error)})  # noqa: TRY400 - the trace adds nothing
            response = refusal("an error of ours", 500)
        except Exception as error:  # noqa: BLE001 - the supervised border of a request: the stream goes on
            # Not its message, which may quote a key and with it a customer.
            log.error("a request failed", extra={"reason": type(error).__name__})  # noqa: TRY400 - no trace, for the same reason
            response = refusal("an error of ours", 500)
        response.headers["Server"] = SERVER
        if request.path not in PUBLIC:
            response.headers["Cache-Control"] = "no-store"
        return response
