"""The group's ordinary commits, and the transactions that they must not cross.

    commit   what may be, of partitions of ours that no transaction holds
    hold     no commit of these is under way, and none begins: their offsets move in transactions, until `release`

Kafka keeps the offset that it wrote last, whatever was committed last: an ordinary commit that arrives while a
transaction is open would stand when it is over, and take the partition back. So a commit that may still arrive, since
nobody answered it, is followed by one that is answered before a transaction begins. All of it runs in the consumer
thread; what is to be committed is the owner's to say, as of the moment of asking, and only of the assignment that the
thread knows. Each assignment is a generation of the group: what is left over from another one is nobody's any more.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.consumer import offsets
from ebbtide.stream.consumer.offsets import Member
from ebbtide.stream.errors import BrokerUnavailable
from ebbtide.stream.kafka.settings import KafkaSettings

COMMIT_S = 3.0  # how long a commit may take before it is given up and tried again with newer offsets
LAST_COMMIT_S = 1.0  # a revocation commits what may be committed; but the whole group waits for it

Offsets = Mapping[TopicPartition, CommittedOffset]


class Commits:
    """`committable`: what may be committed, of partitions of the present assignment; `in_kafka`: what Kafka has."""

    def __init__(
        self, settings: KafkaSettings, committable: Callable[[], Offsets], in_kafka: Callable[[], Offsets]
    ) -> None:
        self._settings, self._committable, self._in_kafka = settings, committable, in_kafka
        self._committing: asyncio.Task[Any] | None = None
        self._member, self._assignment = Member(-1, ""), 0
        self._held = Counter[TopicPartition]()
        self._doubtful: frozenset[TopicPartition] = frozenset()

    def begin_anew(self, member: Member) -> None:
        """Partitions were assigned: Kafka takes nothing more of an earlier generation, and a transaction that is left
        over from it is fenced before anything is committed."""
        self._member, self._doubtful, self._held = member, frozenset(), Counter()
        self._assignment += 1  # not the generation: who joins again unchanged may be given the same one

    async def commit(self, consumer: AIOKafkaConsumer) -> Offsets:
        """Commit what may be. Returns what Kafka has; what it may not have stays to be committed."""
        await self._none_under_way()
        committed = self._free()
        return committed if committed and await self._commit(consumer, committed) else {}

    def cut_short(self) -> Offsets:
        """End a commit that is under way. Returns what is to be committed last."""
        if self._committing is not None:
            self._committing.cancel()
        return self._free()

    async def commit_last(self, consumer: AIOKafkaConsumer, committed: Offsets) -> None:
        """What `cut_short` returned, before the partitions are given away."""
        await offsets.commit(self._settings, consumer, self._member, committed, LAST_COMMIT_S)

    async def hold(self, consumer: AIOKafkaConsumer, tps: frozenset[TopicPartition]) -> int:
        """As `Source.hold_commits`, of partitions of ours. Returns the assignment that they are held in."""
        assignment = self._assignment
        self._held.update(tps)
        try:
            await self._none_under_way()
            if doubtful := tps & self._doubtful:
                known = self._committable()
                again = {tp: known[tp] for tp in doubtful if tp in known}
                if again and not await self._commit(consumer, again):
                    raise BrokerUnavailable("it is not known whether a commit is still under way")
                self._doubtful -= doubtful  # of one that is not known, Kafka was asked since, or will be
        except BaseException:
            for tp in tps:
                self.release(tp, assignment)
            raise
        return assignment

    def release(self, tp: TopicPartition, assignment: int) -> None:
        """As `Source.release_commits`; of another assignment than the present one, it is over already."""
        if assignment == self._assignment:
            self._held[tp] -= 1

    async def _none_under_way(self) -> None:
        """One at a time, a hold's own among them: of two the second would end the first one's count as under way."""
        while self._committing is not None:
            await asyncio.wait({self._committing})

    async def _commit(self, consumer: AIOKafkaConsumer, committed: Offsets) -> bool:
        self._committing, tps = asyncio.current_task(), frozenset(committed)
        self._doubtful |= tps
        try:
            done = await offsets.commit(self._settings, consumer, self._member, committed, COMMIT_S)
        finally:
            self._committing = None
        if done:
            self._doubtful -= tps
        return done

    def _free(self) -> Offsets:
        in_kafka = self._in_kafka()
        return {
            tp: at for tp, at in self._committable().items() if at != in_kafka.get(tp) and not self._held[tp]
        }
