"""From a log of events to a published model: a small training from end to end, and what it must refuse.

The customers are the simulator's; the network is small and the examples few, since what is tested is the order of
things, not how well it learns.
"""

import json
import stat
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import only, state_at
from ebbtide.featurestore.spec import Spec, load_spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.config import TrainConfig
from ebbtide.model.errors import ModelRefused
from ebbtide.model.examples.dataset import History, draw
from ebbtide.model.examples.known import known_log
from ebbtide.model.examples.labels import CANCELLED
from ebbtide.model.examples.made_up import made_up
from ebbtide.model.fitting.baselines import Fitted
from ebbtide.model.fitting.fit import Fit, Trainer, logits
from ebbtide.model.fitting.recipe import Recipe
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.graph.network import build_network
from ebbtide.model.graph.sizes import NetworkConfig
from ebbtide.model.judging.gate import Refusal
from ebbtide.model.judging.metrics import Ranking
from ebbtide.model.serving import warmup
from ebbtide.model.serving.manifest import read_manifest
from ebbtide.model.serving.scorer import Scorer
from ebbtide.model.training.prepare import prepare
from ebbtide.model.training.progress import Stages
from ebbtide.model.training.report import Published
from ebbtide.model.training.train import choose_thresholds, judge, publish, respec, train_model
from ebbtide.model.training.trained import Trained
from ebbtide.ops.demo.shop.behaviour import Scenario, simulate
from ebbtide.ops.demo.shop.events import TYPES

ROOT = Path(__file__).resolve().parents[2]
START = 1_700_000_000_000
KNOWN_UNTIL = START + 70 * DAY_MS
CREATED = datetime(2024, 5, 1, tzinfo=UTC)
CONFIG = TrainConfig(
    examples_max=6_000,
    epochs_max=2,
    batch=128,
    bootstrap=40,
    network=NetworkConfig(units=8, embed=4, dense=(8,)),
)
MOMENTS = (
    "just after an event", "silent under 1 hour", "silent under 1 day", "silent under 1 week", "silent longer",
)  # fmt: skip
FIGURES = ("auroc", "auprc", "log_loss", "ece", "lift_at_10")
NAMES = {"model", "recency", "logistic", "trees"}


def demo_spec() -> Spec:
    return load_spec(ROOT / "ops" / "specs" / "demo.yaml").model_copy(update={"horizon_ms": 10 * DAY_MS})


def simulated(spec: Spec) -> EventBatch:
    return _simulated(tuple(spec.kind_of_type.items()))


@cache
def _simulated(kind_of_type: tuple[tuple[str, int], ...]) -> EventBatch:
    sim = simulate(Scenario(seed=5, customers=400, start_ms=START, days=75.0, steady_days=30.0))
    code = {TYPES.index(kind): n for kind, n in kind_of_type}
    kind = np.array([code[int(t)] for t in sim.events["type"]], np.uint8)
    plan = sim.events["type"] == TYPES.index("plan_changed")
    n = len(sim)
    return EventBatch(
        list(sim.customers), sim.events["customer"].astype(np.int32), kind, sim.events["time_ms"].astype(np.int64),
        np.where(plan, sim.events["value"] + 1, sim.events["value"]), np.zeros(n, np.uint64), np.arange(n),
    )  # fmt: skip


@pytest.fixture(scope="module")
def spec() -> Spec:
    return demo_spec()


@pytest.fixture(scope="module")
def log(spec: Spec) -> EventBatch:
    return simulated(spec)


