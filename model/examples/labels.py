"""What happened next: the label of a point, from the events that followed it.

The question is one of *silence*: did any event of the target, by default any `activity`, follow in `(as_of, as_of +
H]`? What we sent, or an attribute that changed, is no life. An explicit leave is a different end: a row whose customer
left in so many words within the horizon, before the target came again, is neither churn by silence nor a stay. It is
marked CANCELLED and takes no part in training or evaluation; it is not counted as churn, since what leads to a
cancelled contract would then be learned as the way into silence, and not as a stay, since nobody stayed. A probability
therefore reads "falls silent, given that no leave is stated", and the leaves stay countable in the rows.

Where a target is churn by *coming* (`churn_when: present`: the leave itself, a downgrade) a row is churn when such an
event follows within the horizon; a leave that is none of the target's and comes first cancels it likewise.

Of several targets each has labels of its own, by the same rules. A target's label is one figure of the *wait* for its
next event: what the time to churn is learned from, at horizons other than the spec's.

A row is labelled only when its whole horizon lies before the end of what is known, whatever was seen by then: to
keep an early return and drop the silence beside it would teach that recent customers always return.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.spec import Spec

STAYED, CHURNED, UNKNOWN, CANCELLED = 0, 1, -1, 2
NEVER = np.iinfo(np.int64).max
"""Time of an event that does not come in the log."""


class Following:
    """Some events of a log by customer, searchable by time.

    Keys are `customer * times + rank of the time`, which orders by customer, then time, in one int64 that cannot
    overflow (customers x distinct times < 2^63), so one searchsorted answers for all rows at once.
    """

    def __init__(self, log: EventBatch, chosen: NDArray[np.bool_]) -> None:
        """chosen: bool[n] over the log's events."""
        self._times = np.unique(log.time[chosen])
        keys = self._key(log.customer[chosen], np.searchsorted(self._times, log.time[chosen]))
        self._keys = np.sort(keys)

    def after(self, customer: NDArray[np.int32], as_of: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[n], ms UTC: the customer's first such event strictly later than `as_of`, or NEVER."""
        if not len(self._keys):
            return np.full(len(customer), NEVER, np.int64)
        wanted = self._key(customer, np.searchsorted(self._times, as_of, side="right"))
        at = np.searchsorted(self._keys, wanted)
        found = self._keys[np.minimum(at, len(self._keys) - 1)]
        same = (at < len(self._keys)) & (found // self._step == customer)
        return np.where(same, self._times[found % self._step % len(self._times)], NEVER)

    @property
    def _step(self) -> int:
        return len(self._times) + 1

    def _key(self, customer: NDArray[np.int32], rank: NDArray[np.int64]) -> NDArray[np.int64]:
        return customer.astype(np.int64) * self._step + rank


class OfTarget(NamedTuple):
    """A target's events, the leaves that are none of them, and whether their absence is churn."""

    events: Following
    leaves: Following
    absence: bool


class Labeller:
    """Labels of a log whose events are known up to, not including, `known_until_ms`: of each target of the spec, by its
    index, the primary one first."""

    def __init__(self, spec: Spec, log: EventBatch, known_until_ms: int) -> None:
        self.horizon_ms, self.known_until_ms = spec.horizon_ms, known_until_ms
        terminal = np.array([*(kind.role == "terminal" for kind in spec.kinds), False])
        leaves = terminal[np.minimum(log.kind, len(spec.kinds))]
        self._targets = []
        for index in range(len(spec.target_names)):
            each = spec.only_target(index)
            ours = each.target_events.of(log.kind, log.values)
            found = OfTarget(Following(log, ours), Following(log, leaves & ~ours), each.churn_is_absence)
            self._targets.append(found)

    @property
    def target(self) -> Following:
        """The events of the primary target."""
        return self.events_of(0)

    def events_of(self, target: int) -> Following:
        """The events of a target, by its index."""
        return self._targets[target].events

    def known(self, as_of: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool[n]: does the whole horizon of the row lie in what is known?"""
        return as_of + self.horizon_ms < self.known_until_ms

    def label(
        self, customer: NDArray[np.int32], as_of: NDArray[np.int64], target: int = 0
    ) -> NDArray[np.int8]:
        """int8[n]: CHURNED 1, STAYED 0, UNKNOWN -1 (horizon not over), CANCELLED 2 (an explicit leave came first)."""
        end = as_of + self.horizon_ms
        event = self._targets[target].events.after(customer, as_of)
        leave = self._targets[target].leaves.after(customer, as_of)
        label = np.where((event <= end) != self._targets[target].absence, CHURNED, STAYED)
        label = np.where((leave <= end) & (leave < event), CANCELLED, label)
        return np.where(self.known(as_of), label, UNKNOWN).astype(np.int8)

    def labels(self, customer: NDArray[np.int32], as_of: NDArray[np.int64]) -> NDArray[np.int8]:
        """int8[n, targets]: the same of every target."""
        return np.stack([self.label(customer, as_of, t) for t in range(len(self._targets))], axis=1)

    def wait_ms(self, customer: NDArray[np.int32], as_of: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[n, targets], ms: from `as_of` to the target's next event in the log; NEVER where none comes, or an
        explicit leave comes first."""
        waits = []
        for events, leaves, _ in self._targets:
            event = events.after(customer, as_of)
            wanted = (event != NEVER) & (leaves.after(customer, as_of) >= event)
            waits.append(np.where(wanted, event - as_of, NEVER))
        return np.stack(waits, axis=1)

    def seen_ms(self, customer: NDArray[np.int32], as_of: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[n, targets], ms: for how long after `as_of` it is known whether the target came: to the end of what is
        known, or to an explicit leave."""
        ends = [leaves.after(customer, as_of) for _, leaves, _ in self._targets]
        return np.stack([np.minimum(end, self.known_until_ms) - as_of for end in ends], axis=1)
