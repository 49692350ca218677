"""From a log to a published model: the order of things, and nothing else.

    log ─prepare─▶ examples ─▶ 1. evaluation ─▶ gate ─▶ 2. refit ─▶ 3. thresholds ─▶ report ─▶ 4. export with its card

1. *Evaluation* is honest in time. The network is trained on the train slice, stopped and calibrated on the calibration
   slice, and judged on the test slice, beside baselines trained on the same rows (`model/examples/slices.py` draws
   them; where history is too short for three slices, calibration rows are customers held out of the train slice).
2. *Refit.* What was judged ends a horizon and a slice before today, and would be stale on its first day. So the network
   that is published is trained again, for the epochs and with the share found in 1 (`fit.py`), on every labelled row of
   85 % of the customers; its calibrator comes from the rows of the other 15 %, whom it never saw. The figures of 1
   speak for this recipe, on a later time; the published network itself has no later time to be judged on.
   `refit: false` publishes the network of 1.
3. *Thresholds* are chosen on the last horizon before the end of what is known (for the evaluated network: before the
   test slice). Its labels are not over, so no network has seen it; a rate of alerts needs scores alone, and whom a
   service decides upon changes as a log grows: what held half a year ago may alert everybody or nobody now.
4. *Export.* The report is whole before anything is written, and nothing that is NaN is written at all.

It reads no clock: `created` is given, and the stages' clock. Figures have stable names (`TrainReport.as_json`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, dump_spec, parse_spec
from ebbtide.featurestore.times.timestamps import format_date, instant
from ebbtide.model.config import TrainConfig
from ebbtide.model.errors import ModelRefused
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.labels import CANCELLED
from ebbtide.model.examples.made_up import made_up
from ebbtide.model.examples.rows_file import write_rows
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.judging.evaluate import MODEL, Evaluation, Moment, by_moment, check_gate, evaluate
from ebbtide.model.judging.thresholds import Peaks, Thresholds
from ebbtide.model.serving.artifact import Facts, export
from ebbtide.model.training.baselines import Baselines
from ebbtide.model.training.calibrate import fit_calibrator
from ebbtide.model.training.card import write_card
from ebbtide.model.training.fit import Fit, Trainer, logits
from ebbtide.model.training.prepare import Decisions, Prepared, check_slices, known_log, prepare
from ebbtide.model.training.progress import Stages
from ebbtide.model.training.report import Published, TrainReport, data_hash


@dataclass(frozen=True, slots=True)
class Trained:
    """A network with its calibrator: what turns examples into probabilities."""

    fit: Fit
    calibrator: Calibrator

    def p(self, examples: Examples) -> NDArray[np.float64]:
        """Calibrated probabilities, float64[n] in [0, 1]."""
        return self.calibrator.probability(logits(self.fit.network, examples.inputs))

    def peaks(self, decisions: Decisions, horizon_ms: int) -> Peaks:
        """The highest p of each customer and horizon."""
        rows = decisions.rows
        return Peaks(decisions.start_ms, horizon_ms, rows.customer, rows.as_of, self.p(rows), rows.label)


@dataclass(frozen=True, slots=True)
class Judged:
    """The network of the train slice and what it is worth on the test slice. scores: float64[n] by name on its rows."""

    trained: Trained
    scores: Mapping[str, NDArray[np.float64]]
    evaluation: Evaluation
    moments: list[Moment]
    tested: Thresholds | None


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
    stages: Stages | None = None,
) -> Published:
    """Train, judge and publish `out_dir/<spec.name>/<version>`.

    log: as `read_log` gives it, its columns, or a file of events. What lies before a customer's tombstone is not
    learned from, nor is an event dated far ahead of all others. labels_until_ms: the log is taken as known up to, not
    including, this time; default: just after its last event. rows_path: where the examples go as Parquet, customers'
    ids in clear. jobs: processes that walk through the log; the same bytes come of it. stages: progress and a clock for
    `seconds`; default: neither.

    Raises SpecError (the log or its span does not fit), ModelRefused (worse than a baseline, or figures that cannot be
    known), ModelUnwritable. Nothing is published then.
    """
    config, stages, layout = config or TrainConfig(), stages or Stages(), Layout(spec)
    with stages.of("reading events", 5) as share:
        if isinstance(log, Path | str):
            log = read_log(log, spec, progress=share)
        known = known_log(layout, log.events if isinstance(log, EventLog) else log, labels_until_ms)
    with stages.of("replaying history into examples", 10) as share:
        prepared = prepare(layout, known, config, share, jobs)
    if rows_path is not None:
        write_rows(rows_path, prepared.drawn, known.log.customers, prepared.slice_of, spec)
    check_slices(prepared)
    with stages.of("building the network", 1):
        trainer = Trainer(spec, config, len(prepared.train))
    judged = _judge(prepared, trainer, config, stages)
    published = _refit(prepared, trainer, judged, stages) if config.refit else judged.trained
    with stages.of("choosing the thresholds", 4):
        thresholds = choose_thresholds(prepared, published, config)
    with stages.of("publishing", stages.left):
        report = _report(prepared, judged, thresholds, config)
        path = _publish(Path(out_dir), prepared, published, judged, report, config, created)
    return Published(report, path, stages.seconds)


def respec(spec: Spec, name: str | None = None, horizon_ms: int | None = None) -> Spec:
    """The spec under another name or horizon, validated again: silences and the record's layout follow the horizon."""
    changes = {"name": name, "horizon": horizon_ms}
    changed = {key: value for key, value in changes.items() if value is not None}
    return parse_spec({**dump_spec(spec), **changed}) if changed else spec


