"""The thread of the model: answers, errors, order, and an end that waits for nobody."""

import asyncio
import subprocess
import sys
import time

import pytest

from ebbtide.stream.scoring.executor import OwnThread


def fail() -> None:
    raise ValueError("on purpose")


async def test_answers_and_errors_come_back_in_order() -> None:
    thread, done = OwnThread("test"), list[int]()

    def note(n: int) -> int:
        done.append(n)
        return n * n

    assert await asyncio.gather(*(thread.run(note, n) for n in range(20))) == [n * n for n in range(20)]
    assert done == list(range(20))
    with pytest.raises(ValueError, match="on purpose"):
        await thread.run(fail)
    assert await thread.run(note, 3) == 9
    thread.close(1.0)


async def test_a_call_whose_caller_went_is_left_out() -> None:
    """A revoked partition's rows need not be scored any more."""
    thread, done = OwnThread("test"), list[str]()
    busy = asyncio.create_task(thread.run(time.sleep, 0.2))
    gone = asyncio.create_task(thread.run(done.append, "gone"))
    await asyncio.sleep(0.05)
    gone.cancel()
    await busy
    await thread.run(done.append, "next")
    assert done == ["next"]
    thread.close(1.0)


def test_a_model_that_hangs_does_not_keep_the_process() -> None:
    """Drained, closed, and a dispatch still under way: the process ends all the same, with exit code 0."""
    program = """
import asyncio, time
from ebbtide.stream.scoring.executor import OwnThread

async def main():
    thread = OwnThread("test")
    hanging = asyncio.create_task(thread.run(time.sleep, 30))
    await asyncio.sleep(0.1)
    hanging.cancel()
    thread.close(0.2)

asyncio.run(main())
"""
    began_s = time.monotonic()
    run = subprocess.run([sys.executable, "-c", program], timeout=20, check=False)
    assert run.returncode == 0
    assert time.monotonic() - began_s < 15
