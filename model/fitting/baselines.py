"""What a model has to beat: the same question answered by simpler means, on the same rows.

    recency     the longer silent, the likelier gone: one number, seconds since the last activity
    logistic    logistic regression on the same features, squeezed and standardised as the network does
    trees       boosted trees on the same features

They know features, labels and weights, nothing of sequences. They are given what the model is given: the rows to train
on, and for their calibration what they say of rows that they were not fitted on, so that no difference is one
of calibration alone. They are fitted, never stored and never served by themselves: whoever needs them again fits them
again from the same history, which takes seconds and no pickle.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from ebbtide.featurestore.spec import Spec
from ebbtide.model.examples.examples import Examples
from ebbtide.model.fitting.calibrate import fit_calibrator, halved, levelled
from ebbtide.model.fitting.linear import fit_logistic
from ebbtide.model.fitting.trees import grow, tree_logits
from ebbtide.model.graph.standard import in_seconds, logs, moments, squeeze, standardise, times

BASELINES = ("recency", "logistic", "trees")
Logits = Mapping[str, NDArray[np.float64]]
"""Raw logits float64[n] by name."""


class Fitted:
    """The baselines of some usable rows, not calibrated."""

    def __init__(self, spec: Spec, train: Examples, seed: int = 0) -> None:
        y, weight = train.churned, train.weights()
        self._log, self._times = logs(spec), times(spec)
        squeezed = self._squeezed(train.features)
        self._mean, self._scale = moments(squeezed)
        with threadpool_limits(1):
            self._recency = LogisticRegression().fit(_recency(train.features), y, weight)
        self._logistic = fit_logistic(standardise(squeezed, self._mean, self._scale), y, weight)
        self.trees = grow(train, seed)

    def logits(self, values: NDArray[np.float32]) -> Logits:
        """features float32[n, F] in natural units -> float64[n] of each baseline by name."""
        x = standardise(self._squeezed(values), self._mean, self._scale)
        with threadpool_limits(1):
            return {
                "recency": self._recency.decision_function(_recency(values)),
                "logistic": self._logistic.decision_function(x),
                "trees": tree_logits(self.trees, values),
            }

    def _squeezed(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        wide: NDArray[np.float64] = squeeze(
            in_seconds(np.asarray(values, np.float64), self._times), self._log
        )
        return wide


class Baselines:
    """`Baselines(fitted, rows, raw, latest)`: calibrated on what baselines said of rows that those had not been fitted
    on, at the level of the latest rows that `fitted` has learned from, as the model is; without such, of the same."""

    def __init__(self, fitted: Fitted, rows: Examples, raw: Logits, latest: Examples | None = None) -> None:
        self._fitted = fitted
        weight = rows.weights(damped=False)
        self._calibrators = {
            name: fit_calibrator(raw[name], rows.silence_s, rows.churned, weight) for name in BASELINES
        }
        if latest is not None:
            known, weight = fitted.logits(latest.features), latest.weights(damped=False)
            for name, found in self._calibrators.items():
                level = (known[name], latest.silence_s, latest.churned, weight)
                self._calibrators[name] = halved(levelled(found, *level))

    @classmethod
    def of(cls, spec: Spec, train: Examples, others: Examples, seed: int = 0) -> "Baselines":
        """Fitted on `train`, calibrated on `others`."""
        fitted = Fitted(spec, train, seed)
        return cls(fitted, others, fitted.logits(others.features))

    def probabilities(self, rows: Examples) -> dict[str, NDArray[np.float64]]:
        """Calibrated float64[n] in [0, 1] of each baseline by name."""
        raw = self._fitted.logits(rows.features)
        return {name: self._calibrators[name].probability(raw[name], rows.silence_s) for name in BASELINES}


def _recency(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64[n, 1]: the silence in seconds, squeezed; it is the first feature of every spec."""
    x: NDArray[Any] = squeeze(in_seconds(np.asarray(values, np.float64)[:, :1], (0,))[:, 1:], [True])
    return x
