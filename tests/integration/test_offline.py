"""A published model judged on a log without servers: at dates, by customers, and row by row as Parquet.

The model is one of random weights: what is tested is whose rows are judged, not how well.
"""

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.rows_file import REASONS, write_scored
from ebbtide.model.graph.sizes import NetworkConfig
from ebbtide.model.serving.scorer import Scorer
from ebbtide.model.training.by_customers import cross_validate
from ebbtide.model.training.offline import Offline, evaluate_model
from ebbtide.model.training.train import train_model
from tests.integration.test_train import CREATED, KNOWN_UNTIL, NAMES, demo_spec, simulated
from tests.support.seams.models import publish

DATES = [KNOWN_UNTIL - 40 * DAY_MS, KNOWN_UNTIL - 25 * DAY_MS]
CONFIG = TrainConfig(
    examples_max=4_000, epochs_max=1, bootstrap=20, network=NetworkConfig(units=4, embed=2, dense=(4,))
)


@pytest.fixture(scope="module")
def spec() -> Spec:
    return demo_spec()


@pytest.fixture(scope="module")
def scorer(spec: Spec, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer.load(
        publish(tmp_path_factory.mktemp("models"), spec=spec, sizes=(8, 32)), Layout(spec), whole=False
    )


@pytest.fixture(scope="module")
def found(spec: Spec, scorer: Scorer) -> Offline:
    return evaluate_model(simulated(spec), scorer, DATES, labels_until_ms=KNOWN_UNTIL, bootstrap=20)


def test_everybody_is_judged_as_of_each_date(found: Offline, spec: Spec) -> None:
    assert list(found.snapshots) == DATES
    rows, snapshot = found.examples, found.examples.snapshot
    assert set(rows.as_of[snapshot].tolist()) == set(DATES)
    assert sum(each.rows for each in found.snapshots.values()) == found.evaluation.rows == snapshot.sum()
    for date, each in found.snapshots.items():
        assert each.customers == each.rows == int((snapshot & (rows.as_of == date)).sum()), (
            "each customer once"
        )
    # Decisions are of the horizon after a date, and their own horizon is over.
    times = rows.as_of[~snapshot]
    assert len(times) > 100
    assert ((times >= DATES[0]) & (times + spec.horizon_ms < KNOWN_UNTIL)).all()
    assert sum(part.rows for part in found.moments) == (~snapshot).sum()


def test_scores_are_the_scorers_own(found: Offline, scorer: Scorer) -> None:
    again = scorer.score(found.points.rows, found.points.as_of)
    np.testing.assert_array_equal(found.scores["model"], again.astype(np.float64))
    assert set(found.scores) == NAMES


def test_the_report_is_json_by_date(found: Offline) -> None:
    data = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert len(data["snapshots"]) == 2
    assert set(data["auroc"]) == NAMES
    assert data["moments"][0]["moment"] == "just after an event"
    assert len(data["learned_from"]) == 2, (
        "a model that says not until when it knew may have learned from all"
    )


def test_a_date_whose_horizon_is_not_over_is_refused(spec: Spec, scorer: Scorer) -> None:
    with pytest.raises(SpecError, match="nobody knows who churned"):
        evaluate_model(simulated(spec), scorer, [KNOWN_UNTIL - DAY_MS], labels_until_ms=KNOWN_UNTIL)


def test_rows_hold_probability_reasons_and_sequence(
    found: Offline, scorer: Scorer, spec: Spec, tmp_path: Path
) -> None:
    log = simulated(spec)
    some = np.arange(0, len(found.examples), max(1, len(found.examples) // 50))
    rows, points = found.examples.take(some), found.points.take(some)
    values, contributions, *_ = scorer.explain(points.rows, points.as_of)
    scores = {name: p[some] for name, p in found.scores.items()}
    path = tmp_path / "rows.parquet"
    write_scored(path, rows, log.customers, scores, (values, contributions), spec)
    table = pq.read_table(path).to_pylist()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    names = [feature.name for feature in features(spec)]
    for i, row in enumerate(table):
        assert row["probability"] == scores["model"][i]
        assert row["customer"] == log.customers[rows.customer[i]]
        assert len(row["reasons"]) == REASONS
        strongest = row["reasons"][0]
        assert abs(strongest["contribution"]) == pytest.approx(np.abs(contributions[i]).max())
        assert strongest["value"] == values[i, names.index(strongest["feature"])]
        assert len(row["sequence"]) == int((rows.inputs["kind"][i] > 0).sum())
        if row["sequence"]:
            assert row["sequence"][-1]["kind"] == spec.kinds[rows.inputs["kind"][i, -1] - 1].name


def test_across_customers_everyone_is_scored_by_others(spec: Spec) -> None:
    found = cross_validate(simulated(spec), spec, CONFIG, 2, [DATES[1]], labels_until_ms=KNOWN_UNTIL)
    assert found.evaluation.rows == found.evaluation.customers > 200
    assert set(found.evaluation.values["auroc"]) == NAMES
    assert found.evaluation.values["auroc"]["model"] > 0.6
    assert found.as_json()["folds"] == 2


@pytest.mark.slow
def test_baselines_know_no_more_than_a_model_without_refit(spec: Spec, tmp_path: Path) -> None:
    """It knows nothing of its test slice, and so do they: who stayed away later on changes none of their scores."""
    log, config = simulated(spec), CONFIG.model_copy(update={"refit": False})
    published = train_model(
        log, spec, tmp_path, created=CREATED, labels_until_ms=KNOWN_UNTIL, config=config, force=True
    )
    begin = published.report.slices.test[0]
    scorer = Scorer.load(published.path, Layout(spec), whole=False)
    assert scorer.manifest.labels_until is not None
    assert int(scorer.manifest.labels_until.timestamp() * 1000) == begin

    def found(events: EventBatch) -> Offline:
        return evaluate_model(events, scorer, [begin], labels_until_ms=KNOWN_UNTIL, bootstrap=20)

    whole, gone = found(log), log.time >= begin
    assert not whole.seen
    kept = ~(gone & (log.customer % 2 == 0))
    half = found(log.take(kept))
    both = [
        {customer: (label, *scores) for customer, label, *scores in _snapshots(each)}
        for each in (whole, half)
    ]
    shared = both[0].keys() & both[1].keys()  # who left in so many words later on is in one of them alone
    assert len(shared) > 100
    assert any(both[0][each][0] != both[1][each][0] for each in shared)
    assert all(both[0][each][1:] == both[1][each][1:] for each in shared)


def _snapshots(found: Offline) -> list[tuple[Any, ...]]:
    """Customer, label and every score of each snapshot."""
    rows = found.examples.snapshot
    scores = (found.scores[name][rows].tolist() for name in sorted(NAMES))
    of = found.examples
    return list(zip(of.customer[rows].tolist(), of.label[rows].tolist(), *scores, strict=True))
