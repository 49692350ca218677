"""The worker's small HTTP face: is it alive, is it ready and if not why, its metrics, and one customer in words.

    GET /healthz              200 while the process serves at all
    GET /readyz               200 when every partition of ours is open; 503 with the reason else
    GET /metrics              Prometheus' text format
    GET /v1/customers/{id}    what is known of a customer, features, last score; ?as_of=RFC 3339, ms or `now`

It reads through the same store and the same model as the data path and changes nothing. What a customer did is nobody's
business: where a token is configured, whatever is not one of the first three demands it, and where none is, a face on
loopback answers only to loopback's own names, so that no web page reaches it under another. How much a client may send,
and for how long, is `limits.py`'s. The invariant: no answer holds a trace, and none but /readyz an address or a
library's words. That one is for the operator and gives the reason as it is: it names servers, never a customer.
"""

import asyncio
import hmac
import ipaddress
import logging
import math
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from ebbtide.featurestore.errors import EbbtideError, StoreUnavailable
from ebbtide.featurestore.events.contract import TIME_MS_MAX, USER_ID_CHARS_MAX
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.config.settings import HttpSettings
from ebbtide.ops.http.limits import SERVER, Bounds, Connection, refusal
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.stream.clock import Clock
from ebbtide.stream.errors import ScorerUnavailable
from ebbtide.stream.outputs.alert import instant
from ebbtide.stream.policy import OPEN

log = logging.getLogger(__name__)

PUBLIC = frozenset({"/healthz", "/readyz", "/metrics"})
"""Needs no token, ever: probes and Prometheus have none, and no customer is in it."""
_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)

Ask = Callable[
    [Rows, NDArray[np.int64]], Awaitable[tuple[float, NDArray[np.float32], NDArray[np.float32], int]]
]
"""One row and its time to (p, features, contributions, version), computed where it does not stop the event loop."""


