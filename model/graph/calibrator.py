"""From a logit that ranks to a probability that can be believed: a smooth map with three numbers, and one more of
silence where one map does not do.

Beta calibration (Kull, Silva Filho & Flach 2017), of which Platt scaling is the case a = b:

    logit' = a * log p - b * log(1 - p) + c + d(silence),    p = sigmoid(logit),    a, b > 0

At one silence it is strictly increasing, so it never changes who ranks above whom there, and smooth, so two customers
never share a step as they would under an isotonic fit. d is the shift by silence: its values at KNOTS_S are fitted, and
between two of them it goes over smoothly in log silence, without a step or a bend at any edge:

    d       ●───╮                 u = log1p(seconds of silence); between knots u0 and u1, with t = (u - u0)/(u1 - u0),
                 ╲                d = d0 + (d1 - d0) * t² (3 - 2t): flat at each knot, beyond the last one constant
                  ╰──●──────●
         0   1 min  1 h    1 day

It only maps: who fits the numbers, and on what slice, is the trainer's affair. The same numbers stand in the
SavedModel's graph and in its manifest.
"""

from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

KNOTS_S = (0.0, 60.0, 3_600.0, 21_600.0, 86_400.0, 259_200.0, 604_800.0, 2_592_000.0, 7_776_000.0)
"""0, a minute, an hour, 6 hours, a day, 3 days, a week, a month, a quarter of a year: far enough apart that each has
rows."""
_U = np.log1p(np.array(KNOTS_S))
_WIDTH = np.diff(_U)
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Calibrator(BaseModel):
    """a, b: slopes of the lower and upper half, > 0; c: shift in logit units; by_silence: further shifts at KNOTS_S, or
    none. The default changes nothing."""

    a: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    b: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.0
    c: Finite = 0.0
    by_silence: tuple[Finite, ...] = ()
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.by_silence) not in (0, len(KNOTS_S)):
            raise ValueError(f"by_silence has {len(KNOTS_S)} shifts or none")
        return self

    @property
    def numbers(self) -> list[float]:
        """a, b, c, then the shifts at KNOTS_S: what the graph holds as one variable."""
        return [self.a, self.b, self.c, *(self.by_silence or [0.0] * len(KNOTS_S))]

    def logit(
        self, logit: NDArray[np.floating[Any]], silence_s: NDArray[np.floating[Any]]
    ) -> NDArray[np.float64]:
        """Calibrated logits, float64[n], of raw ones after so many seconds of silence, for work outside the graph."""
        wide = np.asarray(logit, np.float64)
        shift = silence_basis(silence_s) @ np.array(self.numbers[3:])
        beta = self.b * np.logaddexp(0.0, wide) - self.a * np.logaddexp(0.0, -wide)
        calibrated: NDArray[np.float64] = beta + self.c + shift
        return calibrated

    def probability(
        self, logit: NDArray[np.floating[Any]], silence_s: NDArray[np.floating[Any]]
    ) -> NDArray[np.float64]:
        """Calibrated probabilities, float64[n] in [0, 1]."""
        # tanh never overflows, where 1 / (1 + exp(-x)) does.
        return 0.5 * (1.0 + np.tanh(0.5 * self.logit(logit, silence_s)))

    def beta_in_graph(self, logit: Any, numbers: Any) -> Any:
        """The part without silence on tensors, float32[n]. Linear where a = b: then no rounding of softplus comes
        between. numbers: `numbers` as a tensor, such as a variable: weights like all others, and two models that differ
        in them have one graph."""
        import tensorflow as tf  # noqa: PLC0415 - a manifest holds these numbers, and is read without TensorFlow

        if self.a == self.b:
            return numbers[0] * logit + numbers[2]
        return numbers[1] * tf.math.softplus(logit) - numbers[0] * tf.math.softplus(-logit) + numbers[2]

    def slope_in_graph(self, logit: Any, numbers: Any) -> Any:
        """The derivative of `beta_in_graph`, > 0."""
        import tensorflow as tf  # noqa: PLC0415 - as above

        if self.a == self.b:
            return tf.zeros_like(logit) + numbers[0]
        return numbers[1] * tf.sigmoid(logit) + numbers[0] * tf.sigmoid(-logit)

    def shift_in_graph(self, silence_s: Any, numbers: Any) -> Any:
        """d on tensors: seconds float32[n] -> float32[n], nats."""
        import tensorflow as tf  # noqa: PLC0415 - as above

        u = tf.math.log1p(tf.maximum(silence_s, 0.0))
        shift = tf.zeros_like(u) + numbers[3]
        for k, (begin, width) in enumerate(zip(_U[:-1].tolist(), _WIDTH.tolist(), strict=True)):
            t = tf.clip_by_value((u - begin) / width, 0.0, 1.0)
            shift += (numbers[4 + k] - numbers[3 + k]) * (t * t * (3.0 - 2.0 * t))
        return shift


def silence_basis(silence_s: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """float64[n, len(KNOTS_S)], rows sum to 1: how much of each knot's shift holds after so many seconds of silence."""
    u = np.log1p(np.maximum(np.asarray(silence_s, np.float64), 0.0))
    t = np.clip((u[:, None] - _U[:-1]) / _WIDTH, 0.0, 1.0)
    risen = t * t * (3.0 - 2.0 * t)
    basis = np.zeros((len(u), len(KNOTS_S)))
    basis[:, 0] = 1.0
    basis[:, 1:] += risen
    basis[:, :-1] -= risen
    return basis
