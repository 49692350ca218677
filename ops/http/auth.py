"""Who may ask for what: health and metrics are for everybody, all else for whoever has the token.

    a token is set           everything that is not PUBLIC demands it
    none, on loopback        open to this machine, under loopback's own names, so that no web page reaches it by another
    none, on any other host  nothing but PUBLIC is served: who forgets the token opens nothing

By what is public, not by what is secret: a path that we forgot is not open. The token travels in the clear: TLS ends
in front of this server. A browser gives the token once, in a form, and has a session then: a cookie that only reads,
that ends by itself, and that a new token ends, too.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from ebbtide.ops.config.settings import HttpSettings
from ebbtide.stream.clock import SystemClock

PUBLIC = frozenset({"/healthz", "/readyz", "/metrics"})
"""Needs no token, ever: probes and Prometheus have none, and no customer is in it."""
SESSION, SESSION_PATH, SESSION_S = "ebbtide_session", "/session", 12 * 3600
"""The cookie, where a form exchanges the token for it, and how long it lasts: a working day."""
_LOGIN = (Path(__file__).parent / "login.html").read_bytes()
_CLOCK = SystemClock()
_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)


def admission(settings: HttpSettings) -> Middleware:
    """Lets a request through to its handler, or raises 401 or 403."""

    @web.middleware
    async def admit(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path not in PUBLIC and not _is_form(request, settings):
            try:
                _check(request, settings)
            except web.HTTPUnauthorized:
                if request.path != "/" or "text/html" not in request.headers.get("Accept", ""):
                    raise
                return web.Response(status=401, body=_LOGIN, content_type="text/html")
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
        token = settings.token.get_secret_value()
        if not has_token(request, token) and not has_session(request, token, _CLOCK.now_ms() // 1000):
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


def _is_form(request: web.Request, settings: HttpSettings) -> bool:
    """The form's own path: its handler compares the token."""
    return settings.token is not None and request.path == SESSION_PATH and request.method == "POST"


def new_session(token: str, until_s: int) -> str:
    """A session that ends at a Unix time: who knows no token makes none."""
    return f"{until_s}.{_signed(token, until_s)}"


def has_session(request: web.Request, token: str, now_s: int) -> bool:
    """The cookie of a session that was made of this token and has not ended. It reads, and changes nothing."""
    until, _, signature = request.cookies.get(SESSION, "").partition(".")
    if not (until.isascii() and until.isdecimal() and len(until) < 12) or request.method not in (
        "GET",
        "HEAD",
    ):
        return False
    signed = hmac.compare_digest(
        signature.encode(errors="surrogateescape"), _signed(token, int(until)).encode()
    )
    return signed and now_s < int(until)


def same_token(given: str, token: str) -> bool:
    """In constant time."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode())


def _signed(token: str, until_s: int) -> str:
    return hmac.new(token.encode(), f"session until {until_s}".encode(), hashlib.sha256).hexdigest()


def has_token(request: web.Request, token: str) -> bool:
    """Exactly one Authorization header, of the scheme Bearer, with the token; compared in constant time."""
    given = request.headers.getall("Authorization", [])
    scheme, _, said = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return same_token(said.strip(), token) and scheme.lower() == "bearer"
