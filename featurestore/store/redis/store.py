"""The store in Redis or Valkey: six or seven kinds of keys a partition (`keys.py`), and one script that moves them
together.

`apply.lua` holds the atomicity argument, `calls.py` what it is given, `client.py` says what the server's refusals mean.
This module knows commands; it refuses to know what the bytes mean, and which server holds a key.

No key has a TTL, and a server that evicts is refused, since either would change state behind the fence. Needs Redis 7.0
or Valkey, and of an ACL user `~{prefix}{topic}:* +@read +@write -@dangerous +eval +evalsha +info` (`+memory` for
reports, `+select` for another database than 0); on a Cluster also `+cluster|slots +asking`; with Sentinels, of a
Sentinel's user `+sentinel|get-master-addr-by-name`. `-@dangerous`: `+@write` alone would include FLUSHALL.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import Fenced, LayoutError, StoreMisconfigured
from ebbtide.featurestore.record.layout import POLICY_VERSION, Rows
from ebbtide.featurestore.store.checkpoint import REBUILD, RESETTING, Checkpoint
from ebbtide.featurestore.store.commit import (
    AT_RISK_MAX,
    CUSTOMERS_MAX,
    AtRisk,
    Commit,
    DueCustomers,
    DueRequest,
    FirstRequest,
    HourCounts,
    Loaded,
    LoadRequest,
    OutboxEntry,
    check_count,
    pages,
)
from ebbtide.featurestore.store.outcomes import failed, outcomes
from ebbtide.featurestore.store.redis.calls import Calls
from ebbtide.featurestore.store.redis.client import Question, RedisClient, Script
from ebbtide.featurestore.store.redis.codec import RecordCodec, hours_of, unpacked
from ebbtide.featurestore.store.redis.credentials import Credentials
from ebbtide.featurestore.store.redis.errors import CLUSTER_HINT
from ebbtide.featurestore.store.redis.keys import Keys
from ebbtide.featurestore.store.redis.names import Names
from ebbtide.featurestore.store.redis.url import SETTING

VERSION_MIN = (7, 0)  # the first whose scripts declare flags and are refused as a whole
# Each partition has one command under way at a time; 16 let as many partitions of a worker wait at once.
CONNECTIONS_MAX = 16
# A script of CUSTOMERS_MAX customers takes about 10 ms; behind 16 others still well below a second.
TIMEOUT_S = 5.0
DUE_SAMPLES = 100  # entries of the sorted set that a memory report looks at
Item = TypeVar("Item")
APPLY, RESET = Script.read("apply.lua"), Script.read("reset.lua")


TURNED_AWAY = b"\xff"
"""As in `apply.lua`."""


class MemoryUsage(NamedTuple):
    """Bytes that the server spends. `records`: int64[n], key, value and table entry of each customer asked for (0 when
    absent). `due`: an estimated entry of the sorted set, the same for everyone."""

    records: NDArray[np.int64]
    due: float


class RedisStore:
    """A `Store` (see there for each method) for the partitions of one topic. `dtype` is that of a record.

    Raises StoreMisconfigured for a URL that cannot be understood; connects on the first question.
    """

    def __init__(
        self,
        url: str,
        dtype: np.dtype[Any],
        topic: str,
        partitions: int,
        *,
        credentials: Credentials | None = None,
        prefix: str = "",
        timeout_s: float = TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
        policy_version: int = POLICY_VERSION,
        names: Names | None = None,
        at_risk_max: int = AT_RISK_MAX,
    ) -> None:
        self.dtype = dtype
        self.partitions = partitions
        self._names = names or Names()
        self._codec = RecordCodec(dtype, policy_version)
        self._client = RedisClient(url, credentials, timeout_s=timeout_s, connections_max=connections_max)
        self.where = self._client.where
        self._keys = Keys(prefix, topic, partitions, self._names)
        self._tags = self._keys.tags
        self._calls = Calls(self._keys, self._names, self._codec, at_risk_max)

    async def start(self) -> None:
        await asyncio.to_thread(self._codec.warm)
        await asyncio.to_thread(self._codec.warm)
        for where, info in await self._client.infos():
            version = str(info.get("redis_version", "0"))
            if tuple(map(int, version.split(".")[:2])) < VERSION_MIN:
                raise StoreMisconfigured(f"{where} is Redis {version}", hint="7.0 or later, or Valkey")
            if info.get("redis_mode") == "sentinel":
                raise StoreMisconfigured(
                    f"{where} is a Sentinel",
                    hint=f"let {SETTING} begin with redis+sentinel:// and end with the master's name there",
                )
            if info.get("cluster_enabled") and not self._client.cluster:
                raise StoreMisconfigured(f"{where} holds a part of the keys only", hint=CLUSTER_HINT)
            policy = info.get("maxmemory_policy", "unknown")
            if policy != "noeviction":
                raise StoreMisconfigured(
                    f"{where} has maxmemory-policy {policy} and would drop customers' state when memory is full",
                    hint="set `maxmemory-policy noeviction`, or give us a server of our own",
                )

    async def checkpoint(self, partition: int) -> Checkpoint | None:
        text = await self._client.ask("GET", self._tags[partition] + "checkpoint")
        return self._checkpoint_of(partition, text)

    def checkpoint_each(self, partitions: Sequence[int]) -> list[asyncio.Future[Checkpoint | None]]:
        keys = [(partition, self._tags[partition] + "checkpoint") for partition in partitions]
        return self._client.ask_each(
            [Question(key, ("GET", key), partial(self._checkpoint_of, partition)) for partition, key in keys]
        )

    def _checkpoint_of(self, partition: int, text: bytes | None) -> Checkpoint | None:
        try:
            return None if text is None else self._calls.checkpoint_of(text)
        except LayoutError as error:
            said = f"partition {partition} at {self.where}: {error.args[0]}"
            raise LayoutError(said, hint=error.hint) from error

    async def load(self, partition: int, customers: Sequence[str]) -> tuple[Rows, NDArray[np.bool_]]:
        check_count(customers)
        keys = self._keys.records(partition, customers)
        return self._codec.unpack(await self._client.ask("MGET", *keys) if keys else [], partition)

    def load_each(self, requests: Sequence[LoadRequest]) -> list[asyncio.Future[Loaded]]:
        return self._ask_valid(requests, self._load_question)

    async def load_many(self, requests: Sequence[LoadRequest]) -> list[Loaded | Exception]:
        return await outcomes(self.load_each(requests))

    def _load_question(self, request: LoadRequest) -> Question:
        partition, customers = request
        check_count(customers)
        keys = self._keys.records(partition, customers)
        # One key that is there for nobody's sake: MGET must have one, and all go the same way.
        command = ("MGET", *keys) if keys else ("MGET", self._tags[partition] + "c:")
        n = len(keys)
        return Question(command[1], command, lambda reply: self._codec.unpack(reply[:n], partition))

    async def apply(self, commit: Commit) -> None:
        commit.check(self.dtype)
        keys, args = self._calls.apply(commit)
        self._calls.check_reply(commit, await self._client.run(APPLY, keys, args))

    def apply_each(self, commits: Sequence[Commit]) -> list[asyncio.Future[None]]:
        return self._ask_valid(commits, self._apply_question)

    async def apply_many(self, commits: Sequence[Commit]) -> list[Exception | None]:
        return await outcomes(self.apply_each(commits))

    def _apply_question(self, commit: Commit) -> Question:
        commit.check(self.dtype)
        keys, args = self._calls.apply(commit)
        return Question(
            keys[0], (len(keys), *keys, *args), lambda reply: self._calls.check_reply(commit, reply), APPLY
        )

    def _ask_valid(
        self, items: Sequence[Item], question_of: Callable[[Item], Question]
    ) -> list[asyncio.Future[Any]]:
        """The answers to the questions that can be asked; a ValueError where the asker is at fault."""
        questions: list[Question] = []
        refused: dict[int, ValueError] = {}
        for i, item in enumerate(items):
            try:
                questions.append(question_of(item))
            except ValueError as error:
                refused[i] = error
        answers = iter(self._client.ask_each(questions))
        return [failed(refused[i]) if i in refused else next(answers) for i in range(len(items))]

    async def outbox(self, partition: int) -> list[OutboxEntry]:
        packed: dict[bytes, bytes] = await self._client.ask("HGETALL", self._tags[partition] + "out")
        try:
            opened = self._names.opened
            placed = [unpacked(opened(identity), opened(value)) for identity, value in packed.items()]
        except struct.error:
            said = f"the outbox of partition {partition} at {self.where} was written by another release"
            raise LayoutError(said, hint=REBUILD) from None
        return [entry for _, entry in sorted(placed, key=lambda each: (each[1].sequence, each[0]))]

    async def hours(self, partition: int) -> HourCounts:
        return hours_of(await self._client.ask("GET", self._tags[partition] + "hours"), partition)

    async def due(self, partition: int, until_ms: int, customers_max: int) -> DueCustomers:
        return await self.due_each([(partition, until_ms, customers_max)])[0]

    def due_each(self, requests: Sequence[DueRequest]) -> list[asyncio.Future[DueCustomers]]:
        if not self._names.keep_order:
            return [asyncio.ensure_future(self._due_in_order(request)) for request in requests]
        commands = [self._due_command(request) for request in requests]
        return self._client.ask_each([Question(command[1], command, self._due) for command in commands])

    def _due(self, reply: list[bytes]) -> DueCustomers:
        times = np.fromiter(map(float, reply[1::2]), np.float64, len(reply) // 2)
        return list(map(self._names.customer, reply[::2])), times.astype(np.int64)

    async def _due_in_order(self, request: DueRequest) -> DueCustomers:
        """Where Redis sorts those who are due at once by what stands for them: all who are due with the last one are
        needed to know who comes first."""
        partition, _, customers_max = request
        names, times = self._due(await self._client.ask(*self._due_command(request)))
        due = dict(zip(names, times.tolist(), strict=True))
        if len(names) == customers_max > 0:
            last_ms = int(times[-1])
            at_once = ("ZRANGE", self._tags[partition] + "due", last_ms, last_ms, "BYSCORE", "WITHSCORES")
            others, _ = self._due(await self._client.ask(*at_once))
            # A commit in between may have armed one of the page for just then: they are due once.
            due = {name: ms for name, ms in due.items() if ms < last_ms} | dict.fromkeys(others, last_ms)
        names = sorted(due, key=lambda name: (due[name], name))[:customers_max]
        return names, np.array([due[name] for name in names], np.int64)

    def _due_command(self, request: DueRequest) -> tuple[Any, ...]:
        partition, until_ms, customers_max = request
        order = ("BYSCORE", "LIMIT", 0, customers_max, "WITHSCORES")
        return ("ZRANGE", self._tags[partition] + "due", "-inf", f"({until_ms}", *order)

    def of_first_each(self, requests: Sequence[FirstRequest]) -> list[asyncio.Future[list[str]]]:
        return self._ask_valid(requests, self._first_question)

    def _first_question(self, request: FirstRequest) -> Question:
        partition, first, customers_max = request
        keys = self._keys.parts(partition)
        if not keys:
            raise ValueError("customers here are of one part: none begins with another")
        low = self._names.beginning(first).encode()
        high = low[:-1] + bytes([low[-1] + 1])  # it ends in one character of ASCII
        command = ("ZRANGE", keys[0], b"[" + low, b"(" + high, "BYLEX", "LIMIT", 0, customers_max)
        return Question(keys[0], command, lambda reply: list(map(self._names.customer, reply)))

    async def find(self, customer: str) -> list[tuple[int, np.void]]:
        stored = self._names.stored(customer)
        values = await self._client.ask_all([("GET", f"{tag}c:{stored}") for tag in self._tags])
        return [
            (partition, self._codec.unpack([value], partition)[0][0])
            for partition, value in enumerate(values) if value is not None
        ]  # fmt: skip

    async def at_risk(self, p_min: float, customers_max: int) -> AtRisk:
        keys = [tag + "risk" for tag in self._tags]
        # One more than asked for: the mark of those turned away may be among them.
        order = ("BYSCORE", "REV", "LIMIT", 0, customers_max + 1, "WITHSCORES")
        n = len(keys)
        replies = await self._client.ask_all(
            [("ZRANGE", key, "+inf", p_min, *order) for key in keys]
            + [("ZCOUNT", key, p_min, "+inf") for key in keys]
            + [("ZSCORE", key, TURNED_AWAY) for key in keys]
        )
        found = [
            (float(p), partition, self._names.customer(name))
            for partition, reply in enumerate(replies[:n])
            for name, p in zip(reply[::2], reply[1::2], strict=True) if name != TURNED_AWAY
        ]  # fmt: skip
        floors = [float(floor) for floor in replies[2 * n :] if floor is not None]
        listed = sum(map(int, replies[n : 2 * n])) - sum(floor >= p_min for floor in floors)
        found.sort(key=lambda entry: -entry[0])
        return AtRisk(found[:customers_max], listed, max(floors, default=0.0))

    async def scan(self, partition: int) -> AsyncIterator[tuple[list[str], Rows]]:
        # ZSCAN returns at least once whoever stays; `seen` makes it exactly once.
        seen: set[str] = set()
        cursor = -1
        while cursor:
            due = self._tags[partition] + "due"
            cursor, entries = await self._client.ask("ZSCAN", due, max(cursor, 0), "COUNT", CUSTOMERS_MAX)
            names = {self._names.customer(name) for name, _ in entries} - seen
            seen |= names
            for page in pages(names):
                rows, found = await self.load(partition, page)
                yield [name for name, there in zip(page, found, strict=True) if there], rows[found]

    async def reset(self, partition: int) -> None:
        tag = self._tags[partition]
        await self._client.run(RESET, self._keys.all(partition), [RESETTING, "begin"])
        while names := await self._client.ask("ZRANGE", tag + "due", 0, CUSTOMERS_MAX - 1):
            keys = [tag.encode() + b"c:" + name for name in names]
            await self._reset_page(partition, keys, ["page", *names])
        await self._reset_page(partition, [tag + "hours"], ["end"])

    async def _reset_page(self, partition: int, keys: Sequence[str | bytes], args: list[str | bytes]) -> None:
        if await self._client.run(RESET, [*self._keys.all(partition), *keys], [RESETTING, *args]):
            raise Fenced(f"partition {partition}: somebody else finished this reset")

    async def memory_usage(self, partition: int, customers: Sequence[str]) -> MemoryUsage:
        """What these customers (at most CUSTOMERS_MAX) cost the server, for reports. Not part of `Store`."""
        check_count(customers)
        tag = self._tags[partition]
        of_records = [("MEMORY USAGE", key) for key in self._keys.records(partition, customers)]
        of_due = [("MEMORY USAGE", tag + "due", "SAMPLES", DUE_SAMPLES), ("ZCARD", tag + "due")]
        *records, due, entries = await self._client.ask_all([*of_records, *of_due])
        return MemoryUsage(np.array([used or 0 for used in records], np.int64), (due or 0) / max(entries, 1))

    async def infos(self) -> list[tuple[str, dict[str, Any]]]:
        """Address and INFO of every server that takes writes, for reports. Not part of `Store`."""
        return await self._client.infos()

    async def sample(self, partition: int, customers_max: int) -> list[str]:
        """Some of its customers by chance, at most so many, each once, for reports. Not part of `Store`."""
        names = await self._client.ask("ZRANDMEMBER", self._tags[partition] + "due", customers_max)
        return list(map(self._names.customer, names))

    async def customers(self, partition: int) -> int:
        """How many customers it holds, for reports. Not part of `Store`."""
        return (await self.customers_each([partition]))[0]

    async def customers_each(self, partitions: Sequence[int]) -> list[int]:
        """`customers` of each, asked together. Not part of `Store`."""
        if not partitions:
            return []
        counts = await self._client.ask_all(
            [("ZCARD", self._tags[partition] + "due") for partition in partitions]
        )
        return [int(count) for count in counts]

    async def close(self) -> None:
        await self._client.close()
