"""The feature spec: what a customer's behaviour is made of, said once, in YAML.

Everything that must be the same in training and in service is derived from this one object: the kinds of events and
what each means (its *role*), the windows, the sequence, when a customer is scored, who is eligible. The record layout
(`featurestore/record/layout.py`), the fold (`featurestore/record/fold.py`), the features
(`featurestore/record/features.py`) and the Keras layer that computes them are generated from it. It knows nothing of
Kafka, Redis or TensorFlow; it never reads a clock.

The roles, since they decide what silence means:

    activity    what the customer does: moves last-seen, re-arms silence, decides the label
    contact     what we do to the customer (a mailing, a call): counted apart, never life
    terminal    an explicit leave: not scored until the next activity
    attribute   a last value (a number, a category, or a date turned into days until)
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.times.durations import (
    DAY_MS,
    HOUR_MS,
    UNITS_MS,
    DurationMs,
    PositiveDurationMs,
    format_duration,
)

KINDS_MAX = 32
"""Kinds are one byte in the sequence, and every window keeps a tile row a kind: 32 keeps a record near 1 KiB."""
SILENCES_MAX = 64
"""A schedule longer than this is a mistake in the ratio (1.5 from 6 h reaches a year in 18 steps)."""


Role = Literal["activity", "contact", "terminal", "attribute"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Kind(_Frozen):
    """One kind of event: the event types it covers, its role, and what is kept of its value."""

    name: Name
    types: tuple[str, ...] = ()
    role: Role = "activity"
    noun: str = ""
    value: str | None = None
    aggregate: tuple[Literal["sum", "mean", "last"], ...] = ()
    decay: bool = True
    score: Literal["auto", "always", "never"] = "auto"
    stamp: Literal["as_is", "day_end"] = "as_is"
    attribute: Literal["number", "category", "date"] | None = None
    categories: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if isinstance(data, dict) and "name" in data:
            data = {"types": (data["name"],), "noun": str(data["name"]).replace("_", " ") + "s", **data}
            if data.get("role") == "attribute":
                data = {"value": "value", "attribute": "number", **data}
            elif data.get("aggregate"):
                data = {"value": "value", **data}
        return data

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.types:
            raise ValueError(f"kind {self.name}: needs at least one event type")
        if self.value is not None and not re.fullmatch(r"value|properties(\.[^.]+)+", self.value):
            raise ValueError(
                f"kind {self.name}: value is 'value' or 'properties.<field>', not {self.value!r}"
            )
        if (self.role == "attribute") != (self.attribute is not None):
            raise ValueError(
                f"kind {self.name}: role attribute and attribute: number|category|date go together"
            )
        if (self.attribute == "category") != bool(self.categories):
            raise ValueError(
                f"kind {self.name}: categories are listed for attribute: category, and only for it"
            )
        if self.role == "attribute" and self.aggregate:
            raise ValueError(
                f"kind {self.name}: an attribute keeps its last value; aggregate is for other roles"
            )
        if self.role != "activity" and self.score == "auto":
            return self.model_copy(update={"score": "never"})
        return self


class Window(_Frozen):
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


class Sequence(_Frozen):
    """The ring of the last entries that the recurrent part reads; repeats of a kind within `coalesce_ms` share one."""

    length: Annotated[int, Field(ge=1, le=256)] = 32
    coalesce_ms: DurationMs = Field(default=30 * UNITS_MS["m"], alias="coalesce")
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Silence(_Frozen):
    """The geometric schedule of gaps after the last activity at which a customer is scored, up to the horizon."""

    first_ms: PositiveDurationMs = Field(default=6 * HOUR_MS, alias="first")
    ratio: Annotated[float, Field(gt=1.0, le=10.0)] = 1.5
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Eligibility(_Frozen):
    """Who is scored at all; one rule for training, evaluation and alerts."""

    min_events: Annotated[int, Field(ge=1)] = 1
    min_tenure_ms: DurationMs = Field(default=0, alias="min_tenure")
    max_silence_ms: PositiveDurationMs | None = Field(default=None, alias="max_silence")
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Mapping(_Frozen):
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


class Spec(_Frozen):
    """A whole feature spec; durations are milliseconds. See `ops/specs/` for examples with every field."""

    name: Name
    horizon_ms: PositiveDurationMs = Field(alias="horizon")
    memory_ms: PositiveDurationMs = Field(alias="memory")
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1, max_length=KINDS_MAX)]
    windows: tuple[Window, ...]
    half_lives_ms: tuple[PositiveDurationMs, ...] = Field(default=(), alias="half_lives")
    days_active: tuple[Annotated[int, Field(ge=1, le=256)], ...] = ()
    sequence: Sequence = Sequence()
    silence: Silence = Silence()
    eligibility: Eligibility = Eligibility()
    score_every_ms: DurationMs = Field(default=0, alias="score_every")
    dedupe: Annotated[int, Field(ge=0, le=64)] = 8
    unknown: Literal["dead_letter", "ignore"] = "dead_letter"
    future_max_ms: DurationMs = Field(default=DAY_MS, alias="future_max")
    """An event later than its own Kafka timestamp by more than this is a dead letter."""
    past_max_ms: PositiveDurationMs | None = Field(default=None, alias="past_max")
    """And so is one that is older by more than this; by default than `memory` and a week."""
    mapping: Mapping = Mapping()
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
        if self.past_max_ms is not None and self.past_max_ms < longest:
            problems.append("past_max must reach the longest window: what it refuses would be counted there")
        if self.eligibility.max_silence_ms and self.eligibility.max_silence_ms > self.memory_ms:
            problems.append("eligibility.max_silence must lie within memory")
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
    def oldest_ms(self) -> int:
        """How much older than its own Kafka timestamp an event may be."""
        return self.memory_ms + 7 * DAY_MS if self.past_max_ms is None else self.past_max_ms

    @property
    def longest_window_ms(self) -> int:
        return max(window.length_ms for window in self.windows)

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
