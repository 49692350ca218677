"""What a model has to beat: the same question answered by simpler means, on the same rows.

    recency     the longer silent, the likelier gone: one number, days since the last activity
    logistic    logistic regression on the same features, squeezed and standardised as the network does
    trees       gradient-boosted trees on the same features

They know features, labels and weights, nothing of sequences. They are fitted, never stored and never served: whoever
needs them again fits them again from the same history, which takes seconds and no pickle.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from featurestore.spec import Spec
from featurestore.vector import features
from model.examples import Examples

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
STANDARD_MAX = 8.0


class Baselines:
    """`Baselines(spec, examples)` fits all of them on the examples' features, labels and weights."""

    def __init__(self, spec: Spec, examples: Examples, seed: int = 0) -> None:
        y, weight = examples.churned, examples.weights()
        self._log = np.array([feature.transform == "log" for feature in features(spec)])
        squeezed = self._squeeze(examples.features)
        self._mean, deviation = squeezed.mean(axis=0), squeezed.std(axis=0)
        self._scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0.0)
        self._recency = LogisticRegression().fit(_recency(examples.features), y, weight)
        self._logistic = LogisticRegression(C=LOGISTIC_C, max_iter=500).fit(
            self._standard(squeezed), y, weight
        )
        leaf = int(np.clip(len(y) // 50, 1, LEAF_ROWS_MAX))
        self._trees = HistGradientBoostingClassifier(**TREES, min_samples_leaf=leaf, random_state=seed)
        self._trees.fit(examples.features, y, weight)

    def probabilities(self, values: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """features float32[n, F] in natural units -> float64[n] of each baseline by name."""
        return {
            "recency": self._recency.predict_proba(_recency(values))[:, 1],
            "logistic": self._logistic.predict_proba(self._standard(self._squeeze(values)))[:, 1],
            "trees": self._trees.predict_proba(values)[:, 1],
        }

    def _squeeze(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        wide = np.asarray(values, np.float64)
        return np.where(self._log, np.sign(wide) * np.log1p(np.abs(wide)), wide)

    def _standard(self, squeezed: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.clip((squeezed - self._mean) * self._scale, -STANDARD_MAX, STANDARD_MAX)


def _recency(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64[n, 1]: log of the silence, the first feature of every spec."""
    return np.log1p(np.asarray(values[:, :1], np.float64))
