"""A batch of events as columns: the one type that leaves parsing and enters the fold."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TOMBSTONE = 255
"""The kind that forgets the customer; no spec can have so many kinds."""


@dataclass(frozen=True, slots=True)
class EventBatch:
    """n events of m customers, in offset order.

    customers: m distinct customer ids, in order of first appearance
    customer:  int32[n], index into `customers`
    kind:      uint8[n], index into the spec's kinds, or TOMBSTONE
    time:      int64[n], event time in ms UTC, >= 1
    value:     float64[n], NaN where missing; an attribute's number, category code or date in days since 1970
    event_id:  uint64[n], stable hash of the producer's event id, 0 where there is none
    position:  int64[n], Kafka offset or row number of the file
    """

    customers: list[str]
    customer: NDArray[np.int32]
    kind: NDArray[np.uint8]
    time: NDArray[np.int64]
    value: NDArray[np.float64]
    event_id: NDArray[np.uint64]
    position: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.kind)

    @classmethod
    def empty(cls) -> "EventBatch":
        """No events of nobody."""
        return cls(
            [],
            np.zeros(0, np.int32),
            np.zeros(0, np.uint8),
            np.zeros(0, np.int64),
            np.zeros(0, np.float64),
            np.zeros(0, np.uint64),
            np.zeros(0, np.int64),
        )
