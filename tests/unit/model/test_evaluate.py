"""Figures beside scikit-learn and beside their definitions; intervals and the gate beside what must come of them."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from ebbtide.model.examples.labels import CANCELLED, CHURNED, STAYED, UNKNOWN
from ebbtide.model.fitting.calibrate import fit_calibrator, halved, levelled
from ebbtide.model.graph.calibrator import KNOTS_S, Calibrator
from ebbtide.model.judging.evaluate import evaluate
from ebbtide.model.judging.metrics import (
    Ranking,
    ece,
    ece_bound,
    interval,
    lift,
    log_loss,
    reliability,
    resamplings,
)
from ebbtide.model.judging.thresholds import ROUNDING, Peaks, Thresholds

F8 = NDArray[np.float64]


def outcomes(n: int = 400, seed: int = 0, ties: bool = True) -> tuple[F8, F8, F8]:
    """Probabilities, outcomes drawn from them, and weights; rounded so that many are equal."""
    rng = np.random.default_rng(seed)
    p = rng.beta(0.7, 2.0, n)
    y = (rng.random(n) < p).astype(np.float64)
    return (np.round(p, 1) if ties else p), y, rng.integers(0, 4, n).astype(np.float64)


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_ranking_and_log_loss_are_scikit_learns(ties: bool, weighted: bool) -> None:
    p, y, drawn = outcomes(ties=ties)
    weight = drawn if weighted else None
    assert Ranking(p, y).auroc(weight) == pytest.approx(roc_auc_score(y, p, sample_weight=weight))
    assert Ranking(p, y).auprc(weight) == pytest.approx(average_precision_score(y, p, sample_weight=weight))
    inside = np.clip(p, 0.01, 0.99)
    assert log_loss(inside, y, weight) == pytest.approx(sklearn_log_loss(y, inside, sample_weight=weight))


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    p, y, _ = outcomes(60)
    pairs = [(a > b) + (a == b) / 2 for a in p[y == 1] for b in p[y == 0]]
    assert Ranking(p, y).auroc() == pytest.approx(np.mean(pairs))


def test_one_class_has_no_ranking() -> None:
    ranking = Ranking(np.array([0.1, 0.2]), np.array([0, 0]))
    assert np.isnan(ranking.auroc())
    assert np.isnan(ranking.auprc())
    assert np.isfinite(log_loss(np.array([0.0, 1.0]), np.array([1, 0])))


def test_calibration_error_by_hand() -> None:
    """Two bins of two rows: |0.15 - 0.5| and |0.85 - 1|, halved."""
    p, y = np.array([0.9, 0.1, 0.8, 0.2]), np.array([1.0, 0.0, 1.0, 1.0])
    assert ece(p, y, bins=2) == pytest.approx((0.35 + 0.15) / 2)
    predicted, seen = reliability(p, y, bins=2)
    assert predicted.tolist() == pytest.approx([0.15, 0.85])
    assert seen.tolist() == [0.5, 1.0]


def test_a_calibrated_model_stays_below_its_bound() -> None:
    rng = np.random.default_rng(3)
    p = rng.beta(1, 3, 4_000)
    bound = ece_bound(p)
    below = [ece(p, (rng.random(len(p)) < p).astype(float)) <= bound for _ in range(200)]
    assert 0.90 <= np.mean(below) <= 0.99
    assert ece(np.sqrt(p), (rng.random(len(p)) < p).astype(float)) > 2 * bound
    assert ece_bound(p[:400]) > bound, "a smaller sample never gets as near to zero"


def test_lift_takes_ties_by_their_part() -> None:
    p, y = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    assert lift(p, y, 0.2) == pytest.approx(1 / 0.6)
    assert lift(p, y, 0.4) == pytest.approx((1 + 2 / 3) / 2 / 0.6)
    assert lift(np.ones(10), np.arange(10.0) % 2) == pytest.approx(1.0)


def test_resampling_draws_customers_not_rows() -> None:
    customer = np.array([7, 7, 7, 2, 9])
    for weight in resamplings(customer, 50):
        assert weight[0] == weight[1] == weight[2]
        assert weight[[0, 3, 4]].sum() == 3


def test_an_interval_over_customers_is_wider_than_one_over_rows() -> None:
    """Twenty copies of each customer's row are no news."""
    p, y, _ = outcomes(200, ties=False)
    many, outcome, customer = np.repeat(p, 20), np.repeat(y, 20), np.repeat(np.arange(200), 20)
    ours = evaluate({"model": many, "other": many}, outcome, customer, bootstrap=200)
    naive = evaluate({"model": many, "other": many}, outcome, np.arange(len(many)), bootstrap=200)
    width = np.diff(ours.intervals["auroc"]["model"])[0]
    assert width > 3 * np.diff(naive.intervals["auroc"]["model"])[0]
    assert ours.differences["auroc"]["other"] == (0.0, 0.0), "paired: a model never differs from itself"


