"""What has been fetched of one partition and not begun: a short queue that pauses the fetch when it is full.

    fetch ─▶ put ─▶ [ · · · · ] ─▶ take: the oldest, joined with those that had to wait behind it
               full: pause ▲ ▲ half empty, or all done: resume

It knows batches and how many of them it may hold; it refuses to know where they come from and what becomes of them.
The invariant: a batch or two more than `batches_max` are held at most, those on their way when the pause came.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from ebbtide.stream.batch import Fetched, FetchedBatch


class Inbox:
    """`pause` and `resume` are called when the fetch has to stop, and when it may go on."""

    def __init__(
        self, batches_max: int, records_max: int, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self._batches_max, self._records_max = batches_max, records_max
        self._pause, self._resume = pause, resume
        self._batches: deque[Fetched] = deque()
        self._arrived = asyncio.Event()
        self._paused = False
        self.closed = False
        """It takes nothing more: what comes now is the next owner's."""

    def __len__(self) -> int:
        return len(self._batches)

    def put(self, batch: Fetched) -> None:
        """Take a batch in order of arrival; what is on its way after a pause is still taken."""
        if self.closed:
            return
        self._batches.append(batch)
        self._arrived.set()
        if len(self._batches) >= self._batches_max and not self._paused:
            self._paused = True
            self._pause()

    def take(self) -> Fetched:
        """The oldest batch with those that follow it, up to `records_max` records together. There must be one."""
        batch = self._batches.popleft()
        if not isinstance(batch, FetchedBatch):
            return batch
        following: list[FetchedBatch] = []
        end, records = batch.end, len(batch.records)
        while self._batches and isinstance(after := self._batches[0], FetchedBatch):
            records += len(after.records)
            if not after.follows(batch.seek_id, end) or records > self._records_max:
                break
            following.append(after)
            self._batches.popleft()
            end = after.end
        if len(self._batches) < self._batches_max // 2:
            self.resume()
        return batch.joined(following)

    async def arrives(self, timeout_s: float) -> bool:
        """Wait for a batch, or for the close; false when neither came."""
        self._arrived.clear()
        if self._batches or self.closed:
            return True
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the arrival, and a
            # partition that was given away would live on, seeking under its successor.
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def clear(self) -> None:
        """Drop what waits: it is of a position that has been given up."""
        self._batches.clear()

    def resume(self) -> None:
        """Undo a pause of ours."""
        if self._paused and not self.closed:
            self._paused = False
            self._resume()

    def close(self) -> None:
        """Take nothing more, fetch nothing more; what is held may still be taken."""
        self.closed = True
        self._pause()
        self._arrived.set()
