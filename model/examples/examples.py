"""Examples: what was known of a customer at a point, and what happened next, as columns.

It knows how rows are held and weighed; where they come from is `dataset.py`'s, how they are split `slices.py`'s, how
they are handed to somebody else's tools `rows_file.py`'s. Features are in natural units, as the graph computes them.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.replay import SNAPSHOT
from ebbtide.model.examples.labels import CANCELLED, CHURNED

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of n rows, by target of the spec.

    labels: int8[n, targets], as `model.examples.labels`
    wait_ms: int64[n, targets], to the target's next event, NEVER without one
    seen_ms: int64[n, targets], for how long after `as_of` that is known
    """

    labels: NDArray[np.int8]
    wait_ms: NDArray[np.int64]
    seen_ms: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> "Outcomes":
        """Those of a mask or of indices."""
        return Outcomes(self.labels[rows], self.wait_ms[rows], self.seen_ms[rows])


@dataclass(frozen=True, slots=True)
class Examples:
    """n examples, seen by one target of the spec: `target` is its index, `of_target` gives them as seen by another.

    customer: int32[n], index into the log's customers     as_of: int64[n], ms UTC
    cause:    uint8[n], EVENT, SILENCE or SNAPSHOT         label: int8[n], of the target, as `model.examples.labels`
    inputs:   the feature layer's outputs by name, [n, ...]
    outcomes: of all targets; None where nobody asks for more than the label
    person:   int32[n], whose row it is where customers are composite; None where each customer is a person
    """

    customer: NDArray[np.int32]
    as_of: NDArray[np.int64]
    cause: NDArray[np.uint8]
    label: NDArray[np.int8]
    inputs: dict[str, NDArray[Any]]
    outcomes: Outcomes | None = None
    target: int = 0
    person: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.as_of)

    @property
    def features(self) -> NDArray[np.float32]:
        """float32[n, F], natural units, in the order of `featurestore.record.features.features`."""
        features: NDArray[np.float32] = self.inputs["features"]
        return features

    @property
    def silence_days(self) -> NDArray[np.float32]:
        """float32[n]: days since the last event of the target, by default activity: the first feature."""
        days: NDArray[np.float32] = self.features[:, 0]
        return days

    @property
    def silence_s(self) -> NDArray[np.float64]:
        """float64[n]: the same in seconds."""
        seconds: NDArray[np.float64] = self.silence_days.astype(np.float64) * DAY_S
        return seconds

    @property
    def snapshot(self) -> NDArray[np.bool_]:
        """bool[n]: rows of a stated date rather than of a decision."""
        rows: NDArray[np.bool_] = self.cause == SNAPSHOT
        return rows

    @property
    def churned(self) -> NDArray[np.float32]:
        """float32[n], 1 or 0: the target. Only for rows that are `usable`."""
        target: NDArray[np.float32] = (self.label == CHURNED).astype(np.float32)
        return target

    @property
    def people(self) -> NDArray[np.int32]:
        """int32[n]: rows of one number are one person's, and no two of them independent."""
        return self.customer if self.person is None else self.person

    @property
    def wait_ms(self) -> NDArray[np.int64]:
        """int64[n], ms: to the next event of the target, `labels.NEVER` without one. Only with `outcomes`."""
        assert self.outcomes is not None
        return self.outcomes.wait_ms[:, self.target]

    @property
    def seen_ms(self) -> NDArray[np.int64]:
        """int64[n], ms: for how long after `as_of` it is known whether that event came. Only with `outcomes`."""
        assert self.outcomes is not None
        return self.outcomes.seen_ms[:, self.target]

    def of_target(self, target: int) -> "Examples":
        """The same rows with the labels of another target, by its index."""
        if target == self.target:
            return self
        assert self.outcomes is not None
        return replace(self, label=self.outcomes.labels[:, target], target=target)

    def take(self, rows: NDArray[Any]) -> "Examples":
        """The examples of a mask or of indices."""
        return replace(
            self,
            customer=self.customer[rows],
            as_of=self.as_of[rows],
            cause=self.cause[rows],
            label=self.label[rows],
            inputs={name: column[rows] for name, column in self.inputs.items()},
            outcomes=self.outcomes and self.outcomes.take(rows),
            person=None if self.person is None else self.person[rows],
        )

    def usable(self) -> "Examples":
        """Without the rows whose customer left in so many words (see `labels.py`)."""
        return self.take(self.label != CANCELLED)

    def within(self, start_ms: int, end_ms: int) -> "Examples":
        """Those as of [start_ms, end_ms)."""
        return self.take((self.as_of >= start_ms) & (self.as_of < end_ms))

    def thinned(self, rows_max: int, a_customer_max: int, seed: int = 0) -> "Examples":
        """At most `rows_max`, and of no customer more than `a_customer_max` decisions and as many snapshots, drawn by
        `seed`, in the same order. Dozens of rows of one customer cost as much as those of dozens, and teach less."""
        return self.take(thinned(self.customer, self.snapshot, rows_max, a_customer_max, seed))

    def weights(self, damped: bool = True) -> NDArray[np.float32]:
        """float32[n], mean 1; both sorts (decisions, snapshots) have the same total. To learn from, `damped`: a
        customer's many rows say much the same, so within each sort their k-th row weighs 1/sqrt(k), and all n of them
        about 2 sqrt(n). It is the k-th in time, not one of n: how many rows follow says whether they stayed, and rows
        that weigh by it teach a probability that is too high. To judge and to calibrate by, each row of a sort alike:
        it is at any of them that a service decides."""
        return weighed(self.customer, self.as_of, self.snapshot, damped)


def thinned(
    customer: NDArray[np.int32], snapshot: NDArray[np.bool_], rows_max: int, a_customer_max: int, seed: int
) -> NDArray[np.int64]:
    """Indices of the rows that `Examples.thinned` keeps, in their order."""
    n = len(customer)
    drawn = np.random.default_rng(seed).permutation(n)
    group = customer[drawn].astype(np.int64) * 2 + snapshot[drawn]
    order = np.argsort(group, kind="stable")
    begins = np.flatnonzero(np.diff(group[order], prepend=-1) != 0)
    rank = np.arange(n) - np.repeat(begins, np.diff([*begins, n]))
    kept = np.zeros(n, np.bool_)
    kept[order] = rank < a_customer_max
    return np.sort(drawn[kept][:rows_max])


def weighed(
    customer: NDArray[np.int32], as_of: NDArray[np.int64], snapshot: NDArray[np.bool_], damped: bool = True
) -> NDArray[np.float32]:
    """float32[n]: what `Examples.weights` gives rows of these customers, times and sorts."""
    n = len(customer)
    weight = np.zeros(n, np.float64)
    for sort in (snapshot, ~snapshot):
        if sort.any():
            k = so_far(customer[sort], as_of[sort]) if damped else np.ones(sort.sum())
            weight[sort] = k**-0.5 / (k**-0.5).sum()
    scaled: NDArray[np.float32] = (weight * (n / max(weight.sum(), 1e-12))).astype(np.float32)
    return scaled


def so_far(customer: NDArray[np.integer[Any]], as_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64[n], from 1: the how-manieth row of its customer each is, in time."""
    order = np.lexsort((as_of, customer))
    begins = np.flatnonzero(np.diff(customer[order], prepend=-1) != 0)
    number = np.empty(len(order), np.float64)
    number[order] = np.arange(1, len(order) + 1) - np.repeat(begins, np.diff([*begins, len(order)]))
    return number