def test_an_interval_resamples_people_not_their_parts() -> None:
    """Twenty courses of each learner, of which the learner drops all or none: as sure as of 200 rows, not of 4,000."""
    p, y, _ = outcomes(200, ties=False)
    many, outcome, courses = np.repeat(p, 20), np.repeat(y, 20), np.arange(4_000)
    learner = np.repeat(np.arange(200), 20)
    scores = {"model": many, "other": np.sqrt(many)}
    ours = evaluate(scores, outcome, courses, people=learner, bootstrap=200)
    naive = evaluate(scores, outcome, courses, bootstrap=200)
    assert ours.customers == naive.customers == 4_000, "what is judged are courses of learners"
    for metric in ("auroc", "auprc", "log_loss"):
        alone = evaluate({"model": p, "other": np.sqrt(p)}, y, np.arange(200), bootstrap=200)
        assert ours.intervals[metric]["model"] == pytest.approx(alone.intervals[metric]["model"], abs=1e-12)
        width = np.diff(ours.intervals[metric]["model"])[0]
        assert width > 3 * np.diff(naive.intervals[metric]["model"])[0]


def test_the_interval_covers() -> None:
    """Of 60 samples from one truth, about 95 % of the intervals hold the AUROC of a large sample."""
    p, y, _ = outcomes(200_000, seed=1, ties=False)
    truth = Ranking(p, y).auroc()
    held = 0
    for part in np.split(np.arange(60 * 300), 60):
        ranking = Ranking(p[part], y[part])
        low, high = interval(np.array([ranking.auroc(w) for w in resamplings(np.arange(300), 150)]))
        held += low <= truth <= high
    assert held >= 52


def test_the_report_is_json_without_nan() -> None:
    p, y, _ = outcomes(50)
    report = evaluate({"model": p, "recency": p / 2}, y * 0, np.arange(50), bootstrap=20).as_json()
    assert report["auroc"] == {"model": None, "recency": None}
    assert report["auroc_interval"]["model"] == [None, None]
    assert "NaN" not in json.dumps(report)
    with pytest.raises(ValueError, match="no rows"):
        evaluate({"model": p[:0]}, y[:0], np.arange(0))


def test_the_calibrator_finds_what_bent_the_probabilities() -> None:
    rng = np.random.default_rng(0)
    truth = rng.beta(1, 3, 20_000)
    y = (rng.random(len(truth)) < truth).astype(float)
    bent = 1.8 * logit(truth) + 0.7
    none, ones = np.zeros(len(y)), np.ones(len(y))
    found = fit_calibrator(bent, none, y, ones)
    assert found.a == pytest.approx(1 / 1.8, abs=0.05)
    assert found.b == pytest.approx(1 / 1.8, abs=0.05)
    right = found.probability(bent, none)
    assert ece(right, y) < ece_bound(right) < ece(expit(bent), y)
    straight = fit_calibrator(logit(truth), none, y, ones)
    assert (straight.a, straight.b) == pytest.approx((1.0, 1.0), abs=0.05)
    assert fit_calibrator(bent, none, none, ones).a == 1.0, "one class teaches nothing"


def test_where_one_map_does_not_do_silence_has_a_shift() -> None:
    """Twice the odds for an hour after an event, half of them after a day: no map of p alone mends that."""
    rng = np.random.default_rng(0)
    n = 20_000
    said = logit(rng.beta(1, 3, n))
    silence_s = np.exp(rng.uniform(np.log(60.0), np.log(30 * 86_400.0), n))
    off = np.where(silence_s < 3_600.0, np.log(2.0), np.where(silence_s > 86_400.0, -np.log(2.0), 0.0))
    y = (rng.random(n) < expit(said + off)).astype(float)
    found = fit_calibrator(said, silence_s, y, np.ones(n))
    for early, late in ((60.0, 1_800.0), (200_000.0, 2e6)):
        rows = (silence_s >= early) & (silence_s < late)
        assert found.probability(said, silence_s)[rows].mean() == pytest.approx(y[rows].mean(), rel=0.06)
        assert abs(expit(said)[rows].mean() / y[rows].mean() - 1) > 0.15
    few = fit_calibrator(said[:40], silence_s[:40], y[:40], np.ones(40))
    assert np.abs(few.by_silence).max() < 0.4, "of few rows little is believed"


def test_a_level_is_moved_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    raw, silence_s = rng.normal(-1, 1, 5_000), rng.uniform(0, 1e6, 5_000)
    y = (rng.random(5_000) < expit(raw + 0.7)).astype(float)
    shape = Calibrator(a=0.8, b=1.3, by_silence=tuple(np.linspace(0, 1, len(KNOTS_S))))
    found = levelled(shape, raw, silence_s, y, np.ones(5_000))
    assert found.probability(raw, silence_s).mean() == pytest.approx(y.mean(), abs=1e-6)
    assert found.model_copy(update={"c": shape.c}) == shape
    assert levelled(shape, raw, silence_s, y * 0, np.ones(5_000)) == shape, (
        "one outcome says nothing of a level"
    )


