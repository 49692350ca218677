"""Requests to the HTTP face, from sound to garbage, by many clients at once over real sockets.

    sound      complete requests, valid or refused for what they ask: each gets its answer, in order, within ANSWER_S
    mutated    sound ones with bytes changed, followed by one more that ends the connection: answered or cut
    garbage    bytes that are no HTTP, halves of requests, bodies without end: answered or cut

The face may say only what stands in ALLOWED, always in JSON (metrics apart), and never quotes what it was sent.
"""

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

CLIENTS = 24
"""Below the face's `connections_max`, with room for connections that linger."""
ANSWER_S = 20.0
CUT_S = 0.1
"""How long a client whose request cannot be complete waits before it goes away."""
ALLOWED = frozenset({100, 200, 400, 401, 403, 404, 405, 413, 417, 431, 503})
FAILURES_KEPT = 20
PILL = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
MARK = "fuzz-4711"
"""Stands in what is sent, and must not come back from what is refused before it is understood."""

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
PATHS = (
    "/healthz", "/readyz", "/metrics", "/v1/customers/c1", "/v1/customers/{who}", "/v1/customers/{who}?as_of={when}",
    "/v1/customers/c2?as_of={when}", "/v1", "/v1/", "/v1/customers", "/v1/customers/", "/{who}", "//healthz",
    "/healthz/",
    "/healthz?{who}", "/v1/customers/{who}/x", "/../healthz", "/%2e%2e/metrics", "*",
    "http://localhost/healthz", "/v1/%00",
)  # fmt: skip
WHO = (
    "c1", "c7", "nobody", "%00", "%FF", "%ED%A0%80", "%F0%9F%98%80", "x" * 128, "x" * 129,
    "%F0%9F%98%80" * 128, "a%2Fb", "..",
    "%", "%zz", "a+b", "%20", "%0d%0a", "%7Bp0%7D", "é", "*", "'", '"', "c1;c2", "%u0041", MARK,
)  # fmt: skip
WHEN = (
    "now", "0", "-1", "1767225600000", "253402300799999", "253402300800000", "9" * 400, "2026-01-01",
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00%2B23:59", "2026-02-30", "NaN", "1e9", "", "%00", "%D9%A1", "soon",
)  # fmt: skip
HEADERS = (
    "Accept: */*", "Authorization: Bearer x", "Authorization: Bearer \udcff", "Authorization: Basic eDp5",
    "Range: bytes=0-1",
    "Expect: 100-continue", "Upgrade: websocket\r\nConnection: Upgrade", "Cookie: " + "a=b; " * 200,
    "X: " + "y" * 4000,
    "Accept-Encoding: gzip", "If-None-Match: *", "Content-Type: application/json", "X-Forwarded-Host: evil", "X: ",
)  # fmt: skip
METHODS = ("GET",) * 12 + ("HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")


@dataclass
class Requesting:
    """What became of the requests: answers by status, connections that were cut without one, and what is wrong."""

    requests: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    cut: int = 0
    failures: list[str] = field(default_factory=list)

    def fails(self, what: str, request: bytes, answer: bytes = b"") -> None:
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(f"{what}: sent {request!r:.300}, got {answer!r:.300}")


def sound(rng: random.Random, headers: tuple[str, ...] = ()) -> tuple[str, bytes]:
    """A complete request and its method."""
    path = rng.choice(PATHS).format(who=rng.choice(WHO), when=rng.choice(WHEN))
    method = rng.choice(METHODS)
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        *headers,
        *rng.sample(HEADERS, rng.choice([0, 0, 0, 1, 2])),
    ]
    body = b""
    if method != "GET" and rng.random() < 0.5:
        body = rng.choice([b"{}", b"x" * 100, b"\0" * 3000])
        lines.append(f"Content-Length: {len(body)}")
    return method, "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def mutated(rng: random.Random) -> bytes:
    """A sound request with some of its bytes flipped, cut out, doubled or replaced."""
    data = bytearray(sound(rng)[1])
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randrange(1, 20)]
            case 2:
                data[at:at] = data[at : at + rng.randrange(1, 40)]
            case _:
                data[at:at] = rng.choice(
                    [b"\r\n", b"\0", b":", b" ", b"%", b"\xff", b"Content-Length: 7\r\n", b"\r\n\r\n"]
                )
    return bytes(data)


