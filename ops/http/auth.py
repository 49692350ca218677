"""Who may ask for what: health and metrics are for everybody, all else for whoever has the token.

    a token is set           everything that is not PUBLIC demands it
    none, on loopback        open to this machine, under loopback's own names, so that no web page reaches it by another
    none, on any other host  nothing but PUBLIC is served: who forgets the token opens nothing

By what is public, not by what is secret: a path that we forgot is not open. The token travels in the clear: TLS ends in
front of this server.
"""

import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from ebbtide.ops.config.settings import HttpSettings

PUBLIC = frozenset({"/healthz", "/readyz", "/metrics"})
"""Needs no token, ever: probes and Prometheus have none, and no customer is in it."""
_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)


def admission(settings: HttpSettings) -> Middleware:
    """Lets a request through to its handler, or raises 401 or 403."""

    @web.middleware
    async def admit(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path not in PUBLIC:
            _check(request, settings)
        return await handler(request)

    return admit


def is_closed(settings: HttpSettings) -> bool:
    """Nothing but PUBLIC is served: others than this machine could ask, and there is no token to ask them for."""
    return settings.token is None and not is_loopback(settings.host)


def is_loopback(host: str) -> bool:
    """Only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(request: web.Request, settings: HttpSettings) -> None:
    if settings.token is not None:
        if not has_token(request, settings.token.get_secret_value()):
            raise web.HTTPUnauthorized(
                headers={"WWW-Authenticate": "Bearer"}, reason="a bearer token is needed"
            )
        return
    if is_closed(settings):
        raise web.HTTPForbidden(reason="on an address that others reach this needs a token: set http.token")
    # Not request.host, which would ask DNS where a client of HTTP/1.0 names none.
    if not _LOOPBACK.fullmatch(request.headers.get("Host", "localhost")):
        # A page in this machine's browser, under a name that its owner has pointed to loopback.
        raise web.HTTPForbidden(reason="without a token we answer to loopback's own names only")


def has_token(request: web.Request, token: str) -> bool:
    """Exactly one Authorization header, of the scheme Bearer, with the token; compared in constant time."""
    given = request.headers.getall("Authorization", [])
    scheme, _, said = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    same = hmac.compare_digest(said.strip().encode(errors="surrogateescape"), token.encode())
    return same and scheme.lower() == "bearer"
