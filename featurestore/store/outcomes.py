"""Several answers that are awaited together: each one's value or error, so that no failure hides another's success."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


async def outcomes(futures: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """The result or the error of each, in order, when all are there; CancelledError of a store that was closed."""
    return await asyncio.gather(*futures, return_exceptions=True)


def promised() -> asyncio.Future[Any]:
    """An answer to come. Nobody has to wait for it: its error is then not reported as forgotten."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(_seen)
    return future


def failed(error: Exception) -> asyncio.Future[Any]:
    """An answer that is there at once, and is this error."""
    future = promised()
    future.set_exception(error)
    return future


def begun(asking: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
    """The answer of a coroutine that runs from now on, whether anybody waits or not."""
    task = asyncio.get_running_loop().create_task(asking)
    task.add_done_callback(_seen)
    return task


def _seen(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
