"""A cancellation that is lost is said again; an end that does not come is left behind."""

import asyncio
import logging
import sys

import pytest

from ebbtide.stream.ending import closed, end


class Losing:
    """Works by `asyncio.wait_for`, and at its n-th wait what it waits for comes in the same turn as a cancellation: on
    Python 3.11 that cancellation is gone, as it is under redis-py's connections."""

    def __init__(self, loses: int) -> None:
        self._loses, self.lost, self.ended = loses, 0, False
        self._comes: asyncio.Future[None] | None = None

    async def run(self) -> None:
        try:
            while True:
                self._comes = asyncio.get_running_loop().create_future()
                await asyncio.wait_for(self._comes, 60.0)
                self.lost += 1
        finally:
            await asyncio.sleep(0)  # what a task does on its way out
            self.ended = True

    def comes(self) -> None:
        """What it waits for is there, now; the task has not run since."""
        if self._comes is not None and not self._comes.done() and self.lost < self._loses:
            self._comes.set_result(None)


@pytest.mark.parametrize("loses", [0, 1, 3])
async def test_a_cancellation_that_is_lost_is_said_again(loses: int) -> None:
    """A hundred tasks, which lose none, one or three of them."""
    losing = [Losing(loses) for _ in range(100)]
    tasks = [asyncio.create_task(each.run()) for each in losing]
    await asyncio.sleep(0.01)

    async def strike() -> None:
        while not all(task.done() for task in tasks):
            for each, task in zip(losing, tasks, strict=True):
                if task.cancelling() > each.lost:
                    each.comes()
            await asyncio.sleep(0)

    for each in losing:  # in the very turn of the first cancellation
        each.comes()
    striking = asyncio.create_task(strike())
    async with asyncio.timeout(5.0):
        await end(tasks, again_s=0.02)
    striking.cancel()
    assert all(task.done() for task in tasks)
    assert all(each.ended for each in losing)
    if sys.version_info < (3, 12):
        assert all(each.lost >= min(loses, 1) for each in losing), "nothing was lost: the test shows nothing"


async def test_a_task_that_does_not_end_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if released.is_set():
                    raise

    released = asyncio.Event()
    task = asyncio.create_task(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(2.0):
            await end([task], again_s=0.02, end_s_max=0.1)
    assert [record.__dict__["tasks"] for record in caplog.records] == [["stubborn"]]
    released.set()
    await end([task])


async def test_what_a_task_raised_is_not_raised_again() -> None:
    async def failing() -> None:
        raise ZeroDivisionError

    await end([asyncio.create_task(failing())])
    await end([])


async def test_an_end_of_somebody_else_is_bounded() -> None:
    async with asyncio.timeout(2.0):
        await closed(asyncio.Event().wait(), "an event", close_s=0.05)
