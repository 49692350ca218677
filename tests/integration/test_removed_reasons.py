"""Do reasons say what moves the score? A trained model, and its alerts' reasons taken away: the sum could be faked by
rescaling, this could not.

    logit of a row ──── three reasons at the baseline's values ───▶ logit without them
                        the loudest three  │  three at random: the loudest move it more, nearly always

The logit of what is left is computed by the parts in Keras, scikit-learn and NumPy; what explains is the SavedModel.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.reasons import SEQUENCE, Reasons
from ebbtide.featurestore.record.replay import replay
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.known import known_log
from ebbtide.model.examples.made_up import made_up
from ebbtide.model.explaining.explained import Explained
from ebbtide.model.fitting.fit import Trainer
from ebbtide.model.fitting.recipe import Recipe
from ebbtide.model.graph.calibrator import KNOTS_S, Calibrator
from ebbtide.model.graph.features import FeatureLayer
from ebbtide.model.graph.network import in_float32
from ebbtide.model.graph.standard import logs
from ebbtide.model.serving.artifact import export
from ebbtide.model.serving.scorer import Scorer
from ebbtide.model.training.prepare import prepare
from ebbtide.model.training.trained import Trained, fitted_by
from tests.integration.test_train import CONFIG, KNOWN_UNTIL, demo_spec, simulated
from tests.support.seams.models import FACTS

SPEC = demo_spec()
LAYOUT = Layout(SPEC)
ALERTS, DRAWS = 200, 5
CALIBRATOR = Calibrator(a=0.9, b=1.2, c=-0.3, by_silence=tuple(np.linspace(-0.2, 0.3, len(KNOTS_S))))


@pytest.fixture(scope="module")
def trained() -> Trained:
    prepared = prepare(LAYOUT, known_log(LAYOUT, simulated(SPEC), KNOWN_UNTIL), CONFIG)
    recipe = Recipe(2, 1.0, 0.5, CALIBRATOR, 0.0, [])
    return fitted_by(recipe, Trainer(SPEC, CONFIG, len(prepared.early)), prepared.early, CALIBRATOR)


@pytest.fixture(scope="module")
def explained(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Explained]:
    """The rows of a month that score highest, one a customer, and why."""
    points = next(iter(replay(LAYOUT, simulated(SPEC), KNOWN_UNTIL, chunk=10**6)))
    chosen = np.flatnonzero(points.scored & (points.as_of > KNOWN_UNTIL - 30 * DAY_MS))
    rows, as_of = points.rows[chosen], points.as_of[chosen]
    folder = export(
        tmp_path_factory.mktemp("models"), SPEC, in_float32(trained.fit.network, SPEC, CONFIG.network), CALIBRATOR,
        FACTS, made_up(LAYOUT), forest=trained.forest, share=0.5, sizes=(8, 32),
    )  # fmt: skip
    scorer = Scorer.load(folder, LAYOUT, whole=False)
    best = np.argsort(-scorer.score(rows, as_of), kind="stable")
    _, first = np.unique(points.customer[chosen[best]], return_index=True)
    best = best[np.sort(first)][:ALERTS]
    rows, as_of = rows[best], as_of[best]
    record = {name: np.ascontiguousarray(rows[name]) for name in LAYOUT.model_fields}
    inputs = {name: np.asarray(column) for name, column in FeatureLayer(LAYOUT)(record, as_of).items()}
    nothing = np.zeros(len(as_of), np.int8)
    return Examples(
        nothing.astype(np.int32), as_of, nothing.astype(np.uint8), nothing, inputs
    ), scorer.explain(rows, as_of)


def without(examples: Examples, groups: NDArray[np.bool_], usual: NDArray[np.float32]) -> Examples:
    """The rows with the groups bool[n, G] at the baseline's values."""
    names = Reasons(SPEC).groups
    of = [names.index(each.group) for each in features(SPEC)]
    inputs = {name: column.copy() for name, column in examples.inputs.items()}
    inputs["features"] = np.where(groups[:, of], usual, inputs["features"]).astype(np.float32)
    for name in ("kind", "count", "value", "gap"):
        inputs[name][groups[:, names.index(SEQUENCE)]] = 0
    return Examples(examples.customer, examples.as_of, examples.cause, examples.label, inputs)


def logit(trained: Trained, examples: Examples) -> NDArray[np.float64]:
    return trained.calibrator.logit(trained.raw(examples), examples.silence_s)


def usual_of(trained: Trained) -> NDArray[np.float32]:
    """The baseline: the training means of the squeezed features, back in natural units."""
    listed = features(SPEC)
    mean = np.asarray(trained.fit.network.get_layer("standardise").mean, np.float64)[: len(listed)]
    log = np.array(logs(SPEC)[: len(listed)])
    return np.where(log, np.sign(mean) * np.expm1(np.abs(mean)), mean).astype(np.float32)


def test_the_logit_and_its_reference_are_those_of_the_parts(
    trained: Trained, explained: tuple[Examples, Explained]
) -> None:
    examples, why = explained
    assert why.holds.all(), why.gap.max()
    print("largest gap", why.gap.max())
    np.testing.assert_allclose(why.logit, logit(trained, examples), atol=1e-3)
    everything = np.ones((len(examples), len(Reasons(SPEC).groups)), np.bool_)
    reference = logit(trained, without(examples, everything, usual_of(trained)))
    np.testing.assert_allclose(why.reference, reference, atol=1e-3)


def test_the_top_reasons_move_the_logit_more_than_others(
    trained: Trained, explained: tuple[Examples, Explained]
) -> None:
    examples, why = explained
    reasons, usual, before = Reasons(SPEC), usual_of(trained), logit(trained, explained[0])
    n, names = len(examples), reasons.groups

    def moved(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.abs(before - logit(trained, without(examples, chosen, usual)))

    loudest = np.zeros((n, len(names)), np.bool_)
    for i in range(n):
        for said in reasons.top(why.values[i], why.contributions[i], float(why.sequence[i]), 1, 3):
            loudest[i, names.index(said.group)] = True
    rng = np.random.default_rng(seed := int(np.random.SeedSequence().generate_state(1)[0]))
    print(f"seed {seed}, {len(names)} groups")
    of_loudest = moved(loudest)
    wins = []
    for _ in range(DRAWS):
        random = np.argsort(rng.random((n, len(names))), axis=1)[:, :3]
        chosen = np.zeros_like(loudest)
        np.put_along_axis(chosen, random, True, axis=1)
        wins.append(np.mean(of_loudest >= moved(chosen)))
    print(f"the loudest move it more in {np.mean(wins):.1%} of {n} alerts")
    assert np.mean(wins) >= 0.8
