"""The store in plain dictionaries: the same promises without a server, for trials and tests.

It knows what `Store` promises and keeps it by the simplest means: everything runs on one event loop, so a stretch of
code without `await` is alone, and a step that was checked first cannot fail while it is written. It refuses to know
Redis; that the two agree, errors included, is the contract suite's business.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.customer import SEPARATOR
from ebbtide.featurestore.errors import Fenced, StoreUnavailable
from ebbtide.featurestore.record.layout import Rows
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import (
    AT_RISK_MAX,
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
    join_records,
    pages,
)
from ebbtide.featurestore.store.outcomes import begun, outcomes


@dataclass(slots=True)
class _Partition:
    checkpoint: Checkpoint | None = None
    records: dict[str, bytes] = field(default_factory=dict)
    due: dict[str, int] = field(default_factory=dict)
    out: dict[bytes, tuple[int, OutboxEntry]] = field(default_factory=dict)
    """By id: the entry, and its place within its commit."""
    risk: dict[str, float] = field(default_factory=dict)
    turned_away: float = 0.0
    """The highest p that found no room among those at risk; 0 when none did."""
    hours: HourCounts = ()


class MemoryStore:
    """A `Store` in this process. Every call gives way to other tasks once before it acts, as a round trip would.

    `bytes_max` bounds records and outbox: a step that could take them beyond it is refused with StoreUnavailable and
    changes nothing, as a full server does.
    """

    def __init__(
        self, dtype: np.dtype[Any], partitions: int, *, bytes_max: int = 2**30, at_risk_max: int = AT_RISK_MAX
    ) -> None:
        self.dtype = dtype
        self.bytes_max = bytes_max
        self._at_risk_max = at_risk_max
        self._partitions = [_Partition() for _ in range(partitions)]

    async def start(self) -> None:
        """Nothing here can be set up wrongly."""

    async def checkpoint(self, partition: int) -> Checkpoint | None:
        return (await self._at(partition)).checkpoint

    @property
    def partitions(self) -> int:
        return len(self._partitions)

    def checkpoint_each(self, partitions: Sequence[int]) -> list[asyncio.Future[Checkpoint | None]]:
        return [begun(self.checkpoint(partition)) for partition in partitions]

    async def load(self, partition: int, customers: Sequence[str]) -> tuple[Rows, NDArray[np.bool_]]:
        check_count(customers)
        records = (await self._at(partition)).records
        return join_records([records.get(customer) for customer in customers], self.dtype, partition)

    def load_each(self, requests: Sequence[LoadRequest]) -> list[asyncio.Future[Loaded]]:
        return [begun(self.load(partition, customers)) for partition, customers in requests]

    async def load_many(self, requests: Sequence[LoadRequest]) -> list[Loaded | Exception]:
        return await outcomes(self.load_each(requests))

    async def apply(self, commit: Commit) -> None:
        commit.check(self.dtype)
        state = await self._at(commit.partition)
        if state.checkpoint != commit.expected:
            raise Fenced(f"partition {commit.partition} is at {state.checkpoint}, not at {commit.expected}")
        if self._bytes() + commit.nbytes > self.bytes_max:
            raise StoreUnavailable("the memory store is full", hint="raise its `bytes_max`")
        # From here on nothing fails and nothing waits.
        size = self.dtype.itemsize
        blob = commit.rows.tobytes()
        for i, (customer, due) in enumerate(zip(commit.customers, commit.due.tolist(), strict=True)):
            state.records[customer] = blob[i * size : (i + 1) * size]
            state.due[customer] = due
        for customer in commit.forgotten:
            state.records.pop(customer, None)
            state.due.pop(customer, None)
        state.out.update((entry.id, (at, entry)) for at, entry in enumerate(commit.outbox))
        for identity in commit.acked:
            state.out.pop(identity, None)
        self._list_risks(state, commit)
        if commit.hours is not None:
            state.hours = commit.hours
        state.checkpoint = commit.checkpoint

    def _list_risks(self, state: _Partition, commit: Commit) -> None:
        for customer in (*commit.customers, *commit.forgotten):
            state.risk.pop(customer, None)
        state.risk.update((name, p) for p, name in commit.risks if p >= state.turned_away)
        if (many := len(state.risk) - self._at_risk_max) > 0:
            for name in sorted(state.risk, key=lambda name: (state.risk[name], name.encode()))[:many]:
                state.turned_away = state.risk.pop(name)
        elif len(state.risk) <= self._at_risk_max / 2:
            state.turned_away = 0.0

    def apply_each(self, commits: Sequence[Commit]) -> list[asyncio.Future[None]]:
        return [begun(self.apply(commit)) for commit in commits]

    async def apply_many(self, commits: Sequence[Commit]) -> list[Exception | None]:
        return await outcomes(self.apply_each(commits))

    async def outbox(self, partition: int) -> list[OutboxEntry]:
        placed = (await self._at(partition)).out.values()
        return [entry for _, entry in sorted(placed, key=lambda each: (each[1].sequence, each[0]))]

    async def hours(self, partition: int) -> HourCounts:
        return (await self._at(partition)).hours

    def due_each(self, requests: Sequence[DueRequest]) -> list[asyncio.Future[DueCustomers]]:
        return [begun(self.due(*request)) for request in requests]

    async def due(self, partition: int, until_ms: int, customers_max: int) -> DueCustomers:
        due = (await self._at(partition)).due
        order = sorted((time, name.encode(), name) for name, time in due.items() if time < until_ms)
        first = order[:customers_max]
        return [name for _, _, name in first], np.array([time for time, _, _ in first], np.int64)

    def of_first_each(self, requests: Sequence[FirstRequest]) -> list[asyncio.Future[list[str]]]:
        return [begun(self._of_first(*request)) for request in requests]

    async def _of_first(self, partition: int, first: str, customers_max: int) -> list[str]:
        records = (await self._at(partition)).records
        return [name for name in records if name.startswith(first + SEPARATOR)][:customers_max]

    async def find(self, customer: str) -> list[tuple[int, np.void]]:
        loaded = [await self.load(partition, [customer]) for partition in range(len(self._partitions))]
        return [(partition, rows[0]) for partition, (rows, found) in enumerate(loaded) if found[0]]

    async def at_risk(self, p_min: float, customers_max: int) -> AtRisk:
        states = [await self._at(partition) for partition in range(len(self._partitions))]
        found = [
            (p, n, name) for n, state in enumerate(states) for name, p in state.risk.items() if p >= p_min
        ]
        found.sort(key=lambda entry: -entry[0])
        return AtRisk(found[:customers_max], len(found), max(state.turned_away for state in states))

    async def scan(self, partition: int) -> AsyncIterator[tuple[list[str], Rows]]:
        # The names as of the first page: a dictionary may not change while it is walked.
        for names in pages(list((await self._at(partition)).records)):
            rows, found = await self.load(partition, names)
            yield [name for name, there in zip(names, found, strict=True) if there], rows[found]

    async def reset(self, partition: int) -> None:
        await self._at(partition)
        self._partitions[partition] = _Partition()

    async def close(self) -> None:
        """Nothing to give back."""

    async def _at(self, partition: int) -> _Partition:
        await asyncio.sleep(0)
        return self._partitions[partition]

    def _bytes(self) -> int:
        outbox = sum(entry.nbytes for state in self._partitions for _, entry in state.out.values())
        return outbox + self.dtype.itemsize * sum(len(state.records) for state in self._partitions)
