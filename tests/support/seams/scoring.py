"""A second, real implementation of the `Model` protocol: arithmetic on the record, so that a test knows every score."""

import time
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import parse_spec
from ebbtide.model.explaining.explained import Explained
from ebbtide.stream.decision.episodes import EpisodePolicy

SPEC = parse_spec(
    {
        "name": "shop",
        "horizon": "14d",
        "memory": "60d",
        "kinds": [
            {"name": "visit"},
            {"name": "purchase", "aggregate": ["sum"]},
            {"name": "mail", "role": "contact"},
            {"name": "goodbye", "role": "terminal"},
        ],
        "windows": {"7d": 7, "30d": 6},
        "half_lives": ["7d"],
        "silence": {"first": "1d", "ratio": 2.0},
    }
)
LAYOUT = Layout(SPEC)


def rows_of(n: int, start: int = 0) -> Rows:
    """n records that differ in `activity_count`: start, start + 1, …"""
    rows = LAYOUT.empty(n)
    rows["activity_count"] = start + np.arange(n)
    return rows


class ArithmeticModel:
    """p grows with silence and falls with activity: 1 - 1 / (1 + days silent / 7), less 1 % an activity.

    `seconds`: how long a call takes; `fail_next`: how many of the next calls raise.
    """

    name = "arithmetic"
    version = 1

    @property
    def model(self) -> "ArithmeticModel":
        """It is its own version in service."""
        return self

    def __init__(
        self,
        sizes: Sequence[int] = (8, 32, 128, 512),
        seconds: float = 0.0,
        policy: EpisodePolicy | None = None,
    ) -> None:
        self.sizes = tuple(sizes)
        self.policy = policy or EpisodePolicy.of(enter=0.4, exit=0.3, cooldown_ms=0)
        self.fail_next = 0
        self._seconds = seconds

    def expected(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        """p float32[n] of the formula."""
        days = np.maximum(as_of - rows["last_seen"], 0) / 86_400_000
        p = 1.0 - 1.0 / (1.0 + days / 7.0) - 0.01 * np.minimum(rows["activity_count"], 20)
        clipped: NDArray[np.float32] = np.clip(p, 0.0, 1.0).astype(np.float32)
        return clipped

    def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        if self.fail_next:
            self.fail_next -= 1
            raise RuntimeError("broken on purpose")
        time.sleep(self._seconds)
        return self.expected(rows, as_of)

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        """Silence in days speaks for churn with its own length; nothing else speaks."""
        values = np.zeros((len(rows), len(features(SPEC))), np.float32)
        values[:, 0] = (as_of - rows["last_seen"]) / 86_400_000
        return Explained.by(values, values.copy())


class FussyModel(ArithmeticModel):
    """Cannot do some rows, told apart by `activity_count`.

    It raises for a call that has one of `raises` in it, and answers NaN for those of `nans`; those of `unexplained` it
    scores, and raises when asked why. `broken`: it raises for everything from now on; `wrong`: it scores everything 2.
    `calls` holds the number of rows of each call.
    """

    def __init__(
        self,
        raises: Iterable[int] = (),
        nans: Iterable[int] = (),
        unexplained: Iterable[int] = (),
        sizes: Sequence[int] = (8, 32, 128, 512),
        seconds: float = 0.0,
    ) -> None:
        super().__init__(sizes, seconds)
        self.raises, self.nans, self.unexplained = list(raises), list(nans), list(unexplained)
        self.broken = self.wrong = False
        self.calls: list[int] = []

    def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        lost = self._lost(rows)
        p = super().score(rows, as_of)
        p[lost] = np.nan
        return np.full_like(p, 2.0) if self.wrong else p

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        lost = self._lost(rows)
        if np.isin(rows["activity_count"], self.unexplained).any():
            raise RuntimeError("no words on purpose")
        values, contributions, *_ = super().explain(rows, as_of)
        contributions[lost] = np.nan
        return Explained.by(values, contributions)

    def _lost(self, rows: Rows) -> NDArray[np.bool_]:
        self.calls.append(len(rows))
        if self.broken or np.isin(rows["activity_count"], self.raises).any():
            raise RuntimeError("broken on purpose")
        return np.isin(rows["activity_count"], self.nans)
