"""The one module that reads a clock. Everything else is told the time, so that time is data and tests can say it."""

import time
from typing import Protocol


class Clock(Protocol):
    """What time it is: `now_ms` in wall time (ms UTC), `monotonic_s` for durations (seconds, any origin)."""

    def now_ms(self) -> int: ...
    def monotonic_s(self) -> float: ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()

    def sleep_s(self, seconds: float) -> None:
        """Block this thread; on an event loop use `asyncio.sleep`."""
        time.sleep(seconds)


class ManualClock:
    """A clock that stands still until it is moved: for tests, and wherever time comes from a log."""

    def __init__(self, now_ms: int = 1_000_000_000_000) -> None:
        self._now_ms = now_ms

    def advance(self, ms: int) -> None:
        """Move both readings forward by `ms` >= 0."""
        self._now_ms += ms

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_s(self) -> float:
        return self._now_ms / 1000
