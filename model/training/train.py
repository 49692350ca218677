"""From a log to a published model: the order of things, and nothing else.

    log ─prepare─▶ examples ─▶ 1. recipe ─▶ 2. evaluation ─▶ 3. gate ─▶ 4. refit ─▶ 5. thresholds ─▶ 6. export

1. *Recipe.* How long to train, how much of the answer is the forest's, and the calibrator are found by forward
   cross-fitting on what was known before the test slice (`cross_fit.py`, `recipe.py`).
2. *Evaluation* is honest in time. The model is fitted, by the recipe, on all whose horizon was over before the test
   slice began, and judged on the test slice, beside baselines fitted on the same rows. The test slice is read once, for
   the tables and the gate (`model/examples/slices.py` draws it).
3. *Gate.* What speaks against the model (`model/judging/gate.py`) keeps it from being published, or stands in its card.
4. *Refit.* What was judged ends a horizon and a slice before today, and would be stale on its first day. So the model
   that is published is the same recipe a slice later: fitted on every labelled row, and calibrated on what the judged
   model said of the test slice, as that was on what the last fold's had said of the slice before. The level of p is
   half way to that of the latest slice, by the model's own logits. The figures of 2 speak for the recipe; the published
   model has no later time to be judged on. `refit: false` publishes the model of 2.
5. *Thresholds* are chosen on the last horizon before the end of what is known (for the evaluated model: before the test
   slice). Its labels are not over, so no model has seen it; a rate of alerts needs scores alone, and whom a service
   decides upon changes as a log grows: what held half a year ago may alert everybody or nobody now.
6. *Export.* The report is whole before anything is written, and nothing that is NaN is written at all.

Of several targets each is learned, judged and finished by itself, on the trunk of the primary one (`cross_fit.py`);
they are one version, and what speaks against one of them keeps it from being published.

It reads no clock: `created` is given, and the stages' clock. Figures have stable names (`TrainReport.as_json`).
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.check.history import read_history
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.parts.processes import Processes
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, dump_spec, parse_spec
from ebbtide.featurestore.times.timestamps import format_date, instant
from ebbtide.model.config import PLACES, TrainConfig
from ebbtide.model.errors import ModelRefused
from ebbtide.model.examples.known import known_log
from ebbtide.model.examples.labels import CANCELLED
from ebbtide.model.examples.made_up import made_up
from ebbtide.model.examples.rows_file import write_rows
from ebbtide.model.fitting.baselines import Baselines
from ebbtide.model.fitting.fit import Trainer
from ebbtide.model.fitting.recipe import calibrated_on
from ebbtide.model.judging.evaluate import MODEL, Evaluation, evaluate
from ebbtide.model.judging.gate import Refusal, cautions, check_gate, refusals
from ebbtide.model.judging.horizons import Survival, judge_survival
from ebbtide.model.judging.parts import Part, judge_parts, moments_of, slices_of
from ebbtide.model.judging.thresholds import Thresholds
from ebbtide.model.serving.artifact import Facts, export
from ebbtide.model.serving.manifest import HeadFacts
from ebbtide.model.training.card import TARGETS, write_card
from ebbtide.model.training.cross_fit import CrossFit, cross_fit, learned_from
from ebbtide.model.training.prepare import Prepared, check_slices, prepare
from ebbtide.model.training.progress import Stages
from ebbtide.model.training.report import Published, TrainReport, data_hash
from ebbtide.model.training.trained import Trained, fitted_by


@dataclass(frozen=True, slots=True)
class Learned:
    """The recipe, and the model that was fitted by it before the test slice; nothing has been judged. further: the same
    of the other targets."""

    found: CrossFit
    trained: Trained
    further: tuple["Learned", ...] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """The model that was fitted before the test slice and what it is worth there. scores: float64[n] by name on the
    rows of the test slice. moments, groups: its parts, see `judging/parts.py`. further: the same of the other targets;
    `refusals` of the first one are those of all; `cautions` are of each alone."""

    trained: Trained
    found: CrossFit
    scores: Mapping[str, NDArray[np.float64]]
    evaluation: Evaluation
    moments: list[Part]
    groups: list[Part]
    tested: Thresholds | None
    refusals: list[Refusal]
    cautions: list[Refusal]
    survival: Survival | None = None
    further: tuple["Judged", ...] = ()

    def all_cautions(self, names: Sequence[str]) -> list[str]:
        """Of every target, in words; names: of the targets, in the order of the spec's."""
        further = zip(names[1:], self.further, strict=True)
        return [
            *map(str, self.cautions),
            *(f"target {name}: {caution}" for name, each in further for caution in each.cautions),
        ]


