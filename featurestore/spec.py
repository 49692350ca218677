"""The feature spec: what a customer's behaviour is made of, said once, in YAML.

Everything that must be the same in training and in service is derived from this one object: the kinds of events and
what each means (its *role*), the windows, the sequence, when a customer is scored, who is eligible. The record layout
(`featurestore/record/layout.py`), the fold (`featurestore/record/fold.py`), the features
(`featurestore/record/features.py`) and the Keras layer that computes them are generated from it. It knows nothing of
Kafka, Redis or TensorFlow; it never reads a clock.

What a kind and its values are is in `featurestore/kinds.py`, what churn is in `featurestore/target.py`.
"""

from collections import abc
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from ebbtide.featurestore.customer import FIELDS, SEPARATOR, CompositeField, first_of
from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.kinds import Frozen, Kind, Name
from ebbtide.featurestore.slices import SLICES_MAX, Slice
from ebbtide.featurestore.slices import problems_of as slice_problems
from ebbtide.featurestore.target import (
    ALL_ACTIVITY,
    TARGETS_MAX,
    Target,
    TargetEvents,
    problems_of,
    target_events,
)
from ebbtide.featurestore.times.durations import (
    DAY_MS,
    HOUR_MS,
    UNITS_MS,
    DurationMs,
    PositiveDurationMs,
    format_duration,
)
from ebbtide.featurestore.times.timestamps import iso_ms
from ebbtide.featurestore.times.zones import offsets

KINDS_MAX = 32
"""Kinds are one byte in the sequence, and every window keeps a tile row a kind: 32 keeps a record near 1 KiB."""
WEEK_HOURS = 168
WEEK_BUCKETS_MAX = 16
AFTER_FIRST_MAX = 8
HORIZONS_MAX = 8
HORIZON_PARTS = (0.125, 0.25, 0.5, 1.5, 2.0)
"""Of the horizon: where nothing else is asked for, survival is told there, too."""
SILENCES_MAX = 64
"""A schedule longer than this is a mistake in the ratio (1.5 from 6 h reaches a year in 18 steps)."""


class Window(Frozen):
    """A rolling window kept as `tiles` tiles of `hop_ms`: exact for some length in (length - hop, length]."""

    length_ms: PositiveDurationMs
    tiles: Annotated[int, Field(ge=1, le=64)]

    @property
    def hop_ms(self) -> int:
        return self.length_ms // self.tiles

    @property
    def words(self) -> str:
        return format_duration(self.length_ms)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.length_ms % self.tiles:
            raise ValueError(
                f"window {self.words}: {self.tiles} tiles do not divide it into whole milliseconds"
            )
        return self


class Sequence(Frozen):
    """The ring of the last entries that the recurrent part reads; repeats of a kind within `coalesce_ms` share one."""

    length: Annotated[int, Field(ge=1, le=256)] = 32
    coalesce_ms: DurationMs = Field(default=30 * UNITS_MS["m"], alias="coalesce")
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Silence(Frozen):
    """The geometric schedule of gaps after the last activity at which a customer is scored, up to the horizon."""

    first_ms: PositiveDurationMs = Field(default=6 * HOUR_MS, alias="first")
    ratio: Annotated[float, Field(gt=1.0, le=10.0)] = 1.5
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Eligibility(Frozen):
    """Who is scored at all; one rule for training, evaluation and alerts."""

    min_events: Annotated[int, Field(ge=1)] = 1
    min_tenure_ms: DurationMs = Field(default=0, alias="min_tenure")
    max_tenure_ms: PositiveDurationMs | None = Field(default=None, alias="max_tenure")
    max_silence_ms: PositiveDurationMs | None = Field(default=None, alias="max_silence")
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Week(Frozen):
    """The rhythm of the week: activities by hour of the week, in `zone`, in buckets of equal length from Monday on.

    A silence over a customer's idle days says less than one over busy ones."""

    zone: str = "UTC"
    buckets: Annotated[int, Field(ge=2, le=WEEK_BUCKETS_MAX)] = 14

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if WEEK_HOURS % self.buckets:
            raise ValueError(f"week: {self.buckets} buckets do not divide the {WEEK_HOURS} hours of a week")
        offsets(self.zone)
        return self


