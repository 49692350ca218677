"""From scores to decisions: a small state machine kept in the customer's record. A score is not an alert.

                      p >= enter, cool-down over
            ┌────────┐ ───────── opened ────────▶ ┌──────┐
       ────▶│ closed │                            │ open │◀─┐ p >= exit: the dwell starts again
            └────────┘ ◀── resolved: p < exit ─── └──────┘──┘
                 ▲ ▲        for `dwell`, then      │  │
                 │ │        `cool-down`            │  │
                 │ └─────── terminated ────────────┘  │  the customer left explicitly
                 └───────── resolved ─────────────────┘  they came back after `memory`, or the record expired

One open episode a customer, and none ends without a word: where `memory` has passed, it is resolved before all is
cleared. A tombstone clears it; the word is the null that is passed on. Pure: it sees points in order with their scores,
changes the episode fields of the given rows and returns the transitions. `sequence` is the decision's own time, made
strictly increasing, so that it keeps rising for a customer that was forgotten and came back.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ebbtide.featurestore.record.fold import EXPIRED, RESET, RETURNED, TERMINAL, Points
from ebbtide.featurestore.record.layout import EPISODE_FIELDS, Rows

CLOSED, OPEN = 0, 1
TransitionKind = Literal["opened", "resolved", "terminated"]


class Policy(BaseModel):
    """When an episode opens and when it is over. Probabilities in [0, 1], durations in ms of event time."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    enter: float = Field(gt=0.0, le=1.0)
    exit: float = Field(ge=0.0, le=1.0)
    dwell_ms: int = Field(default=0, ge=0)
    cooldown_ms: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _hysteresis(self) -> "Policy":
        if self.exit > self.enter:
            raise ValueError(f"exit {self.exit} must not be above enter {self.enter}: an episode would flap")
        return self


class Transition(NamedTuple):
    """An episode that changed at `point` (index into the points): 'opened', 'resolved' or 'terminated'."""

    point: int
    kind: TransitionKind
    sequence: int


def decide(
    points: Points, p: NDArray[np.float32], before: Rows, after: Rows, policy: Policy
) -> list[Transition]:
    """Walk m points with p float32[m] (ignored where a point is not scored) over the batch's customers.

    A point whose p is NaN could not be scored: nothing is decided there.
    `before` are their records as loaded, `after` as folded. Only `EPISODE_FIELDS` of `after` change, in place; they
    start from `before`, because an end within the batch emptied them too early for the points that lie before it.
    Most points of most batches change nothing: those are done as columns, and only customers with something to decide
    are walked one by one.
    """
    for name in EPISODE_FIELDS:
        after[name] = before[name]
    undecided = points.scored & np.isnan(p)
    scored = points.scored & ~undecided
    busy = (
        (scored & (p >= policy.enter))
        | (points.cause > TERMINAL)
        | (after["episode_state"][points.customer] == OPEN)
    )
    walked = np.zeros(len(after), np.bool_)
    walked[points.customer[busy]] = True
    quiet = scored & ~walked[points.customer]
    # With several points of one customer the last assignment wins, as it has to.
    after["score"][points.customer[quiet]] = p[quiet]
    after["scored_at"][points.customer[quiet]] = points.as_of[quiet]
    transitions: list[Transition] = []
    for m in np.flatnonzero(walked[points.customer] & ~undecided):
        row, cause = after[points.customer[m]], int(points.cause[m])
        kind = _walk(row, cause, int(points.as_of[m]), p[m], policy)
        sequence = int(row["sequence"])
        if kind is not None:
            row["sequence"] = sequence = max(sequence + 1, int(points.as_of[m]))
            transitions.append(Transition(int(m), kind, sequence))
        if cause > TERMINAL:
            for name in EPISODE_FIELDS:
                row[name] = 0
        if cause == RETURNED:
            row["sequence"] = sequence  # what they do now is decided as of the very same time
    return transitions


def _walk(row: np.void, cause: int, as_of: int, p: np.float32, policy: Policy) -> TransitionKind | None:
    is_open = row["episode_state"] == OPEN
    if cause == RESET:
        return None
    if cause in (RETURNED, EXPIRED):
        return "resolved" if is_open else None
    if cause == TERMINAL:
        return _close(row, as_of, policy, "terminated") if is_open else None
    row["score"], row["scored_at"] = p, as_of
    if not is_open:
        if p >= policy.enter and as_of >= row["cooldown_until"]:
            row["episode_state"], row["episode_opened_at"], row["below_exit_at"] = OPEN, as_of, 0
            return "opened"
        return None
    if p >= policy.exit:
        row["below_exit_at"] = 0
        return None
    if row["below_exit_at"] == 0:
        row["below_exit_at"] = as_of
    if as_of - row["below_exit_at"] >= policy.dwell_ms:
        return _close(row, as_of, policy, "resolved")
    return None


def _close(row: np.void, as_of: int, policy: Policy, kind: TransitionKind) -> TransitionKind:
    row["episode_state"], row["below_exit_at"] = CLOSED, 0
    row["cooldown_until"] = as_of + policy.cooldown_ms
    return kind
