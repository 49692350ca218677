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
    survival: [n, K], that nothing has come by each of the spec's horizons; None of a model that knows one horizon
    further: the same of the spec's targets beside the primary one, with the same values
    """

    values: NDArray[np.float32]
    contributions: NDArray[np.float32]
    sequence: NDArray[np.float32]
    logit: NDArray[np.float32]
    reference: NDArray[np.float32]
    survival: NDArray[np.float32] | None = None
    further: tuple["Explained", ...] = ()

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
        return type(self)(
            self.values[chosen],
            self.contributions[chosen],
            self.sequence[chosen],
            self.logit[chosen],
            self.reference[chosen],
            None if self.survival is None else self.survival[chosen],
            tuple(each.of(chosen) for each in self.further),
        )

    def of_target(self, target: int) -> "Explained":
        """That of a target of the spec, by its index."""
        return self.further[target - 1] if target else self

    @property
    def packed(self) -> NDArray[np.float32]:
        """float32[n, W]: all of it in one array, a row a row."""
        n, columns = len(self.values), [self.values]
        for each in (self, *self.further):
            single = np.stack([each.sequence, each.logit, each.reference], axis=1)
            survival = np.zeros((n, 0), np.float32) if each.survival is None else each.survival
            columns += [each.contributions, single, survival]
        return np.concatenate(columns, axis=1)

    def unpacked(self, packed: NDArray[np.float32]) -> "Explained":
        """Of rows that were packed from explanations of the same shape as this one."""
        f, k = self.values.shape[1], 0 if self.survival is None else self.survival.shape[1]
        parts = []
        for t in range(1 + len(self.further)):
            at = f + t * (f + 3 + k)
            sequence, logit, reference = packed[:, at + f : at + f + 3].T
            survival = packed[:, at + f + 3 : at + f + 3 + k] if k else None
            own = packed[:, at : at + f]
            parts.append(Explained(packed[:, :f], own, sequence, logit, reference, survival))
        return parts[0]._replace(further=tuple(parts[1:]))
