"""A published model judged on a log at dates of one's own, offline: the tables of a training, without servers.

    log ─▶ everybody as of the dates, and the decisions of the horizon after each ─▶ scored by the published graph
                                                                                 ─▶ beside baselines ─▶ tables, rows

The baselines are fitted again on what the model knew, as a training fits them: the log up to its `labels_until`, the
rows that one fit learns from, calibrated on what those less a slice say of the latest slice. A date before that is one
that the model has learned from, and is said to be; there trees flatter themselves more than it does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.parts.part import Part
from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.replay import SNAPSHOT
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import epoch_ms, format_time
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.dataset import History, draw
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.known import Known, known_log
from ebbtide.model.examples.labels import CANCELLED, UNKNOWN
from ebbtide.model.examples.sample import Panel, Wanted, gather
from ebbtide.model.examples.slices import held_out, plan_slices
from ebbtide.model.fitting.baselines import Baselines, Fitted
from ebbtide.model.judging.evaluate import MODEL, Evaluation, evaluate
from ebbtide.model.judging.horizons import Survival, judge_survival
from ebbtide.model.judging.parts import Part as Judged
from ebbtide.model.judging.parts import judge_parts, moments_of, slices_of
from ebbtide.model.judging.thresholds import Peaks, Thresholds
from ebbtide.model.serving.scorer import Scorer, of_target
from ebbtide.model.training.cross_fit import learned_from
from ebbtide.model.training.panels import panel_of
from ebbtide.model.training.prepare import tells

ROWS_MAX = 100_000
"""Snapshots, and decisions, that are looked at, at most: about 1.5 KB each."""


@dataclass(frozen=True, slots=True)
class Offline:
    """What a published model is worth on a log.

    until_ms:   the end of what is known                seen: dates that the model has learned from, ms UTC
    snapshots:  by date, ms UTC                         evaluation: on all of them
    moments:    of the decisions in the horizon after each date       groups: of the snapshots, see `judging/parts.py`
    alerts:     what the model's thresholds came to among these decisions; None where there were none
    examples:   the rows with a known outcome           points: their records          scores: float64[n] by name
    survival:   of the snapshots; None of a model that knows one horizon
    further:    the same of the other targets of the spec
    """

    title: str
    target: str
    churn: str
    horizon_ms: int
    until_ms: int
    seen: list[int]
    snapshots: dict[int, Evaluation]
    evaluation: Evaluation
    moments: list[Judged]
    groups: list[Judged]
    alerts: Thresholds | None
    examples: Examples
    points: Points
    scores: Mapping[str, NDArray[np.float64]]
    survival: Survival | None = None
    further: tuple["Offline", ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The names of a training's report, and `snapshots` by date."""
        alerts = self.alerts
        return {
            "model": self.title,
            "target": self.target,
            "churn": self.churn,
            "horizon_ms": self.horizon_ms,
            "labels_until": format_time(self.until_ms),
            "learned_from": [format_time(date) for date in self.seen],
            **self.evaluation.as_json(),
            "snapshots": {format_time(date): found.as_json() for date, found in self.snapshots.items()},
            "moments": [{"moment": part.name, **part.as_json()} for part in self.moments],
            "groups": [{"group": part.name, **part.as_json()} for part in self.groups],
            "alert_rate": alerts.alert_rate if alerts else None,
            "alerted": alerts.alerted if alerts else None,
            "tied": alerts.tied if alerts else None,
            "tie": alerts.tie_words if alerts else "",
            "precision": alerts.precision if alerts else None,
            "survival": self.survival and self.survival.as_json(),
            "further": [each.as_json() for each in self.further],
        }


