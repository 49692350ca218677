"""The task of one partition, where its timing is delicate; what it does with batches is tested with the pipeline."""

import asyncio
from typing import cast

import pytest

from stream.fetched import FetchedBatch
from stream.partition import Limits, Partition
from stream.pipeline import Tools
from tests.support.streams import Faults, LogSource


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancelled_wait_ends(turns: int) -> None:
    """However many turns of the loop lie between a batch's arrival and the cancellation of a revoked partition: the
    wait either was over already or ends cancelled, and never goes on as if nothing had happened."""
    source = LogSource("t", [[]], seed=0, faults=Faults(0, 0.0))
    partition = Partition(0, cast(Tools, None), source, alerts_from="start", limits=Limits())
    waiting = asyncio.create_task(partition._arrives(5.0))
    for _ in range(3):
        await asyncio.sleep(0)
    partition.offer(FetchedBatch("t", 0, 1, 0, 1, []))
    for _ in range(turns):
        await asyncio.sleep(0)
    was_waiting = waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled() == was_waiting
