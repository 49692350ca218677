"""How far every partition is, five times a second, and what follows from it: lag, recovery, pauses, states made again.

    log end   ──────────────●───────────────────────    at the first look after a fault's end: the target
    checkpoint      ───╮  lost ╭──────────────●               reached: the fault is recovered from
                 ╰───────╯

`ends` are where a reader of committed records ends, `high` are the high watermarks: an open transaction lies between.
What lies behind it lags, too, though nobody may read it yet; a pause is only where somebody may. It looks at Redis and
Kafka directly, not through the proxies, and touches nothing. Invariant: a fault counts as recovered from only by
checkpoints that were read after its end, and that reached a log end that was read after it, too.
"""

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from numpy.typing import NDArray

from ebbtide.featurestore.errors import EbbtideError
from ebbtide.featurestore.store.protocol import Store
from tests.chaos.losses import FellBack, Losses

LOOK_S = 0.2
ANSWER_S = 2.0


@dataclass
class Open:
    """A fault that is over and not recovered from. `faults`: how many had begun by then. `target` is None until Kafka
    tells the log's ends again."""

    kind: str
    ended_s: float
    faults: int
    target: NDArray[np.int64] | None = None


class Monitor:
    """`start`, then read: everything is as of the last look. Times are monotonic seconds."""

    def __init__(self, store: Store, kafka_url: str, topic: str, group: str, partitions: int) -> None:
        self._store, self._url, self._topic, self._group = store, kafka_url, topic, group
        self.committed: dict[int, int] = {}
        self.checkpoints = np.zeros(partitions, np.int64)
        self.ends = np.zeros(partitions, np.int64)
        self.high = np.zeros(partitions, np.int64)
        self.published = 1
        """The latest model version; and below, those that workers may serve now. Others tell."""
        self.versions: set[int] = {1}
        self.losses = Losses()
        self.heads_read_s = self.ends_read_s = 0.0
        self.pause_s_max = 0.0
        self.pause_at = ""
        self.made_again = self.fell_back = 0
        self.recovery_s: dict[str, list[float]] = defaultdict(list)
        self.recovery_alone_s: dict[str, list[float]] = defaultdict(list)
        self.open: list[Open] = []
        self._faults = 0
        self._moved_s = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        levels = ("read_committed", "read_uncommitted")
        self._consumers = [
            AIOKafkaConsumer(bootstrap_servers=self._url, isolation_level=level, request_timeout_ms=5000)
            for level in levels
        ]
        for consumer in self._consumers:
            await consumer.start()
        self._tasks = [
            asyncio.create_task(self._watch_heads()),
            asyncio.create_task(self._watch_ends()),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for consumer in self._consumers:
            with suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(5.0):
                    await consumer.stop()

    @property
    def lag(self) -> int:
        """Offsets of all partitions between checkpoint and log end."""
        return int(np.maximum(self.log_ends - self.checkpoints, 0).sum())

    @property
    def log_ends(self) -> NDArray[np.int64]:
        """Where the logs end, open transactions included."""
        return np.maximum(self.high, self.ends)

    @property
    def stuck(self) -> dict[int, tuple[int, int]]:
        """Partitions that lag: checkpoint and log end of each."""
        ends = self.log_ends
        behind = np.flatnonzero(self.checkpoints < ends)
        return {int(p): (int(self.checkpoints[p]), int(ends[p])) for p in behind}

    def began(self) -> None:
        """A fault begins."""
        self._faults += 1

    def over(self, kind: str) -> None:
        """A fault has just ended: from here on its recovery is timed."""
        self.open.append(Open(kind, time.monotonic(), self._faults))

    def about_to_lose(self, *, everything: bool) -> list[FellBack]:
        """Before the state is lost, or its end: what to tell `losses` of when it is."""
        return self.losses.pieces(self.checkpoints.tolist(), self.high.tolist(), everything=everything)

    async def caught_up(self, timeout_s: float) -> bool:
        """Wait until no partition lags, by looks later than now, no alert waits to be sent, and the group's committed
        offsets say the same: what an operator sees as lag."""
        since_s = time.monotonic()
        while time.monotonic() - since_s < timeout_s:
            if min(self.heads_read_s, self.ends_read_s) > since_s and self.lag == 0:
                with suppress(EbbtideError, KafkaError, TimeoutError):
                    waiting = [await self._store.outbox(p) for p in range(len(self.checkpoints))]
                    self.committed = await marks_of(self._url, self._group, self._topic)
                    behind = [
                        p for p, end in enumerate(self.log_ends.tolist()) if self.committed.get(p, 0) != end
                    ]
                    if not any(waiting) and not behind:
                        return True
            await asyncio.sleep(LOOK_S / 2)
        return False

    async def _watch_heads(self) -> None:
        while True:
            asked_s = time.monotonic()
            with suppress(EbbtideError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    found = await asyncio.gather(
                        *(self._store.checkpoint(p) for p in range(len(self.checkpoints)))
                    )
                self._note(
                    np.array([checkpoint.offset if checkpoint else 0 for checkpoint in found], np.int64),
                    asked_s,
                )
            self._note_pause()
            await asyncio.sleep(LOOK_S)

    def _note(self, checkpoints: NDArray[np.int64], asked_s: float) -> None:
        back = checkpoints < self.checkpoints
        self.made_again += int((back & (checkpoints == 0)).sum())
        self.fell_back += int((back & (checkpoints > 0)).sum())
        before, now, high = (each.tolist() for each in (self.checkpoints, checkpoints, self.high))
        self.losses.look(before, now, high, self.versions, asked_s)
        if (checkpoints != self.checkpoints).any():
            self._moved_s = time.monotonic()
        self.checkpoints, self.heads_read_s = checkpoints, asked_s
        for fault in list(self.open):
            if fault.target is None or fault.ended_s >= asked_s or (checkpoints < fault.target).any():
                continue
            self.open.remove(fault)
            took_s = time.monotonic() - fault.ended_s
            self.recovery_s[fault.kind].append(took_s)
            if fault.faults == self._faults:
                self.recovery_alone_s[fault.kind].append(took_s)

    def _note_pause(self) -> None:
        now_s = time.monotonic()
        if (self.checkpoints >= self.ends).all():
            self._moved_s = now_s
        elif now_s - self._moved_s > self.pause_s_max:
            self.pause_s_max, self.pause_at = now_s - self._moved_s, time.strftime("%H:%M:%S")

    async def _watch_ends(self) -> None:
        partitions = [TopicPartition(self._topic, p) for p in range(len(self.ends))]
        while True:
            asked_s = time.monotonic()
            with suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    asked = [consumer.end_offsets(partitions) for consumer in self._consumers]
                    found, high = await asyncio.gather(*asked)
                self.ends = np.array([found[tp] for tp in partitions], np.int64)
                self.high = np.array([high[tp] for tp in partitions], np.int64)
                self.ends_read_s = asked_s
                for fault in self.open:
                    if fault.target is None and fault.ended_s < asked_s:
                        fault.target = self.log_ends
            await asyncio.sleep(LOOK_S)


async def marks_of(kafka_url: str, group: str, topic: str) -> dict[int, int]:
    """What the group has committed, asked of Kafka; a partition without a committed offset is left out. Raises
    KafkaError."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url, request_timeout_ms=5000)
    try:
        await admin.start()
        found = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    return {tp.partition: at.offset for tp, at in found.items() if tp.topic == topic and at.offset >= 0}
