"""Engines that fail, or that are nearer than real ones."""

import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from ebbtide.featurestore.parts.engine import Outcome, Progress, R, T, attempt
from ebbtide.featurestore.parts.spark import Spark


class Pickled:
    """Works here, on what came through a pickle, as any other process would."""

    def __init__(self, count: int) -> None:
        self.count, self.sizes = count, list[int]()

    def parts(self, events: int) -> int:
        return self.count

    def map(self, work: Callable[[T], R], items: Sequence[T], progress: Progress = lambda _: None) -> list[R]:
        self.sizes.append(len(items))
        found = []
        for item in items:
            there: tuple[Any, Any] = pickle.loads(pickle.dumps((work, item)))
            outcome: Outcome = pickle.loads(pickle.dumps(attempt(*there)))
            found.append(outcome.settled("it failed here"))
        return found


def die(_item: object) -> None:
    """What the kernel does to a process that takes too much."""
    os._exit(9)


class Dying(Spark):
    """Its executors end in the middle of their first part."""

    def map(
        self, work: Callable[[T], Any], items: Sequence[T], progress: Progress = lambda _: None
    ) -> list[Any]:
        return super().map(die, items, progress)
