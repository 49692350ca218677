"""Forward cross-fitting: every part of a model learns from an earlier time and is asked about a later one.

    fold by fold:  fit on what was known ──▶ network by epoch, forest, baselines ──▶ logits of later rows ──▶ recipe

Here the trainings are done; what they mean for the recipe is `recipe.py`'s. The last fold is trained once more without
the ring, to know what the sequence adds.

A further target learns a head alone, on the trunk of the primary one's fold: one that has learned from no later time.
"""

from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.examples import Examples
from ebbtide.model.fitting.baselines import Fitted, Logits
from ebbtide.model.fitting.fit import Trainer
from ebbtide.model.fitting.recipe import Added, Fold, Recipe, find_recipe, sequence_adds
from ebbtide.model.graph.sizes import without_sequence
from ebbtide.model.training.prepare import FoldRows, Prepared
from ebbtide.model.training.progress import Stages
from ebbtide.model.training.trained import check_finite

VALIDATED_ROWS_MAX = 20_000
"""Rows that a fold validates on at most."""


@dataclass(frozen=True, slots=True)
class CrossFit:
    """recipe: of the model, found by so many `folds`. later, raw, unseen: the last fold's validated rows and what the
    model and its baselines said of them, raw. added: what the sequence adds; None where the network has none, and for a
    further target. trunks: the networks of the folds, with the time until which each knew labels, ms UTC."""

    recipe: Recipe
    folds: int
    later: Examples
    raw: NDArray[np.float64]
    unseen: Logits
    added: Added | None
    trunks: list[tuple[int, keras.Model]]


def cross_fit(
    prepared: Prepared, config: TrainConfig, stages: Stages, first: "CrossFit | None" = None
) -> CrossFit:
    """Find the recipe before the test slice. first: of the primary target, where this is a further one. Raises
    ModelRefused for a network that diverged."""
    spec = prepared.layout.spec
    chosen = [(fold, _trunk_of(fold, first)) for fold in prepared.folds]
    # A trunk that knows later labels than the fold is no judge of it; with none that is older, the oldest must do.
    chosen = [each for each in chosen if first is None or each[1] is not None] or chosen[-1:]
    folds = [(learned_from(fold.fit, config), validated(fold.later, config)) for fold, _ in chosen]
    streams = [prepared.stream(config, fold.before_ms, apart=fold.apart) for fold, _ in chosen]
    most = len(folds[-1][0] if streams[-1] is None else streams[-1])
    with stages.of("building the network", 1):
        trainer = Trainer(spec, config, most, head_only=first is not None)
    made: list[Fold] = []
    unseen: Logits = {}
    trunks: list[tuple[int, keras.Model]] = []
    for number, (rows, later) in enumerate(folds, 1):
        fold, trunk = chosen[number - 1]
        if first is not None and trunk is None:
            trunk = first.trunks[0][1]
        with stages.of(f"cross-fitting, fold {number} of {len(folds)}", 28 / len(folds)) as share:
            unseen = Fitted(spec, rows, config.seed).logits(later.features)
            fit = trainer.fit(
                rows, config.epochs_max, watched=later, run=f"fold {number}", progress=share, trunk=trunk,
                stream=streams[number - 1],
            )  # fmt: skip
            check_finite(fit)
            trunks.append((fold.until_ms, fit.network))
            made.append(Fold(later, fit.watched, unseen["trees"]))
    with stages.of("finding the recipe", 2):
        recipe = find_recipe(made, config.forest_share)
    raw = recipe.of_fold(made[-1])
    if not config.network.sequence or first is not None:
        return CrossFit(recipe, len(folds), folds[-1][1], raw, unseen, None, trunks)
    with stages.of("training without the sequence", 4) as share:
        plain = config.model_copy(update={"network": without_sequence(config.network)})
        rows, later = folds[-1]
        watched = (
            Trainer(spec, plain, most)
            .fit(
                rows, plain.epochs_max, watched=later, run="without the sequence", progress=share,
                stream=streams[-1],
            )
            .watched
        )  # fmt: skip
        pair = [[made[-1]], [Fold(later, watched, made[-1].forest)]]
        with_it, without = (find_recipe(each, config.forest_share).of_fold(each[0]) for each in pair)
        added = sequence_adds(later, with_it, without, config.seed)
    return CrossFit(recipe, len(folds), later, raw, unseen, added, trunks)


def _trunk_of(fold: FoldRows, first: CrossFit | None) -> keras.Model | None:
    """The latest of the primary target's that has learned from no label later than this fold's."""
    known = [network for until_ms, network in (first.trunks if first else []) if until_ms <= fold.until_ms]
    return known[-1] if known else None


def learned_from(rows: Examples, config: TrainConfig) -> Examples:
    """What of them is learned from."""
    return rows.thinned(config.network_rows_max, config.rows_a_customer_max, config.seed)


def validated(rows: Examples, config: TrainConfig) -> Examples:
    """Any of them alike, and many of one customer if many there are: the level is that of a row of the service."""
    return rows.thinned(VALIDATED_ROWS_MAX, len(rows), config.seed)
