"""From a logit that ranks to a probability that can be believed: a smooth, monotone map with three numbers.

Beta calibration (Kull, Silva Filho & Flach 2017), of which Platt scaling is the case a = b:

    logit' = a * log p - b * log(1 - p) + c,    p = sigmoid(logit),    a, b > 0

It is strictly increasing, so it never changes who ranks above whom, and smooth, so two customers never share
a step as they would under an isotonic fit. It only maps: who fits the numbers, and on what slice, is the
trainer's affair. The same three numbers stand in the SavedModel's graph and in its manifest.
"""

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field


class Calibrator(BaseModel):
    """a, b: slopes of the lower and upper half, > 0; c: shift in logit units. The default changes nothing."""

    a: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    b: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    c: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    model_config = ConfigDict(frozen=True, extra="forbid")

    def logit(self, logit: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Calibrated logits, float64[n], for work outside the graph."""
        wide = np.asarray(logit, np.float64)
        return self.b * np.logaddexp(0.0, wide) - self.a * np.logaddexp(0.0, -wide) + self.c

    def probability(self, logit: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Calibrated probabilities, float64[n] in [0, 1]."""
        # tanh never overflows, where 1 / (1 + exp(-x)) does.
        return 0.5 * (1.0 + np.tanh(0.5 * self.logit(logit)))

    def in_graph(self, logit: Any, numbers: Any = None) -> Any:
        """The same on tensors, float32[n]. Linear where a = b: then no rounding of softplus comes between.

        numbers: a, b and c as a tensor float32[3], such as a variable; None: constants of the graph. As a variable they
        are weights like all others, and two models that differ in them have one graph."""
        import tensorflow as tf  # noqa: PLC0415 - a manifest holds these numbers, and is read without TensorFlow

        a, b, c = (self.a, self.b, self.c) if numbers is None else (numbers[0], numbers[1], numbers[2])
        if self.a == self.b:
            return a * logit + c
        return b * tf.math.softplus(logit) - a * tf.math.softplus(-logit) + c
