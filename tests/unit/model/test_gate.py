"""The test rows in parts, and the gate: beside what must come of them when a model is right, off, or worse."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import EVENT, SILENCE
from ebbtide.featurestore.record.replay import SNAPSHOT
from ebbtide.featurestore.spec import dump_spec, parse_spec
from ebbtide.model.errors import ModelRefused
from ebbtide.model.examples.examples import Examples
from ebbtide.model.judging.evaluate import Evaluation, evaluate
from ebbtide.model.judging.gate import cautions, check_gate, refusals
from ebbtide.model.judging.parts import Part, judge_parts, moments_of, slices_of
from ebbtide.model.judging.thresholds import Thresholds

F8 = NDArray[np.float64]
SPEC = parse_spec(
    {
        "name": "shop", "horizon": "14d", "memory": "180d", "windows": {"7d": 7},
        "kinds": [
            {"name": "visit"},
            {"name": "plan", "role": "attribute", "attribute": "category", "categories": ["free", "plus"]},
        ],
    }
)  # fmt: skip
DAYS = (0.0, 1 / 48, 0.5, 3.0, 20.0)
NAMES = [
    "just after an event",
    "silent under 1 hour",
    "silent under 1 day",
    "silent under 1 week",
    "silent longer",
]


def decisions(n: int = 500, seed: int = 0, snapshots: int = 0) -> tuple[Examples, F8]:
    """n decisions of n customers at each moment, and snapshots; with the true probabilities."""
    rng = np.random.default_rng(seed)
    cause = np.concatenate([np.repeat([EVENT, *[SILENCE] * 4], n), np.full(snapshots, SNAPSHOT)]).astype(
        np.uint8
    )
    silence = np.concatenate([np.repeat(DAYS, n), np.full(snapshots, 9.0)]).astype(np.float32)
    customer = np.concatenate([np.tile(np.arange(n), 5), np.arange(snapshots)]).astype(np.int32)
    p = expit(rng.normal(-1.0, 1.5, len(cause)))
    churned = (rng.random(len(p)) < p).astype(np.int8)
    values = np.zeros((len(p), len(features(SPEC))), np.float32)
    values[:, 0] = silence
    return Examples(customer, np.ones(len(p), np.int64), cause, churned, {"features": values}), p


def parts_of(rows: Examples, scores: dict[str, Any]) -> dict[str, Part]:
    return {part.name: part for part in judge_parts(rows, scores, moments_of(rows), bootstrap=100)}


def snapshots_of(p: F8, y: F8, other: F8) -> Evaluation:
    return evaluate({"model": p, "recency": other}, y, np.arange(len(y)), bootstrap=100)


def test_every_decision_has_its_moment() -> None:
    rows, p = decisions(40, snapshots=100)
    table = parts_of(rows, {"model": p, "recency": rows.silence_days})
    assert list(table) == NAMES
    assert [part.rows for part in table.values()] == [40] * 5
    assert not any(part.counts for part in table.values()), "40 customers are too few to say that p is off"
    after = table["just after an event"]
    assert after.values is not None
    assert after.values["auroc"]["recency"] == 0.5
    assert after.base_rate == pytest.approx(rows.churned[:40].mean())
    assert "bias" not in after.as_json()


def test_what_is_right_is_within_its_bound_at_all_moments() -> None:
    """In 95 % of samples: of 40, at least 34, by the simultaneous bound and not by five single ones."""
    held = 0
    for seed in range(40):
        rows, p = decisions(300, seed)
        table = parts_of(rows, {"model": p, "recency": p})
        held += all(part.within for part in table.values())
    assert held >= 34


def test_a_bound_resamples_people_not_their_parts() -> None:
    """Ten courses of each learner, all alike: the bound is that of so many learners, three times that of courses."""
    rows, p = decisions(1_000)
    learner = rows.customer // 10
    first = learner * 10  # what a learner's first course says and does, they all do
    place = np.repeat(np.arange(5), 1_000) * 1_000 + first
    alike, said = replace(rows, label=rows.label[place]), p[place]
    people = replace(alike, person=learner)
    tables = [parts_of(each, {"model": said, "recency": said / 2}) for each in (people, alike)]
    for ours, naive in zip(*(table.values() for table in tables), strict=True):
        assert ours.bound is not None
        assert naive.bound is not None
        assert ours.bound > 2.5 * naive.bound
        assert (ours.bias, ours.customers) == (naive.bias, naive.customers)


def test_a_bias_is_seen_at_its_moment() -> None:
    rows, p = decisions(1_000)
    off = np.where(rows.cause == EVENT, expit(logit(p) + 0.8), p)
    table = parts_of(rows, {"model": off, "recency": p})
    after = table["just after an event"]
    assert after.within is False
    assert after.ratio is not None
    assert after.ratio > 1.2
    assert table["silent longer"].within is True


def test_a_shift_of_the_base_rate_is_told_from_a_bias() -> None:
    """All moments off alike: a bias each, and none once the shift that they share is removed."""
    rows, p = decisions(1_000)
    table = parts_of(rows, {"model": expit(logit(p) + 0.5), "recency": p})
    assert not any(part.within for part in table.values())
    assert all(part.shifted_within for part in table.values())


def test_groups_are_categories_and_tenures() -> None:
    rows, _ = decisions(10, snapshots=90)
    named = [feature.name for feature in features(SPEC)]
    values = rows.inputs["features"]
    values[:, named.index("plan_is_free")] = np.arange(len(rows)) % 2
    values[:, named.index("tenure")] = np.repeat([1.0, 20.0, 400.0], len(rows))[: len(rows)]
    found = slices_of(rows, SPEC)
    assert set(found) == {
        "plan is free",
        "plan is plus",
        "known under 14d",
        "known 14d to 8w",
        "known over 8w",
    }
    assert found["plan is free"].sum() == 45, "snapshots alone"
    assert found["plan is plus"].sum() == 0


def test_the_gate_lets_pass_what_is_as_good() -> None:
    rows, p = decisions(600)
    y = rows.churned.astype(np.float64)
    worse = np.random.default_rng(0).permutation(p)
    found = refusals(
        snapshots_of(p, y, p), list(parts_of(rows, {"model": p, "recency": worse}).values()), [], None
    )
    assert found == []
    check_gate(found, "shop")


def test_the_gate_refuses_what_is_surely_worse() -> None:
    """On snapshots; at one moment alone; and not where too few rows leave it open."""
    rows, p = decisions(600)
    y = rows.churned.astype(np.float64)
    coin = np.random.default_rng(0).permutation(p)
    found = refusals(snapshots_of(coin, y, p), [], [], None)
    assert ["AUROC" in each.figure for each in found] == [True, False]
    assert "of recency on snapshots" in found[0].figure
    with pytest.raises(ModelRefused, match=r"AUROC .* of recency on snapshots") as caught:
        check_gate(found, "shop")
    assert "--force" in str(caught.value.hint)
    check_gate(found, "shop", force=True)

    bad_at_one = np.where(rows.cause == EVENT, coin, p)
    moments = list(parts_of(rows, {"model": bad_at_one, "recency": p}).values())
    found = refusals(snapshots_of(p, y, p), moments, [], None)
    assert found
    assert all("just after an event" in each.figure for each in found)

    few = slice(0, 40)
    shaken = expit(logit(p) + np.random.default_rng(1).normal(0, 0.3, len(p)))
    assert refusals(snapshots_of(shaken[few], y[few], p[few]), [], [], None) == []


def test_the_gate_refuses_probabilities_twice_too_high() -> None:
    rows, p = decisions(1_000)
    high = np.where(rows.cause == EVENT, p * 0.35, p)
    y = (
        np.random.default_rng(5).random(len(p)) < high
    )  # what happens just after an event is a third of what is said
    truth = Examples(rows.customer, rows.as_of, rows.cause, y.astype(np.int8), rows.inputs)
    moments = list(parts_of(truth, {"model": p}).values())
    found = refusals(snapshots_of(p, y.astype(float), p), moments, [], None)
    off = [each.figure for each in found if "mean probability" in each.figure]
    assert len(off) == 1
    assert off[0].endswith("just after an event")


def test_slices_are_those_that_the_spec_names() -> None:
    """In place of its categories and bands; a slice that is large enough counts at the gate."""
    named = [
        {"name": "subscribers", "kind": "plan", "is": "plus"},
        {"name": "newcomers", "tenure": ["0d", "30d"]},
    ]
    spec = parse_spec({**dump_spec(SPEC), "slices": named})
    rows, p = decisions(10, snapshots=900)
    at = {feature.name: i for i, feature in enumerate(features(spec))}
    plus, new = np.flatnonzero(rows.snapshot)[:300], np.flatnonzero(rows.snapshot)[200:600]
    rows.features[:, at["tenure"]] = 30.0
    rows.features[plus, at["plan_is_plus"]] = 1.0
    rows.features[new, at["tenure"]] = 29.9
    masks = slices_of(rows, spec)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in masks.items()} == {
        "subscribers": plus.tolist(), "newcomers": new.tolist(),
    }  # fmt: skip
    parts = judge_parts(rows, {"model": 1 - p, "recency": p}, masks, bootstrap=100)
    found = refusals(snapshots_of(p, rows.churned.astype(float), p), [], parts, None)
    assert {"subscribers", "newcomers"} == {name for name in masks for each in found if name in each.figure}


@pytest.mark.parametrize(
    ("slices", "said"),
    [
        ([{"name": "x", "kind": "plan", "is": "gold"}], "'gold' is no category of an attribute plan"),
        ([{"name": "x", "kind": "plan"}], "kind and is go together"),
        ([{"name": "x", "tenure": ["3d", "3d"]}], "the first one shorter"),
        ([{"name": "x"}], "give kind and is, or tenure"),
        ([{"name": "x", "tenure": ["0d", "3d"]}] * 2, "slice x is named twice"),
    ],
)
def test_a_slice_that_is_none_is_refused(slices: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        parse_spec({**dump_spec(SPEC), "slices": slices})


def test_the_gate_refuses_alerts_that_nobody_asked_for() -> None:
    p = np.random.default_rng(0).random(400)
    good = snapshots_of(p, (np.random.default_rng(1).random(400) < p).astype(float), p)
    for given, customers, refused in (
        (0.458, 900, True),
        (0.13, 900, False),
        (0.005, 900, False),
        (0.458, 50, False),
    ):
        tested = Thresholds(0.5, 0.4, 0.10, alerted=given, customer_horizons=customers)
        found = refusals(good, [], [], tested)
        assert bool(found) is refused
        if refused:
            assert f"{given:.1%}" in found[0].figure
            assert "10.0%" in found[0].figure
            assert "one and the same" not in found[0].figure
    tie = Thresholds(0.5, 0.4, 0.10, alerted=0.458, customer_horizons=900, tied=0.4)
    assert "40.0% of them have one and the same probability" in refusals(good, [], [], tie)[0].figure


def test_the_gate_refuses_figures_that_cannot_be_known() -> None:
    """One class among the snapshots: AUROC is NaN, and NaN is below nothing."""
    p = np.random.default_rng(0).random(50)
    found = refusals(snapshots_of(p, np.zeros(50), p / 2), [], [], None)
    with pytest.raises(ModelRefused, match="auroc of model"):
        check_gate(found, "shop")


def outcomes_of(churned: int, stayed: int, rows: int = 1) -> Evaluation:
    """So many people of either outcome, with as many rows each, whose order a model knows in part."""
    y = np.repeat([1.0, 0.0], [churned * rows, stayed * rows])
    p = expit(2 * y - 1 + np.random.default_rng(3).normal(0, 1, len(y)))
    person = np.repeat(np.arange(churned + stayed), rows)
    return evaluate({"model": p, "recency": p}, y, np.arange(len(y)), people=person, bootstrap=100)


@pytest.mark.parametrize(
    ("churned", "stayed", "rows", "told"),
    [(30, 70, 1, False), (29, 200, 1, True), (200, 29, 1, True), (30, 69, 1, True), (10, 11, 50, True)],
)
def test_a_model_judged_by_few_is_told(churned: int, stayed: int, rows: int, told: bool) -> None:
    """By people, not by rows: 21 customers with 50 rows each are 21. It is published all the same."""
    found = outcomes_of(churned, stayed, rows)
    said = cautions(found, None)
    assert bool(said) is told
    assert refusals(found, [], [], None) == []
    if told:
        assert f"judged by {churned + stayed} customers, {churned} of whom churned and {stayed}" in str(
            said[0]
        )
        low, high = found.intervals["auroc"]["model"]
        assert f"{low:.2f} or {high:.2f}" in str(said[0])


@pytest.mark.parametrize(
    ("given", "customers", "told"),
    [
        (0.19, 443, "grew to 1.9 times"),
        (0.19, 150, ""),
        (0.458, 150, "if 150 customers were enough"),
        (0.14, 443, ""),
        (0.04, 443, "shrank to 0.4 times"),
        (0.155, 210, ""),
    ],
)
def test_alerts_off_what_was_asked_for_are_told(given: float, customers: int, told: str) -> None:
    """From half as many again on, and where chance does not explain it."""
    tested = Thresholds(0.5, 0.4, 0.10, alerted=given, customer_horizons=customers)
    said = cautions(outcomes_of(200, 200), tested)
    assert [told in str(each) for each in said] == ([True] if told else [])
    assert all("policy simulate" in str(each) for each in said)
    tied = cautions(outcomes_of(200, 200), replace(tested, tied=0.2))
    assert not any("grew" in str(each) or "shrank" in str(each) for each in tied), "a tie is no trend"


def test_cautions_are_json_and_outcomes_are_counted() -> None:
    found = outcomes_of(5, 9, 4).as_json()
    assert (found["rows"], found["people"], found["people_churned"], found["people_stayed"]) == (56, 14, 5, 9)