class Ticks:
    """A clock that moves a second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture(scope="module")
def trained(
    spec: Spec, log: EventBatch, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Published, Path, list[float]]:
    out, done = tmp_path_factory.mktemp("models"), []
    report = train_model(
        log, respec(spec, "corner"), out, created=CREATED, labels_until_ms=KNOWN_UNTIL, config=CONFIG,
        rows_path=out / "rows.parquet", stages=Stages(lambda at, total, _: done.append(at / total), Ticks()),
    )  # fmt: skip
    return report, out, done


def test_the_report_has_the_promised_names_and_is_json(
    trained: tuple[Published, Path, list[float]],
) -> None:
    report, out, _ = trained
    data = json.loads(json.dumps(report.as_json(), allow_nan=False))
    for figure in FIGURES:
        assert set(data[figure]) == NAMES
    for figure in ("auroc", "auprc", "log_loss"):
        assert set(data[f"{figure}_interval"]) == NAMES
        assert set(data[f"{figure}_difference"]) == NAMES - {"model"}
        low, high = data[f"{figure}_interval"]["model"]
        assert low <= data[figure]["model"] <= high
    assert set(data["ece_bound"]) == NAMES
    assert data["name"] == "corner"
    assert data["version"] == 1
    assert Path(data["path"]) == out / "corner" / "1"
    assert {"train", "calibration", "test", "judged", "refit"} == set(data["examples"])
    assert [moment["moment"] for moment in data["moments"]] == list(MOMENTS)
    assert 0 <= data["forest_share"] <= 1
    assert data["folds"] >= 1
    assert set(data["sequence_adds"]) == {
        "auroc",
        "auroc_interval",
        "log_loss",
        "log_loss_interval",
        "nothing",
    }
    assert data["refusals"] == []
    assert data["people"] == data["test_customers"] >= max(data["people_churned"], data["people_stayed"])
    assert data["examples"]["judged"] < data["examples"]["refit"] <= CONFIG.examples_max
    assert 0 < data["exit"] < data["enter"] < 1
    assert data["left"] > 0, "some closed their account in so many words"
    assert all(seconds > 0 for seconds in data["seconds"].values())


def test_it_ranks_who_falls_silent(trained: tuple[Published, Path, list[float]]) -> None:
    """Not how well, but that it learned at all: far from a coin, and not refused beside its baselines."""
    values = trained[0].report.evaluation.values["auroc"]
    assert values["model"] > 0.7
    assert values["model"] > values["trees"] - 0.05


def test_progress_goes_forward_to_its_end(trained: tuple[Published, Path, list[float]]) -> None:
    done = trained[2]
    assert done == sorted(done)
    assert done[0] == 0.0
    assert done[-1] == pytest.approx(1.0)


def test_a_published_version_is_served_with_its_thresholds(
    trained: tuple[Published, Path, list[float]], spec: Spec, log: EventBatch
) -> None:
    published, _, _ = trained
    layout, report = Layout(spec), published.report
    scorer = Scorer.load(published.path, layout, whole=False)
    assert scorer.manifest.enter == report.thresholds.enter
    assert scorer.manifest.evaluation == report.evaluation
    assert scorer.manifest.train_config == CONFIG
    assert scorer.manifest.labels_until == datetime.fromtimestamp(KNOWN_UNTIL / 1000, UTC)
    as_of = int(log.time.max())
    rows = state_at(layout, log, as_of + 1)
    rows = rows[Folder(layout).eligible(rows, as_of)][:40]
    p = scorer.score(rows, np.full(len(rows), as_of, np.int64))
    assert ((p > 0) & (p < 1)).all()
    card = (published.path / "model_card.md").read_text(encoding="utf-8")
    for words in (
        "no activity in the 10 days",
        "AUROC",
        "just after an event",
        "Against the same model without it",
    ):
        assert words in card, words
    for plot in ("reliability", "roc", "training", "silence"):
        assert (published.path / f"{plot}.png").read_bytes().startswith(b"\x89PNG")


def test_the_rows_are_the_examples(
    trained: tuple[Published, Path, list[float]], spec: Spec, log: EventBatch
) -> None:
    report, out = trained[0].report, trained[1]
    table = pq.read_table(out / "rows.parquet")
    counts = dict.fromkeys(("train", "calibration", "test", "gap"), 0)
    for name, label in zip(table["slice"].to_pylist(), table["label"].to_pylist(), strict=True):
        counts[name] += label != "left"
    assert counts["train"] == report.examples["train"]
    assert counts["test"] == report.examples["test"]
    assert set(table["cause"].to_pylist()) == {"event", "silence", "snapshot"}
    assert stat.S_IMODE((out / "rows.parquet").stat().st_mode) == 0o600, (
        "ids in clear are for their owner alone"
    )
    # No label looks beyond the end of what is known.
    latest = np.max(table["as_of"].to_numpy()).astype("datetime64[ms]").astype(np.int64)
    assert latest + spec.horizon_ms < report.labels_until_ms


@pytest.mark.slow
def test_training_sees_nothing_beyond_its_labels(
    trained: tuple[Published, Path, list[float]], spec: Spec, log: EventBatch
) -> None:
    """A log that ends where the labels of the first training ended: the same examples, figures and thresholds."""
    report, out = trained[0].report, trained[1]
    keep = log.time < KNOWN_UNTIL
    cut = EventBatch(
        log.customers, log.customer[keep], log.kind[keep], log.time[keep], log.value[keep], log.event_id[keep],
        log.position[keep],
    )  # fmt: skip
    assert len(cut) < len(log)
    again = train_model(
        cut, respec(spec, "corner"), out, created=CREATED, labels_until_ms=KNOWN_UNTIL, config=CONFIG
    )
    assert again.version == 2
    assert again.report.data_hash == report.data_hash
    assert again.report.evaluation.values == report.evaluation.values
    assert again.report.thresholds == report.thresholds
    assert again.seconds == {}, "without a clock nobody knows how long it took"


def test_a_log_that_cannot_be_learned_from_is_refused_by_name(
    spec: Spec, log: EventBatch, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="needs at least"):
        train_model(log, respec(spec, horizon_ms=40 * DAY_MS), tmp_path, created=CREATED)
    nobody = only(log, np.zeros(len(log.customers), np.bool_))
    with pytest.raises(SpecError, match="no event"):
        train_model(nobody, spec, tmp_path, created=CREATED)
    cut = only(log, np.arange(len(log.customers)) < 3)
    with pytest.raises(SpecError, match="too few to learn from"):
        train_model(cut, spec, tmp_path, created=CREATED, config=CONFIG)
    assert not list(tmp_path.iterdir()), "nothing is published"


def appended(log: EventBatch, customer: NDArray[Any], kind: int, time: NDArray[Any]) -> EventBatch:
    """The log and events more of one kind, the last to arrive."""
    n = len(time)
    return EventBatch(
        log.customers, np.append(log.customer, customer).astype(np.int32),
        np.append(log.kind, np.full(n, kind)).astype(np.uint8), np.append(log.time, time).astype(np.int64),
        np.append(log.value, np.full(n, np.nan)), np.append(log.event_id, np.zeros(n, np.uint64)),
        np.append(log.position, len(log) + np.arange(n)),
    )  # fmt: skip


@pytest.mark.parametrize("days", [33, 730])
def test_one_event_far_ahead_does_not_move_the_end(spec: Spec, log: EventBatch, days: int) -> None:
    """As the end of what is known it would make churners of everybody."""
    layout = Layout(spec)
    plain = known_log(layout, log, None)
    assert plain.until_ms == int(log.time.max()) + 1
    assert plain.beyond == 0
    beyond = np.array([int(log.time.max()) + days * DAY_MS])
    far = known_log(layout, appended(log, np.zeros(1), int(log.kind[0]), beyond), None)
    assert (far.until_ms, far.beyond, len(far.log)) == (plain.until_ms, 1, len(log))


def test_labels_beyond_the_end_of_the_log_are_refused(spec: Spec, log: EventBatch, tmp_path: Path) -> None:
    end = int(log.time.max())
    with pytest.raises(SpecError, match="the log is known until"):
        train_model(log, spec, tmp_path, created=CREATED, labels_until_ms=end + 33 * DAY_MS, config=CONFIG)
    midnight = -(-end // DAY_MS) * DAY_MS
    assert known_log(Layout(spec), log, midnight).until_ms == midnight, "as an export is dated"
    assert not list(tmp_path.iterdir()), "nothing is published"


def test_a_log_without_recent_decisions_is_not_published(spec: Spec, log: EventBatch) -> None:
    """Nine days at the end with newsletters alone, where silence is over after three: nobody comes up for a decision,
    so no threshold can be chosen, and no NaN gets into a manifest."""
    m, last = len(log.customers), int(log.time.max())
    sent = np.linspace(last + DAY_MS, last + 9 * DAY_MS, 9 * m).astype(np.int64)
    quiet = appended(log, np.arange(9 * m) % m, spec.kind_of_type["newsletter"], sent)
    short = respec(spec, horizon_ms=3 * DAY_MS)
    layout = Layout(short)
    prepared = prepare(layout, known_log(layout, quiet, None), CONFIG)
    assert len(prepared.before_test.rows) > 100
    assert len(prepared.recent.rows) == 0
    some = prepared.train
    recipe = Recipe(0, 0.0, 0.0, Calibrator(), 0.7, [0.7])
    fit = Fit(build_network(short, CONFIG.network), [], np.zeros((1, 0), np.float32))
    untrained = Trained(fit, Fitted(short, some), recipe, recipe.calibrator)
    with pytest.raises(ModelRefused, match="no customer came up for a decision"):
        choose_thresholds(prepared, untrained, CONFIG)


@pytest.mark.slow
def test_shuffled_labels_teach_nothing(spec: Spec, log: EventBatch) -> None:
    """Whoever had looked at the test slice would do better than a coin there: AUROC .5 within .02, as the mean of
    twelve shufflings: one is off by .024 (standard deviation), since what was learned by chance orders people."""
    layout = Layout(spec)
    prepared = prepare(layout, known_log(layout, log, KNOWN_UNTIL), CONFIG)
    found = []
    for seed in range(12):
        drawn = prepared.drawn.usable()
        label = np.random.default_rng(seed).permutation(drawn.label)
        shuffled = replace(
            prepared,
            drawn=replace(drawn, label=label),
            slice_of=prepared.slice_of[prepared.drawn.label != CANCELLED],
        )
        judged = judge(shuffled, CONFIG, Stages())
        found.append(Ranking(judged.scores["model"], shuffled.test.churned).auroc())
    assert np.mean(found) == pytest.approx(0.5, abs=0.02), found


@pytest.mark.slow
def test_force_publishes_with_the_refusal_in_the_card(spec: Spec, log: EventBatch, tmp_path: Path) -> None:
    """What speaks against a model keeps it out; by force it is there, and says so in card, report and manifest."""
    layout = Layout(respec(spec, "kiosk"))
    prepared = prepare(layout, known_log(layout, log, KNOWN_UNTIL), CONFIG)
    against = Refusal("AUROC 0.61 against 0.75 of trees", "try something else")
    known = Refusal("judged by 3 customers", "wait for more")
    judged = replace(judge(prepared, CONFIG, Stages()), refusals=[against], cautions=[known])
    with pytest.raises(ModelRefused, match="of trees") as caught:
        publish(tmp_path, prepared, judged, CONFIG, CREATED, Stages())
    assert str(caught.value.hint).startswith("try something else")
    assert not list(tmp_path.iterdir()), "nothing is published"
    forced = publish(tmp_path, prepared, judged, CONFIG, CREATED, Stages(), force=True)
    assert forced.report.refusals == [str(against)]
    assert forced.as_json()["refusals"] == [str(against)]
    card = (forced.path / "model_card.md").read_text(encoding="utf-8")
    assert "Published by force" in card
    assert f"## With caution\n\n- {known}" in card
    assert forced.as_json()["cautions"] == [str(known)]
    assert str(against) in card
    assert read_manifest(forced.path).refusals == (str(against),)


def test_nobody_travels_with_a_model(
    trained: tuple[Published, Path, list[float]], spec: Spec, log: EventBatch
) -> None:
    """The warm-up records are made up: the same whatever the log, and no time of the log is in them."""
    layout = Layout(spec)
    rows, _ = warmup.read(trained[0].path, layout)
    assert rows.tobytes() == made_up(layout)[0].tobytes()
    assert not set(rows["last_seen"].tolist()) & set(log.time.tolist())


def test_the_loss_is_the_weighted_mean_of_the_rows(spec: Spec, log: EventBatch) -> None:
    """A step over all rows: its loss is that of the linear model which each training begins as."""
    rows = draw(History(Layout(spec), log, KNOWN_UNTIL), examples_max=2_000).usable()
    whole = {"batch": len(rows), "network": CONFIG.network.model_copy(update={"wide_l2": 0.0})}
    found = Trainer(spec, CONFIG.model_copy(update=whole), len(rows)).fit(rows, 1, watched=rows)
    z, y, weight = (x.astype(np.float64) for x in (found.watched[0], rows.churned, rows.weights()))
    each = np.logaddexp(0.0, z) - y * z
    assert found.loss == pytest.approx([(weight * each).sum() / weight.sum()], abs=1e-5)
    assert abs(each.mean() - found.loss[0]) > 1e-4, "and not the mean of rows that weigh alike"


@pytest.mark.slow
def test_training_is_watched_from_one_beginning(spec: Spec, log: EventBatch, tmp_path: Path) -> None:
    usable = draw(History(Layout(spec), log, KNOWN_UNTIL), examples_max=2_000).usable()
    odd = usable.customer % 2 == 1
    train, others = usable.take(~odd), usable.take(odd)
    trainer = Trainer(spec, CONFIG.model_copy(update={"log_dir": tmp_path}), len(train))
    found = trainer.fit(train, 2, watched=others, run="evaluation")
    assert len(found.loss) == 2
    assert found.watched.shape == (3, len(others)), "before the first epoch, and after each"

    linear = logits(trainer.fit(train, 0).network, others.inputs)
    whole = logits(trainer.fit(train, 1).network, others.inputs)
    half = logits(trainer.fit(train, 1, shrinkage=0.5).network, others.inputs)
    assert np.abs(whole - linear).max() > 1e-3
    assert np.allclose(half, (linear + whole) / 2, atol=1e-4), (
        "trained from the same beginning, shrunk exactly"
    )
    assert np.allclose(found.watched[0], linear, atol=1e-5)
    assert np.allclose(found.watched[1], whole, atol=1e-4), "what is trained for an epoch is what was watched"
    assert len(logits(found.network, {name: column[:0] for name, column in others.inputs.items()})) == 0

    curves: dict[str, list[int]] = {}
    for file in (tmp_path / "evaluation").glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                curves.setdefault(value.tag, []).append(event.step)
    scalars = {name: steps for name, steps in curves.items() if "/" not in name and name[:2] != "__"}
    assert scalars == {name: [1, 2] for name in ("loss", "learning_rate", "validation", "auroc")}
