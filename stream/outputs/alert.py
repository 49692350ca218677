"""The alert: what the downstream topic carries, versioned, with a JSON Schema.

Its id and its bytes follow from the decision alone (customer, target, state, sequence), never from when or by whom it
was sent; so a replay writes the same bytes again and a consumer drops the second one by id. Event time is
`decision.as_of`; the time of sending is a header, `emitted_at_ms`.

What a consumer does, record by record, in the order of a topic's partition (`tests/consumer/` is one, in 60 lines):

    value null                          forget the customer: their id is the key; end their episodes. Of composite
                                        customers it may be a first part: all who begin with it and "/"
    an `alert_id` that was seen         ignore it
    `sequence` not above the last       of this customer and target: ignore it, something later is known
    `state` opened                      an episode begins; `escalated`: the same one, in a higher `band`
    `state` resolved, corrected         it is over; `corrected`: by a late event it should not have been
    another `state`                     remember the sequence, do nothing
    a field that is not known           ignore it

How it changes. Within a schema version fields are only added, and an added one may be missing or null; none is removed,
renamed, retyped, or given another meaning. Anything else is a new version, with a schema of its own under another
`$id`; then the release that writes it reads the one before (`versions.py`), a topic may hold both for as long as it
retains, and a rolling upgrade writes both.
"""

import hashlib
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from ebbtide.featurestore.record.reasons import Said
from ebbtide.stream.decision.policy import Cause, State

SCHEMA_VERSION: Literal[2] = 2
SCHEMA_ID = f"urn:ebbtide:schema:alert:{SCHEMA_VERSION}"
REASONS_MAX = 3
"""More than three reasons are read by nobody."""


class _Part(BaseModel):
    """Open: who reads with it ignores fields of a later release."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Reason(_Part):
    """A group of features' part in the decision: its signed contribution in logit units (positive speaks for churn),
    the loudest of its features with its value in natural units (null of the sequence), and the group in plain words."""

    feature: str
    group: str | None = Field(
        default=None, description="what speaks as one: a kind, silence, rhythm, history, sequence"
    )
    value: float | None
    contribution: float
    words: str


class Decision(_Part):
    """The point that was decided: as of when, what brought it about (an event, a silence, an explicit leave; a return
    after the record's memory, or that nothing came until its expiry), and where in the input the event lies that did:
    of `silence` and `expired` the customer's last activity, whose `offset` is null when it came from a file."""

    as_of: datetime
    cause: Literal["event", "silence", "terminal", "returned", "expired"]
    topic: str
    partition: int
    offset: int | None


class SurvivalAt(_Part):
    """The probability that none of the target's events comes within so many days after the decision."""

    horizon_days: float = Field(gt=0)
    probability: float = Field(ge=0, le=1)


class ActivityIn(_Part):
    """Days from the decision to the target's next event, as quantiles; null: beyond the last horizon."""

    p50: float | None = Field(ge=0)
    p90: float | None = Field(ge=0)


class Alert(_Part):
    """A change of an episode: of one customer and one target of the spec. Ignore one whose `sequence` is not above the
    last of that customer and target. A record with a null value is no alert: forget the customer in its key."""

    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_extra={"$id": SCHEMA_ID})
    schema_version: Literal[2]
    alert_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    customer: str = Field(min_length=1, max_length=128)
    target: str = Field(
        min_length=1, description="what churn is: a target of the spec, `activity` if it names none"
    )
    sequence: int = Field(ge=1, description="rises with every alert of the customer and target")
    state: State = Field(description="what became of the episode")
    cause: Cause = Field(
        description="why: the score; that they left, returned or expired; an event that came late"
    )
    band: str = Field(description="the highest band of risk that the episode has reached")
    probability: float | None = Field(
        ge=0, le=1, description="calibrated; null where the customer was not scored: left, returned, expired"
    )
    logit: float | None = Field(
        description="of the probability, with all digits; null also where that is exactly 0 or 1"
    )
    threshold: float = Field(ge=0, le=1, description="the probability at which `band` begins")
    horizon_days: float = Field(gt=0, description="churn is decided within so many days after the decision")
    survival: tuple[SurvivalAt, ...] | None = Field(
        default=None, description="by rising horizon; null if the model has one horizon"
    )
    activity_in_days: ActivityIn | None = Field(default=None, description="null if the model has one horizon")
    lost_at: datetime | None = Field(
        default=None,
        description="last target event + horizon: from then on it is churn by definition; null where churn is an event",
    )
    reasons: tuple[Reason, ...] = Field(max_length=REASONS_MAX)
    model: str
    model_version: int
    layout: str
    row_sha256: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="of the record that was decided, and its as_of"
    )
    decision: Decision


def alert_id(topic: str, customer: str, target: str, state: str, sequence: int) -> str:
    """32 hex digits of what the alert is about."""
    what = "\0".join((topic, customer, target, state, str(sequence)))
    return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()


def logit_of(p: float) -> float | None:
    """The logit of a probability in [0, 1]; None where it is infinite."""
    return math.log(p / (1.0 - p)) if 0.0 < p < 1.0 else None


def encode(alert: Alert) -> bytes:
    """The alert's bytes: the same alert gives the same bytes."""
    return alert.model_dump_json().encode()


def customer_key(value: bytes) -> bytes:
    """The Kafka key of an encoded alert: its customer."""
    return str(orjson.loads(value)["customer"]).encode()


def reasons_of(said: Sequence[Said]) -> tuple[Reason, ...]:
    """As an alert carries them. Figures have four significant digits: enough to read, and no noise in the bytes."""
    return tuple(
        Reason(
            feature=each.feature,
            group=each.group,
            value=None if each.value is None else _short(each.value),
            contribution=_short(each.contribution),
            words=each.words,
        )
        for each in said
    )


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")


def alert_schema() -> dict[str, Any]:
    """The published JSON Schema of the alert."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Alert.model_json_schema()}
