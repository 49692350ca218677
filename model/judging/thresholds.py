"""From probabilities to a service: the thresholds at which alerts begin and end.

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
from scipy.special import expit, logit

from ebbtide.model.examples.labels import CHURNED, STAYED

HYSTERESIS = 0.5
"""`exit` lies this far below `enter`, in logits: a p that trembles at the threshold opens one episode, not ten."""
TOO_MANY = 2.0
"""More alerts than so many times what was asked for flood whoever reads them; fewer are missed, and told."""
ROUNDING = 1e-5
"""So far below the p that it is chosen by lies `enter`: p is served in float32 and chosen by in float64, and a tie of a
fifth of all customers must not be in or out by the difference."""
TIED_MIN = 0.25
"""Of the share asked for: where so much of it has one p at the threshold, that is told."""
P_MIN = 1e-6
"""Thresholds stay this far from 0 and 1, where every or no p would pass."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """p >= enter opens an episode, p < exit ends it; 0 < exit < enter < 1.

    alert_rate:        the share of customer-horizons that was to reach `enter`, 0 to 1
    alerted:           the share that did where it was looked at, 0 to 1; None where nobody came up for a decision
    precision:         how many of the first such decisions with a label were right, 0 to 1; None without any
    customer_horizons: customers with a decision, counted in each horizon anew
    tied:              the share of them that has one and the same peak just where the share asked for ends, 0 to 1:
                       they are alerted together or not at all
    """

    enter: float
    exit: float
    alert_rate: float
    alerted: float | None = None
    precision: float | None = None
    customer_horizons: int = 0
    tied: float = 0.0

    @property
    def tie_words(self) -> str:
        """Why the share asked for cannot be met; "" where no tie is in its way."""
        if self.tied < TIED_MIN * self.alert_rate:
            return ""
        return (
            f"{self.tied:.1%} of them have one and the same probability just where {self.alert_rate:.0%} would end, "
            "and are alerted together or not at all"
        )


class Peaks:
    """n decisions, and in them each customer's highest p, horizon by horizon from `start_ms`.

    customer: int[n]     as_of: int64[n], ms UTC     p: float[n], calibrated     label: int8[n], as `examples.labels`
    """

    def __init__(
        self,
        start_ms: int,
        horizon_ms: int,
        customer: NDArray[Any],
        as_of: NDArray[Any],
        p: NDArray[Any],
        label: NDArray[Any],
    ) -> None:
        window = (as_of - start_ms) // horizon_ms
        order = np.lexsort((as_of, window, customer))
        customer, window = customer[order], window[order]
        self._p, self._label = p[order], label[order]
        new = np.ones(len(order), np.bool_)
        new[1:] = (np.diff(customer) != 0) | (np.diff(window) != 0)
        self._group = np.cumsum(new) - 1
        self._peaks = np.maximum.reduceat(self._p, np.flatnonzero(new)) if len(order) else self._p

    def thresholds(self, alert_rate: float) -> Thresholds | None:
        """`enter` such that `alert_rate` (0 to 1) of the customer-horizons reach it, or as near as ties allow: of the
        two peaks around the quantile the one whose share is nearer to it as a ratio, but not one of more than TOO_MANY
        times as many. Customers of whom nothing but their one event is known have one p, and stand or fall together.
        None without a single decision: then nothing is known of how many would be alerted."""
        if not len(self._peaks):
            return None
        wide = self._end(alert_rate)
        above = self._peaks[self._peaks > wide + ROUNDING]
        near = np.array([wide, above.min()] if len(above) else [wide]) - ROUNDING
        shares = np.array([(self._peaks >= each).mean() for each in near]) / alert_rate
        apart = np.abs(np.log(shares)) + np.where(shares > TOO_MANY, np.inf, 0.0)
        enter = float(np.clip(near[np.argmin(apart)], P_MIN, 1 - P_MIN))
        return self.at(Thresholds(enter, float(expit(logit(enter) - HYSTERESIS)), alert_rate))

    def at(self, chosen: Thresholds) -> Thresholds:
        """What thresholds chosen elsewhere come to here: the share alerted, and how often rightly."""
        above = np.flatnonzero(self._p >= chosen.enter)
        opened = self._label[above[np.unique(self._group[above], return_index=True)[1]]]
        known = opened[(opened == CHURNED) | (opened == STAYED)]
        return replace(
            chosen,
            alerted=float((self._peaks >= chosen.enter).mean()) if len(self._peaks) else None,
            precision=float((known == CHURNED).mean()) if len(known) else None,
            customer_horizons=len(self._peaks),
            tied=self._tied(chosen.alert_rate) if len(self._peaks) else 0.0,
        )

    def _end(self, alert_rate: float) -> float:
        """The peak at which the asked share of the highest ones ends."""
        return float(np.quantile(self._peaks, 1 - alert_rate, method="higher"))

    def _tied(self, alert_rate: float) -> float:
        near = np.abs(self._peaks - self._end(alert_rate)) <= ROUNDING
        return float(near.mean()) if near.sum() > 1 else 0.0
