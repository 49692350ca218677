"""One partition's transactional producer: three numbers, and the requests of a transaction.

    take_over   InitProducerId: whatever an earlier owner left open is aborted, and it is refused from here on
    transact    1 AddPartitionsToTxn, AddOffsetsToTxn   2 Produce, TxnOffsetCommit   3 EndTxn

A transaction lasts from its messages to their end and waits for Kafka alone. Nothing of it is tried again, but what
was surely not done, because a place has moved or the last transaction's markers are not written yet: what failed is
aborted if that can be said, the producer counts as broken, and whoever owns the partition takes it over anew, asking
first how far it is. So a producer that expired, was fenced or may be in doubt is one case, and the one who is told of
it is the one who knows whether the partition is still ours. *Its epoch is the fence*: taken over from elsewhere, none
of its requests has an effect any more, also those that are still on their way.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import CoordinationType
from aiokafka.errors import KafkaError
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)

from ebbtide.featurestore.errors import Fenced
from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.kafka.errors import transactional_prefix
from ebbtide.stream.kafka.producer import PRODUCE_BATCH_BYTES
from ebbtide.stream.kafka.settings import KafkaSettings, ms
from ebbtide.stream.kafka.transactions.batches import Producer, placed, rounds
from ebbtide.stream.kafka.transactions.link import Link
from ebbtide.stream.outputs.message import Message

TRANSACTION_S = 10.0
"""The broker ends what is open for longer: no longer does a worker that died hold up who reads committed records."""
ABORT_S = 1.0
SETTLING_S = 0.005
"""After a transaction its markers are still being written, for milliseconds: the next one is refused until then."""
ALL_REPLICAS = -1
SETTLING = (
    kafka_errors.ConcurrentTransactions,
    kafka_errors.CoordinatorLoadInProgressError,
    kafka_errors.CoordinatorNotAvailableError,
    kafka_errors.NotCoordinatorError,
)
"""Nothing was done; ask again in a moment."""
ELSEWHERE = (
    kafka_errors.LeaderNotAvailableError,
    kafka_errors.NotLeaderForPartitionError,
    kafka_errors.UnknownTopicOrPartitionError,
)
"""Of a broker that does not lead a topic partition, any more or yet."""
FENCED = (
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.InvalidProducerIdMapping,
    kafka_errors.InvalidTxnState,
    kafka_errors.ProducerFenced,
)
"""The id was taken over from elsewhere, or has expired, or its transaction has: which one the broker does not say."""
TRANSACTION, GROUP = CoordinationType.TRANSACTION, CoordinationType.GROUP


def transactional_id(settings: KafkaSettings, partition: int) -> str:
    """Of whoever owns the partition."""
    return f"{transactional_prefix(settings)}{partition}"


async def take_over(link: Link, name: str, lane: int = 0) -> Producer:
    """The producer of a transactional id, whose earlier ones are refused from here on. Raises KafkaError."""
    request = InitProducerIdRequest(name, ms(TRANSACTION_S))
    while True:
        answer = await link.to_coordinator(TRANSACTION, name, request, lane)
        error = kafka_errors.for_code(answer.error_code)
        if error is kafka_errors.NoError:
            return Producer(answer.producer_id, answer.producer_epoch)
        if error not in SETTLING:
            raise _named(error, name)
        if error is not kafka_errors.ConcurrentTransactions:
            link.moved(TRANSACTION, name)
        await asyncio.sleep(SETTLING_S)


class PartitionProducer:
    """The way out of one partition, as its present owner. Made by `take_over`, used by one call at a time."""

    def __init__(self, link: Link, settings: KafkaSettings, partition: int, producer: Producer) -> None:
        self._link, self._settings, self.partition = link, settings, partition
        self._producer = producer
        self._id = transactional_id(settings, partition)
        self._sequences: dict[TopicPartition, int] = {}
        self.broken = False
        """Its last transaction failed, or another one has taken its place: it sends nothing more."""

    @classmethod
    async def take_over(cls, link: Link, settings: KafkaSettings, partition: int) -> "PartitionProducer":
        """End what an earlier owner, or we, left open. Raises KafkaError; may wait for markers to be written."""
        producer = await take_over(link, transactional_id(settings, partition), partition)
        return cls(link, settings, partition, producer)

    async def transact(self, messages: Sequence[Message], committed: CommittedOffset | None) -> None:
        """All of `messages`, and with them the partition's committed offset, or nothing. Raises KafkaError, and Fenced
        when the partition may be another owner's; whether it was said is not known then."""
        if self.broken:
            raise Fenced(
                f"the producer of partition {self.partition} was given up: it has to be taken over anew"
            )
        try:
            await self._transact(messages, committed)
        except FENCED as error:
            self.broken = True
            raise Fenced(
                f"the producer of partition {self.partition} was refused ({type(error).__name__}): another owner has"
                " taken it over, or it has expired"
            ) from error
        except KafkaError:
            self.broken = True
            with suppress(
                KafkaError, TimeoutError
            ):  # else who reads committed records waits until it expires
                async with asyncio.timeout(ABORT_S):
                    await self._end(commit=False)
            raise
        except BaseException:
            self.broken = True
            raise

    async def _transact(self, messages: Sequence[Message], committed: CommittedOffset | None) -> None:
        topics = await self._link.partitions({message.topic for message in messages})
        by_partition = placed(messages, topics)
        batches = rounds(by_partition, self._producer, self._sequences, PRODUCE_BATCH_BYTES)

        # 1. what is part of it
        requests = [self._add(by_partition)]
        if committed is not None:
            requests.append(
                self._ask(AddOffsetsToTxnRequest(self._id, *self._producer, self._settings.group))
            )
        await _all(requests)

        # 2. what is said, and how far that is
        requests = [self._produce(batches)]
        if committed is not None:
            requests.append(self._commit_offset(committed))
        await _all(requests)

        # 3. said
        await self._end(commit=True)

    async def _add(self, tps: Mapping[TopicPartition, object]) -> None:
        topics: dict[str, list[int]] = {}
        for tp in tps:
            topics.setdefault(tp.topic, []).append(tp.partition)
        request = AddPartitionsToTxnRequest(self._id, *self._producer, list(topics.items()))
        while True:
            answer = await self._link.to_coordinator(TRANSACTION, self._id, request, self.partition)
            errors = [
                (kafka_errors.for_code(code), topic)
                for topic, numbers in answer.errors
                for _, code in numbers
                if code
            ]
            # One that is not allowed makes the others "not attempted".
            errors.sort(key=lambda each: each[0] is kafka_errors.OperationNotAttempted)
            if not errors:
                return
            error, topic = errors[0]
            if error not in SETTLING:
                raise _named(
                    error, topic if error is kafka_errors.TopicAuthorizationFailedError else self._id
                )
            await self._settle(error)

    async def _ask(self, request: Any) -> None:
        while True:
            answer = await self._link.to_coordinator(TRANSACTION, self._id, request, self.partition)
            error = kafka_errors.for_code(answer.error_code)
            if error is kafka_errors.NoError:
                return
            if error is kafka_errors.GroupAuthorizationFailedError:
                raise _named(error, self._settings.group)
            if error not in SETTLING:
                raise _named(error, self._id)
            await self._settle(error)

    async def _settle(self, error: type[KafkaError]) -> None:
        if error is not kafka_errors.ConcurrentTransactions:
            self._link.moved(TRANSACTION, self._id)
        await asyncio.sleep(SETTLING_S)

    async def _produce(self, batches: Sequence[Mapping[TopicPartition, bytes]]) -> None:
        for batch in batches:
            left = dict(batch)
            while left:
                leaders = self._link.leaders(left)
                await _all([self._produce_to(node, tps, left) for node, tps in leaders.items()])
                # A leader has moved: it took nothing, and a batch's numbers let it be there but once.
                if left:
                    await self._link.heard_of_leaders()

    async def _produce_to(
        self, leader: int, tps: Sequence[TopicPartition], left: dict[TopicPartition, bytes]
    ) -> None:
        """Send what is `left` of a broker's topic partitions; what it took is left no more."""
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for tp in tps:
            topics.setdefault(tp.topic, []).append((tp.partition, left[tp]))
        request = ProduceRequest(
            self._id, ALL_REPLICAS, ms(self._settings.request_timeout_s), list(topics.items())
        )
        answer = await self._link.to_leader(leader, request, self.partition)
        for topic, partitions in answer.topics:
            for number, code, *_ in partitions:
                error = kafka_errors.for_code(code)
                if error is kafka_errors.NoError:
                    del left[TopicPartition(topic, number)]
                elif error not in ELSEWHERE:
                    raise _named(error, topic, number)

    async def _commit_offset(self, committed: CommittedOffset) -> None:
        settings = self._settings
        topics = [(settings.topic, [(self.partition, committed.offset, committed.metadata)])]
        request = TxnOffsetCommitRequest(self._id, settings.group, *self._producer, topics)
        while True:
            answer = await self._link.to_coordinator(GROUP, settings.group, request, self.partition)
            ((_, ((_, code),)),) = answer.errors
            error = kafka_errors.for_code(code)
            if error is kafka_errors.NoError:
                return
            if error not in SETTLING:
                is_group = error is kafka_errors.GroupAuthorizationFailedError
                raise _named(error, settings.group if is_group else settings.topic)
            self._link.moved(GROUP, settings.group)
            await asyncio.sleep(SETTLING_S)

    async def _end(self, *, commit: bool) -> None:
        await self._ask(EndTxnRequest(self._id, *self._producer, commit))


async def _all(requests: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Wait for all of them, also when one fails: nothing of ours may be on its way when its transaction ends."""
    for outcome in await asyncio.gather(*requests, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


def _named(error: type[KafkaError], *what: object) -> KafkaError:
    """An error that says of what it is: a topic, a group, a transactional id."""
    return error(*what)
