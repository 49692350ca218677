"""Questions that are asked as one: each gets its answer, and one who gives up takes it from nobody."""

import asyncio
from collections.abc import Collection

import pytest
from aiokafka import TopicPartition

from ebbtide.stream.consumer.together import Together
from ebbtide.stream.errors import BrokerUnavailable, PartitionRevoked

TPS = [TopicPartition("clicks", n) for n in range(5)]


class Asked:
    """Answers with the partition's number, once `go`; not for partition 4, which is somebody else's."""

    def __init__(self, error: Exception | None = None) -> None:
        self.rounds: list[list[int]] = []
        self.go = asyncio.Event()
        self._error = error

    async def __call__(self, tps: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        self.rounds.append(sorted(tp.partition for tp in tps))
        await self.go.wait()
        if self._error is not None:
            raise self._error
        return {tp: tp.partition for tp in tps if tp.partition != 4}


async def test_who_asks_in_one_moment_is_one_question() -> None:
    asked = Asked()
    together = Together(asked)
    first = [asyncio.create_task(together.ask(tp)) for tp in (TPS[0], TPS[1], TPS[0], TPS[4])]
    await asyncio.sleep(0.01)
    late = asyncio.create_task(together.ask(TPS[2]))
    first[0].cancel()
    await asyncio.sleep(0.01)
    asked.go.set()
    answers = await asyncio.gather(*first, late, return_exceptions=True)
    assert asked.rounds == [[0, 1, 4], [2]]
    assert isinstance(answers[0], asyncio.CancelledError)
    assert isinstance(answers[3], PartitionRevoked)
    assert [answers[1], answers[2], answers[4]] == [1, 0, 2]


async def test_what_goes_wrong_is_told_to_each() -> None:
    asked = Asked(BrokerUnavailable("away", hint="wait"))
    together = Together(asked)
    asked.go.set()
    answers = await asyncio.gather(*(together.ask(tp) for tp in TPS[:3]), return_exceptions=True)
    assert [str(answer) for answer in answers] == [str(BrokerUnavailable("away", hint="wait"))] * 3
    assert len({id(answer) for answer in answers}) == 3
    with pytest.raises(BrokerUnavailable):
        await together.ask(TPS[0])
    assert asked.rounds == [[0, 1, 2], [0]]
