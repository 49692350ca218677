"""The smallest honest pipeline over a `Source`: it folds every record of a partition into a list, behind a fence.

The list is the truth of a transport test. An entry is one batch, `(start, end, [(offset, value), …])`, appended in one
atomic step together with the head, and only if the head was where this receiver believed it to be. So whatever dies,
wakes late or owns a partition twice, the list of a partition says which records were folded, in which order, how often.

Run as a module it is a worker process: it joins the group, and leaves it on SIGTERM with exit code 0.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from redis.asyncio import Redis

from ebbtide.stream.batch import Fetched, FetchedBatch, FetchFault, Source
from ebbtide.stream.consumer.app import build_app
from ebbtide.stream.errors import PartitionRevoked
from ebbtide.stream.kafka.settings import KafkaSettings
from tests.support.patience import PATIENCE_S

Entry = tuple[int, int, list[tuple[int, str]]]

APPLY = """
local head = redis.call('GET', KEYS[1]) or ARGV[1]
if head ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('RPUSH', KEYS[2], ARGV[3])
return 1
"""


class Chain(Protocol):
    """Head and list of each partition."""

    async def head(self, partition: int) -> int | None: ...
    async def apply(self, partition: int, expected: int, entry: Entry) -> bool: ...
    async def entries(self, partition: int) -> list[Entry]: ...


class MemoryChain:
    """Shared by the receivers of one process."""

    def __init__(self) -> None:
        self._lists: dict[int, list[Entry]] = {}

    async def head(self, partition: int) -> int | None:
        entries = self._lists.get(partition)
        return entries[-1][1] if entries else None

    async def apply(self, partition: int, expected: int, entry: Entry) -> bool:
        head = await self.head(partition)
        if head is not None and head != expected:
            return False
        self._lists.setdefault(partition, []).append(entry)
        return True

    async def entries(self, partition: int) -> list[Entry]:
        return self._lists.get(partition, [])


class RedisChain:
    """Shared by the receivers of several processes."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis, self._prefix, self._script = redis, prefix, redis.register_script(APPLY)

    def _keys(self, partition: int) -> list[str]:
        return [f"{self._prefix}:{{{partition}}}:head", f"{self._prefix}:{{{partition}}}:list"]

    async def head(self, partition: int) -> int | None:
        head = await self._redis.get(self._keys(partition)[0])
        return None if head is None else int(head)

    async def apply(self, partition: int, expected: int, entry: Entry) -> bool:
        return bool(await self._script(self._keys(partition), [expected, entry[1], json.dumps(entry)]))

    async def entries(self, partition: int) -> list[Entry]:
        raw = await self._redis.lrange(self._keys(partition)[1], 0, -1)
        return [(start, end, [(o, v) for o, v in rows]) for start, end, rows in map(json.loads, raw)]


class Receiver:
    """One worker. `seen` counts what happened: batches, empty ones, old seeks, gaps, fences, assignments; and the most
    records in one batch."""

    def __init__(
        self, settings: KafkaSettings, chain: Chain, *, work_s: float = 0.0, inbox_max: int = 4
    ) -> None:
        self._chain, self._work_s, self._inbox_max = chain, work_s, inbox_max
        self.seen: Counter[str] = Counter()
        self.gate = asyncio.Event()  # closed, it holds up every delivery
        self.gate.set()
        self._inboxes: dict[int, asyncio.Queue[FetchedBatch]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.app = build_app(settings, self.deliver, self.assigned, self.revoked)
        self.source: Source = self.app.source
        self.faults: dict[int, FetchFault] = {}
        self.epochs: dict[int, int] = {}  # the leader epoch of each partition's last batch

    @property
    def partitions(self) -> frozenset[int]:
        return frozenset(self._tasks)

    def assigned(self, partitions: frozenset[int]) -> None:
        self.seen["assigned"] += 1
        for number in partitions:
            self._inboxes[number] = asyncio.Queue()
            self._tasks[number] = asyncio.create_task(self._work(number, self._inboxes[number]))

    def revoked(self, partitions: frozenset[int]) -> None:
        self.seen["revoked"] += bool(partitions)
        for number in partitions:
            self._tasks.pop(number).cancel()

    async def deliver(self, fetched: Sequence[Fetched]) -> None:
        await self.gate.wait()
        self.seen["fetches"] += 1
        for each in fetched:
            if isinstance(each, FetchFault):
                self.faults[each.partition] = each
            else:
                self.take(each)

    def take(self, batch: FetchedBatch) -> None:
        self.seen["batches"] += 1
        self.epochs[batch.partition] = batch.leader_epoch
        self.seen["records_max"] = max(self.seen["records_max"], len(batch.records))
        inbox = self._inboxes[batch.partition]
        inbox.put_nowait(batch)
        if inbox.qsize() >= self._inbox_max:
            self.source.pause(batch.partition)

    async def _work(self, number: int, inbox: "asyncio.Queue[FetchedBatch]") -> None:
        while True:
            head = await self._chain.head(number)
            if head is None:
                head = (await self.source.log_range(number))[0]
            try:
                seek_id = await self.source.seek(number, head)
            except PartitionRevoked:
                return
            self.source.resume(number)
            while True:
                batch = await inbox.get()
                if inbox.qsize() < self._inbox_max:
                    self.source.resume(number)
                if batch.seek_id != seek_id:
                    self.seen["old seek"] += 1
                    continue
                if not batch.follows(seek_id, head):
                    self.seen["gap"] += 1
                    break
                self.seen["empty"] += not batch.records
                if self._work_s:
                    await asyncio.sleep(self._work_s)
                rows = [(r.offset, (r.value or b"").decode()) for r in batch.records]
                if not await self._chain.apply(number, head, (batch.start, batch.end, rows)):
                    self.seen["fenced"] += 1
                    break
                head = batch.end
                self.source.advance_committed(number, head, f"at {head}")

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await self.app.stop()


def check_chain(entries: list[Entry], sent: dict[int, str], begin: int = 0) -> None:
    """Every record of `sent` (offset → value) was folded once, in order, by batches that join end to start."""
    position = begin
    for start, end, _ in entries:
        assert start == position, f"a batch begins at {start}, the last one ended at {position}"
        assert end > start
        position = end
    folded = [row for _, _, rows in entries for row in rows]
    assert [offset for offset, _ in folded] == sorted(sent), "skipped or folded twice"
    assert dict(folded) == sent


async def until(condition: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> None:
    """Wait for a condition; it may be a coroutine function."""

    async def held() -> bool:
        answer = condition()
        return bool(await answer if asyncio.iscoroutine(answer) else answer)

    try:
        async with asyncio.timeout(timeout_s):
            while not await held():  # noqa: ASYNC110 -- what it waits for is in another process
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", help="KafkaSettings as JSON")
    parser.add_argument("redis_url")
    parser.add_argument("--work-s", type=float, default=0.0)
    given = parser.parse_args(arguments)
    settings = KafkaSettings.model_validate_json(given.settings)
    redis = Redis.from_url(given.redis_url)
    receiver = Receiver(settings, RedisChain(redis, settings.topic), work_s=given.work_s)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await receiver.app.start()
    print("started", flush=True)
    failing = asyncio.create_task(receiver.app.failed())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([failing, stopping], return_when=asyncio.FIRST_COMPLETED)
    await receiver.stop()
    for name, count in receiver.seen.items():
        await redis.hincrby(f"{settings.topic}:seen", name, count)
    await redis.aclose()
    if failing.done():
        failing.result()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
