"""The log of some customers: the unit that an engine works on.

    log ──hash of the customer's id──▶ part 0, part 1, …       no customer is in two of them

A part knows where its customers and events stand in the larger log, so what is found in it can be put back there.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.hashing import hash_texts
from ebbtide.featurestore.record.replay import reached_ms


@dataclass(frozen=True, slots=True)
class Part:
    """The log of some customers of a larger one, or of all.

    log: its events, its customers numbered anew     customers: int32[m], their index in the larger log
    reached: int64[n], `replay.reached_ms` of the larger log at these events, so that a part stops where the whole would
    """

    log: EventBatch
    customers: NDArray[np.int32]
    reached: NDArray[np.int64]

    @classmethod
    def whole(cls, log: EventBatch) -> "Part":
        """All customers."""
        return cls(log, np.arange(len(log.customers), dtype=np.int32), reached_ms(log))


def parts_of(log: EventBatch, count: int) -> list[Part]:
    """The log in `count` parts by a hash of the customers' ids."""
    part_of = (hash_texts(log.customers) % np.uint64(count)).astype(np.int64)
    reached = reached_ms(log)
    return [_part(log, np.flatnonzero(part_of == number), reached) for number in range(count)]


def _part(log: EventBatch, customers: NDArray[np.int64], reached: NDArray[np.int64]) -> Part:
    local = np.full(len(log.customers), -1, np.int32)
    local[customers] = np.arange(len(customers), dtype=np.int32)
    keep = local[log.customer] >= 0
    names = [log.customers[i] for i in customers.tolist()]
    events = replace(log.take(keep), customers=names, customer=local[log.customer[keep]])
    return Part(events, customers.astype(np.int32), reached[keep])
