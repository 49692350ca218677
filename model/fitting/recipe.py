"""How a model is made of its parts: found by forward cross-fitting, before the test slice has been looked at.

    fold   ├──── fit ────┤·· H ··├─ validate ─┤
           ├──────── fit ────────┤·· H ··├─ validate ─┤      each part learns from what was known then, and says what it
                                                             would have said of rows that came a horizon later

    parts of a fold          logits of the validated rows
    the linear model         z0                 logit = (1 - share) (z0 + shrinkage (z[epochs] - z0)) + share forest
    the network, by epoch    z[1], z[2], …
    the forest               forest

`epochs`, `shrinkage` and `share` are those of the lowest weighted log loss over all folds, each combination with its
best shift: the level is the calibrator's to find, and a base rate that has moved since must not choose between parts.
The calibrator is then fitted on the last fold's logits: of rows that no part had seen, and of the nearest to what
comes, since a level of years ago is no level of today (numpy's log, just after an event: 1.07 predicted for 1 that
churned; with all folds 1.20, and 1.39 with rows weighed as for training).

It knows logits and rows; it trains nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ebbtide.model.examples.examples import Examples
from ebbtide.model.fitting.calibrate import fit_calibrator, halved, levelled
from ebbtide.model.fitting.fit import SHRINKAGES
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.judging.metrics import Ranking, interval, log_loss, resamplings

SHARES = tuple(np.linspace(0.0, 1.0, 11).tolist())
"""How much of the logit is the forest's."""
ROWS_MAX = 8_000
"""Of a fold's rows, at most so many choose: what differs by less than they can tell is all one."""
NEWTON_STEPS = 3
BETTER_MIN = 2e-5
"""Log loss that a part more must save, or the simpler combination stands: fewer epochs, less of the forest."""
RESAMPLED = 200

Logits = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Fold:
    """What the parts said of m validated rows. network: float32[E + 1, m], by epoch, the linear model first. forest:
    float64[m]."""

    rows: Examples
    network: NDArray[np.float32]
    forest: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recipe:
    """epochs >= 0; shrinkage, share: 0 to 1. log_loss: on the validated rows, at the best shift. by_epoch: the lowest
    that each number of epochs came to there. With `share` 1 the network has no say, and with 0 the forest."""

    epochs: int
    shrinkage: float
    share: float
    calibrator: Calibrator
    log_loss: float
    by_epoch: list[float]

    def raw(self, network: Logits, forest: Logits) -> NDArray[np.float64]:
        """Logits of a network that was trained and shrunk by this recipe, and of a forest, mixed; not calibrated."""
        mixed: NDArray[np.float64] = (1 - self.share) * np.asarray(network, np.float64)
        return mixed + self.share * np.asarray(forest, np.float64)

    def of_fold(self, fold: Fold) -> NDArray[np.float64]:
        """The same of a fold's rows."""
        linear, trained = fold.network[0].astype(np.float64), fold.network[self.epochs].astype(np.float64)
        return self.raw(linear + self.shrinkage * (trained - linear), fold.forest)


def find_recipe(folds: Sequence[Fold], share: float | None = None) -> Recipe:
    """The recipe of at least one fold. share: of the forest, when it is not to be found but is given."""
    epochs = min(len(fold.network) for fold in folds) - 1
    shares = SHARES if share is None else (share,)
    parts = [_thinned(fold) for fold in folds]
    found: dict[tuple[int, float, float], float] = {}
    for epoch in range(epochs + 1):
        for shrinkage in SHRINKAGES if epoch else (0.0,):
            for each in shares:
                found[epoch, shrinkage, each] = float(
                    np.mean([p.loss(epoch, shrinkage, each) for p in parts])
                )
    lowest = min(found.values())
    # In the order in which they were tried, simpler ones stand first.
    chosen = next(key for key, value in found.items() if value <= lowest + BETTER_MIN)
    by_epoch = [min(v for (e, _, _), v in found.items() if e == epoch) for epoch in range(epochs + 1)]
    recipe = Recipe(*chosen, Calibrator(), found[chosen], by_epoch)
    calibrator = calibrated_on(folds[-1].rows, recipe.of_fold(folds[-1]))
    return Recipe(*chosen, calibrator, found[chosen], by_epoch)


