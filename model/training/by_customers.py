"""Cross-validation over customers: what papers print, and what no service can have.

A split of customers knows the future of the others: it judges a recipe on a time that it has seen. It needs a few dates
only, so it is for histories too short for slices of time, and to stand beside published tables. Composite customers are
split by their first part: whoever scores a learner in one course has not learned from the same learner in another.

    customers in K parts by a hash ──▶ for each part: recipe and model from the others' snapshots ──▶ p of this part's
                                                                                              all p together ──▶ table
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.customer import first_parts
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.hashing import hash_texts
from ebbtide.featurestore.parts.part import Part
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.timestamps import format_time
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.dataset import History
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.known import known_log
from ebbtide.model.examples.labels import CANCELLED, UNKNOWN
from ebbtide.model.examples.sample import Wanted, gather
from ebbtide.model.examples.slices import HELD_OUT_PERCENT
from ebbtide.model.fitting.baselines import Baselines, Fitted
from ebbtide.model.fitting.fit import Trainer
from ebbtide.model.fitting.recipe import Fold, find_recipe
from ebbtide.model.judging.evaluate import MODEL, Evaluation, evaluate
from ebbtide.model.training.trained import fitted_by

ROWS_MIN = 200


@dataclass(frozen=True, slots=True)
class CrossValidated:
    """evaluation: of all rows, each scored by a model that has not seen its customer. dates: of snapshots, ms UTC."""

    folds: int
    dates: list[int]
    evaluation: Evaluation

    def as_json(self) -> dict[str, Any]:
        """The evaluation's names, `folds` and `dates`."""
        return {
            "folds": self.folds,
            "dates": [format_time(date) for date in self.dates],
            **self.evaluation.as_json(),
        }


def cross_validate(
    log: EventBatch,
    spec: Spec,
    config: TrainConfig,
    folds: int,
    dates: list[int] | None = None,
    *,
    labels_until_ms: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> CrossValidated:
    """Judge the recipe of `config` over customers in `folds` parts. dates: of the snapshots, ms UTC; default: the last
    one whose horizon is over. Raises SpecError: too few rows, or one outcome alone."""
    layout = Layout(spec)
    known = known_log(layout, log, labels_until_ms)
    asked = dates or [known.until_ms - spec.horizon_ms - 1]
    progress("replaying history")
    wanted = Wanted(known.until_ms, tuple(asked), 2 * config.examples_max, config.seed)
    history = History(layout, known.log, known.until_ms)
    drawn = history.examples(gather(layout, Part.whole(known.log), wanted).snapshots)
    rows = drawn.take((drawn.label != CANCELLED) & (drawn.label != UNKNOWN))
    churned = int(rows.churned.sum())
    if len(rows) < ROWS_MIN or churned in (0, len(rows)):
        raise SpecError(
            f"{len(rows)} customers with a known outcome, {churned} of them churned: too few to learn from",
            hint="take other dates, or another --horizon",
        )
    part, inner = (each[rows.customer] for each in split_of(spec, known.log.customers, folds))
    trainer = Trainer(spec, config, len(rows))
    scores: dict[str, NDArray[np.float64]] = {}
    for number in range(folds):
        progress(f"customers of part {number + 1} of {folds}")
        mine, others = part == number, part != number
        found = _scored(
            trainer, rows.take(others & ~inner), rows.take(others & inner), rows.take(others), rows.take(mine)
        )
        for name, p in found.items():
            scores.setdefault(name, np.zeros(len(rows)))[mine] = p
    progress("judging")
    evaluation = evaluate(
        scores, rows.churned, rows.customer, people=rows.people, bootstrap=config.bootstrap, seed=config.seed
    )
    return CrossValidated(folds, asked, evaluation)


def split_of(spec: Spec, customers: Sequence[str], folds: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """int64[m], the part of each customer, 0 to folds - 1; bool[m], who finds the recipe when others are scored. Both
    by a hash of the id, of a composite customer by that of the first part."""
    hashes = hash_texts(first_parts(customers, spec.customer))
    inner = (hashes // np.uint64(folds) % np.uint64(100)).astype(np.int64) < HELD_OUT_PERCENT
    return (hashes % np.uint64(folds)).astype(np.int64), inner


def _scored(
    trainer: Trainer, fit: Examples, validate: Examples, both: Examples, unseen: Examples
) -> dict[str, NDArray[np.float64]]:
    """Probabilities of the unseen rows by name: the recipe from `fit` and `validate`, the models from both."""
    config = trainer.config
    first = Fitted(trainer.spec, fit, config.seed).logits(validate.features)
    watched = trainer.fit(fit, config.epochs_max, watched=validate).watched
    recipe = find_recipe([Fold(validate, watched, first["trees"])], config.forest_share)
    trained = fitted_by(recipe, trainer, both, recipe.calibrator)
    return {MODEL: trained.p(unseen), **Baselines(trained.fitted, validate, first).probabilities(unseen)}
