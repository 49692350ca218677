"""How good are probabilities: the figures, and how sure of them one can be.

Everything takes `p` float[n] in [0, 1], `y` [n] of 0 and 1 and optional weights [n] >= 0, in NumPy alone; the tests
hold it to scikit-learn and to definitions written out. Intervals come from a bootstrap over *customers*: the rows of
one customer say much the same, and a bootstrap over rows would take them for independent. Of composite customers it is
one over first parts: ann in two courses is one person. One draw serves all models, so that differences are paired.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.floating[Any]]
ECE_BINS = 15
PROBABILITY_MIN = 1e-7
"""Log loss clips here, as float32 cannot tell a smaller doubt from certainty."""
ECE_SIMULATIONS = 400


class Ranking:
    """Scores sorted once, so that each resampling costs one pass. Ties count half in `auroc`, together in `auprc`."""

    def __init__(self, p: Vector, y: Vector) -> None:
        group = np.unique(-np.asarray(p, np.float64), return_inverse=True)[1]
        self._group, self._y = group.ravel(), np.asarray(y, np.float64)

    def auroc(self, weight: Vector | None = None) -> float:
        """Probability that a churner stands above a stayer; NaN when there is but one class."""
        positive, negative = self._counts(weight)
        if positive.sum() <= 0 or negative.sum() <= 0:
            return float("nan")
        below = negative.sum() - np.cumsum(negative) + negative / 2
        return float((positive * below).sum() / (positive.sum() * negative.sum()))

    def auprc(self, weight: Vector | None = None) -> float:
        """Average precision: the mean precision over the churners, each at its own rank; NaN without any."""
        positive, negative = self._counts(weight)
        true, total = np.cumsum(positive), np.cumsum(positive + negative)
        if not len(true) or true[-1] <= 0:
            return float("nan")
        precision = np.divide(true, total, out=np.zeros_like(true), where=total > 0)
        return float((precision * positive).sum() / true[-1])

    def curve(self) -> tuple[Vector, Vector]:
        """False and true positive rates, from (0, 0) to (1, 1)."""
        positive, negative = self._counts(None)
        rates = [np.concatenate([[0.0], np.cumsum(c) / max(c.sum(), 1e-12)]) for c in (negative, positive)]
        return rates[0], rates[1]

    def _counts(self, weight: Vector | None) -> tuple[Vector, Vector]:
        """Weight of churners and of stayers in each group of equal scores, highest first."""
        total = np.bincount(self._group, weight).astype(np.float64)
        positive = np.bincount(self._group, self._y if weight is None else self._y * weight).astype(
            np.float64
        )
        return positive, total - positive


def log_loss(p: Vector, y: Vector, weight: Vector | None = None) -> float:
    """Mean surprise in nats; 0.693 is a coin."""
    p = np.clip(np.asarray(p, np.float64), PROBABILITY_MIN, 1 - PROBABILITY_MIN)
    return float(np.average(-np.log(np.where(np.asarray(y) > 0, p, 1 - p)), weights=weight))


def ece(p: Vector, y: Vector, bins: int = ECE_BINS) -> float:
    """Expected calibration error: |mean p - churn rate| over bins of equally many rows, averaged; 0 to 1."""
    order = np.argsort(p, kind="stable")
    return _binned_gap(np.asarray(p, np.float64)[order], np.asarray(y, np.float64)[order], bins)


def ece_bound(p: Vector, seed: int = 0, bins: int = ECE_BINS) -> float:
    """What a *perfectly* calibrated model with these probabilities stays below in 95 % of samples of this size."""
    ordered, rng = np.sort(np.asarray(p, np.float64)), np.random.default_rng(seed)
    gaps = [
        _binned_gap(ordered, (rng.random(len(ordered)) < ordered).astype(np.float64), bins)
        for _ in range(ECE_SIMULATIONS)
    ]
    return float(np.quantile(gaps, 0.95))


def reliability(p: Vector, y: Vector, bins: int = ECE_BINS) -> tuple[Vector, Vector]:
    """Mean p and churn rate of each bin of equally many rows."""
    order = np.argsort(p, kind="stable")
    starts = _starts(len(order), bins)
    rows = np.diff([*starts, len(order)])
    means = [np.add.reduceat(np.asarray(v, np.float64)[order], starts) / rows for v in (p, y)]
    return means[0], means[1]


def lift(p: Vector, y: Vector, share: float = 0.10) -> float:
    """Churn rate among the `share` of rows with the highest p, over the churn rate of all. Ties at the cut count by
    their part."""
    p, y = np.asarray(p, np.float64), np.asarray(y, np.float64)
    k = max(1, round(share * len(p)))
    cut = np.partition(p, len(p) - k)[len(p) - k]
    above, at = p > cut, p == cut
    found = y[above].sum() + (k - above.sum()) * y[at].mean()
    return float(found / k / y.mean()) if y.mean() > 0 else float("nan")


def resamplings(customer: NDArray[np.integer[Any]], times: int, seed: int = 0) -> Iterator[Vector]:
    """`times` bootstrap draws of customers, each as a weight float64[n] a row: how often its customer was drawn."""
    _, row = np.unique(customer, return_inverse=True)
    m, rng = int(row.max()) + 1, np.random.default_rng(seed)
    for _ in range(times):
        yield np.bincount(rng.integers(0, m, m), minlength=m).astype(np.float64)[row.ravel()]


def interval(values: Vector) -> tuple[float, float]:
    """The middle 95 % of bootstrap values; NaN where every draw was undefined."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


METRICS: dict[str, Callable[[Vector, Vector], Callable[[Vector | None], float]]] = {
    "auroc": lambda p, y: Ranking(p, y).auroc,
    "auprc": lambda p, y: Ranking(p, y).auprc,
    "log_loss": lambda p, y: lambda weight: log_loss(p, y, weight),
}
"""Metrics with an interval: name -> (p, y) -> weight -> value. The calibration error has a bound instead."""


def _binned_gap(p: Vector, y: Vector, bins: int) -> float:
    return float(np.abs(np.add.reduceat(p - y, _starts(len(p), bins))).sum() / len(p))


def _starts(n: int, bins: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, n, min(bins, n) + 1).astype(np.int64)[:-1])