@dataclass(frozen=True, slots=True)
class Finished:
    """The model to be published, and all there is to say of it. further: the other targets' heads."""

    trained: Trained
    report: TrainReport
    further: tuple["Finished", ...] = ()


def train_model(
    log: EventLog | EventBatch | Path | str,
    spec: Spec,
    out_dir: Path | str,
    *,
    created: datetime,
    labels_until_ms: int | None = None,
    config: TrainConfig | None = None,
    rows_path: Path | None = None,
    jobs: int = 1,
    force: bool = False,
    stages: Stages | None = None,
) -> Published:
    """Train, judge and publish `out_dir/<spec.name>/<version>`.

    log: as `read_log` gives it, its columns, or a file of events. What lies before a customer's tombstone is not
    learned from, nor is an event dated far ahead of all others. labels_until_ms: the log is taken as known up to, not
    including, this time; default: just after its last event. rows_path: where the examples go as Parquet, customers'
    ids in clear. jobs: processes that walk through the log; the same bytes come of it. force: publish what the gate
    refuses, with its words in the card. stages: progress and a clock for `seconds`; default: neither.

    Raises SpecError (the log or its span does not fit), ModelRefused (see `judging/gate.py`), ModelUnwritable. Nothing
    is published then.
    """
    config, stages, layout = config or TrainConfig(), stages or Stages(), Layout(spec)
    with stages.of("reading events", 5) as share:
        if isinstance(log, Path | str):
            log = read_history(log, spec, progress=share)
        known = known_log(layout, log.events if isinstance(log, EventLog) else log, labels_until_ms)
    with tempfile.TemporaryDirectory(prefix="ebbtide-stream-") as folder:
        with stages.of("replaying history into examples", 10) as share:
            prepared = prepare(layout, known, config, share, Processes(jobs), Path(folder) / "all")
        if rows_path is not None:
            write_rows(rows_path, prepared.drawn, known.log.customers, prepared.slice_of, spec)
        check_slices(prepared)
        judged = judge(prepared, config, stages)
        return publish(Path(out_dir), prepared, judged, config, created, stages, force=force)


def publish(
    out_dir: Path,
    prepared: Prepared,
    judged: Judged,
    config: TrainConfig,
    created: datetime,
    stages: Stages,
    *,
    force: bool = False,
) -> Published:
    """The gate and what follows it. Raises ModelRefused, ModelUnwritable; nothing is published then."""
    check_gate(judged.refusals, prepared.layout.spec.name, force=force)
    finished = finish(prepared, judged, config, stages)
    with stages.of("publishing", stages.left):
        path = write_version(out_dir, prepared, judged, finished, config, created)
    return Published(finished.report, path, stages.seconds)


def finish(prepared: Prepared, judged: Judged, config: TrainConfig, stages: Stages) -> Finished:
    """What follows the gate: the refit, its thresholds, the report, target by target. Raises ModelRefused."""
    done: list[Finished] = []
    for each, found in zip(prepared.by_target, (judged, *judged.further), strict=True):
        with _part(stages, each):
            trunk = done[0].trained.fit.network if done else None
            trained = _refit(each, found, config, stages, trunk) if config.refit else found.trained
            with stages.of("choosing the thresholds", 4):
                thresholds = choose_thresholds(each, trained, config)
            done.append(Finished(trained, _report(each, found, thresholds, config, trained)))
    first, *others = done
    report = replace(first.report, further=[each.report for each in others])
    return Finished(first.trained, report, tuple(others))


def respec(spec: Spec, name: str | None = None, horizon_ms: int | None = None) -> Spec:
    """The spec under another name or horizon, validated again: silences and the record's layout follow the horizon."""
    changes = {"name": name, "horizon": horizon_ms}
    changed = {key: value for key, value in changes.items() if value is not None}
    return parse_spec({**dump_spec(spec), **changed}) if changed else spec


def judge(prepared: Prepared, config: TrainConfig, stages: Stages) -> Judged:
    """`learn`, then `judge_learned`. Raises ModelRefused for a network that diverged."""
    return judge_learned(prepared, learn(prepared, config, stages), config, stages)


