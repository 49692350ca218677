"""What the store promises: a partition moves from one offset to the next in one atomic step.

This module knows what a partition's state consists of (checkpoint, records, due times, who is at risk, outbox, its
log's volume by hour) and the one way in which it changes (`Store.apply`). It refuses to know what a record holds (its
dtype is an argument), what a message of the outbox says and where the state lives: `redis_store` is for production,
`memory_store` for trials and tests, and one contract suite runs over both.

The invariant: what is stored for a partition is always exactly the state at its checkpoint. Whoever writes says which
checkpoint it last saw. When that is no longer the checkpoint, somebody else has moved the partition: `Fenced`, and
nothing is written. So two owners at once, a worker that wakes up late, a write repeated after a timeout and a cache
that has gone stale are all the same case, and harmless.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Rows
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import (
    AtRisk,
    Commit,
    DueCustomers,
    DueRequest,
    FirstRequest,
    HourCounts,
    Loaded,
    LoadRequest,
    OutboxEntry,
)


class Store(Protocol):
    """State of all partitions of one input topic. Every method may raise StoreUnavailable: ask again later.

    Methods may be called concurrently; those on one partition by several owners, too.
    """

    @property
    def partitions(self) -> int:
        """Of the input topic, when the store was opened."""
        ...

    async def start(self) -> None:
        """Raise StoreMisconfigured when the server is set up so that state would be lost."""

    async def checkpoint(self, partition: int) -> Checkpoint | None:
        """Where the partition is, None when it never began. Raises LayoutError for a checkpoint that cannot be read."""

    def checkpoint_each(self, partitions: Sequence[int]) -> list[asyncio.Future[Checkpoint | None]]:
        """`checkpoint` of each partition, all asked together; a future to each, in order, as with `load_each`."""

    async def load(self, partition: int, customers: Sequence[str]) -> tuple[Rows, NDArray[np.bool_]]:
        """Records in the order asked: structured[n] (writable, the caller's own; zeros where absent), found bool[n].

        n ≤ CUSTOMERS_MAX, else ValueError. Raises LayoutError when a record has another length than the dtype.
        """

    def load_each(self, requests: Sequence[LoadRequest]) -> list[asyncio.Future[Loaded]]:
        """`load` for each request, all sent together (to Redis in one round trip a server); a future to each, in order.

        Their partitions may be the same or not; what one raises concerns it alone. The answers of one server come
        together and do not wait for another server. A future that is given up stays asked.
        """

    async def load_many(self, requests: Sequence[LoadRequest]) -> list[Loaded | Exception]:
        """`load_each`, when all are answered, errors as values: what `load` raises, in the place of its answer."""

    async def apply(self, commit: Commit) -> None:
        """Move the partition from `commit.expected` to `commit.checkpoint`, with all that the step holds, or change
        nothing.

        Readers see the state before or the state after. Raises Fenced, having written nothing, when the stored
        checkpoint is not `expected`. Raises ValueError, having asked nothing, for a malformed step.

        StoreUnavailable means refused (nothing written) or *not known*: the answer was lost, and the step was
        applied, will be, or never is, but always whole. To apply the very same step again is safe: if the first
        attempt counted the second is Fenced, and the owner starts again from the stored checkpoint, as after any fence.
        """

    def apply_each(self, commits: Sequence[Commit]) -> list[asyncio.Future[None]]:
        """`apply` for each commit, all sent together (to Redis in one round trip a server); a future to each, in order.

        Each is fenced, and succeeds or fails, by itself: this is no transaction. At most one commit a partition, since
        a commit has to know how the one before it ended. A future that is given up stays asked: *not known*, as after
        a timeout.
        """

    async def apply_many(self, commits: Sequence[Commit]) -> list[Exception | None]:
        """`apply_each`, when all are answered: None where it was applied, else what `apply` raises."""

    async def outbox(self, partition: int) -> list[OutboxEntry]:
        """What is not yet acknowledged, in the order in which it was decided: by sequence, then by place in it."""

    async def hours(self, partition: int) -> HourCounts:
        """The counts that `Commit.hours` wrote last; () when none did. Raises LayoutError for what is no counts."""
        ...

    async def due(self, partition: int, until_ms: int, customers_max: int) -> DueCustomers:
        """The first `customers_max` customers with due < until_ms, by due time, then by their UTF-8 bytes."""

    def due_each(self, requests: Sequence[DueRequest]) -> list[asyncio.Future[DueCustomers]]:
        """`due` for each request, all asked together; a future to each, in order, as with `load_each`."""

    def of_first_each(self, requests: Sequence[FirstRequest]) -> list[asyncio.Future[list[str]]]:
        """Customers of the partition that begin with the first part and "/" (`featurestore/customer.py`), in no order,
        as many as there are or as were asked for; a future to each request, in order, as with `load_each`.

        Of a store for composite customers only, else ValueError."""

    async def find(self, customer: str) -> list[tuple[int, np.void]]:
        """Every partition that holds this customer, ascending, with the record there; empty when unknown everywhere.

        More than one where producers do not agree on the partitioner: then the customer is several people here."""

    async def at_risk(self, p_min: float, customers_max: int) -> AtRisk:
        """The `customers_max` customers of all partitions with the highest p ≥ p_min among those that commits listed.

        A partition lists at most AT_RISK_MAX. When it is full, those with the lowest p leave, and none below what left
        is taken until half of the list is empty; `AtRisk.floor` says so meanwhile. Who was turned away comes back with
        the next decision about them.
        """
        ...

    def scan(self, partition: int) -> AsyncIterator[tuple[list[str], Rows]]:
        """All customers with their records, in bounded pages, in no order.

        Whoever is there from begin to end comes exactly once. Pages are not one snapshot: steps applied meanwhile
        show in later pages.
        """

    async def reset(self, partition: int) -> None:
        """Delete all of the partition, in bounded pages; an owner that still lives is fenced from the first one on."""

    async def close(self) -> None:
        """Give back connections; a closed store is not used again."""
