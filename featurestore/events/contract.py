"""The event contract: what a producer promises, as a type, as a JSON Schema, and as the reasons of a refusal.

    {"user_id": "c-42", "type": "purchase", "ts": "2026-03-01T12:00:00.250Z", "value": 19.9, "event_id": "…"}

This module knows the shape of one event and where a mapping finds it in events that were not designed for us; it
refuses to know a spec's kinds, Kafka, files or columns. The invariant: whether an event fits depends on that event
alone, and the schema that is published is generated from the very type that validates.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NotRequired

from pydantic import (
    AliasChoices,
    AliasGenerator,
    AliasPath,
    ConfigDict,
    Field,
    InstanceOf,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    with_config,
)
from typing_extensions import TypedDict  # pydantic asks for this one below Python 3.12

from ebbtide.featurestore.customer import FIELDS as CUSTOMER_FIELDS
from ebbtide.featurestore.customer import Composite
from ebbtide.featurestore.kinds import Kind
from ebbtide.featurestore.spec import Mapping, Spec

USER_ID_CHARS_MAX = 128
TIME_MS_MIN, TIME_MS_MAX = 1, 253_402_300_799_999
"""Event times: 0 means never in a record, and the upper end is the last millisecond of the year 9999."""
VALUE_MAX = 1e30
"""Records sum values in 32-bit floats (largest 3.4e38): bounded here, no sum of 10^8 events can become infinite."""
RFC3339 = r"^(19[7-9]\d|[2-9]\d{3})-\d{2}-\d{2}([Tt ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?([Zz]|[+-]\d{2}:\d{2})?)?$"


class Reason(StrEnum):
    """Why an event was refused. The names are stable: they travel in the headers of dead letters."""

    NOT_JSON = "not_json"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    NOT_FINITE = "not_finite"  # NaN, infinity, or beyond VALUE_MAX
    TOO_LARGE = "too_large"
    KEY_MISMATCH = "key_mismatch"
    UNKNOWN_TYPE = "unknown_type"
    FUTURE = "future"
    TOO_OLD = "too_old"
    NO_TIMESTAMP = "no_timestamp"  # of the Kafka record, by which the two before are judged
    TIMESTAMP_RANGE = "timestamp_range"
    BAD_ATTRIBUTE = "bad_attribute"
    MISPLACED = "misplaced"  # in another partition than its customer's, which has a history: half a customer
    BAD_ROW = "bad_row"  # of a file: not as many fields as the header


@dataclass(frozen=True, slots=True)
class Rejected:
    """One refused record: its index in what was parsed, the reason, and a sentence without the event's content."""

    index: int
    reason: Reason
    detail: str


class Event(TypedDict):
    """One event. Fields beyond these are ignored."""

    user_id: Annotated[
        str,
        Field(
            min_length=1,
            max_length=USER_ID_CHARS_MAX,
            description="The customer. The Kafka key is the same text.",
        ),
    ]
    type: Annotated[str, Field(min_length=1, description="What happened.")]
    ts: Annotated[
        int | float | str,
        Field(description="When: RFC 3339 (UTC where no offset is given) or milliseconds since 1970."),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "integer", "minimum": TIME_MS_MIN, "maximum": TIME_MS_MAX},
                    {"type": "string", "format": "date-time", "pattern": RFC3339},
                ]
            }
        ),
    ]
    event_id: NotRequired[
        Annotated[
            str | None,
            Field(description="Unique to the event, so that a duplicate is folded once. Empty: none."),
        ]
    ]
    value: NotRequired[
        Annotated[
            Annotated[float, Field(allow_inf_nan=False, ge=-VALUE_MAX, le=VALUE_MAX)] | str | None,
            Field(description="A number: an amount, say. Text where a kind takes a category or a date."),
        ]
    ]
    properties: NotRequired[
        Annotated[
            InstanceOf[dict[str, Any]] | None,
            Field(description="Anything else; read where a feature spec says so."),
        ]
    ]


FIELDS = tuple(Event.__annotations__)
_Further = Annotated[
    str,
    Field(min_length=1, max_length=USER_ID_CHARS_MAX, description="A further part of who the customer is."),
]


class _OfTwo(Event):
    customer_2: _Further


class _OfThree(_OfTwo):
    customer_3: _Further


class _OfFour(_OfThree):
    customer_4: _Further


