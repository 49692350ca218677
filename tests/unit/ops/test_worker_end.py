"""A worker that ends in trouble says so by its exit status, also when the trouble came while it drained."""

import asyncio

import pytest

from ebbtide.ops.worker.run import raise_first
from ebbtide.stream.ending import end


async def test_an_error_while_draining_is_raised() -> None:
    """
    worker   ────────────┐ fails
    stop     ──┐ SIGTERM │
    end        └ drain ──┴── cancel all ── raise
    """

    async def fails() -> None:
        await asyncio.sleep(0)
        raise OSError("the disk is full")

    waiting = asyncio.create_task(asyncio.Event().wait())
    stopped = asyncio.create_task(asyncio.sleep(0))
    failing = asyncio.create_task(fails())
    await asyncio.wait({failing})
    await end([stopped, failing, waiting])
    with pytest.raises(OSError, match="disk is full"):
        raise_first([stopped, waiting, failing])
    raise_first([stopped, waiting])
