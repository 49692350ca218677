"""A model beside its baselines on the same rows: figures, intervals and differences.

It is asked of *snapshots*, every eligible customer as of stated dates; the moments of decision are `parts.py`'s, and
whether a model may be published is `gate.py`'s. It knows labels and probabilities; it refuses to know where they come
from, so served scores are judged by the same lines as offline ones.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.model.judging.metrics import METRICS, ece, ece_bound, interval, lift, resamplings

MODEL = "model"
LIFT_SHARE = 0.10

Figure = float | None
"""A figure, or that it cannot be known here: of too few rows, or of one class."""
Interval = tuple[float, float]
Scores = Mapping[str, NDArray[np.floating[Any]]]
"""Probabilities float[n] by name; `model` is one of the names."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of some scores on n rows of m customers; a name is `model` or a baseline's.

    rows, customers: n, m >= 1
    base_rate:   share of the rows that churned, 0 to 1
    values:      metric -> name -> value: auroc and auprc 0 to 1, log_loss in nats, ece 0 to 1, lift_at_10 >= 0 (1 is
                 chance); NaN where one class is missing
    intervals:   metric -> name -> 95 % interval by bootstrap over people, for auroc, auprc, log_loss
    differences: metric -> baseline -> 95 % interval of model minus baseline, paired
    ece_bound:   name -> the ece that a perfectly calibrated model with these probabilities stays below in 95 % of
                 samples
    people:      who judge, and how many of them have a row that churned, and one that did not: rows of one person say
                 much the same, whatever their number
    """

    rows: int
    customers: int
    base_rate: float
    values: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Interval]]
    ece_bound: dict[str, float]
    people: int = 0
    people_churned: int = 0
    people_stayed: int = 0

    @property
    def best_baseline(self) -> str:
        """Name of the baseline with the highest AUROC."""
        others = {name: value for name, value in self.values["auroc"].items() if name != MODEL}
        return max(others, key=lambda name: (np.nan_to_num(others[name], nan=-1.0), name))

    @property
    def unknown(self) -> list[str]:
        """The figures that are no finite numbers, by name: then nothing is known of them."""
        bounds = {
            f"{metric} {kind}": {name: sum(pair) for name, pair in by_name.items()}
            for kind, found in (("interval", self.intervals), ("difference", self.differences))
            for metric, by_name in found.items()
        }
        named = {**self.values, **bounds, "ece bound": self.ece_bound, "base rate": {"rows": self.base_rate}}
        return [
            f"{metric} of {name}"
            for metric, by_name in named.items()
            for name, value in by_name.items()
            if not np.isfinite(value)
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, stable names: `auroc` {name: value}, `auroc_interval`, `auroc_difference` and so on."""
        out: dict[str, Any] = {"rows": self.rows, "customers": self.customers, "base_rate": self.base_rate}
        out |= {name: getattr(self, name) for name in ("people", "people_churned", "people_stayed")}
        out |= self.values
        out |= {f"{metric}_interval": _lists(by_name) for metric, by_name in self.intervals.items()}
        out |= {f"{metric}_difference": _lists(by_name) for metric, by_name in self.differences.items()}
        out |= {"ece_bound": self.ece_bound, "best_baseline": self.best_baseline}
        return dict(no_nan(out))


def evaluate(
    scores: Scores,
    churned: NDArray[Any],
    customer: NDArray[np.integer[Any]],
    *,
    people: NDArray[np.integer[Any]] | None = None,
    bootstrap: int = 400,
    seed: int = 0,
) -> Evaluation:
    """scores: float[n] by name, among them `model`; churned: [n] of 0 and 1; customer: int[n], whose row it is.
    people: int[n], whom to resample: rows of one number are drawn together; default: customers. Of composite customers,
    whose rows are one person's where their first part is (`Examples.people`).

    Figures that need both classes are NaN when there is but one. Raises ValueError on no rows.
    """
    if not len(churned):
        raise ValueError("no rows to evaluate")
    y, person = np.asarray(churned, np.float64), customer if people is None else people
    measures = {
        metric: {name: make(np.asarray(p, np.float64), y) for name, p in scores.items()}
        for metric, make in METRICS.items()
    }
    values = {
        metric: {name: measure(None) for name, measure in named.items()} for metric, named in measures.items()
    }
    drawn: dict[str, dict[str, list[float]]] = {metric: {name: [] for name in scores} for metric in METRICS}
    for weight in resamplings(person, bootstrap, seed):
        for metric, named in measures.items():
            for name, measure in named.items():
                drawn[metric][name].append(measure(weight))
    arrays = {metric: {name: np.array(v) for name, v in named.items()} for metric, named in drawn.items()}
    return Evaluation(
        rows=len(y),
        customers=len(np.unique(customer)),
        base_rate=float(y.mean()),
        values={
            **values,
            "ece": {name: ece(p, y) for name, p in scores.items()},
            "lift_at_10": {name: lift(p, y, LIFT_SHARE) for name, p in scores.items()},
        },
        intervals={
            metric: {name: interval(v) for name, v in named.items()} for metric, named in arrays.items()
        },
        differences={
            metric: {name: interval(named[MODEL] - v) for name, v in named.items() if name != MODEL}
            for metric, named in arrays.items()
        },
        ece_bound={name: ece_bound(p, seed) for name, p in scores.items()},
        people=len(np.unique(person)),
        people_churned=len(np.unique(person[y > 0])),
        people_stayed=len(np.unique(person[y <= 0])),
    )


def _lists(intervals: Mapping[str, Iterable[float]]) -> dict[str, list[float]]:
    return {name: list(bounds) for name, bounds in intervals.items()}


def no_nan(value: Any) -> Any:
    """The same with None for NaN: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: no_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [no_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
