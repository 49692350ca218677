"""The features of a spec, by name: what the model sees of a record, in order, in natural units, and how to say it.

This is the list only. It is computed in one place, the Keras layer of `model/graph/features.py`, part by part in the
order of PARTS; so a feature's index here is its column there. *Missing is a feature of its own*: where a figure does
not exist (no gap yet, a kind never seen) its value is 0 and the flag beside it is 1.
"""

from dataclasses import dataclass

from ebbtide.featurestore.aggregations import AGGREGATIONS, Aggregation, Transform
from ebbtide.featurestore.kinds import Kind
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.target import Target
from ebbtide.featurestore.times.durations import format_duration

DAY_WORDS = "days"


@dataclass(frozen=True, slots=True)
class Feature:
    """One column. `transform`: how the network squeezes it (sign(x)·log1p|x| for heavy tails). `sentence`: a
    `str.format` template that says a value in plain words. group: features of one group are one reason, since ten
    windows of a kind say one thing (`record/reasons.py`): a kind's name, or "silence", "rhythm", "history". one: what
    is said of a value that reads as 1, where that is another sentence."""

    name: str
    unit: str
    transform: Transform
    sentence: str
    group: str
    one: str = ""

    def describe(self, value: float) -> str:
        """The value in plain words, e.g. 'no activity for 12.3 days'."""
        return self.one if self.one and f"{value:.0f}" == "1" else self.sentence.format(value=value)


PARTS = (
    "target", "rhythm", "week", "active_days", "counts", "trends", *(a.name for a in AGGREGATIONS), "since", "never",
    "decays", "attributes", "targets",
)  # fmt: skip
"""The groups of features, in their order; the graph has a method for each, or the aggregation's own functions. The
first feature of every spec is the silence that its label is about."""


def counted_kinds(spec: Spec) -> list[int]:
    """Indices of the kinds whose events are counted in windows: activity and contact, unless they are no features."""
    return [i for i, kind in enumerate(spec.kinds) if kind.counted]


def aggregated(spec: Spec, aggregation: Aggregation) -> list[tuple[int, int]]:
    """(kind, column) of the values that ask for an aggregation, in the order of its features."""
    return [
        (k, c)
        for k in counted_kinds(spec)
        for c, value in enumerate(spec.kinds[k].readings)
        if value.asks_for(aggregation)
    ]


def decayed_kinds(spec: Spec) -> list[int]:
    """Indices of the kinds with exponentially decayed counts."""
    return [i for i in counted_kinds(spec) if spec.kinds[i].decay and spec.half_lives_ms]


def features(spec: Spec) -> tuple[Feature, ...]:
    """Every feature of the spec, in column order."""
    return tuple(feature for part in features_by_part(spec).values() for feature in part)


def features_by_part(spec: Spec) -> dict[str, list[Feature]]:
    """The features of each of PARTS, in column order; a part without any has none."""
    kinds = spec.kinds
    counted = [kinds[k] for k in counted_kinds(spec)]
    parts = {
        "rhythm": _rhythm(),
        "target": _target(spec),
        "week": _week(spec),
        "active_days": [
            Feature(
                f"active_days_{days}d",
                DAY_WORDS,
                "log",
                f"active on {{value:.0f}} of the last {days} days",
                "history",
            )
            for days in spec.days_active
        ],
        "counts": [
            Feature(
                f"{kind.name}_count_{w.words}",
                "events",
                "log",
                f"{{value:,.0f}} {kind.noun} in the last {w.words}",
                kind.name,
                f"{kind.said(1)} in the last {w.words}",
            )
            for kind in counted
            for w in spec.windows
        ],
        "trends": [_trend(kind, *map(format_duration, pair)) for kind in counted for pair in spec.trends],
        "since": [
            Feature(
                f"{kind.name}_since", DAY_WORDS, "log", f"no {kind.noun} for {{value:.1f}} days", kind.name
            )
            for kind in counted
        ],
        "never": [
            Feature(
                f"{kind.name}_never", "flag", "linear", f"never any {kind.noun}: {{value:.0f}}", kind.name
            )
            for kind in counted
        ],
        "decays": [
            _decay(kinds[k], half_life) for k in decayed_kinds(spec) for half_life in spec.half_lives_ms
        ],
        "attributes": [each for kind in kinds if kind.role == "attribute" for each in _attribute(kind)],
        "targets": _targets(spec),
    }
    parts |= {aggregation.name: _aggregated(spec, aggregation) for aggregation in AGGREGATIONS}
    return {part: parts[part] for part in PARTS}


