"""What the store promises: a partition moves from one offset to the next in one atomic step.

This module knows what a partition's state consists of (checkpoint, records, due times, outbox) and the one way in which
it changes (`Store.apply`). It refuses to know what a record holds (its dtype is an argument), what an alert says
(bytes) and where the state lives: `redis_store` is for production, `memory_store` for trials and tests, and one
contract suite runs over both.

The invariant: what is stored for a partition is always exactly the state at its checkpoint. Whoever writes says which
checkpoint it last saw. When that is no longer the checkpoint, somebody else has moved the partition: `Fenced`, and
nothing is written. So two owners at once, a worker that wakes up late, a write repeated after a timeout and a cache
that has gone stale are all the same case, and harmless.
"""

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import LayoutError

# At 12 to 30 µs a key a script then holds the server for 12 to 30 ms at most; pages of scan and reset are as long.
CUSTOMERS_MAX = 1_024
# Records of 1 KiB make 1 MiB of this; the rest is alerts. Far below the 512 MiB that a server takes at once.
COMMIT_BYTES_MAX = 32 * 1024 * 1024
# A sorted set keeps its scores as doubles: integers up to here are exact. In milliseconds, the year 287,396.
DUE_MS_MAX = 2**53

REBUILD = "make the state again from the topic: `ebbtide rebuild --prefix NEW`, then set redis.prefix to it"

Rows = NDArray[np.void]


class Checkpoint(NamedTuple):
    """Where a partition is. The fence compares it whole.

    `offset`: the consumer position to go on from (the next offset to fold). `sequence`: commits so far, so that no two
    checkpoints of a history are equal. `timer_ms`: the timer clock, int64 ms UTC, 0 = not started. `layout`: id of the
    record layout. `partitions`: of the input topic, since a customer's partition depends on their number.
    """

    offset: int
    sequence: int
    timer_ms: int
    layout: str
    partitions: int

    def text(self) -> str:
        """One line, the same for equal checkpoints; an operator can read it with `GET`."""
        return " ".join(f"{name}={value}" for name, value in zip(self._fields, self, strict=True))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The checkpoint that `text()` wrote. Raises LayoutError for anything else."""
        match = _CHECKPOINT.fullmatch(text)
        if match is None:
            hint = REBUILD
            if text == RESETTING:
                raise LayoutError("a reset of this partition was begun and has not finished", hint=hint)
            raise LayoutError(f"this checkpoint is not one of ours: {text[:120]!r}", hint=hint)
        offset, sequence, timer_ms, layout, partitions = match.groups()
        return cls(int(offset), int(sequence), int(timer_ms), layout, int(partitions))


_CHECKPOINT = re.compile(
    r"offset=(\d+) sequence=(\d+) timer_ms=(\d+) layout=(\S+) partitions=(\d+)", re.ASCII
)
RESETTING = "resetting"  # stands in the place of a checkpoint while a reset deletes what is behind it


BACKFILLING = "backfilling"  # stands in the place of a layout id until all of a partition's history is stored


def check_checkpoint(checkpoint: Checkpoint | None, layout_id: str, partitions: int) -> None:
    """Refuse a partition whose state this worker could not read or would misplace. Raises LayoutError."""
    if checkpoint is None:
        return
    if checkpoint.layout == BACKFILLING:
        raise LayoutError(
            "a backfill of this partition was begun and has not finished", hint="run it again, with --reset"
        )
    if checkpoint.layout != layout_id:
        raise LayoutError(
            f"the stored state has record layout {checkpoint.layout}, the feature spec makes {layout_id}",
            hint=f"go back to the old spec, or {REBUILD}",
        )
    if checkpoint.partitions != partitions:
        raise LayoutError(
            f"the stored state belongs to a topic of {checkpoint.partitions} partitions, this one has {partitions}",
            hint="customers moved, with half of their history: send all events anew, by key, to another topic, with"
            " another kafka.group and redis.prefix",
        )


@dataclass(frozen=True, slots=True)
class Commit:
    """One move of one partition. `customers`, `rows` and `due` are columns of the same length, n ≤ CUSTOMERS_MAX.

    `rows`: structured[n], whole records of the store's dtype. `due`: int64[n], ms UTC, 0 ≤ due ≤ DUE_MS_MAX, when
    each customer is next looked at; every record has one. `forgotten`: customers of whom nothing may remain.
    `alerts`: (id, bytes) for the outbox. `acked`: ids to take out of it, after the alerts went in.
    """

    partition: int
    expected: Checkpoint | None
    checkpoint: Checkpoint
    customers: list[str]
    rows: Rows
    due: NDArray[np.int64]
    forgotten: list[str] = field(default_factory=list)
    alerts: list[tuple[bytes, bytes]] = field(default_factory=list)
    acked: list[bytes] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of records and alerts."""
        return self.rows.nbytes + sum(len(key) + len(value) for key, value in self.alerts)

    def check(self, dtype: np.dtype[Any]) -> None:
        """Raises ValueError for a step that no store could apply whole. Its maker is at fault, not the store."""
        n = len(self.customers)
        names = {*self.customers, *self.forgotten}
        problems = [
            problem
            for wrong, problem in (
                (len(names) > CUSTOMERS_MAX, f"{len(names)} customers, at most {CUSTOMERS_MAX}"),
                (len(names) != n + len(self.forgotten), "a customer is named twice"),
                (_unwritable(names), "a customer id is no valid Unicode"),
                (self.rows.shape != (n,), f"rows of shape {self.rows.shape} for {n} customers"),
                (self.due.shape != (n,), f"due times of shape {self.due.shape} for {n} customers"),
                (self.rows.dtype != dtype, "rows of another layout than the store's"),
                (self.due.dtype != np.int64, f"due times are {self.due.dtype}, not int64"),
                (self.nbytes > COMMIT_BYTES_MAX, f"{self.nbytes} bytes, at most {COMMIT_BYTES_MAX}"),
                (n and (self.due.min() < 0 or self.due.max() > DUE_MS_MAX), "a due time is out of range"),
                (
                    self.expected and self.checkpoint.sequence <= self.expected.sequence,
                    "the sequence must grow",
                ),
                (
                    _CHECKPOINT.fullmatch(self.checkpoint.text()) is None,
                    f"a checkpoint that nobody could read: {self.checkpoint}",
                ),
            )
            if wrong
        ]
        if problems:
            raise ValueError(f"step of partition {self.partition}: {'; '.join(problems)}")


