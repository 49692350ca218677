"""How many of the last so many were bad: a share over a sliding window, for whoever has to tell a mishap from a flood.

It counts and refuses to judge. The invariant: it covers the last `length` counted at least, and at most one addition
more; what it holds is an entry an addition, none of them empty, so at most `length` and one.
"""

from collections import deque


class SlidingShare:
    """`of` counted lately, `bad` of them."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._added: deque[tuple[int, int]] = deque()
        self.of = self.bad = 0

    def add(self, of: int, bad: int) -> None:
        """Count `of` >= 1 more, `bad` of which are bad, and forget what is too long ago."""
        self._added.append((of, bad))
        self.of += of
        self.bad += bad
        while self.of - self._added[0][0] >= self._length:
            gone, gone_bad = self._added.popleft()
            self.of -= gone
            self.bad -= gone_bad

    def __len__(self) -> int:
        return len(self._added)
