"""Who of a partition is due next: a page of the store's answer, and the pieces that are taken from it.

    store  ─ask─▶ page: (due, customer) in order ─take─▶ Due: those up to a position ─▶ a turn ─▶ the checkpoint
                                ▲ armed: what commits wrote meanwhile

The position says that nothing of the partition is due at or before it. So it may not pass a customer whom the page does
not know: one beyond its end, or whom a commit has armed since it was asked for. An event that comes late, behind the
position, has its customer's silences taken up to it in its own turn (`stream/pipeline.py`); so the state of a partition
is a function of its log up to an offset and its timers up to a position, and can be made again.
"""

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.store.checkpoint import TimerCursor
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX

NEVER = 2**62
PAGE_MIN = 64
"""Asked for when few are due; doubled while pages are used up, to CUSTOMERS_MAX."""


@dataclass(frozen=True, slots=True)
class Due:
    """Customers to whom time brings something at or before `position`: all of the partition, when they are taken."""

    customers: list[str]
    position: TimerCursor


def elapsed_until(customers: list[str], position: TimerCursor) -> NDArray[np.int64]:
    """int64[n], ms UTC: before when a silence of each customer lies at or before the position."""
    ms, last = position
    until = np.full(len(customers), ms, np.int64)
    if last:
        until += np.fromiter((customer <= last for customer in customers), np.bool_, len(customers))
    return until


@dataclass(slots=True, eq=False)
class DuePage:
    """The next customers who are due, as the store last said. `asked`: its answer is under way."""

    asked: bool = False
    size: int = PAGE_MIN
    _entries: list[TimerCursor] = field(default_factory=list)
    _whole: bool = False
    """Nobody else of the partition was due when it was asked for, ever."""
    _armed_ms: int = NEVER
    """The earliest due time that was written since the page was asked for."""

    @property
    def next_ms(self) -> int:
        """Nothing is due before, ms UTC; 0 when that is not known."""
        first = self._entries[0][0] if self._entries else NEVER if self._whole else 0
        return min(first, self._armed_ms)

    def ask(self) -> int:
        """How many customers to ask the store for; the answer comes to `answer`, or `unanswered`."""
        self.asked, self._armed_ms = True, NEVER
        return self.size

    def answer(self, customers: list[str], due: NDArray[np.int64]) -> None:
        """The first `size` customers of all, in the store's order."""
        self.asked = False
        self._entries = list(zip(due.tolist(), customers, strict=True))
        self._whole = len(customers) < self.size

    def unanswered(self) -> None:
        """There will be no answer. Whom commits armed before it was asked for is forgotten with the asking, so nothing
        is known any more."""
        self.asked, self._entries, self._whole = False, [], False

    def arm(self, due: NDArray[np.int64]) -> None:
        """Due times that a commit of the partition wrote, ms UTC."""
        if len(due):
            self._armed_ms = min(self._armed_ms, int(due.min()))

    def ready(self, until: TimerCursor, to_the_end: bool = False) -> bool:
        """Somebody of the page can be taken; or nobody has to be, and `to_the_end` wants that said."""
        n, known = self._taken(until)
        return not self.asked and (n > 0 or (to_the_end and known and self._limit(until) == until))

    def asks(self, until: TimerCursor) -> bool:
        """Somebody may be due at or before `until` whom the page does not know."""
        return not self.asked and (self.next_ms, "") < until and not self._taken(until)[0]

    def take(self, until: TimerCursor, customers_max: int) -> Due:
        """Those due at or before `until`, at most `customers_max` >= 1; only when `ready`."""
        n, known = self._taken(until)
        if n > customers_max:
            n, known = customers_max, False
        taken, self._entries = self._entries[:n], self._entries[n:]
        if self._whole:
            self.size = max(PAGE_MIN, self.size // 2)
        elif not self._entries:
            self.size = min(2 * self.size, CUSTOMERS_MAX)
        return Due([customer for _, customer in taken], self._limit(until) if known else taken[-1])

    def _limit(self, until: TimerCursor) -> TimerCursor:
        return min(until, (self._armed_ms, ""))

    def _taken(self, until: TimerCursor) -> tuple[int, bool]:
        """How many of the page are due up to `until`, and whether they are all there are."""
        n = bisect_right(self._entries, self._limit(until))
        return n, self._whole or n < len(self._entries)
