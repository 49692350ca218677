"""How much one client may take of the HTTP face: slow ones, silent ones, and probes that get in past them."""

import asyncio
import contextlib

import pytest

from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.ops.http.limits import Bounds
from ebbtide.stream.clock import SystemClock
from tests.integration.test_http import asking, face, filled, get, raw
from tests.support.seams.scoring import LAYOUT


async def test_nobody_keeps_a_connection_by_being_slow() -> None:
    """A head in drips, none at all, a body without end, and answers that nobody reads.

    Ours end within a second or two; aiohttp's own patience lasts ten and more, so these five are for a busy machine.
    """
    bounds = Bounds(idle_s_max=0.3, linger_s=0.2, connection_s_max=1.0, answer_s_max=0.5)
    clock = SystemClock()
    async with face(MemoryStore(LAYOUT.dtype, 1), bounds=bounds) as address:
        host, port = address.removeprefix("http://").split(":")

        async def lasts(request: bytes, drip: bytes) -> float:
            began_s = clock.monotonic_s()
            reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
            try:
                writer.write(request)
                while clock.monotonic_s() - began_s < 8:
                    writer.write(drip)
                    await writer.drain()
                    if reader.at_eof() or writer.transport.is_closing():
                        break
                    await asyncio.sleep(0.05)
                    await reader.read(1)
            except ConnectionError:
                pass
            finally:
                writer.close()
            return clock.monotonic_s() - began_s

        async def silent(request: bytes) -> float:
            began_s = clock.monotonic_s()
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(request)
            async with asyncio.timeout(8):
                await reader.read(-1)
            writer.close()
            return clock.monotonic_s() - began_s

        for request in (b"", b"GET /healthz HTTP/1.1\r\nHo", asking("/healthz")):
            assert await silent(request) < 5
        assert await lasts(asking("/healthz", "Content-Length: 1000000000"), b"x" * 1000) < 5
        assert await lasts(asking("/metrics") * 5000, b"x") < 5
        assert (await get(address + "/healthz"))[0] == 200


async def opened(address: str, request: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has sent so much, and is kept."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 10)
    writer.write(request)
    return reader, writer


async def test_probes_get_in_past_sockets_that_say_nothing() -> None:
    """As many as there may be, and as many again that come as soon as one is sent away: none holds a probe out."""
    async with face(MemoryStore(LAYOUT.dtype, 1)) as address:
        held = [await opened(address, drip) for drip in (b"", b"GET /healthz HT") for _ in range(32)]
        await asyncio.sleep(0.05)
        for _ in range(20):
            for path in ("/healthz", "/readyz", "/metrics"):
                assert (await get(address + path))[0] == 200
            held += [await opened(address) for _ in range(3)]
        gone = 0
        for reader, writer in held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    gone += await reader.read(1) == b""
            writer.close()
        assert gone >= 60, "who is quiet longest gives way"


async def test_who_connects_and_asks_nothing_is_sent_away_soon() -> None:
    bounds = Bounds(first_s_max=0.3)
    async with face(MemoryStore(LAYOUT.dtype, 1), bounds=bounds) as address:
        for sent in (b"", b"GET /healthz HTTP/1.1\r\nHo"):
            reader, writer = await opened(address, sent)
            async with asyncio.timeout(4):
                assert await reader.read() == b""
            writer.close()
        reader, writer = await opened(address, asking("/healthz"))  # who has asked once may come again later
        assert b"200 OK" in await reader.readuntil(b"ok")
        await asyncio.sleep(0.6)
        writer.write(asking("/healthz"))
        assert b"200 OK" in await reader.readuntil(b"ok")
        writer.close()


async def test_probes_get_in_past_slow_readers_and_past_work() -> None:
    store = MemoryStore(LAYOUT.dtype, 1)
    await filled(store)
    async with face(store, hangs=True, connections_max=3) as address:
        slow = [await opened(address, asking("/metrics") * 500) for _ in range(3)]
        for _ in range(3):
            assert (await get(address + "/healthz"))[0] == 200
        busy = [await opened(address, asking("/v1/customers/ann")) for _ in range(3)]
        await asyncio.sleep(0.1)
        for _ in range(3):
            slow += [await opened(address) for _ in range(7)]
            for path in ("/healthz", "/readyz", "/metrics"):
                status, _, head = (
                    (await raw(address, asking(path))) if path != "/metrics" else (200, None, "")
                )
                assert status == 200 and (not head or "Connection: close" in head), path
            status, body, head = await raw(address, asking("/v1/customers/ann"))
            assert (status, body) == (503, {"error": "too many connections"})
            assert "Retry-After" in head
        for reader, _ in busy:  # none of those that wait for us was sent away
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await reader.read(1)
        for _, writer in (*slow, *busy):
            writer.close()
