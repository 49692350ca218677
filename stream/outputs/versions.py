"""Every version of the alert that a topic may hold, read as the present one.

    1   releases up to 0.9: `transition` for state and cause, one target without a name, no bands
    2   `alert.py`

A topic holds the older ones for as long as it retains (`topics.alerts_retention`), so whoever reads from its beginning
meets both. How versions come about is said in `alert.py`.
"""

from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from ebbtide.featurestore.target import ALL_ACTIVITY
from ebbtide.stream.decision.policy import Cause
from ebbtide.stream.decision.rules import LOWEST_BAND
from ebbtide.stream.outputs.alert import REASONS_MAX, SCHEMA_VERSION, Alert, Decision, Reason, logit_of


class AlertV1(BaseModel):
    """An alert as it was before it had a target."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    alert_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    customer: str = Field(min_length=1, max_length=128)
    sequence: int = Field(ge=1)
    transition: Literal["opened", "resolved", "terminated"]
    probability: float | None = Field(ge=0, le=1)
    threshold: float = Field(ge=0, le=1)
    horizon_days: float = Field(gt=0)
    reasons: tuple[Reason, ...] = Field(max_length=REASONS_MAX)
    model: str
    model_version: int
    layout: str
    decision: Decision

    def as_present(self, target: str) -> Alert:
        """The same as an alert of today; its logit has the digits that its probability has."""
        brought = self.decision.cause
        cause: Cause = brought if brought in ("terminal", "returned", "expired") else "score"
        said = self.model_dump(exclude={"transition", "schema_version"})
        return Alert(
            **said,
            schema_version=SCHEMA_VERSION,
            target=target,
            state="opened" if self.transition == "opened" else "resolved",
            cause=cause,
            band=LOWEST_BAND,
            logit=None if self.probability is None else logit_of(self.probability),
        )


def read_alert(value: bytes, target: str = ALL_ACTIVITY) -> Alert:
    """An alert of any version that is read. `target`: what one that names none is about, the spec's first.

    Raises ValueError for what is no alert, or of a version that is not read.
    """
    said = orjson.loads(value)
    if isinstance(said, dict) and said.get("schema_version") == 1:
        return AlertV1.model_validate_json(value).as_present(target)
    return Alert.model_validate_json(value)
