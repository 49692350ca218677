"""The proxy that the tests of outages trust: each of its moods, seen from a client beside a real server."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.servers.proxy import Proxy

BLOB = bytes(range(256)) * 20_000


def echo(connection: socket.socket) -> None:
    """Give back whatever comes, until the other side has said all."""
    with connection:
        try:
            while data := connection.recv(1 << 16):
                connection.sendall(data)
        except ConnectionResetError:
            pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """In front of a server that echoes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    with listener, Proxy(listener.getsockname()[1]) as through:
        yield through


def dial(proxy: Proxy, timeout_s: float = 10.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout_s)


def asked(connection: socket.socket, data: bytes = b"?") -> bytes:
    """What comes back."""
    connection.sendall(data)
    got = connection.recv(len(data))
    while len(got) < len(data):
        got += connection.recv(len(data) - len(got))
    return got


def test_it_passes_every_byte_and_the_end(proxy: Proxy) -> None:
    """Five megabytes both ways, then a half-closed connection is closed by the server."""
    with dial(proxy) as connection:

        def send() -> None:
            connection.sendall(BLOB)
            connection.shutdown(socket.SHUT_WR)

        threading.Thread(target=send).start()
        got = bytearray()
        while data := connection.recv(1 << 16):
            got += data
    assert bytes(got) == BLOB


def test_a_cut_resets_and_refuses_until_healed(proxy: Proxy) -> None:
    with dial(proxy) as old:
        assert asked(old) == b"?"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            old.recv(1)
        with pytest.raises(ConnectionRefusedError):
            dial(proxy)
        proxy.heal()
        with dial(proxy) as new:
            assert asked(new) == b"?"


def test_a_black_hole_accepts_and_says_nothing_until_healed(proxy: Proxy) -> None:
    """What was sent into it arrives afterwards, on connections old and new."""
    with dial(proxy) as old:
        assert asked(old) == b"?"
        proxy.hang()
        with dial(proxy) as new:
            for connection in (old, new):
                connection.settimeout(0.3)
                connection.sendall(b"!")
                with pytest.raises(TimeoutError):
                    connection.recv(1)
            proxy.heal()
            for connection in (old, new):
                connection.settimeout(10)
                assert connection.recv(1) == b"!"


def test_a_slow_network_delays_and_narrows(proxy: Proxy) -> None:
    """Two crossings at 100 ms; then 50 kB at 100 kB/s take half a second each way, overlapping."""
    with dial(proxy) as connection:
        proxy.slow(0.1, 100_000)
        began = time.monotonic()
        asked(connection)
        assert time.monotonic() - began >= 0.2
        began = time.monotonic()
        asked(connection, BLOB[:50_000])
        assert time.monotonic() - began >= 0.5
        proxy.heal()
        assert asked(connection, BLOB) == BLOB


def test_a_server_that_is_away_is_a_reset(proxy: Proxy) -> None:
    """The proxy answers though nobody is behind it; the client learns it at once."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with Proxy(port) as through, dial(through) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
