"""Is the time to the next event to be believed? Survival judged at each horizon, and by order.

    at a horizon   did nothing come within it? AUROC, log loss and ECE of S(h), beside the first head alone, which knows
                   one horizon and says the same at all of them
    by order       concordance (Harrell 1982): of two rows whose order is known, how often the one expected to come
                   back later did, by the restricted mean time to the next event; ties count half
    by quantile    how many came by their P50: half of all should

It is asked of snapshots whose horizon is over: rows that are not are left out here, at that horizon alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.model.examples.examples import Examples
from ebbtide.model.graph.hazard import QUANTILES, time_to_next_ms
from ebbtide.model.judging.evaluate import MODEL, Figure, no_nan
from ebbtide.model.judging.metrics import Ranking, ece, ece_bound, log_loss, reliability

FIRST_HEAD = "first_head"
ROWS_MIN = 50
ROWS_MAX = 4_000
"""Rows whose pairs are compared, at most."""


@dataclass(frozen=True, slots=True)
class AtHorizon:
    """rows: whose horizon is over. stayed_away: the share to whom nothing came within it, 0 to 1. values: metric ->
    `model` or `first_head` -> value. ece_bound: of a perfectly calibrated model. predicted, seen: the reliability curve
    of S."""

    horizon_ms: int
    rows: int
    stayed_away: Figure
    values: dict[str, dict[str, Figure]]
    ece_bound: Figure
    predicted: list[float]
    seen: list[float]


@dataclass(frozen=True, slots=True)
class Survival:
    """concordance: by `model` and `first_head`, 0 to 1, .5 is a coin. came_by: quantile -> the share of rows to whom
    the event had come by the time that the quantile names, of those whose time lies within what was seen."""

    horizons: list[AtHorizon]
    concordance: dict[str, Figure]
    came_by: dict[str, Figure]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, the names of the attributes."""
        return dict(no_nan(asdict(self)))


def judge_survival(
    rows: Examples,
    survival: NDArray[np.float64],
    p: NDArray[np.float64],
    horizons_ms: tuple[int, ...],
    known_until_ms: int,
    *,
    absence: bool,
    seed: int = 0,
) -> Survival:
    """rows: with outcomes; all are judged. survival: float64[n, K]; p: float64[n], of churn. absence: is churn that
    nothing comes?"""
    alone = p if absence else 1.0 - p
    judged = []
    for k, horizon in enumerate(horizons_ms):
        came = rows.wait_ms <= horizon
        usable = (rows.as_of + horizon < known_until_ms) & (came | (rows.seen_ms > horizon))
        judged.append(_at(horizon, ~came[usable], {MODEL: survival[usable, k], FIRST_HEAD: alone[usable]}))
    drawn = np.random.default_rng(seed).permutation(len(rows))[:ROWS_MAX]
    cut = rows.take(drawn)
    edges = np.array([0.0, *horizons_ms])
    s = np.concatenate([np.ones((len(drawn), 1)), survival[drawn]], axis=1)
    mean = (np.diff(edges) * (s[:, 1:] + s[:, :-1]) / 2).sum(axis=1)
    return Survival(
        judged,
        {name: concordance(cut, score) for name, score in ((MODEL, mean), (FIRST_HEAD, alone[drawn]))},
        {f"p{round(100 * q)}": _came_by(rows, survival, horizons_ms, q, known_until_ms) for q in QUANTILES},
    )


def concordance(rows: Examples, later: NDArray[np.float64]) -> Figure:
    """later: float64[n], the higher the later the event is expected. None without a comparable pair."""
    came = rows.wait_ms < rows.seen_ms
    time = np.where(came, rows.wait_ms, rows.seen_ms)
    right = pairs = 0.0
    for i in np.flatnonzero(came).tolist():
        known = time > time[i]  # who came after, or was seen for longer without
        pairs += known.sum()
        right += (later[known] > later[i]).sum() + 0.5 * (later[known] == later[i]).sum()
    return float(right / pairs) if pairs else None


def _at(
    horizon_ms: int, stayed_away: NDArray[np.bool_], scores: Mapping[str, NDArray[np.float64]]
) -> AtHorizon:
    y = stayed_away.astype(np.float64)
    if len(y) < ROWS_MIN:
        return AtHorizon(horizon_ms, len(y), None, {}, None, [], [])
    values: dict[str, dict[str, Figure]] = {
        "auroc": {name: Ranking(s, y).auroc() for name, s in scores.items()},
        "log_loss": {name: log_loss(s, y) for name, s in scores.items()},
        "ece": {name: ece(s, y) for name, s in scores.items()},
    }
    predicted, seen = reliability(scores[MODEL], y)
    bound = ece_bound(scores[MODEL])
    return AtHorizon(horizon_ms, len(y), float(y.mean()), values, bound, predicted.tolist(), seen.tolist())


def _came_by(
    rows: Examples,
    survival: NDArray[np.float64],
    horizons_ms: tuple[int, ...],
    quantile: float,
    known_until_ms: int,
) -> Figure:
    at = time_to_next_ms(horizons_ms, survival, quantile)
    # Up to the last horizon, for all alike: else only who is told a short time would be asked.
    last = horizons_ms[-1]
    usable = (rows.as_of + last < known_until_ms) & np.isfinite(at)
    usable &= (rows.wait_ms <= at) | (rows.seen_ms > at)
    return float((rows.wait_ms <= at)[usable].mean()) if usable.sum() >= ROWS_MIN else None