def _judge(prepared: Prepared, trainer: Trainer, config: TrainConfig, stages: Stages) -> Judged:
    """Train on the train slice, judge on the test slice, beside the baselines. Raises ModelRefused."""
    spec, train, calibration, test = (
        prepared.layout.spec, prepared.train, prepared.calibration, prepared.test,
    )  # fmt: skip
    with stages.of("training on the train slice", 40) as share:
        trained = _trained(trainer.fit(train, calibration, config.epochs_max, progress=share), calibration)
    with stages.of("fitting the baselines", 5):
        baselines = Baselines(spec, train, calibration, config.seed)
    with stages.of("judging on the test slice", 8):
        scores = {MODEL: trained.p(test), **baselines.probabilities(test.features)}
        snapshot = test.snapshot
        evaluation = evaluate(
            {key: p[snapshot] for key, p in scores.items()}, test.churned[snapshot], test.customer[snapshot],
            bootstrap=config.bootstrap, seed=config.seed,
        )  # fmt: skip
        check_gate(evaluation, spec.name)
        chosen = trained.peaks(prepared.before_test, spec.horizon_ms).thresholds(config.alert_rate)
        tested = chosen and trained.peaks(prepared.in_test, spec.horizon_ms).at(chosen)
        # Without a threshold of its own nothing stands above it.
        moments = by_moment(test, scores, chosen.enter if chosen else np.inf)
    return Judged(trained, scores, evaluation, moments, tested)


def _refit(prepared: Prepared, trainer: Trainer, judged: Judged, stages: Stages) -> Trained:
    """The network to be published: the recipe that was judged, on all that is labelled of most customers."""
    ours, others = _refit_rows(prepared)
    found = judged.trained.fit
    with stages.of("training on all that is labelled", 25) as share:
        return _trained(trainer.fit(ours, None, found.epochs, found.shrinkage, progress=share), others)


def _refit_rows(prepared: Prepared) -> tuple[Examples, Examples]:
    usable = prepared.usable
    held = prepared.held[usable.customer]
    return usable.take(~held), usable.take(held)


def _trained(found: Fit, calibration: Examples) -> Trained:
    """Raises ModelRefused for a network that diverged."""
    if not all(np.isfinite(weights).all() for weights in found.network.get_weights()):
        raise ModelRefused(
            "the training diverged: weights are not finite numbers",
            hint="take a lower --learning-rate, and look for absurd values with `ebbtide spec check`",
        )
    raw = logits(found.network, calibration.inputs)
    return Trained(found, fit_calibrator(raw, calibration.churned, calibration.weights()))


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


def _report(prepared: Prepared, judged: Judged, thresholds: Thresholds, config: TrainConfig) -> TrainReport:
    rows = {name: len(getattr(prepared, name)) for name in ("train", "calibration", "test")}
    if config.refit:
        ours, others = _refit_rows(prepared)
        rows |= {"refit": len(ours), "held_out": len(others)}
    known, found = prepared.known, judged.trained.fit
    return TrainReport(
        name=prepared.layout.spec.name,
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
        thresholds=thresholds,
        tested=judged.tested,
        epochs=found.epochs,
        share=found.shrinkage,
        refit=config.refit,
        data_hash=data_hash(prepared.drawn),
    )


def _publish(
    out_dir: Path,
    prepared: Prepared,
    published: Trained,
    judged: Judged,
    report: TrainReport,
    config: TrainConfig,
    created: datetime,
) -> Path:
    """Write the version with its card. Returns its folder."""
    spec, thresholds = prepared.layout.spec, report.thresholds
    facts = Facts(
        created=created,
        enter=thresholds.enter,
        exit=thresholds.exit,
        alert_rate=config.alert_rate,
        data_hash=report.data_hash,
        train_config=config.model_copy(update={"log_dir": None}),  # a place, not a choice
        labels_until=instant(report.labels_until_ms),
        evaluation=report.evaluation,
    )

    def card(folder: Path) -> None:
        write_card(folder, spec, config, report, judged.trained.fit, prepared.test, judged.scores, created)

    return export(
        out_dir,
        spec,
        published.fit.network,
        published.calibrator,
        facts,
        made_up(prepared.layout),
        attach=card,
    )
