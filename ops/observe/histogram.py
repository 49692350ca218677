"""A histogram that takes a column at once: a thousand scores cost one call, not a thousand.

The Python client observes one value at a time, at a microsecond each; a turn has up to some thousand points.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class ColumnHistogram(Collector):
    """Counts by bucket and by the value of one label, if it has one. `buckets`: upper bounds, ascending, without +Inf.

    A series is there once it was `observe`d, also with nothing.
    """

    def __init__(self, name: str, words: str, buckets: Sequence[float], label: str = "") -> None:
        self._name, self._words, self._labels = name, words, [label] if label else []
        self._bounds = np.asarray(buckets, np.float64)
        self._names = [*map(floatToGoString, buckets), "+Inf"]
        self._counts: dict[str, NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}
        if not label:
            self.observe(np.empty(0))

    def observe(self, values: NDArray[np.floating], label: str = "") -> None:
        """Take float[n], n >= 0."""
        counts = self._counts.setdefault(label, np.zeros(len(self._names), np.int64))
        if len(values):
            exact = values.astype(np.float64)
            counts += np.bincount(np.searchsorted(self._bounds, exact), minlength=len(counts))
            self._sums[label] = self._sums.get(label, 0.0) + float(exact.sum())

    def describe(self) -> Iterable[Metric]:
        return (HistogramMetricFamily(self._name, self._words, labels=self._labels),)

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._words, labels=self._labels)
        for label, counts in self._counts.items():
            cumulative = np.cumsum(counts).tolist()
            buckets = [(name, float(n)) for name, n in zip(self._names, cumulative, strict=True)]
            family.add_metric([label] if self._labels else [], buckets, self._sums.get(label, 0.0))
        yield family
