"""What a log is expected to look like, and what of it does not: the schema that a data scientist edits, and anomalies
in words.

    statistics ─infer─▶ schema.yaml ──edited──▶ check(statistics, schema) ──▶ anomalies: error (ends the run), warning

In TFX's terms: `presence_min` is min_fraction of presence, `min`, `max` the domain, `drift_max` the drift comparator
between a span and the one before it (L∞ of a kind's share, Jensen–Shannon of a field), `skew_max` the skew comparator
between the log and what is live. An inferred schema leaves room
around what was seen, so that the log it was inferred from has no anomaly that it would not have for anybody.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.times.timestamps import format_date
from ebbtide.model.factory.statistics import KindFigures, Span, Statistics, jensen_shannon, l_infinity

Severity = Literal["error", "warning"]
DRIFT_KINDS_MAX, DRIFT_FIELD_MAX = 0.25, 0.3
COUNT_MIN = 30
"""Events below which a field's distribution says nothing of drift, nor of skew."""
ROOM = 10.0
"""An inferred domain reaches so many times the spread of what was seen beyond it."""
HEADER = """\
# What a log is expected to look like. Written by `ebbtide pipeline`, yours to edit; name the file as `schema:` in the
# pipeline's configuration, and every run is checked against it. An anomaly of severity `error` stops a run.
#
#   required       the kind must be there                 min, max       values beyond are an anomaly
#   presence_min   share of its events that have it       categories     others than these are an anomaly (spec)
#   drift_max      of a field: Jensen-Shannon divergence, of the kinds' shares: L-infinity, from span to span
#   skew_max       the same between this log and the live topic
"""
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FieldSchema(_Part):
    """Of a value of a kind's events."""

    presence_min: Share = 0.0
    min: float | None = None
    max: float | None = None
    other_max: Share | None = None
    """Of a category: the share of values that the spec does not list."""
    drift_max: Share | None = DRIFT_FIELD_MAX
    skew_max: Share | None = DRIFT_FIELD_MAX


class KindSchema(_Part):
    """Of a kind of events."""

    required: bool = False
    fields: dict[str, FieldSchema] = {}


