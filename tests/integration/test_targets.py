"""A spec with several targets, from a log to a model that is loaded: a head, thresholds and figures for each.

The customers are the simulator's and the network is small: what is tested is the order of things.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import replay
from ebbtide.featurestore.spec import Spec, dump_spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.examples.dataset import History
from ebbtide.model.examples.known import known_log
from ebbtide.model.serving.manifest import read_manifest
from ebbtide.model.serving.scorer import Scorer
from ebbtide.model.training.offline import evaluate_model
from ebbtide.model.training.prepare import prepare
from ebbtide.model.training.progress import Stages
from ebbtide.model.training.report import Published
from ebbtide.model.training.train import finish, judge, write_version
from tests.integration.test_train import CONFIG, CREATED, KNOWN_UNTIL, demo_spec, simulated

SEEN = ["page_view", "search", "add_to_cart", "purchase", "support_ticket"]
TARGETS: list[dict[str, Any]] = [
    {"name": "visit", "kinds": SEEN},
    {"name": "sale", "kinds": ["purchase"]},
    {"name": "complaint", "kinds": ["support_ticket"], "churn_when": "present"},
]
NAMES = [str(target["name"]) for target in TARGETS]


@pytest.fixture(scope="module")
def spec() -> Spec:
    return parse_spec({**dump_spec(demo_spec()), "name": "three", "targets": TARGETS})


@pytest.fixture(scope="module")
def log(spec: Spec) -> EventBatch:
    return simulated(spec)


@pytest.fixture(scope="module")
def made(spec: Spec, log: EventBatch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """Prepared, Finished and the version's folder, whatever the gate says of so small a model."""
    layout = Layout(spec)
    prepared = prepare(layout, known_log(layout, log, KNOWN_UNTIL), CONFIG)
    judged = judge(prepared, CONFIG, Stages())
    finished = finish(prepared, judged, CONFIG, Stages())
    out = tmp_path_factory.mktemp("models")
    return prepared, finished, write_version(out, prepared, judged, finished, CONFIG, CREATED)


@pytest.fixture(scope="module")
def scorer(spec: Spec, made: tuple[Any, Any, Path]) -> Scorer:
    return Scorer.load(made[2], Layout(spec))


def test_each_target_has_a_head_a_report_and_a_card(made: tuple[Any, Any, Path]) -> None:
    _, finished, path = made
    heads = read_manifest(path).heads
    assert [head.name for head in heads] == NAMES
    assert [head.churn_when for head in heads] == ["absent", "absent", "present"]
    assert all(0 < head.exit < head.enter < 1 for head in heads)
    data = Published(finished.report, path, {}).as_json()
    assert [data["target"], *(each["target"] for each in data["further"])] == NAMES
    assert len({each["base_rate"] for each in (data, *data["further"])}) == 3
    for folder in (path, path / "targets" / "sale", path / "targets" / "complaint"):
        assert {"model_card.md", "reliability.png", "horizons.png"} <= {
            each.name for each in folder.iterdir()
        }
    assert "targets/sale/model_card.md" in (path / "model_card.md").read_text()


def test_what_is_served_is_what_was_trained(
    spec: Spec, log: EventBatch, made: tuple[Any, Any, Path], scorer: Scorer
) -> None:
    """p and survival of every head, in any padded size; survival is p at the horizon, and falls on every row."""
    _, finished, _ = made
    layout = Layout(spec)
    points = next(iter(replay(layout, log, KNOWN_UNTIL - 30 * DAY_MS)))
    points = points.take(np.flatnonzero(points.scored)[-700:])
    examples = History(layout, log, KNOWN_UNTIL).examples(points)
    p, survival = scorer.score(points.rows, points.as_of), scorer.survival(points.rows, points.as_of)
    assert p.shape == (len(points), 3) and survival is not None
    assert survival.shape == (len(points), 3, len(spec.horizons_ms))
    assert (np.diff(survival, axis=2) <= 0).all()
    at = spec.horizons_ms.index(spec.horizon_ms)
    churn = np.stack([survival[:, 0, at], survival[:, 1, at], 1 - survival[:, 2, at]], axis=1)
    np.testing.assert_allclose(churn, p, atol=1e-6)
    for t, each in enumerate((finished, *finished.further)):
        np.testing.assert_allclose(p[:, t], each.trained.p(examples), atol=2e-5)
        np.testing.assert_allclose(survival[:, t], each.trained.survival(examples), atol=2e-5)
    alone = np.concatenate([scorer.score(points.rows[i : i + 1], points.as_of[i : i + 1]) for i in range(20)])
    assert alone.tobytes() == p[:20].tobytes()


def test_each_target_is_explained_by_its_own_head(log: EventBatch, spec: Spec, scorer: Scorer) -> None:
    points = next(iter(replay(Layout(spec), log, KNOWN_UNTIL)))
    points = points.take(np.flatnonzero(points.scored)[-20:])
    why = scorer.explain(points.rows, points.as_of)
    p = scorer.score(points.rows, points.as_of)
    for t in range(3):
        one = why.of_target(t)
        assert one.holds.all(), one.gap.max()
        np.testing.assert_allclose(1 / (1 + np.exp(-one.logit)), p[:, t], atol=1e-6)
        assert one.survival is not None and one.survival.shape == (20, len(spec.horizons_ms))
    again = why.unpacked(why.packed)
    assert again.packed.tobytes() == why.packed.tobytes()
    assert [str(part) for part in again.of_target(2)] == [str(part) for part in why.of_target(2)]


def test_the_trunk_is_there_once(made: tuple[Any, Any, Path]) -> None:
    _, finished, _ = made
    own, *others = (each.trained.fit.network for each in (finished, *finished.further))
    for other in others:
        for name in ("standardise", "recurrent"):
            pairs = zip(own.get_layer(name).get_weights(), other.get_layer(name).get_weights(), strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs)


def test_evaluate_judges_each_target(spec: Spec, log: EventBatch, scorer: Scorer) -> None:
    date = KNOWN_UNTIL - spec.horizon_ms - 2 * DAY_MS
    found = evaluate_model(log, scorer, [date], labels_until_ms=KNOWN_UNTIL, bootstrap=20)
    every = (found, *found.further)
    assert [each.target for each in every] == NAMES
    assert all(each.survival is not None and each.survival.horizons for each in every)
    assert len({each.evaluation.base_rate for each in every}) == 3