def calibrated_on(rows: Examples, raw: Logits) -> Calibrator:
    """The calibrator of raw logits float[n] of rows that no part has seen."""
    return fit_calibrator(raw, rows.silence_s, rows.churned, rows.weights(damped=False))


def levelled_on(calibrator: Calibrator, rows: Examples, raw: Logits) -> Calibrator:
    """Half of the calibrator (`calibrate.halved` says why half) at the level of the latest rows whose outcome is known,
    by the logits of a model that has learned from them, too. The shape is found on unseen rows by a model that knew
    less; what has changed since, the later model has learned in part, and a shift found for the earlier one would count
    it twice."""
    return halved(levelled(calibrator, raw, rows.silence_s, rows.churned, rows.weights(damped=False)))


@dataclass(frozen=True, slots=True)
class Added:
    """What the sequence adds over the aggregates on the last fold's rows: AUROC and log loss with it less those without
    it, with 95 % intervals by bootstrap over customers. `nothing`: neither is better beyond chance."""

    auroc: float
    auroc_interval: tuple[float, float]
    log_loss: float
    log_loss_interval: tuple[float, float]

    @property
    def nothing(self) -> bool:
        return not (self.auroc_interval[0] > 0 or self.log_loss_interval[1] < 0)


def sequence_adds(rows: Examples, with_it: Logits, without: Logits, seed: int = 0) -> Added:
    """Both raw logits float[n] of the same rows, each with its best shift."""
    y, weight = rows.churned.astype(np.float64), rows.weights(damped=False).astype(np.float64)
    p = [
        expit(np.asarray(z, np.float64) + _shift(np.asarray(z, np.float64), y, weight))
        for z in (with_it, without)
    ]
    rankings = [Ranking(each, y) for each in p]
    drawn = list(resamplings(rows.people, RESAMPLED, seed))

    def apart(w: NDArray[np.floating[Any]] | None) -> tuple[float, float]:
        total = weight if w is None else weight * w
        aurocs, losses = [r.auroc(total) for r in rankings], [log_loss(each, y, total) for each in p]
        return aurocs[0] - aurocs[1], losses[0] - losses[1]

    ranked, lost = apart(None)
    draws = np.array([apart(w) for w in drawn])
    return Added(ranked, interval(draws[:, 0]), lost, interval(draws[:, 1]))


@dataclass(frozen=True, slots=True)
class _Thin:
    network: NDArray[np.float64]
    forest: NDArray[np.float64]
    y: NDArray[np.float64]
    weight: NDArray[np.float64]

    def loss(self, epoch: int, shrinkage: float, share: float) -> float:
        network = self.network[0] + shrinkage * (self.network[epoch] - self.network[0])
        z = (1 - share) * network + share * self.forest
        z = z + _shift(z, self.y, self.weight)
        return float((self.weight * (np.logaddexp(0.0, z) - self.y * z)).sum() / self.weight.sum())


def _thinned(fold: Fold) -> _Thin:
    n = len(fold.rows)
    rows = np.arange(n) if n <= ROWS_MAX else np.sort(np.random.default_rng(0).permutation(n)[:ROWS_MAX])
    return _Thin(
        fold.network[:, rows].astype(np.float64),
        np.asarray(fold.forest, np.float64)[rows],
        fold.rows.churned[rows].astype(np.float64),
        fold.rows.weights(damped=False)[rows].astype(np.float64),
    )


def _shift(z: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """The shift of the lowest weighted log loss, by Newton's method."""
    shift = 0.0
    for _ in range(NEWTON_STEPS):
        p = expit(z + shift)
        shift -= float((weight * (p - y)).sum() / max((weight * p * (1 - p)).sum(), 1e-9))
        shift = float(np.clip(shift, -10.0, 10.0))
    return shift
