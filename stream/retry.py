"""How long to wait before the next try: twice as long each time, up to a bound, and never as long as everybody else.

The wait is bounded however long the outage lasts, which may be for many thousands of tries; whoever must not wait for
ever says after how long to give up.
"""

import random
from collections.abc import Callable

FIRST_S, LONGEST_S = 0.1, 5.0
"""A fence or a blip is over in milliseconds; five seconds keep a long outage's reconnects from being a load."""
DOUBLINGS = 6
"""Enough to come from the one to the other. Without a bound a float ends at 2**1024: an hour of refusals."""


class Backoff:
    """`attempts` that failed in a row; `reset` when one succeeded.

    give_up_s: how long it may go on like this, by the clock `monotonic_s`; None: for ever.
    """

    def __init__(
        self, give_up_s: float | None = None, monotonic_s: Callable[[], float] | None = None
    ) -> None:
        if (give_up_s is None) != (monotonic_s is None):
            raise ValueError("to give up after a while takes a clock")
        self.attempts = 0
        self._give_up_s, self._monotonic_s, self._since_s = give_up_s, monotonic_s, 0.0

    def next_s(self, error: Exception | None = None) -> float:
        """Count one more; seconds to wait for it, in (0, LONGEST_S]. Raises `error` when it is time to give up."""
        if self._monotonic_s is not None and self._give_up_s is not None:
            now_s = self._monotonic_s()
            if self.attempts == 0:
                self._since_s = now_s
            if error is not None and now_s - self._since_s > self._give_up_s:
                raise error
        longest_s = min(FIRST_S * 2.0 ** min(self.attempts, DOUBLINGS), LONGEST_S)
        self.attempts += 1
        return random.uniform(0.5, 1.0) * longest_s

    def reset(self) -> None:
        """There was a success."""
        self.attempts = 0
