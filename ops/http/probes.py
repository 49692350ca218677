"""Is it alive, is it ready and if not why, and its metrics: what probes and Prometheus ask, without a token.

GET /healthz    200 while the process does its work; 503 with the reason when only a restart would help
GET /readyz     200 when every partition of ours is open; 503 with the reason else
GET /metrics    Prometheus' text format or OpenMetrics, as the client asks; gzip where it takes it
"""

from collections.abc import Callable, Sequence

from aiohttp import web

from ebbtide.ops.observe.metrics import Metrics


def probes(
    metrics: Metrics,
    why_not_ready: Callable[[], str],
    liveness: Callable[[], str] = lambda: "",
    warnings: Callable[[], Sequence[str]] = lambda: (),
) -> Sequence[web.RouteDef]:
    """The routes. Both callables say in words what is wrong, or nothing when all is well. `liveness` is for what a
    restart mends, a scorer that hangs; for what it would not mend (an outage) there is `why_not_ready`. `warnings` is
    what a person should mend although it is ready."""

    async def healthz(_: web.Request) -> web.Response:
        if reason := liveness():
            return web.json_response({"status": "hangs", "reason": reason}, status=503)
        return web.json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        if reason := why_not_ready():
            return web.json_response({"status": "waiting", "reason": reason}, status=503)
        said = list(warnings())
        return web.json_response({"status": "ready", **({"warnings": said} if said else {})})

    async def exposition(request: web.Request) -> web.Response:
        asked = request.headers
        body, headers = metrics.render(asked.get("Accept", ""), asked.get("Accept-Encoding", ""))
        return web.Response(body=body, headers=headers)

    return [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", exposition)]
