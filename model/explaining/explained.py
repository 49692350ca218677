"""An explanation, and whether it may be believed: its parts have to add up to what they explain."""

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

GAP_MAX = 1e-4
"""In logits. What is left between the sum of the parts and the difference that they explain: quadrature and float32."""


class Explained(NamedTuple):
    """n rows explained, all float32.

    values: [n, F], features in natural units.     contributions: [n, F], in logits, > 0 towards churn
    sequence: [n], the contribution of the sequence    logit: [n], calibrated, before the sigmoid
    reference: [n], the baseline's logit: contributions and sequence sum to `logit - reference`
    """

    values: NDArray[np.float32]
    contributions: NDArray[np.float32]
    sequence: NDArray[np.float32]
    logit: NDArray[np.float32]
    reference: NDArray[np.float32]

    @classmethod
    def by(cls, values: NDArray[np.float32], contributions: NDArray[np.float32]) -> Self:
        """Of a model that is the sum of its parts: no sequence, and a baseline of 0."""
        nothing = np.zeros(len(values), np.float32)
        return cls(values, contributions, nothing, contributions.sum(axis=1, dtype=np.float32), nothing)

    @property
    def gap(self) -> NDArray[np.float64]:
        """float64[n], logits: what the parts leave unexplained."""
        parts = self.contributions.sum(axis=1, dtype=np.float64) + self.sequence
        left: NDArray[np.float64] = np.abs(parts - (self.logit.astype(np.float64) - self.reference))
        return left

    @property
    def holds(self) -> NDArray[np.bool_]:
        """bool[n]: the parts add up to within GAP_MAX; False of NaN."""
        return np.asarray(self.gap <= GAP_MAX)

    def of(self, chosen: Any) -> Self:
        """Some of the rows, by mask, indices or slice."""
        return type(self)(*(column[chosen] for column in self))
