"""What a training run has to say, in names that scripts may rely on."""

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ebbtide.featurestore.times.timestamps import format_time
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.slices import Slices
from ebbtide.model.fitting.recipe import Added, Recipe
from ebbtide.model.judging.evaluate import Evaluation
from ebbtide.model.judging.horizons import Survival
from ebbtide.model.judging.parts import Part
from ebbtide.model.judging.thresholds import Thresholds


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a training found, whole before anything is written. Times in ms UTC.

    target: its name; churn: in words, what a churned customer shows within the horizon
    customers, events: of the log, as learned from        events_beyond: left out, far ahead of all others
    examples:   rows by slice, `refit`, `held_out`        left: examples that ended in a stated leave and took no part
    evaluation: on the snapshots of the test slice        moments, groups: its parts, see `judging/parts.py`
    thresholds: of the published model                    tested: what the evaluated model's own, chosen on the
    horizon before the test slice, came to in it; None when nobody came up for a decision there
    recipe: of both fits, see `recipe.py`, found by `folds` folds      added: what the sequence adds, None without one
    refusals: what the gate said against a model that was published by force
    cautions: what it said has to be known of the model
    survival: the time to the next event, on the snapshots of the test slice
    rows_taken: of the published network's steps; by worker, where steps are asynchronous
    further: of the spec's other targets, where this is the primary one's
    """

    name: str
    target: str
    churn: str
    horizon_ms: int
    labels_until_ms: int
    customers: int
    events: int
    events_beyond: int
    slices: Slices
    examples: dict[str, int]
    left: int
    evaluation: Evaluation
    moments: list[Part]
    groups: list[Part]
    thresholds: Thresholds
    tested: Thresholds | None
    recipe: Recipe
    folds: int
    added: Added | None
    refusals: list[str]
    cautions: list[str]
    refit: bool
    data_hash: str
    survival: Survival | None = None
    rows_taken: list[int] = field(default_factory=list)
    further: list["TrainReport"] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """`auroc`, `auprc`, `log_loss`, `ece`, `lift_at_10`: each {model, recency, logistic, trees}; their intervals
        and differences under `<metric>_interval`, `<metric>_difference`; the rest by the names of the attributes."""
        evaluation = self.evaluation.as_json()
        evaluation["test_rows"] = evaluation.pop("rows")
        evaluation["test_customers"] = evaluation.pop("customers")
        return {
            "name": self.name,
            "target": self.target,
            "churn": self.churn,
            "horizon_ms": self.horizon_ms,
            "labels_until": format_time(self.labels_until_ms),
            "customers": self.customers,
            "events": self.events,
            "events_beyond": self.events_beyond,
            "slices": self.spans,
            "examples": self.examples,
            "left": self.left,
            **evaluation,
            "moments": [{"moment": part.name, **part.as_json()} for part in self.moments],
            "groups": [{"group": part.name, **part.as_json()} for part in self.groups],
            "enter": self.thresholds.enter,
            "exit": self.thresholds.exit,
            "alert_rate": self.thresholds.alert_rate,
            "alerted": self.thresholds.alerted,
            "tied": self.thresholds.tied,
            "tie": self.thresholds.tie_words,
            "alerted_in_test": self.tested.alerted if self.tested else None,
            "precision_in_test": self.tested.precision if self.tested else None,
            "customer_horizons_in_test": self.tested.customer_horizons if self.tested else None,
            "epochs": self.recipe.epochs,
            "shrinkage": self.recipe.shrinkage,
            "forest_share": self.recipe.share,
            "folds": self.folds,
            "rows_taken": self.rows_taken,
            "sequence_adds": None
            if self.added is None
            else {**asdict(self.added), "nothing": self.added.nothing},
            "refusals": self.refusals,
            "cautions": self.cautions,
            "refit": self.refit,
            "data_hash": self.data_hash,
            "survival": self.survival and self.survival.as_json(),
            "further": [each.as_json() for each in self.further],
        }

    @property
    def spans(self) -> dict[str, list[str] | None]:
        """Slice -> first and last moment, RFC 3339; None for a calibration by customers."""
        calibration = self.slices.calibration
        return {
            "train": [format_time(t) for t in self.slices.train],
            "calibration": None if calibration is None else [format_time(t) for t in calibration],
            "test": [format_time(t) for t in self.slices.test],
        }


@dataclass(frozen=True, slots=True)
class Published:
    """The result of `train_model`: the report, the version's folder, and seconds of wall clock by stage (empty without
    a clock)."""

    report: TrainReport
    path: Path
    seconds: dict[str, float]

    @property
    def version(self) -> int:
        return int(self.path.name)

    def as_json(self) -> dict[str, Any]:
        """The report's names, and `version`, `path`, `seconds`."""
        where = {"version": self.version, "path": str(self.path), "seconds": self.seconds}
        return {**self.report.as_json(), **where}


def data_hash(examples: Examples) -> str:
    """16 hex digits of the examples: same hash, same rows, labels and features."""
    digest = hashlib.blake2b(digest_size=8)
    for column in (examples.customer, examples.as_of, examples.cause, examples.label, examples.features):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
