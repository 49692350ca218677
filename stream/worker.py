"""All partitions of ours, the scorer they share, and the end of all: what a worker process runs.

It takes note of what the source says (assigned, revoked, a batch) without waiting, and keeps a task a partition. A task
that ends with an error no retry can mend ends the worker: `run` raises it, and the process exits with a message that
says what to do. It knows neither Faust nor TensorFlow; `stream/consumer/app.py` and `ops/worker/run.py` put the real
ones in.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Literal

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.store.protocol import Store
from ebbtide.stream.batch import Fetched, Source
from ebbtide.stream.errors import PartitionRevoked
from ebbtide.stream.partition import Limits, Partition
from ebbtide.stream.pipeline import Tools

log = logging.getLogger(__name__)

PULSE_EVERY_S = 2.0
PULSE_ANSWER_S_MAX = 5.0
"""Longer than a slow answer, shorter than the time-out of a request that may still succeed."""


class Pulse:
    """Do both servers answer? Asked every few seconds, because a partition without traffic would not notice.

    A partition that works finds out by itself that the store or Kafka is away. One that waits for its next event does
    not: it would be called ready through an outage. So one small question goes to each server, about a partition of
    ours, and `away` holds what did not answer: server to what is wrong with it. It decides nothing: it is for /readyz.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.away: dict[str, str] = {}

    async def run(self, source: Source) -> None:
        """For ever; cancel it to stop."""
        while True:
            if owned := source.assigned():
                partition = min(owned)
                await asyncio.gather(
                    self._ask("Redis", self._store.checkpoint(partition)),
                    self._ask("Kafka", source.log_range(partition)),
                )
            else:
                self.away.clear()
            await asyncio.sleep(PULSE_EVERY_S)

    async def _ask(self, server: str, question: Coroutine[Any, Any, object]) -> None:
        try:
            async with asyncio.timeout(PULSE_ANSWER_S_MAX):
                await question
        except PartitionRevoked:
            return  # neither here nor there
        except EbbtideError as error:
            self.away[server] = str(error)
        except TimeoutError:
            self.away[server] = f"no answer within {PULSE_ANSWER_S_MAX:.0f} s"
        else:
            self.away.pop(server, None)


class Worker:
    """`assigned`, `revoked` and `deliver` are the source's callbacks; `run` lasts until `stop` or a fatal error."""

    def __init__(
        self, tools: Tools, *, alerts_from: Literal["now", "start"] = "now", limits: Limits | None = None
    ) -> None:
        self._tools, self._alerts_from, self._limits = tools, alerts_from, limits or Limits()
        self._partitions: dict[int, Partition] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._fatal: asyncio.Future[None] | None = None
        self._source: Source | None = None
        self._pulse = Pulse(tools.store)
        self._draining = False

    def attach(self, source: Source) -> None:
        """The source whose callbacks will come; before `run`."""
        self._source = source

    @property
    def troubles(self) -> list[str]:
        """Why this worker is not ready, a sentence each; empty when every partition of ours is open and up to date and
        both servers answer. A worker without partitions is not ready either."""
        away = [f"{server}: {why}" for server, why in self._pulse.away.items()]
        if not self._partitions:
            return [
                *away,
                "no partition is assigned: the group is forming, or has more workers than partitions",
            ]
        closed = [f"partition {n}: {p.trouble}" for n, p in sorted(self._partitions.items()) if p.trouble]
        return away + closed

    def assigned(self, partitions: frozenset[int]) -> None:
        """These are ours now. Only takes note: checkpoints are read in each partition's own task."""
        if self._source is None:
            raise RuntimeError("attach a source before partitions are assigned")
        if self._draining:
            return  # we are about to leave: they are the next owner's
        for number in partitions - self._partitions.keys():
            partition = Partition(
                number, self._tools, self._source, alerts_from=self._alerts_from, limits=self._limits
            )
            self._partitions[number] = partition
            task = asyncio.create_task(partition.run(), name=f"partition-{number}")
            task.add_done_callback(self._ended)
            self._tasks[number] = task
        self._tools.telemetry.assigned(frozenset(self._partitions))

    def revoked(self, partitions: frozenset[int]) -> None:
        """No longer ours: work before its apply is dropped, not awaited. The next owner starts from the checkpoint."""
        for number in partitions & self._partitions.keys():
            del self._partitions[number]
            self._tasks.pop(number).cancel()
            self._tools.cache.clear(number)
        self._tools.telemetry.assigned(frozenset(self._partitions))

    async def deliver(self, fetched: Sequence[Fetched]) -> None:
        """Hand what a fetch brought to its partitions; what is of one that is gone is dropped, as it has to be."""
        for each in fetched:
            partition = self._partitions.get(each.partition)
            if partition is not None:
                partition.offer(each)

    async def run(self) -> None:
        """Score for whoever asks, until cancelled. Raises the error of a partition that no retry can mend."""
        self._fatal = asyncio.get_running_loop().create_future()
        if self._source is None:
            raise RuntimeError("attach a source before the worker runs")
        scoring = asyncio.create_task(self._tools.batcher.run(), name="batcher")
        pulse = asyncio.create_task(self._pulse.run(self._source), name="pulse")
        try:
            await asyncio.wait({scoring, pulse, self._fatal}, return_when=asyncio.FIRST_COMPLETED)
            for future in (scoring, pulse, self._fatal):
                if future.done():
                    future.result()
        finally:
            # The store and the sink are closed after us: nobody may use them any more.
            left = [scoring, pulse, *self._tasks.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def drain(self, grace_s: float) -> bool:
        """Finish what is in hand. Returns whether all of it was finished within `grace_s` seconds."""
        self._draining = True
        partitions, tasks = list(self._partitions.values()), list(self._tasks.values())
        for partition in partitions:
            partition.drain()
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return all(partition.finished for partition in partitions)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._fatal is None or self._fatal.done():
            return
        error = task.exception()
        if error is not None:
            self._fatal.set_exception(error)
