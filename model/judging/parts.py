"""The test rows in parts, and each part judged: by moment of decision, and by slices of customers.

    moment                  decisions …                         slice              snapshots …
    just after an event     of an event                         plan is free       by a category that the spec lists
    silent under 1 hour     of a silence, by its length         known under 28d    by tenure, in horizons
    silent under 1 day
    silent under 1 week     A part *counts* from CUSTOMERS_MIN customers and CLASS_MIN rows of each outcome on: then it
    silent longer           can be said of it whether p is right and who ranks better. Smaller ones are shown.

Whether p is right: the mean of p against the share that churned. Their difference is the *bias*; its *bound* is what a
model without bias stays below in 95 % of samples, in *all* parts at once (the largest of the standardised differences,
by bootstrap over customers). A base rate that moves between two slices of time biases every part alike, and no model of
the past can know it; so the bias stands there twice, as it is and with the shift removed that makes all parts together
right.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import EVENT, SILENCE
from ebbtide.featurestore.slices import Slice
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS, format_duration
from ebbtide.model.examples.examples import Examples
from ebbtide.model.judging.evaluate import MODEL, Figure, Interval, Scores, no_nan
from ebbtide.model.judging.metrics import METRICS, PROBABILITY_MIN, ece, resamplings

CUSTOMERS_MIN, CLASS_MIN = 200, 30
"""From so many customers, and rows of each outcome, on a part counts."""
ROWS_MIN = 30
"""Below this, figures of a part are noise and are left out."""
SURE = 0.95
DAY, HOUR, WEEK = 1.0, 1 / 24, 7.0
TENURES = (1, 4)
"""Bands of tenure end here, in horizons."""
NEWTON_STEPS = 20

Masks = Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Part:
    """What scores are worth on some rows of some customers, `base_rate` of which churned, 0 to 1. The rest from
    ROWS_MIN rows on; bias, bound and differences where it counts.

    predicted:   the model's mean probability            ratio: predicted over base_rate; None where nobody churned
    bias, bound: predicted less base_rate, and what it may come to by chance, see above; `shifted_…`: the same without
                 the shift that all parts share
    values:      metric -> name -> value: auroc, auprc, log_loss, ece
    differences: metric -> baseline -> model minus baseline, an interval that is sure to 95 % in all parts at once
    """

    name: str
    rows: int
    customers: int
    base_rate: Figure
    counts: bool = False
    predicted: Figure = None
    bias: Figure = None
    bound: Figure = None
    shifted_bias: Figure = None
    shifted_bound: Figure = None
    values: dict[str, dict[str, Figure]] | None = None
    differences: dict[str, dict[str, Interval]] | None = None

    @property
    def ratio(self) -> Figure:
        return self.predicted / self.base_rate if self.predicted is not None and self.base_rate else None

    @property
    def within(self) -> bool | None:
        """Whether the bias is within its bound; None where that cannot be said."""
        return None if self.bias is None or self.bound is None else abs(self.bias) <= self.bound

    @property
    def shifted_within(self) -> bool | None:
        """The same with the shared shift removed."""
        known = self.shifted_bias is not None and self.shifted_bound is not None
        return abs(self.shifted_bias) <= self.shifted_bound if known else None  # type: ignore[arg-type, operator]  # both are known

    def as_json(self) -> dict[str, Any]:
        """Plain JSON; what too few rows leave out is left out."""
        out: dict[str, Any] = {
            "rows": self.rows, "customers": self.customers, "base_rate": self.base_rate, "counts": self.counts,
        }  # fmt: skip
        if self.values is None:
            return out
        out |= {"predicted": self.predicted, "ratio": self.ratio, **self.values}
        if self.counts:
            out |= {"bias": self.bias, "bound": self.bound, "within": self.within}
            out |= {"shifted_bias": self.shifted_bias, "shifted_within": self.shifted_within}
            out |= {f"{metric}_difference": each for metric, each in (self.differences or {}).items()}
        return dict(no_nan(out))


def moments_of(rows: Examples) -> dict[str, NDArray[np.bool_]]:
    """bool[n] by name: the moments of decision, apart from each other; snapshots are in none."""
    silence, in_silence = rows.silence_days, rows.cause == SILENCE
    return {
        "just after an event": rows.cause == EVENT,
        "silent under 1 hour": in_silence & (silence < HOUR),
        "silent under 1 day": in_silence & (silence >= HOUR) & (silence < DAY),
        "silent under 1 week": in_silence & (silence >= DAY) & (silence < WEEK),
        "silent longer": in_silence & (silence >= WEEK),
    }


def slices_of(rows: Examples, spec: Spec) -> dict[str, NDArray[np.bool_]]:
    """bool[n] by name: snapshots of the slices that the spec names; by default of each category that it lists, and of
    bands of tenure."""
    out: dict[str, NDArray[np.bool_]] = {}
    named = {feature.name: i for i, feature in enumerate(features(spec))}
    if spec.slices:
        return {each.name: _in_slice(rows, each, named) & rows.snapshot for each in spec.slices}
    for kind in spec.kinds:
        for each in kind.categories if kind.role == "attribute" and kind.attribute == "category" else ():
            out[f"{kind.name} is {each}"] = rows.features[:, named[f"{kind.name}_is_{each}"]] > 0
    tenure, edges = rows.features[:, named["tenure"]], [n * spec.horizon_ms for n in TENURES]
    words = [format_duration(edge) for edge in edges]
    band = np.searchsorted(np.array(edges) / DAY_MS, tenure, side="right")
    for i, name in enumerate(
        (f"known under {words[0]}", f"known {words[0]} to {words[1]}", f"known over {words[1]}")
    ):
        out[name] = band == i
    return {name: mask & rows.snapshot for name, mask in out.items()}


def _in_slice(rows: Examples, of: Slice, named: Mapping[str, int]) -> NDArray[np.bool_]:
    if of.tenure_ms is None:
        flag: NDArray[np.bool_] = rows.features[:, named[f"{of.kind}_is_{of.category}"]] > 0
        return flag
    tenure = rows.features[:, named["tenure"]].astype(np.float64) * DAY_MS
    band: NDArray[np.bool_] = (tenure >= of.tenure_ms[0]) & (tenure < of.tenure_ms[1])
    return band


def judge_parts(
    rows: Examples, scores: Scores, masks: Masks, *, bootstrap: int = 400, seed: int = 0
) -> list[Part]:
    """Each of the parts judged, in order. scores: float[n] of all rows by name, `model` among them."""
    y = rows.churned.astype(np.float64)
    counted = {name: mask for name, mask in masks.items() if _counts(rows, mask)}
    sure = _Sure(rows, y, scores, counted, bootstrap, seed) if counted else None
    return [_part(rows, y, scores, name, mask, sure) for name, mask in masks.items()]


def _part(
    rows: Examples,
    y: NDArray[np.float64],
    scores: Scores,
    name: str,
    mask: NDArray[np.bool_],
    sure: "_Sure | None",
) -> Part:
    n, customers = int(mask.sum()), len(np.unique(rows.customer[mask]))
    base_rate = float(y[mask].mean()) if n else None
    if n < ROWS_MIN:
        return Part(name, n, customers, base_rate)
    cut = {key: np.asarray(p, np.float64)[mask] for key, p in scores.items()}
    values: dict[str, dict[str, Figure]] = {
        metric: {key: no_nan(make(p, y[mask])(None)) for key, p in cut.items()}
        for metric, make in METRICS.items()
    }
    values["ece"] = {key: ece(p, y[mask]) for key, p in cut.items()}
    predicted = float(cut[MODEL].mean())
    if sure is None or name not in sure.names:
        return Part(name, n, customers, base_rate, False, predicted, values=values)
    at = sure.names.index(name)
    return Part(
        name, n, customers, base_rate, True, predicted,
        bias=float(sure.bias[at]), bound=float(sure.bound[at]),
        shifted_bias=float(sure.shifted_bias[at]), shifted_bound=float(sure.shifted_bound[at]),
        values=values, differences=sure.differences(name),
    )  # fmt: skip


def _counts(rows: Examples, mask: NDArray[np.bool_]) -> bool:
    churned = int(rows.churned[mask].sum())
    enough = min(churned, int(mask.sum()) - churned) >= CLASS_MIN
    return enough and len(np.unique(rows.customer[mask])) >= CUSTOMERS_MIN


class _Sure:
    """One draw of people serves all parts and all scores: so bounds hold in all parts at once, and differences are
    paired."""

    def __init__(
        self, rows: Examples, y: NDArray[np.float64], scores: Scores, masks: Masks, bootstrap: int, seed: int
    ) -> None:
        self.names = list(masks)
        p = np.asarray(scores[MODEL], np.float64)
        together = np.logical_or.reduce(list(masks.values()))
        shifted = _shifted(p, y, together)
        self._level = float(norm.ppf(1 - (1 - SURE) / 2 / (len(masks) * len(METRICS))))
        made = {
            name: {
                metric: {key: make(np.asarray(q, np.float64)[mask], y[mask]) for key, q in scores.items()}
                for metric, make in METRICS.items()
            }
            for name, mask in masks.items()
        }
        gaps = {kind: ([], []) for kind in ("plain", "shifted")}  # type: dict[str, tuple[list[Any], list[Any]]]
        self._drawn: dict[tuple[str, str, str], list[float]] = {}
        self._points: dict[tuple[str, str, str], float] = {}
        for draw, weight in enumerate([None, *resamplings(rows.people, bootstrap, seed)]):
            for kind, q in (("plain", p), ("shifted", shifted)):
                found = [_gap(q, y, mask, weight) for mask in masks.values()]
                gaps[kind][0 if draw == 0 else 1].append(found)
            for name, mask in masks.items():
                part = None if weight is None else weight[mask]
                for metric, named in made[name].items():
                    value = {key: measure(part) for key, measure in named.items()}
                    for key in value.keys() - {MODEL}:
                        apart = value[MODEL] - value[key]
                        if draw == 0:
                            self._points[name, metric, key] = apart
                        else:
                            self._drawn.setdefault((name, metric, key), []).append(apart)
        self.bias, self.bound = _simultaneous(*gaps["plain"])
        self.shifted_bias, self.shifted_bound = _simultaneous(*gaps["shifted"])

    def differences(self, name: str) -> dict[str, dict[str, Interval]]:
        """metric -> baseline -> interval, wide enough to hold in all parts at once."""
        out: dict[str, dict[str, Interval]] = {}
        for (part, metric, key), point in self._points.items():
            if part == name:
                width = self._level * float(np.nanstd(self._drawn[part, metric, key]))
                out.setdefault(metric, {})[key] = (point - width, point + width)
        return {metric: dict(sorted(each.items())) for metric, each in out.items()}


def _gap(
    p: NDArray[np.float64], y: NDArray[np.float64], mask: NDArray[np.bool_], weight: NDArray[Any] | None
) -> float:
    part = None if weight is None else weight[mask]
    if part is not None and part.sum() <= 0:
        return float("nan")
    return float(np.average(p[mask] - y[mask], weights=part))


def _simultaneous(points: list[Any], draws: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """bias [m] and its bound [m]: a multiple of each part's standard error that holds for all of them at once."""
    bias, drawn = np.array(points[0], np.float64), np.array(draws, np.float64)
    error = np.maximum(np.nanstd(drawn, axis=0), 1e-12)
    largest = np.nanmax(np.abs(drawn - bias) / error, axis=1)
    return bias, float(np.quantile(largest, SURE)) * error


def _shifted(p: NDArray[np.float64], y: NDArray[np.float64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    """p with the one shift in logits that makes its mean on `rows` what churned there."""
    z = logit(np.clip(p, PROBABILITY_MIN, 1 - PROBABILITY_MIN))
    shift = 0.0
    for _ in range(NEWTON_STEPS):
        q = expit(z[rows] + shift)
        shift += float(np.clip((y[rows] - q).sum() / max((q * (1 - q)).sum(), 1e-9), -2.0, 2.0))
    moved: NDArray[np.float64] = expit(z + shift)
    return moved
