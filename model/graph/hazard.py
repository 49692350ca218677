"""From one probability to *when*: the chance that nothing has come yet, at several horizons.

    S(h | x) = P(no event of the target in (as_of, as_of + h])            falls as h grows

    logit S(h) = logit S(H) + step + step + …    for h below H, a step for each horizon in between
                            - step - step - …    for h above it
    step = softplus(bias + kernel · [x, logit S(H)])  > 0

S(H), at the spec's own horizon, *is* the model's probability (or one less it, where churn is that something comes).
The others are distances from its logit, so whatever calibrates p moves all of them alike, and none overtakes another,
of any row. The steps read what the head reads, standardised features, and cost a matrix product of as many columns as
there are further horizons.

It maps and interpolates; how the numbers are found is `model/fitting/hazard.py`'s.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.model.graph.standard import STANDARD_MAX

QUANTILES = (0.5, 0.9)
"""Of the time to the next event: P50 and P90."""


@dataclass(frozen=True, slots=True)
class Hazard:
    """horizons_ms: K of them, ascending     at: index of the spec's own     absence: is churn that nothing comes?
    kernel: float32[C + 1, K - 1], of C standardised features and the logit of S(H)     bias: float32[K - 1]
    """

    horizons_ms: tuple[int, ...]
    at: int
    absence: bool
    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def signs(self) -> NDArray[np.float32]:
        """float32[K - 1, K]: how each step, between neighbouring horizons, enters each horizon's logit."""
        return signs(len(self.horizons_ms), self.at)

    def logit(self, x: NDArray[Any], churn_logit: NDArray[Any]) -> NDArray[np.float64]:
        """logit S at each horizon, float64[n, K], of standardised features [n, C] and calibrated logits [n]."""
        z = np.asarray(churn_logit, np.float64) * (1.0 if self.absence else -1.0)
        inputs = np.concatenate([x, np.clip(z, -STANDARD_MAX, STANDARD_MAX)[:, None]], axis=1)
        steps = np.logaddexp(0.0, inputs @ self.kernel.astype(np.float64) + self.bias)
        found: NDArray[np.float64] = z[:, None] + steps @ self.signs
        return found

    def survival(self, x: NDArray[Any], churn_logit: NDArray[Any]) -> NDArray[np.float64]:
        """S at each horizon, float64[n, K] in [0, 1]."""
        survival: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * self.logit(x, churn_logit)))
        return survival


def signs(horizons: int, at: int) -> NDArray[np.float32]:
    """float32[K - 1, K]: +1 for the steps between a horizon below the spec's own and that one, -1 for those above."""
    step, k = np.arange(horizons - 1)[:, None], np.arange(horizons)[None, :]
    up = ((step >= k) & (step < at)).astype(np.float32)
    down = ((step >= at) & (step < k)).astype(np.float32)
    found: NDArray[np.float32] = up - down
    return found


def time_to_next_ms(
    horizons_ms: tuple[int, ...], survival: NDArray[np.floating[Any]], quantile: float
) -> NDArray[np.float64]:
    """float64[n], ms: when S falls to 1 - quantile, between horizons as if the rate were constant; inf beyond the last.

    survival: [n, K], falling, in [0, 1]."""
    s = np.concatenate([np.ones((len(survival), 1)), np.asarray(survival, np.float64)], axis=1)
    passed = -np.log(np.clip(s, 1e-12, 1.0))  # the hazard that has passed, rising
    wanted = -np.log(1.0 - quantile)
    edges = np.array([0.0, *horizons_ms])
    k = (passed < wanted).sum(axis=1)  # the first edge at which it is reached
    reached = k < len(edges)
    k = np.clip(k, 1, len(edges) - 1)
    rows = np.arange(len(s))
    low, high = passed[rows, k - 1], passed[rows, k]
    part = np.clip((wanted - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    return np.where(reached, edges[k - 1] + part * (edges[k] - edges[k - 1]), np.inf)
