"""An alert decided again: the row that it was decided on, scored and explained by the version that it names.

    alert ──row_sha256──▶ audit record ──row──▶ score, explain ──▶ the same bits?  on the same platform they must be
                              └─ the log, refolded ──▶ the same row?

It compares; it loads no model and reads no topic. On another platform (another TensorFlow, another processor) kernels
add in another order: then TOLERANCE is what is promised, and the verdict says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from ebbtide.featurestore.events.parse import ParseLimits, Parser
from ebbtide.featurestore.record.fold import CAUSES, Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.reasons import Reasons
from ebbtide.model.explaining.explained import Explained
from ebbtide.stream.batch import Record
from ebbtide.stream.outputs.alert import REASONS_MAX, Alert, logit_of, reasons_of
from ebbtide.stream.outputs.audit import AuditRecord, row_sha256, rows_bytes
from ebbtide.stream.outputs.compose import RISES

TOLERANCE = 1e-5
"""Of p and of a reason's contribution, between two platforms."""
Same = Literal["the same bits", "within tolerance", "different"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """same_row: the audit record's row is the one whose hash the alert carries. refolded: whether the log makes that
    row again, None where that is not known. p, alerted_p: now and then. same_platform: whether equal bits are promised.
    """

    same_row: bool
    score: Same
    reasons: Same
    p: float
    alerted_p: float
    same_platform: bool
    platform: str
    refolded: bool | None = None

    @property
    def holds(self) -> bool:
        """What is promised was kept."""
        wanted = {"the same bits"} if self.same_platform else {"the same bits", "within tolerance"}
        return self.same_row and {self.score, self.reasons} <= wanted and self.refolded is not False

    def as_json(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"holds": self.holds}


def compare(
    alert: Alert, audit: AuditRecord, layout: Layout, p: np.float32, why: Explained, platform: str
) -> Replayed:
    """The alert beside what the version says now: p, and why of the one row."""
    (raw,) = rows_bytes(audit.rows(layout), layout)
    towards = 1 if alert.state in RISES else -1
    said = reasons_of(
        Reasons(layout.spec).top(
            why.values[0], why.contributions[0], float(why.sequence[0]), towards, REASONS_MAX
        )
        if why.holds[0]
        else []
    )
    then = np.float32(audit.p)
    same_score: Same = "different"
    if p.tobytes() == then.tobytes() and logit_of(float(p)) == alert.logit:
        same_score = "the same bits"
    elif abs(float(p) - float(then)) <= TOLERANCE and _near(logit_of(float(then)), alert.logit):
        same_score = "within tolerance"
    same_reasons: Same = "different"
    now, before = ({each.group: each.contribution for each in reasons} for reasons in (said, alert.reasons))
    if said == alert.reasons:
        same_reasons = "the same bits"
    elif now.keys() == before.keys() and all(_near(now[group], before[group]) for group in now):
        same_reasons = "within tolerance"
    return Replayed(
        row_sha256(raw, audit.as_of) == alert.row_sha256, same_score, same_reasons, float(p), float(then),
        platform == audit.platform, audit.platform,
    )  # fmt: skip


def makes_again(
    records: Sequence[Record], alert: Alert, audit: AuditRecord, layout: Layout, limits: ParseLimits
) -> bool:
    """Does a customer's history, the records with their key in the alert's partition in order, make the alert's row
    again? limits: the workers', who made dead letters of what is beyond them."""
    (wanted,), folder = rows_bytes(audit.rows(layout), layout), Folder(layout)
    events = Parser(layout.spec, limits).parse(records).events
    theirs = [name == alert.customer for name in events.customers]  # others may have the same key
    events = events.take(np.array(theirs, np.bool_)[events.customer])
    rows, points = folder.fold(layout.empty(len(events.customers)), events)
    _, passed = folder.elapse(rows, np.full(len(rows), audit.as_of + 1, np.int64))
    return any(
        raw == wanted and CAUSES[cause] == alert.decision.cause
        for each in (points, passed)
        for at in [each.take(each.as_of == audit.as_of)]
        for raw, cause in zip(rows_bytes(at.rows, layout), at.cause.tolist(), strict=True)
    )


def _near(a: float | None, b: float | None) -> bool:
    """To within what four significant digits, or the last bits of a logit, may differ by."""
    if a is None or b is None:
        return a is b
    return abs(a - b) <= max(TOLERANCE, 1e-3 * abs(b))
