"""A model in its parts, before it is published: network, trees, recipe and calibrator make examples probabilities."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ebbtide.model.errors import ModelRefused
from ebbtide.model.examples.examples import Examples
from ebbtide.model.fitting.baselines import Fitted
from ebbtide.model.fitting.fit import Fit, Trainer, logits
from ebbtide.model.fitting.recipe import Recipe, levelled_on
from ebbtide.model.fitting.trees import as_forest, tree_logits
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.graph.forest import Forest
from ebbtide.model.judging.thresholds import Peaks
from ebbtide.model.training.prepare import Decisions


@dataclass(frozen=True, slots=True)
class Trained:
    """fitted: the baselines of the same rows, whose trees are the forest."""

    fit: Fit
    fitted: Fitted
    recipe: Recipe
    calibrator: Calibrator

    @property
    def forest(self) -> Forest | None:
        """What is published of the trees: nothing where they have no share."""
        return as_forest(self.fitted.trees) if self.recipe.share else None

    def raw(self, examples: Examples) -> NDArray[np.float64]:
        """Logits float64[n], not calibrated."""
        trees = tree_logits(self.fitted.trees, examples.features) if self.recipe.share else 0.0
        return self.recipe.raw(logits(self.fit.network, examples.inputs), np.asarray(trees))

    def p(self, examples: Examples) -> NDArray[np.float64]:
        """Calibrated probabilities, float64[n] in [0, 1]."""
        return self.calibrator.probability(self.raw(examples), examples.silence_s)

    def levelled(self, latest: Examples) -> "Trained":
        """The same at the level of the latest rows that it has learned from."""
        return replace(self, calibrator=levelled_on(self.calibrator, latest, self.raw(latest)))

    def peaks(self, decisions: Decisions, horizon_ms: int) -> Peaks:
        """The highest p of each customer and horizon."""
        rows = decisions.rows
        return Peaks(decisions.start_ms, horizon_ms, rows.customer, rows.as_of, self.p(rows), rows.label)


def fitted_by(
    recipe: Recipe,
    trainer: Trainer,
    rows: Examples,
    calibrator: Calibrator,
    progress: Callable[[float], None] = lambda _: None,
) -> Trained:
    """Fit all parts on usable rows by a recipe. Raises ModelRefused for a network that diverged."""
    fit = trainer.fit(rows, recipe.epochs, recipe.shrinkage, progress=progress)
    check_finite(fit)
    return Trained(fit, Fitted(trainer.spec, rows, trainer.config.seed), recipe, calibrator)


def check_finite(fit: Fit) -> None:
    """Raises ModelRefused for a network that diverged."""
    if all(np.isfinite(weights).all() for weights in fit.network.get_weights()):
        return
    raise ModelRefused(
        "the training diverged: weights are not finite numbers",
        hint="take a lower --learning-rate, and look for absurd values with `ebbtide spec check`",
    )
