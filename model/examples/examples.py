"""Examples: what was known of a customer at a point, and what happened next, as columns.

It knows how rows are held and weighed; where they come from is `dataset.py`'s, how they are split `slices.py`'s, how
they are handed to somebody else's tools `rows_file.py`'s. Features are in natural units, as the graph computes them.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.replay import SNAPSHOT
from ebbtide.model.examples.labels import CANCELLED, CHURNED


@dataclass(frozen=True, slots=True)
class Examples:
    """n examples.

    customer: int32[n], index into the log's customers     as_of: int64[n], ms UTC
    cause:    uint8[n], EVENT, SILENCE or SNAPSHOT         label: int8[n], as `model.examples.labels`
    inputs:   the feature layer's outputs by name, [n, ...]
    """

    customer: NDArray[np.int32]
    as_of: NDArray[np.int64]
    cause: NDArray[np.uint8]
    label: NDArray[np.int8]
    inputs: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.as_of)

    @property
    def features(self) -> NDArray[np.float32]:
        """float32[n, F], natural units, in the order of `featurestore.record.features.features`."""
        features: NDArray[np.float32] = self.inputs["features"]
        return features

    @property
    def silence_days(self) -> NDArray[np.float32]:
        """float32[n]: days since the last event of the target, by default activity: the first feature."""
        days: NDArray[np.float32] = self.features[:, 0]
        return days

    @property
    def snapshot(self) -> NDArray[np.bool_]:
        """bool[n]: rows of a stated date rather than of a decision."""
        rows: NDArray[np.bool_] = self.cause == SNAPSHOT
        return rows

    @property
    def churned(self) -> NDArray[np.float32]:
        """float32[n], 1 or 0: the target. Only for rows that are `usable`."""
        target: NDArray[np.float32] = (self.label == CHURNED).astype(np.float32)
        return target

    def take(self, rows: NDArray[Any]) -> "Examples":
        """The examples of a mask or of indices."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "inputs"}
        return Examples(**columns, inputs={name: column[rows] for name, column in self.inputs.items()})

    def usable(self) -> "Examples":
        """Without the rows whose customer left in so many words (see `labels.py`)."""
        return self.take(self.label != CANCELLED)

    def weights(self) -> NDArray[np.float32]:
        """float32[n], mean 1. A customer's many rows say much the same, so within each sort (decisions, snapshots) a
        row weighs 1/sqrt(rows of its customer); then both sorts are given the same total."""
        weight = np.zeros(len(self), np.float64)
        for sort in (self.snapshot, ~self.snapshot):
            if sort.any():
                rows = np.bincount(self.customer[sort])[self.customer[sort]]
                weight[sort] = rows**-0.5 / (rows**-0.5).sum()
        scaled: NDArray[np.float32] = (weight * (len(self) / max(weight.sum(), 1e-12))).astype(np.float32)
        return scaled
