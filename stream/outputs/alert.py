"""The alert: what the downstream topic carries, versioned, with a JSON Schema.

Its id and its bytes follow from the decision alone (customer, transition, sequence), never from when or by whom it
was sent; so a replay writes the same bytes again and a consumer drops the second one by id. The time of sending is a
header.
"""

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1
REASONS_MAX = 3
"""More than three reasons are read by nobody."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reason(_Part):
    """One feature's part in the decision: its value in natural units, its signed contribution in logit units
    (positive speaks for churn), and the same in plain words."""

    feature: str
    value: float
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


class Alert(_Part):
    """A change of a customer's churn episode. Ignore one whose `sequence` is not above the customer's last."""

    schema_version: Literal[1] = SCHEMA_VERSION
    alert_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    customer: str = Field(min_length=1, max_length=128)
    sequence: int = Field(ge=1, description="rises with every alert of the customer")
    transition: Literal["opened", "resolved", "terminated"]
    probability: float | None = Field(
        ge=0, le=1, description="calibrated; null where the customer was not scored: left, returned, expired"
    )
    threshold: float = Field(ge=0, le=1, description="the probability at which episodes open")
    horizon_days: float = Field(gt=0, description="churn is no activity for so many days after the decision")
    reasons: tuple[Reason, ...] = Field(max_length=REASONS_MAX)
    model: str
    model_version: int
    layout: str
    decision: Decision


def alert_id(topic: str, customer: str, transition: str, sequence: int) -> str:
    """32 hex digits of what the alert is about."""
    return hashlib.blake2b(
        f"{topic}\0{customer}\0{transition}\0{sequence}".encode(), digest_size=16
    ).hexdigest()


def encode(alert: Alert) -> bytes:
    """The alert's bytes: the same alert gives the same bytes."""
    return alert.model_dump_json().encode()


def customer_key(value: bytes) -> bytes:
    """The Kafka key of an encoded alert: its customer."""
    return str(orjson.loads(value)["customer"]).encode()


def top_reasons(
    names: Sequence[str],
    say: Sequence[Callable[[float], str]],
    values: NDArray[np.float32],
    contributions: NDArray[np.float32],
    towards: int,
) -> tuple[Reason, ...]:
    """The features that spoke loudest in one direction (`towards` +1: for churn, -1: against it), loudest first.

    values, contributions: float32[F], in the order of `names`; `say[i](value)` puts feature i in words. Figures have
    four significant digits: enough to read, and no noise in the bytes.
    """
    order = np.argsort(contributions * -towards, kind="stable")[:REASONS_MAX]
    return tuple(
        Reason(
            feature=names[i],
            value=_short(values[i]),
            contribution=_short(contributions[i]),
            words=say[i](float(values[i])),
        )
        for i in order
        if contributions[i] * towards > 0
    )


def _short(value: float) -> float:
    return float(f"{float(value):.4g}")


def alert_schema() -> dict[str, Any]:
    """The published JSON Schema of the alert."""
    return Alert.model_json_schema()