def _rhythm() -> list[Feature]:
    return [
        Feature("silence", DAY_WORDS, "log", "no activity for {value:.1f} days", "silence"),
        Feature("tenure", DAY_WORDS, "log", "customer for {value:.0f} days", "history", "customer for 1 day"),
        Feature(
            "activity_total",
            "events",
            "log",
            "{value:,.0f} activities so far",
            "history",
            "1 activity so far",
        ),
        Feature("gap_usual", DAY_WORDS, "log", "usually active every {value:.1f} days", "rhythm"),
        Feature("gap_spread", "log units", "linear", "rhythm varies by a factor of e^{value:.1f}", "rhythm"),
        Feature("gap_missing", "flag", "linear", "no second visit yet: {value:.0f}", "rhythm"),
        Feature(
            "silence_ratio", "usual gaps", "log", "silent for {value:.1f} times the usual gap", "silence"
        ),
    ]


def _target(spec: Spec) -> list[Feature]:
    """Of a target of its own: then this, not the silence since any activity, is the first of all."""
    if spec.target is None or not spec.arms_apart:
        return []
    return [_target_silence(spec.target, "silence")]


def _targets(spec: Spec) -> list[Feature]:
    """Of the targets beside the primary one: since when none came, and whether one ever did."""
    return [
        feature
        for target in spec.further
        for feature in (
            _target_silence(target, target.name),
            Feature(
                f"{target.name}_unseen",
                "flag",
                "linear",
                f"never any {target.name.replace('_', ' ')}: {{value:.0f}}",
                target.name,
            ),
        )
    ]


def _target_silence(target: Target, group: str) -> Feature:
    words = target.name.replace("_", " ")
    return Feature(f"{target.name}_silence", DAY_WORDS, "log", f"no {words} for {{value:.1f}} days", group)


def _week(spec: Spec) -> list[Feature]:
    if spec.week is None:
        return []
    return [
        Feature(
            "week_now",
            "times the mean",
            "log",
            "usually {value:.1f} times as active at this time of the week",
            "rhythm",
        ),
        Feature(
            "week_passed", "weeks", "log", "{value:.2f} weeks of usual activity passed in silence", "silence"
        ),
    ]


def _trend(kind: Kind, short: str, long: str) -> Feature:
    sentence = f"{kind.noun} in the last {short} at {{value:.2f}} times the pace of the last {long}"
    return Feature(f"{kind.name}_trend_{short}_{long}", "ratio", "log", sentence, kind.name)


def _aggregated(spec: Spec, aggregation: Aggregation) -> list[Feature]:
    """A value's rows, each over the windows where the store has tiles."""
    lengths = [window.words for window in spec.windows] if aggregation.store.tiled else [""]
    figure = "{value:.0%}" if aggregation.unit == "share" else "{value:.2f}"
    found = []
    for k, c in aggregated(spec, aggregation):
        kind, value = spec.kinds[k], spec.kinds[k].readings[c]
        for category in value.categories if aggregation.store.by_category else ("",):
            words = aggregation.sentence.format(what=value.noun, noun=kind.noun, category=category)
            names = [each for each in (kind.name, value.name, category, aggregation.name) if each]
            for length in lengths:
                said = f"{words} in the last {length}" if length else words
                # A category is the user's own text, and braces in it are no figures.
                sentence = f"{said.replace('{', '{{').replace('}', '}}')}: {figure}"
                name = "_".join([*names, *([length] if length else [])])
                found.append(Feature(name, aggregation.unit, aggregation.transform, sentence, kind.name))
    return found


def _decay(kind: Kind, half_life_ms: int) -> Feature:
    half_life = format_duration(half_life_ms)
    sentence = f"{kind.noun} lately (half-life {half_life}): {{value:.2f}}"
    return Feature(f"{kind.name}_decay_{half_life}", "events", "log", sentence, kind.name)


def _attribute(kind: Kind) -> list[Feature]:
    missing = Feature(
        f"{kind.name}_missing", "flag", "linear", f"{kind.name} unknown: {{value:.0f}}", kind.name
    )
    if kind.attribute == "category":
        flags = [
            Feature(
                f"{kind.name}_is_{each}", "flag", "linear", f"{kind.name} is {each}: {{value:.0f}}", kind.name
            )
            for each in kind.categories
        ]
        return [*flags, missing]
    if kind.attribute == "date":
        return [
            Feature(
                f"{kind.name}_until",
                DAY_WORDS,
                "log",
                f"{{value:.0f}} days until {kind.name}",
                kind.name,
                f"1 day until {kind.name}",
            ),
            missing,
        ]
    return [Feature(kind.name, "value", "log", f"{kind.name}: {{value:.2f}}", kind.name), missing]
