"""From a log to a published model: the order of things, and nothing else.

    log ─replay─▶ examples ─slices─▶ 1. evaluation ─▶ gate ─▶ 2. refit ─▶ 3. thresholds ─▶ 4. export with its card

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

It reads no clock: `created` and `clock` are given. Figures have stable names (`TrainReport.as_json`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.record.replay import only, remembered, replay, state_at
from ebbtide.featurestore.spec import Spec, dump_spec, parse_spec
from ebbtide.model.config import TrainConfig
from ebbtide.model.errors import ModelUnwritable
from ebbtide.model.examples.dataset import draw, examples_of, take
from ebbtide.model.examples.examples import Examples, write_rows
from ebbtide.model.examples.labels import CANCELLED
from ebbtide.model.examples.slices import held_out, plan_slices
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.judging.evaluate import MODEL, by_moment, check_gate, evaluate
from ebbtide.model.judging.operating import Peaks, fit_calibrator
from ebbtide.model.serving.artifact import Facts, export
from ebbtide.model.training.baselines import Baselines
from ebbtide.model.training.card import write_card
from ebbtide.model.training.fit import Fit, Trainer, logits
from ebbtide.model.training.progress import Progress, Stages, nothing
from ebbtide.model.training.report import TrainReport, data_hash

WARM_UP_ROWS = 32
ROWS_MIN = 50
"""A slice with fewer labelled rows decides nothing."""
PANEL_MIN = 400
"""Customers behind a threshold at least, if there are so many: a tenth of fewer is no quantile."""
POINTS_AN_EVENT = 6
"""Decision points that an event and the silences after it bring, roughly: only used to bound a sample of customers."""


@dataclass(frozen=True, slots=True)
class _Trained:
    """A network with its calibrator: what turns examples into probabilities."""

    fit: Fit
    calibrator: Calibrator

    def p(self, examples: Examples) -> NDArray[np.float64]:
        return self.calibrator.probability(logits(self.fit.network, examples.inputs))


def train_model(
    log: EventBatch | Path | str,
    spec: Spec,
    out_dir: Path,
    *,
    created: datetime,
    name: str | None = None,
    horizon_ms: int | None = None,
    labels_until_ms: int | None = None,
    config: TrainConfig | None = None,
    rows_path: Path | None = None,
    clock: Callable[[], float] | None = None,
    progress: Progress = nothing,
) -> TrainReport:
    """Train, judge and publish `out_dir/<name>/<version>`.

    log: columns in arrival order, or a file of events. name, horizon_ms: in place of the spec's. labels_until_ms: the
    log is taken as known up to, not including, this time; default: just after its last event. What lies before a
    customer's tombstone is not learned from. rows_path: where the
    examples go as Parquet. clock: seconds, for the report. Raises SpecError (the log or its span does not fit),
    ModelRefused (worse than a baseline), ModelUnwritable.
    """
    config, stages = config or TrainConfig(), Stages(progress, clock)
    spec = _with(spec, name, horizon_ms)
    with stages.of("reading events", 5) as share:
        events = log if isinstance(log, EventBatch) else read_log(log, spec, progress=share).events
        log = remembered(events)
    if not len(log):
        raise SpecError("the log has no event", hint="check --events and the mapping of the spec")
    until = labels_until_ms or int(log.time.max()) + 1
    slices = plan_slices(spec, int(log.time.min()), until)
    held = held_out(log.customers)
    with stages.of("replaying history into examples", 10) as share:
        drawn = draw(
            spec, log, until, examples_max=config.examples_max, every_ms=config.snapshot_every_ms, seed=config.seed,
            progress=share,
        )  # fmt: skip
        slice_of = slices.of(drawn, held)
    if rows_path is not None:
        _write_rows(rows_path, drawn, log.customers, slice_of, spec)
    usable = drawn.usable()
    slice_of = slice_of[drawn.label != CANCELLED]
    train, calibration, test = (usable.take(slice_of == each) for each in ("train", "calibration", "test"))
    _check(train, calibration, test)

    # 1. Evaluation
    with stages.of("training on the train slice", 40) as share:
        trainer = Trainer(spec, config, len(train))
        judged = _trained(trainer.fit(train, calibration, config.epochs_max, progress=share), calibration)
    with stages.of("fitting the baselines", 5):
        baselines = Baselines(spec, train, calibration, config.seed)
    with stages.of("judging on the test slice", 8):
        scores = {MODEL: judged.p(test), **baselines.probabilities(test.features)}
        snapshot = test.snapshot
        evaluation = evaluate(
            {key: p[snapshot] for key, p in scores.items()}, test.churned[snapshot], test.customer[snapshot],
            bootstrap=config.bootstrap, seed=config.seed,
        )  # fmt: skip
        start, end = slices.test
        chosen = _peaks(spec, log, until, (start - spec.horizon_ms, start), judged, config).thresholds(
            config.alert_rate
        )
        tested = _peaks(spec, log, until, (start, end), judged, config).at(chosen)
        moments = by_moment(test, scores, chosen.enter)
        check_gate(evaluation, spec.name)

    # 2. Refit and 3. thresholds
    published, rows = judged, {"train": len(train), "calibration": len(calibration), "test": len(test)}
    if config.refit:
        ours, others = usable.take(~held[usable.customer]), usable.take(held[usable.customer])
        rows |= {"refit": len(ours), "held_out": len(others)}
        with stages.of("training on all that is labelled", 25) as share:
            again = trainer.fit(ours, None, judged.fit.epochs, judged.fit.shrinkage, progress=share)
            published = _trained(again, others)
    with stages.of("choosing the thresholds", 4):
        recent = _peaks(spec, log, until, (until - spec.horizon_ms, until), published, config)
        chosen = recent.thresholds(config.alert_rate)

    # 4. Export
    with stages.of("publishing", stages.left):
        digest = data_hash(drawn)
        report = TrainReport(
            name=spec.name, version=0, path=out_dir, horizon_ms=spec.horizon_ms, labels_until_ms=until,
            customers=len(log.customers), events=len(log), slices=slices, examples=rows,
            left=int((drawn.label == CANCELLED).sum()), evaluation=evaluation, moments=moments, thresholds=chosen,
            tested=tested, epochs=judged.fit.epochs, share=judged.fit.shrinkage, refit=config.refit, data_hash=digest,
            seconds={},
        )  # fmt: skip
        facts = Facts(
            created=created, enter=chosen.enter, exit=chosen.exit, alert_rate=config.alert_rate, data_hash=digest,
            metrics={**report.as_json(), "config": config.as_json()},
        )  # fmt: skip
        path = export(
            out_dir, spec, published.fit.network, published.calibrator, facts, _warm_up(spec, log, until),
            attach=lambda folder: write_card(folder, spec, config, report, judged.fit, test, scores, created),
        )  # fmt: skip
    return report.published(path, stages.seconds)


def _with(spec: Spec, name: str | None, horizon_ms: int | None) -> Spec:
    """The spec under another name or horizon, validated again: silences and the record's layout follow the horizon."""
    changes = {"name": name, "horizon": horizon_ms}
    changed = {key: value for key, value in changes.items() if value is not None}
    return parse_spec({**dump_spec(spec), **changed}) if changed else spec