def learn(prepared: Prepared, config: TrainConfig, stages: Stages) -> Learned:
    """Find the recipe and fit the model by it before the test slice, target by target. Raises ModelRefused for a
    network that diverged."""
    done: list[Learned] = []
    for each in prepared.by_target:
        with _part(stages, each):
            done.append(_learn(each, config, stages, done[0] if done else None))
    return replace(done[0], further=tuple(done[1:]))


def _learn(prepared: Prepared, config: TrainConfig, stages: Stages, first: Learned | None) -> Learned:
    found = cross_fit(prepared, config, stages, first.found if first else None)
    early = learned_from(prepared.early, config)
    with stages.of("training up to the test slice", 18) as share:
        stream = prepared.stream(config, prepared.early_before_ms)
        many = len(early if stream is None else stream)
        trainer = Trainer(prepared.layout.spec, config, many, head_only=first is not None)
        trunk = None if first is None else first.trained.fit.network
        trained = fitted_by(
            found.recipe, trainer, early, found.recipe.calibrator, share, trunk, "judged", stream
        )
        trained = trained.levelled(prepared.calibration)
        before = prepared.before_test.rows
        rows = [(found.later, found.raw), (before, trained.raw(before))]
        trained = trained.timed(prepared.target_spec, rows, prepared.slices.test[0])
    return Learned(found, trained)


def _part(stages: Stages, prepared: Prepared) -> AbstractContextManager[None]:
    names = prepared.layout.spec.target_names
    return stages.among(len(names), names[prepared.target] if prepared.target else "")


def judge_learned(prepared: Prepared, learned: Learned, config: TrainConfig, stages: Stages) -> Judged:
    """Judge the model on the test slice beside the baselines of the same rows, target by target."""
    done = []
    for each, of in zip(prepared.by_target, (learned, *learned.further), strict=True):
        with _part(stages, each):
            done.append(_judge(each, of, config, stages))
    first, *others = done
    names = prepared.layout.spec.target_names
    against = [
        Refusal(f"target {name}: {refusal.figure}", refusal.advice)
        for name, each in zip(names[1:], others, strict=True)
        for refusal in each.refusals
    ]
    return replace(first, refusals=[*first.refusals, *against], further=tuple(others))


def _judge(prepared: Prepared, learned: Learned, config: TrainConfig, stages: Stages) -> Judged:
    spec, test, found, trained = prepared.layout.spec, prepared.test, learned.found, learned.trained
    with stages.of("judging on the test slice", 8):
        baselines = Baselines(trained.fitted, found.later, found.unseen, prepared.calibration)
        scores = {MODEL: trained.p(test), **baselines.probabilities(test)}
        snapshot = test.snapshot
        evaluation = evaluate(
            {key: p[snapshot] for key, p in scores.items()}, test.churned[snapshot], test.customer[snapshot],
            people=test.people[snapshot], bootstrap=config.bootstrap, seed=config.seed,
        )  # fmt: skip
        parts = (
            judge_parts(test, scores, masks, bootstrap=config.bootstrap, seed=config.seed)
            for masks in (moments_of(test), slices_of(test, spec))
        )
        moments, groups = parts
        chosen = trained.peaks(prepared.before_test, spec.horizon_ms).thresholds(config.alert_rate)
        tested = chosen and trained.peaks(prepared.in_test, spec.horizon_ms).at(chosen)
        against, known = refusals(evaluation, moments, groups, tested), cautions(evaluation, tested)
        of = prepared.target_spec
        survival = judge_survival(
            test.take(snapshot), trained.survival(test)[snapshot], scores[MODEL][snapshot], of.horizons_ms,
            prepared.known.until_ms, absence=of.churn_is_absence, seed=config.seed,
        )  # fmt: skip
    return Judged(trained, found, scores, evaluation, moments, groups, tested, against, known, survival)


def _refit(
    prepared: Prepared, judged: Judged, config: TrainConfig, stages: Stages, trunk: keras.Model | None
) -> Trained:
    """The model to be published: the recipe that was judged, a slice later."""
    rows, recipe = learned_from(prepared.usable, config), judged.found.recipe
    calibrator = calibrated_on(prepared.test, judged.trained.raw(prepared.test))
    with stages.of("training on all that is labelled", 18) as share:
        stream = prepared.stream(config)
        many = len(rows if stream is None else stream)
        trainer = Trainer(prepared.layout.spec, config, many, head_only=trunk is not None)
        trained = fitted_by(recipe, trainer, rows, calibrator, share, trunk, "published", stream)
        trained = trained.levelled(prepared.test)
        # What the judged model said: it has learned from neither, and of the second nobody knows the outcome yet.
        later = [(each, judged.trained.raw(each)) for each in (prepared.test, prepared.recent.rows)]
        return trained.timed(prepared.target_spec, later, prepared.known.until_ms)


