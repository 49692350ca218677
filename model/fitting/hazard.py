"""The steps of `model/graph/hazard.py`, fitted on rows that the model has not learned from.

    wait < seen: the target came, in one of the intervals between horizons       log(S_before - S_after)
    else:        nothing came for as long as was seen, up to the last horizon    log S
                 that lies within it

That is the likelihood of a discrete-time survival model (Cox 1972, Singer & Willett 1993): rows whose horizon is not
over by the end of the log tell what they tell, and none is thrown away for it. The logit of S(H) is given, not fitted:
whatever is learned here, p stays what it was.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from ebbtide.model.graph.hazard import Hazard, signs
from ebbtide.model.graph.standard import STANDARD_MAX

PRIOR_ROWS = 100.0
"""Pull of the kernel towards zero, at which a step is the same for everybody, worth this many rows."""
APART_MIN = 1e-4
"""Two logits nearer than this count as so far apart: the logarithm of their difference stays finite."""
ITERATIONS_MAX = 200


@dataclass(frozen=True, slots=True)
class Waits:
    """n rows. x: float[n, C], standardised features; logit: float64[n], calibrated, of churn; wait_ms, seen_ms: as in
    `Outcomes`, one target; weight: float[n]."""

    x: NDArray[Any]
    logit: NDArray[np.float64]
    wait_ms: NDArray[np.int64]
    seen_ms: NDArray[np.int64]
    weight: NDArray[Any]

    @classmethod
    def joined(cls, parts: list["Waits"]) -> "Waits":
        """One after the other."""
        columns = zip(*((p.x, p.logit, p.wait_ms, p.seen_ms, p.weight) for p in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


def fit_hazard(rows: Waits, horizons_ms: tuple[int, ...], horizon_ms: int, *, absence: bool) -> Hazard:
    """The steps that make what happened likeliest; with nothing to learn from, equal ones."""
    at, k = horizons_ms.index(horizon_ms), len(horizons_ms)
    matrix = signs(k, at).astype(np.float64)
    z = rows.logit * (1.0 if absence else -1.0)
    inputs = np.concatenate([rows.x, np.clip(z, -STANDARD_MAX, STANDARD_MAX)[:, None]], axis=1).astype(
        np.float64
    )
    edges = np.array(horizons_ms)
    came = rows.wait_ms < rows.seen_ms
    # Of who came: the horizon before, and the first one at or after it; K: beyond the last one.
    interval = np.searchsorted(edges, rows.wait_ms)
    survived = np.searchsorted(edges, rows.seen_ms)  # horizons that passed within what was seen
    event = came & (interval < k)
    passed = np.where(event, interval, np.minimum(survived, interval))  # horizons known to have been outlived
    weight = np.asarray(rows.weight, np.float64)
    each = np.arange(len(z))
    c = inputs.shape[1]

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        kernel, bias = theta[: c * (k - 1)].reshape(c, k - 1), theta[c * (k - 1) :]
        raw = inputs @ kernel + bias
        steps = np.logaddexp(0.0, raw)
        logit = z[:, None] + steps @ matrix
        slope = np.zeros_like(logit)
        value = np.zeros(len(z))
        outlived = passed > 0
        last = logit[each, np.maximum(passed - 1, 0)]
        value += np.where(outlived, -np.logaddexp(0.0, -last), 0.0)
        slope[each[outlived], passed[outlived] - 1] += expit(-last[outlived])
        ended = logit[each, np.minimum(passed, k - 1)]
        value += np.where(event, -np.logaddexp(0.0, ended), 0.0)
        slope[each[event], passed[event]] -= expit(ended[event])
        both = event & outlived
        apart = np.maximum(last - ended, APART_MIN)
        value += np.where(both, np.log(-np.expm1(-apart)), 0.0)
        rate = 1.0 / np.expm1(np.minimum(apart, 50.0))
        slope[each[both], passed[both] - 1] += rate[both]
        slope[each[both], passed[both]] -= rate[both]
        back = (weight[:, None] * slope) @ matrix.T * expit(raw)
        total = max(weight.sum(), 1e-9)
        found = -(weight * value).sum() / total + PRIOR_ROWS / 2 * (kernel**2).sum() / total
        gradient = np.concatenate([
            (-inputs.T @ back / total + PRIOR_ROWS * kernel / total).ravel(), -back.sum(axis=0) / total,
        ])  # fmt: skip
        return float(found), gradient

    found = minimize(
        loss, np.zeros((c + 1) * (k - 1)), jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS_MAX}
    ).x
    kernel, bias = found[: c * (k - 1)].reshape(c, k - 1), found[c * (k - 1) :]
    return Hazard(horizons_ms, at, absence, kernel.astype(np.float32), bias.astype(np.float32))