def garbage(rng: random.Random) -> bytes:
    """What is no request, or none that ends."""
    own = sound(rng)[1]
    committed = MARK.encode()
    return rng.choice(
        [
            rng.randbytes(rng.choice([1, 10, 100, 5000])),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(50),
            own[: rng.randrange(len(own))], b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * rng.choice([10, 65, 5000]),
            b"GET /" + committed * rng.choice([10, 600, 9000]) + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/9.9\r\n" + committed + b"\r\n\r\n",
            b"\r\n" * 500, b"\0" * 3000, committed + b" / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET http://[ HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + rng.choice([b"zz\r\n",
            b"5\r\nab", b"fffffffff\r\n"]),
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + rng.choice([b"-1", b"9" * 30, b"5, 6",
            committed]) + b"\r\n\r\nabc",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"GET / HTTP/1.1\r\n: " + committed + b"\r\n\r\n", b"GET",
        ]
    )  # fmt: skip


async def fuzz_face(
    address: str,
    seed: int,
    n: int,
    tell: Callable[[int], None] = lambda _: None,
    headers: tuple[str, ...] = (),
) -> Requesting:
    """n requests by CLIENTS clients; `headers` are added to the sound ones (a token). Ends when all are through."""
    host, port = address.removeprefix("http://").split(":")
    found = Requesting()
    left = iter(range(n))

    async def client(number: int) -> None:
        rng = random.Random(f"{seed}-{number}")
        line = _Line(host, int(port), found)
        for _ in left:
            found.requests += 1
            draw = rng.random()
            if draw < 0.7:
                await line.ask(*sound(rng, headers if rng.random() < 0.8 else ()))
            elif draw < 0.85:
                await line.throw(mutated(rng) + PILL)
            else:
                await line.throw(garbage(rng))
            if found.requests % 50 == 0:
                tell(found.requests)
        await line.end()

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return found


class _Line:
    """One client's connection, opened again whenever the face has closed it."""

    def __init__(self, host: str, port: int, found: Requesting) -> None:
        self._host, self._port, self._found = host, port, found
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, request: bytes) -> None:
        """A complete request: there has to be an answer."""
        for again in (True, False):
            fresh = self._open is None
            reader, writer = self._open = self._open or await asyncio.open_connection(self._host, self._port)
            answer = b""
            try:
                writer.write(request)
                async with asyncio.timeout(ANSWER_S):
                    answer = await _answer(reader, method)
            except TimeoutError:
                self._found.fails("no answer in time", request)
            except ValueError as error:
                self._found.fails(f"an answer that is no JSON ({error})", request)
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                await self.end()
                # Closed while we spoke: a kept connection may end at any time, a fresh one may not.
                if again and not fresh:
                    continue
                self._found.fails(f"no answer ({error!r})", request)
            self._look(request, answer)
            if b"\r\nConnection: close" in answer or not answer:
                await self.end()
            return

    async def throw(self, request: bytes) -> None:
        """Anything at all, on a connection of its own: whatever comes back until it ends."""
        await self.end()
        reader, writer = self._open = await asyncio.open_connection(self._host, self._port)
        answer = bytearray()
        try:
            writer.write(request)
            async with asyncio.timeout(CUT_S if not request.endswith(PILL) else 4 * CUT_S):
                while part := await reader.read(1 << 16):
                    answer += part
        except (TimeoutError, ConnectionError):
            pass
        self._look(request, bytes(answer))
        if not answer:
            self._found.cut += 1
        await self.end()

    def _look(self, request: bytes, answer: bytes) -> None:
        statuses = [int(status) for status in _STATUS.findall(answer)]
        self._found.answers.update(statuses)
        if set(statuses) - ALLOWED:
            self._found.fails("an answer that must not be", request, answer)
        if any(word in answer for word in (b"Traceback", b"aiohttp", MARK.encode())):
            self._found.fails("an answer that tells too much", request, answer)

    async def end(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


async def _answer(reader: asyncio.StreamReader, method: str) -> bytes:
    """One whole answer. Raises ValueError for a body that is not what its head says."""
    head = b"HTTP/1.1 100"
    while head.startswith(b"HTTP/1.1 100"):
        head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    body = await reader.readexactly(int(length[1])) if length and method != "HEAD" else b""
    if b"application/json" in head and body:
        json.loads(body, parse_constant=_no_constant)
    return head + body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
