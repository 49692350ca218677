"""What a training run has to say, in names that scripts may rely on."""

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.slices import Slices
from ebbtide.model.judging.evaluate import Evaluation
from ebbtide.model.judging.operating import Thresholds


@dataclass(frozen=True, slots=True)
class TrainReport:
    """The result of `train_model`. Times in ms UTC, `seconds` of wall clock by stage (empty without a clock).

    evaluation: on the snapshots of the test slice      moments:    on its decision points, see `evaluate.by_moment`
    thresholds: of the published network                tested:     what the evaluated network's own came to in it
    examples:   rows by slice, `refit`, `held_out`      epochs, share: of both fits, see `fit.py`; 0: the linear model
    """

    name: str
    version: int
    path: Path
    horizon_ms: int
    labels_until_ms: int
    customers: int
    events: int
    slices: Slices
    examples: dict[str, int]
    left: int
    evaluation: Evaluation
    moments: list[dict[str, Any]]
    thresholds: Thresholds
    tested: Thresholds
    epochs: int
    share: float
    refit: bool
    data_hash: str
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """`auroc`, `auprc`, `log_loss`, `ece`, `lift_at_10`: each {model, recency, logistic, trees}; their intervals
        and differences under `<metric>_interval`, `<metric>_difference`; the rest by the names of the attributes."""
        return {
            "name": self.name,
            "version": self.version,
            "path": str(self.path),
            "horizon_ms": self.horizon_ms,
            "labels_until": stamp(self.labels_until_ms),
            "customers": self.customers,
            "events": self.events,
            "slices": self.spans,
            "examples": self.examples,
            "left": self.left,
            **{"test_rows" if key == "rows" else "test_customers" if key == "customers" else key: value
               for key, value in self.evaluation.as_json().items()},
            "moments": self.moments,
            "enter": self.thresholds.enter,
            "exit": self.thresholds.exit,
            "alert_rate": self.thresholds.alert_rate,
            "alerted": self.thresholds.alerted,
            "alerted_in_test": self.tested.alerted,
            "precision_in_test": None if np.isnan(self.tested.precision) else self.tested.precision,
            "epochs": self.epochs,
            "share": self.share,
            "refit": self.refit,
            "data_hash": self.data_hash,
            "seconds": self.seconds,
        }  # fmt: skip

    def published(self, path: Path, seconds: dict[str, float]) -> "TrainReport":
        """The same report once it is known where the model went and how long it took."""
        return replace(self, path=path, version=int(path.name), seconds=seconds)

    @property
    def spans(self) -> dict[str, list[str] | None]:
        """Slice -> first and last moment, RFC 3339; None for a calibration by customers."""
        calibration = self.slices.calibration
        return {
            "train": [stamp(t) for t in self.slices.train],
            "calibration": None if calibration is None else [stamp(t) for t in calibration],
            "test": [stamp(t) for t in self.slices.test],
        }


def stamp(time_ms: int) -> str:
    """RFC 3339, UTC, to the second."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


def data_hash(examples: Examples) -> str:
    """16 hex digits of the examples: same hash, same rows, labels and features."""
    digest = hashlib.blake2b(digest_size=8)
    for column in (examples.customer, examples.as_of, examples.cause, examples.label, examples.features):
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
