"""A worker ends, and lets go, though cancellations are lost under it: a hundred times.

redis-py waits by `asyncio.wait_for`, which before Python 3.12 drops a cancellation that comes together with what it
waits for. The store here waits so turn after turn while its checkpoint is read: the worker's tasks lose one in a few.
"""

import asyncio
import random

import pytest

from ebbtide.featurestore.store.checkpoint import Checkpoint
from tests.support.patience import PATIENCE_S
from tests.support.seams.scoring import LAYOUT
from tests.support.seams.streams import Faults, FaultyStore
from tests.support.seams.world import PARTITIONS, World, logs_of

ROUNDS, AT_ONCE, TURNS = 5, 20, 1_000


class LosingStore(FaultyStore):
    """Answers a turn of the loop later, by a wait that loses cancellations; `lost` counts them."""

    def __init__(self) -> None:
        super().__init__(LAYOUT.dtype, PARTITIONS, Faults(0, 0.0))
        self.asked, self.lost = asyncio.Event(), 0

    async def _answer(self) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self.asked.set()
        for turn in range(TURNS):  # as a client does that connects, and asks, and reads
            said, comes = task.cancelling(), loop.create_future()
            loop.call_later(0.0 if turn % 8 else 0.003, arrive, comes)
            await asyncio.wait_for(comes, 60.0)
            self.lost += task.cancelling() > said

    async def checkpoint(self, partition: int) -> Checkpoint | None:
        await self._answer()
        return await super().checkpoint(partition)


def arrive(comes: "asyncio.Future[None]") -> None:
    if not comes.done():
        comes.set_result(None)


def partition_tasks() -> list[str]:
    """Of all workers in this process."""
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("partition-")]


@pytest.mark.parametrize("how", ["ends", "is revoked"])
async def test_a_worker_ends_though_cancellations_are_lost(how: str) -> None:
    rng, lost, logs = random.Random(1), 0, logs_of(seed=9, events=400)
    for _ in range(ROUNDS):
        worlds = [World(seed, logs, rate=0.0) for seed in range(AT_ONCE)]
        stores = [LosingStore() for _ in worlds]
        running = []
        for world, store in zip(worlds, stores, strict=True):
            world.store = store
            worker = world.worker()
            running.append((worker, asyncio.create_task(worker.run())))
            await asyncio.sleep(0)
            worker.assigned(world.source.assigned())
        for store, (worker, task) in zip(stores, running, strict=True):
            await (
                store.asked.wait()
            )  # on a busy machine the end would else come before a wait that could lose it
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            if how == "ends":
                task.cancel()
            else:
                worker.revoked(frozenset(range(PARTITIONS)))
        if how == "is revoked":
            async with asyncio.timeout(PATIENCE_S):
                while partition_tasks():  # noqa: ASYNC110 -- no event tells it
                    await asyncio.sleep(0.01)
            for _, task in running:
                task.cancel()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(task for _, task in running), return_exceptions=True)
        assert partition_tasks() == []
        lost += sum(store.lost for store in stores)
    print(f"{lost} cancellations were lost")
    assert lost >= 5, "too few for the test to show anything"
