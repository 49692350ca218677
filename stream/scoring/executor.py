"""A thread of its own for work that may take long, as a model does: calls one after the other, and no reason to stay.

A `ThreadPoolExecutor` would do, but Python waits for its threads when the process ends: a worker that has drained would
sit out whatever the model is at, past the grace that a supervisor gives it: a dispatch that hangs, a new version that
is compiled for half a minute. This thread dies with the process; `close` waits for a call under way as long as it is
told, since a native call is better not cut off. It knows no model.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class OwnThread:
    """`await run(f, *args)` from any event loop; in order of asking."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """What `function(*args)` returns or raises. A call whose caller was cancelled before it began is left out."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]  # None only where T is None

        def call() -> None:
            if answer.cancelled():
                return
            result, error = None, None
            try:
                result = function(*args)
            except Exception as raised:  # noqa: BLE001  # it belongs to whoever asked
                error = raised
            with suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(settle, result, error)

        self._calls.put(call)
        return await answer

    def close(self, timeout_s: float = 0.0) -> None:
        """Take no more calls; wait for the one under way, for `timeout_s` at most."""
        self._calls.put(None)
        if timeout_s > 0:
            self._thread.join(timeout_s)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
