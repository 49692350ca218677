"""The score topic's record: the latest score of a customer, compacted by key. Written only where it is configured.

A record with a null value says that the customer is to be forgotten. How it changes is as for alerts (`alert.py`):
fields are only added.
"""

from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from ebbtide.stream.outputs.message import Message

SCHEMA_ID = "urn:ebbtide:schema:score:1"


class ScoreRecord(BaseModel):
    """One scored decision point of a customer."""

    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_extra={"$id": SCHEMA_ID})
    customer: str = Field(min_length=1, max_length=128)
    as_of: int = Field(ge=1, description="ms UTC")
    cause: str = Field(description="what brought the point about: event or silence")
    p: float = Field(
        ge=0, le=1, description="the float32 that the model gave, exactly; of the primary target"
    )
    version: int = Field(description="the model's")
    partition: int = Field(ge=0, description="of the input topic")
    offset: int = Field(
        ge=-1, description="of the event, of a silence the last activity's; -1: it came from a file"
    )
    targets: dict[str, float] | None = Field(
        default=None, description="p of every target by name; null where the spec has but one"
    )
    held_out: bool = Field(default=False, description="decided about like everybody, and nobody is told")


def score_message(
    topic: str,
    customer: str,
    as_of: int,
    cause: str,
    p: np.float32,
    version: int,
    partition: int,
    offset: int,
    *,
    held_out: bool = False,
    targets: dict[str, float] | None = None,
) -> Message:
    """The record as a message. A float32 widened to double prints all its digits, so it reads back to the same bits."""
    record = {
        "customer": customer, "as_of": as_of, "cause": cause, "p": float(p), "version": version,
        "partition": partition, "offset": offset, "targets": targets, "held_out": held_out,
    }  # fmt: skip
    return Message(topic, customer.encode(), orjson.dumps(record))


def read_score(value: bytes) -> ScoreRecord:
    """The record of a message's value. Raises ValueError when it is none of ours."""
    return ScoreRecord.model_validate_json(value)


def score_schema() -> dict[str, Any]:
    """The published JSON Schema of a score."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ScoreRecord.model_json_schema()}
