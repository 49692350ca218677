"""Ends that come: a cancellation can be lost, so it is said again; and no end waits for ever.

    asyncio.wait_for before Python 3.12   swallows a cancellation that arrives together with what it waits for. We use
                                          asyncio.timeout; redis-py and mode use wait_for, under our own tasks.

A task whose cancellation was lost goes on as if nothing had been said: whoever awaits its end hangs, and a partition
that was given away seeks under its successor.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from typing import Any

log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""Long enough for what a task does on its way out (close a connection, give up a producer), which a second cancellation
would cut short."""
END_S_MAX = 15.0
"""Then it is left behind, by name: whoever ends after it must end."""
CLOSE_S = 5.0


async def end(
    tasks: Iterable["asyncio.Task[Any]"], again_s: float = AGAIN_S, end_s_max: float = END_S_MAX
) -> None:
    """Cancel `tasks` and wait until all are done, cancelling again every `again_s` seconds; after `end_s_max` seconds
    those that are not are left behind and logged. Raises nothing that a task raised."""
    left = set(tasks)
    try:
        async with asyncio.timeout(end_s_max):
            while left:
                for task in left:
                    task.cancel()
                done, left = await asyncio.wait(left, timeout=again_s)
                for task in done:
                    if not task.cancelled():
                        task.exception()  # it has been looked at
    except TimeoutError:
        log.error(  # noqa: TRY400 -- where they hang is not in our traceback
            "tasks that do not end are left behind", extra={"tasks": sorted(t.get_name() for t in left)}
        )


async def closed(closing: Awaitable[object], what: str, close_s: float = CLOSE_S) -> None:
    """Await an end of somebody else's, for `close_s` seconds and no longer."""
    try:
        async with asyncio.timeout(close_s):
            await closing
    except TimeoutError:
        log.warning("did not close in time", extra={"what": what, "after_s": close_s})
