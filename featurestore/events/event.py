"""A batch of events as columns: the one type that leaves parsing and enters the fold."""

from dataclasses import dataclass, replace
from typing import Any

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
    value:     float64[n], NaN where missing; encoded as `events/attributes.py` says: a category as its code, and so on
    event_id:  uint64[n], stable hash of the producer's event id, 0 where there is none
    position:  int64[n], Kafka offset or row number of the file
    more:      float64[n, C - 1], further values of the kinds that have several, NaN where missing; None: no kind has
    """

    customers: list[str]
    customer: NDArray[np.int32]
    kind: NDArray[np.uint8]
    time: NDArray[np.int64]
    value: NDArray[np.float64]
    event_id: NDArray[np.uint64]
    position: NDArray[np.int64]
    more: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def values(self) -> NDArray[np.float64]:
        """float64[n, C]: every value, the columns as in `Kind.readings`."""
        first = self.value[:, None]
        return first if self.more is None else np.concatenate([first, self.more], axis=1)

    def take(self, chosen: NDArray[Any] | slice) -> "EventBatch":
        """Some of the events, by mask, indices or slice; the customers and their indices stay as they are."""
        return replace(
            self,
            customer=self.customer[chosen],
            kind=self.kind[chosen],
            time=self.time[chosen],
            value=self.value[chosen],
            event_id=self.event_id[chosen],
            position=self.position[chosen],
            more=None if self.more is None else self.more[chosen],
        )

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
