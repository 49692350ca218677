"""How far a long piece of work has come: named stages with weights, and the seconds that each took.

It reads no clock (one is given, or none) and draws nothing: whoever shows progress is told `(done, total, text)`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[float, float, str], None]
"""progress(done, total, text): called now and then; `done` never decreases and ends at `total`, which is 100."""
TOTAL = 100.0


def nothing(_done: float, _total: float, _text: str) -> None:
    """Progress that nobody watches."""


class Stages:
    """Stages one after the other; what one leaves of its weight is made up when it ends."""

    def __init__(self, progress: Progress = nothing, clock: Callable[[], float] | None = None) -> None:
        """`clock`: seconds, from whenever; without one nobody knows how long a stage took."""
        self._progress, self._clock = progress, clock
        self._done, self._scale, self._name = 0.0, 1.0, ""
        self.seconds: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Weight that no stage has used yet: what the last one is worth."""
        return TOTAL - self._done

    @contextmanager
    def among(self, parts: int, name: str = "") -> Iterator[None]:
        """What follows is one of so many parts of the work, each worth so many times less; `name` tells them apart."""
        self._scale, self._name = 1.0 / parts, f"{name}: " if name else ""
        yield
        self._scale, self._name = 1.0, ""

    @contextmanager
    def of(self, text: str, weight: float) -> Iterator[Callable[[float], None]]:
        """A stage worth `weight` of TOTAL; yields what takes its share done, 0 to 1."""
        text, weight = f"{self._name}{text}", weight * self._scale
        start, began = self._done, self._clock() if self._clock else 0.0

        def share(part: float) -> None:
            self._done = max(self._done, min(start + weight * min(max(part, 0.0), 1.0), TOTAL))
            self._progress(self._done, TOTAL, text)

        share(0.0)
        yield share
        share(1.0)
        if self._clock:
            self.seconds[text] = self._clock() - began
