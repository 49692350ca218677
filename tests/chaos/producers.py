"""The feed's process, seen from here: what it was told, how far it is, and what it says Kafka has acknowledged.

It knows a pipe and two files; what is produced stands in `feed.py`. Invariant: it dies with us, and a feed that did not
finish is an error, never a shorter list.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

from ebbtide.ops.stack.watchdog import die_with
from tests.chaos.feed import Acknowledged, Orders, write_orders

MODULE = "tests.chaos.feed"


class Producers:
    """`start`, then `counts` grow; `finished` waits for the last acknowledgement. Files go below `folder`."""

    def __init__(self, orders: Orders, folder: Path) -> None:
        self._orders, self._folder = orders, folder
        self.counts: dict[str, int] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        name = Path(self._orders.out).stem
        file = self._folder / f"{name}-orders.json"
        write_orders(self._orders, file)
        with (self._folder / f"{name}-feed.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", MODULE, str(file), stdout=asyncio.subprocess.PIPE, stderr=log,
                preexec_fn=die_with(os.getpid()),
            )  # fmt: skip
        self._reading = asyncio.create_task(self._read())

    @property
    def acknowledged(self) -> int:
        return self.counts.get("acknowledged", 0)

    async def finished(self) -> Acknowledged:
        """When all is acknowledged. Raises RuntimeError when the process failed."""
        assert self._process is not None and self._reading is not None
        await self._reading
        code = await self._process.wait()
        if code != 0:
            raise RuntimeError(f"the feed of {self._orders.topic} ended with code {code}: see its log")
        return await asyncio.to_thread(Acknowledged.load, Path(self._orders.out))

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        async for line in self._process.stdout:
            self.counts = json.loads(line)
