"""A TCP proxy that misbehaves on demand: the network between a worker and its servers, as a fault.

    client ──▶ port ─[ pass · cut · hang · slow ]─▶ target_port          all on 127.0.0.1

    pass   what comes in goes out
    cut    every connection is reset and new ones are refused: a server or a network that says no
    hang   connections are accepted, nothing passes: a black hole; what came in is passed on after `heal`
    slow   each chunk arrives `latency_s` later, and a direction of a connection carries `bytes_per_s` at most
    point  new connections go to another port, as when an address moves to another server; old ones stay

It runs in a process of its own, so that a busy test cannot stall it, and ends with the test that started it. It knows
bytes only. Invariant: in every mode but `cut` it passes all bytes in order, or ends both sides of the connection; and
its port stays its own while it refuses.
"""

import asyncio
import contextlib
import math
import socket
import struct
import subprocess
import sys
from collections import deque
from types import TracebackType
from typing import Self

WAITING_BYTES_MAX = 1 << 20
"""Held back for each direction of a connection; beyond it the sender is not read, as a real network would do."""
ANSWER_S = 10.0


class Proxy:
    """Passes until told otherwise. Blocking; a context manager. `target_port` need not be listening yet."""

    def __init__(self, target_port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(target_port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.port = int(self._answer())

    def cut(self) -> None:
        """Reset every connection, refuse new ones."""
        self._tell("cut")

    def hang(self) -> None:
        """Accept, and pass nothing, on old connections and new ones."""
        self._tell("hang")

    def slow(self, latency_s: float, bytes_per_s: float = math.inf) -> None:
        """Delay what passes from now on."""
        self._tell(f"slow {latency_s} {bytes_per_s}")

    def heal(self) -> None:
        """Pass again: what was held back first."""
        self._tell("pass")

    def point(self, target_port: int) -> None:
        """Lead new connections there from now on."""
        self._tell(f"point {target_port}")

    def close(self) -> None:
        """End the proxy and all its connections. May be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr] # Popen was given both pipes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert answer == command, f"the proxy answered {answer!r} to {command!r}"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, f"the proxy process ended with {self._process.wait(ANSWER_S)}"
        return line


# -- from here on: inside the proxy's process


class _Network:
    """The mode, and every connection under it."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.hanging = self.slowed = False
        self.latency_s, self.bytes_per_s = 0.0, math.inf
        self.halves: set[_Half] = set()
        self._listener: asyncio.Server | None = None
        # Never listened on: it keeps the port ours while nobody listens.
        self._reserve = self._bind(0)
        self.port: int = self._reserve.getsockname()[1]

    async def obey(self, command: str) -> None:
        name, *numbers = command.split()
        if name == "point":
            self.target_port = int(numbers[0])
            return
        self.hanging, self.slowed = name == "hang", name == "slow"
        self.latency_s, self.bytes_per_s = map(float, numbers) if name == "slow" else (0.0, math.inf)
        if name == "cut":
            if self._listener is not None:
                self._listener.close()
                self._listener = None
            for half in list(self.halves):
                half.reset()
            return
        if self._listener is None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(
                lambda: _Half(self), sock=self._bind(self.port), backlog=1024
            )
        for half in list(self.halves):
            half.flush()

    def _bind(self, port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", port))
        return bound


class _Half(asyncio.Protocol):
    """One end of a connection: takes its bytes, and gives them to the other end when the mode allows."""

    def __init__(self, network: _Network, other: "_Half | None" = None) -> None:
        self._network, self._other = network, other
        self._accepted = other is None
        self._waiting: deque[tuple[float, bytes]] = deque()  # when due, and what; b"" is the end
        self._bytes = 0
        self._line_free_s = 0.0
        self._congested = False  # the other end's socket is full
        self._dialling: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._network.halves.add(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        network, now_s = self._network, asyncio.get_running_loop().time()
        self._line_free_s = max(self._line_free_s, now_s) + len(data) / network.bytes_per_s
        self._waiting.append((self._line_free_s + network.latency_s, data))
        self._bytes += len(data)
        self.flush()

    def eof_received(self) -> bool:
        self._waiting.append((0.0, b""))
        self.flush()
        return True  # the other direction may still have something to say

    def connection_lost(self, error: Exception | None) -> None:
        self._network.halves.discard(self)
        if error is not None and self._other is not None:
            self._other.reset()
        else:
            self._waiting.append((0.0, b""))
            self.flush()

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other._congested = True

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other._congested = False
            self._other.flush()

    def reset(self) -> None:
        """End it with a reset, not with a polite goodbye."""
        if self._dialling is not None:
            self._dialling.cancel()
        with contextlib.suppress(OSError, AttributeError):
            self._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self._transport.abort()

    def flush(self) -> None:
        """Pass on what is due, and read on if there is room."""
        if self._accepted and self._other is None:
            if self._dialling is None and not self._network.hanging:
                self._dialling = asyncio.get_running_loop().create_task(self._dial())
        elif not self._network.hanging:
            self._pass_on()
        if self._bytes > WAITING_BYTES_MAX:
            self._transport.pause_reading()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def _pass_on(self) -> None:
        other, loop = self._other, asyncio.get_running_loop()
        assert other is not None
        while self._waiting and not self._congested:
            due_s, data = self._waiting[0]
            if due_s > loop.time() and self._network.slowed:  # healed: what was delayed goes now
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = loop.call_at(due_s, self.flush)
                return
            self._waiting.popleft()
            self._bytes -= len(data)
            if other._transport.is_closing():
                continue
            if data:
                other._transport.write(data)
            elif self._transport.is_closing():
                other._transport.close()
            else:
                with contextlib.suppress(OSError):  # it has gone, and we are told of it in a moment
                    other._transport.write_eof()

    async def _dial(self) -> None:
        loop, port = asyncio.get_running_loop(), self._network.target_port
        try:
            _, far = await loop.create_connection(lambda: _Half(self._network, self), "127.0.0.1", port)
        except OSError:
            self.reset()
            return
        self._other = far
        if self._transport.is_closing():
            far.reset()
        self.flush()


async def _main(target_port: int) -> None:
    network = _Network(target_port)
    await network.obey("pass")
    print(network.port, flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while line := (await commands.readline()).decode().strip():
        await network.obey(line)
        print(line, flush=True)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
