"""The features of a spec, by name: what the model sees of a record, in order, in natural units, and how to say it.

This is the list only. It is computed in one place, the Keras layer of `model/graph/features.py`, group by group in the
order below; so a feature's index here is its column there. *Missing is a feature of its own*: where a figure does not
exist (no gap yet, a kind never seen) its value is 0 and the flag beside it is 1.
"""

from dataclasses import dataclass
from typing import Literal

from ebbtide.featurestore.spec import Kind, Spec
from ebbtide.featurestore.times.durations import format_duration

Transform = Literal["log", "linear"]
DAY_WORDS = "days"


@dataclass(frozen=True, slots=True)
class Feature:
    """One column. `transform`: how the network squeezes it (sign(x)·log1p|x| for heavy tails). `sentence`: a
    `str.format` template that says a value in plain words, as the reasons of an alert do."""

    name: str
    unit: str
    transform: Transform
    sentence: str

    def describe(self, value: float) -> str:
        """The value in plain words, e.g. 'no activity for 12.3 days'."""
        return self.sentence.format(value=value)


def counted_kinds(spec: Spec) -> list[int]:
    """Indices of the kinds whose events are counted in windows: activity and contact."""
    return [i for i, kind in enumerate(spec.kinds) if kind.role in ("activity", "contact")]


def aggregated_kinds(spec: Spec, aggregate: str) -> list[int]:
    """Indices of the counted kinds that ask for `sum`, `mean` or `last` of their value."""
    return [i for i in counted_kinds(spec) if aggregate in spec.kinds[i].aggregate]


def decayed_kinds(spec: Spec) -> list[int]:
    """Indices of the kinds with exponentially decayed counts."""
    return [i for i in counted_kinds(spec) if spec.kinds[i].decay and spec.half_lives_ms]


def features(spec: Spec) -> tuple[Feature, ...]:
    """Every feature of the spec, in column order: rhythm, active days, counts, sums, means, last values, recency,
    never, decays, attributes."""
    kinds, windows = spec.kinds, spec.windows
    out = [
        Feature("silence", DAY_WORDS, "log", "no activity for {value:.1f} days"),
        Feature("tenure", DAY_WORDS, "log", "customer for {value:.0f} days"),
        Feature("activity_total", "events", "log", "{value:.0f} activities so far"),
        Feature("gap_usual", DAY_WORDS, "log", "usually active every {value:.1f} days"),
        Feature("gap_spread", "log units", "linear", "rhythm varies by a factor of e^{value:.1f}"),
        Feature("gap_missing", "flag", "linear", "no second visit yet: {value:.0f}"),
        Feature("silence_ratio", "usual gaps", "log", "silent for {value:.1f} times the usual gap"),
    ]
    out += [
        Feature(f"active_days_{days}d", DAY_WORDS, "log", f"active on {{value:.0f}} of the last {days} days")
        for days in spec.days_active
    ]
    for kind in (kinds[k] for k in counted_kinds(spec)):
        out += [
            Feature(
                f"{kind.name}_count_{w.words}",
                "events",
                "log",
                f"{{value:.0f}} {kind.noun} in the last {w.words}",
            )
            for w in windows
        ]
    for aggregate, words in (("sum", "total"), ("mean", "mean")):
        for kind in (kinds[k] for k in aggregated_kinds(spec, aggregate)):
            sentence = f"{words} value of {kind.noun} in the last"
            out += [
                Feature(
                    f"{kind.name}_{aggregate}_{w.words}",
                    "value",
                    "log",
                    f"{sentence} {w.words}: {{value:.2f}}",
                )
                for w in windows
            ]
    out += [
        Feature(f"{kinds[k].name}_last", "value", "log", f"last value of {kinds[k].noun}: {{value:.2f}}")
        for k in aggregated_kinds(spec, "last")
    ]
    out += [
        Feature(f"{kinds[k].name}_since", DAY_WORDS, "log", f"no {kinds[k].noun} for {{value:.1f}} days")
        for k in counted_kinds(spec)
    ]
    out += [
        Feature(f"{kinds[k].name}_never", "flag", "linear", f"never any {kinds[k].noun}: {{value:.0f}}")
        for k in counted_kinds(spec)
    ]
    for kind in (kinds[k] for k in decayed_kinds(spec)):
        for half_life in map(format_duration, spec.half_lives_ms):
            sentence = f"{kind.noun} lately (half-life {half_life}): {{value:.2f}}"
            out.append(Feature(f"{kind.name}_decay_{half_life}", "events", "log", sentence))
    for kind in kinds:
        if kind.role == "attribute":
            out += _attribute(kind)
    return tuple(out)


def _attribute(kind: Kind) -> list[Feature]:
    missing = Feature(f"{kind.name}_missing", "flag", "linear", f"{kind.name} unknown: {{value:.0f}}")
    if kind.attribute == "category":
        flags = [
            Feature(f"{kind.name}_is_{each}", "flag", "linear", f"{kind.name} is {each}: {{value:.0f}}")
            for each in kind.categories
        ]
        return [*flags, missing]
    if kind.attribute == "date":
        return [
            Feature(f"{kind.name}_until", DAY_WORDS, "log", f"{{value:.0f}} days until {kind.name}"),
            missing,
        ]
    return [Feature(kind.name, "value", "log", f"{kind.name}: {{value:.2f}}"), missing]