def _check(train: Examples, calibration: Examples, test: Examples) -> None:
    """Raises SpecError when a slice cannot carry its task."""
    for words, rows in (("train", train), ("calibration", calibration), ("test", test)):
        churned = int(rows.churned.sum())
        if len(rows) < ROWS_MIN or churned in (0, len(rows)):
            raise SpecError(
                f"the {words} slice has {len(rows)} labelled rows, {churned} of them churned: too few to learn from",
                hint="use a longer log, another --horizon, or an eligibility that leaves more customers",
            )
    if not test.snapshot.any():
        raise SpecError(
            "the test slice has no snapshot", hint="set snapshot_every_ms below the length of the slice"
        )


def _trained(found: Fit, calibration: Examples) -> _Trained:
    raw = logits(found.network, calibration.inputs)
    return _Trained(found, fit_calibrator(raw, calibration.churned, calibration.weights()))


def _peaks(
    spec: Spec, log: EventBatch, until_ms: int, span: tuple[int, int], trained: _Trained, config: TrainConfig
) -> Peaks:
    """All decision points in `span` of a panel of customers, scored; labelled where the horizon is over."""
    panel = only(log, _panel(log, span, config.examples_max // 2, config.seed))
    peaks = Peaks(span[0], spec.horizon_ms)
    for points in replay(Layout(spec), panel, span[1]):
        inside = points.scored & (points.as_of >= span[0]) & (points.as_of < span[1])
        if inside.any():
            rows = examples_of(spec, log, until_ms, take(points, inside))
            peaks.add(rows.customer, rows.as_of, trained.p(rows), rows.label)
    return peaks


def _panel(log: EventBatch, span: tuple[int, int], points_max: int, seed: int) -> NDArray[np.bool_]:
    """bool[m]: customers in random order, as many as bring some `points_max` decision points in `span`."""
    order = np.random.default_rng(seed).permutation(len(log.customers))
    inside = log.customer[(log.time >= span[0]) & (log.time < span[1])]
    points = (1 + np.bincount(inside, minlength=len(order)))[order] * POINTS_AN_EVENT
    panel = np.zeros(len(order), np.bool_)
    panel[order[: max(PANEL_MIN, int(np.searchsorted(np.cumsum(points), points_max)))]] = True
    return panel


def _warm_up(spec: Spec, log: EventBatch, until_ms: int) -> tuple[Rows, NDArray[np.int64]]:
    """Real rows, for the first programs of a worker to run on."""
    rows = state_at(Layout(spec), log, until_ms)
    seen = rows[rows["last_seen"] != 0][:WARM_UP_ROWS]
    return seen, np.full(len(seen), until_ms, np.int64)


def _write_rows(
    path: Path, drawn: Examples, names: list[str], slice_of: NDArray[np.str_], spec: Spec
) -> None:
    try:
        write_rows(path, drawn, names, slice_of, spec)
    except OSError as error:
        raise ModelUnwritable(
            f"the rows cannot be written to {path}: {error}", hint="choose another --rows"
        ) from None
