"""A model in its parts, before it is published: network, trees, recipe and calibrator make examples probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import keras
import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.spec import Spec
from ebbtide.model.errors import ModelRefused
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.shards import Shards
from ebbtide.model.fitting.baselines import Fitted
from ebbtide.model.fitting.fit import Fit, Trainer, logits
from ebbtide.model.fitting.hazard import Waits, fit_hazard
from ebbtide.model.fitting.recipe import Recipe, levelled_on
from ebbtide.model.fitting.trees import as_forest, tree_logits
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.graph.forest import Forest
from ebbtide.model.graph.hazard import Hazard
from ebbtide.model.graph.head import Head
from ebbtide.model.judging.thresholds import Peaks
from ebbtide.model.training.prepare import Decisions


@dataclass(frozen=True, slots=True)
class Trained:
    """fitted: the baselines of the same rows, whose trees are the forest. hazard: None until it has been fitted."""

    fit: Fit
    fitted: Fitted
    recipe: Recipe
    calibrator: Calibrator
    hazard: Hazard | None = None

    @property
    def head(self) -> Head:
        """What is published of it."""
        return Head(self.fit.network, self.calibrator, self.forest, self.recipe.share, self.hazard)

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

    def logit(self, examples: Examples, raw: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Calibrated logits, float64[n]; of `raw` ones, where another model has said them."""
        return self.calibrator.logit(self.raw(examples) if raw is None else raw, examples.silence_s)

    def survival(self, examples: Examples) -> NDArray[np.float64]:
        """S at each horizon, float64[n, K] in [0, 1]."""
        assert self.hazard is not None
        return self.hazard.survival(self._standardised(examples), self.logit(examples))

    def timed(
        self, spec: Spec, rows: Sequence[tuple[Examples, NDArray[np.float64]]], until_ms: int
    ) -> "Trained":
        """The same with the time to the next event. rows: with raw logits of them, by a model that has not learned from
        them; what is known of them is what happened before `until_ms`, ms UTC. spec: with their target alone."""
        parts = [
            Waits(
                self._standardised(each), self.logit(each, raw), each.wait_ms,
                np.minimum(each.seen_ms, until_ms - each.as_of), each.weights(damped=False),
            )
            for each, raw in rows if len(each)
        ]  # fmt: skip
        hazard = fit_hazard(
            Waits.joined(parts), spec.horizons_ms, spec.horizon_ms, absence=spec.churn_is_absence
        )
        return replace(self, hazard=hazard)

    def _standardised(self, examples: Examples) -> NDArray[np.float32]:
        standardise = self.fit.network.get_layer("standardise")
        x: NDArray[np.float32] = np.asarray(standardise(examples.features), np.float32)
        return x

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
    trunk: keras.Model | None = None,
    run: str = "training",
    stream: Shards | None = None,
) -> Trained:
    """Fit all parts on usable rows by a recipe, on a trunk where one is given; `run` names the curves. stream: what the
    network learns from, where that is more. Raises ModelRefused for a network that diverged."""
    fit = trainer.fit(
        rows, recipe.epochs, recipe.shrinkage, run=run, progress=progress, trunk=trunk, stream=stream
    )
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