def evaluate_model(
    log: EventBatch,
    scorer: Scorer,
    dates: list[int],
    *,
    labels_until_ms: int | None = None,
    bootstrap: int = 400,
    progress: Callable[[str], None] = lambda _: None,
) -> Offline:
    """Judge a loaded model at dates, ms UTC. Raises SpecError for a date whose horizon is not over in the log, or as of
    which nobody is eligible."""
    layout, spec = scorer.layout, scorer.layout.spec
    known = known_log(layout, log, labels_until_ms)
    if late := [date for date in dates if date + spec.horizon_ms >= known.until_ms]:
        raise SpecError(
            f"the horizon after {format_time(late[0])} ends beyond {format_time(known.until_ms)}, when what is known "
            "ends: nobody knows who churned",
            hint=f"take --snapshot at least {spec.horizon_ms / DAY_MS:g} days before that",
        )
    progress("replaying history")
    spans = [(date, min(date + spec.horizon_ms, known.until_ms - spec.horizon_ms)) for date in dates]
    panels = tuple(
        Panel(*span, panel_of(spec, known.log, span, ROWS_MAX // len(dates), 0))
        for span in spans
        if span[1] > span[0]
    )
    found = gather(
        layout, Part.whole(known.log), Wanted(known.until_ms, tuple(dates), 2 * ROWS_MAX, 0, panels)
    )
    progress("labelling")
    history = History(layout, known.log, known.until_ms)
    points = Points.joined(layout, [found.snapshots, *found.panels])
    drawn = history.examples(points)
    progress("scoring")
    said = Said(scorer.score(points.rows, points.as_of), scorer.survival(points.rows, points.as_of))
    progress("fitting the baselines on what the model knew")
    until = scorer.manifest.labels_until
    learned_until = min(epoch_ms(until), known.until_ms) if until else known.until_ms
    learned = examples_until(history, learned_until, scorer.manifest.training)
    progress("judging")
    made = [
        _of_target(
            drawn.of_target(t),
            learned.of_target(t),
            points,
            said,
            scorer,
            dates,
            learned_until,
            known,
            bootstrap,
        )
        for t in range(len(spec.target_names))
    ]
    return replace(made[0], further=tuple(made[1:]))


class Said(NamedTuple):
    """What the model said of rows, of all targets; see `Scorer`."""

    p: NDArray[np.float32]
    survival: NDArray[np.float32] | None


def _of_target(
    drawn: Examples,
    learned: Examples,
    points: Points,
    said: Said,
    scorer: Scorer,
    dates: list[int],
    learned_until: int,
    known: Known,
    bootstrap: int,
) -> Offline:
    """One target, as `drawn` and `learned` see it. Raises SpecError."""
    spec, manifest, target = scorer.layout.spec, scorer.manifest, drawn.target
    usable = np.flatnonzero((drawn.label != CANCELLED) & (drawn.label != UNKNOWN))
    rows, points = drawn.take(usable), points.take(usable)
    if not rows.snapshot.any():
        raise SpecError("nobody is eligible as of these dates", hint="look at `eligibility` in the spec")
    p = of_target(said.p, target)[usable].astype(np.float64)
    baselines = baselines_of(learned, known.log, spec, learned_until, manifest.training)
    scores = {MODEL: p, **baselines.probabilities(rows)}
    of, snapshot = spec.only_target(target), rows.snapshot
    survival = None
    if said.survival is not None:
        survival = judge_survival(
            rows.take(snapshot), said.survival[usable, target][snapshot].astype(np.float64), p[snapshot],
            of.horizons_ms, known.until_ms, absence=of.churn_is_absence,
        )  # fmt: skip
    by_date = {date: rows.snapshot & (rows.as_of == date) for date in dates}
    judged = {date: _judged(rows, scores, mask, bootstrap) for date, mask in by_date.items() if mask.any()}
    moments, groups = (
        judge_parts(rows, scores, masks, bootstrap=bootstrap)
        for masks in (moments_of(rows), slices_of(rows, spec))
    )
    return Offline(
        title=manifest.title,
        target=spec.target_names[target],
        churn=of.churn_words,
        horizon_ms=spec.horizon_ms,
        until_ms=known.until_ms,
        seen=[date for date in dates if date + spec.horizon_ms < learned_until],
        snapshots=judged,
        evaluation=_judged(rows, scores, rows.snapshot, bootstrap),
        moments=moments,
        groups=groups,
        alerts=_alerts(rows, p, scorer),
        examples=rows,
        points=points,
        scores=scores,
        survival=survival,
    )


def examples_until(history: History, until_ms: int, config: TrainConfig) -> Examples:
    """The examples of a training that knew the log until `until_ms`, ms UTC."""
    known = History(history.layout, history.log, until_ms, history.inputs)
    return draw(known, examples_max=config.examples_max, every_ms=config.snapshot_every_ms, seed=config.seed)


def baselines_of(
    learned: Examples, log: EventBatch, spec: Spec, until_ms: int, config: TrainConfig
) -> Baselines:
    """The baselines of `examples_until`, for the target whose labels those have. A history too short for slices of time
    is calibrated on customers held out."""
    usable, seed = learned.usable(), config.seed
    try:
        test = plan_slices(spec, int(log.time.min()), until_ms).test
    except SpecError:
        test = (until_ms, until_ms)
    early, latest = usable.take(usable.as_of + spec.horizon_ms <= test[0]), usable.within(*test)
    if not (tells(early) and tells(latest)):
        held = held_out(spec, log.customers)[usable.customer]
        return Baselines.of(spec, usable.take(~held), usable.take(held), seed)
    raw = Fitted(spec, learned_from(early, config), seed).logits(latest.features)
    return Baselines(Fitted(spec, learned_from(usable, config), seed), latest, raw, latest)


def _judged(
    rows: Examples, scores: Mapping[str, NDArray[np.float64]], mask: NDArray[np.bool_], bootstrap: int
) -> Evaluation:
    cut = {name: p[mask] for name, p in scores.items()}
    return evaluate(
        cut, rows.churned[mask], rows.customer[mask], people=rows.people[mask], bootstrap=bootstrap
    )


def _alerts(rows: Examples, p: NDArray[np.float64], scorer: Scorer) -> Thresholds | None:
    decision, horizon = rows.cause != SNAPSHOT, scorer.layout.spec.horizon_ms
    if not decision.any():
        return None
    start = int(rows.as_of[decision].min())
    cut = rows.take(decision)
    manifest = scorer.manifest
    chosen = Thresholds(*manifest.thresholds_of(rows.target), manifest.alert_rate)
    return Peaks(start, horizon, cut.customer, cut.as_of, p[decision], cut.label).at(chosen)
