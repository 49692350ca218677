"""Hot records in memory: the load that need not be made.

This module knows which records this process last wrote, and as of which checkpoint. It refuses to know whether that
checkpoint is still the stored one: it cannot, and need not, because every step is fenced. A worker that folds on top of
stale records expects a stale checkpoint, is told `Fenced`, and nothing is written: a stale cache can't win.

The invariant that makes this true: all cached records of a partition are as of one checkpoint, and are only given out
for that checkpoint. A partition that was given away and came back at another checkpoint finds nothing here.

One structured array for all partitions, so that the bound is one number whatever this worker owns:

    partition → (checkpoint, customer → slot)        found by name, in Python
    records[slot], used[slot], ...             read, written and aged by column, in NumPy

`used` is the round in which a slot was last touched. When no slot is free, a sixteenth of them, the longest untouched,
is let go in one sweep: the sweep's cost is shared by everyone who moves in after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Rows
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX, Commit
from ebbtide.featurestore.store.protocol import Store

SWEEP_SHARE = 16
"""A sixteenth of the memory stands empty at worst, and a newcomer pays for 16 slots looked at."""
_FREE = np.iinfo(np.int64).max  # the round of a free slot: never the oldest


@dataclass(slots=True)
class _Partition:
    checkpoint: Checkpoint
    slots: dict[str, int] = field(default_factory=dict)


class Cache:
    """At most `bytes_max` of records (their names and the bookkeeping add about 250 bytes each); 0 turns it off.

    Memory is taken as it is filled. Raises ValueError when less than one full step would fit.
    """

    def __init__(self, dtype: np.dtype[Any], bytes_max: int) -> None:
        self.dtype = dtype
        self.rows_max = bytes_max // dtype.itemsize
        if 0 < self.rows_max < CUSTOMERS_MAX:
            least = CUSTOMERS_MAX * dtype.itemsize
            raise ValueError(f"a cache of {bytes_max} bytes cannot hold a step: use 0 or at least {least}")
        self._partitions: dict[int, _Partition] = {}
        # As plain bytes, because NumPy copies structured records field by field.
        self._records = np.zeros(self.rows_max, f"V{dtype.itemsize}")
        self._used = np.full(self.rows_max, _FREE)
        self._partition_of = np.zeros(self.rows_max, np.int32)
        self._customer_of = np.empty(self.rows_max, object)
        self._free = np.arange(self.rows_max)[::-1].copy()  # a stack: the first _free_count entries
        self._free_count = self.rows_max
        self._round = 0

    def __len__(self) -> int:
        return self.rows_max - self._free_count

    def get(
        self, partition: int, checkpoint: Checkpoint | None, customers: Sequence[str]
    ) -> tuple[Rows, NDArray[np.bool_]]:
        """What is known of `customers` as of `checkpoint`: structured[n] (the caller's own, zeros where absent),
        found[n]."""
        known = self._partitions.get(partition)
        if known is None or known.checkpoint != checkpoint:
            return np.zeros(len(customers), self.dtype), np.zeros(len(customers), np.bool_)
        slots = self._slots_of(known, customers)
        found = slots >= 0
        if found.all():
            rows = self._records[slots]
        else:
            slots = slots[found]
            rows = np.zeros(len(customers), self._records.dtype)
            rows[found] = self._records[slots]
        self._round += 1
        self._used[slots] = self._round
        return rows.view(self.dtype), found

    def put(self, commit: Commit) -> None:
        """Remember a step that was applied: its rows, as of its checkpoint; the forgotten are forgotten here, too.

        What was known of the partition stays, unless it was as of another checkpoint than the one the step began from.
        """
        if self.rows_max == 0:
            return
        known = self._partitions.get(commit.partition)
        if known is None or known.checkpoint != commit.expected:
            self.clear(commit.partition)
            known = self._partitions[commit.partition] = _Partition(commit.checkpoint)
        known.checkpoint = commit.checkpoint
        if commit.forgotten:
            self._let_go([known.slots.pop(name) for name in commit.forgotten if name in known.slots])
        slots = self._slots_of(known, commit.customers)
        self._round += 1
        self._used[slots[slots >= 0]] = self._round  # before the sweep, so that it spares them
        fresh = np.flatnonzero(slots < 0)
        if len(fresh):
            slots[fresh] = self._move_in(commit.partition, [commit.customers[i] for i in fresh.tolist()])
        self._records[slots] = np.ascontiguousarray(commit.rows).view(self._records.dtype)

    def clear(self, partition: int) -> None:
        """Forget a partition: it was fenced or given away."""
        known = self._partitions.pop(partition, None)
        if known is not None:
            self._let_go(list(known.slots.values()))

    def _slots_of(self, known: _Partition, customers: Sequence[str]) -> NDArray[np.int64]:
        return np.fromiter(map(known.slots.get, customers, repeat(-1)), np.int64, len(customers))

    def _move_in(self, partition: int, customers: list[str]) -> NDArray[np.int64]:
        n = len(customers)
        if n > self._free_count:
            self._sweep(max(n - self._free_count, self.rows_max // SWEEP_SHARE))
        self._free_count -= n
        slots = self._free[self._free_count : self._free_count + n].copy()
        self._used[slots] = self._round
        self._partition_of[slots] = partition
        self._customer_of[slots] = customers
        self._partitions[partition].slots.update(zip(customers, slots.tolist(), strict=True))
        return slots

    def _sweep(self, n: int) -> None:
        # Those of this round sort last but for the free ones, and a step never fills the cache: they are spared.
        oldest = np.argpartition(self._used, n - 1)[:n]
        oldest = oldest[self._used[oldest] < self._round]
        for partition, customer in zip(
            self._partition_of[oldest].tolist(), self._customer_of[oldest].tolist(), strict=True
        ):
            del self._partitions[partition].slots[customer]
        self._let_go(oldest)

    def _let_go(self, slots: Sequence[int] | NDArray[np.intp]) -> None:
        n = len(slots)
        self._free[self._free_count : self._free_count + n] = slots
        self._free_count += n
        self._used[slots] = _FREE
        self._customer_of[slots] = None
        self._records[slots] = np.zeros(
            (), self._records.dtype
        )  # what was forgotten is gone from memory, too


async def load_through(
    cache: Cache, store: Store, partition: int, checkpoint: Checkpoint | None, customers: Sequence[str]
) -> tuple[Rows, NDArray[np.bool_]]:
    """`store.load`, asking only for what the cache does not know as of `checkpoint`; the owner's last seen
    checkpoint."""
    rows, found = cache.get(partition, checkpoint, customers)
    if not found.all():
        missing = np.flatnonzero(~found)
        rows[missing], found[missing] = await store.load(partition, [customers[i] for i in missing.tolist()])
    return rows, found
