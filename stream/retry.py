"""How long to wait before the next try: twice as long each time, up to a bound, and never as long as everybody else.

It counts troubles in a row and refuses to know what they are, and who waits. The invariant: the wait is bounded however
long the outage lasts, which may be for many thousands of tries.
"""

import random

FIRST_S, LONGEST_S = 0.1, 5.0
"""A fence or a blip is over in milliseconds; five seconds keep a long outage's reconnects from being a load."""
DOUBLINGS = 6
"""Enough to come from the one to the other. Without a bound a float ends at 2**1024: an hour of refusals."""


class Backoff:
    """`troubles` in a row; `over` when there was a success."""

    def __init__(self) -> None:
        self.troubles = 0

    def next_s(self) -> float:
        """Count one more; seconds to wait for it, in (0, LONGEST_S]."""
        longest_s = min(FIRST_S * 2.0 ** min(self.troubles, DOUBLINGS), LONGEST_S)
        self.troubles += 1
        return random.uniform(0.5, 1.0) * longest_s

    def over(self) -> None:
        self.troubles = 0