_SHAPES: tuple[Any, ...] = (Event, _OfTwo, _OfThree, _OfFour)
"""An event by how many fields make its customer."""
EXPECTED = {
    **dict.fromkeys(CUSTOMER_FIELDS, f"text of 1 to {USER_ID_CHARS_MAX} characters"),
    "type": "text",
    "ts": "RFC 3339 text or a whole number of milliseconds since 1970",
    "event_id": "text",
    "value": f"a finite number within ±{VALUE_MAX:g}",
    "properties": "an object",
}
_WHO = {
    "first": "The customer's first part. The Kafka key is the same text, with ~ written ~0 and / written ~1.",
    "whole": "The customer's first part. The Kafka key is all parts, joined by /, with ~ written ~0 and / written ~1.",
}
_JSON_TYPES = {
    bool: "true or false", int: "a number", float: "a number", str: "text",
    list: "an array", dict: "an object", type(None): "null",
}  # fmt: skip
_REASONS = {
    "missing": Reason.MISSING_FIELD,
    "string_too_short": Reason.MISSING_FIELD,
    "finite_number": Reason.NOT_FINITE,
    "less_than_equal": Reason.NOT_FINITE,
    "greater_than_equal": Reason.NOT_FINITE,
}


def event_adapter(mapping: Mapping, composite: Composite | None = None) -> TypeAdapter[list[Event]]:
    """A validator of whole batches: a list of decoded JSON values to a list of events with the contract's names,
    each field taken from where `mapping` says it lies, those that make a customer from where `composite` does."""

    def alias(field: str) -> AliasChoices | str:
        path = path_of(field, mapping, composite)
        if "." not in path:
            return path
        # A field whose own name has dots comes first; numbers step into arrays.
        first, *rest = path.split(".")
        return AliasChoices(path, AliasPath(first, *(int(p) if p.isdigit() else p for p in rest)))

    config = ConfigDict(
        strict=True, loc_by_alias=False, alias_generator=AliasGenerator(validation_alias=alias)
    )

    shape = _SHAPES[len(composite.fields) - 1 if composite else 0]

    @with_config(config)
    class MappedEvent(shape):  # type: ignore[misc, valid-type]  # one of four, by the spec
        pass

    return TypeAdapter(list[MappedEvent])  # type: ignore[arg-type]  # an Event, which mypy cannot see


def explain(error: ValidationError, mapping: Mapping, composite: Composite | None = None) -> list[Rejected]:
    """The first complaint about each failing event of a batch, by index."""
    found: dict[int, Rejected] = {}
    for problem in error.errors(include_url=False, include_context=False):
        index, *where = problem["loc"]
        assert isinstance(index, int)
        if index in found:
            continue
        given = _JSON_TYPES.get(type(problem["input"]), "something else")
        if not where:
            found[index] = Rejected(index, Reason.WRONG_TYPE, f"an event is an object, not {given}")
            continue
        field = str(where[0])
        reason = _REASONS.get(problem["type"], Reason.WRONG_TYPE)
        if problem["input"] is None:
            reason = Reason.MISSING_FIELD
        name = field_words(field, mapping, composite)
        detail = f"{name}: expected {EXPECTED[field]}"
        if reason is Reason.MISSING_FIELD:
            detail = f"{name} is missing or empty"
        elif reason is Reason.WRONG_TYPE:
            detail += f", got {'longer text' if problem['type'] == 'string_too_long' else given}"
        found[index] = Rejected(index, reason, detail)
    return list(found.values())


def path_of(field: str, mapping: Mapping, composite: Composite | None = None) -> str:
    """Where a field of the contract lies in an event."""
    if composite is not None and field in CUSTOMER_FIELDS:
        return composite.fields[CUSTOMER_FIELDS.index(field)]
    return str(getattr(mapping, field))


def field_words(field: str, mapping: Mapping, composite: Composite | None = None) -> str:
    """The contract's field, and where it is looked for when that is elsewhere."""
    path = path_of(field, mapping, composite)
    return field if path == field else f"{field} (from {path})"


def event_schema(spec: Spec | None = None) -> dict[str, Any]:
    """The JSON Schema of an event: of any, or with a spec, of those that this spec takes (types, attribute values).

    It describes the contract's own names; a mapping is the reader's business."""
    parts = 1 if spec is None else len(spec.customer_fields)
    schema: dict[str, Any] = TypeAdapter(_SHAPES[parts - 1]).json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Ebbtide event"}
    if spec is None:  # of a spec it is another one for each
        schema["$id"] = "urn:ebbtide:schema:event:1"
    for field in schema["properties"].values():
        field.pop("title", None)
    if spec is None:
        return schema
    if spec.customer is not None:
        schema["properties"]["user_id"]["description"] = _WHO[spec.customer.key]
    if spec.unknown == "dead_letter":
        schema["properties"]["type"] = {**schema["properties"]["type"], "enum": sorted(spec.kind_of_type)}
    texts = _types_of(
        kind for kind in spec.kinds if any(v.path == "value" and v.reads != "number" for v in kind.readings)
    )
    schema["if"] = {"properties": {"type": {"enum": texts}}}
    schema["else"] = {"properties": {"value": {"type": ["number", "null"]}}}
    return schema


def _types_of(kinds: Iterable[Kind]) -> list[str]:
    return sorted(event_type for kind in kinds for event_type in kind.types)
