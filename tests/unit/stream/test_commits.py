"""The group's ordinary commits, one after the other, before a coordinator that answers as it is told."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, NotCoordinatorForGroupError
from aiokafka.protocol.commit import OffsetCommitRequest

from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.consumer.commits import Commits
from ebbtide.stream.consumer.offsets import Member
from ebbtide.stream.kafka.settings import KafkaSettings
from tests.support.patience import PATIENCE_S

ONE, TWO = TopicPartition("t", 1), TopicPartition("t", 2)


class Coordinator:
    """Takes commits as `answer` says, which is told how many came before."""

    coordinator_id = 0

    def __init__(self, answer: Callable[[int], Any]) -> None:
        self._answer, self.asked = answer, list[set[int]]()

    async def ensure_coordinator_known(self) -> None: ...

    def coordinator_dead(self) -> None: ...

    async def _send_req(self, request: OffsetCommitRequest) -> Any:
        number, ((topic, partitions),) = len(self.asked), request._topics
        self.asked.append({partition for partition, *_ in partitions})
        await self._answer(number)
        return SimpleNamespace(topics=[(topic, [(partition, 0) for partition, *_ in partitions])])


class Client:
    """Of which no connection is open."""

    def __init__(self) -> None:
        self._conns: dict[Any, Any] = {}

    async def ready(self, *_: Any, **__: Any) -> bool:
        return True


async def test_no_commit_is_under_way_when_a_hold_begins() -> None:
    """
    commit 1, 2   ╳ no answer: it is not known of either
    hold 2          ├─ commits 2 again ──┤
    commit 1            ├ the coordinator has moved · · asks again ┤
    hold 1                                  ├─ not before that is over
    """
    go_on = asyncio.Event()

    async def answer(number: int) -> None:
        if number == 0:
            raise KafkaError("no answer")
        if number == 1:
            await go_on.wait()
        if number == 2:
            raise NotCoordinatorForGroupError

    coordinator = Coordinator(answer)
    consumer: Any = SimpleNamespace(_coordinator=coordinator, _client=Client())
    known = {tp: CommittedOffset(5, "") for tp in (ONE, TWO)}
    commits = Commits(KafkaSettings(url="127.0.0.1:1", topic="t", group="g"), lambda: known, dict)
    commits.begin_anew(Member(1, "m"))
    async with asyncio.timeout(PATIENCE_S):
        assert await commits.commit(consumer) == {}
        first = asyncio.create_task(commits.hold(consumer, frozenset({TWO})))
        await asyncio.sleep(0)
        ordinary = asyncio.create_task(commits.commit(consumer))
        await asyncio.sleep(0.01)
        go_on.set()
        await first
        await asyncio.create_task(commits.hold(consumer, frozenset({ONE})))
        asked = len(coordinator.asked)
        await ordinary
    assert len(coordinator.asked) == asked, "a commit came in the middle of a transaction"
