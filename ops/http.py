"""The worker's small HTTP face: is it alive, is it ready and if not why, its metrics, and one customer in words.

    GET /healthz              200 while the process serves at all
    GET /readyz               200 when every partition of ours is open; 503 with the reason else
    GET /metrics              Prometheus' text format
    GET /v1/customers/{id}    what is known of a customer, features, last score; ?as_of=RFC 3339, ms or `now`

It reads through the same store and the same model as the data path and changes nothing. Where a token is configured,
/v1 demands it: what a customer did is nobody's business.
"""

import hmac
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from featurestore.errors import EbbtideError, StoreUnavailable
from featurestore.fold import Folder
from featurestore.layout import Layout, Rows
from featurestore.store import Store
from featurestore.vector import features
from ops.metrics import Metrics
from ops.settings import HttpSettings
from stream.alert import instant
from stream.clock import Clock
from stream.decisions import OPEN

CUSTOMER_CHARS_MAX = 128


Ask = Callable[
    [Rows, NDArray[np.int64]], Awaitable[tuple[float, NDArray[np.float32], NDArray[np.float32], int]]
]
"""One row and its time to (p, features, contributions, version), computed where it does not stop the event loop."""


class Face:
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
    ) -> None:
        self._settings, self._layout, self._store, self._metrics = settings, layout, store, metrics
        self._ask, self._clock, self._why_not_ready = ask, clock, why_not_ready
        self._folder, self._features = Folder(layout), features(layout.spec)
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        """Bind and serve. Returns the address, e.g. http://127.0.0.1:8080. Raises OSError when it is taken."""
        app = web.Application(middlewares=[_errors_as_json])
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics_page),
                web.get("/v1/customers/{id}", self._customer),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._settings.host, self._settings.port).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        """Close the port and what is open on it."""
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
        self._demand_token(request)
        customer = request.match_info["id"]
        if not 1 <= len(customer) <= CUSTOMER_CHARS_MAX:
            raise web.HTTPBadRequest(reason=f"a customer id has 1 to {CUSTOMER_CHARS_MAX} characters")
        found = await self._store.find(customer)
        if found is None:
            raise web.HTTPNotFound(reason="nothing is known of this customer")
        partition, row = found
        rows = np.array([row], self._layout.dtype)
        as_of = self._as_of(request.query.get("as_of"), int(row["clock"]))
        p, values, contributions, version = await self._ask(rows, np.array([as_of], np.int64))
        eligible = bool(self._folder.eligible(rows, as_of)[0])
        return web.json_response(
            {
                "customer": customer,
                "partition": partition,
                "as_of": instant(as_of).isoformat(),
                "state": describe(row, self._layout),
                "eligible": eligible,
                "probability": p if eligible else None,
                "model_version": version,
                "last_score": {"probability": float(row["score"]), "as_of": _when(int(row["scored_at"]))}
                if row["scored_at"]
                else None,
                "features": {
                    f.name: {
                        "value": float(v),
                        "unit": f.unit,
                        "contribution": float(c),
                        "words": f.say(float(v)),
                    }
                    for f, v, c in zip(self._features, values, contributions, strict=True)
                },
            }
        )

    def _demand_token(self, request: web.Request) -> None:
        token = self._settings.token
        if token is None:
            return
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), token.get_secret_value().encode()):
            raise web.HTTPUnauthorized(
                headers={"WWW-Authenticate": "Bearer"}, reason="a bearer token is needed"
            )

    def _as_of(self, text: str | None, known_ms: int) -> int:
        if text is None:
            return known_ms
        if text == "now":
            return max(self._clock.now_ms(), known_ms)
        try:
            ms = int(text) if text.isdigit() else _ms(datetime.fromisoformat(text))
        except (ValueError, OverflowError):
            raise web.HTTPBadRequest(reason="as_of is RFC 3339, epoch milliseconds or `now`") from None
        if not known_ms <= ms <= 253_402_300_799_999:
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
    return instant(ms).isoformat() if ms else None


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every refusal is JSON with a reason; a store that is away is 503, not a trace."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        headers = {k: v for k, v in error.headers.items() if k in ("WWW-Authenticate", "Allow")}
        return web.json_response({"error": error.reason}, status=error.status, headers=headers)
    except StoreUnavailable as error:
        return web.json_response({"error": str(error)}, status=503)
    except EbbtideError as error:
        return web.json_response({"error": str(error)}, status=500)
