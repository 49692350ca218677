"""Logistic regression of standardised figures: a baseline, and what the network's wide path begins as."""

from typing import Any

from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

LOGISTIC_C = 0.1
"""Inverse strength of the L2 penalty; between 0.01 and 1 nothing changed on the two public logs."""


def fit_logistic(x: NDArray[Any], y: NDArray[Any], weight: NDArray[Any]) -> LogisticRegression:
    """Logistic regression of standardised figures [n, C]; Newton's method, since the rows outnumber the features."""
    with threadpool_limits(1):
        return LogisticRegression(C=LOGISTIC_C, solver="newton-cholesky", max_iter=100).fit(x, y, weight)
