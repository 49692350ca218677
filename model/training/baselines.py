"""What a model has to beat: the same question answered by simpler means, on the same rows.

    recency     the longer silent, the likelier gone: one number, days since the last activity
    logistic    logistic regression on the same features, squeezed and standardised as the network does
    trees       gradient-boosted trees on the same features

They know features, labels and weights, nothing of sequences. They are given what the model is given, the rows to train
on and the rows to calibrate on, so that no difference is one of calibration alone. They are fitted, never stored and
never served: whoever needs them again fits them again from the same history, which takes seconds and no pickle.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from ebbtide.featurestore.spec import Spec
from ebbtide.model.examples.examples import Examples
from ebbtide.model.graph.standard import in_seconds, logs, moments, squeeze, standardise, times
from ebbtide.model.training.calibrate import fit_calibrator

BASELINES = ("recency", "logistic", "trees")
LOGISTIC_C = 0.1
"""Inverse strength of the L2 penalty; between 0.01 and 1 nothing changed on the two public logs."""
TREES: dict[str, Any] = {
    "max_iter": 150,
    "learning_rate": 0.05,
    "max_leaf_nodes": 15,
    "l2_regularization": 1.0,
}
LEAF_ROWS_MAX = 100


class Baselines:
    """`Baselines(spec, train, calibration)` fits all of them on features, labels and weights of the examples."""

    def __init__(self, spec: Spec, train: Examples, calibration: Examples, seed: int = 0) -> None:
        y, weight = train.churned, train.weights()
        self._log, self._times = logs(spec), times(spec)
        squeezed = self._squeezed(train.features)
        self._mean, self._scale = moments(squeezed)
        leaf = int(np.clip(len(y) // 50, 1, LEAF_ROWS_MAX))
        # One thread: the rows are few, and OpenMP's threads spin while they wait for one another (measured on two busy
        # cores: 3.5 s with one thread, 36 s with two).
        with threadpool_limits(1):
            self._recency = LogisticRegression().fit(_recency(train.features), y, weight)
            self._logistic = fit_logistic(standardise(squeezed, self._mean, self._scale), y, weight)
            self._trees = HistGradientBoostingClassifier(**TREES, min_samples_leaf=leaf, random_state=seed)
            self._trees.fit(train.features, y, weight)
        raw = self._logits(calibration.features)
        self._calibrators = {
            name: fit_calibrator(raw[name], calibration.churned, calibration.weights()) for name in BASELINES
        }

    def probabilities(self, values: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """features float32[n, F] in natural units -> calibrated float64[n] in [0, 1] of each baseline by name."""
        raw = self._logits(values)
        return {name: self._calibrators[name].probability(raw[name]) for name in BASELINES}

    def _logits(self, values: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        squeezed = self._squeezed(values)
        with threadpool_limits(1):
            return {
                "recency": self._recency.decision_function(_recency(values)),
                "logistic": self._logistic.decision_function(standardise(squeezed, self._mean, self._scale)),
                "trees": self._trees.decision_function(values),
            }

    def _squeezed(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        wide: NDArray[np.float64] = squeeze(
            in_seconds(np.asarray(values, np.float64), self._times), self._log
        )
        return wide


def fit_logistic(x: NDArray[Any], y: NDArray[Any], weight: NDArray[Any]) -> LogisticRegression:
    """Logistic regression of standardised figures [n, F]; Newton's method, since the rows outnumber the features."""
    with threadpool_limits(1):
        return LogisticRegression(C=LOGISTIC_C, solver="newton-cholesky", max_iter=100).fit(x, y, weight)


def _recency(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64[n, 1]: the silence squeezed, the first feature of every spec."""
    x: NDArray[np.float64] = squeeze(np.asarray(values[:, :1], np.float64), [True])
    return x
