"""One move of one partition, whole or not at all: what a store is asked to apply, and the records it gives back."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.record.layout import Rows
from ebbtide.featurestore.store.checkpoint import REBUILD, Checkpoint

# At 12 to 30 µs a key a script then holds the server for 12 to 30 ms at most; pages of scan and reset are as long.
CUSTOMERS_MAX = 1_024
# Records of 1 KiB make 1 MiB of this; the rest is the outbox. Far below the 512 MiB that a server takes at once.
COMMIT_BYTES_MAX = 32 * 1024 * 1024
# A sorted set keeps its scores as doubles: integers up to here are exact. In milliseconds, the year 287,396.
DUE_MS_MAX = 2**53
DUE_AT_ALL_MS = 2 * DUE_MS_MAX
"""Before this everybody is due; the next exact one."""
AT_RISK_MAX = 10_000
"""Customers at risk that a partition lists: about 1.5 MB of Redis. Who asks reads from the top."""


LoadRequest = tuple[int, Sequence[str]]
"""A partition, and customers of it, at most CUSTOMERS_MAX."""
Loaded = tuple[Rows, NDArray[np.bool_]]
"""Their records in the order asked, structured[n] (writable, zeros where absent), and which were found, bool[n]."""

HourCounts = tuple[int, ...]
"""Records of a partition's log by hour, oldest first, the last one being of the hour before `Checkpoint.hour`."""

DueRequest = tuple[int, int, int]
"""A partition, ms UTC before which somebody is due, and how many customers at most."""
FirstRequest = tuple[int, str, int]
"""A partition, a first part of composite customers as it is written, and how many of these at most."""
DueCustomers = tuple[list[str], NDArray[np.int64]]
"""Customers, and when each is due, int64[n], ms UTC."""


class AtRisk(NamedTuple):
    """Customers at risk, highest p first (ties in no order), of all partitions.

    entries: (p float64 in [0, 1], partition, customer). listed: how many there are with such a p at all.
    floor: where a partition's list was full, the highest p that it turned away, else 0: with a p from there on
    everybody is listed.
    """

    entries: list[tuple[float, int, str]]
    listed: int
    floor: float


class OutboxEntry(NamedTuple):
    """A message that is decided and not yet acknowledged by Kafka, with all that sending it again takes.

    id: unique in the partition; the same id replaces. sequence: of the commit that put it there. key, value: of the
    Kafka record.
    """

    id: bytes
    sequence: int
    key: bytes
    value: bytes

    @property
    def nbytes(self) -> int:
        """Bytes of its texts."""
        return len(self.id) + len(self.key) + len(self.value)


@dataclass(frozen=True, slots=True)
class Commit:
    """One move of one partition. `customers`, `rows` and `due` are columns of the same length, n ≤ CUSTOMERS_MAX.

    `rows`: structured[n], whole records of the store's dtype. `due`: int64[n], ms UTC, 0 ≤ due ≤ DUE_MS_MAX, when
    each customer is next looked at; every record has one. `forgotten`: customers of whom nothing may remain.
    `outbox`: entries to put into the outbox, in the order in which they are to be sent, all of this commit's sequence.
    `acked`: ids to take out of it, after these entries went in. `at_risk`: float32[n], p in [0, 1] of who is to be
    listed as at risk from now on, NaN of who is not; None: nobody of them is. `hours`: counts of the hours that have
    ended, to stand in the place of those that are there; None: no hour ended.
    """

    partition: int
    expected: Checkpoint | None
    checkpoint: Checkpoint
    customers: list[str]
    rows: Rows
    due: NDArray[np.int64]
    forgotten: list[str] = field(default_factory=list)
    outbox: list[OutboxEntry] = field(default_factory=list)
    acked: list[bytes] = field(default_factory=list)
    at_risk: NDArray[np.float32] | None = None
    hours: HourCounts | None = None

    @property
    def risks(self) -> list[tuple[float, str]]:
        """(p, customer) of who is to be listed."""
        if self.at_risk is None:
            return []
        chosen = np.flatnonzero(~np.isnan(self.at_risk))
        return [
            (p, self.customers[i])
            for p, i in zip(self.at_risk[chosen].tolist(), chosen.tolist(), strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of records and outbox entries."""
        return self.rows.nbytes + sum(entry.nbytes for entry in self.outbox)

    def check(self, dtype: np.dtype[Any]) -> None:
        """Raises ValueError for a commit that no store could apply whole. Its maker is at fault, not the store."""
        problems = list(self._problems(dtype))
        if problems:
            raise ValueError(f"commit of partition {self.partition}: {'; '.join(problems)}")

    def _problems(self, dtype: np.dtype[Any]) -> Iterator[str]:
        n, names = len(self.customers), {*self.customers, *self.forgotten}
        if len(names) > CUSTOMERS_MAX:
            yield f"{len(names)} customers, at most {CUSTOMERS_MAX}"
        if len(names) != n + len(self.forgotten):
            yield "a customer is named twice"
        if _unwritable(names):
            yield "a customer id is no valid Unicode"
        if self.rows.shape != (n,):
            yield f"rows of shape {self.rows.shape} for {n} customers"
        if self.due.shape != (n,):
            yield f"due times of shape {self.due.shape} for {n} customers"
        if self.rows.dtype != dtype:
            yield "rows of another layout than the store's"
        if self.due.dtype != np.int64:
            yield f"due times are {self.due.dtype}, not int64"
        if self.nbytes > COMMIT_BYTES_MAX:
            yield f"{self.nbytes} bytes, at most {COMMIT_BYTES_MAX}"
        if n and (self.due.min() < 0 or self.due.max() > DUE_MS_MAX):
            yield "a due time is out of range"
        if self.at_risk is not None and self.at_risk.shape != (n,):
            yield f"risks of shape {self.at_risk.shape} for {n} customers"
        elif self.at_risk is not None and bool(((self.at_risk < 0) | (self.at_risk > 1)).any()):
            yield "a risk is no probability"
        if self.hours is not None and min(self.hours, default=-1) < 0:
            yield "hours that are no counts"
        if self.expected and self.checkpoint.sequence <= self.expected.sequence:
            yield "the sequence must grow"
        if any(entry.sequence != self.checkpoint.sequence for entry in self.outbox):
            yield "an outbox entry of another sequence"
        if not self.checkpoint.is_readable:
            yield f"a checkpoint that nobody could read: {self.checkpoint}"


def _unwritable(names: Iterable[str]) -> bool:
    """JSON can smuggle in half a surrogate pair, which UTF-8 cannot write."""
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        return True
    return False


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