class Mapping(Frozen):
    """Where the contract's fields lie in events that were not designed for us; dots descend into objects."""

    user_id: str = "user_id"
    event_id: str = "event_id"
    type: str = "type"
    ts: str = "ts"
    value: str = "value"
    properties: str = "properties"
    arrival: str | None = None
    ts_format: str = "auto"
    """`auto` (RFC 3339 or epoch milliseconds), epoch `s`, `ms`, `us`, `ns`, or a strptime format such as %Y%m%d."""
    ts_unit: PositiveDurationMs | None = None
    """Times are numbers of this (`1d`: a day index) since `ts_origin`, in place of `ts_format`."""
    ts_origin: str = "1970-01-01"
    """Date or RFC 3339 time that the numbers count from, UTC where it has no offset."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.ts_unit is not None and self.ts_format != "auto":
            raise ValueError("ts_format and ts_unit both say what a time is: leave one out")
        if self.ts_unit is None and self.ts_origin != "1970-01-01":
            raise ValueError("ts_origin needs ts_unit: what do the numbers since then count?")
        try:
            self.origin_ms  # noqa: B018 - reads it
        except ValueError:
            raise ValueError(f"ts_origin {self.ts_origin!r} is no date: write 2016-01-01") from None
        return self

    @property
    def origin_ms(self) -> int:
        """Where the numbers count from, ms UTC."""
        return iso_ms(self.ts_origin)


class Spec(Frozen):
    """A whole feature spec; durations are milliseconds. See `ops/specs/` for examples with every field."""

    name: Name
    horizon_ms: PositiveDurationMs = Field(alias="horizon")
    memory_ms: PositiveDurationMs = Field(alias="memory")
    further_horizons_ms: Annotated[
        tuple[PositiveDurationMs, ...], Field(max_length=HORIZONS_MAX - 1, alias="further_horizons")
    ] = ()
    """At which it is also told how likely it is that nothing came; by default so many parts of the horizon."""
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1, max_length=KINDS_MAX)]
    windows: tuple[Window, ...]
    half_lives_ms: tuple[PositiveDurationMs, ...] = Field(default=(), alias="half_lives")
    trends: tuple[tuple[PositiveDurationMs, PositiveDurationMs], ...] = ()
    """Pairs of windows, the short one first: the pace of each kind's events in the one against that in the other."""
    week: Week | None = None
    days_active: tuple[Annotated[int, Field(ge=1, le=256)], ...] = ()
    targets: Annotated[tuple[Target, ...], Field(max_length=TARGETS_MAX)] = ()
    """What churn is, the primary target first; by default that no activity follows within the horizon."""
    slices: Annotated[tuple[Slice, ...], Field(max_length=SLICES_MAX)] = ()
    """Groups of customers that a model is judged by; by default each category of an attribute, and bands of tenure."""
    sequence: Sequence = Sequence()
    silence: Silence = Silence()
    eligibility: Eligibility = Eligibility()
    score_every_ms: DurationMs = Field(default=0, alias="score_every")
    score_after_first_ms: Annotated[
        tuple[PositiveDurationMs, ...], Field(max_length=AFTER_FIRST_MAX, alias="score_after_first")
    ] = ()
    """Decision points so long after a customer's first activity."""
    dedupe: Annotated[int, Field(ge=0, le=64)] = 8
    unknown: Literal["dead_letter", "ignore"] = "dead_letter"
    future_max_ms: DurationMs = Field(default=DAY_MS, alias="future_max")
    """An event later than its own Kafka timestamp by more than this is a dead letter."""
    past_max_ms: PositiveDurationMs | None = Field(default=None, alias="past_max")
    """And so is one that is older by more than this; by default than `memory` and a week."""
    mapping: Mapping = Mapping()
    customer: CompositeField = None
    """Several fields that together say who the customer is, in place of `mapping.user_id`."""
    words: Annotated[
        tuple[tuple[str, str], ...],
        BeforeValidator(lambda said: tuple(said.items()) if isinstance(said, dict) else said),
        PlainSerializer(dict, return_type=dict[str, str]),
    ] = ()
    """Templates of reasons in your own words or language, by feature or group, written as a mapping: see
    `record/reasons.py`."""
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _windows_by_length(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("windows"), dict):
            windows = [{"length_ms": length, "tiles": tiles} for length, tiles in data["windows"].items()]
            data = {**data, "windows": windows}
        return data

    @model_validator(mode="after")
    def _relations(self) -> Self:
        problems: list[str] = []
        names = [kind.name for kind in self.kinds]
        types = [event_type for kind in self.kinds for event_type in kind.types]
        problems += [
            f"kind {name} is named twice" for name in sorted({n for n in names if names.count(n) > 1})
        ]
        problems += [
            f"event type {t} is in two kinds" for t in sorted({t for t in types if types.count(t) > 1})
        ]
        if not any(kind.role == "activity" for kind in self.kinds):
            problems.append("no kind has role activity: without it there is no silence and no label")
        if not self.windows:
            problems.append("windows: at least one is needed")
        longest = max([window.length_ms for window in self.windows], default=0)
        if self.memory_ms < max(longest, self.horizon_ms):
            problems.append(
                f"memory {format_duration(self.memory_ms)} must reach the longest window and the horizon "
                f"({format_duration(max(longest, self.horizon_ms))}): a record forgotten earlier would look new"
            )
        if self.silence.first_ms > self.horizon_ms:
            problems.append("silence.first must not be later than the horizon")
        elif len(self.silences_ms) > SILENCES_MAX:
            problems.append(
                f"the silence schedule has {len(self.silences_ms)} points, at most {SILENCES_MAX}"
            )
        if max(self.score_after_first_ms, default=0) > self.memory_ms:
            problems.append("score_after_first must lie within memory: later a record may have expired")
        lengths = [window.length_ms for window in self.windows]
        for short, long in self.trends:
            if short >= long or not {short, long} <= set(lengths):
                words = f"{format_duration(short)}, {format_duration(long)}"
                problems.append(f"trends: [{words}] are not a window and a longer one of this spec")
        for target in self.targets:
            problems += problems_of(self.kinds, target)
        called = [target.name for target in self.targets]
        problems += [
            f"target {name} is named twice" for name in sorted({n for n in called if called.count(n) > 1})
        ]
        problems += slice_problems(self.kinds, self.slices)
        if self.past_max_ms is not None and self.past_max_ms < longest:
            problems.append("past_max must reach the longest window: what it refuses would be counted there")
        if self.eligibility.max_silence_ms and self.eligibility.max_silence_ms > self.memory_ms:
            problems.append("eligibility.max_silence must lie within memory")
        if self.customer is not None and self.mapping.user_id != FIELDS[0]:
            problems.append("customer and mapping.user_id both say who the customer is: leave one out")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def silences_ms(self) -> tuple[int, ...]:
        """Gaps after the last activity at which a silence is a decision point, ascending; the last is the horizon."""
        gaps: list[int] = []
        gap = float(self.silence.first_ms)
        while gap < self.horizon_ms and len(gaps) <= SILENCES_MAX:
            gaps.append(round(gap))
            gap *= self.silence.ratio
        return (*gaps, self.horizon_ms)

    @property
    def horizons_ms(self) -> tuple[int, ...]:
        """At which it is told how likely it is that nothing came, ascending; the horizon is one of them. In whole days
        where that is no great matter."""
        grain = DAY_MS if self.horizon_ms >= 8 * DAY_MS else 1
        parts = (max(round(part * self.horizon_ms / grain), 1) * grain for part in HORIZON_PARTS)
        return tuple(sorted({self.horizon_ms, *(self.further_horizons_ms or parts)}))

    @property
    def oldest_ms(self) -> int:
        """How much older than its own Kafka timestamp an event may be."""
        return self.memory_ms + 7 * DAY_MS if self.past_max_ms is None else self.past_max_ms

    @property
    def longest_window_ms(self) -> int:
        return max(window.length_ms for window in self.windows)

    @property
    def target(self) -> Target | None:
        """The primary target; None: all activity, whose absence is churn."""
        return self.targets[0] if self.targets else None

    @property
    def target_names(self) -> tuple[str, ...]:
        """What alerts call the targets, the primary one first; `activity` where the spec names none."""
        return tuple(target.name for target in self.targets) or (ALL_ACTIVITY,)

    @property
    def target_events(self) -> TargetEvents:
        """Which events decide the label."""
        return target_events(self.kinds, self.target)

    @property
    def further(self) -> tuple[Target, ...]:
        """The targets beside the primary one."""
        return self.targets[1:]

    def only_target(self, index: int) -> "Spec":
        """The same spec as if this target were the only one, by its index in `target_names`: what its labels and words
        are. Its records and features are others."""
        return self.model_copy(update={"targets": self.targets[index : index + 1]})

    @property
    def churn_words(self) -> str:
        """What a churned customer shows within the horizon."""
        return self.target.words if self.target else "no activity"

    @property
    def churn_is_absence(self) -> bool:
        return self.target is None or self.target.churn_when == "absent"

    @property
    def arms_apart(self) -> bool:
        """Is silence counted from the last event of a target rather than from the last activity?"""
        return self.target is not None and self.churn_is_absence

    @property
    def customer_fields(self) -> dict[str, str]:
        """Where the fields that make a customer lie in an event, by the contract's names of them."""
        if self.customer is None:
            return {FIELDS[0]: self.mapping.user_id}
        return dict(zip(FIELDS, self.customer.fields, strict=False))

    def keys_of(self, customers: abc.Sequence[str]) -> list[bytes]:
        """The Kafka keys of customers' events, which say their partitions; of a first part, of its tombstone."""
        by_first = self.customer is not None and self.customer.key == "first"
        return [name.encode() for name in (map(first_of, customers) if by_first else customers)]

    def names_first(self, name: str) -> bool:
        """Is this the first part of customers rather than one of them? Raises ValueError for what is neither."""
        if self.customer is None:
            return False
        parts = name.split(SEPARATOR)
        if len(parts) not in (1, len(self.customer.fields)) or not all(parts):
            wanted = SEPARATOR.join(self.customer.fields)
            raise ValueError(f"a customer is {wanted}, and its first part {self.customer.fields[0]}")
        return len(parts) == 1

    @property
    def value_columns(self) -> int:
        """Columns of values in a batch of this spec, at least one."""
        return max(1, *(len(kind.readings) for kind in self.kinds))

    @property
    def kind_of_type(self) -> dict[str, int]:
        """Event type -> index into `kinds`."""
        return {event_type: index for index, kind in enumerate(self.kinds) for event_type in kind.types}


def parse_spec(data: object, *, source: str = "spec") -> Spec:
    """Validate a spec. Raises SpecError naming every problem at once, by field."""
    try:
        return Spec.model_validate(data)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'spec'}: {e['msg']}" for e in error.errors()]
        raise SpecError(
            f"{source} does not fit: " + "; ".join(problems), hint="see ops/specs/ for examples"
        ) from None


def load_spec(path: Path | str) -> Spec:
    """Read a spec from a YAML file. Raises SpecError when the file is missing, not YAML, or does not fit."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"cannot read the spec {path}: {error.strerror}", hint="give --spec FILE") from None
    # A value that does not fit its tag (`!!int x`, a date of 2026-99-99) is none of PyYAML's own errors.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
        raise SpecError(f"{path} is not YAML: {error}") from None
    return parse_spec(data, source=str(path))


def dump_spec(spec: Spec) -> dict[str, Any]:
    """A spec as plain data that `parse_spec` reads back to an equal spec."""
    return spec.model_dump(mode="json", by_alias=True)
