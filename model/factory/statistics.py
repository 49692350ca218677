"""What a log of events looks like, span by span: the counts that a schema is made of, and the distances that drift is.

    log ──▶ spans of equal length in time ──▶ per kind: events, customers, share; per field: count, missing, moments,
                                              quantiles, histogram        whole log: rows, misfits, unknown types

In TFX's terms: a `Span` is a split, a field of a kind a feature, `l_infinity` and `jensen_shannon` the two distances of
TFDV's comparators. Pure: columns in, figures out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.kinds import Kind, Value
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.timestamps import format_time

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 20
"""Of a histogram: by the whole log's quantiles, so that a heavy tail does not put all rows into one bin."""


@dataclass(frozen=True, slots=True)
class Field:
    """A value of a kind's events. count: events that have it, `missing`: that do not. The rest None where count is 0.

    quantiles: at QUANTILES     histogram: events by bin of the whole log, or by category (0: not listed)
    edges: between the bins, so that other events can be counted by them
    """

    reads: str
    count: int
    missing: int
    mean: float | None
    deviation: float | None
    zeros: int
    quantiles: list[float] | None
    histogram: list[int]
    edges: list[float]


@dataclass(frozen=True, slots=True)
class KindFigures:
    """events: of the kind in the span; share: of all events there, 0 to 1; customers: with at least one."""

    events: int
    share: float
    customers: int
    fields: dict[str, Field]


@dataclass(frozen=True, slots=True)
class Span:
    """[start_ms, end_ms), UTC."""

    start_ms: int
    end_ms: int
    events: int
    customers: int
    kinds: dict[str, KindFigures]


@dataclass(frozen=True, slots=True)
class Statistics:
    """whole: of the log; spans: of its equal parts in time. rows, ignored, misfits (by reason), unknown_types: as the
    files were read; beyond: events dated far ahead of all others."""

    whole: Span
    spans: list[Span]
    rows: int
    ignored: int
    misfits: dict[str, int]
    unknown_types: dict[str, int]
    beyond: int

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, times as RFC 3339."""
        return {
            "rows": self.rows, "ignored": self.ignored, "misfits": self.misfits, "unknown_types": self.unknown_types,
            "beyond": self.beyond, "whole": _json(self.whole), "spans": [_json(span) for span in self.spans],
        }  # fmt: skip


def statistics_of(
    spec: Spec,
    log: EventBatch,
    until_ms: int,
    spans: int,
    *,
    rows: int,
    ignored: int = 0,
    misfits: Mapping[str, int] | None = None,
    unknown_types: Mapping[str, int] | None = None,
    beyond: int = 0,
) -> Statistics:
    """The figures of a log of at least one event, known until `until_ms`."""
    first = int(log.time.min())
    edges = np.linspace(first, max(until_ms, first + spans), spans + 1).astype(np.int64)
    bins = {field_name(spec.kinds[k], value): _edges(log, k, c, value) for k, c, value in _fields(spec)}
    return Statistics(
        _span(spec, log, int(edges[0]), int(edges[-1]), bins),
        [_span(spec, log, int(a), int(b), bins) for a, b in pairwise(edges)],
        rows, ignored, dict(misfits or {}), dict(unknown_types or {}), beyond,
    )  # fmt: skip


def span_like(known: Span, spec: Spec, events: EventBatch) -> Span:
    """The figures of other events of the spec, at least one, counted by the bins of a known span."""
    bins = {
        name: np.asarray(field.edges, np.float64)
        for kind in known.kinds.values()
        for name, field in kind.fields.items()
    }
    return _span(spec, events, int(events.time.min()), int(events.time.max()) + 1, bins)


def l_infinity(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """The largest difference between two shares of one name, 0 to 1."""
    return max((abs(one.get(name, 0.0) - other.get(name, 0.0)) for name in {*one, *other}), default=0.0)


def jensen_shannon(one: Sequence[int], other: Sequence[int]) -> float:
    """Jensen–Shannon divergence of two histograms over the same bins, in bits: 0 (the same) to 1 (nothing shared). 0
    where one is empty: of nothing nothing can be said."""
    p, q = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if not p.sum() or not q.sum():
        return 0.0
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2

    def apart(x: NDArray[np.float64]) -> float:
        some = x > 0
        return float((x[some] * np.log2(x[some] / middle[some])).sum())

    return min(max((apart(p) + apart(q)) / 2, 0.0), 1.0)


def field_name(kind: Kind, value: Value) -> str:
    """How a field is called in statistics and schema: the kind's, or `kind.name` where it has several."""
    return f"{kind.name}.{value.name or 'value'}"