def choose_thresholds(prepared: Prepared, published: Trained, config: TrainConfig) -> Thresholds:
    """The thresholds of the network to be published, on the last horizon of what is known. Raises ModelRefused where
    nobody came up for a decision: at no threshold would the asked share be alerted."""
    spec = prepared.layout.spec
    chosen = published.peaks(prepared.recent, spec.horizon_ms).thresholds(config.alert_rate)
    if chosen is None:
        raise ModelRefused(
            f"model {spec.name} is not published: no customer came up for a decision in the last horizon before "
            f"{format_date(prepared.known.until_ms)}, so no threshold can be chosen",
            hint="does the log end earlier than you think? `ebbtide spec check` shows its events by time",
        )
    return chosen


def _report(
    prepared: Prepared, judged: Judged, thresholds: Thresholds, config: TrainConfig, published: Trained
) -> TrainReport:
    rows = {name: len(getattr(prepared, name)) for name in ("train", "calibration", "test")}
    rows["judged"] = len(learned_from(prepared.early, config))
    if config.refit:
        rows["refit"] = len(learned_from(prepared.usable, config))
    known = prepared.known
    return TrainReport(
        name=prepared.layout.spec.name,
        target=prepared.layout.spec.target_names[prepared.target],
        churn=prepared.target_spec.churn_words,
        horizon_ms=prepared.layout.spec.horizon_ms,
        labels_until_ms=known.until_ms,
        customers=len(known.log.customers),
        events=len(known.log),
        events_beyond=known.beyond,
        slices=prepared.slices,
        examples=rows,
        left=int((prepared.drawn.label == CANCELLED).sum()),
        evaluation=judged.evaluation,
        moments=judged.moments,
        groups=judged.groups,
        thresholds=thresholds,
        tested=judged.tested,
        recipe=judged.found.recipe,
        folds=judged.found.folds,
        added=judged.found.added,
        refusals=[str(each) for each in judged.refusals],
        cautions=[str(each) for each in judged.cautions],
        refit=config.refit,
        survival=judged.survival,
        rows_taken=published.fit.taken,
        data_hash=data_hash(prepared.drawn),
    )


def write_version(
    out_dir: Path,
    prepared: Prepared,
    judged: Judged,
    finished: Finished,
    config: TrainConfig,
    created: datetime,
) -> Path:
    """Write the version with its card. Returns its folder. Raises ModelUnwritable."""
    published, report = finished.trained, finished.report
    spec, thresholds = prepared.layout.spec, report.thresholds
    every = list(
        zip(prepared.by_target, (judged, *judged.further), (finished, *finished.further), strict=True)
    )
    facts = Facts(
        created=created,
        enter=thresholds.enter,
        exit=thresholds.exit,
        alert_rate=config.alert_rate,
        data_hash=report.data_hash,
        train_config=config.model_copy(update=dict.fromkeys(PLACES)),  # no choices
        labels_until=instant(report.labels_until_ms if config.refit else prepared.slices.test[0]),
        evaluation=report.evaluation,
        heads=tuple(_head_facts(each, done, config) for each, _, done in every),
        refusals=tuple(report.refusals),
    )

    def card(folder: Path) -> None:
        for each, found, done in every:
            place = folder / TARGETS / done.report.target if each.target else folder
            place.mkdir(parents=True, exist_ok=True)
            write_card(place, spec, config, done.report, found.trained.fit, each.test, found.scores, created)

    return export(
        out_dir,
        spec,
        published.fit.network,
        published.calibrator,
        facts,
        made_up(prepared.layout),
        forest=published.forest,
        share=published.recipe.share,
        hazard=published.hazard,
        further=[each.trained.head for each in finished.further],
        attach=card,
    )


def _head_facts(prepared: Prepared, finished: Finished, config: TrainConfig) -> HeadFacts:
    spec, report = prepared.target_spec, finished.report
    return HeadFacts(
        name=report.target,
        churn=report.churn,
        churn_when="absent" if spec.churn_is_absence else "present",
        calibrator=finished.trained.calibrator,
        horizons_ms=spec.horizons_ms,
        enter=report.thresholds.enter,
        exit=report.thresholds.exit,
        alert_rate=config.alert_rate,
        evaluation=report.evaluation,
    )
