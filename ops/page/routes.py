"""The page's routes, for whoever `ops/http/auth.py` lets in.

GET  /          the page; without a token where one is needed, the form that asks for it
POST /session   the token as a form: a cookie that lasts for some hours, since a browser's EventSource sends no header
GET  /live      server-sent events: `now` each second, `alert` for each alert. It ends before the server's bound on
                answers, and the browser comes back for what it has missed: by Last-Event-ID, or `?after=` of a page
                that asks anew. Numbers are of one process, so an id names it: who comes back to another one is told
                all that this one has
"""

import asyncio
import base64
import hashlib
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import orjson
from aiohttp import web

from ebbtide.ops.config.settings import HttpSettings
from ebbtide.ops.http.auth import SESSION, SESSION_PATH, SESSION_S, new_session, same_token
from ebbtide.ops.http.limits import SERVER
from ebbtide.ops.page.live import Live
from ebbtide.stream.clock import Clock

PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
LIVE_S = 8.0
TICK_S = 1.0
RETRY_MS = 250


def policy(page: str) -> str:
    """What a browser may do with the page: run what stands in it, by its hash, and ask this server; nothing else."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self';"
        " img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


def page_routes(live: Live, settings: HttpSettings, clock: Clock) -> Sequence[web.RouteDef]:
    """The routes of one worker's page."""
    run = secrets.token_hex(4)
    headers = {
        "Content-Security-Policy": policy(PAGE),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html", headers=headers)

    async def session(request: web.Request) -> web.Response:
        given = str((await request.post()).get("token", ""))
        if settings.token is None or not same_token(given, settings.token.get_secret_value()):
            raise web.HTTPUnauthorized(reason="that is not the token")
        answer = web.Response(status=303, headers={"Location": "/"})
        made = new_session(settings.token.get_secret_value(), clock.now_ms() // 1000 + SESSION_S)
        answer.set_cookie(SESSION, made, max_age=SESSION_S, httponly=True, samesite="Strict", path="/")
        return answer

    async def events(request: web.Request) -> web.StreamResponse:
        number = _number(request.headers.get("Last-Event-ID") or request.query.get("after", ""), run)
        answer = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "Server": SERVER}
        )
        await answer.prepare(request)
        until_s = clock.monotonic_s() + LIVE_S
        with suppress(ConnectionError):  # the browser has closed the page
            await answer.write(f"retry: {RETRY_MS}\n\n".encode())
            while clock.monotonic_s() < until_s:
                for last, alert in live.alerts_after(number):
                    number = last
                    await answer.write(
                        b"id: %s-%d\nevent: alert\ndata: %s\n\n" % (run.encode(), last, orjson.dumps(alert))
                    )
                await answer.write(b"event: now\ndata: %s\n\n" % orjson.dumps(live.now()))
                await asyncio.sleep(TICK_S)
        return answer

    return [web.get("/", page), web.post(SESSION_PATH, session), web.get("/live", events)]


def _number(said: str, run: str) -> int:
    """The last alert that somebody has, by what they say is its id; 0 of another process's, and of anything else."""
    of, _, number = said.partition("-")
    return int(number) if of == run and number.isascii() and number.isdecimal() and len(number) < 16 else 0
