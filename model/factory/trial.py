"""One trial of a search: other choices, the same examples, judged on the last fold before the test slice.

The test slice is never looked at, and what a trial learns from ends a horizon before what it is asked about: a search
that chose by the test slice would report its own luck. Where a training streams, a trial learns from what is held.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.spec import Spec
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.examples import Examples
from ebbtide.model.fitting.baselines import Fitted
from ebbtide.model.fitting.fit import Trainer
from ebbtide.model.fitting.recipe import Fold, find_recipe
from ebbtide.model.training.cross_fit import learned_from, validated
from ebbtide.model.training.prepare import Prepared
from ebbtide.model.training.trained import check_finite


@dataclass(frozen=True, slots=True)
class Ground:
    """What all trials share: rows to fit, later ones, and what the trees said of those."""

    spec: Spec
    rows: Examples
    later: Examples
    forest: NDArray[np.float64]

    @classmethod
    def of(cls, prepared: Prepared, config: TrainConfig) -> "Ground":
        fold = prepared.folds[-1]
        rows, shown = learned_from(fold.fit, config), validated(fold.later, config)
        spec = prepared.layout.spec
        return cls(spec, rows, shown, Fitted(spec, rows, config.seed).logits(shown.features)["trees"])


def trial(ground: Ground, config: TrainConfig, run: str, seen: Callable[[int, float], None]) -> float:
    """Log loss of the recipe that these choices lead to, at its best shift. seen: after each epoch, with the network's
    own; what it raises ends the trial. Raises ModelRefused for a network that diverged."""
    trainer = Trainer(ground.spec, config, len(ground.rows))
    found = trainer.fit(ground.rows, config.epochs_max, watched=ground.later, run=run, seen=seen)
    check_finite(found)
    return find_recipe([Fold(ground.later, found.watched, ground.forest)], config.forest_share).log_loss
