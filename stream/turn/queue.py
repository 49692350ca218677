"""Backpressure: what has been fetched and not begun, in a short queue a partition, and one budget for a whole worker.

    fetch ─▶ put ─▶ [ · · · · ] ─▶ take: the oldest, joined with those that had to wait behind it
               full: pause ▲ ▲ half empty, or all done: resume

A partition with nothing queued may always be fetched, so that one budget starves nobody: beyond it, whoever holds
something is paused until half of the budget is free again. The invariant: a batch or two more than `batches_max` are
held at most of a partition, those on their way when the pause came, and one batch a partition beyond `bytes_max` of
all.
"""

from collections import deque
from collections.abc import Callable

from ebbtide.stream.batch import Fetched, FetchedBatch


def bytes_of(fetched: Fetched) -> int:
    """Uncompressed bytes of a batch's keys and values; a fault has none."""
    if not isinstance(fetched, FetchedBatch):
        return 0
    return sum(len(record.value or b"") + len(record.key or b"") for record in fetched.records)


class Budget:
    """Uncompressed bytes that all queues of a worker hold together; beyond `bytes_max` they pause."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0
        self._paused: set[Queue] = set()

    @property
    def exceeded(self) -> bool:
        return self.used >= self.bytes_max

    def wait(self, queue: "Queue") -> None:
        """Call `queue.resume` once half of the budget is free."""
        self._paused.add(queue)

    def add(self, size: int) -> None:
        """Count `size` bytes more, or less."""
        self.used += size
        if self._paused and self.used < self.bytes_max // 2:
            paused, self._paused = self._paused, set()
            for queue in paused:
                queue.resume()

    def leave(self, queue: "Queue") -> None:
        """A queue that is gone waits for nothing."""
        self._paused.discard(queue)


class Queue:
    """`pause` and `resume` are called when the fetch of its partition has to stop, and when it may go on."""

    def __init__(
        self,
        batches_max: int,
        budget: Budget,
        pause: Callable[[], None],
        resume: Callable[[], None],
    ) -> None:
        self._batches_max, self._budget = batches_max, budget
        self._pause, self._resume = pause, resume
        self._batches: deque[tuple[Fetched, int]] = deque()
        self._paused = False
        self.records = 0
        """How many records it holds."""
        self.closed = False
        """It takes nothing more: what comes now is the next owner's."""

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def first(self) -> FetchedBatch | None:
        """The oldest batch with records in it, which stays; None where there is none."""
        return next((b for b, _ in self._batches if isinstance(b, FetchedBatch) and b.records), None)

    def put(self, batch: Fetched) -> None:
        """Take a batch in order of arrival; what is on its way after a pause is still taken."""
        if self.closed:
            return
        size = bytes_of(batch)
        self._batches.append((batch, size))
        self.records += _records(batch)
        self._budget.add(size)
        if not self._paused and (len(self._batches) >= self._batches_max or self._budget.exceeded):
            self._paused = True
            self._pause()
            if self._budget.exceeded:
                self._budget.wait(self)

    def take(self, records_max: int) -> Fetched | None:
        """The oldest batch with those that follow it, up to `records_max` records together; or a fault, when that is
        what came; None when there is nothing."""
        if not self._batches:
            return None
        batch = self._pop()
        following: list[FetchedBatch] = []
        if isinstance(batch, FetchedBatch):
            end, records = batch.end, len(batch.records)
            while self._batches and isinstance(after := self._batches[0][0], FetchedBatch):
                records += len(after.records)
                if not after.follows(batch.seek_id, end) or records > records_max:
                    break
                following.append(after)
                self._pop()
                end = after.end
            batch = batch.joined(following)
        if not self._batches or (len(self._batches) < self._batches_max // 2 and not self._budget.exceeded):
            self.resume()
        return batch

    def clear(self) -> None:
        """Drop what waits: it is of a position that has been given up."""
        while self._batches:
            self._pop()

    def resume(self) -> None:
        """Undo a pause of ours."""
        if self._paused and not self.closed:
            self._paused = False
            self._resume()

    def close(self) -> None:
        """Take nothing more, fetch nothing more; what is held may still be taken."""
        self.closed = True
        self._budget.leave(self)
        self._pause()

    def _pop(self) -> Fetched:
        batch, size = self._batches.popleft()
        self.records -= _records(batch)
        self._budget.add(-size)
        return batch


def _records(fetched: Fetched) -> int:
    return len(fetched.records) if isinstance(fetched, FetchedBatch) else 0
