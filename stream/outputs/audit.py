"""The audit topic's record: what an alert was decided on, so that it can be replayed. Written only where configured.

The row is a customer's behaviour, which not every consumer of alerts is to read: so it lies in a topic of its own, with
rights and a bounded retention of its own, under the customer's key, so that tombstones reach it. The alert carries the
row's hash, which ties the two together.

It is sent ahead of the commit, as scores are, so after a crash it may be there twice, with the same bytes.
"""

import base64
import hashlib
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from ebbtide.featurestore.record.layout import Layout, Rows

SCHEMA_ID = "urn:ebbtide:schema:audit:1"


class AuditRecord(BaseModel):
    """The row that an alert was decided on. A record with a null value is none: forget the customer in its key."""

    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_extra={"$id": SCHEMA_ID})
    alert_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    customer: str = Field(min_length=1, max_length=128)
    as_of: int = Field(ge=1, description="ms UTC")
    p: float = Field(ge=0, le=1, description="the float32 that the model gave, exactly")
    model: str
    model_version: int
    layout: str
    platform: str = Field(description="TensorFlow and the processor's features, which decide the last bits")
    row: str = Field(description="base64 of the record's fields that the model reads, in the record's order")

    def rows(self, layout: Layout) -> Rows:
        """The record, structured[1]; what the model does not read is zero. Raises ValueError for bytes of another
        layout."""
        rows, at, raw = layout.empty(1), 0, base64.b64decode(self.row, validate=True)
        if len(raw) != (size := sum(layout.dtype[name].itemsize for name in layout.model_fields)):
            raise ValueError(f"a row of {len(raw)} bytes, where the layout has {size}")
        for name in layout.model_fields:
            kind = layout.dtype[name]
            rows[name] = np.frombuffer(raw[at : at + kind.itemsize], kind.base).reshape(kind.shape)
            at += kind.itemsize
        return rows


def rows_bytes(rows: Rows, layout: Layout) -> list[bytes]:
    """What the model reads of each record: the bytes of `layout.model_fields`, one after the other."""
    columns = [
        np.ascontiguousarray(rows[name]).view(np.uint8).reshape(len(rows), layout.dtype[name].itemsize)
        for name in layout.model_fields
    ]
    packed = np.concatenate(columns, axis=1)
    return [row.tobytes() for row in packed]


def row_sha256(raw: bytes, as_of: int) -> str:
    """64 hex digits: of what the model was asked, the row's bytes and as_of as 8 bytes, the lowest first."""
    return hashlib.sha256(raw + as_of.to_bytes(8, "little")).hexdigest()


def audit_entry(
    alert_id: str,
    customer: str,
    as_of: int,
    p: float,
    model: str,
    version: int,
    layout: str,
    platform: str,
    raw: bytes,
) -> tuple[bytes, bytes]:
    """Key and value of the record, the same bytes for the same decision."""
    record = {
        "alert_id": alert_id, "customer": customer, "as_of": as_of, "p": p, "model": model,
        "model_version": version, "layout": layout, "platform": platform, "row": base64.b64encode(raw).decode(),
    }  # fmt: skip
    return customer.encode(), orjson.dumps(record)


def read_audit(value: bytes) -> AuditRecord:
    """The record of a message's value. Raises ValueError when it is none of ours."""
    return AuditRecord.model_validate_json(value)


def audit_schema() -> dict[str, Any]:
    """The published JSON Schema of an audit record."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **AuditRecord.model_json_schema()}