class Schema(_Part):
    """Of a log. `severity`: of what is not a drift; drift is a `drift_severity`."""

    kinds: dict[str, KindSchema]
    drift_max: Share | None = DRIFT_KINDS_MAX
    skew_max: Share | None = DRIFT_KINDS_MAX
    unknown_types: Severity | Literal["ignore"] = "warning"
    severity: Severity = "error"
    drift_severity: Severity = "warning"


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What does not fit: where (a kind, a field, or the log), in words, and what to do."""

    where: str
    words: str
    severity: Severity
    advice: str

    def __str__(self) -> str:
        return f"{self.where}: {self.words}"


def infer(found: Statistics) -> Schema:
    """A schema that the log fits, with room around what was seen."""
    return Schema(kinds={name: _inferred(kind) for name, kind in found.whole.kinds.items()})


def _inferred(kind: KindFigures) -> KindSchema:
    fields = {}
    for name, field in kind.fields.items():
        total = field.count + field.missing
        presence = round(0.9 * field.count / total, 3) if total else 0.0
        low = high = None
        if field.quantiles is not None:
            room = ROOM * max(field.quantiles[-1] - field.quantiles[0], abs(field.quantiles[-1]), 1.0)
            # What was never negative is a count or an amount: it has no business to become negative.
            low = min(0.0, field.quantiles[0]) if field.quantiles[0] >= 0 else field.quantiles[0] - room
            high = field.quantiles[-1] + room
        other = None
        if field.reads == "category":
            other = round(min(1.0, field.histogram[0] / max(field.count, 1) + 0.1), 3)
        fields[name] = FieldSchema(presence_min=presence, min=low, max=high, other_max=other)
    return KindSchema(required=kind.events > 0, fields=fields)


def dump_schema(schema: Schema) -> str:
    """As YAML with its explanation."""
    return HEADER + yaml.safe_dump(schema.model_dump(mode="json", exclude_none=True), sort_keys=False)


def parse_schema(text: str, source: str) -> Schema:
    """Raises SpecError, all problems at once, by name."""
    try:
        return Schema.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise SpecError(f"{source} is not YAML: {str(error).splitlines()[0]}") from None
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'schema'}: {each['msg']}"
            for each in error.errors(include_url=False)
        )
        raise SpecError(
            f"{source} is no schema: {said}", hint="see the remarks that an inferred one begins with"
        ) from None


def check(found: Statistics, schema: Schema) -> list[Anomaly]:
    """All that does not fit, errors first."""
    anomalies = [*_unknown(found, schema), *_kinds(found, schema), *_drift(found, schema)]
    return sorted(anomalies, key=lambda each: each.severity != "error")


def _unknown(found: Statistics, schema: Schema) -> Iterator[Anomaly]:
    for name in sorted(set(schema.kinds) - set(found.whole.kinds)):
        yield Anomaly(
            name, "the schema has this kind, the spec does not", schema.severity, "take it out of the schema"
        )
    for name in sorted(set(found.whole.kinds) - set(schema.kinds)):
        yield Anomaly(
            name,
            "the spec has this kind, the schema does not",
            "warning",
            "add it to the schema, or infer one anew",
        )
    if found.unknown_types and schema.unknown_types != "ignore":
        named = sorted(found.unknown_types.items(), key=lambda each: (-each[1], each[0]))
        words = ", ".join(f"{name!r} ({count:,})" for name, count in named[:5])
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        yield Anomaly(
            "log", f"event types that no kind covers: {words}{more}", schema.unknown_types,
            "name them in a kind's `types`, or say `unknown_types: ignore` in the schema",
        )  # fmt: skip


def _kinds(found: Statistics, schema: Schema) -> Iterator[Anomaly]:
    for name, expected in schema.kinds.items():
        kind = found.whole.kinds.get(name)
        if kind is None:
            continue
        if expected.required and not kind.events:
            yield Anomaly(name, "no event of this kind", schema.severity, "is an export missing?")
        for field, wanted in expected.fields.items():
            yield from _field(kind, field, wanted, schema.severity)
        last = found.spans[-1].kinds[name]
        if expected.required and kind.events and not last.events and found.spans[-1].events >= COUNT_MIN:
            yield Anomaly(
                name,
                f"no event since {format_date(found.spans[-1].start_ms)}",
                "warning",
                "has its source ended?",
            )


def _field(kind: KindFigures, name: str, wanted: FieldSchema, severity: Severity) -> Iterator[Anomaly]:
    field = kind.fields.get(name)
    if field is None:
        yield Anomaly(
            name, "the schema has this field, the spec does not", severity, "take it out of the schema"
        )
        return
    total = field.count + field.missing
    if total and field.count / total < wanted.presence_min:
        yield Anomaly(
            name, f"{field.count / total:.1%} of {total:,} events have it, {wanted.presence_min:.1%} expected",
            severity,
            "has the column another name? Else lower presence_min",
        )  # fmt: skip
    if field.quantiles is not None:
        low, high = field.quantiles[0], field.quantiles[-1]
        if wanted.min is not None and low < wanted.min:
            yield Anomaly(
                name, f"{low:g} is below its min {wanted.min:g}", severity, "mend the values, or lower min"
            )
        if wanted.max is not None and high > wanted.max:
            yield Anomaly(
                name, f"{high:g} is above its max {wanted.max:g}", severity, "mend the values, or raise max"
            )
    if wanted.other_max is not None and field.count:
        other = field.histogram[0] / field.count
        if other > wanted.other_max:
            yield Anomaly(
                name, f"{other:.1%} of its values are not listed, {wanted.other_max:.1%} expected", severity,
                "list them as `categories` in the spec, or raise other_max",
            )  # fmt: skip


def check_skew(known: Span, live: Span, schema: Schema) -> list[Anomaly]:
    """How the live topic differs from the log that was learned from: `live` is counted by the bins of `known`."""
    if min(known.events, live.events) < COUNT_MIN:
        return []
    words = f"from history to the live topic since {format_date(live.start_ms)}"
    return [
        *_kinds_apart(known, live, schema.skew_max, words, schema.drift_severity),
        *_fields_apart(known, live, schema, "skew_max", words, schema.drift_severity),
    ]


def _drift(found: Statistics, schema: Schema) -> Iterator[Anomaly]:
    for before, after in zip(found.spans[:-1], found.spans[1:], strict=True):
        if min(before.events, after.events) < COUNT_MIN:
            continue
        words = f"at {format_date(after.start_ms)}"
        yield from _kinds_apart(before, after, schema.drift_max, words, schema.drift_severity)
        yield from _fields_apart(before, after, schema, "drift_max", words, schema.drift_severity)


def _kinds_apart(
    one: Span, other: Span, apart_max: float | None, where: str, severity: Severity
) -> Iterator[Anomaly]:
    apart = l_infinity(_shares(one), _shares(other))
    if apart_max is None or apart <= apart_max:
        return
    moved = max(one.kinds, key=lambda name: abs(one.kinds[name].share - other.kinds[name].share))
    yield Anomaly(
        "log",
        f"the share of {moved} went from {one.kinds[moved].share:.1%} to {other.kinds[moved].share:.1%} {where}"
        f" (L-infinity {apart:.2f}, at most {apart_max:.2f})",
        severity, "did its source change? A later log, or a higher bound in the schema",
    )  # fmt: skip


def _fields_apart(
    one: Span,
    other: Span,
    schema: Schema,
    bound: Literal["drift_max", "skew_max"],
    where: str,
    severity: Severity,
) -> Iterator[Anomaly]:
    for name, expected in schema.kinds.items():
        for field, wanted in expected.fields.items():
            apart_max = getattr(wanted, bound)
            pair = [span.kinds[name].fields.get(field) for span in (one, other) if name in span.kinds]
            if apart_max is None or len(pair) < 2 or pair[0] is None or pair[1] is None:
                continue
            if min(pair[0].count, pair[1].count) < COUNT_MIN:
                continue
            apart = jensen_shannon(pair[0].histogram, pair[1].histogram)
            if apart > apart_max:
                yield Anomaly(
                    field,
                    f"its values moved {where} (Jensen-Shannon {apart:.2f} bits, at most {apart_max:.2f})",
                    severity, f"did its unit or its meaning change? Else raise {bound}",
                )  # fmt: skip


def _shares(span: Span) -> dict[str, float]:
    return {name: kind.share for name, kind in span.kinds.items()}
