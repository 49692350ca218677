"""The group's ordinary commits, and the transactions that they must not cross.

    commit   what may be, of partitions of ours that no transaction holds
    hold     no commit of these is under way, and none begins: their offsets move in transactions, until `release`

Kafka keeps the offset that it wrote last, whatever was committed last: an ordinary commit that arrives while a
transaction is open would stand when it is over, and take the partition back. So a commit that may still arrive, since
nobody answered it, is followed by one that is answered before a transaction begins. All of it runs in the consumer
thread; what is to be committed is the owner's to say, as of the moment of asking.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.consumer import offsets
from ebbtide.stream.errors import BrokerUnavailable
from ebbtide.stream.kafka.settings import KafkaSettings

COMMIT_S = 3.0  # how long a commit may take before it is given up and tried again with newer offsets
LAST_COMMIT_S = 1.0  # a revocation commits what may be committed; but the whole group waits for it

Offsets = Mapping[TopicPartition, CommittedOffset]


class Commits:
    """`uncommitted`: what may be committed and Kafka does not have."""

    def __init__(self, settings: KafkaSettings, uncommitted: Callable[[], Offsets]) -> None:
        self._settings, self._uncommitted = settings, uncommitted
        self._committing: asyncio.Task[Any] | None = None
        self._held = Counter[TopicPartition]()
        self._doubtful: frozenset[TopicPartition] = frozenset()

    def begin_anew(self) -> None:
        """Partitions were assigned: Kafka takes nothing more of an earlier generation, and a transaction that is left
        over from it is fenced before anything is committed."""
        self._doubtful = frozenset()
        self._held.clear()

    async def commit(self, consumer: AIOKafkaConsumer) -> Offsets:
        """Commit what may be. Returns what Kafka has; what it may not have stays to be committed."""
        committed = self._free()
        return committed if committed and await self._commit(consumer, committed) else {}

    def cut_short(self) -> Offsets:
        """End a commit that is under way. Returns what is to be committed last."""
        if self._committing is not None:
            self._committing.cancel()
        return self._free()

    async def commit_last(self, consumer: AIOKafkaConsumer, committed: Offsets) -> None:
        """What `cut_short` returned, before the partitions are given away."""
        await offsets.commit(self._settings, consumer, committed, LAST_COMMIT_S)

    async def hold(self, consumer: AIOKafkaConsumer, tps: frozenset[TopicPartition]) -> None:
        """As `Source.hold_commits`, of partitions of ours."""
        self._held.update(tps)
        try:
            while self._committing is not None:
                await asyncio.wait({self._committing})
            if doubtful := tps & self._doubtful:
                known = self._uncommitted()
                again = {tp: known[tp] for tp in doubtful if tp in known}
                if again and not await self._commit(consumer, again):
                    raise BrokerUnavailable("it is not known whether a commit is still under way")
                self._doubtful -= doubtful
        except BaseException:
            for tp in tps:
                self.release(tp)
            raise

    def release(self, tp: TopicPartition) -> None:
        """As `Source.release_commits`."""
        if self._held[tp] > 0:  # else it was held in an earlier assignment
            self._held[tp] -= 1

    async def _commit(self, consumer: AIOKafkaConsumer, committed: Offsets) -> bool:
        self._committing, tps = asyncio.current_task(), frozenset(committed)
        self._doubtful |= tps
        try:
            done = await offsets.commit(self._settings, consumer, committed, COMMIT_S)
        finally:
            self._committing = None
        if done:
            self._doubtful -= tps
        return done

    def _free(self) -> Offsets:
        return {tp: at for tp, at in self._uncommitted().items() if not self._held[tp]}