def _unwritable(names: Iterable[str]) -> bool:
    """JSON can smuggle in half a surrogate pair, which UTF-8 cannot write."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return True
    return False


class Store(Protocol):
    """State of all partitions of one input topic. Every method may raise StoreUnavailable: ask again later.

    Methods may be called concurrently; those on one partition by several owners, too.
    """

    async def start(self) -> None:
        """Raise StoreMisconfigured when the server is set up so that state would be lost."""

    async def checkpoint(self, partition: int) -> Checkpoint | None:
        """Where the partition is, None when it never began. Raises LayoutError for a checkpoint that cannot be read."""

    async def load(self, partition: int, customers: Sequence[str]) -> tuple[Rows, NDArray[np.bool_]]:
        """Records in the order asked: structured[n] (writable, the caller's own; zeros where absent), found bool[n].

        n ≤ CUSTOMERS_MAX, else ValueError. Raises LayoutError when a record has another length than the dtype.
        """

    async def apply(self, commit: Commit) -> None:
        """Move the partition from `commit.expected` to `commit.checkpoint`, with all that the step holds, or change
        nothing.

        Readers see the state before or the state after. Raises Fenced, having written nothing, when the stored
        checkpoint is not `expected`. Raises ValueError, having asked nothing, for a malformed step.

        StoreUnavailable means refused (nothing written) or *not known*: the answer was lost, and the step was
        applied, will be, or never is, but always whole. To apply the very same step again is safe: if the first
        attempt counted the second is Fenced, and the owner starts again from the stored checkpoint, as after any fence.
        """

    async def outbox(self, partition: int) -> dict[bytes, bytes]:
        """Alerts not yet acknowledged, id to bytes. Their order means nothing."""

    async def due(
        self, partition: int, until_ms: int, customers_max: int
    ) -> tuple[list[str], NDArray[np.int64]]:
        """The first `customers_max` customers with due < until_ms, by due time, then by their UTF-8 bytes."""

    async def find(self, customer: str) -> tuple[int, np.void] | None:
        """The partition that holds this customer, and the record; None when unknown everywhere."""

    def scan(self, partition: int) -> AsyncIterator[tuple[list[str], Rows]]:
        """All customers with their records, in bounded pages, in no order.

        Whoever is there from begin to end comes exactly once. Pages are not one snapshot: steps applied meanwhile
        show in later pages.
        """

    async def reset(self, partition: int) -> None:
        """Delete all of the partition, in bounded pages; an owner that still lives is fenced from the first one on."""

    async def close(self) -> None:
        """Give back connections; a closed store is not used again."""


def join_records(
    values: Sequence[bytes | None], dtype: np.dtype[Any], partition: int
) -> tuple[Rows, NDArray[np.bool_]]:
    """Stored records as one writable structured array, zeros for None, and which were there. Raises LayoutError."""
    absent = bytes(dtype.itemsize)
    found = np.fromiter((value is not None for value in values), np.bool_, len(values))
    present: Sequence[bytes] = [absent if value is None else value for value in values]
    if set(map(len, present)) - {dtype.itemsize}:
        foreign = sum(len(value) != dtype.itemsize for value in present)
        raise LayoutError(
            f"{foreign} of {len(values)} customers' records of partition {partition} do not have the"
            f" {dtype.itemsize} bytes of this layout",
            hint=REBUILD,
        )
    # A bytearray, because an array over bytes would be read-only.
    return np.frombuffer(bytearray().join(present), dtype), found


def check_count(customers: Sequence[str]) -> None:
    """Raises ValueError for more customers than one round trip may ask for."""
    if len(customers) > CUSTOMERS_MAX:
        raise ValueError(f"{len(customers)} customers asked for at once, at most {CUSTOMERS_MAX}")


def pages(names: Iterable[str]) -> Iterator[list[str]]:
    """`names` in lists of at most CUSTOMERS_MAX."""
    rest = iter(names)
    while page := list(islice(rest, CUSTOMERS_MAX)):
        yield page
