"""One client for all transactional producers: requests go to a topic's leader, or to who coordinates an id or a group.

    producers of 1,000 partitions ──▶ LANES connections a broker ──▶ brokers

A broker answers the requests of one connection one after the other, so a few connections are shared out: one would make
partitions wait for each other, one a producer would be thousands. Nothing is tried again here, except who coordinates
what; an error that names a place that is no longer right makes it be looked up next time.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Self

from aiokafka import TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import KafkaError

from ebbtide.stream.ending import closed
from ebbtide.stream.kafka.diagnose import require_metadata, unreachable
from ebbtide.stream.kafka.settings import KafkaSettings

LANES = 8
"""Connections to each broker: about as many requests as a broker works on at once (`num.io.threads` is 8)."""
LOOKUP_S = 0.1
MOVED = (
    kafka_errors.KafkaConnectionError,
    kafka_errors.NodeNotReadyError,
    kafka_errors.RequestTimedOutError,
    kafka_errors.StaleMetadata,
)
"""Of a request to a coordinator: another one may have become it."""


class Link:
    """An async context manager. Requests raise KafkaError; how long one may take is the caller's to say."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: AIOKafkaClient | None = None
        self._coordinators: dict[tuple[CoordinationType, str], int] = {}

    async def __aenter__(self) -> Self:
        client = AIOKafkaClient(**self._settings.client())
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                await client.bootstrap()
                require_metadata(client)
        except (KafkaError, OSError, TimeoutError) as error:
            await closed(client.close(), "a client that could not be opened")
            raise await unreachable(self._settings, error) from error
        self._client = client
        return self

    async def __aexit__(self, *error: object) -> None:
        client, self._client = self._client, None
        if client is not None:
            await closed(client.close(), "the client of the transactions")

    @property
    def _open(self) -> AIOKafkaClient:
        if self._client is None:
            raise kafka_errors.KafkaConnectionError("the client of the transactions is closed")
        return self._client

    async def partitions(self, topics: Iterable[str]) -> dict[str, list[int]]:
        """The partitions of each of `topics`."""
        client, found = self._open, dict[str, list[int]]()
        for topic in topics:
            known = client.cluster.partitions_for_topic(topic)
            if not known:
                client.add_topic(topic)
                # What `add_topic` returns is true when another one has just asked.
                await client.force_metadata_update()
                known = client.cluster.partitions_for_topic(topic)
            if not known:
                raise kafka_errors.UnknownTopicOrPartitionError(topic)
            found[topic] = sorted(known)
        return found

    async def to_leader(self, leader: int, request: Any, lane: int) -> Any:
        """The answer of a broker that leads topic partitions."""
        try:
            return await self._open.send(leader, request, group=lane % LANES)
        except KafkaError:
            self.forget_leaders()
            raise

    def leaders(self, tps: Iterable[TopicPartition]) -> dict[int, list[TopicPartition]]:
        """The topic partitions by the broker that leads them, as last heard. Raises LeaderNotAvailableError."""
        by_leader: dict[int, list[TopicPartition]] = {}
        for tp in tps:
            leader = self._open.cluster.leader_for_partition(tp)
            if leader is None or leader == -1:
                self.forget_leaders()
                raise kafka_errors.LeaderNotAvailableError(tp)
            by_leader.setdefault(leader, []).append(tp)
        return by_leader

    def forget_leaders(self) -> None:
        """They are not what was last heard: have them told anew."""
        self._open.force_metadata_update()

    async def heard_of_leaders(self) -> None:
        """Ask who leads, and wait for the answer."""
        await asyncio.sleep(LOOKUP_S)
        await self._open.force_metadata_update()

    async def to_coordinator(self, kind: CoordinationType, key: str, request: Any, lane: int) -> Any:
        """The answer of who coordinates the transactional id, or the group, `key`."""
        client = self._open
        while (node := self._coordinators.get((kind, key))) is None:
            try:
                node = self._coordinators[kind, key] = await client.coordinator_lookup(kind, key)
            except kafka_errors.GroupCoordinatorNotAvailableError:  # the first of this cluster is being made
                await asyncio.sleep(LOOKUP_S)
        try:
            return await client.send(node, request, group=lane % LANES)
        except MOVED:
            self.moved(kind, key)
            raise

    def moved(self, kind: CoordinationType, key: str) -> None:
        """Its coordinator is another one now: look it up for the next request."""
        self._coordinators.pop((kind, key), None)