def _fields(spec: Spec) -> list[tuple[int, int, Value]]:
    return [(k, c, value) for k, kind in enumerate(spec.kinds) for c, value in enumerate(kind.readings)]


def _edges(log: EventBatch, kind: int, column: int, value: Value) -> NDArray[np.float64]:
    """Inner edges of the bins: values between two of them share one."""
    if value.reads == "category":
        return np.arange(len(value.categories), dtype=np.float64) + 0.5
    known = _column(log, kind, column)
    known = known[np.isfinite(known)]
    inner = np.linspace(0, 1, BINS + 1)[1:-1]
    found: NDArray[np.float64] = np.unique(np.quantile(known, inner)) if len(known) else np.zeros(0)
    return found


def _column(log: EventBatch, kind: int, column: int) -> NDArray[np.float64]:
    values = log.value if column == 0 or log.more is None else log.more[:, column - 1]
    chosen: NDArray[np.float64] = values[log.kind == kind]
    return chosen


def _span(
    spec: Spec,
    log: EventBatch,
    start_ms: int,
    end_ms: int,
    bins: Mapping[str, NDArray[np.float64]],
) -> Span:
    inside = log.take((log.time >= start_ms) & (log.time < end_ms))
    kinds = {}
    for k, kind in enumerate(spec.kinds):
        mask = inside.kind == k
        fields = {
            (name := field_name(kind, value)): _field(_column(inside, k, c), bins[name], value)
            for c, value in enumerate(kind.readings)
        }
        events = int(mask.sum())
        customers = len(np.unique(inside.customer[mask]))
        kinds[kind.name] = KindFigures(events, events / max(len(inside), 1), customers, fields)
    return Span(start_ms, end_ms, len(inside), len(np.unique(inside.customer)), kinds)


def _field(column: NDArray[np.float64], bins: NDArray[np.float64], value: Value) -> Field:
    known = column[np.isfinite(column)]
    histogram = np.bincount(np.searchsorted(bins, known, side="right"), minlength=len(bins) + 1).tolist()
    missing, zeros, edges = len(column) - len(known), int((known == 0).sum()), bins.tolist()
    if not len(known) or value.reads in ("category", "text"):  # codes and hashes have no mean
        return Field(value.reads, len(known), missing, None, None, zeros, None, histogram, edges)
    quantiles = [float(q) for q in np.quantile(known, QUANTILES)]
    return Field(
        value.reads, len(known), missing, float(known.mean()), float(known.std()), zeros, quantiles, histogram,
        edges,
    )  # fmt: skip


def _json(span: Span) -> dict[str, Any]:
    return {
        "from": format_time(span.start_ms), "to": format_time(span.end_ms), "events": span.events,
        "customers": span.customers,
        "kinds": {
            name: {
                "events": kind.events, "share": kind.share, "customers": kind.customers,
                "fields": {
                    field: {
                        "reads": of.reads, "count": of.count, "missing": of.missing, "mean": of.mean,
                        "deviation": of.deviation, "zeros": of.zeros,
                        "quantiles": None if of.quantiles is None
                        else dict(zip(map(str, QUANTILES), of.quantiles, strict=True)),
                        "histogram": of.histogram, "edges": of.edges,
                    }
                    for field, of in kind.fields.items()
                },
            }
            for name, kind in span.kinds.items()
        },
    }  # fmt: skip
