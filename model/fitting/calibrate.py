"""The numbers of `model/graph/calibrator.py`, fitted on rows that the network has not learned from.

Three numbers for the map, and a shift by silence where one map does not do: shifts are drawn towards zero and towards
their neighbours, so with few rows they stay out of it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit

from ebbtide.model.graph.calibrator import KNOTS_S, Calibrator, silence_basis

SLOPE_MIN, SLOPE_MAX = 0.2, 5.0
"""A calibrator that needs more than this is repairing something that training should."""
PRIOR_ROWS = 50.0
"""Pull towards "nothing to change", worth this many rows: on a small slice the shape is noise."""
LEVEL_MAX = 5.0
SHIFT_MAX = 3.0
"""A factor of 20 in the odds: what is off by more is no matter of calibration."""


def fit_calibrator(
    raw: NDArray[Any], silence_s: NDArray[Any], churned: NDArray[Any], weight: NDArray[Any]
) -> Calibrator:
    """The calibration that minimises the weighted log loss on held-out rows.

    raw: the network's logits [n]; silence_s: seconds since the last activity [n]; churned: [n] of 0 and 1; weight: [n],
    mean about 1. With fewer than two classes there is nothing to learn: the identity.
    """
    if len(np.unique(churned)) < 2:
        return Calibrator()
    wide = np.asarray(raw, np.float64)
    lower, upper = np.logaddexp(0.0, -wide), np.logaddexp(0.0, wide)
    y, w = np.asarray(churned, np.float64), np.asarray(weight, np.float64)
    basis = silence_basis(silence_s)
    neighbours = np.diff(np.eye(len(KNOTS_S)), axis=0)
    # As in ridge regression: half of the sum of squares, of the shifts and of their differences.
    pull_shifts = PRIOR_ROWS / 4 * (np.eye(len(KNOTS_S)) + neighbours.T @ neighbours)

    def loss(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = x[1] * upper - x[0] * lower + x[2] + basis @ x[3:]
        error = w * (expit(z) - y)
        pulled = pull_shifts @ x[3:]
        pull = PRIOR_ROWS / 2 * ((x[0] - 1) ** 2 + (x[1] - 1) ** 2) + x[3:] @ pulled / 2
        value = float((w * (np.logaddexp(0.0, z) - y * z)).sum() + pull)
        ends = [
            -error @ lower + PRIOR_ROWS * (x[0] - 1),
            error @ upper + PRIOR_ROWS * (x[1] - 1),
            error.sum(),
        ]
        slope = np.concatenate([ends, basis.T @ error + pulled])
        return value / len(y), slope / len(y)

    bounds = [(SLOPE_MIN, SLOPE_MAX)] * 2 + [(-10.0, 10.0)] + [(-SHIFT_MAX, SHIFT_MAX)] * len(KNOTS_S)
    start = np.concatenate([[1.0, 1.0, 0.0], np.zeros(len(KNOTS_S))])
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
    a, b, c, *shifts = (float(number) for number in found)
    return Calibrator(a=a, b=b, c=c, by_silence=tuple(shifts))


def levelled(
    calibrator: Calibrator,
    raw: NDArray[Any],
    silence_s: NDArray[Any],
    churned: NDArray[Any],
    weight: NDArray[Any],
) -> Calibrator:
    """The same shape with the shift `c` at which the mean probability of these rows is the share that churned."""
    w, share = np.asarray(weight, np.float64), float(np.average(churned, weights=weight))
    logit = calibrator.logit(raw, silence_s)

    def apart(shift: float) -> float:
        return float(np.average(expit(logit + shift), weights=w)) - share

    if apart(-LEVEL_MAX) >= 0 or apart(LEVEL_MAX) <= 0:  # one outcome alone says nothing of a level
        return calibrator
    shift = float(brentq(apart, -LEVEL_MAX, LEVEL_MAX))
    return calibrator.model_copy(update={"c": calibrator.c + shift})


def halved(calibrator: Calibrator) -> Calibrator:
    """Half of what it does: the mean of a raw logit and its calibrated one.

    What the latest slice says of p is in part what goes on, and in part what comes back. Just after an event, predicted
    over true on a later time, raw and fully calibrated: numpy's log 1.31 and .95 on the test slice, 1.00 and .77 after
    it; complete_journey 1.16 and 1.41 after it; cdnow .99 and .95. Half of it is near the better one each time."""
    return Calibrator(
        a=(1 + calibrator.a) / 2,
        b=(1 + calibrator.b) / 2,
        c=calibrator.c / 2,
        by_silence=tuple(shift / 2 for shift in calibrator.by_silence),
    )
