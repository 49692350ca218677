"""Membership of the group: the consumer that a worker joins with, one worker an instance, and a leader that knows.

A static member (Kafka's `group.instance.id`) that starts again takes the place of the one before it, which Kafka no
longer knows from then on. aiokafka leaves the instance out of heartbeats and commits, so Kafka can only tell the one
that was replaced that it is unknown, and aiokafka would join again, as that very instance: two workers by one name
would take the place from each other for ever. So a member that was in the group and is unknown now asks who is in its
place, before it joins. Invariant: of two workers by one name, the one that joined first ends, with an error that says
why.

The member that leads the group shares out the partitions that its client knows of. One that joined while Kafka could
hardly be reached may know none; then it gives nobody anything, and aiokafka would ask again after five minutes.
"""

# ruff: noqa: SLF001 -- the member's id and its coordinator are private to aiokafka

import asyncio
import re

from aiokafka import AIOKafkaConsumer
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import DescribeGroupsRequest

from ebbtide.stream.consumer.offsets import Member
from ebbtide.stream.errors import BrokerMisconfigured
from ebbtide.stream.kafka.settings import KafkaSettings, ms

METADATA_AGE_S = 30.0
"""How long partitions that were added may go unnoticed; the client's own is five minutes."""
ASK_S = 3.0  # the group waits for us meanwhile
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def group_consumer(settings: KafkaSettings) -> AIOKafkaConsumer:
    """The consumer of a worker, not started; to be made on the event loop that it will live in."""
    return AIOKafkaConsumer(
        **settings.client(),
        group_id=settings.group,
        group_instance_id=settings.instance,
        partition_assignment_strategy=[RoundRobinPartitionAssignor],
        enable_auto_commit=False,
        # Never moves the position by itself: a place that the log no longer has is an error, not a jump.
        auto_offset_reset="none",
        isolation_level="read_committed",
        fetch_max_wait_ms=ms(settings.fetch_wait_max_s),
        max_partition_fetch_bytes=settings.fetch_partition_bytes_max,
        session_timeout_ms=ms(settings.session_timeout_s),
        heartbeat_interval_ms=ms(settings.heartbeat_interval_s),
        metadata_max_age_ms=ms(METADATA_AGE_S),
        rebalance_timeout_ms=ms(max(settings.session_timeout_s, 10.0)),
        max_poll_interval_ms=ms(settings.poll_interval_max_s),
    )


class Membership:
    """Our membership, if it is a static one. `taken` is the error to end with once it is another's."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings, self._last_id = settings, ""
        self.taken: BrokerMisconfigured | None = None

    def look(self, consumer: AIOKafkaConsumer) -> None:
        """To be called about once a second. Raises `taken`; asks for the topic as long as it is not known, and the
        answer makes the group share out anew."""
        if self.taken is not None:
            raise self.taken
        if consumer.partitions_for_topic(self._settings.topic) is None:
            consumer._client.force_metadata_update()

    def joined(self, consumer: AIOKafkaConsumer) -> Member:
        """We are a member; this is what Kafka knows us by."""
        coordinator = consumer._coordinator
        self._last_id = coordinator.member_id
        return Member(coordinator.generation, coordinator.member_id)

    async def check(self, consumer: AIOKafkaConsumer) -> BrokerMisconfigured | None:
        """Sets and returns `taken`: whether another worker is in the group by our instance. None if nobody tells."""
        if self._settings.instance is None or not self._last_id:
            return None
        # Kafka names a static member after its instance: "worker-0-6f1c…".
        ours = re.compile(f"{re.escape(self._settings.instance)}-{UUID}")
        try:
            async with asyncio.timeout(ASK_S):
                members = await _members(self._settings.group, consumer)
        except (KafkaError, TimeoutError):
            return None
        if any(ours.fullmatch(member) and member != self._last_id for member in members):
            self.taken = BrokerMisconfigured(
                f"another worker joined group {self._settings.group!r} as our instance {self._settings.instance!r}",
                hint="give each worker its own kafka.instance (a StatefulSet's pod name), or unset it",
            )
        return self.taken

    async def keep(self, consumer: AIOKafkaConsumer) -> None:
        """Called between leaving a generation and joining the next. Joins none when our place is another's."""
        coordinator = consumer._coordinator
        if coordinator.member_id or await self.check(consumer) is None:
            return  # Kafka knows us: it is a rebalance like any other; or we had slept too long, and nobody came
        await asyncio.wait([coordinator._closing])  # whoever fetches hears of it, and closes the consumer
        coordinator.coordinator_dead()  # the join that would follow finds nobody to ask


async def _members(group: str, consumer: AIOKafkaConsumer) -> list[str]:
    """Ids of the members of `group`."""
    coordinator = consumer._coordinator
    await coordinator.ensure_coordinator_known()
    answer = await consumer._client.send(coordinator.coordinator_id, DescribeGroupsRequest([group]))
    return [member[0] for described in answer.groups for member in described[5]]
