"""How figures are made comparable: heavy tails squeezed by a signed logarithm, then to mean 0 and deviation 1.

    features [n, F], natural units ──▶ and the times among them in seconds [n, F + T] ──▶ squeezed ──▶ standardised

A time is seen on two scales. log1p of days tells weeks from months, and gives a minute, an hour and six hours .0007,
.04 and .22; log1p of seconds gives them 4.1, 8.2 and 10. Just after an event it is minutes that matter.

The network and the logistic regression that it begins as and has to beat read the same figures, so these lines are
written once, in NumPy's words, which Keras shares.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.features import DAY_WORDS, features
from ebbtide.featurestore.spec import Spec

DAY_S = 86_400.0

STANDARD_MAX = 8.0
"""Standardised figures are clipped here: beyond eight deviations nothing was learned, and a figure that training never
saw must not throw the logit to infinity."""
VARIED_MIN = 1e-5
"""A deviation below so many means (or units, if that is more) is none, to within what float32 can tell apart."""


def times(spec: Spec) -> tuple[int, ...]:
    """Indices of the features that are a length of time, in days; counts of days are none."""
    return tuple(
        i
        for i, feature in enumerate(features(spec))
        if feature.unit == DAY_WORDS and not feature.name.startswith("active_days_")
    )


def logs(spec: Spec) -> tuple[bool, ...]:
    """Which of the F + T columns of `in_seconds` are squeezed by the logarithm."""
    return (*(feature.transform == "log" for feature in features(spec)), *(True for _ in times(spec)))


def in_seconds(values: Any, time: Sequence[int], ops: Any = np) -> Any:
    """[n, F] -> [n, F + T]: the features, then those that `time` names, from days to seconds. `ops` as in `squeeze`."""
    if not time:
        return values
    # Written with one dtype: an array of float64 constants would make the graph's float32 wider.
    return ops.concatenate([values, ops.take(values, np.asarray(time, np.int32), axis=1) * DAY_S], axis=1)


def squeeze(x: Any, log: Sequence[bool] | NDArray[np.bool_], ops: Any = np) -> Any:
    """[..., C] -> [..., C]: sign(x) * log1p|x| where `log[c]`. `ops`: `numpy`, or `keras.ops` for tensors."""
    return ops.where(log, ops.sign(x) * ops.log1p(ops.abs(x)), x)


def moments(squeezed: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """float64[n >= 1, C] -> mean [C] and scale [C], 1 / deviation; 0 for a column that never varied, which so says
    nothing whatever comes later."""
    mean, deviation = squeezed.mean(axis=0), squeezed.std(axis=0)
    varied = deviation > VARIED_MIN * np.maximum(1.0, np.abs(mean))
    return mean, np.where(varied, 1.0 / np.where(varied, deviation, 1.0), 0.0)


def standardise(
    squeezed: NDArray[np.float64], mean: NDArray[np.float64], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[n, C] squeezed figures -> [n, C] within ±STANDARD_MAX."""
    x: NDArray[np.float64] = np.clip((squeezed - mean) * scale, -STANDARD_MAX, STANDARD_MAX)
    return x
