"""What an engine is: who runs a function on each of several items, wherever it runs.

    engine.map(work, items) ─▶ [work(item) for item in items], in their order

`work` is a function of a module (or a `partial` of one) that needs nothing but its item: it travels by its name, items
and answers as pickles between processes of one release. Engines differ in who calls it, never in what comes of it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from ebbtide.featurestore.errors import EbbtideError

T = TypeVar("T")
R = TypeVar("R")

Progress = Callable[[float], None]
"""Called with the share that is done, 0 to 1, ascending."""


class JobFailed(EbbtideError):
    """Somebody who works for us ended without an answer, or cannot begin."""


class Engine(Protocol):
    """Values, without a state: what they start for a `map` has ended when it returns."""

    def parts(self, events: int) -> int:
        """In how many parts, >= 1, a log of so many events is worked on."""

    def map(self, work: Callable[[T], R], items: Sequence[T], progress: Progress = lambda _: None) -> list[R]:
        """See above. Raises what `work` raises if it is an EbbtideError, else JobFailed with its cause."""


class Outcome(NamedTuple):
    """What came of an item where it was worked on: its answer, or the error that is to be raised where it was asked."""

    done: bool
    answer: Any

    def settled(self, hint: str) -> Any:
        """The answer. Raises as `Engine.map` does, with `hint` for what nobody foresaw."""
        if self.done:
            return self.answer
        if isinstance(self.answer, EbbtideError):
            raise self.answer
        words = f"{type(self.answer).__name__}: {self.answer}"
        raise JobFailed(f"whoever worked on a part failed: {words}", hint=hint) from self.answer


def attempt(work: Callable[[T], R], item: T) -> Outcome:
    """What a worker does with an item."""
    try:
        return Outcome(True, work(item))
    except Exception as error:  # noqa: BLE001 - carried to the process that waits, and raised there
        return Outcome(False, error)
