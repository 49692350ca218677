"""The three numbers of `model/graph/calibrator.py`, fitted on rows that the network has not learned from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from ebbtide.model.graph.calibrator import Calibrator

SLOPE_MIN, SLOPE_MAX = 0.2, 5.0
"""A calibrator that needs more than this is repairing something that training should."""
PRIOR_ROWS = 50.0
"""Pull towards "nothing to change", worth this many rows: on a small slice the shape is noise."""


def fit_calibrator(raw: NDArray[Any], churned: NDArray[Any], weight: NDArray[Any]) -> Calibrator:
    """The beta calibration that minimises the weighted log loss on held-out rows.

    raw: the network's logits [n]; churned: [n] of 0 and 1; weight: [n], mean about 1. With fewer than two classes
    there is nothing to learn: the identity.
    """
    if len(np.unique(churned)) < 2:
        return Calibrator()
    wide = np.asarray(raw, np.float64)
    lower, upper = np.logaddexp(0.0, -wide), np.logaddexp(0.0, wide)
    y, w = np.asarray(churned, np.float64), np.asarray(weight, np.float64)

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = x[1] * upper - x[0] * lower + x[2]
        error = w * (expit(z) - y)
        pull = PRIOR_ROWS / 2 * ((x[0] - 1) ** 2 + (x[1] - 1) ** 2)
        value = float((w * (np.logaddexp(0.0, z) - y * z)).sum() + pull)
        slope = np.array(
            [-error @ lower + PRIOR_ROWS * (x[0] - 1), error @ upper + PRIOR_ROWS * (x[1] - 1), error.sum()]
        )
        return value / len(y), slope / len(y)

    bounds = [(SLOPE_MIN, SLOPE_MAX)] * 2 + [(-10.0, 10.0)]
    found = minimize(loss, np.array([1.0, 1.0, 0.0]), jac=True, bounds=bounds, method="L-BFGS-B").x
    return Calibrator(a=float(found[0]), b=float(found[1]), c=float(found[2]))
