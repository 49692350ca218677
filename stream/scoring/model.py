"""The seam between the stream and a model: what a model is asked, and the one value that scores and decides.

`ebbtide.model.serving` has the real ones; `tests/support/seams/scoring.py` has models that are arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Rows
from ebbtide.model.explaining.explained import Explained
from ebbtide.stream.decision.policy import Policy


class Model(Protocol):
    """One loaded version of a model. `score` is called on the scoring thread alone, one call at a time.

    A row's answer depends on the row and on `as_of` alone: not on its company, its position or the padded size, to the
    bit. Whatever a call raises is answered by asking for fewer rows (`stream/scoring/guard.py`); nothing is assumed of
    the model after a failure but that it may be asked again.
    """

    @property
    def sizes(self) -> Sequence[int]:
        """The padded sizes that are compiled, ascending; a call of more rows than the largest is never made."""
        ...

    @property
    def version(self) -> int:
        """Which version this is; two models in one process never share it."""
        ...

    def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        """p float32[n] in [0, 1] of n >= 1 records[n] as of int64[n] ms UTC; NaN for a row it cannot score. Of several
        targets float32[n, targets]."""
        ...

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        """Why it scores n >= 1 records[n] as of int64[n] ms UTC so; NaN for a row it cannot explain. Called on a thread
        of its own, beside `score`, one call at a time."""
        ...


class Serving(Protocol):
    """A model in service with the policy that judges its scores: one value, made and validated when the version is
    loaded, pinned for a turn. So no score is judged by another version's thresholds, and none is explained by it."""

    @property
    def name(self) -> str:
        """The model's name, as alerts carry it."""
        ...

    @property
    def version(self) -> int:
        """The model's version, as alerts and scores carry it."""
        ...

    @property
    def model(self) -> Model:
        """What scores and explains."""
        ...

    @property
    def policy(self) -> Policy:
        """What decides."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """p float32[n] in [0, 1], all of them by `serving`; of several targets float32[n, targets].

    p is NaN for a row that the model fails for, alone and repeatedly, while it scores others: it was given up.
    """

    p: NDArray[np.float32]
    serving: Serving

    @property
    def primary(self) -> NDArray[np.float32]:
        """float32[n]: p of the primary target."""
        return self.p if self.p.ndim == 1 else self.p[:, 0]

    def of(self, row: int, target: int) -> np.float32:
        """p of a row for one target, by its index."""
        return np.float32(self.p[row] if self.p.ndim == 1 else self.p[row, target])
