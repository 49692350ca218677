"""Questions about single partitions, asked as one about all who ask in the same moment.

    partition 0 ─┐
    partition 1 ─┼─▶ one request ─▶ an answer each
    partition 2 ─┘

A thousand partitions that open at once are one question, not a thousand. Whoever asks while one is under way is in the
next.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Generic, TypeVar

from aiokafka import TopicPartition

from ebbtide.stream.errors import PartitionRevoked

Answer = TypeVar("Answer")


class Together(Generic[Answer]):
    """`ask_all` gets everybody who asked; whom its answer lacks is no longer ours. What it raises, each does."""

    def __init__(
        self, ask_all: Callable[[Collection[TopicPartition]], Awaitable[Mapping[TopicPartition, Answer]]]
    ) -> None:
        self._ask_all = ask_all
        self._waiting: dict[TopicPartition, asyncio.Future[Answer]] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def ask(self, tp: TopicPartition) -> Answer:
        """The answer about one. Raises PartitionRevoked, and whatever `ask_all` raises."""
        answer = self._waiting.get(tp)
        if answer is None:
            answer = self._waiting[tp] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_heard)
            if len(self._waiting) == 1:
                task = asyncio.create_task(self._send(), name="together")
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
        return await asyncio.shield(answer)  # one who gives up takes it away from nobody else

    async def _send(self) -> None:
        await asyncio.sleep(0)  # whoever asks in this round of the loop comes along
        asked, self._waiting = self._waiting, {}
        try:
            found = await self._ask_all(asked.keys())
        except Exception as error:  # noqa: BLE001 - told to each of those who asked
            for answer in asked.values():
                # One each: an exception that several tasks raise collects the tracebacks of all.
                answer.set_exception(copy.copy(error))
            return
        for tp, answer in asked.items():
            if tp in found:
                answer.set_result(found[tp])
            else:
                answer.set_exception(PartitionRevoked(f"{tp.topic}[{tp.partition}] is not ours"))


def _heard(answer: "asyncio.Future[Answer]") -> None:
    """Nobody has to be left to hear of an error."""
    if not answer.cancelled():
        answer.exception()