class HttpServer:
    """The HTTP server. `why_not_ready` says in words what is missing, or nothing when all is well."""

    def __init__(
        self,
        settings: HttpSettings,
        *,
        layout: Layout,
        store: Store,
        metrics: Metrics,
        ask: Ask,
        clock: Clock,
        why_not_ready: Callable[[], str],
        bounds: Bounds | None = None,
    ) -> None:
        self._settings, self._layout, self._store, self._metrics = settings, layout, store, metrics
        self._ask, self._clock, self._why_not_ready = ask, clock, why_not_ready
        self._folder, self._features = Folder(layout), features(layout.spec)
        self._bounds = bounds or Bounds()
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    async def start(self) -> str:
        """Bind and serve. Returns the address, e.g. http://127.0.0.1:8080. Raises OSError when it is taken."""
        app = web.Application(middlewares=[self._answer, self._admit])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics_page),
                web.get("/v1/customers/{id}", self._customer),
            ]
        )
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
        if self._settings.token is None and not is_loopback(self._settings.host):
            log.warning(
                "anybody who reaches this port can ask what customers did: set http.token",
                extra={"address": address, "open": "/v1"},
            )
        return address

    async def stop(self) -> None:
        """Close the port and what is open on it, `shutdown_s_max` for what is being answered."""
        if self._listening is not None:
            self._listening.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        reason = self._why_not_ready()
        if reason:
            return web.json_response({"status": "waiting", "reason": reason}, status=503)
        return web.json_response({"status": "ready"})

    async def _metrics_page(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": self._metrics.content_type})

    async def _customer(self, request: web.Request) -> web.Response:
        customer = request.match_info["id"]
        if not 1 <= len(customer) <= USER_ID_CHARS_MAX or not is_text(customer):
            raise web.HTTPBadRequest(
                reason=f"a customer id has 1 to {USER_ID_CHARS_MAX} characters, as UTF-8, percent-encoded"
            )
        found = await self._store.find(customer)
        if found is None:
            raise web.HTTPNotFound(reason="nothing is known of this customer")
        partition, row = found
        rows = np.array([row], self._layout.dtype)
        as_of = self._as_of(request.query.get("as_of"), int(row["row_watermark"]))
        p, values, contributions, version = await self._ask(rows, np.array([as_of], np.int64))
        eligible = bool(self._folder.eligible(rows, as_of)[0])
        return web.json_response(
            {
                "customer": customer,
                "partition": partition,
                "as_of": instant(as_of).isoformat(),
                "state": describe(row, self._layout),
                "eligible": eligible,
                "probability": _number(p) if eligible else None,
                "model_version": version,
                "last_score": {"probability": _number(row["score"]), "as_of": _when(int(row["scored_at"]))}
                if row["scored_at"]
                else None,
                "features": {
                    f.name: {
                        "value": _number(v),
                        "unit": f.unit,
                        "contribution": _number(c),
                        "words": f.describe(float(v)),
                    }
                    for f, v, c in zip(self._features, values, contributions, strict=True)
                },
            }
        )

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

    @web.middleware
    async def _admit(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Who may ask. By what is public, not by what is secret: a path that we forgot is not open."""
        if request.path not in PUBLIC:
            token = self._settings.token
            # Not request.host, which would ask DNS where a client of HTTP/1.0 names none.
            host = request.headers.get("Host", "localhost")
            if token is not None and not has_token(request, token.get_secret_value()):
                headers = {"WWW-Authenticate": "Bearer"}
                raise web.HTTPUnauthorized(headers=headers, reason="a bearer token is needed")
            if token is None and is_loopback(self._settings.host) and not _LOOPBACK.fullmatch(host):
                # A page in this machine's browser, under a name that its owner has pointed to loopback.
                raise web.HTTPForbidden(reason="without a token we answer to loopback's own names only")
        return await handler(request)

    def _as_of(self, text: str | None, known_ms: int) -> int:
        if text is None:
            return known_ms
        if text == "now":
            return max(self._clock.now_ms(), known_ms)
        try:
            ms = int(text) if text.isdecimal() else _ms(datetime.fromisoformat(text))
        except (ValueError, OverflowError):
            raise web.HTTPBadRequest(reason="as_of is RFC 3339, epoch milliseconds or `now`") from None
        if not known_ms <= ms <= TIME_MS_MAX:
            raise web.HTTPBadRequest(
                reason=f"as_of lies before what is known ({known_ms} ms), or after the year 9999"
            )
        return ms


def _ms(moment: datetime) -> int:
    """ms UTC; a moment without a zone is UTC, like everything here."""
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def describe(row: np.void, layout: Layout) -> dict[str, Any]:
    """A record in words: times, counts, episode. For people and for the customer endpoint."""
    spec = layout.spec
    episode = "open" if row["episode_state"] == OPEN else "closed"
    return {
        "first_seen": _when(int(row["first_seen"])),
        "last_seen": _when(int(row["last_seen"])),
        "left_explicitly_at": _when(int(row["terminated_at"])),
        "activities": int(row["activity_count"]),
        "late_events": int(row["late_count"]),
        "counts": {kind.noun: int(n) for kind, n in zip(spec.kinds, row["kind_count"], strict=True)},
        "episode": {
            "state": episode,
            "opened_at": _when(int(row["episode_opened_at"])),
            "cooldown_until": _when(int(row["cooldown_until"])),
            "sequence": int(row["sequence"]),
        },
    }


def _when(ms: int) -> str | None:
    # A cooldown may end after the last time there is.
    return instant(min(ms, TIME_MS_MAX)).isoformat() if ms else None


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def is_loopback(host: str) -> bool:
    """Only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_text(text: str) -> bool:
    """It can be written as UTF-8; bytes that cannot be read as it arrive as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_token(request: web.Request, token: str) -> bool:
    """Exactly one Authorization header, of the scheme Bearer, with the token; compared in constant time."""
    given = request.headers.getall("Authorization", [])
    scheme, _, said = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    same = hmac.compare_digest(said.strip().encode(errors="surrogateescape"), token.encode())
    return same and scheme.lower() == "bearer"
