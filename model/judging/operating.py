"""From scores to a service: the calibrator's three numbers, and the thresholds at which alerts begin and end.

The alert rate is stated in what it costs: of the customers who come up for a decision within one horizon, the share
that is to get an alert. So `enter` is a quantile of *peaks*: the highest calibrated p of a customer over all decision
points in a window one horizon long. A quantile of single rows would say nothing of the number of alerts (a customer has
dozens of decision points), and a quantile of a snapshot would be set by those who have been gone for long, whom no
decision point asks about any more.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from ebbtide.model.examples.labels import CHURNED, STAYED
from ebbtide.model.graph.calibrator import Calibrator

HYSTERESIS = 0.5
"""`exit` lies this far below `enter`, in logits: a p that trembles at the threshold opens one episode, not ten."""
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
    lower, upper = (
        np.logaddexp(0.0, -np.asarray(raw, np.float64)),
        np.logaddexp(0.0, np.asarray(raw, np.float64)),
    )
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


P_MIN = 1e-6
"""Thresholds stay this far from 0 and 1, where every or no p would pass."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """p >= enter opens an episode, p < exit ends it. alerted: share of customer-horizons with a peak at `enter` or
    above, what `alert_rate` came to. precision: how many of the first such decisions with a label were right, NaN where
    there is none."""

    enter: float
    exit: float
    alert_rate: float
    alerted: float
    precision: float
    customer_horizons: int


class Peaks:
    """Gathers decisions and finds each customer's highest p, horizon by horizon from `start_ms`."""

    def __init__(self, start_ms: int, horizon_ms: int) -> None:
        self._start, self._horizon = start_ms, horizon_ms
        self._columns: list[tuple[NDArray[Any], ...]] = []

    def add(
        self, customer: NDArray[Any], as_of: NDArray[Any], p: NDArray[Any], churned: NDArray[Any]
    ) -> None:
        self._columns.append((customer, as_of, p, churned))

    def thresholds(self, alert_rate: float) -> Thresholds:
        """`enter` such that `alert_rate` (0 to 1) of the customer-horizons reach it, or as near as ties allow. Without
        a single decision nothing is known: `enter` is as high as can be."""
        peaks, _ = self._windows(np.inf)
        peaks = peaks if len(peaks) else np.ones(1)
        enter = float(np.clip(np.quantile(peaks, 1 - alert_rate, method="higher"), P_MIN, 1 - P_MIN))
        return self.at(Thresholds(enter, float(expit(logit(enter) - HYSTERESIS)), alert_rate, 0.0, 0.0, 0))

    def at(self, chosen: Thresholds) -> Thresholds:
        """What thresholds chosen elsewhere come to here: the share alerted, and how often rightly."""
        peaks, opened = self._windows(chosen.enter)
        known = opened[(opened == CHURNED) | (opened == STAYED)]
        precision = float((known == CHURNED).mean()) if len(known) else float("nan")
        alerted = float((peaks >= chosen.enter).mean()) if len(peaks) else float("nan")
        return replace(chosen, alerted=alerted, precision=precision, customer_horizons=len(peaks))

    def _windows(self, enter: float) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        """The peak of each customer-horizon, and the label of each one's first decision at `enter` or above."""
        if not self._columns:
            return np.zeros(0), np.zeros(0, np.int8)
        customer, as_of, p, label = (np.concatenate(column) for column in zip(*self._columns, strict=True))
        window = (as_of - self._start) // self._horizon
        order = np.lexsort((as_of, window, customer))
        customer, window, p, label = customer[order], window[order], p[order], label[order]
        new = np.ones(len(p), np.bool_)
        new[1:] = (np.diff(customer) != 0) | (np.diff(window) != 0)
        group, above = np.cumsum(new) - 1, np.flatnonzero(p >= enter)
        first = above[np.unique(group[above], return_index=True)[1]]
        return np.maximum.reduceat(p, np.flatnonzero(new)), label[first]