def test_half_a_calibration_is_the_mean_of_both_logits() -> None:
    rng = np.random.default_rng(1)
    raw, silence_s = rng.normal(-1, 2, 500), rng.uniform(0, 1e6, 500)
    whole = Calibrator(a=0.8, b=1.3, c=-0.4, by_silence=tuple(np.linspace(0, 1, len(KNOTS_S))))
    assert np.allclose(halved(whole).logit(raw, silence_s), (raw + whole.logit(raw, silence_s)) / 2)
    assert halved(Calibrator()) == Calibrator()


def test_enter_alerts_the_stated_share_of_customer_horizons() -> None:
    """Ten customers in two horizons each: the peaks are 0.00, 0.05 ... 0.95, whatever the other decisions say."""
    n, window = np.divmod(np.arange(20), 2)
    at = np.array([0, 50, 99])
    customer, as_of = np.repeat(n, 3), np.add.outer(1_000 + 100 * window, at).ravel()
    p = np.outer(np.arange(20), [0.0, 1 / 20, 1 / 40]).ravel()
    label = [label for i in range(20) for label in (UNKNOWN, CHURNED if i >= 18 else STAYED, CANCELLED)]
    peaks = Peaks(1_000, 100, customer, as_of, p, np.array(label, np.int8))
    chosen = peaks.thresholds(0.2)
    assert chosen is not None
    assert chosen.enter == pytest.approx(0.80 - ROUNDING)
    assert chosen.tied == 0.0 and not chosen.tie_words
    assert chosen.alerted == pytest.approx(0.2)
    assert chosen.customer_horizons == 20
    assert chosen.precision == pytest.approx(0.5), "of the first decisions at enter, not of all"
    assert 0 < chosen.exit < chosen.enter
    assert peaks.at(chosen) == chosen


def test_ties_are_taken_or_left_by_which_is_nearer() -> None:
    """A hundred customers; thirty of them have one and the same highest p, and two stand above."""
    n = np.arange(100)
    p = np.where(n < 68, n / 200, np.where(n < 98, 0.5, 0.9))
    peaks = Peaks(0, 10, n, np.zeros(100, np.int64), p, np.zeros(100, np.int8))
    for asked, given in ((0.10, 0.02), (0.03, 0.02), (0.20, 0.32), (0.05, 0.02), (0.40, 0.40)):
        chosen = peaks.thresholds(asked)
        assert chosen is not None
        assert chosen.alerted == pytest.approx(given), asked


def test_a_tie_is_in_or_out_whatever_rounds_it() -> None:
    """A service scores in float32, and a threshold is chosen in float64: no tie is halved by it."""
    n = np.arange(1_000)
    p = np.where(n < 780, n / 2_000, np.where(n < 980, 0.6 + 1e-8, 0.7 + n / 10_000))
    chosen = Peaks(0, 10, n, 0 * n, p, (0 * n).astype(np.int8)).thresholds(0.15)
    assert chosen is not None and chosen.alerted == pytest.approx(0.22)
    for served in (
        p.astype(np.float32),
        np.nextafter(p.astype(np.float32), np.float32(0)),
        p + 1e-6,
        p - 1e-6,
    ):
        again = Peaks(0, 10, n, 0 * n, served.astype(np.float64), (0 * n).astype(np.int8)).at(chosen)
        assert again.alerted == pytest.approx(0.22)
        assert again.tied == pytest.approx(0.20)
    assert chosen.tie_words.startswith(
        "20.0% of them have one and the same probability just where 15% would end"
    )


def test_a_tie_left_out_is_told_as_well() -> None:
    n = np.arange(100)
    p = np.where(n < 60, n / 200, np.where(n < 98, 0.5, 0.9))
    chosen = Peaks(0, 10, n, 0 * n, p, (0 * n).astype(np.int8)).thresholds(0.10)
    assert chosen is not None
    assert chosen.alerted == pytest.approx(0.02)
    assert chosen.tied == pytest.approx(0.38)
    assert "38.0% of them" in chosen.tie_words


def test_without_a_decision_there_is_no_threshold() -> None:
    none = np.zeros(0, np.int64)
    peaks = Peaks(0, 100, none, none, np.zeros(0), none.astype(np.int8))
    assert peaks.thresholds(0.2) is None
    nobody = peaks.at(Thresholds(enter=0.5, exit=0.4, alert_rate=0.2))
    assert (nobody.alerted, nobody.precision, nobody.customer_horizons) == (None, None, 0)
