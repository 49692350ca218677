"""What a test grants a busy machine: time for what has to come, and a way to know that its core was taken away."""

import threading
import time
from typing import Self

PATIENCE_S = 120.0
"""No claim about how fast a thing is: only the end of a run in which it never comes. A machine three times slower than
ours, with neighbours on each core, needs no more. A bound that *is* the claim stands in its test."""
STARVED_S = 0.1
_LOOK_S = 0.01


class Starved:
    """`longest_s`: the longest that a thread of this process, which wants to run every 10 ms of the block, was late.
    Beyond STARVED_S a latency that was measured in the block is the neighbours'."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="starved", daemon=True)

    def __bool__(self) -> bool:
        return self.longest_s > STARVED_S

    def _look(self) -> None:
        before_s = time.monotonic()
        while not self._over.wait(_LOOK_S):
            now_s = time.monotonic()
            self.longest_s = max(self.longest_s, now_s - before_s - _LOOK_S)
            before_s = now_s

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
